"""The evaluation that a run waits for: its states in the model's coordinates, which the caller may edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import shown
from ..errors import UsageError
from ..path.points import Point, model_state
from ..processes.scalars import expand

Requests = list[tuple[Tensor, Point[Any]]]
"""States in the path's coordinates, and the points at which they are evaluated."""


class Waiting:
    """The states that a caller evaluates, and the edits that it makes.

    Args:
        request: the sampler's request: (state, point), or a list of such pairs if it evaluates at several points at
            once.
        edited: (M, *shape) states to evaluate in place of the requested ones, in the model's coordinates.
    """

    __slots__ = ("_edited", "_given", "_version", "is_list", "requests")

    def __init__(self, request: Any, edited: Tensor | None = None) -> None:
        self.is_list = request.__class__ is list
        self.requests: Requests = request if self.is_list else [request]
        self._edited = edited
        self._given: Tensor | None = None  # what `states` has returned
        self._version = 0  # of that tensor at the time, by which an edit in place is noticed

    @property
    def states(self) -> Tensor:
        """(M, *shape) the states in the model's coordinates, one request after the other, in a tensor of their own."""
        if self._edited is not None:
            return self._edited
        given = self._given
        if given is None:
            x, point = self.requests[0]
            given = model_state(x, point)
            if len(self.requests) > 1:
                given = torch.cat([model_state(x, point) for x, point in self.requests])
            elif given is x:
                given = x.clone()
            self._given, self._version = given, given._version
        return given

    @property
    def shape(self) -> tuple[int, ...]:
        """(M, *shape), of all requests together."""
        shape: torch.Size = self.requests[0][0].shape
        return shape if len(self.requests) == 1 else (sum(x.shape[0] for x, _ in self.requests), *shape[1:])

    def split(self, rows: Tensor) -> Sequence[Tensor]:
        """The part of each request in a tensor (M, ...)."""
        return (rows,) if len(self.requests) == 1 else rows.split([x.shape[0] for x, _ in self.requests])

    def replace(self, states: Any) -> None:
        """Evaluate other states.

        Raises:
            UsageError: they are not a floating-point tensor of the same shape.
        """
        like = self.states
        self._edited = floating("x", states, like.shape).to(like, copy=True)  # its owner may overwrite it

    @property
    def edit(self) -> Tensor | None:
        """The states that the caller has set, or has edited in place; None if they are the sampler's own."""
        if self._edited is not None:
            return self._edited
        given = self._given
        return None if given is None or given._version == self._version else given

    def evaluated(self) -> list[Tensor]:
        """The evaluated states of each request, in the path's coordinates; the sampler's own tensors if not edited.

        Elements that an edit leaves as they are keep the sampler's values, which are not rounded to the model's
        coordinates and back. Gradients of an edit are those of the caller's states alone: none if they were detached.
        """
        edit = self.edit
        if edit is None:
            return [x for x, _ in self.requests]
        found = []
        for (x, point), part in zip(self.requests, self.split(edit), strict=True):
            scaled = part.to(x) * expand(point.scale, x)
            values = torch.where(part == model_state(x, point), x, scaled).detach()
            # `scaled` is within a rounding of the values if they differ, so the sum is exact.
            has_graph = part.requires_grad and torch.is_grad_enabled()
            found.append(scaled + (values - scaled).detach() if has_graph else values)
        return found

    def times(self) -> np.ndarray:
        """(M,) the process's time of each state."""
        return np.concatenate([np.broadcast_to(point.t, len(x)) for x, point in self.requests])

    def ends(self) -> np.ndarray | None:
        """(M,) the process's times of the ends of the steps, for flow maps; None if the sampler does not set them."""
        ends = [np.broadcast_to(point.end, len(x)) for x, point in self.requests if point.end is not None]
        return np.concatenate(ends) if ends else None

    def rows(self) -> np.ndarray:
        """(M,) the position in the batch of each state's sample."""
        return np.concatenate(
            [np.arange(len(x)) if point.rows is None else np.asarray(point.rows) for x, point in self.requests]
        )

    @property
    def is_shared(self) -> bool:
        """True if all samples are evaluated together, at one time each point."""
        if len(self.requests) == 1:
            return self.requests[0][1].rows is None
        return all(point.rows is None for _, point in self.requests)


def floating(name: str, value: Any, shape: Sequence[int]) -> Tensor:
    """A floating-point tensor of this shape; UsageError for anything else."""
    if not isinstance(value, Tensor) or value.shape != shape or not value.is_floating_point():
        found = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else shown(value)
        raise UsageError(f"{name} must be a floating-point tensor of shape {tuple(shape)}, not {found}")
    return value
