"""A solver table improved by the gradient of its error with respect to weights, grid and the network's times.

The gradient is that of the adjoint recursion. With L the loss, lambda_n = dL/dy_n and mu_n = dL/dv_n, backwards in n,

    mu_j += w_nj lambda_{n+1} for j <= n,   lambda_n = b_n lambda_{n+1} + (dv_n/dy_n)^T mu_n

so that one evaluation of the network is kept in memory at a time. Derivatives of v with respect to the two angles, phi
of the state and psi of the network's time, are difference quotients: networks need not be differentiable in time. The
loss is the mean logarithm of the samples' squared distances, which a sample that changes mode does not dominate. The
weights are a base method's on the present grid plus corrections (Oganesyan et al. 2025, section 4.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import NonFiniteError, UsageError
from ..sampling.table import SolverTable
from .field import Field, Measured, Teacher, checked, continued
from .moments import WEIGHT
from .search import Base, Candidate, Judged, grid, shifted

STEP = 1e-3
"""Of the difference quotients, relative to the angle."""
RATES = (1e-2, 1e-3)
"""Of Adam for the corrections of the weights; the grid and the times have three times as much."""


@dataclass
class Parameters:
    """What is learned, as float64 tensors: sizes and shifts as in `Candidate`, and corrections of the weights' rows."""

    sizes: Tensor
    shifts: Tensor
    corrections: list[Tensor]

    @classmethod
    def of(cls, judged: Judged, base: list[list[float]]) -> Parameters:
        """Those of a fitted candidate."""
        candidate = judged.candidate
        sizes, shifts = (torch.tensor(v, dtype=torch.float64) for v in (candidate.sizes, candidate.shifts))
        rows = [np.subtract(own, other) for own, other in zip(judged.table.weights, base, strict=True)]
        made = cls(sizes, shifts, [torch.tensor(row, dtype=torch.float64) for row in rows])
        for value in made.all:
            value.requires_grad_()
        return made

    def candidate(self, first: Candidate) -> Candidate:
        """The first candidate with the learned grid and times."""
        return first.with_values(torch.cat([self.sizes, self.shifts[1:]]).detach().numpy())

    @property
    def all(self) -> list[Tensor]:
        """All tensors."""
        return [self.sizes, self.shifts, *self.corrections]


def refine(field: Field, teacher: Teacher, base: Base, judged: Judged, iterations: int) -> Iterator[Judged]:
    """Yield the best table so far after each of `iterations` steps of Adam.

    They are shared by `RATES`, each of which begins with the best table and falls to 0 by a cosine. How large a step
    may be differs between problems by a factor of 100.
    """
    best = judged
    for k, rate in enumerate(RATES):
        share = iterations * (k + 1) // len(RATES) - iterations * k // len(RATES)
        for found in descend(field, teacher, base, best, share, rate):
            best = found
            yield best


def descend(
    field: Field, teacher: Teacher, base: Base, judged: Judged, iterations: int, rate: float
) -> Iterator[Judged]:
    """The same with one rate; ends early if a table's states are not finite."""
    name, best = judged.candidate.base, judged
    weights_at: Callable[[list[float]], list[list[float]]] = lambda angles: base(name, angles)  # noqa: E731
    learned = Parameters.of(judged, weights_at(list(judged.table.angles)))
    optimizer = torch.optim.Adam(
        [
            {"params": [learned.sizes, learned.shifts], "lr": 3 * rate},
            {"params": learned.corrections, "lr": rate},
        ]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        with torch.enable_grad():
            angles = grid(learned.sizes, field.angle)
            first = torch.zeros(1, dtype=torch.float64)  # the network receives the start's own time
            asked = shifted(angles, torch.cat([first, learned.shifts[1:]]), field.smallest)
            rows = on_grid(weights_at, angles, learned.corrections)
        values = [float(v) for v in angles.detach()], [float(v) for v in asked.detach()]
        table = SolverTable(tuple(values[0]), tuple(tuple(row.detach().tolist()) for row in rows), tuple(values[1]))
        try:
            found, slopes = gradients(field, teacher, table)
        except NonFiniteError:
            return
        current = Judged(learned.candidate(judged.candidate), table, found)
        if current.score < best.score:
            best = current
        yield best
        optimizer.zero_grad()
        by_angle, by_network_angle, by_row = slopes
        linear = (angles[:-1] * by_angle).sum() + (asked * by_network_angle).sum()
        linear = linear + sum((row * slope).sum() for row, slope in zip(rows, by_row, strict=True))
        linear.backward()
        torch.nn.utils.clip_grad_norm_(learned.all, 10.0)
        optimizer.step()
        schedule.step()


def on_grid(
    weights_at: Callable[[list[float]], list[list[float]]], angles: Tensor, corrections: list[Tensor]
) -> list[Tensor]:
    """The base's weights on a grid plus the corrections, with their derivatives with respect to the angles."""
    points = angles.detach().tolist()
    rows = [torch.tensor(row, dtype=torch.float64) for row in weights_at(points)]
    for k in range(1, len(points) - 1):  # the ends are fixed
        step = 1e-5 * min(points[k - 1] - points[k], points[k] - points[k + 1])
        ahead, behind = (weights_at([*points[:k], points[k] + sign * step, *points[k + 1 :]]) for sign in (1, -1))
        for n, row in enumerate(rows):
            slope = torch.from_numpy(np.subtract(ahead[n], behind[n]) / (2 * step))
            rows[n] = row + slope * (angles[k] - points[k])
    return [row + correction for row, correction in zip(rows, corrections, strict=True)]


Gradients = tuple[Tensor, Tensor, list[Tensor]]


def gradients(field: Field, teacher: Teacher, table: SolverTable) -> tuple[Measured, Gradients]:
    """Errors of a table, and the derivatives of the loss by angles (N,), network angles (N,) and rows of weights."""
    start = field.start
    states, velocities = continued(field, table, [start], [])
    found, adjoint = teacher.measured(states[-1]), slope_of_loss(states[-1], teacher)
    moments = [torch.zeros_like(start) for _ in velocities]
    by_row, by_angle, by_network_angle = list[Tensor](), np.zeros(table.nfe), np.zeros(table.nfe)
    for n in reversed(range(table.nfe)):
        row, terms = table.weights[n], [start, states[n], *velocities[: n + 1]]
        by_row.append(torch.tensor([inner(adjoint, term) for term in terms], dtype=torch.float64))
        for j in range(n + 1):
            moments[j].add_(adjoint, alpha=row[2 + j])
        if n:
            phi, psi, v = table.angles[n], table.network_angles[n], velocities[n]
            h, k = (inwards(field, angle) for angle in (phi, psi))
            by_angle[n] = inner(moments[n], field(states[n], phi + h, psi) - v) / h
            by_network_angle[n] = inner(moments[n], field(states[n], phi, psi + k) - v) / k
            adjoint = row[1] * adjoint + field.pullback(states[n], phi, psi, moments[n])
    return found, (torch.from_numpy(by_angle), torch.from_numpy(by_network_angle), by_row[::-1])


def slope_of_loss(ends: Tensor, teacher: Teacher) -> Tensor:
    """The derivative of the mean logarithm of the squared distances, and of the features', by the ends, (N, *shape)."""
    with torch.enable_grad():
        ends = ends.detach().clone().requires_grad_()
        distances = checked(teacher.distance(ends, teacher.end), len(ends))
        if not distances.requires_grad:
            raise UsageError('method="gradient" needs a distance that is differentiable by torch')
        loss = 2 * distances.clamp_min(1e-15).log().mean()
        if teacher.moments is not None:
            apart = teacher.moments.residual(ends)
            if not apart.requires_grad:
                raise UsageError('method="gradient" needs features that are differentiable by torch')
            loss = loss + WEIGHT * (apart.square().sum() + 1e-30).log()
    return torch.autograd.grad(loss, ends)[0]


def inwards(field: Field, angle: float) -> float:
    """The step of a difference quotient in an angle, towards the inside of its range."""
    return STEP * angle if angle * (1 + STEP) <= field.angle else -STEP * angle


def inner(one: Tensor, other: Tensor) -> float:
    """Inner product over everything, in float64."""
    return float((one.double() * other.double()).sum())
