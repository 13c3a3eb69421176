"""The rows of a pool's batches: which states the network receives together, and for which requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from ..models.conditions import join_conditions, take_rows
from ..models.output import Output
from ..public import public


@public
class PoolRow(NamedTuple):
    """The origin of a row of a `PoolBatch`.

    Attributes:
        id: the request, as returned by `Pool.add`.
        sample: the position of the sample in the request.
        is_unconditional: True if the row is evaluated under the condition to guide away from.
    """

    id: int
    sample: int
    is_unconditional: bool


@public
@dataclass(frozen=True, eq=False)
class PoolBatch:
    """The rows that the network evaluates next, of one shape.

    Attributes:
        x: (R, *shape) the states.
        t: (R,) the network's times, by the pool's `clock`.
        times: (R,) the process's own times, float64, for `Model.predict`.
        end: (R,) the network's times of the ends of the steps, for flow maps; else None.
        condition: the rows' conditions, joined; None if the requests have none.
        rows: the origin of each row.
    """

    x: Tensor
    t: Tensor
    times: np.ndarray
    end: Tensor | None
    condition: Any
    rows: tuple[PoolRow, ...]

    def __len__(self) -> int:
        return len(self.rows)


class Half:
    """The rows of one evaluation of a request under one condition: half of a guided evaluation, or all of another.

    Args:
        x: (M, *shape) the states.
        t, times, end: of each state, as in `PoolBatch`.
        condition: of each state.
        rows: the origin of each state.
    """

    def __init__(
        self, x: Tensor, t: Tensor, times: np.ndarray, end: Tensor | None, condition: Any, rows: tuple[PoolRow, ...]
    ) -> None:
        self.x, self.t, self.times, self.end, self.condition, self.rows = x, t, times, end, condition, rows
        self.received = 0
        self._outputs: list[Output] = []
        self.kind = (x.shape[1:], x.dtype, x.device, end is None, *_kind(condition))

    @property
    def remaining(self) -> int:
        """The number of rows whose outputs have not arrived."""
        return len(self.x) - self.received

    def receive(self, output: Output) -> None:
        """Take the network's outputs for the next rows; they are copied, since the network may reuse its buffer."""
        value, unguided, density = output
        self._outputs.append(
            Output(
                _own(value, self.x),
                None if unguided is None else _own(unguided, self.x),
                None if density is None else _own(density, self.x),
            )
        )
        self.received += len(value)

    @property
    def output(self) -> Output:
        """The outputs of all rows, once they have arrived."""
        first, parts = self._outputs[0], list(zip(*self._outputs, strict=True))
        return Output(
            torch.cat(parts[0]),
            None if first.unguided is None else torch.cat(parts[1]),
            None if first.log_density is None else torch.cat(parts[2]),
        )


class Share(NamedTuple):
    """The next rows of one half, as part of a batch."""

    half: Half
    size: int

    @property
    def part(self) -> slice:
        """Their positions in the half."""
        return slice(self.half.received, self.half.received + self.size)


def joined(shares: list[Share]) -> PoolBatch:
    """The batch of some rows of the same kind."""
    halves = [(share.half, share.part) for share in shares]
    ends = [half.end[part] for half, part in halves if half.end is not None]
    return PoolBatch(
        x=torch.cat([half.x[part] for half, part in halves]),
        t=torch.cat([half.t[part] for half, part in halves]),
        times=np.concatenate([half.times[part] for half, part in halves]),
        end=torch.cat(ends) if ends else None,
        condition=join_conditions(*(take_rows(half.condition, part) for half, part in halves)),
        rows=tuple(row for half, part in halves for row in half.rows[part]),
    )


def _own(part: Tensor, like: Tensor) -> Tensor:
    return part.detach().to(device=like.device, dtype=like.dtype, copy=True)


def _kind(condition: Any) -> tuple[Any, ...]:
    """What conditions have in common if they can be joined: the structure, and the shape and dtype of each tensor."""
    leaves, structure = tree_flatten(condition)
    kinds = [(each.shape[1:], each.dtype, each.device) if isinstance(each, Tensor) else type(each) for each in leaves]
    return structure, *kinds
