"""DPM-Solver-fast: singlestep DPM-Solver whose intermediate points are the grid's own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from sdesamplers import Path, Point, Run, Sampler, hookimpl, sampler
from sdesamplers.coefficients import constant_integral, lagrange_integrals, midpoint_integrals, semilinear

from ._dpm_stages import Weights, clock, read, solve
from ._shared import Kind


def groups(path: Path, order: int) -> list[list[Point]]:
    """The grid cut into runs of up to `order` intervals; one into sigma = 0 stands alone.

    An odd interval at the end of a third-order solver shares with the run before it, 2 + 2 for 3 + 1, because a single
    step of first order would cost the whole path its third.
    """
    count = len(path.points) - 1 - path.points[-1].is_clean
    sizes = [order] * (count // order) + [count % order] * (count % order > 0)
    if sizes[-2:] == [3, 1]:
        sizes[-2:] = [2, 2]
    edges = np.cumsum([0, *sizes, *[1] * path.points[-1].is_clean])
    return [path.points[a : b + 1] for a, b in itertools.pairwise(edges)]


def third_order_weights(u: Sequence[float], rate: float) -> tuple[Weights, Weights]:
    """Weights of the third stage and of the end, for predictions at u[0], u[1], u[2] and a step to u[3].

    The end integrates the parabola through all three. That gives u[1]'s prediction a weight b1, and with it the error
    of the state there, which is only of first order; the second stage makes the opposite error, b1/b2 times as large,
    so that they cancel (the condition for third order of Hochbruck & Ostermann 2005). Where u[1] is two thirds of the
    way no third-order method exists and b2 = 0; the ratio is kept below 4, and the step is of second order.
    """
    end = lagrange_integrals(u[:3], u[0], u[3], rate=rate)
    stage = lagrange_integrals(u[:2], u[0], u[2], rate=rate)
    missing = lagrange_integrals(u[:2], u[0], u[1], rate=rate)[1]
    extra = missing * float(np.clip(end[1] / end[2] if end[2] else 4.0, -4.0, 4.0))
    return [stage[0] - extra, stage[1] + extra], end


@sampler(
    "dpm-fast",
    order=3,
    spacing="logsnr",
    needs=["marginals"],
    reference="Lu et al. 2022 (DPM-Solver-fast), section 3.4; order 3 by the condition of Hochbruck & Ostermann 2005",
)
def dpm_fast(x: Tensor, path: Path, *, order: int = 3, prediction: Kind = "noise") -> Run:
    """Singlestep DPM-Solver with the grid's own points as its intermediate points, one evaluation an interval.

        x_s = carry x_t + gain int e^{rate (u - u_s)} f(u) du

    (`semilinear`), with f the polynomial through the predictions at the grid's points from t to s. Runs of `order` (1
    to 3) intervals are one step, the last runs shorter. One of two intervals is DPM-Solver-2 with r1 as the grid has
    it. One of three has weights of its own for the grid's points, by Hochbruck & Ostermann's condition for third order:
    DPM-Solver-3's are of third order where r2 = 2/3 alone. `prediction` "noise" is DPM-Solver, "data" DPM-Solver++.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, not {order}")
    for points in groups(path, order):
        now, then = points[0], points[-1]
        out = yield x, now
        if len(points) == 2:
            x = out.step_to(then)
            continue
        x, values = out.x, [read(out, now, prediction)]
        u, rate = [clock(p, now) for p in points], semilinear(now, then, prediction)[2]
        ahead = yield solve(x, [constant_integral(u[1] - u[0], rate)], values, now, points[1], prediction), points[1]
        values.append(read(ahead, now, prediction))
        if len(points) == 3:
            end: Weights = midpoint_integrals(u[2] - u[0], rate, (u[1] - u[0]) / (u[2] - u[0]))
        else:
            stage, end = third_order_weights(u, rate)
            ahead = yield solve(x, stage, values, now, points[2], prediction), points[2]
            values.append(read(ahead, now, prediction))
        x = solve(x, end, values, now, then, prediction)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [dpm_fast]
