"""The result of a steered run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..public import public
from ..sampling.result import Result


@public
@dataclass(eq=False, repr=False, kw_only=True)
class Steered(Result):
    """The result of `steer`: a `Result` with one sample for each of N groups of K particles, and the particles.

    E is the number of evaluations at which the particles were reweighted (`at=`). An average of f over the tilted
    distribution is sum_k weights[i, k] f(particles[i, k]), and over all groups with weights times
    exp(log_normalizer[i]); it is consistent, with a bias of order 1/K.

    Attributes:
        samples: (N, *shape) the selected particle of each group.
        selected: (N,) its position in the group.
        particles: (N, K, *shape) all final particles.
        rewards: (N, K) their rewards, float64.
        log_weights: (N, K) the logarithms of their weights, which add up to 1 in each group, float64.
        log_normalizer: (N,) the logarithms of estimates of E[exp(scale reward)] under the sampler's distribution,
            float64. The estimates themselves are unbiased, so average their exponentials.
        ess: (N, E + 1) effective sample size after each reweighting, before resampling; the last is the final one.
        reward_history: (N, E, K) the rewards at these evaluations, before resampling.
        ancestors: (N, E, K) the position from which each particle continued; 0 to K - 1 if the group was not resampled.
        steered_at: (E,) the numbers of these evaluations.
        steered_times: (E,) native times of these evaluations.
        nfe_per_sample: evaluations for one sample: K times the evaluations of a particle.
        indices: sample j is a function of (seed, indices[j]).
    """

    selected: Tensor
    particles: Tensor
    rewards: Tensor
    log_weights: Tensor
    log_normalizer: Tensor
    ess: Tensor
    reward_history: Tensor
    ancestors: Tensor
    steered_at: list[int]
    steered_times: np.ndarray

    def __repr__(self) -> str:
        count, ess = self.particles.shape[1], self.ess[:, -1].mean()
        made = f"{tuple(self.samples.shape)} of {self.model_name!r} by {self.recipe.sampler!r}"
        return f"<Steered {made}, {count} particles each, {ess:.1f} of them effective>"

    @property
    def weights(self) -> Tensor:
        """(N, K) the final weights, which add up to 1 in each group, float64."""
        return self.log_weights.exp()

    @property
    def best(self) -> Tensor:
        """(N, *shape) the particle of each group with the largest reward."""
        return self.particles[torch.arange(len(self.particles)), self.rewards.argmax(1)]

    @property
    def lineages(self) -> Tensor:
        """(N, E + 1, K) the positions of the ancestors of each final particle, at each reweighting and at the end."""
        count = self.particles.shape[1]
        rows = [torch.arange(count).expand(len(self.particles), count)]
        for ancestors in reversed(self.ancestors.unbind(1)):
            rows.append(ancestors.gather(1, rows[-1]))
        return torch.stack(rows[::-1], 1)
