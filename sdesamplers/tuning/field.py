"""A model's velocity in angle coordinates for a set of starts, and a teacher's states along their trajectories."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..models.base import Model
from ..models.conditions import take_rows
from ..models.running import running
from ..path.path import Path
from ..path.points import Point
from ..path.prediction import Prediction
from ..processes.coordinates import view
from ..processes.predictions import weighted_sum
from ..sampling.loop import Evaluator, drive
from ..sampling.prepared import PreparedRun, prepare
from ..sampling.request import Conduct, Request, batches
from ..sampling.runs import start_run
from ..sampling.table import SolverTable
from .moments import WEIGHT, Features, Moments
from .trace import length


class Field:
    """v(y, phi) of a model with its condition, guidance and clipping, for N starts; counts its evaluations.

    A state is y = cos(phi) x0 + sin(phi) eps with phi = arctan(sigma/alpha), float32, on the model's device.

    Args:
        model: the model.
        indices: of the starts, as in `sample`.
        seed: their seed.
        conditions: one for each start, as `Model.condition_for` returns them.
        guidance_scale: as in `sample`.
        batch_size: starts that the network evaluates at once; all by default.

    Attributes:
        first: the point of the starts.
        smallest: phi of the smallest time of the model.
    """

    def __init__(
        self,
        model: Model,
        indices: Sequence[int],
        seed: int,
        conditions: Any = None,
        guidance_scale: float = 1.0,
        batch_size: int | None = None,
    ) -> None:
        self.model, self.indices, self.seed, self.conditions = model, indices, seed, conditions
        self.batch_size = batch_size
        self.batches = list(batches(len(indices), batch_size))
        self.conduct = Conduct(guidance_scale=guidance_scale)
        self.path = Path(view(model.gaussian, "angle"), [])
        self.evaluations = 0
        self._run = self.prepared(Request("table", steps=1, spacing="table"))  # not the model's own grid
        self._evaluators = [self._evaluator(self._run, rows) for rows in self.batches]
        self.first = self._run.path.points[0]
        self.smallest = math.atan(float(model.gaussian.ratio(model.gaussian.t_min)))

    def part(self, count: int) -> Field:
        """The first of the starts."""
        few = take_rows(self.conditions, slice(0, count))
        return Field(self.model, self.indices[:count], self.seed, few, self.conduct.guidance_scale, self.batch_size)

    @property
    def angle(self) -> float:
        """phi of the start."""
        return math.atan(self.first.ratio)

    def prepared(self, request: Request) -> PreparedRun:
        """A run of a sampler on the same starts."""
        return prepare(self.model, request, self.conduct, self.seed)

    def _evaluator(self, run: PreparedRun, rows: slice) -> Evaluator:
        return run.evaluator(len(self.indices[rows]), take_rows(self.conditions, rows))

    @functools.cached_property
    def start(self) -> Tensor:
        """The starts, (N, *shape)."""
        run = self._run
        return torch.cat([run.begin(run.new_path(), self.indices[rows], None) for rows in self.batches])

    def point(self, phi: float) -> Point:
        """The point at an angle."""
        return self.first if phi == self.angle else self.path.at_ratio(math.tan(phi) if phi < math.pi / 2 else math.inf)

    def __call__(self, y: Tensor, phi: float, psi: float | None = None, *, gradients: bool = False) -> Tensor:
        """v at the states y (N, *shape) and angle phi, if the network receives the time at angle psi."""
        point = self.point(phi)
        if psi is not None:
            point = point.evaluated_at(self.point(psi))
        found = []
        with running(self.model, key=(self.seed, self.indices[0]), gradients=gradients):
            for rows, evaluate in zip(self.batches, self._evaluators, strict=True):
                found.append(evaluate(y[rows], point).compose(x0=-math.sin(phi), eps=math.cos(phi)))
        self.evaluations += len(y)
        return torch.cat(found)

    def pullback(self, y: Tensor, phi: float, psi: float, v: Tensor) -> Tensor:
        """(dv/dy)^T v of the velocity at y, one batch at a time."""
        point, found = self.point(phi).evaluated_at(self.point(psi)), []
        with running(self.model, key=(self.seed, self.indices[0]), gradients=True):
            for rows, evaluate in zip(self.batches, self._evaluators, strict=True):
                state = y[rows].detach().requires_grad_()
                velocity = evaluate(state, point).compose(x0=-math.sin(phi), eps=math.cos(phi))
                found.append(torch.autograd.grad(velocity, state, v[rows])[0])
        self.evaluations += len(y)
        return torch.cat(found)

    def run(self, request: Request, *, keep: bool = False) -> tuple[Tensor, list[float], list[Tensor]]:
        """Run a sampler from the same starts.

        Returns the ends in angle coordinates, and the angles and, with `keep`, the states of all evaluations.

        Raises:
            UsageError: the sampler draws noise.
        """
        run, ends, nodes, states = self.prepared(request), [], list[list[float]](), list[list[Tensor]]()
        for rows in self.batches:
            angles, visited = list[float](), list[Tensor]()

            def record(out: Prediction, angles: list[float] = angles, visited: list[Tensor] = visited) -> None:
                angles.append(math.atan(out.point.ratio))
                if keep:
                    visited.append(out.x.detach() / length(out.point))

            evaluate, path = self._evaluator(run, rows), run.new_path()
            evaluate.record = record
            with running(self.model, key=(self.seed, self.indices[rows][0])):
                x = run.begin(path, self.indices[rows], None)
                end = drive(start_run(run.spec, x, path, run.recipe.options), evaluate)
            if path.ledger.drew_noise:
                raise UsageError(f"{run.spec.name} draws noise; a deterministic sampler is needed, such as quality")
            ends.append(end / length(path.points[-1]))
            nodes.append(angles)
            states.append(visited)
            self.evaluations += len(angles) * len(x)
        return torch.cat(ends), nodes[0], [torch.cat(parts) for parts in zip(*states, strict=True)]


def continued(
    field: Field, table: SolverTable, states: Sequence[Tensor], velocities: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """All states and velocities of a table, whose first ones are known."""
    states, velocities = [*states], [*velocities]
    for n in range(len(states) - 1, table.nfe):
        if n == len(velocities):
            velocities.append(field(states[n], table.angles[n], table.evaluated_angles[n]))
        states.append(weighted_sum(table.weights[n], [states[0], states[n], *velocities]))
    return states, velocities


Distance = Callable[[Tensor, Tensor], Tensor]
"""The distances, (N,), of samples (N, *shape) from the teacher's."""
ROUNDING = 1e-3
"""How far below 0 a distance may be by rounding, such as 1 minus a cosine, before it is refused."""


def root_mean_square(samples: Tensor, others: Tensor) -> Tensor:
    """The root mean square over the elements of each sample of the difference, (N,)."""
    return (samples - others).double().flatten(1).square().mean(1).clamp_min(1e-30).sqrt()


@dataclass(frozen=True)
class Measured:
    """The errors of samples, (N,) float64, and the Fréchet distance of their features if that counts."""

    errors: np.ndarray
    frechet: float | None = None

    @property
    def score(self) -> float:
        """Mean of the logarithms of the RMS and of the median of the errors, and the part of the features.

        It is inf if one of them is not finite.
        """
        far = 0.0 if self.frechet is None else self.frechet
        if not (np.all(np.isfinite(self.errors)) and math.isfinite(far)):
            return math.inf
        rms, median = float(np.sqrt(np.square(self.errors).mean())), float(np.median(self.errors))
        of_errors = 0.5 * (math.log(rms + 1e-30) + math.log(median + 1e-30))
        return of_errors if self.frechet is None else of_errors + WEIGHT / 2 * math.log(far + 1e-30)


@dataclass
class Teacher:
    """The states of an accurate sampler along the trajectories of a field's starts, at any angle.

    Attributes:
        angles: the K nodes, falling; the last is 0.
        states: (N, *shape) at each node, in angle coordinates.
        distance: by which samples are compared with its own.
        features: of samples, by which all of them are compared with its own as distributions.
    """

    angles: np.ndarray
    states: list[Tensor]
    distance: Distance = root_mean_square
    features: Features | None = None

    @classmethod
    def of(
        cls,
        field: Field,
        request: Request,
        distance: Distance = root_mean_square,
        features: Features | None = None,
        *,
        whole: bool = True,
    ) -> Teacher:
        """Run a sampler that evaluates the model once at each point of its grid, from noise to sigma = 0.

        Without `whole` only the ends are kept.

        Raises:
            UsageError: it evaluates the model elsewhere, its trajectories are not finite, the distance is not a tensor
                (N,), or the features are not numbers (N, D).
        """
        end, angles, states = field.run(request, keep=whole)
        angles, states = [*angles, 0.0], [*states, end]
        if any(a <= b for a, b in pairwise(angles)):
            raise UsageError("a teacher must evaluate the model once at each point of its grid, as quality does")
        if abs(angles[0] - field.angle) > 1e-9:
            raise UsageError(
                "a teacher begins at the largest sigma/alpha of the model, and this one's grid does not; name another "
                'grid, as in "unipc spacing=power"'
            )
        if not bool(end.isfinite().all()):
            raise UsageError("the teacher's samples are not finite")
        if not whole:  # only the ends are compared, and the states of many starts take gigabytes
            angles, states = angles[-1:], states[-1:]
        made = cls(np.array(angles), states, distance, features)
        if not np.isfinite(made.measured(end).errors).all():
            raise UsageError("the distance of the teacher's samples from themselves is not finite")
        return made

    def part(self, count: int) -> Teacher:
        """The first of the starts, without features: the covariance of few samples is mostly chance."""
        return Teacher(self.angles, [states[:count] for states in self.states], self.distance)

    @property
    def end(self) -> Tensor:
        """The samples, (N, *shape)."""
        return self.states[-1]

    def at(self, phi: float) -> Tensor:
        """The states at an angle, by the cubic polynomial through the four nearest nodes."""
        k = int(np.searchsorted(-self.angles, -phi))
        if k < len(self.angles) and self.angles[k] == phi:
            return self.states[k]
        first = min(max(k - 2, 0), max(len(self.angles) - 4, 0))
        nodes = range(first, min(first + 4, len(self.angles)))
        total = torch.zeros_like(self.end)
        for i in nodes:
            others = [(phi - self.angles[j]) / (self.angles[i] - self.angles[j]) for j in nodes if j != i]
            total.add_(self.states[i], alpha=float(np.prod(others)))
        return total

    @functools.cached_property
    def moments(self) -> Moments | None:
        """Those of the features of its samples."""
        return None if self.features is None else Moments(self.features, self.end)

    def measured(self, ends: Tensor) -> Measured:
        """The errors of samples, and the Fréchet distance of their features to second order.

        Raises:
            UsageError: the distance is not a tensor (N,), or the features are not numbers (N, D).
        """
        found = self.distances(ends)
        if self.moments is None:
            return Measured(found)
        with torch.no_grad():
            return Measured(found, float(self.moments.residual(ends).square().sum()))

    def distances(self, ends: Tensor) -> np.ndarray:
        """The distances of samples from the teacher's, (N,) float64.

        Raises:
            UsageError: the distance is not a tensor (N,), or a number is negative.
        """
        with torch.no_grad():
            found = checked(self.distance(ends, self.end), len(ends)).double().cpu().numpy()
        if (found < -ROUNDING).any():
            raise UsageError(f"distance must return numbers of 0 or more, not {found.min():.4g}")
        return np.maximum(found, 0.0)


def checked(distances: Any, count: int) -> Tensor:
    """What a distance returned, if it is a tensor (N,) of real numbers; else a UsageError."""
    if not isinstance(distances, Tensor) or distances.shape != (count,):
        found = tuple(distances.shape) if isinstance(distances, Tensor) else type(distances).__name__
        raise UsageError(f"distance must return a tensor of shape {(count,)}, one number for each sample, not {found}")
    if not distances.is_floating_point():
        raise UsageError(f"distance must return real numbers, not a tensor of {distances.dtype}")
    return distances
