"""A network's prediction with its conversions, all by one linear map.

With x = alpha x0 + sigma eps, every prediction type is a row (p, q): output = p x0 + q eps. Two linearly independent
rows determine x0 and eps, so any type follows from x and any other type by solving a 2x2 system, `linear_map`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..processes.predictions import _ALIASES, Row, combine, linear_map, row, weighted_sum
from ..processes.scalars import Scalar
from ..public import public

if TYPE_CHECKING:
    from .points import Point


_ALIASES |= {"flow_prediction": "flow", "x_start": "sample"}


@public
class Prediction:
    """A model's prediction at one point, in whichever form a sampler needs.

    `x` is the state that was actually evaluated, in the path's coordinates; `x0`, `eps`, `score` and `velocity`
    (of x's shape) are linear in it and in the model's raw output, and are in the path's coordinates too.
    `unguided` is the prediction without guidance, if the model returns one (CFG++ needs it); `log_density` is the
    model's log-density (N,) in nats, if it has one (Metropolis corrections need it).
    """

    __slots__ = ("__dict__", "_row", "kind", "point", "raw", "x")

    unguided: Prediction | None = None
    log_density: Tensor | None = None

    def __init__(self, x: Tensor, point: Point[Any], raw: Tensor, kind: str) -> None:
        self.x, self.point, self.raw, self.kind = x, point, raw, kind
        self._row: Row | None = None

    def compose(self, x0: Scalar, eps: Scalar, *others: tuple[Prediction, float, float]) -> Tensor:
        """Return x0 * (predicted x0) + eps * (predicted noise), in one pass over the state and the model's output.

        `others` are added: triples (prediction, x0, eps) with one number each for the batch. A multistep method passes
        its earlier predictions here, so their x0 or eps need not be computed and stored as tensors.
        """
        a, b = self._weights(x0, eps)
        if not others:
            return combine(a, self.x, b, self.raw)
        weights: list[Any] = [a, b]  # one number each for the batch, as in `others`
        tensors = [self.x, self.raw]
        for other, x0, eps in others:
            weights += other._weights(x0, eps)
            tensors += (other.x, other.raw)
        return weighted_sum(weights, tensors)

    def _weights(self, x0: Scalar, eps: Scalar) -> Row:
        """Coefficients of the state and of the model's output in x0 * (predicted x0) + eps * (predicted noise)."""
        point = self.point
        if self._row is None:
            self._row = row(self.kind, point.native)
        return linear_map((point.alpha, point.sigma), self._row, (x0, eps))

    def ahead(self, h: float, eta: float = 0.0) -> Tensor:
        """Return x + h * reverse_drift(eta), Euler's step, in one pass over the state and the model's output."""
        a, b = self._weights(self.point.d_alpha, self._noise_drift(eta))
        return combine(1.0 + h * a, self.x, h * b, self.raw)

    def step_to(self, then: Point[Any]) -> Tensor:
        """Return alpha_s x0 + sigma_s eps, the state at `then` if x0 and eps stay as predicted (DDIM, first order).

        This step is also defined from alpha = 0 and into sigma = 0, where lambda is infinite.
        """
        return self.compose(then.alpha, then.sigma)

    def jump_to(self, then: Point[Any]) -> Tensor:
        """Return x_s = x_t + (s - t) u(x_t, t), in native coordinates and time, with the predicted velocity u.

        This is Euler's step of the probability-flow ODE, and exact if u is a flow map's mean velocity up to `then`. If
        `then` has no native time (`Point.has_own_time`), it is `step_to`.
        """
        if not then.has_own_time:
            return self.step_to(then)
        point, h = self.point, then.t - self.point.t
        a, b = self._weights(*point.native[2:])
        return combine(then.scale * (1 / point.scale + h * a), self.x, then.scale * h * b, self.raw)

    @property
    def x0(self) -> Tensor:
        """E[x0 | x]: the predicted clean sample, the same in all coordinates."""
        return self.compose(1.0, 0.0)

    @property
    def eps(self) -> Tensor:
        """E[eps | x]: the predicted noise, the same in all coordinates."""
        return self.compose(0.0, 1.0)

    @property
    def score(self) -> Tensor:
        """grad log p_t(x) = -eps / sigma in the path's coordinates (Song et al. 2021, eq. 9 ff.)."""
        return self.compose(*row("score", (self.point.alpha, self.point.sigma, 0.0, 0.0)))

    @property
    def velocity(self) -> Tensor:
        """dx/dtime of the probability-flow ODE: alpha' x0 + sigma' eps (equal to f x - g^2 s / 2)."""
        return self.compose(self.point.d_alpha, self.point.d_sigma)

    def reverse_drift(self, eta: float = 1.0) -> Tensor:
        """f - (1 + eta^2)/2 g^2 s: eta = 1 the reverse SDE (Anderson 1982), eta = 0 the probability-flow ODE."""
        return self.compose(self.point.d_alpha, self._noise_drift(eta))

    def _noise_drift(self, eta: float) -> Scalar:
        """The weight of eps in the reverse drift; the eta term is -g^2 s eta^2/2 = + g^2 eta^2/(2 sigma) eps."""
        point = self.point
        return point.d_sigma if eta == 0 else point.d_sigma + 0.5 * eta**2 * point.diffusion_squared / point.sigma


class ScorePrediction(Prediction):
    """A prediction for an SDE without closed-form marginals: the score, and what follows from it and the SDE."""

    __slots__ = ()

    def compose(self, x0: Scalar, eps: Scalar, *others: tuple[Prediction, float, float]) -> Tensor:
        raise UsageError(
            f"{type(self.point.process).__name__} has no alpha(t) and sigma(t), so it has no x0 and eps; use a sampler "
            "that needs only the score or the velocity (euler-maruyama, euler, heun)"
        )

    @property
    def score(self) -> Tensor:
        return self.raw

    @property
    def velocity(self) -> Tensor:
        return self.reverse_drift(0.0)

    def reverse_drift(self, eta: float = 1.0) -> Tensor:
        return self.point.process.reverse_drift(self.x, self.point.time, self.raw, eta)

    def ahead(self, h: float, eta: float = 0.0) -> Tensor:
        return torch.add(self.x, self.reverse_drift(eta), alpha=h)
