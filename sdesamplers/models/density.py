"""Densities as models: Langevin dynamics on a log-density of your own, and Neal's funnel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import device_of, function, number, shape_of, whole
from ..errors import UsageError
from ..processes.scalars import Scalar
from ..processes.sde import SDE, Prior
from ..public import public
from .base import Model, Output
from .calling import call, copied


@public
class LangevinSDE(SDE):
    """Overdamped Langevin dynamics on a density: dx = s(x)/2 dt + dw, which leaves the density invariant.

    It is its own time reversal, so any sampler of the reverse SDE simulates it: `euler-maruyama` is then the unadjusted
    Langevin algorithm with step size duration / steps. It has no closed-form marginals.

    Args:
        score: grad log p, a function of x (N, D).
        duration: length of the run, in units of t.
    """

    def __init__(self, score: Any, duration: float = 10.0) -> None:
        duration = number("duration", duration)
        if not duration > 0:
            raise UsageError(f"duration must be positive, not {duration}")
        self.score, self.t_max = score, float(duration)

    def drift(self, x: Tensor, t: Scalar) -> Tensor:
        half: Tensor = 0.5 * self.score(x)
        return half

    def diffusion(self, t: Scalar) -> Scalar:
        return np.ones_like(t) if isinstance(t, np.ndarray) else 1.0

    @property
    def prior(self) -> Prior:
        return Prior(1.0)


@public
class DensityModel(Model):
    """A model for Langevin samplers, defined by a log-density that is known up to a constant.

    Args:
        log_density: takes the state (N, *shape) and returns log p (N,) in nats; -inf outside of the support is allowed.
        shape: the shape of one sample.
        score: the gradient of log_density, a function of the state that returns (N, *shape); by default autograd's.
        duration: of the dynamics, on the clock of `LangevinSDE`.
        dtype, device: of the state that the functions receive.
    """

    prediction = "score"
    pure = True

    def __init__(
        self,
        log_density: Callable[[Tensor], Tensor],
        shape: Sequence[int],
        *,
        score: Callable[[Tensor], Tensor] | None = None,
        duration: float = 10.0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        name: str = "density",
    ) -> None:
        self.log_density, self.gradient = log_density, score
        function("log_density", log_density, "the state")
        function("score", score, "the state")
        self.shape, self.dtype, self.name = shape_of("shape", shape), dtype, name
        self.device = device_of("device", device)
        self.process = LangevinSDE(self._score, duration)

    def predict(self, x: Tensor, t: Scalar, condition: Any = None) -> Tensor | Output:
        return self._output(x)

    def _score(self, x: Tensor) -> Tensor:
        return self._output(x).value

    def _output(self, x: Tensor) -> Output:
        if self.gradient is not None:
            score = call(self.gradient, x.clone(), name=self.name)
            return Output(score, None, copied(self._checked(self.log_density(x.clone()), x)))
        with torch.inference_mode(False), torch.enable_grad():  # samplers run without autograd
            inside = x.clone().requires_grad_(True)
            value = self._checked(self.log_density(inside.clone()), x)
            (score,) = torch.autograd.grad(value.sum(), inside)
        return Output(score, None, value.detach().clone())

    def _checked(self, value: Tensor, x: Tensor) -> Tensor:
        if value.shape != (len(x),):
            raise UsageError(f"the log-density must have shape ({len(x)},), one per sample, not {tuple(value.shape)}")
        return value


@public
class FunnelModel(DensityModel):
    """Neal's funnel: v ~ N(0, scale^2), x_1..x_{D-1} ~ N(0, e^v), with state (v, x) (Neal 2003, section 8).

    The v component of its score is -v/scale^2 + sum x^2 e^{-v} / 2 - (D - 1)/2; the last term comes from the
    normalisation of p(x | v).
    """

    def __init__(self, dimension: int = 10, scale: float = 3.0, duration: float = 10.0) -> None:
        dimension, scale = whole("dimension", dimension), number("scale", scale)
        if dimension < 2 or scale <= 0:
            raise UsageError(f"the funnel needs dimension >= 2 and scale > 0, not {dimension} and {scale}")
        self.scale = scale
        super().__init__(self.log_prob, (dimension,), score=self.score, duration=duration, name="funnel")

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (N,)."""
        v, rest = x[:, 0], x[:, 1:]
        count = rest.shape[1]
        top = -0.5 * (v / self.scale) ** 2 - math.log(self.scale)
        body = -0.5 * rest.square().sum(1) * torch.exp(-v) - 0.5 * count * v
        return top + body - 0.5 * (count + 1) * math.log(2 * math.pi)

    def score(self, x: Tensor) -> Tensor:
        """grad log p(x), (N, D)."""
        v, rest = x[:, :1], x[:, 1:]
        precision = torch.exp(-v)
        top = -v / self.scale**2 + 0.5 * rest.square().sum(1, keepdim=True) * precision - 0.5 * rest.shape[1]
        return torch.cat([top, -rest * precision], 1)

    def sample_data(self, count: int, generator: torch.Generator) -> Tensor:
        """Return exact draws, (count, D), float64."""
        normal = torch.randn(count, *self.shape, dtype=torch.float64, generator=generator)
        v = self.scale * normal[:, :1]
        return torch.cat([v, torch.exp(0.5 * v) * normal[:, 1:]], 1)
