"""Distances between two sets of feature vectors, in float64."""

from __future__ import annotations

import numpy as np

from ..errors import UsageError


def gaussian_statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and unbiased covariance (D, D) of features (N, D)."""
    if features.ndim != 2 or len(features) < 2:
        raise UsageError(f"statistics need two or more feature vectors (N, D), not shape {features.shape}")
    features = features.astype(np.float64)
    return features.mean(0), np.cov(features, rowvar=False)


def frechet_distance(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) between two Gaussians (Heusel et al. 2017, eq. 6).

    It is the squared 2-Wasserstein distance, in squared feature units. The trace of the square root is computed from
    the eigenvalues of the symmetric matrix C1^(1/2) C2 C1^(1/2), which stay real for rank-deficient covariances.
    """
    (m1, c1), (m2, c2) = first, second
    values, axes = np.linalg.eigh(c1)
    root = (axes * np.sqrt(np.maximum(values, 0))) @ axes.T
    cross = np.linalg.eigvalsh(root @ c2 @ root)
    trace = np.trace(c1) + np.trace(c2) - 2 * np.sqrt(np.maximum(cross, 0)).sum()
    return float(np.square(m1 - m2).sum() + max(trace, 0.0))


def sliced_wasserstein(first: np.ndarray, second: np.ndarray, projections: int = 256, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance between two sets (N, D) and (M, D), in feature units (Bonneel et al. 2015).

    The root mean square, over `projections` random directions, of the distance between the quantile functions of the
    two projected sets, evaluated at the midpoint levels of the smaller set.
    """
    directions = np.random.default_rng(seed).standard_normal((projections, first.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    count = min(len(first), len(second))
    levels = (np.arange(count) + 0.5) / count
    a, b = (_quantiles(np.sort(s.astype(np.float64) @ directions.T, axis=0), levels) for s in (first, second))
    return float(np.sqrt(np.square(a - b).mean()))


def _quantiles(ordered: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Evaluate the quantile functions of columns of sorted values, linear between midpoints, at `levels`."""
    if len(ordered) == len(levels):
        return ordered
    place = np.clip(levels * len(ordered) - 0.5, 0, len(ordered) - 1)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, len(ordered) - 1)
    weight = (place - low)[:, None]
    return np.asarray((1 - weight) * ordered[low] + weight * ordered[high])
