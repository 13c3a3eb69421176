"""The data of a recorded run: what it is made of, its noise, and the predictions that it has received."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..path.noise import Noise, NormalSource, skip_draw
from ..path.path import Path
from ..path.points import Point
from ..path.prediction import Prediction
from ..registry.plugin import Sampler
from .memory import draw_bit

Keys = list[tuple[int, int]]
"""(seed, index) of each sample, on which its noise depends."""


@dataclass(frozen=True)
class Setup:
    """What a run is made of, except for its samples; shared by its copies.

    Attributes:
        spec, options: the sampler and its options.
        new_path: returns the path of a run, without noise.
        new_noise: returns the noise of a run.
        label: the run in error messages.
        limit: bytes that the predictions of a record that has to be complete may take; none by default. Beyond it they
            are dropped, and the run cannot be copied any more.
    """

    spec: Sampler
    options: dict[str, Any]
    new_path: Callable[[], Path]
    new_noise: Callable[[NormalSource], Noise]
    label: str
    limit: int | None = None


class RunNoise:
    """The noise of a run, from keys that may change on the way; it records the steps for which it was drawn.

    Args:
        setup: of the run.
        keys: one for each sample.
        shape: of a sample.
        steps: draws made before the run, if it continues the noise of another one.

    Attributes:
        steps: the ends, on `Path.clock`, of the steps of all draws so far.
        needed: in a replay, the sources on which something still depends; other draws are only counted.
    """

    def __init__(self, setup: Setup, keys: Keys, shape: Sequence[int], steps: Sequence[tuple[float, float]]) -> None:
        seeds, indices = zip(*keys, strict=True) if keys else ((), ())
        self._source = NormalSource(seeds, indices, shape)
        self._noise = setup.new_noise(self._source)
        self.steps = [*steps]
        self._before = len(self.steps)
        self.needed: int | None = None
        for start, end in self.steps:
            skip_draw(self._noise, start, end)

    def __call__(self, start: float, end: float, rows: Any = None) -> Tensor:
        self.steps.append((start, end))
        if self.needed is not None and not self.needed & draw_bit(len(self.steps) - 1 - self._before):
            skip_draw(self._noise, start, end, rows)
            return torch.zeros(()).expand(len(self._source.keys), *self._source.shape)
        return self._noise(start, end, rows)

    def skip(self, start: float, end: float, rows: Any = None) -> None:
        """Count a draw whose outcome is given."""
        self.steps.append((start, end))
        skip_draw(self._noise, start, end, rows)

    def start_noise(self) -> Tensor:
        """The noise that the run starts from."""
        begin = getattr(self._noise, "start_noise", None)
        return self._source.draw(NormalSource.START) if begin is None else begin()

    def rekey(self, keys: Keys) -> None:
        """Draw with other keys from now on."""
        self._source.rekey(keys)


class Output(NamedTuple):
    """A prediction without its state and point."""

    raw: Tensor
    kind: str
    unguided: tuple[Tensor, str] | None
    log_density: Tensor | None


@dataclass(slots=True)
class Sent:
    """A prediction that a sampler has received, as far as a replay needs it.

    Attributes:
        output: the prediction.
        state: the state that was requested; None if the replay computes it, or if nothing depends on it.
        edited: the state that was evaluated, if it is another one.
    """

    output: Output
    state: Tensor | None
    edited: Tensor | None

    @classmethod
    def of(cls, prediction: Prediction, requested: Tensor, keeps_state: bool) -> Sent:
        """The record of a prediction; `keeps_state` is False if a replay computes the state or does not need it."""
        unguided = prediction.unguided
        plain = None if unguided is None else (detached(unguided.raw), unguided.kind)
        output = Output(detached(prediction.raw), prediction.kind, plain, prediction.log_density)
        edited = None if prediction.x is requested else detached(prediction.x)
        return cls(output, detached(requested) if keeps_state else None, edited)

    @property
    def bytes(self) -> int:
        """The size of its tensors."""
        unguided = None if self.output.unguided is None else self.output.unguided[0]
        tensors = (self.output.raw, unguided, self.output.log_density, self.state, self.edited)
        return sum(each.numel() * each.element_size() for each in tensors if each is not None)

    def again(self, x: Tensor, point: Point[Any], make: type[Prediction]) -> Prediction:
        """The prediction, for the same request of a replay; the requested state `x` is overwritten by the first run's.

        Overwriting it in place also corrects any view of it that the sampler has kept.
        """
        if self.state is not None:
            x.copy_(self.state)
        evaluated = x if self.edited is None else self.edited
        prediction = make(evaluated, point, self.output.raw, self.output.kind)
        if self.output.unguided is not None:
            prediction.unguided = make(evaluated, point, *self.output.unguided)
        prediction.log_density = self.output.log_density
        return prediction

    def map(self, change: Callable[[Tensor], Tensor]) -> Sent:
        """The same with other tensors."""

        def changed(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        raw, kind, unguided, log_density = self.output
        plain = None if unguided is None else (change(unguided[0]), unguided[1])
        return Sent(Output(change(raw), kind, plain, changed(log_density)), changed(self.state), changed(self.edited))


def detached(tensor: Tensor) -> Tensor:
    """A tensor without its graph, if it has one."""
    return tensor.detach() if tensor.requires_grad else tensor


def forgotten(x: Tensor, point: Point[Any], make: type[Prediction]) -> Prediction:
    """A prediction of zeros, in the place of one on which nothing depends any more."""
    prediction, zeros = make(x, point, torch.zeros_like(x), "v"), torch.zeros_like(x)
    prediction.unguided, prediction.log_density = make(x, point, zeros, "v"), zeros.flatten(1)[:, 0]
    return prediction


@dataclass
class Record:
    """The data of a run in progress: everything that its copies and files contain.

    Attributes:
        start: (N, ...) the initial state in the path's coordinates; None if nothing depends on it any more.
        shape, dtype, device: of the states.
        keys: (evaluations before it, the keys from then on), for each change of the noise's keys.
        earlier: the steps of draws that were made before the run began.
        steps: the steps of all draws, of a run whose generator has not been made yet.
        sent: the predictions that matter, by the number of their evaluation.
        count: the number of predictions that the sampler has received.
        states: the requested states that wait for a prediction; several if it is requested at several points at once.
        log_probs, draws, times, visited, given: as in `Ledger`.
        edited: the numbers of the entries of `visited` that the caller set in place of the requested states.
    """

    start: Tensor | None
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    keys: list[tuple[int, Keys]]
    earlier: list[tuple[float, float]]
    steps: list[tuple[float, float]] = field(default_factory=list)
    sent: dict[int, list[Sent]] = field(default_factory=dict)
    count: int = 0
    states: list[Tensor] = field(default_factory=list)
    log_probs: list[Tensor] | None = None
    draws: list[Tensor] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    visited: list[Tensor] = field(default_factory=list)
    edited: list[int] = field(default_factory=list)
    given: dict[int, Tensor] = field(default_factory=dict)
