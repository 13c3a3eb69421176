"""A run that an external loop drives: its grid, and the evaluations that it makes from each grid step on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from typing import Any

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
        points: the points of the evaluations, in order; only the first if the others depend on values.
        discard_first_output: True if the sampler changes the state before its first evaluation (it adds noise first).
            The loop then evaluates the network at the state that it started from, which the sampler does not need;
            that output is discarded.
    """

    points: list[Point]
    discard_first_output: bool


class Layout:
    """The grid that a loop follows, and the evaluations that a sampler makes on it.

    Args:
        process: the model's process.
        spec, recipe: the sampler and the recipe of the run.
        grid: a recipe with a fixed grid: `recipe` itself, except for a run that chooses its own steps; such a run
            starts at one of the grid's points.
    """

    def __init__(self, process: GaussianProcess, spec: Sampler, recipe: Recipe, grid: Recipe) -> None:
        self.process, self.spec, self.recipe, self.grid = process, spec, recipe, grid
        self.points = make_path(process, grid).points
        self.is_free = recipe is not grid
        self.is_adaptive = self.is_free or spec.evaluations is None  # the evaluation points depend on predictions
        self.number = next(_NUMBERS)  # distinguishes the timesteps of different layouts
        self._plans: dict[int, Plan] = {}
        self._known: dict[tuple[str, float], Point] = {}  # lets a step reuse the points that the dry run created

    def __deepcopy__(self, memo: Any) -> Layout:
        return self  # it does not change

    @property
    def steps(self) -> int:
        """Grid intervals."""
        return len(self.points) - 1

    @property
    def evaluations_per_step(self) -> int:
        """The declared number, or the observed one if it depends on an option (`odeint`'s method)."""
        declared, made = max(1, self.spec.evaluations or 1), len(self.plan(0).points)
        return declared if declared * (self.steps - 1) <= made else max(1, -(-made // self.steps))

    def path(self, begin: int) -> Path:
        """The path of a run from grid step `begin`; it has no noise yet."""
        if self.is_free:
            start, clean = float(self.points[begin].t), view(self.process).clean_time
            if start <= self.process.t_min and clean is not None:  # only the step to the clean end is left
                return make_path(self.process, replace(self.recipe, times=(start, clean)))
            return make_path(self.process, replace(self.recipe, start_time=start))
        return Path(self.points[0].process, self.points[begin:], known=self._known, first_step=begin)

    def plan(self, begin: int) -> Plan:
        """The evaluations from grid step `begin` on; an empty plan if `begin` is the end of the grid.

        Raises:
            UsageError: the sampler evaluates at several points at once, which a loop over timesteps cannot do, or it
                evaluates nowhere.
        """
        if begin not in self._plans:
            self._plans[begin] = self._planned(begin) if begin < self.steps else Plan([], False)
        return self._plans[begin]

    def _planned(self, begin: int) -> Plan:
        path, zeros = self.path(begin), torch.zeros(1, 1)
        path.ledger.noise = lambda start, end, rows=None: zeros
        start, discard_first_output = torch.ones(1, 1), False
        run, evaluated = start_run(self.spec, start, path, self.recipe.options), list[Point]()
        try:
            request = next(run)
            state, point = self.single(request)
            begins_here = np.allclose(point.time, path.points[0].time, rtol=1e-9, atol=0)
            discard_first_output = not (begins_here and torch.equal(state, start))
            while True:
                evaluated.append(point)
                if self.is_adaptive:
                    break
                zeros = torch.zeros_like(state)
                state, point = self.single(run.send(both(state, point, zeros, zeros)))
        except StopIteration:
            pass
        finally:
            run.close()
        if not evaluated:
            raise UsageError(f"{self.spec.name} does not evaluate the model here: a pipeline has nothing to loop over")
        if discard_first_output:
            evaluated.insert(0, path.points[0])
        return Plan(evaluated, discard_first_output)

    def single(self, request: object) -> tuple[torch.Tensor, Point]:
        """The state and point of a sampler's request.

        Raises:
            UsageError: the request has several points.
        """
        if isinstance(request, list):
            raise UsageError(
                f"{self.spec.name} evaluates the model at several times in one call, and a pipeline evaluates at one; "
                "sds.sample(sds.from_pipeline(pipe), ...) runs it"
            )
        return well_formed(request)

    def step_at(self, begin: int, position: int, order: int) -> int:
        """The grid step of a loop that starts `position` evaluations into the run from step `begin`.

        Pipelines count `order` evaluations per step, or single evaluations (order = 0). In the latter case the result
        is the first grid step that is no higher than the lowest time evaluated so far. The two agree for a sampler that
        makes `order` evaluations in every step except perhaps the last; if it makes more at the start of a run
        (starting values) or in the middle, the first way of counting is used.
        """
        if self.is_adaptive:
            return min(begin + position, self.steps)
        evaluated = np.array([np.max(point.time) for point in self.plan(begin).points])
        grid = np.array([point.time for point in self.points[begin:-1]])
        firsts = evaluated[::order][: len(grid)] if order else grid
        if len(firsts) < len(grid) or not np.allclose(firsts, grid, rtol=1e-9, atol=0):
            return min(begin + position // order, self.steps)
        if position >= len(evaluated):
            return self.steps
        lowest = evaluated[: position + 1].min()
        return begin + int(np.sum(grid > lowest + 1e-9 * abs(lowest)))

    def step_of(self, begin: int, position: int) -> int | None:
        """The grid step at which evaluation `position` of the run from step `begin` is made; None inside a step."""
        if position == 0:
            return begin
        evaluated = self.plan(begin).points
        if position >= len(evaluated):
            return None
        time = np.max(evaluated[position].time)
        near = [k for k, point in enumerate(self.points[:-1]) if np.isclose(point.time, time, rtol=1e-9, atol=0)]
        return near[0] if near else None

    def position_of(self, step: int) -> int:
        """The index in the whole run of the evaluation that begins grid step `step`: the last one made at its time."""
        if self.is_adaptive:
            return step
        evaluated, time = self.plan(0).points, self.points[step].time
        made = [k for k, point in enumerate(evaluated) if np.isclose(np.max(point.time), time, rtol=1e-9, atol=0)]
        return made[-1] if made else step

    @cached_property
    def is_memoryless(self) -> bool:
        """True if a run that begins at a grid step treats a state there as a run from further up does.

        This holds for methods that make one evaluation per step and keep nothing of earlier steps. It is tested
        numerically, by making every step twice: in one whole run, and in a run of its own.
        """
        if self.is_adaptive or self.spec.evaluations != 1 or self.plan(0).discard_first_output:
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
        """The first `count` + 1 states of a noiseless run on an artificial model; they may include the final state."""
        path = self.path(begin)
        path.ledger.noise = lambda start, end, rows=None: torch.zeros_like(x)
        run, states = start_run(self.spec, x, path, self.recipe.options), list[torch.Tensor]()
        try:
            state, point = self.single(next(run))
            while True:
                states.append(state)
                if len(states) > count:
                    break
                output = torch.tanh(state + begin + len(states))
                state, point = self.single(run.send(both(state, point, output, 0.5 * output)))
        except StopIteration as stop:
            states.append(stop.value)
        finally:
            run.close()
        return states


def both(state: torch.Tensor, point: Point, guided: torch.Tensor, unguided: torch.Tensor) -> Prediction:
    """A prediction with the unguided one, as samplers may need both, from outputs of an artificial model."""
    prediction = Prediction(state, point, guided, "v")
    prediction.unguided = Prediction(state, point, unguided, "v")
    return prediction
