"""The stages of a DPM-Solver step (Lu et al. 2022, algorithms 1 and 2), shared by all singlestep DPM-Solvers."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdesamplers import Path, Point, Prediction, weighted_sum
from sdesamplers.coefficients import constant_integral, midpoint_integrals, semilinear

Weights = Sequence[Any]
"""Quadrature weights of the predictions: floats, or arrays with one number per sample."""


def integrand(out: Prediction, start: Point[Any], kind: str) -> Tensor:
    """The prediction to integrate in a step from `start`: x0 or eps; from alpha = 0 always x0."""
    return out.x0 if kind == "data" or start.is_pure_noise else out.eps


def integration_variable(point: Point[Any], start: Point[Any]) -> Any:
    """u of `semilinear` at `point`, for a step from `start`: lambda, or alpha/sigma if alpha = 0 at the start."""
    return point.alpha / point.sigma if start.is_pure_noise else point.lam


def intermediate_point(path: Path, now: Point[Any], then: Point[Any], r: float) -> Point[Any]:
    """The point a fraction r of the way from `now` to `then` in the integration variable."""
    return path.at_ratio(then.ratio / r) if now.is_pure_noise else path.between(now, then, r)


def linear_weights(h: Any, rate: float, r: float) -> Weights:
    """Weights of the predictions at 0 and r h, exact for the straight line through them."""
    total = constant_integral(h, rate)
    slope = (h - total) / (rate * r * h) if rate else h / (2 * r)
    return [total - slope, slope]


def exponential_step(
    x: Tensor, weights: Weights, values: Sequence[Tensor], now: Point[Any], then: Point[Any], kind: str
) -> Tensor:
    """carry x + gain sum_j weights_j values_j, with coefficients per batch or, if `now` has rows, per sample."""
    carry, gain, _ = semilinear(now, then, kind)
    if now.rows is None:
        return weighted_sum([carry, *(gain * w for w in weights)], [x, *values])
    columns = torch.from_numpy(np.stack([carry, *(gain * w for w in weights)])).to(x)
    return torch.einsum("kn,kn...->n...", columns, torch.stack([x, *values]))


def dpm_solver_2_step(
    out: Prediction, then: Point[Any], path: Path, kind: str, r: float
) -> Generator[Any, Any, tuple[Tensor, Tensor]]:
    """DPM-Solver-2 (algorithm 1) and its embedded first-order solution."""
    x, now, first = out.x, out.point, integrand(out, out.point, kind)
    h, rate = integration_variable(then, now) - integration_variable(now, now), semilinear(now, then, kind)[2]
    s = intermediate_point(path, now, then, r)
    ahead = yield exponential_step(x, [constant_integral(r * h, rate)], [first], now, s, kind), s
    low = exponential_step(x, [constant_integral(h, rate)], [first], now, then, kind)
    return exponential_step(
        x, midpoint_integrals(h, rate, r), [first, integrand(ahead, now, kind)], now, then, kind
    ), low


def dpm_solver_3_step(
    out: Prediction, then: Point[Any], path: Path, kind: str
) -> Generator[Any, Any, tuple[Tensor, Tensor]]:
    """DPM-Solver-3 (algorithm 2, r1 = 1/3 and r2 = 2/3) and its embedded second-order solution."""
    x, now, first = out.x, out.point, integrand(out, out.point, kind)
    h, rate = integration_variable(then, now) - integration_variable(now, now), semilinear(now, then, kind)[2]
    s = intermediate_point(path, now, then, 1 / 3)
    ahead = yield exponential_step(x, [constant_integral(h / 3, rate)], [first], now, s, kind), s
    values = [first, integrand(ahead, now, kind)]
    s = intermediate_point(path, now, then, 2 / 3)
    ahead = yield exponential_step(x, linear_weights(2 * h / 3, rate, 1 / 2), values, now, s, kind), s
    low = exponential_step(x, midpoint_integrals(h, rate, 1 / 3), values, now, then, kind)
    return exponential_step(
        x, linear_weights(h, rate, 2 / 3), [first, integrand(ahead, now, kind)], now, then, kind
    ), low
