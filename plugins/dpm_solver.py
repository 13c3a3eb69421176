"""DPM-Solver and DPM-Solver++ (Lu et al. 2022, 2022b): exponential integrators in lambda = log(alpha/sigma).

All solve x_s = carry x_t + gain int e^{rate (u - u_s)} f(u) du (`semilinear`) with a polynomial for the prediction f:
eps in DPM-Solver, x0 in DPM-Solver++. A step into sigma = 0, where lambda is infinite, is of first order (DDIM); one
out of alpha = 0 runs in u = alpha/sigma, which is finite there.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sdesamplers import Path, Point, Prediction, Run, Sampler, SolverError, hookimpl, sampler
from sdesamplers.coefficients import (
    ROUNDING,
    constant_integral,
    lagrange_integrals,
    midpoint_integrals,
    octave_parts,
    semilinear,
)

from ._dpm_stages import Weights, clock, read, second, solve, third
from ._shared import Kind, exponential_adams, orders

# --- Singlestep -------------------------------------------------------------------------------------------------------


def singlestep(x: Tensor, path: Path, order: int, kind: str, r: float = 0.5) -> Run:
    """DPM-Solver-2 or -3 over the whole path."""
    if not 0 < r <= 1:
        raise ValueError(f"r1 is the intermediate point's share of the step, so it must lie in (0, 1], not {r}")
    for now, then in path.steps:
        out = yield x, now
        if then.is_clean:
            x = out.step_to(then)
        elif order == 2:
            x, _ = yield from second(out, then, path, kind, r)
        else:
            x, _ = yield from third(out, then, path, kind)
    return x


@sampler(
    "dpm-solver-2", order=2, evaluations=2, needs=["marginals"], reference="Lu et al. 2022 (DPM-Solver), algorithm 1"
)
def dpm_solver_2(x: Tensor, path: Path, *, r1: float = 0.5) -> Run:
    """DPM-Solver-2, singlestep in noise prediction.

    u at lambda_t + r1 h by DDIM;  x_s = (alpha_s/alpha_t) x - sigma_s (e^h - 1) [eps(x) + (eps(u) - eps(x)) / (2 r1)].
    """
    return (yield from singlestep(x, path, 2, "noise", r1))


@sampler(
    "dpm-solver-3", order=3, evaluations=3, needs=["marginals"], reference="Lu et al. 2022 (DPM-Solver), algorithm 2"
)
def dpm_solver_3(x: Tensor, path: Path) -> Run:
    """DPM-Solver-3, singlestep in noise prediction.

    u1 at lambda_t + h/3 by DDIM, u2 at lambda_t + 2h/3 by the line of eps through x and u1;
    x_s = (alpha_s/alpha_t) x - sigma_s int e^{lambda_s - l} [line of eps through x and u2](l) dl.
    """
    return (yield from singlestep(x, path, 3, "noise"))


@sampler(
    "dpmpp-2s", order=2, evaluations=2, needs=["marginals"], reference="Lu et al. 2022b (DPM-Solver++), algorithm 1"
)
def dpmpp_2s(x: Tensor, path: Path, *, r1: float = 0.5) -> Run:
    """DPM-Solver++(2S), singlestep in data prediction.

    u at lambda_t + r1 h by DDIM;  x_s = (sigma_s/sigma_t) x + alpha_s (1 - e^-h) [x0(x) + (x0(u) - x0(x)) / (2 r1)].
    """
    return (yield from singlestep(x, path, 2, "data", r1))


@sampler(
    "dpmpp-3s",
    order=3,
    evaluations=3,
    needs=["marginals"],
    reference="Lu et al. 2022b (DPM-Solver++); the stages of Lu et al. 2022, algorithm 2, in data prediction",
)
def dpmpp_3s(x: Tensor, path: Path) -> Run:
    """DPM-Solver++(3S), singlestep in data prediction.

    u1 at lambda_t + h/3 by DDIM, u2 at lambda_t + 2h/3 by the line of x0 through x and u1;
    x_s = (sigma_s/sigma_t) x + alpha_s int e^{l - lambda_s} [line of x0 through x and u2](l) dl.
    """
    return (yield from singlestep(x, path, 3, "data"))


# --- Singlestep on the grid's own points ------------------------------------------------------------------------------


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

    Runs of `order` (1 to 3) intervals are one step, the last runs shorter. One of two intervals is DPM-Solver-2 with r1
    as the grid has it. One of three has weights of its own for the grid's points, by Hochbruck & Ostermann's condition
    for third order: DPM-Solver-3's are of third order where r2 = 2/3 alone. `prediction` "noise" is DPM-Solver, "data"
    DPM-Solver++.
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


# --- Adaptive ---------------------------------------------------------------------------------------------------------

PURE_NOISE_END = 1e-4
"""alpha/sigma that a path from alpha = 0 reaches in one step; the error of that is some 1e-8 of x0's change there."""


class Pid:
    """Step sizes in lambda for every sample by itself (Soderlind 2003), with k-diffusion's limiter.

    As in rk45, rounding is kept out of the steps: errors below `ROUNDING` count as that much, and steps are powers of
    2^(1/8).
    """

    def __init__(self, count: int, h: float, coefficients: Sequence[float], order: int, safety: float) -> None:
        p, i, d = coefficients
        self.powers = np.array([p + i + d, -p - 2 * d, d]) / order
        self.h, self.safety = np.full(count, h), safety
        self.past = np.full((count, 2), np.nan)  # the inverse errors of the last two accepted steps
        self.accepted, self.rejected = np.zeros(count, int), np.zeros(count, int)

    def judge(self, rows: np.ndarray, step: np.ndarray, error: np.ndarray) -> np.ndarray:
        """Which of the samples `rows` may take their `step`, whose errors are in units of the tolerance."""
        if not np.all(np.isfinite(error)):
            raise SolverError("dpm-adaptive's error estimate is not finite, so it cannot choose a step")
        inverse = 1 / np.maximum(error, ROUNDING)
        past = np.where(np.isnan(self.past[rows]), inverse[:, None], self.past[rows])
        factor = 1 + np.arctan(np.prod(np.column_stack([inverse, past]) ** self.powers, axis=1) - 1)
        good = factor >= self.safety
        self.past[rows[good]] = np.column_stack([inverse, past[:, 0]])[good]
        self.h[rows] = octave_parts(step * factor, 8)
        if np.any(self.h[rows] < 1e-10):
            raise SolverError("dpm-adaptive's step fell below rounding; the model is not smooth enough for this rtol")
        self.accepted[rows] += good
        self.rejected[rows] += ~good
        return good


def controlled(
    x: Tensor,
    path: Path,
    begin: float,
    end: float,
    order: int,
    kind: str,
    rtol: float,
    atol: float,
    pid: Pid,
    most: int,
) -> Run:
    """Steps of DPM-Solver-`order` in lambda from `begin` to `end`, chosen by `pid` for every sample."""
    lam, x = np.full(len(x), begin), x.clone()
    while len(rows := np.flatnonzero(lam != end)):
        if order * (pid.accepted + pid.rejected + 1)[rows].max() > most:
            raise SolverError(f"dpm-adaptive needs more than max_nfe={most} evaluations at {rtol=:g}, {atol=:g}")
        pick, now = torch.from_numpy(rows).to(x.device), lam[rows]
        ahead = np.where(pid.h[rows] >= (end - now) * (1 - 1e-9), end, now + pid.h[rows])
        out, then = (yield x[pick], path.at_lambda(now, rows)), path.at_lambda(ahead, rows)
        solver = second(out, then, path, kind, 0.5) if order == 2 else third(out, then, path, kind)
        new, low = yield from solver
        allowed = torch.clamp(rtol * torch.maximum(low.abs(), out.x.abs()), min=atol)
        error = ((new - low) / allowed).flatten(1).square().mean(1).sqrt().double().cpu().numpy()
        good = pid.judge(rows, ahead - now, error)
        lam[rows[good]] = ahead[good]
        taken = torch.from_numpy(good).to(x.device).view(-1, *[1] * (x.dim() - 1))
        x[pick] = torch.where(taken, new, out.x)
    return x


@sampler(
    "dpm-adaptive",
    order=3,
    evaluations=3,
    control=("rtol", "atol", "h_init", "pcoeff", "icoeff", "dcoeff", "accept_safety", "max_nfe"),
    needs=["marginals"],
    reference="Lu et al. 2022 (DPM-Solver-12 and -23), appendix C; PID control: Soderlind 2003",
)
def dpm_adaptive(
    x: Tensor,
    path: Path,
    *,
    order: Literal[2, 3] = 3,
    prediction: Kind = "noise",
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    max_nfe: int = 10_000,
) -> Run:
    """DPM-Solver-12 or -23: steps in lambda chosen from the difference of two orders, for every sample by itself.

    The error is the RMS over a sample of |x_high - x_low| / max(`atol`, `rtol` max|x|) in the path's coordinates. A PID
    controller (`pcoeff`, `icoeff`, `dcoeff`) multiplies the step, `h_init` at first, by 1 + atan(factor - 1), and
    accepts it where that is `accept_safety` at least; more than `max_nfe` evaluations are an error. `order` is the
    higher of the two, `prediction` "noise" (DPM-Solver) or "data" (++). On a given grid it takes steps of DPM-Solver-
    `order` without error control.
    """
    if not (rtol > 0 and atol > 0 and h_init > 0 and max_nfe > 0):
        raise ValueError("rtol, atol, h_init and max_nfe must be positive")
    if not 0 < accept_safety < 1:
        raise ValueError(f"accept_safety must lie between 0 and 1, not {accept_safety}")
    if not path.is_free:
        return (yield from singlestep(x, path, order, prediction))
    begin, end, *clean = path.points
    if begin.is_pure_noise:
        out = yield x, begin
        begin = path.at_ratio(1 / PURE_NOISE_END)
        x = out.step_to(begin)
    pid = Pid(len(x), h_init, (pcoeff, icoeff, dcoeff), order, accept_safety)
    path.ledger.accepted, path.ledger.rejected = pid.accepted, pid.rejected
    x = yield from controlled(x, path, begin.lam, end.lam, order, prediction, rtol, atol, pid, max_nfe)
    if clean:
        out = yield x, end
        x = out.step_to(clean[0])
    return x


# --- Multistep --------------------------------------------------------------------------------------------------------


def two_step(x: Tensor, path: Path, order: int, kind: Kind, solver: str, lower: bool) -> Run:
    """DDIM's step and c (f_last - f), with f the prediction of this evaluation and of the last one.

    c is the weight of f_last in the integral of the line through both, exact or by the midpoint rule.
    """
    require_second(order)
    last: Prediction | None = None
    for (now, then), size in zip(path.steps, orders(path, order, lower), strict=True):
        out = yield x, now
        if last is None or size == 1:
            x = out.step_to(then)
        else:
            _, gain, rate = semilinear(now, then, kind)
            u, u_last, end = now.lam, last.point.lam, then.lam
            if solver == "midpoint":
                c = gain * midpoint_integrals(end - u, rate, (u_last - u) / (end - u))[1]
            else:
                c = gain * lagrange_integrals([u, u_last], u, end, rate=rate)[1]
            x0, eps = (c, 0.0) if kind == "data" else (0.0, c)
            x = out.compose(then.alpha - x0, then.sigma - eps, (last, x0, eps))
        if order == 2 and not now.is_pure_noise:  # where lambda is infinite, a prediction is no node of later steps
            last = out
    return x


def require_second(order: int) -> None:
    """Raise unless `order` is 1 or 2."""
    if order not in (1, 2):
        raise ValueError(f"order must be 1 (DDIM) or 2, not {order}; the third order is the 3m sampler's")


@sampler(
    "dpm-solver-2m",
    order=2,
    needs=["marginals"],
    reference="Lu et al. 2022b, algorithm 2, in the noise prediction of Lu et al. 2022",
)
def dpm_solver_2m(
    x: Tensor,
    path: Path,
    *,
    order: int = 2,
    solver: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True,
) -> Run:
    """DPM-Solver(2M), multistep in noise prediction.

    x_s = (alpha_s/alpha_t) x - sigma_s (e^h - 1) [eps + h/(2 h_last) (eps - eps_last)]. `solver` "heun" integrates the
    line through the two eps exactly. `order` 1 is DDIM. `lower_order_final` makes the step to the smallest sigma of
    first order if there are fewer than 15; into sigma = 0 it always is.
    """
    return (yield from two_step(x, path, order, "noise", solver, lower_order_final))


@sampler(
    "dpm-solver-3m",
    order=3,
    needs=["marginals"],
    reference="Lu et al. 2022b, in noise prediction; exact weights: Hochbruck & Ostermann 2010, section 2.5",
)
def dpm_solver_3m(x: Tensor, path: Path, *, lower_order_final: bool = True) -> Run:
    """DPM-Solver(3M), multistep in noise prediction.

    x_s = (alpha_s/alpha_t) x - sigma_s int e^{lambda_s - l} [parabola through the last three eps](l) dl.
    `lower_order_final` makes the step to the smallest sigma of first order (of second from 15 steps), and the one
    before a first-order one of second; into sigma = 0 it always is of first.
    """
    return (yield from exponential_adams(x, path, 3, "noise", lower=lower_order_final, second=True))


@sampler("dpmpp-2m", order=2, needs=["marginals"], reference="Lu et al. 2022b (DPM-Solver++), algorithm 2")
def dpmpp_2m(
    x: Tensor,
    path: Path,
    *,
    order: int = 2,
    solver: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True,
) -> Run:
    """DPM-Solver++(2M), multistep in data prediction.

    x_s = (sigma_s/sigma_t) x + alpha_s (1 - e^-h) [x0 + h/(2 h_last) (x0 - x0_last)]. `solver` "heun" integrates the
    line through the two x0 exactly. `order` 1 is DDIM. `lower_order_final` makes the step to the smallest sigma of
    first order if there are fewer than 15; into sigma = 0 it always is.
    """
    return (yield from two_step(x, path, order, "data", solver, lower_order_final))


@sampler(
    "dpmpp-3m",
    order=3,
    needs=["marginals"],
    reference="Lu et al. 2022b (DPM-Solver++); exact weights: Hochbruck & Ostermann 2010, section 2.5",
)
def dpmpp_3m(x: Tensor, path: Path, *, lower_order_final: bool = True) -> Run:
    """DPM-Solver++(3M), multistep in data prediction.

    x_s = (sigma_s/sigma_t) x + alpha_s int e^{l - lambda_s} [parabola through the last three x0](l) dl. The curvature
    has the weight of that integral; k-diffusion's and diffusers' 3M give it half, which makes them of second order.
    `lower_order_final` makes the step to the smallest sigma of first order (of second from 15 steps), and the one
    before a first-order one of second; into sigma = 0 it always is of first.
    """
    return (yield from exponential_adams(x, path, 3, "data", lower=lower_order_final, second=True))


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    singlesteps = [dpm_solver_2, dpm_solver_3, dpmpp_2s, dpmpp_3s, dpm_fast, dpm_adaptive]
    return [*singlesteps, dpm_solver_2m, dpm_solver_3m, dpmpp_2m, dpmpp_3m]
