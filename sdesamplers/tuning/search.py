"""The grid and the network's times of a solver table, by random search over candidates whose weights are fitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..errors import SdesamplersError
from ..sampling.table import SolverTable
from .field import Field, Teacher
from .fit import fit

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2)
ROBUSTNESSES = (0.0, 0.5, 1.0)
LARGEST_SHIFT = 0.25
"""Of log phi: the largest shift of the time that the network receives."""


def score(found: np.ndarray) -> float:
    """Mean of the logarithms of the RMS and of the median of the errors; inf if one is not finite."""
    if not np.all(np.isfinite(found)):
        return math.inf
    rms, median = float(np.sqrt(np.square(found).mean())), float(np.median(found))
    return 0.5 * (math.log(rms + 1e-30) + math.log(median + 1e-30))


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
    def of(cls, angles: np.ndarray, base: str, ridge: float = 1e-4) -> Candidate:
        """A candidate on a grid, without shifts."""
        steps = -np.diff(angles)
        return cls(tuple(np.log(steps)), (0.0,) * len(steps), base, ridge)

    def angles(self, start: float) -> list[float]:
        """N + 1 angles from the start to 0."""
        found: list[float] = grid(torch.tensor(self.sizes, dtype=torch.float64), start).tolist()
        return found

    def network_angles(self, angles: list[float], smallest: float) -> list[float]:
        """N angles of the network's times, within the range of the model's times."""
        own, shifts = (torch.tensor(values, dtype=torch.float64) for values in (angles, self.shifts))
        found: list[float] = shifted(own, shifts, smallest).tolist()
        return found

    def changed(self, chance: np.random.Generator, width: float) -> Candidate:
        """A random neighbour."""
        sizes, shifts = np.array(self.sizes), np.array(self.shifts)
        some = chance.random(len(sizes)) < max(0.4, 2 / len(sizes))
        sizes = sizes + width * some * chance.standard_normal(len(sizes))
        if chance.random() < 0.5:
            moved = (chance.random(len(shifts)) < 0.4) * chance.standard_normal(len(shifts))
            moved[0] = 0.0
            shifts = np.clip(shifts + 0.2 * width * moved, -LARGEST_SHIFT, LARGEST_SHIFT)
        ridge = self.ridge if chance.random() < 0.7 else float(chance.choice(RIDGES))
        robustness = self.robustness if chance.random() < 0.7 else float(chance.choice(ROBUSTNESSES))
        return replace(
            self, sizes=tuple(sizes.tolist()), shifts=tuple(shifts.tolist()), ridge=ridge, robustness=robustness
        )


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
    errors: np.ndarray

    @property
    def score(self) -> float:
        return score(self.errors)


Base = Callable[[str, list[float]], list[list[float]]]
"""The weights of a base method, by its name, on a grid."""


def judge(field: Field, teacher: Teacher, base: Base, candidate: Candidate) -> Judged:
    """Fit a candidate's weights and measure the errors."""
    angles = candidate.angles(field.angle)
    asked = candidate.network_angles(angles, field.smallest)
    try:
        weights, ends = fit(
            field, teacher, angles, asked, base(candidate.base, angles), candidate.ridge, candidate.robustness
        )
        found = teacher.distances(ends)
    except SdesamplersError:  # a candidate whose states overflow
        found, weights = np.full(len(teacher.end), np.inf), base(candidate.base, angles)
    shifted = tuple(asked) if asked != angles[:-1] else ()
    return Judged(candidate, SolverTable(tuple(angles), tuple(map(tuple, weights)), shifted), found)


def search(
    field: Field, teacher: Teacher, base: Base, first: list[Candidate], count: int, seed: tuple[int, ...]
) -> Iterator[Judged]:
    """Yield the best candidate so far after each of `count` trials: the first ones, then changes of the best.

    The changes grow after a success and shrink after failures (the 1/5 rule of Rechenberg 1973).
    """
    best: Judged | None = None
    width = 0.3
    for trial in range(count):
        chance = np.random.default_rng((*seed, trial))
        candidate = first[trial] if trial < len(first) or best is None else best.candidate.changed(chance, width)
        judged = judge(field, teacher, base, candidate)
        if best is None or judged.score < best.score:
            best = judged
            width = min(width * 1.5, 1.0) if trial >= len(first) else width
        elif trial >= len(first):
            width = max(width * 0.9, 0.02)
        yield best
