"""Linear multistep methods: Adams-Bashforth in several integration variables, for the velocity or the predicted noise.

For the noise the step is x_s = alpha_s [x_t / alpha_t + sum_j w_j eps_j], exact in its linear part; each method has its
own weights w. They sum to sigma_s/alpha_s - sigma_t/alpha_t, so that a single weight gives DDIM. The weights take
uneven grids into account, except in `ipndm`, which is published with equal-step weights. The first steps use as many
predictions as there are. A prediction at alpha = 0, where sigma/alpha is infinite, is not used in later steps.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sdesamplers import Path, Point, Prediction, Run, Sampler, hookimpl, sampler, weighted_sum
from sdesamplers.coefficients import apart, lagrange, lagrange_integrals, midpoint_integrals, quadrature

from ._shared import orders

Weights = Callable[[Sequence[Point], Point], list[float]]
"""Maps the points of the last noise predictions (most recent first) and the end of the step to their weights."""


def check_order(order: int, largest: int) -> None:
    """Raise ValueError unless 1 <= order <= largest."""
    if not 1 <= order <= largest:
        raise ValueError(f"order must be from 1 to {largest}, not {order}")


def noise_step(out: Prediction, then: Point, weights: Sequence[float], noises: Sequence[Tensor]) -> Tensor:
    """alpha_s [x_t / alpha_t + sum_j w_j eps_j], where noises[0] is that of `out`."""
    # x_t / alpha_t = x0 + (sigma_t / alpha_t) eps: one pass for the linear part and the most recent noise
    x = out.compose(x0=then.alpha, eps=then.alpha * (out.point.ratio + weights[0]))
    if len(weights) == 1:
        return x
    return torch.add(x, weighted_sum(weights[1:], noises[1 : len(weights)]), alpha=then.alpha)


def noise_multistep(x: Tensor, path: Path, order: int, weights: Weights, *, lower: bool = False) -> Run:
    """A multistep method on the last `order` noise predictions; `lower` is as in `orders`."""
    points: list[Point] = []
    noises: list[Tensor] = []
    sizes = [order] * len(path.steps)
    if lower and not path.points[-1].is_clean:  # into sigma = 0 the weights themselves are of first order
        sizes = orders(path, order, second=True)
    for (now, then), size in zip(path.steps, sizes, strict=True):
        out = yield x, now
        if now.is_pure_noise:
            x = out.step_to(then)
            continue
        points, noises = [now, *points][:order], [out.eps, *noises][:order]
        x = noise_step(out, then, weights(points[:size], then), noises)
    return x


def adams_bashforth(points: Sequence[Point], then: Point) -> list[float]:
    """Weights that are exact if eps is a polynomial in sigma/alpha."""
    return lagrange_integrals([float(p.ratio) for p in points], float(points[0].ratio), float(then.ratio))


def scaled_weights(points: Sequence[Point], then: Point, coefficients: Sequence[float]) -> list[float]:
    """The coefficients of the noises times the step in sigma/alpha; coefficients that sum to 1 average the noises."""
    step = float(then.ratio - points[0].ratio)
    return [step * c for c in coefficients]


@sampler("ab", order=4, coordinates="angle", spacing="angle", reference="Hairer, Norsett & Wanner 1993, III.5")
def ab(x: Tensor, path: Path, *, order: int = 4) -> Run:
    """Adams-Bashforth on the probability-flow ODE.

        x_s = x_t + int_t^s p(u) du

    with p the polynomial through the last `order` velocities, on any grid and in any coordinates. A step needs no
    evaluation at its end, so the step into sigma = 0 is of full order.

    Args:
        order: number of velocities, 1 (`euler`) to 5.
    """
    check_order(order, 5)
    times: list[float] = []
    slopes: list[Tensor] = []
    for now, then in path.steps:
        out = yield x, now
        times, slopes = [float(now.time), *times][:order], [out.velocity, *slopes][:order]
        x = out.x + weighted_sum(lagrange_integrals(times, float(now.time), float(then.time)), slopes)
    return x


STABILITY_LIMIT = 0.3
"""The end of the stability interval of the Adams-Bashforth method of order 4 (Hairer & Wanner 1996, V.1)."""
EXTENDED_LIMIT, MAX_EXTENDED_STEPS = 1.2, 3
"""A few steps may exceed the stability interval, up to this limit: errors do not grow far in this number of steps."""
MAX_ALPHA_CHANGE = 0.2
"""The largest change of alpha in a step over which a polynomial through the last velocities is accurate."""


def is_short(now: Point, then: Point, limit: float) -> bool:
    """True if a step changes log sigma by at most `limit` and alpha by at most `MAX_ALPHA_CHANGE`.

    Both changes are computed from the schedule and from its tangent, which is steeper next to a singular end.
    """
    if then.is_clean:
        return False
    h = then.time - now.time
    in_alpha = max(abs(then.alpha - now.alpha), abs(h * now.d_alpha))
    in_sigma = max(abs(math.log(then.sigma / now.sigma)), abs(h * now.d_sigma / now.sigma))
    return bool(in_alpha <= MAX_ALPHA_CHANGE and in_sigma <= limit)


@sampler(
    "ab-2m",
    order=None,  # the order of `ab` on fine grids, 2 next to singular ends
    needs=["marginals"],
    reference="Hairer, Norsett & Wanner 1993, III.5; Hairer & Wanner 1996, V.1; Lu et al. 2022b, algorithm 2",
)
def ab_2m(x: Tensor, path: Path, *, order: int = 4) -> Run:
    """Adams-Bashforth within its stability interval, DPM-Solver++(2M) outside.

    A step is that of `ab` with the last `order` velocities if it changes log sigma by at most 0.3, the stability
    interval of order 4, and alpha by at most 0.2. Otherwise it is that of `dpmpp-2m`, which is stable for steps of any
    size: with h = lambda_s - lambda_t and r = h_last / h,

        D = (1 + 1/(2r)) x0 - 1/(2r) x0_last
        x_s = (sigma_s/sigma_t) x_t - alpha_s (e^{-h} - 1) D

    For data that are narrow compared with sigma the ODE is dx/dt = (sigma'/sigma) x. In the native time of VE and with
    few steps, every step is too long for Adams-Bashforth; for DDPM schedules the last ones are. To keep the order, up
    to three longer steps are still Adams-Bashforth steps, if `order` velocities are available. The step into sigma = 0
    is DDIM's.

    Args:
        order: number of velocities, 1 to 5.
    """
    check_order(order, 5)
    extended_steps = 0
    points: list[Point] = []
    slopes: list[Tensor] = []
    last: Prediction | None = None
    for (now, then), size in zip(path.steps, orders(path, 2), strict=True):
        out = yield x, now
        is_stable = is_short(now, then, STABILITY_LIMIT)
        if not is_stable and len(points) == order and extended_steps < MAX_EXTENDED_STEPS:
            is_stable = is_short(now, then, EXTENDED_LIMIT)
            extended_steps += is_stable
        if is_stable:
            points, slopes = [now, *points][:order], [out.velocity, *slopes][:order]
            times = [float(p.time) for p in points]
            x = out.x + weighted_sum(lagrange_integrals(times, times[0], float(then.time)), slopes)
        elif last is None or size == 1:
            points, slopes, x = [], [], out.step_to(then)
        else:
            points, slopes = [], []
            h = then.lam - now.lam
            c = then.alpha * midpoint_integrals(h, 1.0, (last.point.lam - now.lam) / h)[1]
            x = out.compose(then.alpha - c, then.sigma, (last, c, 0.0))
        last = None if now.is_pure_noise else out
    return x


ORDER_FROM = (0, 10, 18, 60)
"""Number of steps from which order 1, 2, 3, 4 is best, measured on a trained network (studies/work_precision.py)."""


@sampler(
    "abm",
    order=4,
    coordinates="angle",
    spacing="angle",
    reference="Hairer, Norsett & Wanner 1993, III.1 and III.5, modes PEC and PECE",
)
def abm(
    x: Tensor,
    path: Path,
    *,
    order: int | None = None,
    mode: Literal["pec", "pece"] = "pec",
    longest: float = math.inf,
) -> Run:
    """Adams-Bashforth-Moulton predictor-corrector on the probability-flow ODE.

        x* = x_t + int_t^s p(u) du        p through the last `order` velocities
        x_s = x_t + int_t^s q(u) du       q through v* = v(x*, s) and the last order - 1 velocities

    In mode "pec" the last step is not corrected; neither is a step into sigma = 0.

    Args:
        order: number of velocities, 1 to 5. By default 1 below 10 steps, 2 from 10, 3 from 18 and 4 from 60: high
            orders are inaccurate in long steps.
        mode: "pec" uses v* as the velocity of the next step (one evaluation per step); "pece" evaluates again at the
            corrected state (two).
        longest: the largest change of log sigma in a step that is corrected. In longer steps the corrector, which
            is implicit in the velocity, overshoots for data that are narrower than sigma.
    """
    order = bisect.bisect_right(ORDER_FROM, len(path.steps)) if order is None else order
    check_order(order, 5)
    times: list[float] = []
    slopes: list[Tensor] = []
    for now, then in path.steps:
        start, end = float(now.time), float(then.time)
        if not times or mode == "pece":
            out = yield x, now
            x, times, slopes = out.x, [start, *times][:order], [out.velocity, *slopes][:order]
        step = weighted_sum(lagrange_integrals(times, start, end), slopes)
        x = x + step
        if then.is_clean or (mode == "pec" and then is path.points[-1]):
            continue
        out = yield x, then
        nodes, values = [end, *times][:order], [out.velocity, *slopes][:order]
        x = out.x
        if longest == math.inf or abs(math.log(then.sigma / now.sigma)) <= longest:
            x = x + (weighted_sum(lagrange_integrals(nodes, start, end), values) - step)
        if mode == "pec":
            times, slopes = [end, *times][:order], [out.velocity, *slopes][:order]
    return x


@sampler(
    "lms",
    order=4,
    needs=["marginals"],
    coordinates="ve",
    spacing="karras",
    reference="Crowson 2022 (k-diffusion), LMS in sigma",
)
def lms(x: Tensor, path: Path, *, order: int = 4) -> Run:
    """Linear multistep method (LMS) in sigma: Adams-Bashforth for the predicted noise.

        x_s / alpha_s = x_t / alpha_t + int p(rho) d(rho)

    over rho = sigma/alpha, with p the polynomial through the last `order` noise predictions. The step into sigma = 0 is
    of full order. In `ve` coordinates this is `ab`.

    Args:
        order: number of noise predictions, 1 (`ddim`) to 4.
    """
    check_order(order, 4)
    return (yield from noise_multistep(x, path, order, adams_bashforth))


EQUAL_STEPS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@sampler(
    "ipndm",
    order=1,
    needs=["marginals"],
    reference="Zhang & Chen 2023 (DEIS), improved PNDM; weights of Liu et al. 2022 (PNDM), eq. 12",
)
def ipndm(x: Tensor, path: Path, *, order: int = 4) -> Run:
    """Improved PNDM (iPNDM): DDIM steps with an Adams-Bashforth combination of the last noise predictions.

        x_s = ddim(x_t, sum_j c_j eps_j)

    with c the Adams-Bashforth weights for equal steps on every grid, as published. The order of convergence is
    therefore `order` for equal steps of sigma/alpha, 2 on other smoothly graded grids, and 1 if neighbouring steps
    differ; `ipndm-v` has the weights of the actual grid. The step into sigma = 0 is DDIM's.

    Args:
        order: number of noise predictions, 1 (`ddim`) to 4.
    """
    check_order(order, 4)

    def weights(points: Sequence[Point], then: Point) -> list[float]:
        return scaled_weights(points, then, EQUAL_STEPS[0 if then.is_clean else len(points) - 1])

    return (yield from noise_multistep(x, path, order, weights))


@sampler(
    "ipndm-v",
    order=4,
    needs=["marginals"],
    reference="Zhou et al. 2024 (AMED-Solver code), iPNDM with variable steps; Hairer, Norsett & Wanner 1993, III.5",
)
def ipndm_v(x: Tensor, path: Path, *, order: int = 4) -> Run:
    """iPNDM with variable steps: the Adams-Bashforth weights of the actual grid.

        x_s = ddim(x_t, sum_j c_j eps_j),   (rho_s - rho_t) c_j = int l_j(rho) d(rho)

    over rho = sigma/alpha, with l_j the Lagrange polynomials of the last `order` points. This is `lms` except for the
    step into sigma = 0, which is DDIM's.

    Args:
        order: number of noise predictions, 1 (`ddim`) to 4.
    """
    check_order(order, 4)

    def weights(points: Sequence[Point], then: Point) -> list[float]:
        return scaled_weights(points, then, EQUAL_STEPS[0]) if then.is_clean else adams_bashforth(points, then)

    return (yield from noise_multistep(x, path, order, weights))


def pseudo_adams(points: Sequence[Point], then: Point) -> list[float]:
    """PLMS: a DDIM step with the mean, over the time of the path, of the polynomial through the noises.

    For equal time steps its coefficients are the published 55/24, -59/24, 37/24, -9/24.
    """
    if then.is_clean:
        return scaled_weights(points, then, EQUAL_STEPS[0])
    start, end = float(points[0].time), float(then.time)
    means = lagrange_integrals([float(p.time) for p in points], start, end)
    return scaled_weights(points, then, [w / (end - start) for w in means])


Startup = Callable[[Prediction, Path, Point], Generator[Any, Any, Tensor]]
"""Computes the mean noise of a step from its first prediction and further evaluations."""


def pseudo_multistep(x: Tensor, path: Path, starting: int, startup: Startup) -> Run:
    """PLMS after `starting` steps whose mean noise is computed by `startup`."""
    points: list[Point] = []
    noises: list[Tensor] = []
    for now, then in path.steps:
        out = yield x, now
        if now.is_pure_noise:
            x = out.step_to(then)
            continue
        points, noises = [now, *points][:4], [out.eps, *noises][:4]
        if len(points) <= starting and not then.is_clean:
            mean = yield from startup(out, path, then)
            x = noise_step(out, then, scaled_weights(points, then, (0.0, 1.0)), [out.eps, mean])
        else:
            x = noise_step(out, then, pseudo_adams(points, then), noises)
    return x


def pseudo_improved_euler(out: Prediction, path: Path, then: Point) -> Generator[Any, Any, Tensor]:
    """The mean noise (e_1 + e_2) / 2 of a step, with one more evaluation."""
    ahead = yield out.step_to(then), then
    return weighted_sum((0.5, 0.5), (out.eps, ahead.eps))


def pseudo_runge_kutta(out: Prediction, path: Path, then: Point) -> Generator[Any, Any, Tensor]:
    """The mean noise (e_1 + 2 e_2 + 2 e_3 + e_4) / 6 of a step (Liu et al. 2022, eq. 13): three more evaluations."""
    middle = path.at(0.5 * (out.point.time + then.time))
    noises = [out.eps]
    for end in (middle, middle, then):
        step = scaled_weights([out.point], end, (0.0, 1.0) if len(noises) > 1 else (1.0,))
        ahead = yield noise_step(out, end, step, noises[-1:] * 2), end
        noises.append(ahead.eps)
    return weighted_sum((1 / 6, 1 / 3, 1 / 3, 1 / 6), noises)


@sampler(
    "plms",
    order=2,
    needs=["marginals"],
    reference="Liu et al. 2022 (PNDM), eq. 9 and 12; first step as in Rombach et al. 2022 (code)",
)
def plms(x: Tensor, path: Path) -> Run:
    """Pseudo linear multistep method (PLMS), PNDM without Runge-Kutta steps, the first Stable Diffusion's sampler.

        x_s = ddim(x_t, e),   e = (55 e_1 - 59 e_2 + 37 e_3 - 9 e_4) / 24

    for equal timesteps, e_1 being the most recent noise; on other grids e is the mean over the step of the polynomial
    through the last four noises. The first step is a pseudo improved Euler step with two evaluations,
    e = (e_1 + e(ddim(x_t, e_1))) / 2. The step into sigma = 0 is DDIM's.
    """
    return (yield from pseudo_multistep(x, path, 1, pseudo_improved_euler))


@sampler(
    "pndm", order=2, needs=["marginals"], reference="Liu et al. 2022 (PNDM), algorithm 2 (F-PNDM), eq. 9, 12 and 13"
)
def pndm(x: Tensor, path: Path) -> Run:
    """Pseudo numerical method for diffusion models (PNDM): three pseudo Runge-Kutta steps, then PLMS.

        x_s = ddim(x_t, e)
        e = (e_1 + 2 e_2 + 2 e_3 + e_4) / 6        in the first three steps

    with e_2 and e_3 in the middle of the step and e_4 at its end: four evaluations. The other steps take one
    evaluation, with e as in `plms`. The step into sigma = 0 is DDIM's.
    """
    return (yield from pseudo_multistep(x, path, 3, pseudo_runge_kutta))


def interpolated_in_time(path: Path, points: Sequence[Point], then: Point) -> list[float]:
    """w_j = int l_j(t) drho over the step, by quadrature in lambda = -log rho, in which it is smooth at both ends."""
    lam, quadrature_weights = quadrature(float(points[0].lam), float(then.lam))
    times = [float(p.time) for p in points]
    kept = apart(times, float(then.time) - times[0])
    basis = lagrange([times[j] for j in kept], path.at_lambda(lam).time)
    weights = {
        j: -float(np.sum(quadrature_weights * np.exp(-lam) * values)) for j, values in zip(kept, basis, strict=True)
    }
    return [weights.get(j, 0.0) for j in range(len(times))]


@sampler("deis", order=3, needs=["marginals"], reference="Zhang & Chen 2023, eq. 14-15 (tAB) and proposition 3 (rhoAB)")
def deis(
    x: Tensor,
    path: Path,
    *,
    order: int = 3,
    kind: Literal["tab", "rhoab", "logrho"] = "tab",
    lower_order_final: bool = True,
) -> Run:
    """Diffusion exponential integrator sampler (DEIS), multistep.

        x_s / alpha_s = x_t / alpha_t + sum_j eps_j int l_j d(rho)

    over rho = sigma/alpha, with l_j the Lagrange polynomials of the last `order` points. The step into sigma = 0 is
    DDIM's.

    Args:
        order: number of noise predictions, 1 (`ddim`) to 4; the paper's tAB-r has order r + 1.
        kind: the variable of the polynomials: "tab", the time of the path; "rhoab", rho (the weights of `lms`); or
            "logrho", log rho (diffusers' DEIS).
        lower_order_final: with fewer than 15 steps, make the step to the smallest sigma first-order and the one before
            it at most second-order.
    """
    check_order(order, 4)

    def weights(points: Sequence[Point], then: Point) -> list[float]:
        if then.is_clean or len(points) == 1:
            return scaled_weights(points, then, EQUAL_STEPS[0])
        if kind == "tab":
            return interpolated_in_time(path, points, then)
        if kind == "rhoab":
            return adams_bashforth(points, then)
        lams = [float(p.lam) for p in points]
        return [-float(then.ratio) * w for w in lagrange_integrals(lams, lams[0], float(then.lam), rate=-1.0)]

    return (yield from noise_multistep(x, path, order, weights, lower=lower_order_final))


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [ab, ab_2m, abm, lms, ipndm, ipndm_v, pndm, plms, deis]
