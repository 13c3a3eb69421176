"""The timesteps that a pipeline loops over: a tensor that knows which part of a run it is, and may grow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .scheduler import Scheduler


class Timesteps(Tensor):
    """One timestep for each evaluation of a run, on the pipeline's device.

    Pipelines start in the middle (image-to-image) by slicing, `timesteps[begin:]`. A run that starts there is another
    run than the rest of the whole one: a multistep sampler asks for its starting values again. So a slice is not cut
    out of the numbers; it is the timesteps of the run that starts there. Everything else is the plain tensor's.

    The timesteps of an adaptive run follow from the values it meets: then only those are in it that the run has asked
    for so far, and iteration goes on for as long as the loop's `step` calls lead to more.
    """

    # What is computed from timesteps is an ordinary tensor.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    scheduler: Scheduler
    begin: int  # grid step that the run starts from
    stop: int | None  # entries that are left, where a slice has cut the end off

    @classmethod
    def of(cls, scheduler: Scheduler, values: Tensor, begin: int, stop: int | None = None) -> Timesteps:
        """Timesteps `values` (K,) of a scheduler's run from grid step `begin`."""
        made: Timesteps = values[:stop].as_subclass(cls)
        made.scheduler, made.begin, made.stop = scheduler, begin, stop
        return made

    def __len__(self) -> int:
        return len(self._told)

    @property
    def _told(self) -> Tensor | list[Tensor]:
        told = self.scheduler.told
        return self.as_subclass(Tensor) if told is None else told[: self.stop]

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        self.scheduler.iterated(self.begin)
        position = 0
        while position < len(self):  # which grows with each step of an adaptive run
            yield self._told[position]
            position += 1

    def __getitem__(self, key: Any) -> Tensor:
        if isinstance(key, slice) and key.step in (None, 1):
            first, stop, _ = key.indices(len(self))
            if first == 0 or stop <= first:
                return Timesteps.of(self.scheduler, self.as_subclass(Tensor), self.begin, stop if first == 0 else 0)
            rest = self.scheduler.from_position(self.begin, first)
            return rest if key.stop is None else rest[: stop - first]
        told = self._told
        if isinstance(told, list) and isinstance(key, int):
            return told[key]
        return self.as_subclass(Tensor)[key]
