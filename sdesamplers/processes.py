"""The Gaussian processes of the field. Each is its pair (alpha, sigma); everything else is derived in `sde`."""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_right
from typing import Any

import numpy as np

from .checks import number
from .errors import UsageError
from .public import public
from .sde import GaussianProcess, Scalar


class VariancePreserving(GaussianProcess):
    """Base of processes with alpha^2 + sigma^2 = 1."""

    def at_ratio(self, ratio: Scalar) -> tuple[Scalar, Scalar]:
        inverse = np.divide(1.0, ratio, out=np.full_like(ratio, np.inf, dtype=float), where=np.asarray(ratio) != 0)
        return 1 / np.hypot(1.0, ratio), 1 / np.hypot(1.0, inverse)

    def d_alpha_d_ratio(self, ratio: Scalar) -> Scalar:
        return -ratio * self.at_ratio(ratio)[0] ** 3


class BetaProcess(VariancePreserving):
    """dx = -beta(t)/2 x dt + sqrt(beta(t)) dw, given by beta and its integral B from 0 to t.

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
        self._cos0 = math.sin(self.rate)  # cos(pi/2 * s/(1+s)), written from the far end

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
        shift: s of Esser et al. (2024), eq. 23, with which the model's makers sample: grids that are even in time are
            even in u with t = s u / (1 + (s - 1) u). It changes no state, no time and no grid that is given.
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
        # cos(pi/2) is 6e-17 in floating point, and the start is to be pure noise.
        return np.where(np.asarray(t) == self.t_max, 0.0, np.cos(t))

    def sigma(self, t: Scalar) -> Scalar:
        return self.sigma_data * np.sin(t)

    def d_alpha(self, t: Scalar) -> Scalar:
        return -np.sin(t)

    def d_sigma(self, t: Scalar) -> Scalar:
        return self.sigma_data * np.cos(t)

    def time_at_ratio(self, ratio: Scalar) -> Scalar:
        return np.arctan(np.divide(ratio, self.sigma_data))


def float_column(values: Any, word: str) -> np.ndarray:
    """Numbers, an array or a tensor on any device as a float64 array."""
    try:
        values = values.detach().cpu() if hasattr(values, "detach") else values
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise UsageError(f"{word} must be a list of numbers, not {type(values).__name__}") from None


@public
class DiscreteVP(VariancePreserving):
    """The process of a DDPM table `alphas_cumprod`; t is the (fractional) timestep, 0 to len - 1.

    Between timesteps log(sigma/alpha) is a cubic spline through the table (twice differentiable, so that
    high-order solvers keep their order in native time); a table whose spline is not monotone gets the monotone
    interpolant of Fritsch & Carlson (1980) instead. A last entry of 0 (zero terminal SNR, Lin et al. 2024) is
    reached by letting alpha/sigma fall linearly to 0 over the last timestep.
    """

    def __init__(self, alphas_cumprod: Any) -> None:
        from scipy.interpolate import CubicSpline, PchipInterpolator

        table = float_column(alphas_cumprod, "alphas_cumprod")
        if table.ndim != 1 or len(table) < 2 or not np.all(np.diff(table) < 0) or table[0] >= 1 or table[-1] < 0:
            rises = table.ndim == 1 and len(table) > 1 and bool(np.all(np.diff(table) >= 0))
            hint = "; these rise, as betas do: pass numpy.cumprod(1 - betas)" if rises else ""
            raise UsageError(f"alphas_cumprod must be two or more numbers that fall strictly, within [0, 1){hint}")
        self.alphas_cumprod = table
        self.t_max = float(len(table) - 1)
        self.zero_terminal_snr = bool(table[-1] == 0)
        body = table[:-1] if self.zero_terminal_snr else table
        self._knots = 0.5 * (np.log1p(-body) - np.log(body))
        times = np.arange(len(body), dtype=float)
        self._spline = CubicSpline(times, self._knots)
        slopes = self._spline.derivative()
        if np.any(slopes(np.linspace(0, times[-1], 8 * len(body))) <= 0):
            self._spline = PchipInterpolator(times, self._knots)
            slopes = self._spline.derivative()
        self._slopes = slopes
        self._last = times[-1]
        # The same cubics as plain numbers, highest power first, for times that are asked for one by one.
        self._cubics: list[list[float]] = self._spline.c.T.tolist()
        self._knot_list: list[float] = self._knots.tolist()

    def with_zero_terminal_snr(self) -> DiscreteVP:
        """The table with its last timestep moved to alpha = 0 (Lin et al. 2024, algorithm 1).

        sqrt(alphas_cumprod) is shifted and scaled so that its last entry is 0 and its first one stays.
        """
        root = np.sqrt(self.alphas_cumprod)
        return DiscreteVP(np.square((root - root[-1]) * (root[0] / (root[0] - root[-1]))))

    def _log_ratio(self, t: Scalar) -> Scalar:
        inside = self._spline(np.clip(t, 0, self._last))
        with np.errstate(divide="ignore"):
            beyond = np.log1p(-np.clip(np.asarray(t) - self._last, 0, 1)) if self.zero_terminal_snr else 0.0
        return inside - beyond

    def _d_log_ratio(self, t: Scalar) -> Scalar:
        inside = self._slopes(np.clip(t, 0, self._last))
        if not self.zero_terminal_snr:
            return inside
        with np.errstate(divide="ignore"):
            return np.where(np.asarray(t) > self._last, 1 / (self._last + 1 - np.asarray(t, dtype=float)), inside)

    def ratio(self, t: Scalar) -> Scalar:
        return np.exp(self._log_ratio(t))

    @property
    def largest_ratio(self) -> float:
        # Zero terminal SNR: alphas_cumprod = 2^-24 there, as in diffusers' Euler, DPM-Solver and UniPC.
        return math.sqrt(2.0**24 - 1) if self.zero_terminal_snr else super().largest_ratio

    def schedule(self, t: Scalar) -> tuple[Scalar, Scalar, Scalar, Scalar]:
        if self.zero_terminal_snr:
            return super().schedule(t)
        alpha, sigma = self.at_ratio(self.ratio(t))
        rate = alpha * sigma * self._d_log_ratio(t)
        return alpha, sigma, -sigma * rate, alpha * rate

    def alpha(self, t: Scalar) -> Scalar:
        return self.at_ratio(np.exp(self._log_ratio(t)))[0]

    def sigma(self, t: Scalar) -> Scalar:
        return self.at_ratio(np.exp(self._log_ratio(t)))[1]

    # With r = sigma/alpha and l' = (log r)': alpha' = -alpha sigma^2 l', sigma' = sigma alpha^2 l'. On a zero-SNR
    # table's last interval l' is infinite at the end while alpha l' stays finite, so the product is formed first.
    def _alpha_rate(self, t: Scalar) -> Scalar:
        alpha, rate = self.alpha(t), self._d_log_ratio(t)
        if not self.zero_terminal_snr:
            return alpha * rate
        end = np.exp(-self._knots[-1])
        with np.errstate(invalid="ignore"):
            return np.where(np.asarray(t) > self._last, end * self.sigma(t), alpha * rate)

    def d_alpha(self, t: Scalar) -> Scalar:
        return -np.square(self.sigma(t)) * self._alpha_rate(t)

    def d_sigma(self, t: Scalar) -> Scalar:
        return self.sigma(t) * self.alpha(t) * self._alpha_rate(t)

    def time_at_ratio(self, ratio: Scalar) -> Scalar:
        """Inverse of the interpolant; ratios outside the table give its nearest end."""
        with np.errstate(divide="ignore"):
            target = np.atleast_1d(np.log(np.asarray(ratio, dtype=float)))
        if not np.ndim(ratio) and target[0] <= self._knots[-1]:
            return self._solve_one(max(float(target[0]), self._knot_list[0]))
        t = self._solve(np.clip(target, self._knots[0], self._knots[-1]))
        if self.zero_terminal_snr:
            beyond = target > self._knots[-1]
            t[beyond] = self._last - np.expm1(self._knots[-1] - target[beyond])
        return t if np.ndim(ratio) else float(t[0])

    def _solve_one(self, target: float) -> float:
        """`_solve` for one number, which a step may ask for: without NumPy it takes a fiftieth of the time."""
        interval = min(max(bisect_right(self._knot_list, target) - 1, 0), len(self._cubics) - 1)
        a, b, c, d = self._cubics[interval]
        left, right = self._knot_list[interval], self._knot_list[interval + 1]
        low, high, u = 0.0, 1.0, (target - left) / (right - left)
        for _ in range(60):
            error = ((a * u + b) * u + c) * u + d - target
            low, high = (u, high) if error < 0 else (low, u) if error > 0 else (low, high)
            step = u - error / ((3 * a * u + 2 * b) * u + c)
            new = step if low <= step <= high else 0.5 * (low + high)
            if abs(new - u) <= 4e-16 * self.t_max:
                break
            u = new
        return interval + new

    def _solve(self, target: np.ndarray) -> np.ndarray:
        """Safeguarded Newton iteration for spline(t) = target, inside the interval that holds each number."""
        interval = np.clip(np.searchsorted(self._knots, target, side="right") - 1, 0, len(self._knots) - 2)
        a, b, c, d = self._spline.c[:, interval]
        left, right = self._knots[interval], self._knots[interval + 1]
        low, high, u = np.zeros_like(target), np.ones_like(target), (target - left) / (right - left)
        for _ in range(60):
            error = ((a * u + b) * u + c) * u + d - target
            low, high = np.where(error < 0, u, low), np.where(error > 0, u, high)
            step = u - error / ((3 * a * u + 2 * b) * u + c)
            new = np.where((step >= low) & (step <= high), step, 0.5 * (low + high))
            if np.all(np.abs(new - u) <= 4e-16 * self.t_max):
                break
            u = new
        return np.asarray(interval + new)
