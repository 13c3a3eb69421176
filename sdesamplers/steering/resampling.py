"""Resampling: ancestors for K particles, such that particle k has K w_k descendants on average.

Each scheme reads a weight's descendants from the cumulative weights C_k = w_1 + ... + w_k: position p in (0, 1) belongs
to the particle k with C_{k-1} < p <= C_k. They differ in the K positions (Douc, Cappé & Moulines 2005).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def multinomial(weights: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Independent positions: u_j (Gordon, Salmond & Smith 1993)."""
    return _at(weights, uniforms)


def stratified(weights: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """One position in each interval of length 1/K: (j + u_j) / K (Kitagawa 1996)."""
    return _at(weights, (np.arange(len(weights)) + uniforms) / len(weights))


def systematic(weights: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Equally spaced positions: (j + u_0) / K (Carpenter, Clifford & Fearnhead 1999).

    A particle has K w_k descendants, rounded up or down.
    """
    return _at(weights, (np.arange(len(weights)) + uniforms[0]) / len(weights))


def residual(weights: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """floor(K w_k) descendants each, and multinomial resampling for the rest (Liu & Chen 1998)."""
    count = len(weights)
    expected = count * weights
    # A weight such as 1/3, times 3, may round to just below a whole number.
    copies = np.floor(expected * (1 + 1e-12)).astype(np.int64)
    certain = np.repeat(np.arange(count), copies)[:count]
    missing = count - len(certain)
    if not missing:
        return certain
    rest = np.maximum(expected - copies, 0.0)
    return np.concatenate([certain, _at(rest / rest.sum(), uniforms[:missing])])


Scheme = Callable[[np.ndarray, np.ndarray], np.ndarray]

SCHEMES: dict[str, Scheme] = {
    "systematic": systematic,
    "stratified": stratified,
    "multinomial": multinomial,
    "residual": residual,
}
"""Name -> function of normalised weights (K,) and uniform numbers (K,) that returns ancestors (K,)."""


def _at(weights: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The particles to which positions in (0, 1) belong."""
    cumulative = np.cumsum(weights)
    found = np.searchsorted(cumulative / cumulative[-1], positions, side="left")
    return np.minimum(found, len(weights) - 1)


def settled(ancestors: np.ndarray) -> np.ndarray:
    """The same ancestors in an order in which each particle that survives keeps its place."""
    count = len(ancestors)
    spare = np.bincount(ancestors, minlength=count) - 1
    placed = np.arange(count)
    placed[spare < 0] = np.repeat(placed, np.maximum(spare, 0))
    return placed
