"""The timesteps that a pipeline loops over: a tensor that knows its place in a run, and may grow.

Its elements carry their value on the host and their place in the run, so `Scheduler.step` can identify a timestep
without waiting for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checks import shown
from ..errors import UsageError
from ..processes.scalars import as_scalar

if TYPE_CHECKING:
    from .timeline import Timeline


class Place(NamedTuple):
    """The place of an element of `timesteps` in a run.

    Attributes:
        layout: the number of the element's layout.
        begin, position: the element is evaluation `position` of the run that starts at grid step `begin`.
        value: the timestep.
        version: the element's version, by which a later in-place change is noticed.
    """

    layout: int
    begin: int
    position: int
    value: float
    version: int


def mark(element: Any, layout: int, begin: int, position: int, value: float) -> Tensor:
    """Attach to `element`, a timestep on any device, its place and its value on the host."""
    element.sdesamplers_place = Place(layout, begin, position, value, _version(element))
    return element


def _version(element: Tensor) -> int:
    return -1 if element.is_inference() else element._version


@dataclass
class Passed:
    """A timestep passed to `step`.

    Attributes:
        value: the number; None if it cannot be read: no timestep, a traced number, or a tensor without values (meta).
        place: its place, if it is an element of `timesteps`; else None.
        slack: the allowed distance from the intended timestep: the rounding of its dtype, and for integers the
            fraction that `int(t)` or `round(t)` removes.
    """

    value: float | None = None
    place: Place | None = None
    slack: float = 0.0

    def means(self, value: float) -> bool:
        """True if this may be the timestep `value`."""
        return self.value is None or abs(self.value - value) <= self.slack


def read_timestep(timestep: Any) -> Passed:
    """Read a timestep passed to `step`.

    The host waits only for a tensor on a device that is not an element of `timesteps`.

    Raises:
        UsageError: it is not a number, or contains different numbers.
    """
    place = getattr(timestep, "sdesamplers_place", None)
    if place is not None and place.version == _version(timestep):
        return Passed(place.value, place, _rounding(place.value, timestep.dtype))
    if timestep is None or (isinstance(timestep, Tensor) and timestep.is_meta):
        return Passed()
    if not _is_numeric(timestep):
        # A traced number has no value yet.
        if hasattr(timestep, "__float__") and not isinstance(timestep, bool):
            return Passed()
        raise UsageError(f"timestep must be a number, such as an element of scheduler.timesteps, not {timestep!r}")
    try:
        values = np.ravel(as_scalar(timestep))
    except (TypeError, ValueError, RuntimeError):  # rows of different lengths, lists of tensors
        raise UsageError(
            f"timestep must be a number, such as an element of scheduler.timesteps, not {shown(timestep)}"
        ) from None
    if not len(values) or np.any(values != values[0]):
        raise UsageError(
            f"timestep must be the same number for all samples, not {shortened(values)}: a run is at one time; samples "
            "at different times need a scheduler, or an sds.Stepper, each"
        )
    value, dtype = float(values[0]), getattr(timestep, "dtype", type(timestep))
    return Passed(value, None, _rounding(value, dtype))


def shortened(values: np.ndarray) -> str:
    """The first numbers of a list."""
    text = ", ".join(f"{value:g}" for value in values[:4])
    return f"[{text}, ...]" if len(values) > 4 else f"[{text}]"


def _is_numeric(timestep: Any) -> bool:
    kinds = (Tensor, np.ndarray, np.number, int, float, list, tuple)
    return isinstance(timestep, kinds) and not isinstance(timestep, bool)


def _rounding(value: float, dtype: Any) -> float:
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return max(1e-5, torch.finfo(dtype).eps) * max(1.0, abs(value))
    whole = (not dtype.is_floating_point) if isinstance(dtype, torch.dtype) else _is_whole(dtype)
    return 1.0 - 1e-6 if whole else 1e-5 * max(1.0, abs(value))


def _is_whole(dtype: Any) -> bool:
    return dtype is int or (isinstance(dtype, np.dtype | type) and np.issubdtype(dtype, np.integer))


class Timesteps(Tensor):
    """One timestep for each evaluation of a run, on the pipeline's device.

    Pipelines start in the middle (image-to-image) by slicing, `timesteps[begin:]`. A run that starts there differs
    from the rest of the whole run: a multistep sampler needs its starting values again. A slice is therefore not a
    subset of these numbers, but the timesteps of the run that starts there. If the run in progress has just reached
    that place, however, a loop over the slice continues it. Everything else behaves as for a plain tensor.

    The timesteps of an adaptive run depend on its states: this then contains only the timesteps requested so far, and
    iteration continues as long as the loop's `step` calls produce more.

    No operation on it changes the state of the scheduler; a run begins when `step` is called.
    """

    # Results of computations with timesteps are ordinary tensors.
    __torch_function__: Any = torch._C._disabled_torch_function_impl

    timeline: Timeline
    host: list[float]  # the same numbers on the host
    begin: int  # the grid step from which the run starts
    first: int  # the index in that run of the first entry's evaluation
    stop: int | None  # the number of entries left if a slice has cut off the end
    origin: tuple[int, int] | None  # the source of a slice: the grid step where that run begins, and the position in it

    @classmethod
    def of(
        cls,
        timeline: Timeline,
        emitted: Tensor,
        values: list[float],
        begin: int,
        stop: int | None = None,
        *,
        first: int = 0,
        origin: tuple[int, int] | None = None,
    ) -> Timesteps:
        """The timesteps `emitted` (K,), on the host `values`, of the run from grid step `begin`."""
        made: Timesteps = emitted[:stop].as_subclass(cls)
        made.timeline, made.host, made.begin, made.stop = timeline, values[:stop], begin, stop
        made.first, made.origin = first, origin
        return made

    def __len__(self) -> int:
        return len(self._current._emitted)

    @property
    def _current(self) -> Timesteps:
        """The timesteps that a loop receives: the rest of the run in progress if it has just reached this place."""
        rest = None if self.origin is None else self.timeline.rest_of_run(*self.origin)
        return self if rest is None else rest if self.stop is None else rest._head(self.stop)

    def _head(self, stop: int) -> Timesteps:
        plain = self.as_subclass(Tensor)
        left = stop if self.stop is None else min(stop, self.stop)
        return Timesteps.of(self.timeline, plain, self.host, self.begin, left, first=self.first, origin=self.origin)

    @property
    def _emitted(self) -> Tensor | list[Tensor]:
        emitted = self.timeline.emitted_timesteps
        return self.as_subclass(Tensor) if emitted is None else emitted[: self.stop]

    def _entry(self, position: int) -> Tensor:
        emitted = self._emitted
        if isinstance(emitted, list):  # the timeline has marked these
            return emitted[position]
        layout = self.timeline.layout.number
        return mark(emitted[position], layout, self.begin, self.first + position, self.host[position])

    def __iter__(self) -> Iterator[Tensor]:
        current = self._current
        current.timeline.check_stop(current.stop)
        position = 0
        while position < len(current._emitted):  # it grows with each step of an adaptive run
            yield current._entry(position)
            position += 1

    def __getitem__(self, key: Any) -> Tensor:
        emitted = self._emitted
        if isinstance(key, int | np.integer) and not isinstance(key, bool):
            count = len(emitted)
            if not -count <= key < count:
                raise IndexError(f"index {key} is out of range for {count} timesteps")
            return self._entry(int(key) % count)
        if isinstance(emitted, list):
            return torch.stack(emitted)[key]
        if not isinstance(key, slice) or key.step not in (None, 1):
            return emitted[key]
        first, stop, _ = key.indices(len(emitted))
        if (key.start or 0) > 0:
            first = key.start  # it may be past the last entry; `from_position` finds the step from it
        if self.timeline.is_adaptive and (key.stop or 0) > 0:
            stop = key.stop
        left = None if key.stop is None and self.stop is None else max(stop - first, 0)
        if first == 0 or left == 0:
            return self if left is None else self._head(left)
        rest = self.timeline.from_position(self.begin, self.first + first)
        return rest if left is None else rest._head(left)

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """These timesteps on another device; a plain tensor if the dtype changes."""
        moved = self.as_subclass(Tensor).to(*args, **kwargs)
        if moved.dtype is not self.dtype:
            return moved
        made = moved.as_subclass(Timesteps)
        made.__dict__.update(self.__dict__)
        return made

    def __lt__(self, other: Any) -> Tensor:
        # Pipelines that switch from one model to another at a cutoff (SDXL) count the timesteps below it, and slice
        # that number off the end: a position in evaluations, not in grid steps of `order` evaluations each.
        if isinstance(other, int | float):
            self.timeline.counted_below(sum(value < other for value in self.host))
        return self.as_subclass(Tensor) < other

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.as_subclass(Tensor).clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)
