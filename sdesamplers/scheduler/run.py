"""A run that a pipeline's loop drives by passing it the network's outputs, one `step` per evaluation."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..path.noise import Noise, NormalSource
from ..path.points import Point, model_state
from ..path.prediction import Prediction
from ..processes.scalars import expand
from ..registry.options import check_options
from ..sampling.prepared import make_noise, shortest_draw
from ..sampling.recipe import Recipe
from ..sampling.recorded import RecordedRun
from ..sampling.records import Keys, Setup
from ..sampling.start_check import warn_if_unscaled
from .layout import Layout
from .pending import PendingStep
from .seeding import Generators, seeds_of
from .timeline import Timeline
from .timesteps import Passed, read_timestep

WIDE = 1.5
"""Standard deviation of the first noise above which the first state is checked; 1 or less for most models."""
LARGEST_RECORD = 64 * 2**20
"""Bytes that the outputs of a run may take which a scheduler keeps for copies in the middle of the run, if the sampler
depends on all of them. Fifty outputs of Stable Diffusion XL take 13 MiB, those of a video model hundreds."""


@dataclass
class History:
    """Data of the current or last run, for a `step` that does not continue it.

    Attributes:
        begin: the grid step from which the run started.
        offset: the index of that step's evaluation in the whole run.
        run: the run; one that is restarted in the middle continues its noise.
        eta: the `eta` passed to `step`.
        passed: the timestep of the last evaluation.
        sample: the state that was passed with it.
        output: the finished sample, as returned to the pipeline.
        given: the numbers of the draws in `run.steps` whose outcome the caller has set.
    """

    begin: int
    offset: int
    run: RecordedRun
    eta: float
    passed: Passed
    sample: weakref.ref[Tensor] | None = None
    output: weakref.ref[Tensor] | None = None
    given: set[int] = field(default_factory=set)

    @property
    def drawn(self) -> list[tuple[float, float]]:
        """The steps of the run's draws that have used its noise."""
        return [step for k, step in enumerate(self.run.steps) if k not in self.given]


class PushedRun:
    """The run on a grid: it begins with the first `step`, and restarts if diffusers' class would.

    Args:
        layout: of the grid.
        timeline: the timesteps that the run follows.

    Attributes:
        pending: the evaluation that the run waits for; None before the run has begun and after it has ended.
        is_over: True if the run has ended.
        history: data of the current or last run; None before the first one.
        evaluations: the number of evaluations of that run.
        begun_at: the grid step at which it was started last.
    """

    def __init__(self, layout: Layout, timeline: Timeline) -> None:
        self.layout, self.timeline = layout, timeline
        self.pending: PendingStep | None = None
        self.is_over = False
        self.history: History | None = None
        self.evaluations = 0
        self.begun_at = 0

    @property
    def step_index(self) -> int | None:
        """The number of timesteps already passed; None before the first step."""
        return None if self.history is None else self.history.offset + self.evaluations

    def time_of(self, passed: Passed) -> float:
        """The native time of a timestep; exactly the point's time if the timestep belongs to the grid or the run."""
        points, timeline = self.layout.points, self.timeline
        known = [] if self.pending is None else [self.pending.network_point]
        known += [points[timeline.begin or 0]] if passed.value is None else points[:-1]
        for point in known:
            if passed.means(timeline.number_at(point)):
                return point.t
        assert passed.value is not None
        return timeline.time_of(passed.value)

    # The evaluation that belongs to a `step`.

    def pending_at(
        self,
        passed: Passed,
        sample: Tensor,
        generator: Generators,
        eta: float,
        seed: int | None,
        is_scored: bool = False,
    ) -> PendingStep:
        """The evaluation of a `step`: the next of the run in progress, or the first of a run that begins here.

        `is_scored` is True if the caller sets the outcome, and so may pass any stored step, also after the last.

        Raises:
            UsageError: the run in progress continues at another timestep.
        """
        pending, history = self.pending, self.history
        if pending is None and history is None and not self.is_over:
            begin = self.timeline.step_meant(passed)
            if is_scored:
                self._check_start(begin, passed)
            return self._start(begin, sample, generator, eta, seed)
        if pending is not None and self._is_next(pending, passed):
            if history is not None and eta != history.eta:
                raise UsageError(f"eta cannot change from {history.eta:g} to {eta:g} in the middle of a run")
            shape = pending.run.record.shape
            if sample.shape == shape:
                return pending
            if not self.layout.is_memoryless:
                raise UsageError(
                    f"this run has states of shape {tuple(shape)}, and step was passed {tuple(sample.shape)}; call "
                    "set_timesteps for a run of other states"
                )
        restarted = self._restarted(passed, sample, generator, eta, seed, is_scored)
        if restarted is None:
            raise self._unexpected(passed)
        return restarted

    def _is_next(self, pending: PendingStep, passed: Passed) -> bool:
        """True if a timestep is the one that the run in progress expects."""
        if passed.value is None:
            return True
        timeline, place = self.timeline, passed.place
        last = None if self.history is None else self.history.passed.place
        if place is not None and place.layout == self.layout.number:
            if (place.begin, place.position) == (timeline.run_begin, timeline.run_count):
                return True
            # Equal timesteps of neighbouring evaluations (Heun's method, rounding) are distinguished by their places.
            if last is not None and last[:2] == place[:2] and place.position != last.position + 1:
                return False
        return passed.means(timeline.number_at(pending.network_point))

    def _check_start(self, begin: int, passed: Passed) -> None:
        """Raise if a stored step from the middle of a run would be scored as the first step of a run.

        It is one if a run that starts there was requested, by `timesteps[begin:]` or by `set_begin_index`.
        """
        place = passed.place
        is_first = place is not None and place.layout == self.layout.number and place[1:3] == (begin, 0)
        if begin == 0 or is_first or begin == self.timeline.begin or self.layout.is_memoryless:
            return
        raise UsageError(
            f"a step of {self.layout.spec.name} depends on the steps before it, so that a stored step cannot be scored "
            "alone: score the steps of a run in order from its first one; if that is in the middle of the grid, call "
            f"set_begin_index, or take the timestep from timesteps[{self.layout.position_of(begin)}:]"
        )

    def _restarted(
        self, passed: Passed, sample: Tensor, generator: Generators, eta: float, seed: int | None, is_scored: bool
    ) -> PendingStep | None:
        """A run restarted at the timestep passed, if diffusers' class of the method would do so; else None.

        Methods that keep nothing from step to step can restart at any timestep of the grid and repeat their last
        step, as DDIM and DDPM do in diffusers. The state must not be the one that the run returned for another
        timestep.
        """
        history = self.history
        if history is None or not self.layout.is_memoryless:
            return None
        if self.pending is None and not is_scored:
            repeats = passed.place is not None and passed.place == history.passed.place
            handed = None if history.sample is None else history.sample()
            repeats |= handed is sample and passed.value is not None and history.passed.means(passed.value)
            output = None if history.output is None else history.output()
            if not repeats or output is sample:
                return None
        elif self.pending is not None and self.pending.is_own(sample):
            return None
        begin = self.timeline.step_meant(passed)
        self.evaluations = begin - history.begin
        return self._start(begin, sample, generator, eta, seed, history)

    def _unexpected(self, passed: Passed) -> UsageError:
        if self.pending is None:
            ended = f"this run ended after {self.evaluations} evaluations"
            return UsageError(f"{ended}; call set_timesteps for another run")
        expected = self.timeline.number_at(self.pending.network_point)
        return UsageError(
            f"this run of {self.layout.spec.name} continues at timestep {expected:g}, and step was passed "
            f"{passed.value:g}; pass each of scheduler.timesteps once and in order, start in the middle with "
            "timesteps[begin:], and call set_timesteps for another run"
        )

    # The start of a run.

    def _start(
        self,
        begin: int,
        sample: Tensor,
        generator: Generators,
        eta: float,
        seed: int | None,
        before: History | None = None,
    ) -> PendingStep:
        layout, setup = self.layout, self.setup(begin, eta)
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        scale = layout.path(begin).points[0].scale
        # The pipeline owns its tensor and may overwrite it; the buffer of a CUDA graph is overwritten at every step.
        x = x.clone() if isinstance(scale, float) and scale == 1.0 else x * expand(scale, x)
        if before is None:
            first = layout.path(begin).points[0]
            sigma = float(layout.process.sigma(first.t))
            # Unit noise is a mistake only where the noise is wider. A step reads no values for other processes, nor
            # those of a device, for which it would have to wait.
            if sigma > WIDE and sample.is_cpu and type(sample) is Tensor:
                scaled = f"multiply the first latents by scheduler.init_noise_sigma, which is {sigma:.3g} here"
                warn_if_unscaled(sample, layout.process, first.t, "the sample passed to step", scaled)
            run = RecordedRun(setup, x, self._keys(sample, generator, eta, seed))
        else:
            same = len(sample) == len(before.run.keys)
            keys = before.run.keys if same else self._keys(sample, generator, eta, seed)
            run = RecordedRun(setup, x, keys, before.drawn if same else ())
        _, point = layout.single(run.request)
        self._check_rows(point, len(sample))
        start, offset = (begin, layout.position_of(begin)) if before is None else (before.begin, before.offset)
        self.timeline.begin_run(begin, run.path.points[0])
        self.history = History(start, offset, run, eta, Passed())
        self.begun_at, self.is_over = begin, False
        self.pending = PendingStep(run, discard_next_output=layout.plan(begin).discard_first_output)
        return self.pending

    def setup(self, begin: int, eta: float) -> Setup:
        """What a run from a grid step is made of."""
        layout, recipe, spec = self.layout, self.with_eta(eta), self.layout.spec

        def new_noise(source: NormalSource) -> Noise:
            return make_noise(recipe, source, shortest_draw(layout.path(begin), recipe, spec, (1,)))

        return Setup(spec, recipe.options, lambda: layout.path(begin), new_noise, spec.name, LARGEST_RECORD)

    def with_eta(self, eta: float) -> Recipe:
        """The recipe with DDIM's `eta`, for samplers that have this option; eta = 0 leaves the option unchanged."""
        recipe, spec = self.layout.recipe, self.layout.spec
        if eta == 0:
            return recipe
        if "eta" not in spec.options:
            raise UsageError(f"{spec.name} has no option eta, so eta={eta:g} does not apply; omit it, or use ddim")
        checked = check_options({"eta": eta}, spec.options, f"sampler {spec.name!r}")
        return replace(recipe, options={**recipe.options, **checked})

    def _keys(self, sample: Tensor, generator: Generators, eta: float, seed: int | None) -> Keys:
        """The keys of a run's noise."""
        if seed is None and (self.layout.spec.stochastic or eta):
            return list(zip(*seeds_of(generator, sample), strict=True))
        return [(seed or 0, index) for index in range(len(sample))]

    def _check_rows(self, point: Point, count: int) -> None:
        if point.rows is not None and count > 1:
            raise UsageError(
                f"{self.layout.spec.name} gives each image its own times, and a pipeline passes its network one time "
                "for all images (DiT's also counts the guided and unguided halves as two images); generate one image "
                "at a time, or use sds.sample(sds.from_pipeline(pipe), ...)"
            )

    # From one evaluation to the next.

    def note(self, passed: Passed, sample: Tensor) -> None:
        """Record that the network was evaluated for the pending request, at this timestep and state."""
        if self.history is not None:
            self.history.passed, self.history.sample = passed, weakref.ref(sample)
        self.evaluations += 1
        self.timeline.run_count += 1

    def note_given(self, draws: Iterable[int]) -> None:
        """Record that the caller has set the outcomes of these draws, which have not used the run's noise."""
        if self.history is not None:
            self.history.given.update(draws)

    def without_graph(self, pending: PendingStep, state: Tensor) -> Tensor:
        """A state that `advance` has returned, as a constant; it takes the place of that tensor."""
        state = state.detach()
        if self.pending is not None:
            pending.given = state
        elif self.history is not None:
            self.history.output = weakref.ref(state)
        return state

    def advance(
        self, pending: PendingStep, prediction: Prediction | None, dtype: torch.dtype, next_timestep: Any
    ) -> Tensor:
        """Pass the sampler the pending prediction; return the state of the next evaluation, or the finished sample.

        Args:
            pending: the evaluation.
            prediction: its prediction; None if the output was for the start of the run and is discarded.
            dtype: the pipeline's dtype.
            next_timestep: the timestep at which the pipeline will continue; None if it does not pass it.
        """
        if prediction is None:
            pending.discard_next_output = False
        else:
            try:
                pending.run.send(prediction)
                if pending.run.end is not None:
                    return self._finish(pending.run.end, pending, dtype)
                self.layout.single(pending.run.request)
            except Exception:
                self._end()
                raise
        self.timeline.emit(pending.point)
        if next_timestep is not None:
            self._check_next(pending, next_timestep)
        return pending.hand_out(dtype)

    def _check_next(self, pending: PendingStep, timestep: Any) -> None:
        """Raise if the pipeline will continue at another timestep than the run."""
        passed, expected = read_timestep(timestep), self.timeline.number_at(pending.point)
        if not passed.means(expected):
            raise UsageError(
                f"prev_timestep is {passed.value:g}, but this run of {self.layout.spec.name} continues at {expected:g}"
            )

    def _finish(self, x: Tensor, pending: PendingStep, dtype: torch.dtype) -> Tensor:
        self._end()
        pending.run.end = None  # the pipeline owns the sample
        clean = model_state(x, pending.run.path.points[-1]).to(dtype)
        if self.history is not None:
            self.history.output = weakref.ref(clean)
        return clean

    def _end(self) -> None:
        self.pending, self.is_over = None, True
        self.timeline.end_run()

    # Copies.

    def __deepcopy__(self, memo: dict[int, Any]) -> PushedRun:
        made = PushedRun(self.layout, copy.deepcopy(self.timeline, memo))
        made.is_over, made.evaluations, made.begun_at = self.is_over, self.evaluations, self.begun_at
        history, pending = self.history, self.pending
        if history is not None:
            made.history = replace(history, run=history.run.copy(), given=set(history.given))
            if pending is not None:
                made.pending = replace(pending, run=made.history.run)
        return made
