"""The grid and the network's times of a solver table, by Gauss-Newton steps with weights that are fitted anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..errors import SdesamplersError
from ..sampling.table import SolverTable
from .field import Field, Measured, Teacher
from .fit import fit
from .gauss_newton import GaussNewton, Slopes

BASES = ("ab", "unipc", "dpmpp-2m")
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


@dataclass(frozen=True)
class State:
    """Where a search stands between two of its parts: first candidates, Gauss-Newton steps, random changes.

    Attributes:
        trials: what it took so far.
        best: the best candidate.
        width: of random changes.
        damping: of Gauss-Newton steps.
        changes: random changes that come before the next step.
    """

    trials: float = 0.0
    best: Judged | None = None
    width: float = 0.3
    damping: float = GaussNewton.damping
    changes: int = 0


class Search:
    """The search for the grid and the network's times; the weights are fitted anew for each candidate.

    Gauss-Newton steps in `Candidate.values`, with difference quotients of the ends. If a step improves nothing, random
    changes follow, which grow after a success and shrink after failures (the 1/5 rule of Rechenberg 1973); they change
    ridge and robustness too.

    Attributes:
        best: the best candidate so far.
        trials: what the search took, in evaluations of a candidate on all starts.
        state: from which another search can continue; it is that after the last whole part.
    """

    def __init__(
        self, field: Field, teacher: Teacher, base: Base, seed: tuple[int, ...], state: State | None = None
    ) -> None:
        state = State() if state is None else state
        count = min(max(len(field.indices) // SHARE, FEWEST), len(field.indices))
        self.field, self.teacher, self.base = field, teacher, base
        self.few = field.part(count), teacher.part(count)
        self.share = count / len(field.indices)
        self.chance, self.steps = np.random.default_rng(seed), GaussNewton(state.damping)
        self.width, self.changes, self.trials, self.best = state.width, state.changes, state.trials, state.best
        self.state = state

    def improves(self, candidate: Candidate) -> bool:
        """Judge a candidate and keep it if it is the best."""
        judged, _ = judge(self.field, self.teacher, self.base, candidate)
        better = self.best is None or judged.score < self.best.score
        if better:
            self.best = judged
        return better

    def run(self, first: Sequence[Candidate], count: int) -> Iterator[Judged]:
        """Yield the best candidate so far after each trial, until there were `count`; `first` are tried first."""
        done = int(self.trials)
        for _ in self.parts(first):
            while done < min(int(self.trials + 1e-9), count):
                assert self.best is not None
                yield self.best
                done += 1
            if done == count:
                return

    def parts(self, first: Sequence[Candidate]) -> Iterator[None]:
        """Search without end; yields whenever candidates were evaluated."""
        for candidate in first:
            self.improves(candidate)
            self.complete(1.0)
            yield
        while True:
            if not self.changes:
                yield from self.step()
                continue
            assert self.best is not None
            better = self.improves(self.best.candidate.changed(self.chance, self.width))
            self.width = min(1.5 * self.width, 1.0) if better else max(0.9 * self.width, 0.02)
            self.changes -= 1
            self.complete(1.0)
            yield

    def complete(self, trials: float) -> None:
        """The end of a part, which took this number of trials since the last yield."""
        self.trials += trials
        self.state = State(self.trials, self.best, self.width, self.steps.damping, self.changes)

    def step(self) -> Iterator[None]:
        """A Gauss-Newton step from the best candidate; random changes follow if it does not improve it."""
        assert self.best is not None
        candidate = self.best.candidate
        values, ends = candidate.values, judge(*self.few, self.base, candidate)[1]
        self.trials += self.share
        yield
        slopes = Slopes(self.few[1], ends)
        for k in range(len(values)):
            moved = values + DIFFERENCE * np.eye(len(values))[k]
            slopes.add(judge(*self.few, self.base, candidate.with_values(moved))[1], DIFFERENCE)
            self.trials += self.share
            yield
        improves = lambda change: self.improves(candidate.with_values(values + change))  # noqa: E731
        better, tried = self.steps.step(slopes.equations(), np.full(len(values), LARGEST_CHANGE), improves)
        self.changes = 0 if better else CHANGES
        self.complete(tried)
        yield
