"""A run that somebody else's loop drives: its grid, and the evaluations that it makes from each grid step on."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from .errors import UsageError
from .loop import well_formed
from .path import Path, Point
from .plugin import Sampler
from .prediction import Prediction
from .recipe import Recipe, make_path, start_run
from .sde import GaussianProcess


@dataclass(frozen=True)
class Plan:
    """The evaluations of a run from one grid step on, found by a dry run on zeros.

    Attributes:
        points: where the model is asked, in order; the first one alone where the others depend on values.
        starts: for each grid step of this part, how many evaluations come before it.
        waits: whether the sampler moves before it asks (it adds noise first). The network has then been asked at the
            state that the loop started from, which is not where the sampler wants it; that answer is not used.
    """

    points: list[Point]
    starts: list[int]
    waits: bool


def first_at(asked: Sequence[Point], grid: Sequence[Point]) -> list[int]:
    """For each grid point, how many of the points asked come before the run first gets down to it."""
    starts, position = [], 0
    for point in grid:
        while position < len(asked) and np.max(asked[position].time) > point.time + 1e-12 * abs(point.time):
            position += 1
        starts.append(position)
    return starts


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
        self.grows = self.is_free or spec.evaluations is None  # where the model is asked depends on what it says
        self._plans: dict[int, Plan] = {}

    @property
    def steps(self) -> int:
        """Grid intervals."""
        return len(self.points) - 1

    def path(self, begin: int) -> Path:
        """The path of a run from grid step `begin`; it has no noise yet."""
        if self.is_free:
            return make_path(self.process, replace(self.recipe, start_time=float(self.points[begin].t)))
        view = self.points[0].process
        return Path(view, self.points[begin:])

    def plan(self, begin: int) -> Plan:
        """The evaluations from grid step `begin` on; none where it is the end.

        Raises:
            UsageError: the sampler asks for several points at once, which a loop over timesteps cannot give.
        """
        if begin not in self._plans:
            self._plans[begin] = self._planned(begin) if begin < self.steps else Plan([], [], False)
        return self._plans[begin]

    def _planned(self, begin: int) -> Plan:
        path, zeros = self.path(begin), torch.zeros(1, 1)
        path.ledger.noise = lambda start, end, rows=None: zeros
        start = torch.ones(1, 1)
        run, asked = start_run(self.spec, start, path, self.recipe.options), list[Point]()
        try:
            request = next(run)
            state, point = self.single(request)
            waits = bool(np.any(point.time != path.points[0].time)) or not torch.equal(state, start)
            while True:
                asked.append(point)
                if self.grows:
                    break
                answer = Prediction(state, point, torch.zeros_like(state), "v")
                state, point = self.single(run.send(answer))
        except StopIteration:
            pass
        finally:
            run.close()
        if waits:
            asked.insert(0, path.points[0])
        return Plan(asked, first_at(asked, path.points[:-1]), waits)

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

        Pipelines count `order` evaluations a step, which is what the sampler makes of each but perhaps the last, or
        they count evaluations. Where it makes more at the start of a run (starting values), the former is meant.
        """
        if self.grows:
            return min(begin + position, self.steps)
        starts = self.plan(begin).starts
        regular = all(first == order * k for k, first in enumerate(starts))
        step = bisect_left(starts, position) if regular or order == 0 else position // order
        return min(begin + step, self.steps)
