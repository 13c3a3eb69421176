"""Twisted proposals: transitions whose mean follows the gradient of the reward, with the weights that correct it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..path.points import Point
from ..processes.scalars import Scalar


class Twist:
    """Changes the noise of the transitions that follow an evaluation; the `proposal` of a `Ledger`.

    The sampler's transition is N(mean, std^2 I). The proposal is N(mean + std^2 g, std^2 I), where g is the gradient of
    the logarithm of the twisting function (Wu et al. 2023). It is known at the evaluated state x_t, and
    alpha_t / alpha_s converts it to the state x_s at the end of the step. So the noise z becomes z + s with
    s = std g, and the weight of the particle is multiplied by N(z + s; 0, I) / N(z; 0, I) = exp(-s z - |s|^2 / 2).

    Args:
        gradient: (M, *shape) of the logarithm of the twisting function by the evaluated state, in path coordinates.
        point: the point of the evaluation.

    Attributes:
        log_weights: (M,) float64, the logarithm of the product of the ratios so far.
    """

    def __init__(self, gradient: Tensor, point: Point[Any]) -> None:
        self._gradient, self._point = gradient, point
        self.log_weights = torch.zeros(len(gradient), dtype=torch.float64, device=gradient.device)

    def __call__(self, noise: Tensor, std: Scalar, then: Point[Any]) -> Tensor:
        """The noise z + s in the place of z (M, *shape)."""
        shift = self._gradient.to(noise) * (float(std) * self._point.alpha / then.alpha)
        s, z = shift.double().flatten(1), noise.double().flatten(1)
        self.log_weights -= (s * z).sum(1) + 0.5 * s.square().sum(1)
        return noise + shift
