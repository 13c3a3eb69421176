"""The common Gaussian processes. Each is defined by its (alpha, sigma); `sde` derives everything else."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import numpy as np

from ..checks import number
from ..errors import UsageError
from ..public import public
from .forms import FLOATS
from .scalars import Scalar
from .sde import GaussianProcess


class VariancePreserving(GaussianProcess):
    """Base of processes with alpha^2 + sigma^2 = 1."""

    def at_ratio(self, ratio: Scalar) -> tuple[Scalar, Scalar]:
        if ratio.__class__ in FLOATS:
            inverse: Scalar = 1.0 / ratio if ratio else np.inf
        else:
            inverse = np.divide(1.0, ratio, out=np.full_like(ratio, np.inf, dtype=float), where=np.asarray(ratio) != 0)
        return 1 / np.hypot(1.0, ratio), 1 / np.hypot(1.0, inverse)

    def d_alpha_d_ratio(self, ratio: Scalar) -> Scalar:
        return -ratio * self.at_ratio(ratio)[0] ** 3


class BetaProcess(VariancePreserving):
    """dx = -beta(t)/2 x dt + sqrt(beta(t)) dw, defined by beta and its integral B from 0 to t.

    alpha = exp(-B/2), sigma = sqrt(1 - exp(-B)) (Song et al. 2021, eq. 29).
    """

    @abstractmethod
    def beta(self, t: Scalar) -> Scalar:
        """Noise rate per unit time."""

    @abstractmethod
    def integral(self, t: Scalar) -> Scalar:
        """B(t), the integral of beta from 0 to t."""

    @abstractmethod
    def time_at_integral(self, integral: Scalar) -> Scalar:
        """Inverse of `integral`."""

    def alpha(self, t: Scalar) -> Scalar:
        return np.exp(-0.5 * self.integral(t))

    def sigma(self, t: Scalar) -> Scalar:
        return np.sqrt(-np.expm1(-self.integral(t)))

    def d_alpha(self, t: Scalar) -> Scalar:
        return -0.5 * self.beta(t) * self.alpha(t)

    def d_sigma(self, t: Scalar) -> Scalar:
        with np.errstate(divide="ignore"):
            return np.divide(0.5 * self.beta(t) * np.exp(-self.integral(t)), self.sigma(t))

    def time_at_ratio(self, ratio: Scalar) -> Scalar:
        # ratio^2 = exp(B) - 1
        return self.time_at_integral(np.log1p(np.square(ratio)))


@public
class VP(BetaProcess):
    """Variance-preserving SDE with linear beta (Song et al. 2021, eq. 32): beta_min + (beta_max - beta_min) t/T."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, T: float = 1.0) -> None:
        beta_min, beta_max, T = number("beta_min", beta_min), number("beta_max", beta_max), number("T", T)
        if not (0 < beta_min <= beta_max and T > 0):
            raise UsageError(f"VP needs 0 < beta_min <= beta_max and T > 0, not {beta_min}, {beta_max}, {T}")
        self.beta_min, self.beta_max, self.t_max = beta_min, beta_max, float(T)
        self.slope = (beta_max - beta_min) / T
        self.t_min = 1e-3 * T  # the sampling epsilon of Song et al. 2021, appendix C

    def _arguments(self) -> dict[str, float] | None:
        return {"beta_min": self.beta_min, "beta_max": self.beta_max, "T": self.t_max} if type(self) is VP else None

    def beta(self, t: Scalar) -> Scalar:
        return self.beta_min + self.slope * t

    def integral(self, t: Scalar) -> Scalar:
        return (self.beta_min + 0.5 * self.slope * t) * t

    def time_at_integral(self, integral: Scalar) -> Scalar:
        # The stable root of slope/2 t^2 + beta_min t - B = 0.
        return 2 * integral / (self.beta_min + np.sqrt(self.beta_min**2 + 2 * self.slope * integral))


@public
class ConstantVP(VP):
    """Variance-preserving SDE with constant beta, the Ornstein-Uhlenbeck process: alpha = exp(-beta t / 2)."""

    def __init__(self, beta: float = 1.0, T: float = 1.0) -> None:
        super().__init__(number("beta", beta), beta, T)

    def _arguments(self) -> dict[str, float] | None:
        return {"beta": self.beta_min, "T": self.t_max} if type(self) is ConstantVP else None


@public
class CosineVP(BetaProcess):
    """The cosine schedule in continuous time (Nichol & Dhariwal 2021, eq. 17), reaching alpha = 0 at t = 1."""

    def __init__(self, s: float = 0.008) -> None:
        s = number("s", s)
        if s <= 0:
            raise UsageError(f"CosineVP needs s > 0, not {s}")
        self.s = s
        self.t_min = 1e-3
        self.rate = math.pi / 2 / (1 + s)
        self._cos0 = math.sin(self.rate)  # cos(pi/2 * s/(1+s)), as the sine of the complementary angle

    def _to_end(self, t: Scalar) -> Scalar:
        # pi/2 minus the schedule's angle, so that alpha is exactly 0 at t = 1.
        return self.rate * (1 - np.asarray(t, dtype=float))

    def beta(self, t: Scalar) -> Scalar:
        with np.errstate(divide="ignore"):
            return 2 * self.rate / np.tan(self._to_end(t))

    def alpha(self, t: Scalar) -> Scalar:
        return np.sin(self._to_end(t)) / self._cos0

    def integral(self, t: Scalar) -> Scalar:
        with np.errstate(divide="ignore"):
            return -2 * np.log(self.alpha(t))

    def sigma(self, t: Scalar) -> Scalar:
        # sigma^2 = 1 - sin^2(u)/sin^2(u0) = sin(u0 - u) sin(u0 + u) / sin^2(u0): no cancellation near t = 0.
        u0, u = self.rate, self._to_end(t)
        return np.sqrt(np.sin(self.rate * np.asarray(t, dtype=float)) * np.sin(u0 + u)) / self._cos0

    def d_alpha(self, t: Scalar) -> Scalar:
        return -self.rate * np.cos(self._to_end(t)) / self._cos0

    def d_sigma(self, t: Scalar) -> Scalar:
        with np.errstate(divide="ignore"):
            return np.divide(-self.alpha(t) * self.d_alpha(t), self.sigma(t))

    def time_at_integral(self, integral: Scalar) -> Scalar:
        return 1 - np.arcsin(np.exp(-0.5 * np.asarray(integral)) * self._cos0) / self.rate


@public
class SubVP(GaussianProcess):
    """The sub-VP SDE (Song et al. 2021, eq. 29): alpha = exp(-B/2), sigma = 1 - exp(-B), with VP's linear beta."""

    clean_time = 0.0

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, T: float = 1.0) -> None:
        self.vp = VP(beta_min, beta_max, T)
        self.t_min, self.t_max = self.vp.t_min, self.vp.t_max

    def _arguments(self) -> dict[str, float] | None:
        return self.vp._arguments() if type(self) is SubVP else None

    def alpha(self, t: Scalar) -> Scalar:
        return self.vp.alpha(t)

    def sigma(self, t: Scalar) -> Scalar:
        return -np.expm1(-self.vp.integral(t))

    def d_alpha(self, t: Scalar) -> Scalar:
        return self.vp.d_alpha(t)

    def d_sigma(self, t: Scalar) -> Scalar:
        return self.vp.beta(t) * np.exp(-self.vp.integral(t))

    def time_at_ratio(self, ratio: Scalar) -> Scalar:
        # ratio = 2 sinh(B/2)
        return self.vp.time_at_integral(2 * np.arcsinh(0.5 * np.asarray(ratio)))


@public
class VE(GaussianProcess):
    """Variance-exploding SDE (Song et al. 2021, eq. 30): alpha = 1, sigma = sigma_min (sigma_max/sigma_min)^t."""

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        sigma_min, sigma_max = number("sigma_min", sigma_min), number("sigma_max", sigma_max)
        if not 0 < sigma_min < sigma_max:
            raise UsageError(f"VE needs 0 < sigma_min < sigma_max, not {sigma_min} and {sigma_max}")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.rate = math.log(sigma_max / sigma_min)

    def alpha(self, t: Scalar) -> Scalar:
        return np.ones_like(t, dtype=float) if isinstance(t, np.ndarray) else 1.0

    def sigma(self, t: Scalar) -> Scalar:
        return self.sigma_min * np.exp(self.rate * t)

    def d_alpha(self, t: Scalar) -> Scalar:
        return 0.0 * t

    def d_sigma(self, t: Scalar) -> Scalar:
        return self.rate * self.sigma(t)

    def time_at_ratio(self, ratio: Scalar) -> Scalar:
        with np.errstate(divide="ignore"):
            return np.log(np.divide(ratio, self.sigma_min)) / self.rate

    def at_ratio(self, ratio: Scalar) -> tuple[Scalar, Scalar]:
        return np.ones_like(ratio), ratio

    def d_alpha_d_ratio(self, ratio: Scalar) -> Scalar:
        return np.zeros_like(ratio)


@public
class EDM(GaussianProcess):
    """Karras et al. (2022): alpha = 1, sigma = t, from `sigma_max` down to `sigma_min`."""

    clean_time = 0.0

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        sigma_min, sigma_max = number("sigma_min", sigma_min), number("sigma_max", sigma_max)
        if not 0 < sigma_min < sigma_max:
            raise UsageError(f"EDM needs 0 < sigma_min < sigma_max, not {sigma_min} and {sigma_max}")
        self.t_min, self.t_max = sigma_min, sigma_max

    def _arguments(self) -> dict[str, float] | None:
        return {"sigma_min": self.t_min, "sigma_max": self.t_max} if type(self) is EDM else None

    def alpha(self, t: Scalar) -> Scalar:
        return np.ones_like(t, dtype=float) if isinstance(t, np.ndarray) else 1.0

    def sigma(self, t: Scalar) -> Scalar:
        return t

    def d_alpha(self, t: Scalar) -> Scalar:
        return 0.0 * t

    def d_sigma(self, t: Scalar) -> Scalar:
        return self.alpha(t)

    def time_at_ratio(self, ratio: Scalar) -> Scalar:
        return ratio


@public
class RectifiedFlow(GaussianProcess):
    """The straight path of flow matching (Liu et al. 2022; Lipman et al. 2023): alpha = 1 - t, sigma = t.

    Args:
        shift: s of Esser et al. (2024), eq. 23, with which the model's authors sample: grids that are even in time
            become even in u, where t = s u / (1 + (s - 1) u). States, times and explicitly given grids do not change.
    """

    clean_time = 0.0
    t_min = 1e-3

    def __init__(self, shift: float = 1.0) -> None:
        shift = number("shift", shift)
        if not 0 < shift < math.inf:
            raise UsageError(f"the shift must be positive, not {shift}")
        self.shift = float(shift)

    @property
    def grid_process(self) -> GaussianProcess:
        return self if self.shift == 1 else ShiftedFlow(self.shift)

    def alpha(self, t: Scalar) -> Scalar:
        return 1 - t

    def sigma(self, t: Scalar) -> Scalar:
        return t

    def d_alpha(self, t: Scalar) -> Scalar:
        return 0.0 * t - 1.0

    def d_sigma(self, t: Scalar) -> Scalar:
        return 0.0 * t + 1.0

    def time_at_ratio(self, ratio: Scalar) -> Scalar:
        # ratio / (1 + ratio), written so that an infinite ratio gives 1
        with np.errstate(divide="ignore"):
            return 1 / (1 + np.divide(1.0, ratio))


@public
class ShiftedFlow(GaussianProcess):
    """A rectified flow on the clock u with sigma = s u / (1 + (s - 1) u) (Esser et al. 2024, eq. 23)."""

    clean_time = 0.0

    def __init__(self, shift: float) -> None:
        shift = number("shift", shift)
        if not shift > 0:
            raise UsageError(f"the shift must be positive, not {shift}")
        self.shift = shift
        self.t_min = float(self.time_at_ratio(RectifiedFlow.t_min / (1 - RectifiedFlow.t_min)))

    def alpha(self, t: Scalar) -> Scalar:
        return (1 - t) / (1 + (self.shift - 1) * t)

    def sigma(self, t: Scalar) -> Scalar:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def d_alpha(self, t: Scalar) -> Scalar:
        return -self.d_sigma(t)

    def d_sigma(self, t: Scalar) -> Scalar:
        return self.shift / np.square(1 + (self.shift - 1) * t)

    def time_at_ratio(self, ratio: Scalar) -> Scalar:
        # sigma / alpha = s u / (1 - u)
        with np.errstate(divide="ignore"):
            return 1 / (1 + np.divide(self.shift, ratio))


@public
class TrigFlow(GaussianProcess):
    """x_t = cos(t) x_0 + sin(t) d eps on [0, pi/2] (Lu & Song 2025, eq. 7), d the data's standard deviation."""

    clean_time = 0.0
    t_min, t_max = 2e-3, 0.5 * math.pi

    def __init__(self, sigma_data: float = 1.0) -> None:
        sigma_data = number("sigma_data", sigma_data)
        if not sigma_data > 0:
            raise UsageError(f"sigma_data must be positive, not {sigma_data}")
        self.sigma_data = float(sigma_data)

    def alpha(self, t: Scalar) -> Scalar:
        # cos(pi/2) is 6e-17 in floating point, but the start must be pure noise.
        return np.where(np.asarray(t) == self.t_max, 0.0, np.cos(t))

    def sigma(self, t: Scalar) -> Scalar:
        return self.sigma_data * np.sin(t)

    def d_alpha(self, t: Scalar) -> Scalar:
        return -np.sin(t)

    def d_sigma(self, t: Scalar) -> Scalar:
        return self.sigma_data * np.cos(t)

    def time_at_ratio(self, ratio: Scalar) -> Scalar:
        return np.arctan(np.divide(ratio, self.sigma_data))


def float_column(values: Any, name: str) -> np.ndarray:
    """Convert numbers, an array or a tensor on any device to a float64 array."""
    try:
        values = values.detach().cpu() if hasattr(values, "detach") else values
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise UsageError(f"{name} must be a list of numbers, not {type(values).__name__}") from None
