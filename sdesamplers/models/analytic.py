"""Models with exact scores: Gaussian, Gaussian mixture, and Neal's funnel for Langevin dynamics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import numbers, one_of_types, whole
from ..errors import UsageError
from ..processes.predictions import prediction_type, row
from ..processes.scalars import Scalar, as_scalar, expand
from ..processes.sde import GaussianProcess
from ..public import public
from .base import Model, Output


@public
class MixtureModel(Model):
    """A Gaussian mixture noised by a process: score, epsilon and x0 in closed form, in float64 by default.

    At time t component k is N(alpha m_k, alpha^2 C_k + sigma^2 I), so its posterior mean of x0 is linear in x. The
    posterior mean of the mixture is the average of these, weighted by the responsibilities.

    Args:
        weights: (K,) positive numbers; they are normalised.
        means: (K, D).
        covariances: (K,) variances, (K, D) diagonals or (K, D, D) matrices.
        process: the Gaussian process.
        prediction: the prediction type of the model, any of `PREDICTIONS`.
    """

    pure = True

    def __init__(
        self,
        weights: Any,
        means: Any,
        covariances: Any,
        process: GaussianProcess,
        *,
        prediction: str = "epsilon",
        dtype: torch.dtype = torch.float64,
        name: str = "mixture",
    ) -> None:
        self.process: GaussianProcess = one_of_types(
            "process", process, GaussianProcess, "a GaussianProcess such as VP()"
        )
        self.prediction = prediction_type(prediction)
        self.dtype, self.name = dtype, name
        self.means = numbers("means", means, "(components, dimensions)", dims=(0, 1, 2, 3))
        if self.means.dim() != 2:
            raise UsageError(f"means must have shape (components, dimensions), not {tuple(self.means.shape)}")
        count, dimension = self.means.shape
        self.shape = (dimension,)
        w = numbers("weights", weights, f"({count},)", dims=(0, 1, 2))
        if w.shape != (count,) or not bool((w > 0).all()):
            raise UsageError(f"weights must be {count} positive numbers, one per mean")
        self.weights = w / w.sum()
        c = numbers("covariances", covariances, "(K,)", "(K, D)", "(K, D, D)", dims=(0, 1, 2, 3))
        if c.shape == (count,):
            c = c[:, None].expand(count, dimension)
        if c.shape == (count, dimension):
            c = torch.diag_embed(c)
        if c.shape != (count, dimension, dimension):
            raise UsageError(f"covariances of shape {tuple(c.shape)} do not fit {count} means of dimension {dimension}")
        self.covariances = c
        variances, self._axes = torch.linalg.eigh(c)
        if not bool((variances >= -1e-12).all()):
            raise UsageError("covariances must be positive semi-definite")
        self._variances = variances.clamp(min=0)

    def _parts(self, x: Tensor, t: Scalar) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Per component: residual and variance along its principal axes (N, K, D), log-weights (N, K); and alpha."""
        t = as_scalar(t)
        alpha, sigma = (expand(as_scalar(f(t)), x) for f in (self.process.alpha, self.process.sigma))
        alpha, sigma = (torch.as_tensor(v, dtype=torch.float64).reshape(-1, 1, 1) for v in (alpha, sigma))
        residual = x.double()[:, None] - alpha * self.means
        residual = torch.einsum("nkd,kde->nke", residual, self._axes)
        variance = alpha**2 * self._variances + sigma**2
        log = -0.5 * (residual.square() / variance + torch.log(2 * math.pi * variance)).sum(-1) + self.weights.log()
        return residual, variance, log, alpha

    def log_prob(self, x: Tensor, t: Scalar) -> Tensor:
        """log p_t(x) in nats, (N,)."""
        return self._parts(x, t)[2].logsumexp(1)

    def score(self, x: Tensor, t: Scalar) -> Tensor:
        """grad log p_t(x), (N, D)."""
        residual, variance, log, _ = self._parts(x, t)
        pull = torch.einsum("nke,kde->nkd", residual / variance, self._axes)
        return -(log.softmax(1)[..., None] * pull).sum(1)

    def posterior_mean(self, x: Tensor, t: Scalar) -> Tensor:
        """E[x0 | x_t = x], (N, D)."""
        residual, variance, log, alpha = self._parts(x, t)
        shift = torch.einsum("nke,kde->nkd", residual * alpha * self._variances / variance, self._axes)
        return (log.softmax(1)[..., None] * (self.means + shift)).sum(1)

    def predict(self, x: Tensor, t: Scalar, condition: Any = None) -> Tensor | Output:
        t = as_scalar(t)
        score = self.score(x, t)
        if self.prediction == "score":
            return score.to(x.dtype)
        # x0 and eps are both known, so the prediction is a linear combination without division by alpha or sigma.
        names = "alpha", "sigma", "d_alpha", "d_sigma"
        alpha, sigma, d_alpha, d_sigma = (as_scalar(getattr(self.process, name)(t)) for name in names)
        on_x0, on_eps = (expand(c, score) for c in row(self.prediction, (alpha, sigma, d_alpha, d_sigma)))
        sigma = expand(sigma, score)
        return (on_x0 * self.posterior_mean(x, t) - on_eps * sigma * score).to(x.dtype)

    def sample_data(self, count: int, generator: torch.Generator, t: Scalar = 0.0) -> Tensor:
        """Return exact draws of x_t, (count, D), float64; t = 0 draws data if the process has sigma = 0 there."""
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        normal = torch.randn(count, self.shape[0], dtype=torch.float64, generator=generator)
        spread = torch.einsum("nd,ned->ne", normal * self._variances[which].sqrt(), self._axes[which])
        noise = torch.randn(count, self.shape[0], dtype=torch.float64, generator=generator)
        return self.process.perturb(self.means[which] + spread, t, noise)


@public
class GaussianModel(MixtureModel):
    """A single Gaussian N(mean, covariance), for which all marginals and the flow map are known.

    Args:
        mean: (D,).
        covariance: a variance, (D,) or (D, D).
    """

    def __init__(self, mean: Any, covariance: Any, process: GaussianProcess, **options: Any) -> None:
        options.setdefault("name", "gaussian")
        mean = numbers("mean", mean, "(D,)", dims=(1,))[None]
        covariance = numbers("covariance", covariance, "()", "(D,)", "(D, D)", dims=(0, 1, 2))[None]
        super().__init__([1.0], mean, covariance, process, **options)


@public
def grid_mixture(process: GaussianProcess, dimension: int = 2, **options: Any) -> MixtureModel:
    """Return a fixed, asymmetric mixture of five components for tests, docs and comparisons."""
    dimension = whole("dimension", dimension)
    generator = torch.Generator().manual_seed(5)
    means = 0.9 * torch.randn(5, dimension, dtype=torch.float64, generator=generator)
    factors = 0.25 * torch.randn(5, dimension, dimension, dtype=torch.float64, generator=generator)
    covariances = factors @ factors.mT / dimension + 0.01 * torch.eye(dimension, dtype=torch.float64)
    weights: Sequence[float] = (0.3, 0.25, 0.2, 0.15, 0.1)
    return MixtureModel(weights, means, covariances, process, **options)
