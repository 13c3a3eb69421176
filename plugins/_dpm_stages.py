"""The stages of a DPM-Solver step (Lu et al. 2022, algorithms 1 and 2), for what solves the ODE as it does."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdesamplers import Path, Point, Prediction, weighted_sum
from sdesamplers.coefficients import constant_integral, midpoint_integrals, semilinear

Weights = Sequence[Any]
"""Factors of predictions in an integral, of floats or of an array with one for each sample."""


def read(out: Prediction, start: Point[Any], kind: str) -> Tensor:
    """The prediction that a step from `start` integrates."""
    return out.x0 if kind == "data" or start.is_pure_noise else out.eps


def clock(point: Point[Any], start: Point[Any]) -> Any:
    """u of `semilinear` at `point`, for a step from `start`."""
    return point.alpha / point.sigma if start.is_pure_noise else point.lam


def inner(path: Path, now: Point[Any], then: Point[Any], r: float) -> Point[Any]:
    """The point a share r of the way from `now` to `then` on the clock."""
    return path.at_ratio(then.ratio / r) if now.is_pure_noise else path.between(now, then, r)


def line(h: Any, rate: float, r: float) -> Weights:
    """Weights of predictions at 0 and r h that integrate the line through them exactly."""
    total = constant_integral(h, rate)
    slope = (h - total) / (rate * r * h) if rate else h / (2 * r)
    return [total - slope, slope]


def solve(
    x: Tensor, weights: Weights, values: Sequence[Tensor], now: Point[Any], then: Point[Any], kind: str
) -> Tensor:
    """carry x + gain sum_j weights_j values_j, with numbers for the batch or for each of its samples."""
    carry, gain, _ = semilinear(now, then, kind)
    if now.rows is None:
        return weighted_sum([carry, *(gain * w for w in weights)], [x, *values])
    columns = torch.from_numpy(np.stack([carry, *(gain * w for w in weights)])).to(x)
    return torch.einsum("kn,kn...->n...", columns, torch.stack([x, *values]))


def second(
    out: Prediction, then: Point[Any], path: Path, kind: str, r: float
) -> Generator[Any, Any, tuple[Tensor, Tensor]]:
    """DPM-Solver-2 (algorithm 1) and its embedded first-order solution."""
    x, now, first = out.x, out.point, read(out, out.point, kind)
    h, rate = clock(then, now) - clock(now, now), semilinear(now, then, kind)[2]
    s = inner(path, now, then, r)
    ahead = yield solve(x, [constant_integral(r * h, rate)], [first], now, s, kind), s
    low = solve(x, [constant_integral(h, rate)], [first], now, then, kind)
    return solve(x, midpoint_integrals(h, rate, r), [first, read(ahead, now, kind)], now, then, kind), low


def third(out: Prediction, then: Point[Any], path: Path, kind: str) -> Generator[Any, Any, tuple[Tensor, Tensor]]:
    """DPM-Solver-3 (algorithm 2, r1 = 1/3 and r2 = 2/3) and its embedded second-order solution."""
    x, now, first = out.x, out.point, read(out, out.point, kind)
    h, rate = clock(then, now) - clock(now, now), semilinear(now, then, kind)[2]
    s = inner(path, now, then, 1 / 3)
    ahead = yield solve(x, [constant_integral(h / 3, rate)], [first], now, s, kind), s
    values = [first, read(ahead, now, kind)]
    s = inner(path, now, then, 2 / 3)
    ahead = yield solve(x, line(2 * h / 3, rate, 1 / 2), values, now, s, kind), s
    low = solve(x, midpoint_integrals(h, rate, 1 / 3), values, now, then, kind)
    return solve(x, line(h, rate, 2 / 3), [first, read(ahead, now, kind)], now, then, kind), low
