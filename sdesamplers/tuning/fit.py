"""The weights of a solver table by least squares, step by step on the solver's own states.

Duan et al. 2023, section 3.2: the weights of a step are those that bring the states nearest to a teacher's at the next
point. Here they are corrections of a base method's weights, with a ridge towards 0, and samples far from the fit, such
as those that change mode, count less.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..processes.predictions import weighted_sum
from .field import Field, Teacher

REWEIGHTINGS = 4
"""Repetitions of a step's fit with weights of samples by their distance from it."""


def fit(
    field: Field,
    teacher: Teacher,
    angles: Sequence[float],
    network_angles: Sequence[float],
    base: Sequence[Sequence[float]],
    ridge: float,
    robustness: float = 1.0,
) -> tuple[list[list[float]], Tensor]:
    """Fit the weights of all steps on a grid; returns them and the ends, (N, *shape).

    Args:
        field: the model on the starts that are fitted.
        teacher: its states there.
        angles, network_angles: as in `SolverTable`.
        base: the base method's weights on this grid.
        ridge: relative to the mean square of each velocity.
        robustness: 0 for plain least squares; 1 if samples far from the fit count in inverse proportion to their
            distance, which serves the typical sample and not those that may end in another mode.
    """
    y = start = field.start
    velocities, weights = list[Tensor](), list[list[float]]()
    for n, row in enumerate(base):
        velocities.append(field(y, angles[n], network_angles[n]))
        plain = weighted_sum(row, [start, y, *velocities])
        change = solve(teacher.at(angles[n + 1]) - plain, [start, *velocities], ridge, robustness)
        weights.append([row[0] + change[0], row[1], *(np.asarray(row[2:]) + change[1:]).tolist()])
        y = weighted_sum(weights[-1], [start, y, *velocities])
    return weights, y


def solve(target: Tensor, features: Sequence[Tensor], ridge: float, robustness: float = 1.0) -> np.ndarray:
    """Coefficients c that minimise a robust sum of |target - sum_k c_k features_k|^2 over the samples."""
    columns = [feature.flatten(1).double() for feature in features]
    goal = target.flatten(1).double()
    # One Gram matrix for each sample, (N, K, K), so that samples can be weighted.
    stacked = torch.stack(columns, 1)
    gram = torch.bmm(stacked, stacked.transpose(1, 2)).cpu().numpy()
    moments = torch.bmm(stacked, goal[:, :, None])[..., 0].cpu().numpy()
    squares = goal.square().sum(1).cpu().numpy()
    share = np.ones(len(gram))
    found = np.zeros(len(columns))
    for _ in range(1 + REWEIGHTINGS if robustness else 1):
        matrix = np.einsum("n,nij->ij", share, gram)
        matrix[np.diag_indices_from(matrix)] *= 1 + ridge
        found = np.linalg.lstsq(matrix, share @ moments, rcond=1e-12)[0]
        left = squares - 2 * moments @ found + np.einsum("i,nij,j->n", found, gram, found)
        distance = np.sqrt(np.maximum(left, 0))
        share = (distance + np.median(distance) + 1e-30) ** -robustness
    return found
