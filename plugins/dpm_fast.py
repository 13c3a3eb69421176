"""DPM-Solver-fast: singlestep DPM-Solver whose intermediate points are grid points."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from sdesamplers import Path, Point, Run, Sampler, hookimpl, sampler
from sdesamplers.coefficients import constant_integral, lagrange_integrals, midpoint_integrals, semilinear

from ._dpm_stages import Weights, exponential_step, integrand, integration_variable
from ._shared import Kind


def groups(path: Path, order: int) -> list[list[Point]]:
    """The grid divided into groups of up to `order` intervals, one step each; an interval into sigma = 0 is separate.

    For order 3, a last group of one interval is merged with the one before, 2 + 2 instead of 3 + 1, because a single
    first-order step would reduce the order of the whole run.
    """
    count = len(path.points) - 1 - path.points[-1].is_clean
    sizes = [order] * (count // order) + [count % order] * (count % order > 0)
    if sizes[-2:] == [3, 1]:
        sizes[-2:] = [2, 2]
    edges = np.cumsum([0, *sizes, *[1] * path.points[-1].is_clean])
    return [path.points[a : b + 1] for a, b in itertools.pairwise(edges)]


def third_order_weights(u: Sequence[float], rate: float) -> tuple[Weights, Weights]:
    """Weights of the third stage and of the full step to u[3], for predictions at u[0], u[1], u[2].

    The full step integrates the parabola through all three. This gives the prediction at u[1] a weight b1, and with it
    the error of the state there, which is only of first order. The third stage is given the opposite error, b1/b2 times
    as large, so that they cancel (the condition for third order of Hochbruck & Ostermann 2005). If u[1] is at two
    thirds of the step, b2 = 0 and no third-order method exists; the ratio is limited to 4, and the step is of second
    order.
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
    """DPM-Solver-fast: singlestep DPM-Solver with its stages at grid points, one evaluation per interval.

        x_s = carry x_t + gain int e^{rate (u - u_s)} f(u) du

    (`semilinear`), with f the polynomial through the predictions at the grid points from t to s. A step covers `order`
    intervals, the last steps fewer. A step over two intervals is DPM-Solver-2 with r1 given by the grid. A step over
    three has its own weights, for any grid, by Hochbruck & Ostermann's condition for third order; the weights of
    DPM-Solver-3 are of third order for r2 = 2/3 only.

    Args:
        order: order of the method, 1 to 3, and the number of intervals per step.
        prediction: "noise" for DPM-Solver, "data" for DPM-Solver++.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, not {order}")
    for points in groups(path, order):
        now, then = points[0], points[-1]
        out = yield x, now
        if len(points) == 2:
            x = out.step_to(then)
            continue
        x, values = out.x, [integrand(out, now, prediction)]
        u, rate = [integration_variable(p, now) for p in points], semilinear(now, then, prediction)[2]
        ahead = yield (
            exponential_step(x, [constant_integral(u[1] - u[0], rate)], values, now, points[1], prediction),
            points[1],
        )
        values.append(integrand(ahead, now, prediction))
        if len(points) == 3:
            end: Weights = midpoint_integrals(u[2] - u[0], rate, (u[1] - u[0]) / (u[2] - u[0]))
        else:
            stage, end = third_order_weights(u, rate)
            ahead = yield exponential_step(x, stage, values, now, points[2], prediction), points[2]
            values.append(integrand(ahead, now, prediction))
        x = exponential_step(x, end, values, now, then, prediction)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [dpm_fast]
