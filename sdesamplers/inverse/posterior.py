"""Posterior sampling as a wrapper around a model: the prior's prediction, guided by a measurement of the sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import function, name_of, number, one_of_types, shown
from ..errors import UsageError
from ..models.base import Model, ModelAround, Output
from ..models.calling import isolated
from ..models.conditions import as_plain_data, take_rows
from ..models.guidance import wide
from ..processes.predictions import clean_map
from ..processes.scalars import Scalar, as_scalar, expand
from ..processes.sde import GaussianProcess
from ..public import public
from .operators import LinearOperator

METHODS = ("dps", "pigdm", "projection")

PAPER_STEPS, PAPER_BETAS, PAPER_SIZE = 1000, (0.1, 20.0), 3 * 256 * 256
"""The setting of the step size of Chung et al. (2023): steps and (beta_min, beta_max) of Ho et al.'s schedule in
continuous time (Song et al. 2021, eq. 32), and the dimension of an image."""


@dataclass(frozen=True)
class Measured:
    """The condition of a posterior's model: the prior's own condition and measurements, for the same samples."""

    condition: Any
    y: Tensor

    def __getitem__(self, rows: Any) -> Measured:
        with torch.inference_mode(False):  # autograd cannot use tensors created in inference mode
            index = (
                torch.from_numpy(rows).to(self.y.device, non_blocking=True) if isinstance(rows, np.ndarray) else rows
            )
            return Measured(take_rows(self.condition, rows), self.y[index])

    def tolist(self) -> Any:
        """The prior's condition, for records."""
        return as_plain_data(self.condition)


@public
class PosteriorSampling(ModelAround):
    """A model of p(x | y) for y = A x + noise_std z, from a model of p(x), for any sampler.

    Its score is grad log p_t(x) + G, where G approximates grad log p_t(y | x) using x0 = E[x0 | x_t]. Adding G to the
    score adds sigma^2/alpha G to x0, for any process. Let r = sigma/alpha, e = y - A x0, J the Jacobian dx0/dx_t, and
    v = data_std^2 r^2 / (data_std^2 + r^2), the assumed variance of x0 given x_t.

    - "dps" (Chung et al. 2023, eq. 16 and algorithm 1): G = 2 zeta' kappa(r) J^T A^T e / sqrt(|e|^2 + m noise_std^2)
      for m measurements. Algorithm 1 takes x - zeta' / |e| grad |e|^2 after each of 1000 ancestral steps. An ancestral
      step turns a change G of the score into a change beta_i G of x, so kappa = 1/beta_i at the step of the paper's
      schedule with this r: kappa = 1000 / sqrt(0.1^2 + 2 (20 - 0.1) log(1 + r^2)). So the guidance does not depend on
      the number of steps, and agrees with algorithm 1 at the paper's 1000. The steps of an ODE sampler turn G into
      beta_i G / 2, so there the effect is half as large. m noise_std^2 is not in the paper: without it the guidance has
      a kink at e = 0, and near the end long steps would jump across it. zeta' = scale sqrt(D / (3 256 256)) for D
      numbers in a sample, since lengths grow as sqrt(D): at the paper's image size, scale is the paper's zeta'.
      A may be any differentiable function. The result is not a sample of the posterior: e is pulled to 0 whatever the
      noise.
    - "pigdm" (Song, Vahdat, Mardani & Kautz 2023, eq. 7-8): G = J^T A^T (v A A^T + noise_std^2 I)^-1 e, exact if x0
      given x_t is N(x0, v I), that is for Gaussian data with covariance data_std^2 I. `scale` multiplies G. (Their
      algorithm 1 also weights G by coefficients of the DDIM step, which have no counterpart in a score.)
    - "projection": x0 becomes x0 + v A^T (v A A^T + noise_std^2 I)^-1 e, its mean given y under N(x0, v I), exact for
      the same data as "pigdm". With noise_std = 0 this sets A x0 = y (Wang, Yu & Zhang 2023, DDNM). With a `Mask` as
      well, `ddim`, `ddpm` and `repaint` keep the known part of the state at alpha y + sigma z, the distribution that
      RePaint gives it (Lugmayr et al. 2022, eq. 8a, with a new z at each step). It needs no derivative of the model,
      which takes most of the other methods' time and memory.

    At alpha = 0, the very start of flow models, "dps" and "pigdm" do not change the prediction: sigma^2/alpha J is
    infinity times 0 there. Process, prediction type, shape, dtype and device are the prior's. An evaluation counts
    once in NFE. To combine with guidance, wrap the guided model. Measurements of decoded latents are not supported.

    Args:
        model: the prior, on a Gaussian process.
        operator: A; for "dps" also any differentiable function from (N, *shape) to (N, *measured).
        y: one measurement (*measured) for all samples, or one per sample (N, *measured).
        noise_std: standard deviation of the measurement noise, in units of y.
        method: one of `METHODS`.
        scale: of the guidance; see above. "projection" has no scale.
        data_std: standard deviation of the data, for "pigdm" and "projection"; 1 in the paper. If entries are
            correlated, as in images, "pigdm" needs the standard deviation along the main direction, or long steps
            overshoot.

    Raises:
        UsageError: an argument out of its range, a measurement of the wrong shape or type, or a model without alpha and
            sigma.
    """

    pure = True

    def __init__(
        self,
        model: Model,
        operator: LinearOperator | Callable[[Tensor], Tensor],
        y: Tensor,
        noise_std: float = 0.0,
        method: str = "dps",
        *,
        scale: float = 1.0,
        data_std: float = 1.0,
    ) -> None:
        if not isinstance(model, Model) or isinstance(model, PosteriorSampling):
            raise UsageError(f"model must be a Model that is not conditioned on a measurement yet, not {model!r}")
        name_of("method", method)
        if operator is None:
            raise UsageError("operator must be a LinearOperator or a function of x0, not None")
        if not isinstance(operator, LinearOperator):
            function("operator", operator, "x0, or a LinearOperator")
        if method not in METHODS:
            raise UsageError(f"method must be {', '.join(map(repr, METHODS[:-1]))} or {METHODS[-1]!r}, not {method!r}")
        noise_std, scale = number("noise_std", noise_std), number("scale", scale)
        data_std = number("data_std", data_std)
        if not 0 <= noise_std < math.inf:
            raise UsageError(f"noise_std must be 0 or more and finite, not {noise_std}")
        if not (0 <= scale < math.inf and 0 < data_std < math.inf):
            raise UsageError(f"scale must be 0 or more and data_std more than 0, not {scale} and {data_std}")
        if method == "projection" and scale != 1:
            raise UsageError("method 'projection' has no scale: it computes the mean of x0 given the measurement")
        if method != "dps" and not isinstance(operator, LinearOperator):
            raise UsageError(f"method {method!r} needs a LinearOperator; 'dps' takes any differentiable function")
        self._process: GaussianProcess = model.gaussian
        super().__init__(model)
        self.operator, self.method = operator, method
        self.noise_std, self.scale, self.data_std = float(noise_std), float(scale), float(data_std)
        self._measure = operator.apply if isinstance(operator, LinearOperator) else operator
        self.y = self._checked(y)

    def _checked(self, y: Tensor) -> Tensor:
        """Return the measurement as (1 or N, *measured), float32 at least, on the model's device."""
        seen = self._measure(torch.zeros(1, *self.shape, device=self.device))
        measured = tuple(one_of_types("the result of operator", seen, Tensor, "a tensor (N, ...)").shape[1:])
        try:
            y = torch.as_tensor(y)
        except (TypeError, ValueError, RuntimeError):
            raise UsageError(f"y must be a tensor of numbers, not {shown(y)}") from None
        batched = y[None] if tuple(y.shape) == measured else y
        if tuple(batched.shape[1:]) != measured or not len(batched) or not y.is_floating_point():
            raise UsageError(
                f"y must be floating-point numbers of shape {measured}, or (N, *{measured}) with one measurement per "
                f"sample, not {y.dtype} of shape {tuple(y.shape)}"
            )
        return batched.to(self.device, torch.promote_types(y.dtype, torch.float32))

    def condition_for(self, condition: Any, count: int) -> Any:
        if isinstance(condition, Measured):  # from an earlier result
            condition = condition.condition
        return Measured(self.model.condition_for(condition, count), self._measurements(count))

    def unconditional(self, count: int) -> Any:
        return Measured(self.model.unconditional(count), self._measurements(count))

    def _measurements(self, count: int) -> Tensor:
        """Return one measurement for each of `count` samples."""
        if len(self.y) not in (1, count):
            raise UsageError(
                f"there are {len(self.y)} measurements for {count} samples; give one measurement, or one per sample"
            )
        return self.y.expand(count, *self.y.shape[1:])

    def predict(self, x: Tensor, t: Scalar, condition: Any = None) -> Tensor | Output:
        given = condition if isinstance(condition, Measured) else Measured(condition, self._measurements(len(x)))
        graph = torch.is_grad_enabled()  # keep the graph if the caller differentiates through the run
        # Leave the caller's inference mode: autograd cannot use tensors created in it.
        with torch.inference_mode(False), torch.set_grad_enabled(graph or self.method != "projection"):
            z = x if graph else x.detach().clone()
            if not z.requires_grad and self.method != "projection":
                z = z.detach().requires_grad_()
            output = isolated(self.model)(z, t, given.condition)
            value = wide(output)
            a, b, back = clean_map(self.prediction, self._process, t)
            x0 = expand(a, value) * z.to(value.dtype) + expand(b, value) * value
            shift = expand(back, value) * self._shift(x0, z, t, given.y.to(x0.dtype), graph)
        value, shift = (value, shift) if graph else (value.detach(), shift.detach())
        if not isinstance(output, Output):
            return value + shift
        unguided = None if output.unguided is None else output.unguided.detach() + shift
        return Output(value + shift, unguided)

    def _shift(self, x0: Tensor, z: Tensor, t: Scalar, y: Tensor, graph: bool) -> Tensor:
        """The change of x0 caused by the measurement."""
        alpha, sigma = (np.asarray(v, dtype=np.float64) for v in self._process.schedule(t)[:2])
        seen = self._measure(x0)
        error = y - (seen if graph else seen.detach())
        if self.method == "dps":
            # The clamp avoids 0/0 if the error is exactly 0, and has no other effect.
            energy = error.flatten(1).square().sum(1) + error[0].numel() * self.noise_std**2
            length = energy.clamp(min=torch.finfo(error.dtype).tiny).sqrt().view(-1, *(1,) * (error.dim() - 1))
            zeta = self.scale * math.sqrt(math.prod(self.shape) / PAPER_SIZE)
            outputs, weights, size = seen, error / length, as_scalar(2 * zeta * kappa(alpha, sigma))
        else:
            assert isinstance(self.operator, LinearOperator)
            variance = as_scalar((self.data_std * sigma) ** 2 / ((self.data_std * alpha) ** 2 + sigma**2))
            pull = self.operator.adjoint(self.operator.solve(error, variance, self.noise_std**2))
            if self.method == "projection":
                return expand(variance, x0) * pull
            outputs, weights, size = x0, pull, self.scale
        (guidance,) = torch.autograd.grad(outputs, z, weights, create_graph=graph)
        per_score = np.divide(sigma**2, alpha, out=np.zeros(np.broadcast(alpha, sigma).shape), where=alpha != 0)
        return expand(as_scalar(size * per_score), x0) * guidance.to(x0.dtype)


def kappa(alpha: np.ndarray, sigma: np.ndarray) -> Any:
    """1 / beta_i at the step of the paper's schedule with the same sigma/alpha; 0 if alpha = 0.

    The variance-preserving process with linear beta has log(1 + r^2) = B(t), the integral of beta, and
    beta = sqrt(beta_min^2 + 2 (beta_max - beta_min) B); a step of 1/1000 has beta_i = beta / 1000.
    """
    low, high = PAPER_BETAS
    with np.errstate(divide="ignore"):
        integral = np.log1p(np.square(np.divide(sigma, alpha)))
    return PAPER_STEPS / np.sqrt(low**2 + 2 * (high - low) * integral)
