"""A run that is pushed: a pipeline's loop hands over the network's answers, one `step` an evaluation."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..path.noise import Noise, NormalSource
from ..path.path import Path
from ..path.points import Point, model_state
from ..path.prediction import Prediction
from ..processes.scalars import expand
from ..registry.options import check_options
from ..sampling.prepared import make_noise, shortest_draw
from ..sampling.recipe import Recipe
from ..sampling.runs import start_run
from .layout import Layout
from .pending import PendingStep
from .seeding import Generators, seeds_of
from .timeline import Timeline
from .timesteps import Passed, read_timestep


@dataclass
class History:
    """What is kept of the run in progress or the one that has ended, for a `step` that does not go on with it.

    Attributes:
        begin: the grid step that it started from; `offset` is that step's place among the whole run's evaluations.
        noise: its noise source, which a run that is begun again in its middle goes on with.
        eta: what `step` was passed.
        passed: the timestep of the last evaluation; `sample` the state that was handed in with it.
        output: the finished sample, as handed out.
    """

    begin: int
    offset: int
    noise: Noise | None
    eta: float
    passed: Passed
    sample: weakref.ref[Tensor] | None = None
    output: weakref.ref[Tensor] | None = None


class PushedRun:
    """The run on a grid: it begins with the first `step`, and is begun again where diffusers' class would.

    Args:
        layout: of the grid.
        timeline: along which the run goes.

    Attributes:
        pending: the evaluation that the run waits for; None before it has begun and when it has ended.
        is_over: whether it has ended.
    """

    def __init__(self, layout: Layout, timeline: Timeline) -> None:
        self.layout, self.timeline = layout, timeline
        self.pending: PendingStep | None = None
        self.is_over = False
        self._history: History | None = None
        self._evaluations = 0

    @property
    def step_index(self) -> int | None:
        """How many of the timesteps lie behind; None before the first step."""
        return None if self._history is None else self._history.offset + self._evaluations

    def time_of(self, passed: Passed) -> float:
        """The model's time that a timestep means: exactly the one of the grid or the run, where it is one of theirs."""
        points, timeline = self.layout.points, self.timeline
        known = [] if self.pending is None else [self.pending.asked_at]
        known += [points[timeline.begin or 0]] if passed.value is None else points[:-1]
        for point in known:
            if passed.means(timeline.number_at(point)):
                return point.t
        assert passed.value is not None
        return timeline.time_of(passed.value)

    # Which evaluation a `step` is.

    def pending_at(
        self, passed: Passed, sample: Tensor, generator: Generators, eta: float, seed: int | None
    ) -> PendingStep:
        """The evaluation that a `step` is for: the next of the run in progress, or the first of one that begins there.

        Raises:
            UsageError: the timestep is not the one that the run in progress goes on with.
        """
        pending, history = self.pending, self._history
        if pending is None and history is None and not self.is_over:
            return self._start(self.timeline.step_meant(passed), sample, generator, eta, seed)
        if pending is not None and self._is_next(pending, passed):
            if history is not None and eta != history.eta:
                raise UsageError(f"eta was {history.eta:g} in this run, and cannot become {eta:g} in its middle")
            return pending
        again = self._begun_again(passed, sample, eta, seed)
        if again is None:
            raise self._unexpected(passed)
        return again

    def _is_next(self, pending: PendingStep, passed: Passed) -> bool:
        """Whether a timestep is the one that the run in progress expects."""
        if passed.value is None:
            return True
        timeline, place = self.timeline, passed.place
        last = None if self._history is None else self._history.passed.place
        if place is not None and place.layout == self.layout.number:
            if (place.begin, place.position) == (timeline.run_begin, timeline.run_count):
                return True
            # Equal numbers at neighbouring evaluations (Heun's method, rounding) are told apart by their places.
            if last is not None and last[:2] == place[:2] and place.position != last.position + 1:
                return False
        return passed.means(timeline.number_at(pending.asked_at))

    def _begun_again(self, passed: Passed, sample: Tensor, eta: float, seed: int | None) -> PendingStep | None:
        """A run from the timestep passed, where that is what diffusers' class of the method makes of it; else None.

        Methods that keep nothing from step to step are begun again at any timestep of the grid, and repeat their last
        step: so do DDIM and DDPM. The state must not be the one that the run has returned for another timestep.
        """
        history = self._history
        if history is None or not self.layout.forgets:
            return None
        if self.pending is None:
            repeats = passed.place is not None and passed.place == history.passed.place
            handed = None if history.sample is None else history.sample()
            repeats |= handed is sample and passed.value is not None and history.passed.means(passed.value)
            output = None if history.output is None else history.output()
            if not repeats or output is sample:
                return None
        elif self.pending.is_own(sample):
            return None
        begin = self.timeline.step_meant(passed)
        self._evaluations = begin - history.begin
        return self._start(begin, sample, None, eta, seed, history)

    def _unexpected(self, passed: Passed) -> UsageError:
        if self.pending is None:
            return UsageError(f"this run ended after {self._evaluations} evaluations; call set_timesteps for another")
        expected = self.timeline.number_at(self.pending.asked_at)
        return UsageError(
            f"this run of {self.layout.spec.name} goes on at timestep {expected:g}, and step was passed "
            f"{passed.value:g}; pass each of scheduler.timesteps once and in order, start in the middle with "
            "timesteps[begin:], and call set_timesteps for another run"
        )

    # The beginning of a run.

    def _start(
        self,
        begin: int,
        sample: Tensor,
        generator: Generators,
        eta: float,
        seed: int | None,
        before: History | None = None,
    ) -> PendingStep:
        layout, recipe = self.layout, self._with_eta(eta)
        path = layout.path(begin)
        if before is None:
            path.ledger.noise = self._noise_for(path, recipe, sample, generator, seed)
        else:
            path.ledger.noise = before.noise
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        scale = path.points[0].scale
        # What a pipeline hands in is its own, and may be written over: a buffer of a CUDA graph is at every step.
        x = x.clone() if isinstance(scale, float) and scale == 1.0 else x * expand(scale, x)
        run = start_run(layout.spec, x, path, recipe.options)
        first, point = layout.single(next(run))
        self._check_rows(point, len(sample))
        start, offset = (begin, layout.position_of(begin)) if before is None else (before.begin, before.offset)
        waits = layout.plan(begin).waits
        self.timeline.begin_run(begin, path.points[0])
        self._history = History(start, offset, path.ledger.noise, eta, Passed())
        self.pending = PendingStep(run, path, first, point, waits=waits)
        return self.pending

    def _with_eta(self, eta: float) -> Recipe:
        """What is run, with DDIM's `eta` for samplers that have this option; 0 leaves them their own."""
        recipe, spec = self.layout.recipe, self.layout.spec
        if eta == 0:
            return recipe
        if "eta" not in spec.options:
            raise UsageError(f"{spec.name} has no option eta, so eta={eta:g} does not apply; take ddim, or drop it")
        checked = check_options({"eta": eta}, spec.options, f"sampler {spec.name!r}")
        return replace(recipe, options={**recipe.options, **checked})

    def _noise_for(self, path: Path, recipe: Recipe, sample: Tensor, generator: Generators, seed: int | None) -> Noise:
        spec = self.layout.spec
        if seed is None and (spec.stochastic or recipe is not self.layout.recipe):
            seeds, indices = seeds_of(generator, sample)
        else:
            seeds, indices = [seed or 0] * len(sample), list(range(len(sample)))
        source = NormalSource(seeds, indices, tuple(sample.shape[1:]))
        return make_noise(recipe, source, shortest_draw(path, recipe, spec, (1,)))

    def _check_rows(self, point: Point, count: int) -> None:
        if point.rows is not None and count > 1:
            raise UsageError(
                f"{self.layout.spec.name} gives each image its own times, and a pipeline tells its network one for all "
                "(some, as DiT's, step the guided and unguided halves as two images); make one image at a time, or use "
                "sds.sample(sds.from_pipeline(pipe), ...)"
            )

    # From one evaluation to the next.

    def note(self, passed: Passed, sample: Tensor) -> None:
        """The network has been asked for the pending evaluation, at this timestep and state."""
        if self._history is not None:
            self._history.passed, self._history.sample = passed, weakref.ref(sample)
        self._evaluations += 1
        self.timeline.run_count += 1

    def advance(
        self, pending: PendingStep, prediction: Prediction | None, dtype: torch.dtype, next_timestep: Any
    ) -> Tensor:
        """Hand over the answer to the pending evaluation; get the state for the next one, or the finished sample.

        Args:
            pending: the evaluation.
            prediction: the answer; None where it was for the run's start alone.
            dtype: the pipeline's.
            next_timestep: where the pipeline means to go on; None where it does not say.
        """
        if prediction is None:
            pending.waits = False
        else:
            try:
                pending.x, pending.point = self.layout.single(pending.run.send(prediction))
            except StopIteration as stop:
                return self._finish(stop.value, pending, dtype)
            except Exception:
                self._end()
                raise
        self.timeline.emit(pending.point)
        if next_timestep is not None:
            self._check_next(pending, next_timestep)
        return pending.hand_out(dtype)

    def _check_next(self, pending: PendingStep, timestep: Any) -> None:
        """Raise where a pipeline means to go on at another timestep than the run does."""
        passed, expected = read_timestep(timestep), self.timeline.number_at(pending.point)
        if not passed.means(expected):
            raise UsageError(
                f"prev_timestep is {passed.value:g}, and this run of {self.layout.spec.name} goes on at {expected:g}"
            )

    def _finish(self, x: Tensor, pending: PendingStep, dtype: torch.dtype) -> Tensor:
        self._end()
        clean = model_state(x, pending.path.points[-1]).to(dtype)
        if self._history is not None:
            self._history.output = weakref.ref(clean)
        return clean

    def _end(self) -> None:
        self.pending, self.is_over = None, True
        self.timeline.end_run()
