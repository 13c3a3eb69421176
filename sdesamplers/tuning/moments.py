"""How far the features of samples are from those of a teacher's samples as distributions: mean and covariance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import shown
from ..errors import UsageError
from ..metrics.distances import frechet_distance, gaussian_statistics

Features = Callable[[Tensor], Any]
"""Feature vectors, (N, D), of samples (N, *shape)."""
WEIGHT = 0.3
"""Of half the logarithm of the Fréchet distance, beside the mean of the logarithms of RMS and median error."""
AXES = 64
"""The covariance is compared in this many principal axes of the teacher's features, the mean in all."""
SMALLEST = 1e-3
"""Of the variances there, relative to the mean of all: smaller ones are mostly chance."""


class Moments:
    """The mean and the covariance of the features of a teacher's samples.

    In the principal axes of the teacher's covariance, with the variances s_i, the Fréchet distance between Gaussians is

        |m - m'|^2 + sum_ij (C_ij - C'_ij)^2 / (2 (s_i + s_j))

    up to the third order in C - C', so that it is the square of a vector, whose derivatives Gauss-Newton steps need.

    Args:
        features: of samples.
        samples: the teacher's, (N, *shape).

    Raises:
        UsageError: the features are not finite numbers of shape (N, D).
    """

    def __init__(self, features: Features, samples: Tensor) -> None:
        self.features = features
        own = self.of(samples)
        if not bool(own.isfinite().all()):
            raise UsageError("the features of the teacher's samples are not finite")
        self.statistics = gaussian_statistics(own.detach().numpy())
        values, axes = np.linalg.eigh(self.statistics[1])
        values = np.maximum(values, SMALLEST * max(values.mean(), 1e-30))[-AXES:]
        self.axes = torch.from_numpy(np.ascontiguousarray(axes[:, -AXES:]))
        self.scale = torch.from_numpy(1 / np.sqrt(2 * np.add.outer(values, values)))
        self.target = self._vector(own).detach()

    def of(self, samples: Tensor) -> Tensor:
        """The features of samples, (N, D) in float64 on the CPU.

        Raises:
            UsageError: they are not numbers of this shape.
        """
        found = self.features(samples)
        try:
            made = found if isinstance(found, Tensor) else torch.from_numpy(np.asarray(found))
        except (TypeError, ValueError):  # an array of objects, lists of several lengths
            made = torch.zeros(0)
        if made.ndim != 2 or len(made) != len(samples) or made.shape[1] == 0 or made.is_complex():
            raise UsageError(f"features must return numbers of shape ({len(samples)}, D), not {shown(found)}")
        return made.to("cpu", torch.float64)

    def residual(self, samples: Tensor) -> Tensor:
        """The vector whose square is the Fréchet distance of samples from the teacher's, to second order."""
        return self._vector(self.of(samples)) - self.target

    def _vector(self, features: Tensor) -> Tensor:
        mean = features.mean(0)
        apart = (features - mean) @ self.axes
        covariance = apart.T @ apart / (len(features) - 1)
        return torch.cat([mean, (covariance * self.scale).flatten()])

    def distance(self, samples: Tensor) -> float:
        """The Fréchet distance of the features of samples from those of the teacher's samples."""
        return frechet_distance(gaussian_statistics(self.of(samples).numpy()), self.statistics)
