"""The weights of particles: potentials, effective sample size, resampling and the normalising constant."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..path.noise import uniforms
from .resampling import Scheme, multinomial, settled

POTENTIALS = ("difference", "max", "sum")
"""log G_k, for rewards r_1, ..., r_k of a particle: scale times r_k - r_{k-1}, max(r_1, ..., r_k), or their sum."""


@dataclass
class Potential:
    """The potentials G_k of particles, whose product is exp(scale reward) at the end (Singhal et al. 2025, section 3).

    Args:
        kind: one of `POTENTIALS`.
        scale: of the reward.
        shape: (N, K).

    Attributes:
        total: (N, K) the sum of all log G_k so far.
    """

    kind: str
    scale: float
    shape: tuple[int, int]
    total: np.ndarray = field(init=False)
    _known: np.ndarray = field(init=False)  # the largest reward so far, or the sum of rewards

    def __post_init__(self) -> None:
        self.total = np.zeros(self.shape)
        self._known = np.full(self.shape, -np.inf) if self.kind == "max" else np.zeros(self.shape)

    def next(self, rewards: np.ndarray) -> np.ndarray:
        """log G_k for the rewards (N, K) of the next evaluation."""
        if self.kind == "difference":
            return self.last(rewards)
        self._known = np.maximum(self._known, rewards) if self.kind == "max" else self._known + rewards
        gain: np.ndarray = self.scale * self._known
        self.total = self.total + gain
        return gain

    def last(self, rewards: np.ndarray) -> np.ndarray:
        """log G of the samples, with rewards (N, K): what is missing to exp(scale reward)."""
        gain: np.ndarray = self.scale * rewards - self.total
        self.total = self.total + gain
        return gain

    def take(self, ancestors: np.ndarray) -> None:
        """Replace particle (i, k) by (i, ancestors[i, k])."""
        self.total = np.take_along_axis(self.total, ancestors, 1)
        self._known = np.take_along_axis(self._known, ancestors, 1)


@dataclass
class Weights:
    """The weights of N independent groups of K particles, and what they estimate.

    The product of the mean weights of all resamplings and the final mean weight is an unbiased estimate of the
    normalising constant, for each scheme and also if the effective sample size decides when to resample (Del Moral
    2004, section 7.4; Whiteley, Lee & Heine 2016).

    Args:
        potential: of the particles.
        scheme: the resampling scheme.
        threshold: resample if the effective sample size is below this fraction of K; always from 1 on, never at 0.
        keys: (seed, index) of each group, on which its resampling depends.

    Attributes:
        log_weights: (N, K) since the last resampling, not normalised.
        log_normalizer: (N,) the logarithm of the product of the mean weights of all resamplings.
        ess: [(N,)], effective sample size at each reweighting, before resampling.
        ancestors: [(N, K)], positions of the ancestors at each resampling; 0 to K - 1 for a group without.
    """

    potential: Potential
    scheme: Scheme
    threshold: float
    keys: list[tuple[int, int]]
    log_weights: np.ndarray = field(init=False)
    log_normalizer: np.ndarray = field(init=False)
    ess: list[np.ndarray] = field(default_factory=list)
    ancestors: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log_weights = np.zeros(self.potential.shape)
        self.log_normalizer = np.zeros(len(self.keys))

    def add(self, log_weights: np.ndarray) -> None:
        """Multiply the weights by others, (N, K) logarithms."""
        self.log_weights = self.log_weights + log_weights

    def resample(self, rewards: np.ndarray, position: int) -> np.ndarray | None:
        """Reweight the particles by their rewards (N, K) and resample the groups that need it.

        Args:
            rewards: at this evaluation.
            position: the number of the evaluation, which keys the random numbers.

        Returns:
            (N, K) the position, in its group, from which each particle continues; None if no group was resampled.
        """
        self.add(self.potential.next(rewards))
        weights, means = normalised(self.log_weights)
        ess = effective_size(weights)
        self.ess.append(ess)
        count = weights.shape[1]
        chosen = np.flatnonzero((ess < self.threshold * count) | (self.threshold >= 1))
        ancestors = np.tile(np.arange(count), (len(weights), 1))
        for group in chosen:
            numbers = uniforms(*self.keys[group], position, count)
            ancestors[group] = settled(self.scheme(weights[group], numbers))
        self.log_weights[chosen] = 0.0
        self.log_normalizer[chosen] += means[chosen]
        self.ancestors.append(ancestors)
        if not len(chosen):
            return None
        self.potential.take(ancestors)  # log_weights need not follow: in resampled groups they are equal
        return ancestors

    def finish(self, rewards: np.ndarray) -> np.ndarray:
        """Reweight the samples by their rewards (N, K); returns the logarithms of the normalised weights, (N, K)."""
        self.add(self.potential.last(rewards))
        weights, means = normalised(self.log_weights)
        self.ess.append(effective_size(weights))
        self.log_normalizer = self.log_normalizer + means
        count = weights.shape[1]
        final: np.ndarray = self.log_weights - means[:, None] - np.log(count)
        return final

    def drawn(self, log_weights: np.ndarray, position: int) -> np.ndarray:
        """One particle of each group, drawn with the final weights: (N,)."""
        rows = zip(np.exp(log_weights), self.keys, strict=True)
        return np.concatenate([multinomial(weights, uniforms(*key, position, 1)) for weights, key in rows])


def normalised(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (N, K) that add up to 1, and the logarithm of the mean of the weights before, (N,)."""
    largest = log_weights.max(axis=1, keepdims=True)
    weights = np.exp(log_weights - largest)
    means = weights.mean(axis=1)
    return weights / weights.sum(axis=1, keepdims=True), np.log(means) + largest[:, 0]


def effective_size(weights: np.ndarray) -> np.ndarray:
    """1 / sum w_k^2, from 1 to K (Kong, Liu & Wong 1994), of normalised weights (N, K)."""
    sizes: np.ndarray = 1.0 / np.square(weights).sum(axis=1)
    return sizes
