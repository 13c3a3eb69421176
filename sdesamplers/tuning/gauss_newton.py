"""Damped Gauss-Newton steps for what determines a solver's samples: grid, times, weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .field import Teacher
from .moments import WEIGHT

ELEMENTS = 4096
"""Of each sample in the sums over elements: derivatives of larger samples would take gigabytes."""


@dataclass
class GaussNewton:
    """Steps with a damping that falls after a success and grows after a failure (Levenberg 1944).

    The damping term is damping / 2 * sum((change / largest)^2), in the units of the score: with a damping of 1 a step
    as large as allowed in one of the numbers must lower the linearised score by 1/2.

    Attributes:
        damping: the present one.
        least: the smallest damping.
        tries: number of dampings that are tried with the same derivatives.
    """

    damping: float = 1e-2
    least: float = 1e-6
    tries: int = 3

    def step(
        self,
        equations: tuple[np.ndarray, np.ndarray],
        largest: np.ndarray,
        improves: Callable[[np.ndarray], bool],
    ) -> tuple[bool, int]:
        """Try steps until one improves the solver; returns True if one does, and the number of trials.

        Args:
            equations: the matrix (K, K) and the derivative (K,) of the score by the numbers that are changed.
            largest: the largest changes of these numbers, (K,): the damping is raised until none is larger.
            improves: evaluates a change.
        """
        matrix, moment = equations
        matrix, moment = matrix * np.outer(largest, largest), moment * largest
        if not (np.isfinite(matrix).all() and np.isfinite(moment).all()):
            return False, 0
        for trial in range(1, self.tries + 1):
            while np.abs(change := self._change(matrix, moment)).max() > 1:
                self.damping *= 2
            better = improves(change * largest)
            self.damping = max(self.damping / 4, self.least) if better else 5 * self.damping
            if better:
                return True, trial
        return False, self.tries

    def _change(self, matrix: np.ndarray, moment: np.ndarray) -> np.ndarray:
        damped = matrix + self.damping * np.eye(len(moment))
        return -np.linalg.lstsq(damped, moment, rcond=1e-12)[0]


class Slopes:
    """The derivatives of samples, and of the moments of their features, by the numbers that are changed.

    Args:
        teacher: for the same starts.
        ends: the samples, (N, *shape).
    """

    def __init__(self, teacher: Teacher, ends: Tensor) -> None:
        self.moments, self.ends, self.residual = teacher.moments, flat(ends), flat(ends - teacher.end)
        self.apart = None if self.moments is None else self.moments.residual(ends)
        self.by_samples, self.by_moments = list[Tensor](), list[Tensor]()

    def add(self, moved: Tensor, difference: float) -> None:
        """Add the derivative by the next number, with the samples if it is larger by `difference`."""
        self.by_samples.append((flat(moved) - self.ends) / difference)
        if self.moments is not None and self.apart is not None:
            self.by_moments.append((self.moments.residual(moved) - self.apart) / difference)

    def equations(self) -> tuple[np.ndarray, np.ndarray]:
        """The normal equations of the score."""
        matrix, moment = normal_equations(self.residual, self.by_samples)
        if self.apart is not None:  # of WEIGHT / 2 log |apart|^2
            stacked, factor = torch.stack(self.by_moments, -1), WEIGHT / float(self.apart.square().sum())
            matrix += factor * (stacked.T @ stacked).numpy()
            moment += factor * (stacked.T @ self.apart).numpy()
        return matrix, moment


def normal_equations(residual: Tensor, slopes: Sequence[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """The means over elements of w S^T S / 2 and w S^T r / 2, (K, K) and (K,), for the slopes S and the residual r.

    With the weights w of the samples the second is the derivative of the score, the mean of log RMS and log median
    error, with half of the mean of log(r^2 + m), m the median of r^2, for the log median.
    """
    squares = residual.square().mean(1)
    weight = (1 / squares.mean() + 1 / (squares + squares.median())) / (2 * residual.numel())
    stacked = torch.stack(list(slopes), -1)
    matrix = torch.einsum("n,ndk,ndl->kl", weight, stacked, stacked)
    moment = torch.einsum("n,ndk,nd->k", weight, stacked, residual)
    return matrix.cpu().numpy(), moment.cpu().numpy()


def flat(samples: Tensor) -> Tensor:
    """Samples as rows, (N, D) in float64; of larger ones a fixed random choice of `ELEMENTS` elements."""
    rows = samples.flatten(1)
    if rows.shape[1] > ELEMENTS:
        chosen = torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(0))[:ELEMENTS]
        rows = rows[:, chosen.to(rows.device)]
    return rows.double()
