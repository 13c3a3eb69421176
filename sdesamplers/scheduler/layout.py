"""A run that somebody else's loop drives: its grid, and the evaluations that it makes from each grid step on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count

import numpy as np
import torch

from ..errors import UsageError
from ..path.path import Path
from ..path.points import Point
from ..path.prediction import Prediction
from ..processes.coordinates import view
from ..processes.sde import GaussianProcess
from ..registry.plugin import Sampler
from ..sampling.loop import well_formed
from ..sampling.recipe import Recipe
from ..sampling.runs import make_path, start_run

_NUMBERS = count()


@dataclass(frozen=True)
class Plan:
    """The evaluations of a run from one grid step on, found by a dry run on zeros.

    Attributes:
        points: where the model is asked, in order; the first one alone where the others depend on values.
        waits: whether the sampler moves before it asks (it adds noise first). The network has then been asked at the
            state that the loop started from, which is not where the sampler wants it; that answer is not used.
    """

    points: list[Point]
    waits: bool


class Layout:
    """The grid that a loop was told, and what a sampler makes of it.

    Args:
        process: the model's.
        spec, recipe: what is run.
        grid: a recipe with a fixed grid; `recipe` itself, but for a run that chooses its own steps, which is started
            at one of the grid's points.
    """

    def __init__(self, process: GaussianProcess, spec: Sampler, recipe: Recipe, grid: Recipe) -> None:
        self.process, self.spec, self.recipe, self.grid = process, spec, recipe, grid
        self.points = make_path(process, grid).points
        self.is_free = recipe is not grid
        self.is_adaptive = self.is_free or spec.evaluations is None  # where the model is asked depends on what it says
        self.number = next(_NUMBERS)  # so that a timestep of another layout is not taken for one of this
        self._plans: dict[int, Plan] = {}
        self._known: dict[tuple[str, float], Point] = {}  # so that a step finds the points that the dry run has made

    @property
    def steps(self) -> int:
        """Grid intervals."""
        return len(self.points) - 1

    @property
    def evaluations_a_step(self) -> int:
        """What the sampler declares, or what it makes where that depends on an option (`odeint`'s method)."""
        declared, made = max(1, self.spec.evaluations or 1), len(self.plan(0).points)
        return declared if declared * (self.steps - 1) <= made else max(1, -(-made // self.steps))

    def path(self, begin: int) -> Path:
        """The path of a run from grid step `begin`; it has no noise yet."""
        if self.is_free:
            start, clean = float(self.points[begin].t), view(self.process).clean_time
            if start <= self.process.t_min and clean is not None:  # the step to the clean end is all that is left
                return make_path(self.process, replace(self.recipe, times=(start, clean)))
            return make_path(self.process, replace(self.recipe, start_time=start))
        return Path(self.points[0].process, self.points[begin:], known=self._known)

    def plan(self, begin: int) -> Plan:
        """The evaluations from grid step `begin` on; none where it is the end.

        Raises:
            UsageError: the sampler asks for several points at once, which a loop over timesteps cannot give.
        """
        if begin not in self._plans:
            self._plans[begin] = self._planned(begin) if begin < self.steps else Plan([], False)
        return self._plans[begin]

    def _planned(self, begin: int) -> Plan:
        path, zeros = self.path(begin), torch.zeros(1, 1)
        path.ledger.noise = lambda start, end, rows=None: zeros
        start = torch.ones(1, 1)
        run, asked = start_run(self.spec, start, path, self.recipe.options), list[Point]()
        try:
            request = next(run)
            state, point = self.single(request)
            begins_here = np.allclose(point.time, path.points[0].time, rtol=1e-9, atol=0)
            waits = not (begins_here and torch.equal(state, start))
            while True:
                asked.append(point)
                if self.is_adaptive:
                    break
                answer = Prediction(state, point, torch.zeros_like(state), "v")
                state, point = self.single(run.send(answer))
        except StopIteration:
            pass
        finally:
            run.close()
        if waits:
            asked.insert(0, path.points[0])
        return Plan(asked, waits)

    def single(self, request: object) -> tuple[torch.Tensor, Point]:
        """A sampler's request at one point.

        Raises:
            UsageError: it asks for several points.
        """
        if isinstance(request, list):
            raise UsageError(
                f"{self.spec.name} asks the model at several times in one call, and a pipeline asks at one; "
                "sds.sample(sds.from_pipeline(pipe), ...) runs it"
            )
        return well_formed(request)

    def step_at(self, begin: int, position: int, order: int) -> int:
        """The grid step that a loop means by starting `position` evaluations into the run from step `begin`.

        Pipelines count `order` evaluations a step, or (order = 0) they count evaluations: then the step is the first
        one that lies no higher than the run has come down to by that evaluation. The two agree for a sampler that
        makes `order` evaluations of each step but perhaps the last; where it makes more at the start of a run (starting
        values) or in the middle, the former is meant.
        """
        if self.is_adaptive:
            return min(begin + position, self.steps)
        asked = np.array([np.max(point.time) for point in self.plan(begin).points])
        grid = np.array([point.time for point in self.points[begin:-1]])
        firsts = asked[::order][: len(grid)] if order else grid
        if len(firsts) < len(grid) or not np.allclose(firsts, grid, rtol=1e-9, atol=0):
            return min(begin + position // order, self.steps)
        if position >= len(asked):
            return self.steps
        lowest = asked[: position + 1].min()
        return begin + int(np.sum(grid > lowest + 1e-9 * abs(lowest)))

    def step_of(self, begin: int, position: int) -> int | None:
        """The grid step that evaluation `position` of the run from step `begin` is made at; None inside of a step."""
        if position == 0:
            return begin
        asked = self.plan(begin).points
        if position >= len(asked):
            return None
        time = np.max(asked[position].time)
        near = [k for k, point in enumerate(self.points[:-1]) if np.isclose(point.time, time, rtol=1e-9, atol=0)]
        return near[0] if near else None

    def position_of(self, step: int) -> int:
        """The evaluation of the whole run that begins grid step `step`: the last one made there."""
        if self.is_adaptive:
            return step
        asked, time = self.plan(0).points, self.points[step].time
        made = [k for k, point in enumerate(asked) if np.isclose(np.max(point.time), time, rtol=1e-9, atol=0)]
        return made[-1] if made else step

    @cached_property
    def forgets(self) -> bool:
        """Whether a run that begins at a grid step makes of a state there what a run from further up makes of it.

        So it is for methods of one evaluation a step that keep nothing of the steps before. It is found by making all
        steps twice on numbers: in one run, and each in a run of its own.
        """
        if self.is_adaptive or self.spec.evaluations != 1 or self.plan(0).waits:
            return False
        if len(self.plan(0).points) != self.steps:
            return False
        states = self._states(0, torch.tensor([[0.7, -1.3]], dtype=torch.float64), self.steps)
        for step in range(1, self.steps):
            alone = self._states(step, states[step], 1)
            if not torch.allclose(alone[1], states[step + 1], rtol=1e-9, atol=1e-12):
                return False
        return True

    def _states(self, begin: int, x: torch.Tensor, count: int) -> list[torch.Tensor]:
        """The first `count` + 1 states of a run without noise on a model made up, the end's among them."""
        path = self.path(begin)
        path.ledger.noise = lambda start, end, rows=None: torch.zeros_like(x)
        run, states = start_run(self.spec, x, path, self.recipe.options), list[torch.Tensor]()
        try:
            state, point = self.single(next(run))
            while True:
                states.append(state)
                if len(states) > count:
                    break
                answer = torch.tanh(state + begin + len(states))
                state, point = self.single(run.send(Prediction(state, point, answer, "v")))
        except StopIteration as stop:
            states.append(stop.value)
        finally:
            run.close()
        return states
