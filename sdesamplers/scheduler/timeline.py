"""The timesteps of a scheduler's grid, and the progress of the current run along them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

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
    """The state behind a pipeline's loop over `timesteps`.

    A scheduler has a single timeline for its whole life, and every grid is laid out on it: a pipeline may keep the
    `timesteps` of a grid, call `set_timesteps` again, and loop over the old `timesteps`.

    Attributes:
        begin: the grid step that corresponds to `begin_index`.
        begin_index: the argument of `set_begin_index`; None if it was not called.
        emitted_timesteps: the timesteps of an adaptive run so far; None for other runs and before the run begins.
        run_begin: the grid step at which the run in progress began; None if no run is in progress.
        run_count: the number of evaluations that this run has made.
        layout, order: the arguments of `lay_out`.
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
        """Discard the grid and the run."""
        self.begin: int | None = None
        self.begin_index: int | None = None
        self._is_closed = False
        self._forget_run()

    def _forget_run(self) -> None:
        self.emitted_timesteps: list[Tensor] | None = None
        self.run_begin: int | None = None
        self.run_count = 0
        self._cutoffs: set[int] = set()  # how many timesteps a pipeline has counted below each of its cutoffs

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
        """Replace the grid.

        Args:
            layout: the layout of its runs.
            convention: the model's convention; it defines the network time.
            device: the device of the timesteps.
            rounds: True if networks of DDPM tables receive rounded timesteps.
            order: the scheduler's `order`, which pipelines read.
            stride: the evaluations that a pipeline counts per grid step; 0 if it counts evaluations.
            is_closed: True if the clean end is the last timestep.
        """
        self.layout, self._convention, self._device = layout, convention, device
        self._rounds = rounds and isinstance(convention.process, DiscreteVP)
        self.order, self._stride, self._is_closed = order, stride, is_closed

    def __deepcopy__(self, memo: Any) -> Timeline:
        made = copy(self)
        made._cutoffs = set(self._cutoffs)
        made.emitted_timesteps = None if self.emitted_timesteps is None else list(self.emitted_timesteps)
        return made

    def state(self) -> dict[str, Any]:
        """The run in progress as plain data."""
        emitted = self.emitted_timesteps
        numbers = None if emitted is None else [element.item() for element in emitted]
        begin, count, cutoffs = self.run_begin, self.run_count, sorted(self._cutoffs)
        return {"begin": begin, "count": count, "cutoffs": cutoffs, "emitted": numbers}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue the run of a dictionary from `state`."""
        self.run_begin, self.run_count, self._cutoffs = state["begin"], state["count"], set(state["cutoffs"])
        if state["emitted"] is not None:
            numbers = [self._rounded(np.array(number)) for number in state["emitted"]]
            self.emitted_timesteps = [
                self._marked(number, self.run_begin or 0, position) for position, number in enumerate(numbers)
            ]

    @property
    def is_adaptive(self) -> bool:
        """True if a run's timesteps depend on its states."""
        return self.layout.is_adaptive

    # Network times.

    def numbers_at(self, points: Sequence[Point]) -> np.ndarray:
        """The network time at each point, rounded as in `timesteps`: (len(points),), int64 or float32."""
        values = self._convention.timestep(np.array([np.max(point.t) for point in points], dtype=float))
        return self._rounded(np.asarray(values))

    def _rounded(self, values: np.ndarray) -> np.ndarray:
        return np.rint(values).astype(np.int64) if self._rounds else values.astype(np.float32)

    def number_at(self, point: Point) -> float:
        """The same at one point."""
        return float(self.numbers_at([point])[0])

    def time_of(self, timestep: float) -> float:
        """The native time of a timestep that need not belong to a point."""
        return float(self._convention.time(timestep))

    def sigmas(self) -> list[float]:
        """sigma at each timestep; for an adaptive run, at each timestep so far."""
        if self.emitted_timesteps is None:
            return [float(np.max(point.native[1])) for point in self.layout.plan(0).points]
        times = self._convention.time(as_scalar(torch.stack(self.emitted_timesteps)))
        found: list[float] = np.atleast_1d(self._convention.process.sigma(times)).tolist()
        return found

    # The start of a run.

    def from_step(self, begin: int, origin: tuple[int, int] | None = None) -> Timesteps:
        """The timesteps of the run from a grid step on."""
        numbers = self.numbers_at(self.layout.plan(begin).points[: 1 if self.is_adaptive else None])
        if self._is_closed:
            numbers = np.concatenate([numbers, self.numbers_at(self.layout.points[-1:])])
        emitted = torch.from_numpy(numbers)
        return Timesteps.of(self, emitted.to(self._device), emitted.tolist(), begin, origin=origin)

    def from_position(self, begin: int, position: int) -> Timesteps:
        """The timesteps that a slice `timesteps[position:]` of the run from grid step `begin` represents."""
        evaluations = 1 if self.is_adaptive else len(self.layout.plan(begin).points) + self._is_closed
        return self.from_step(self._step_at(begin, position, evaluations), (begin, position))

    def _step_at(self, begin: int, position: int, evaluations: int) -> int:
        stride = 0 if evaluations - position in self._cutoffs else self._stride
        return self.layout.step_at(begin, position, stride)

    def set_begin_index(self, begin_index: int, counted: int | None) -> None:
        """Start the run at timesteps[begin_index], unless `step` is passed another timestep.

        Args:
            begin_index: as passed by the pipeline.
            counted: the number of timesteps that the pipeline expects of the grid; None if there is no grid yet.
        """
        begin_index = whole("begin_index", begin_index, 0)
        if counted is None:  # as in diffusers: the next grid begins at its first point again
            self.begin_index = begin_index
            return
        evaluations = 1 if self.is_adaptive else len(self.layout.plan(0).points)
        most = self._is_closed + max(evaluations, counted)
        if begin_index > most:
            raise UsageError(f"begin_index is {begin_index}, but there are only {most} timesteps")
        self.begin, self.begin_index = self._step_at(0, begin_index, evaluations), begin_index

    def step_meant(self, passed: Passed) -> int:
        """The grid step at which a run begins, from the timestep passed to `step`.

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
        """Record that a run begins at a grid step, whose point is `first`."""
        if self.is_adaptive:
            self.emitted_timesteps = [self._marked(self.numbers_at([first])[0], begin, 0)]
        self.run_begin, self.run_count = begin, 0

    def emit(self, point: Point) -> None:
        """Record that the run in progress evaluates the model at `point` next; it is the next timestep if adaptive."""
        if self.emitted_timesteps is not None:
            assert self.run_begin is not None
            self.emitted_timesteps.append(self._marked(self.numbers_at([point])[0], self.run_begin, self.run_count))

    def end_run(self) -> None:
        """Record that the run in progress has ended."""
        self.run_begin = None

    def _marked(self, number: np.ndarray, begin: int, position: int) -> Tensor:
        """The timestep of evaluation `position` of the run from grid step `begin`; `number` is its value, ()."""
        emitted = torch.from_numpy(number[None])[0].to(self._device)
        return mark(emitted, self.layout.number, begin, position, float(number))

    # Operations of a loop on timesteps.

    def rest_of_run(self, begin: int, position: int) -> Timesteps | None:
        """The remaining timesteps of the run in progress, if it began at `begin` and is at `position`; else None.

        None for adaptive runs too.
        """
        if self.run_begin is None or self.is_adaptive or (self.run_begin, self.run_count) != (begin, position):
            return None
        whole_run = self.from_step(begin)
        rest = whole_run.as_subclass(Tensor)[position:]
        return Timesteps.of(self, rest, whole_run.host[position:], begin, first=position)

    def counted_below(self, count: int) -> None:
        """Record that a pipeline has counted its timesteps below a cutoff, one per evaluation.

        A slice that leaves the same number of timesteps then counts evaluations, not grid steps of `order` evaluations
        each. SDXL's refiner adds one for samplers of order 2, so that it begins above the cutoff.
        """
        self._cutoffs |= {count, count + (self.order == 2)}

    def check_stop(self, stop: int | None) -> None:
        """Raise if a loop would stop after `stop` timesteps of an adaptive run, whose length is unknown."""
        if stop is not None and self.is_adaptive:
            raise UsageError(
                f"{self.layout.spec.name} chooses its own steps here, so a loop cannot stop after {stop} timesteps (as "
                "with denoising_end=); run it on a fixed grid: adaptive=False, and no tolerances"
            )
