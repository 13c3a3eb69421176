"""A DDPM table of alphas_cumprod as a process in continuous time."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Any

import numpy as np

from ..errors import UsageError
from ..public import public
from .forms import FLOATS
from .scalars import Scalar
from .schedules import VariancePreserving, float_column


@public
class DiscreteVP(VariancePreserving):
    """The process of a DDPM table `alphas_cumprod`; t is the (fractional) timestep, 0 to len - 1.

    Between timesteps log(sigma/alpha) is a cubic spline through the table (twice differentiable, so that
    high-order solvers keep their order in native time). If this spline is not monotone, the monotone interpolant of
    Fritsch & Carlson (1980) is used instead. If the last entry is 0 (zero terminal SNR, Lin et al. 2024), alpha/sigma
    falls linearly to 0 over the last timestep.
    """

    def __init__(self, alphas_cumprod: Any) -> None:
        from scipy.interpolate import CubicSpline, PchipInterpolator  # scipy takes a second to import

        table = float_column(alphas_cumprod, "alphas_cumprod")
        if table.ndim != 1 or len(table) < 2 or not np.all(np.diff(table) < 0) or table[0] >= 1 or table[-1] < 0:
            rises = table.ndim == 1 and len(table) > 1 and bool(np.all(np.diff(table) >= 0))
            hint = "; these increase, as betas do: pass numpy.cumprod(1 - betas)" if rises else ""
            raise UsageError(f"alphas_cumprod must be two or more strictly decreasing numbers within [0, 1){hint}")
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
        # The coefficients of the cubics as plain floats, highest power first, for `_solve_one`.
        self._cubics: list[list[float]] = self._spline.c.T.tolist()
        self._knot_list: list[float] = self._knots.tolist()

    def __repr__(self) -> str:
        table = self.alphas_cumprod
        return f"<{type(self).__name__}, {len(table)} timesteps, alphas_cumprod from {table[0]:.4g} to {table[-1]:.3g}>"

    def with_zero_terminal_snr(self) -> DiscreteVP:
        """Return the process with alpha = 0 at the last timestep (Lin et al. 2024, algorithm 1).

        sqrt(alphas_cumprod) is shifted and scaled so that its last entry becomes 0 and its first does not change.
        """
        root = np.sqrt(self.alphas_cumprod)
        return DiscreteVP(np.square((root - root[-1]) * (root[0] / (root[0] - root[-1]))))

    def _log_ratio(self, t: Scalar) -> Scalar:
        if t.__class__ in FLOATS and t <= self._last:
            return self._log_ratio_at(float(t))
        inside = self._spline(np.clip(t, 0, self._last))
        with np.errstate(divide="ignore"):
            beyond = np.log1p(-np.clip(np.asarray(t) - self._last, 0, 1)) if self.zero_terminal_snr else 0.0
        return inside - beyond

    def _log_ratio_at(self, t: float) -> float:
        """The spline at one time, summed as SciPy sums it; a call of SciPy's takes ten times as long."""
        t = max(t, 0.0)
        interval = min(int(t), len(self._cubics) - 1)
        a, b, c, d = self._cubics[interval]
        u = t - interval
        return d + c * u + b * (u * u) + a * (u * u * u)

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
        # With zero terminal SNR: alphas_cumprod = 2^-24, as in diffusers' Euler, DPM-Solver and UniPC.
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
        """`_solve` for one number, for use within a step: without NumPy it takes a fiftieth of the time."""
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
        """Safeguarded Newton iteration for spline(t) = target, within the interval that contains each target."""
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
