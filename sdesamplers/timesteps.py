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
        self.scheduler.iterated(self.begin, self.stop)
        position = 0
        while position < len(self):  # which grows with each step of an adaptive run
            yield self._told[position]
            position += 1

    def __getitem__(self, key: Any) -> Tensor:
        told = self._told
        if isinstance(told, list):
            return told[key] if isinstance(key, int) else torch.stack(told)[key]
        if not isinstance(key, slice) or key.step not in (None, 1):
            return told[key]
        first, stop, _ = key.indices(len(self))
        if (key.start or 0) > 0:
            first = key.start  # which may lie behind the last one; by how much says which step is meant
        if self.scheduler.grows and (key.stop or 0) > 0:
            stop = key.stop
        left = None if key.stop is None and self.stop is None else max(stop - first, 0)
        if first == 0 or left == 0:
            return Timesteps.of(self.scheduler, told, self.begin, left)
        rest = self.scheduler.from_position(self.begin, first)
        return rest if left is None else rest[:left]

    def __lt__(self, other: Any) -> Tensor:  # type: ignore[override]
        # Pipelines that stop one model and start another at a cutoff (SDXL) count the timesteps below it.
        self.scheduler.counted()
        return self.as_subclass(Tensor) < other

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.as_subclass(Tensor).clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]
