"""`Transition`: one step of a sampler as a Gaussian, with its outcome and exact densities."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checks import choice
from ..errors import UsageError
from ..processes.scalars import Scalar, expand
from ..public import public
from .points import Point

Reduction = Literal["sum", "mean"]
REDUCTIONS = ("sum", "mean")


class Draw(NamedTuple):
    """A draw of `Path.draw`: the transition from `now` to `then`, in the path's coordinates."""

    mean: Tensor
    std: Scalar
    outcome: Tensor
    now: Point[Any]
    then: Point[Any]


@public
@dataclass(frozen=True, eq=False)
class Transition:
    """The transition to a sampler's next state, N(mean, std^2 I), with its outcome; in the model's coordinates.

        transition = stepper.step(network(stepper.x, stepper.t))
        old = transition.log_prob()

    Attributes:
        sample: (N, *shape) the outcome: the next state, or the finished sample.
        mean: (N, *shape) the mean, a function of the states and the network's outputs so far, with their gradients if
            the run keeps them. For a step without noise it is the next state.
        std: the standard deviation of each element: a number, or a tensor (N, 1, ..., 1) if it differs between the
            samples; 0 for a step without noise.
        dt: the length of the step on the path's clock; negative if the clock runs towards 0, as in flow models.
    """

    sample: Tensor
    mean: Tensor
    std: float | Tensor
    dt: float

    @property
    def is_stochastic(self) -> bool:
        """True if the step adds noise."""
        return isinstance(self.std, Tensor) or self.std > 0

    def log_prob(self, reduction: Reduction = "sum") -> Tensor:
        """The log-density of the outcome, (N,), float64, in nats, summed or averaged over the elements of a sample.

        The outcome counts as a constant, so that gradients are those of the policy gradient. A step without noise has
        log-probability 0.

        Args:
            reduction: "sum" for the density; "mean", as some trainers use it, is the sum divided by the number of
                elements.

        Raises:
            UsageError: another reduction.
        """
        choice("reduction", reduction, REDUCTIONS)
        if not self.is_stochastic:
            return 0.0 * self.mean.double().flatten(1).sum(1)
        return _reduced(normal_log_prob(self.sample.detach(), self.mean, self.std), self.mean, reduction)

    def kl(self, other: Transition, reduction: Reduction = "sum") -> Tensor:
        """KL(self || other) of two transitions from the same states, (N,), float64, in nats.

            KL = D log(std'/std) + (D std^2 + |mean - mean'|^2) / (2 std'^2) - D/2

        With the same noise this is |mean - mean'|^2 / (2 std^2), the penalty of GRPO for flow models. It is 0 for steps
        without noise, as their log-probabilities are.

        Raises:
            UsageError: another reduction, other shapes, or only one of the two steps adds noise.
        """
        choice("reduction", reduction, REDUCTIONS)
        if self.mean.shape != other.mean.shape or self.is_stochastic != other.is_stochastic:
            raise UsageError(
                "kl compares the same step under two models, but these transitions have shapes "
                f"{tuple(self.mean.shape)} and {tuple(other.mean.shape)} and std {self.std} and {other.std}"
            )
        size, gap = self.mean[0].numel(), (self.mean.double() - other.mean.double()).flatten(1)
        if not self.is_stochastic:
            return 0.0 * gap.sum(1)
        ours, theirs = (_numbers(each, gap) for each in (self.std, other.std))
        value = size * (theirs / ours).log() + (size * ours**2 + gap.square().sum(1)) / (2 * theirs**2) - size / 2
        return _reduced(value, self.mean, reduction)


def _numbers(std: float | Tensor, like: Tensor) -> Tensor:
    """Standard deviations as (N,) or (1,) float64."""
    return std.double().flatten() if isinstance(std, Tensor) else like.new_tensor([std])


def _reduced(value: Tensor, like: Tensor, reduction: str) -> Tensor:
    return value if reduction == "sum" else value / max(1, like[0].numel() if len(like) else 1)


def normal_log_prob(x: Tensor, mean: Tensor, std: Scalar | Tensor) -> Tensor:
    """Return log N(x; mean, std^2 I) of each sample, in nats, shape (N,), accumulated in float64."""
    width = std if isinstance(std, Tensor) else expand(std, mean)
    residual = ((x - mean) / width).double().flatten(1)
    log_std = torch.log(width.double()).flatten() if isinstance(width, Tensor) else math.log(width)
    return -0.5 * residual.square().sum(1) - residual.shape[1] * (log_std + 0.5 * math.log(2 * math.pi))


def is_zero(std: Scalar) -> bool:
    """True if a standard deviation is the number 0."""
    return isinstance(std, float | int | np.floating) and std == 0
