"""The timesteps of a scheduler's grid, and how far the run in progress has come along them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
from torch import Tensor

from ..checks import whole
from ..errors import UsageError
from ..path.points import Point
from ..pretrained.conventions import Convention
from ..processes.scalars import as_scalar
from ..processes.table import DiscreteVP
from .layout import Layout
from .timesteps import Passed, Timesteps, mark


class Timeline:
    """What a pipeline's loop over `timesteps` goes along.

    A scheduler has one for good, and every grid is laid out on it: a pipeline may keep the `timesteps` of a grid, lay
    it out again, and loop over those that it has.

    Attributes:
        begin: the grid step that `begin_index`, what `set_begin_index` was passed, stands for.
        emitted_timesteps: those of an adaptive run so far, since it has begun.
        run_begin: the grid step that the run in progress began at; None where there is none.
        run_count: evaluations that this run has made.
        layout, order: of the grid, as `lay_out` was passed them.
    """

    layout: Layout
    order: int
    _convention: Convention
    _rounds: bool
    _device: str | torch.device | None
    _stride: int

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget grid and run."""
        self.begin: int | None = None
        self.begin_index: int | None = None
        self._is_closed = False
        self._forget_run()

    def _forget_run(self) -> None:
        self.emitted_timesteps: list[Tensor] | None = None
        self.run_begin: int | None = None
        self.run_count = 0
        self._cutoffs: set[int] = set()  # numbers of evaluations that a pipeline has counted below a cutoff

    def lay_out(
        self,
        layout: Layout,
        convention: Convention,
        device: str | torch.device | None,
        *,
        rounds: bool,
        order: int,
        stride: int,
        is_closed: bool,
    ) -> None:
        """Go along another grid.

        Args:
            layout: of its runs.
            convention: what the network is told.
            device: of the timesteps.
            rounds: whether networks of DDPM tables are told whole timesteps.
            order: of the sampler, as a pipeline is told it.
            stride: evaluations that a pipeline counts for a grid step; 0 where it counts evaluations.
            is_closed: whether the clean end is a last timestep.
        """
        self.layout, self._convention, self._device = layout, convention, device
        self._rounds = rounds and isinstance(convention.process, DiscreteVP)
        self.order, self._stride, self._is_closed = order, stride, is_closed

    def without_run(self) -> Timeline:
        """The same grid, for a scheduler of its own."""
        made = copy(self)
        made._forget_run()
        return made

    @property
    def is_adaptive(self) -> bool:
        """Whether a run's timesteps depend on the values that it meets."""
        return self.layout.is_adaptive

    # What the network is told.

    def numbers_at(self, points: Sequence[Point]) -> np.ndarray:
        """What the network is told at points, rounded as `timesteps` has it."""
        values = np.asarray(self._convention.timestep(np.array([np.max(point.t) for point in points], dtype=float)))
        return np.rint(values).astype(np.int64) if self._rounds else values.astype(np.float32)

    def number_at(self, point: Point) -> float:
        """The same at one point."""
        return float(self.numbers_at([point])[0])

    def time_of(self, timestep: float) -> float:
        """The model's time that a timestep of no point in particular means."""
        return float(self._convention.time(timestep))

    def sigmas(self) -> list[float]:
        """sigma at each timestep; of an adaptive run as far as it has come."""
        if self.emitted_timesteps is None:
            return [float(np.max(point.native[1])) for point in self.layout.plan(0).points]
        times = self._convention.time(as_scalar(torch.stack(self.emitted_timesteps)))
        found: list[float] = np.atleast_1d(self._convention.process.sigma(times)).tolist()
        return found

    # Where a run begins.

    def from_step(self, begin: int, origin: tuple[int, int] | None = None) -> Timesteps:
        """The timesteps of the run from a grid step on."""
        numbers = self.numbers_at(self.layout.plan(begin).points[: 1 if self.is_adaptive else None])
        if self._is_closed:
            numbers = np.concatenate([numbers, self.numbers_at(self.layout.points[-1:])])
        emitted = torch.from_numpy(numbers)
        return Timesteps.of(self, emitted.to(self._device), emitted.tolist(), begin, origin=origin)

    def from_position(self, begin: int, position: int) -> Timesteps:
        """What a slice `timesteps[position:]` of the run from grid step `begin` stands for."""
        evaluations = 1 if self.is_adaptive else len(self.layout.plan(begin).points) + self._is_closed
        return self.from_step(self._step_at(begin, position, evaluations), (begin, position))

    def _step_at(self, begin: int, position: int, evaluations: int) -> int:
        stride = 0 if evaluations - position in self._cutoffs else self._stride
        return self.layout.step_at(begin, position, stride)

    def set_begin_index(self, begin_index: int, counted: int | None) -> None:
        """Begin at timesteps[begin_index], where no step says otherwise.

        Args:
            begin_index: as a pipeline passes it.
            counted: how many timesteps a pipeline takes the grid for; None where there is no grid yet.
        """
        begin_index = whole("begin_index", begin_index, 0)
        if counted is None:  # as diffusers has it: the next grid begins at its first point again
            self.begin_index = begin_index
            return
        evaluations = 1 if self.is_adaptive else len(self.layout.plan(0).points)
        most = self._is_closed + max(evaluations, counted)
        if begin_index > most:
            raise UsageError(f"begin_index is {begin_index}, and there are {most} timesteps")
        self.begin, self.begin_index = self._step_at(0, begin_index, evaluations), begin_index

    def step_meant(self, passed: Passed) -> int:
        """The grid step that a run begins at, by the timestep that `step` is passed.

        Raises:
            UsageError: no step of the grid starts there.
        """
        hint = self.begin
        if passed.value is None:
            return hint or 0
        points, place = self.layout.points[:-1], passed.place
        if place is not None and place.layout == self.layout.number and not (self.is_adaptive and place.position):
            found = self.layout.step_of(place.begin, place.position)
            if found is not None:
                return found
        if hint is not None and hint < len(points) and passed.means(self.number_at(points[hint])):
            return hint
        starts = self.numbers_at(points).tolist()
        near = int(np.argmin(np.abs(np.asarray(starts) - passed.value)))
        if not passed.means(starts[near]):
            raise UsageError(
                f"no step of this run starts at timestep {passed.value:g}; the nearest starts at {starts[near]:g}"
            )
        return near

    # The run in progress.

    def begin_run(self, begin: int, first: Point) -> None:
        """A run begins at a grid step, whose point is `first`."""
        if self.is_adaptive:
            self.emitted_timesteps = [self._marked(first, begin, 0)]
        self.run_begin, self.run_count = begin, 0

    def emit(self, point: Point) -> None:
        """The run in progress asks the model at `point` next: the next timestep, if it is adaptive."""
        if self.emitted_timesteps is not None:
            assert self.run_begin is not None
            self.emitted_timesteps.append(self._marked(point, self.run_begin, self.run_count))

    def end_run(self) -> None:
        """There is no run in progress any more."""
        self.run_begin = None

    def _marked(self, point: Point, begin: int, position: int) -> Tensor:
        emitted = torch.from_numpy(self.numbers_at([point]))[0].to(self._device)
        return mark(emitted, self.layout.number, begin, position, self.number_at(point))

    # What a loop does to timesteps.

    def rest_of_run(self, begin: int, position: int) -> Timesteps | None:
        """The timesteps that are left of a run in progress, where it has come to `position` from grid step `begin`."""
        if self.run_begin is None or self.is_adaptive or (self.run_begin, self.run_count) != (begin, position):
            return None
        whole_run = self.from_step(begin)
        rest = whole_run.as_subclass(Tensor)[position:]
        return Timesteps.of(self, rest, whole_run.host[position:], begin, first=position)

    def counted_below(self, count: int) -> None:
        """A pipeline has counted its timesteps below a cutoff, one an evaluation.

        A slice that leaves as many is then meant in evaluations, not in grid steps of `order` each. SDXL's refiner
        adds one for samplers of order 2, so that it begins above the cutoff.
        """
        self._cutoffs |= {count, count + (self.order == 2)}

    def check_stop(self, stop: int | None) -> None:
        """Raise if a loop is to be cut short after `stop` timesteps of a run whose number of them is not known."""
        if stop is not None and self.is_adaptive:
            raise UsageError(
                f"{self.layout.spec.name} chooses its own steps here, so a loop cannot stop after {stop} of them (as "
                "with denoising_end=); run it on a fixed grid: adaptive=False, and no tolerances"
            )
