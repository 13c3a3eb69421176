"""The grid and the network's times of a solver table, by Gauss-Newton steps with weights that are fitted anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..errors import SdesamplersError
from ..sampling.table import SolverTable
from .field import Field, Measured, Teacher
from .fit import fit
from .gauss_newton import GaussNewton, Slopes

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2)
ROBUSTNESSES = (0.0, 0.5, 1.0)
LARGEST_SHIFT = 0.25
"""Of log phi: the largest shift of the time that the network receives."""


@dataclass(frozen=True)
class Candidate:
    """A grid with the network's times, and how its weights are fitted.

    Attributes:
        sizes: N logarithms of the steps of phi, up to a common factor.
        shifts: N logarithms of psi / phi; the first is 0.
        base: name of the base method.
        ridge, robustness: as in `fit`.
    """

    sizes: tuple[float, ...]
    shifts: tuple[float, ...]
    base: str
    ridge: float
    robustness: float = 1.0

    @classmethod
    def of(
        cls, angles: Sequence[float], base: str, asked: Sequence[float] | None = None, ridge: float = 1e-4
    ) -> Candidate:
        """A candidate on a grid, with the angles `asked` of the network's times; by default those of the grid."""
        own = np.array(angles)
        shifts = np.log(np.array(own[:-1] if asked is None else asked) / own[:-1])
        return cls(tuple(np.log(-np.diff(own))), tuple(shifts), base, ridge)

    def angles(self, start: float) -> list[float]:
        """N + 1 angles from the start to 0."""
        found: list[float] = grid(torch.tensor(self.sizes, dtype=torch.float64), start).tolist()
        return found

    def network_angles(self, angles: list[float], smallest: float) -> list[float]:
        """N angles of the network's times, within the range of the model's times."""
        own, shifts = (torch.tensor(values, dtype=torch.float64) for values in (angles, self.shifts))
        found: list[float] = shifted(own, shifts, smallest).tolist()
        return found

    @property
    def values(self) -> np.ndarray:
        """What Gauss-Newton steps change: the sizes, and all shifts but the first."""
        return np.array([*self.sizes, *self.shifts[1:]])

    def with_values(self, values: np.ndarray) -> Candidate:
        """The candidate with other sizes and shifts."""
        count = len(self.sizes)
        shifts = np.clip(values[count:], -LARGEST_SHIFT, LARGEST_SHIFT)
        return replace(self, sizes=tuple(values[:count].tolist()), shifts=(0.0, *shifts.tolist()))

    def changed(self, chance: np.random.Generator, width: float) -> Candidate:
        """A random neighbour."""
        sizes, shifts = np.array(self.sizes), np.array(self.shifts)
        some = chance.random(len(sizes)) < max(0.4, 2 / len(sizes))
        sizes = sizes + width * some * chance.standard_normal(len(sizes))
        if chance.random() < 0.5:
            moved = (chance.random(len(shifts)) < 0.4) * chance.standard_normal(len(shifts))
            moved[0] = 0.0
            shifts = shifts + 0.2 * width * moved
        ridge = self.ridge if chance.random() < 0.7 else float(chance.choice(RIDGES))
        robustness = self.robustness if chance.random() < 0.7 else float(chance.choice(ROBUSTNESSES))
        return replace(self.with_values(np.array([*sizes, *shifts[1:]])), ridge=ridge, robustness=robustness)


def grid(sizes: Tensor, start: float) -> Tensor:
    """N + 1 angles from the start to 0, whose steps are as exp(sizes)."""
    steps = (sizes - sizes.max()).exp()
    left = start * (1 - steps.cumsum(0) / steps.sum())
    return torch.cat([left.new_tensor([start]), left[:-1], left.new_tensor([0.0])])


def shifted(angles: Tensor, shifts: Tensor, smallest: float) -> Tensor:
    """N angles phi exp(shift), from the start's down to `smallest`, or to the last phi that is not 0."""
    return (angles[:-1] * shifts.exp()).clamp(min(smallest, float(angles[-2].detach())), float(angles[0].detach()))


@dataclass
class Judged:
    """A candidate with its fitted table and the errors on the starts that it was fitted to."""

    candidate: Candidate
    table: SolverTable
    measured: Measured

    @property
    def score(self) -> float:
        """What the search minimises."""
        return self.measured.score


Base = Callable[[str, list[float]], list[list[float]]]
"""The weights of a base method, by its name, on a grid."""


def judge(field: Field, teacher: Teacher, base: Base, candidate: Candidate) -> tuple[Judged, Tensor]:
    """Fit a candidate's weights and measure the errors; returns the ends, (N, *shape), too."""
    angles = candidate.angles(field.angle)
    asked = candidate.network_angles(angles, field.smallest)
    try:
        weights, ends = fit(
            field, teacher, angles, asked, base(candidate.base, angles), candidate.ridge, candidate.robustness
        )
        found = teacher.measured(ends)
    except SdesamplersError:  # a candidate whose states overflow
        weights, ends = base(candidate.base, angles), torch.full_like(teacher.end, math.inf)
        found = Measured(np.full(len(ends), np.inf))
    shifted = tuple(asked) if asked != angles[:-1] else ()
    return Judged(candidate, SolverTable(tuple(angles), tuple(map(tuple, weights)), shifted), found), ends


SHARE, FEWEST = 4, 8
"""The derivatives are those of every fourth start, but of eight at least."""
DIFFERENCE = 1e-2
"""Of the difference quotients in `Candidate.values`."""
LARGEST_CHANGE = 1.0
"""Of these values, in a step."""
CHANGES = 6
"""Number of random changes after Gauss-Newton steps that did not improve the best."""


class Search:
    """The search for the grid and the network's times; the weights are fitted anew for each candidate.

    Gauss-Newton steps in `Candidate.values`, with difference quotients of the ends. If a step improves nothing, random
    changes follow, which grow after a success and shrink after failures (the 1/5 rule of Rechenberg 1973); they change
    ridge and robustness too.

    Attributes:
        best: the best candidate so far.
    """

    def __init__(self, field: Field, teacher: Teacher, base: Base, seed: tuple[int, ...]) -> None:
        count = min(max(len(field.indices) // SHARE, FEWEST), len(field.indices))
        self.field, self.teacher, self.base = field, teacher, base
        self.few = field.part(count), teacher.part(count)
        self.share = count / len(field.indices)
        self.chance, self.width, self.steps = np.random.default_rng(seed), 0.3, GaussNewton()
        self.best: Judged | None = None

    def improves(self, candidate: Candidate) -> bool:
        """Judge a candidate and keep it if it is the best."""
        judged, _ = judge(self.field, self.teacher, self.base, candidate)
        better = self.best is None or judged.score < self.best.score
        if better:
            self.best = judged
        return better

    def run(self, first: list[Candidate]) -> Iterator[float]:
        """Search without end; yields after each evaluation of candidates what it took, in trials."""
        for candidate in first:
            self.improves(candidate)
            yield 1.0
        while True:
            if not (yield from self.step()):
                for _ in range(CHANGES):
                    assert self.best is not None
                    better = self.improves(self.best.candidate.changed(self.chance, self.width))
                    self.width = min(1.5 * self.width, 1.0) if better else max(0.9 * self.width, 0.02)
                    yield 1.0

    def step(self) -> Generator[float, None, bool]:
        """A Gauss-Newton step from the best candidate; returns True if it improves it."""
        assert self.best is not None
        candidate = self.best.candidate
        values, ends = candidate.values, judge(*self.few, self.base, candidate)[1]
        yield self.share
        slopes = Slopes(self.few[1], ends)
        for k in range(len(values)):
            moved = values + DIFFERENCE * np.eye(len(values))[k]
            found = judge(*self.few, self.base, candidate.with_values(moved))[1]
            slopes.add(found, DIFFERENCE)
            yield self.share
        improves = lambda change: self.improves(candidate.with_values(values + change))  # noqa: E731
        better, tried = self.steps.step(slopes.equations(), np.full(len(values), LARGEST_CHANGE), improves)
        yield float(tried)
        return better


def search(
    field: Field,
    teacher: Teacher,
    base: Base,
    first: list[Candidate],
    count: int,
    seed: tuple[int, ...],
    known: Judged | None = None,
) -> Iterator[Judged]:
    """Yield the best candidate so far after each of `count` trials, of which each evaluates all starts once.

    `known` is the best so far at the beginning; there must be one if there are no first candidates.
    """
    made, spent, done = Search(field, teacher, base, seed), 0.0, 0
    made.best = known
    for cost in made.run(first):
        spent += cost
        while done < min(int(spent + 1e-9), count):
            assert made.best is not None
            yield made.best
            done += 1
        if done == count:
            return
