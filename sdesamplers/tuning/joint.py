"""Gauss-Newton steps in all numbers of a solver table at once: grid, network's times and weights.

The search fits the weights of a step to the teacher's state at the next point. With few steps that is not the best
place to go to: the later steps can correct an earlier one, and only the end counts. Here every number is changed so
that the ends come nearer to the teacher's.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np
import torch

from ..errors import SdesamplersError
from ..sampling.table import SolverTable
from .field import Field, Teacher, continued
from .gauss_newton import GaussNewton, Slopes
from .search import LARGEST_SHIFT, Candidate, Judged, shifted

DIFFERENCE = 3e-3
"""Of the difference quotients by the logarithms of the angles and by the weights."""
LARGEST_CHANGE = 0.2, 1.0
"""Of the logarithms and of the weights, in one step."""
STARTS_PER_NUMBER = 2
"""The derivatives are those of this many starts for each number, if there are more; with features those of all."""


def adjust(
    field: Field, teacher: Teacher, judged: Judged, iterations: int, steps: GaussNewton | None = None
) -> Iterator[tuple[float, Judged]]:
    """Yield the steps done and the best table so far, after each derivative and after each of the steps.

    Ends after `iterations` steps, or after one that improves nothing. `steps` keeps the damping.
    """
    joint = Joint(field, teacher, judged, steps_from() if steps is None else steps)
    for k in range(iterations):
        better = yield from joint.step(k)
        yield k + 1, joint.best
        if not better:
            return


def steps_from(damping: float = GaussNewton.damping) -> GaussNewton:
    """The steps of a search that begins, or continues with this damping."""
    return GaussNewton(damping, tries=8)


class Joint:
    """The steps from a table that the search found.

    Attributes:
        best: the best table so far.
    """

    def __init__(self, field: Field, teacher: Teacher, best: Judged, steps: GaussNewton) -> None:
        count = min(STARTS_PER_NUMBER * len(numbers_of(best.table)), len(field.indices))
        self.field, self.teacher, self.best = field, teacher, best
        self.few = (field.part(count), teacher.part(count)) if teacher.moments is None else (field, teacher)
        self.steps = steps

    def step(self, done: int) -> Generator[tuple[float, Judged], None, bool]:
        """A step from the best table; returns True if it improves it. Yields as `adjust`, after `done` steps."""
        table, (few, teacher) = self.best.table, self.few
        numbers, angles = numbers_of(table), table.nfe - 1
        states, velocities = continued(few, table, [few.start], [])
        slopes = Slopes(teacher, states[-1])
        for k, n in enumerate(first_steps(table.nfe)):
            moved = with_numbers(table, numbers + DIFFERENCE * np.eye(len(numbers))[k], few.smallest)
            known = n if k < 2 * angles else n + 1  # a weight does not change the velocity of its own step
            ends = continued(few, moved, states[: n + 1], velocities[:known])[0][-1]
            slopes.add(ends, DIFFERENCE)
            yield done + (k + 1) / (len(numbers) + 1), self.best

        largest = np.where(np.arange(len(numbers)) < 2 * angles, *LARGEST_CHANGE)
        return self.steps.step(slopes.equations(), largest, lambda change: self.improves(numbers + change))[0]

    def improves(self, numbers: np.ndarray) -> bool:
        """Measure a table and keep it if it is the best."""
        try:
            table = with_numbers(self.best.table, numbers, self.field.smallest)
            found = self.teacher.measured(continued(self.field, table, [self.field.start], [])[0][-1])
        except SdesamplersError:  # huge weights, or states that overflow
            return False
        made = Judged(Candidate.of(table.angles, self.best.candidate.base, table.evaluated_angles), table, found)
        better = made.score < self.best.score
        if better:
            self.best = made
        return better


def numbers_of(table: SolverTable) -> np.ndarray:
    """What is changed: log phi_n and log(psi_n / phi_n), n = 1, ..., N - 1, and all weights except those of y_n.

    A state is a sum of the start and the velocities before it, so that its own weight would add nothing.
    """
    angles = np.array(table.angles[1:-1])
    asked = np.array(table.evaluated_angles[1:])
    weights = [weight for row in table.weights for weight in (row[0], *row[2:])]
    return np.array([*np.log(angles), *np.log(asked / angles), *weights])


def with_numbers(table: SolverTable, numbers: np.ndarray, smallest: float) -> SolverTable:
    """The table with other numbers, in an order as in `numbers_of`."""
    count = table.nfe - 1
    angles = [table.angles[0]]
    for angle in np.exp(numbers[:count]).tolist():
        angles.append(min(angle, angles[-1] * (1 - 1e-9)))  # they fall
    shifts = np.clip([0.0, *numbers[count : 2 * count]], -LARGEST_SHIFT, LARGEST_SHIFT)
    angles = [*angles, table.angles[-1]]
    asked = shifted(torch.tensor(angles, dtype=torch.float64), torch.from_numpy(shifts), smallest)
    rest, rows = numbers[2 * count :].tolist(), []
    for row in table.weights:
        rows.append((rest[0], row[1], *rest[1 : len(row) - 1]))
        rest = rest[len(row) - 1 :]
    return SolverTable(tuple(angles), tuple(rows), tuple(asked.tolist()))


def first_steps(nfe: int) -> list[int]:
    """For each of `numbers_of` the first step that it changes."""
    return [*range(1, nfe), *range(1, nfe), *(n for n in range(nfe) for _ in range(n + 2))]
