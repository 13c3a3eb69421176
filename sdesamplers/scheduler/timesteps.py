"""The timesteps that a pipeline loops over: a tensor that knows which part of a run it is, and may grow.

Its elements carry their value on the host and their place in the run, so that `Scheduler.step` knows which timestep it
is passed without waiting for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..processes.scalars import as_scalar

if TYPE_CHECKING:
    from .timeline import Timeline


class Place(NamedTuple):
    """Which timestep an element of `timesteps` is.

    Attributes:
        layout: the number of the layout that it belongs to.
        begin, position: it is evaluation `position` of the run that starts at grid step `begin`.
        value: the timestep.
        version: of the element, so that one that was written over is noticed.
    """

    layout: int
    begin: int
    position: int
    value: float
    version: int


def mark(element: Any, layout: int, begin: int, position: int, value: float) -> Tensor:
    """`element`, a timestep on any device, with its place and its value on the host."""
    element.sdesamplers_place = Place(layout, begin, position, value, _version(element))
    return element


def _version(element: Tensor) -> int:
    return -1 if element.is_inference() else element._version


@dataclass
class Passed:
    """A timestep that `step` is passed.

    Attributes:
        value: the number; None where nothing can be read: no timestep, or a tensor without values (meta).
        place: its place, where it is an element of `timesteps`.
        slack: how far it may lie from the timestep meant: the rounding of its dtype, and for whole numbers what
            `int(t)` or `round(t)` takes from a fractional one.
    """

    value: float | None = None
    place: Place | None = None
    slack: float = 0.0

    def means(self, value: float) -> bool:
        """Whether this may be the timestep `value`."""
        return self.value is None or abs(self.value - value) <= self.slack


def read_timestep(timestep: Any) -> Passed:
    """Read what `step` is passed. Only a tensor on a device that is no element of `timesteps` makes the host wait.

    Raises:
        UsageError: it is no number, or several that differ.
    """
    place = getattr(timestep, "sdesamplers_place", None)
    if place is not None and place.version == _version(timestep):
        return Passed(place.value, place, _rounding(place.value, timestep.dtype))
    if timestep is None or (isinstance(timestep, Tensor) and timestep.is_meta):
        return Passed()
    if not _is_numeric(timestep):
        if hasattr(timestep, "__float__") and not isinstance(
            timestep, bool
        ):  # a number that is traced, and has no value yet
            return Passed()
        raise UsageError(f"timestep must be a number, such as an element of scheduler.timesteps, not {timestep!r}")
    values = np.atleast_1d(as_scalar(timestep))
    if not len(values) or np.any(values != values[0]):
        raise UsageError(f"timestep must be one number for all samples, not {values.tolist()}")
    value, dtype = float(values[0]), getattr(timestep, "dtype", type(timestep))
    return Passed(value, None, _rounding(value, dtype))


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

    Pipelines start in the middle (image-to-image) by slicing, `timesteps[begin:]`. A run that starts there is another
    run than the rest of the whole one: a multistep sampler asks for its starting values again. So a slice is not cut
    out of the numbers; it is the timesteps of the run that starts there. A loop over it goes on with the run in
    progress instead, if that has come just there. Everything else is the plain tensor's.

    The timesteps of an adaptive run follow from the values it meets: then only those are in it that the run has asked
    for so far, and iteration goes on for as long as the loop's `step` calls lead to more.

    Nothing that is done to it changes the scheduler; a run begins where `step` is called.
    """

    # What is computed from timesteps is an ordinary tensor.
    __torch_function__: Any = torch._C._disabled_torch_function_impl

    timeline: Timeline
    host: list[float]  # the same numbers, where reading them costs nothing
    begin: int  # grid step that the run starts from
    first: int  # the evaluation of that run that the first entry is
    stop: int | None  # entries that are left, where a slice has cut the end off
    origin: tuple[int, int] | None  # what a slice was cut out of: the run from a grid step, and the position there

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
        """Timesteps `emitted` (K,), `values` on the host, of the run from grid step `begin`."""
        made: Timesteps = emitted[:stop].as_subclass(cls)
        made.timeline, made.host, made.begin, made.stop = timeline, values[:stop], begin, stop
        made.first, made.origin = first, origin
        return made

    def __len__(self) -> int:
        return len(self._standing._emitted)

    @property
    def _standing(self) -> Timesteps:
        """The timesteps that a loop over these meets: of the run in progress where it has come just here."""
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
        if isinstance(emitted, list):  # which the timeline has marked
            return emitted[position]
        layout = self.timeline.layout.number
        return mark(emitted[position], layout, self.begin, self.first + position, self.host[position])

    def __iter__(self) -> Iterator[Tensor]:
        met = self._standing
        met.timeline.check_stop(met.stop)
        position = 0
        while position < len(met._emitted):  # which grows with each step of an adaptive run
            yield met._entry(position)
            position += 1

    def __getitem__(self, key: Any) -> Tensor:
        emitted = self._emitted
        if isinstance(key, int | np.integer) and not isinstance(key, bool):
            count = len(emitted)
            if not -count <= key < count:
                raise IndexError(f"there are {count} timesteps, and no number {key}")
            return self._entry(int(key) % count)
        if isinstance(emitted, list):
            return torch.stack(emitted)[key]
        if not isinstance(key, slice) or key.step not in (None, 1):
            return emitted[key]
        first, stop, _ = key.indices(len(emitted))
        if (key.start or 0) > 0:
            first = key.start  # which may lie behind the last one; by how much says which step is meant
        if self.timeline.is_adaptive and (key.stop or 0) > 0:
            stop = key.stop
        left = None if key.stop is None and self.stop is None else max(stop - first, 0)
        if first == 0 or left == 0:
            return self if left is None else self._head(left)
        rest = self.timeline.from_position(self.begin, self.first + first)
        return rest if left is None else rest._head(left)

    def to(self, *args: Any, **words: Any) -> Tensor:
        """These timesteps on another device; with another dtype they are plain numbers."""
        moved = self.as_subclass(Tensor).to(*args, **words)
        if moved.dtype is not self.dtype:
            return moved
        made = moved.as_subclass(Timesteps)
        made.__dict__.update(self.__dict__)
        return made

    def __lt__(self, other: Any) -> Tensor:
        # Pipelines that stop one model and start another at a cutoff (SDXL) count the timesteps below it, and slice
        # that many off the end: a position in evaluations, not in grid steps of `order` each.
        if isinstance(other, int | float):
            self.timeline.counted_below(sum(value < other for value in self.host))
        return self.as_subclass(Tensor) < other

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.as_subclass(Tensor).clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)
