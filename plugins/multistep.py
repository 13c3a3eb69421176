"""Linear multistep methods: Adams-Bashforth in any clock, on the velocity or on the predicted noise.

On the noise the step is x_s = alpha_s [x_t / alpha_t + sum_j w_j eps_j], exact in its linear part; a method is its
weights w. They add up to sigma_s/alpha_s - sigma_t/alpha_t, so one weight alone is DDIM. Weights are for the grid as it
is, even or not, except where the published method is its equal-step weights (`ipndm`). The first steps use as many
evaluations as there are. Noise predicted at alpha = 0 has no place in sigma/alpha and is not kept.
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
"""From the points of the kept noises (newest first) and the step's end to the weights of the noises."""


def check_order(order: int, largest: int) -> None:
    """Raise unless 1 <= order <= largest."""
    if not 1 <= order <= largest:
        raise ValueError(f"order must be from 1 to {largest}, not {order}")


def noise_step(out: Prediction, then: Point, weights: Sequence[float], noises: Sequence[Tensor]) -> Tensor:
    """alpha_s [x_t / alpha_t + sum_j w_j eps_j], where noises[0] is this prediction's own."""
    # x_t / alpha_t = x0 + (sigma_t / alpha_t) eps: one pass for the linear part and the newest noise
    x = out.compose(x0=then.alpha, eps=then.alpha * (out.point.ratio + weights[0]))
    if len(weights) == 1:
        return x
    return torch.add(x, weighted_sum(weights[1:], noises[1 : len(weights)]), alpha=then.alpha)


def noise_multistep(x: Tensor, path: Path, order: int, weights: Weights, *, lower: bool = False) -> Run:
    """The loop of a multistep method on the noise that uses up to `order` predictions; `lower`: see `orders`."""
    points: list[Point] = []
    noises: list[Tensor] = []
    sizes = [order] * len(path.steps)
    if lower and not path.points[-1].is_clean:  # into sigma = 0 the method's weights know what to do
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
    """Weights exact for noise that is a polynomial in sigma/alpha."""
    return lagrange_integrals([float(p.ratio) for p in points], float(points[0].ratio), float(then.ratio))


def whole_step(points: Sequence[Point], then: Point, shares: Sequence[float]) -> list[float]:
    """Weights that split DDIM's step of sigma/alpha into shares."""
    step = float(then.ratio - points[0].ratio)
    return [step * share for share in shares]


@sampler("ab", order=4, coordinates="angle", spacing="angle", reference="Hairer, Norsett & Wanner 1993, III.5")
def ab(x: Tensor, path: Path, *, order: int = 4) -> Run:
    """Adams-Bashforth on the probability-flow ODE.

        x_s = x_t + int_t^s p(u) du

    with p the polynomial through the last `order` velocities (1 to 5), on any grid and in any coordinates. No
    evaluation is made at the end of a step, so the order is kept into sigma = 0. order=1 is `euler`.
    """
    check_order(order, 5)
    times: list[float] = []
    slopes: list[Tensor] = []
    for now, then in path.steps:
        out = yield x, now
        times, slopes = [float(now.time), *times][:order], [out.velocity, *slopes][:order]
        x = out.x + weighted_sum(lagrange_integrals(times, float(now.time), float(then.time)), slopes)
    return x


STABLE = 0.3
"""The end of the stability interval of the Adams-Bashforth method of order 4 (Hairer & Wanner 1996, V.1)."""
BEYOND, FEW = 1.2, 3
"""How long a step outside of it may be, and how many of them: a disturbance does not grow far in so few."""
LARGEST = 0.2
"""The largest change of alpha in a step that a polynomial through the last velocities is still good for."""


def is_short(now: Point, then: Point, noise: float) -> bool:
    """Whether a step changes log sigma by no more than `noise` and alpha by no more than `LARGEST`.

    Both are judged by the schedule itself and by its tangent, which is steeper than it next to a singular end.
    """
    if then.is_clean:
        return False
    h = then.time - now.time
    in_alpha = max(abs(then.alpha - now.alpha), abs(h * now.d_alpha))
    in_sigma = max(abs(math.log(then.sigma / now.sigma)), abs(h * now.d_sigma / now.sigma))
    return bool(in_alpha <= LARGEST and in_sigma <= noise)


@sampler(
    "ab-2m",
    order=None,  # that of `ab` on grids fine enough, 2 next to singular ends
    needs=["marginals"],
    reference="Hairer, Norsett & Wanner 1993, III.5; Hairer & Wanner 1996, V.1; Lu et al. 2022b, algorithm 2",
)
def ab_2m(x: Tensor, path: Path, *, order: int = 4) -> Run:
    """Adams-Bashforth inside its region of stability, DPM-Solver++(2M) outside.

    A step is that of `ab`, through the last `order` velocities (1 to 5), if it changes log sigma by no more than the
    method's stability interval (0.3 for order 4), else `dpmpp-2m`'s, which is stable for steps of any length: with h =
    lambda_s - lambda_t and r = h_last / h,

        D = (1 + 1/(2r)) x0 - 1/(2r) x0_last
        x_s = (sigma_s/sigma_t) x_t - alpha_s (e^{-h} - 1) D

    Where the data are narrow the ODE is dx/dt = (sigma'/sigma) x: in the native clock of VE every step of few is too
    long for Adams, on DDPM tables the last ones are. Of these, three are still taken by Adams, if it has all of its
    velocities, for the order's sake. The step into sigma = 0 is DDIM's.
    """
    check_order(order, 5)
    beyond = 0
    points: list[Point] = []
    slopes: list[Tensor] = []
    last: Prediction | None = None
    for (now, then), size in zip(path.steps, orders(path, 2), strict=True):
        out = yield x, now
        is_stable = is_short(now, then, STABLE)
        if not is_stable and len(points) == order and beyond < FEW:
            is_stable = is_short(now, then, BEYOND)
            beyond += is_stable
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
"""Steps from which each order pays, by studies/work_precision.py on a trained network."""


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
    """Adams-Bashforth-Moulton predictor and corrector on the probability-flow ODE.

        x* = x_t + int_t^s p(u) du        p through the last `order` velocities (1 to 5)
        x_s = x_t + int_t^s q(u) du       q through v* = v(x*, s) and the last order - 1 velocities

    mode="pec" keeps v* as the next step's velocity (one evaluation a step), "pece" evaluates again at the corrected
    state (two). The last step is the predictor's. Long steps cannot use a high order: without `order` it is 1 below 10
    steps, then 2, 3 from 18 and 4 from 60. A step that changes log sigma by more than `longest` is not corrected: there
    the corrector, which is implicit in the velocity, overshoots on data that are narrower than sigma.
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
    """Linear multistep in sigma.

        x_s / alpha_s = x_t / alpha_t + int p(rho) d(rho)

    over rho = sigma/alpha, with p the polynomial through the last `order` predicted noises (1 to 4). The order is kept
    into sigma = 0. order=1 is `ddim`. In `ve` coordinates this is `ab`.
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
    """Improved pseudo numerical methods for diffusion models: DDIM's step with an Adams combination of noises.

        x_s = ddim(x_t, sum_j c_j eps_j)

    with c the Adams-Bashforth weights of equal steps (order 1 to 4), whatever the steps are, as published. So its order
    is `order` on equal steps of sigma/alpha, 2 on other smoothly graded grids and 1 where neighbouring steps differ;
    `ipndm-v` has the true weights. The step into sigma = 0 is DDIM's.
    """
    check_order(order, 4)

    def weights(points: Sequence[Point], then: Point) -> list[float]:
        return whole_step(points, then, EQUAL_STEPS[0 if then.is_clean else len(points) - 1])

    return (yield from noise_multistep(x, path, order, weights))


@sampler(
    "ipndm-v",
    order=4,
    needs=["marginals"],
    reference="Zhou et al. 2024 (AMED-Solver code), iPNDM with variable steps; Hairer, Norsett & Wanner 1993, III.5",
)
def ipndm_v(x: Tensor, path: Path, *, order: int = 4) -> Run:
    """iPNDM with the Adams-Bashforth weights of the steps that are taken.

        x_s = ddim(x_t, sum_j c_j eps_j),   (rho_s - rho_t) c_j = int l_j(rho) d(rho)

    over rho = sigma/alpha, order 1 to 4. This is `lms` but for the step into sigma = 0, which is DDIM's.
    """
    check_order(order, 4)

    def weights(points: Sequence[Point], then: Point) -> list[float]:
        return whole_step(points, then, EQUAL_STEPS[0]) if then.is_clean else adams_bashforth(points, then)

    return (yield from noise_multistep(x, path, order, weights))


def pseudo_adams(points: Sequence[Point], then: Point) -> list[float]:
    """PLMS: DDIM's step with the mean over the path's clock of the polynomial through the noises.

    On equal steps of the clock these are the published 55/24, -59/24, 37/24, -9/24.
    """
    if then.is_clean:
        return whole_step(points, then, EQUAL_STEPS[0])
    start, end = float(points[0].time), float(then.time)
    means = lagrange_integrals([float(p.time) for p in points], start, end)
    return whole_step(points, then, [w / (end - start) for w in means])


Startup = Callable[[Prediction, Path, Point], Generator[Any, Any, Tensor]]
"""From a step's first prediction to its mean noise, by further evaluations."""


def pseudo_multistep(x: Tensor, path: Path, starting: int, startup: Startup) -> Run:
    """PLMS after `starting` steps whose mean noise is `startup`'s."""
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
            x = noise_step(out, then, whole_step(points, then, (0.0, 1.0)), [out.eps, mean])
        else:
            x = noise_step(out, then, pseudo_adams(points, then), noises)
    return x


def pseudo_improved_euler(out: Prediction, path: Path, then: Point) -> Generator[Any, Any, Tensor]:
    """The mean noise (e_1 + e_2) / 2 of a step; one evaluation more."""
    ahead = yield out.step_to(then), then
    return weighted_sum((0.5, 0.5), (out.eps, ahead.eps))


def pseudo_runge_kutta(out: Prediction, path: Path, then: Point) -> Generator[Any, Any, Tensor]:
    """The mean noise (e_1 + 2 e_2 + 2 e_3 + e_4) / 6 of a step (Liu et al. 2022, eq. 13); three evaluations more."""
    middle = path.at(0.5 * (out.point.time + then.time))
    noises = [out.eps]
    for end in (middle, middle, then):
        step = whole_step([out.point], end, (0.0, 1.0) if len(noises) > 1 else (1.0,))
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
    """Pseudo linear multistep without Runge-Kutta steps, the sampler of the first Stable Diffusion.

        x_s = ddim(x_t, e),   e = (55 e_1 - 59 e_2 + 37 e_3 - 9 e_4) / 24

    on equal timesteps; on others e is the mean over the step of the polynomial through the last four noises. The first
    step is a pseudo improved Euler step of two evaluations, e = (e_1 + e(ddim(x_t, e_1))) / 2, the step into sigma = 0
    is DDIM's.
    """
    return (yield from pseudo_multistep(x, path, 1, pseudo_improved_euler))


@sampler(
    "pndm", order=2, needs=["marginals"], reference="Liu et al. 2022 (PNDM), algorithm 2 (F-PNDM), eq. 9, 12 and 13"
)
def pndm(x: Tensor, path: Path) -> Run:
    """Pseudo numerical methods for diffusion models: three pseudo Runge-Kutta steps, then pseudo linear multistep.

        x_s = ddim(x_t, e)
        e = (e_1 + 2 e_2 + 2 e_3 + e_4) / 6        in the first three steps

    with e_2, e_3 in a step's middle and e_4 at its end, four evaluations; the other steps take one, with e as in
    `plms`. The step into sigma = 0 is DDIM's.
    """
    return (yield from pseudo_multistep(x, path, 3, pseudo_runge_kutta))


def interpolated_in_time(path: Path, points: Sequence[Point], then: Point) -> list[float]:
    """w_j = int l_j(t) drho over the step, by quadrature in lambda = -log rho, which is smooth up to both ends."""
    lam, shares = quadrature(float(points[0].lam), float(then.lam))
    times = [float(p.time) for p in points]
    kept = apart(times, float(then.time) - times[0])
    basis = lagrange([times[j] for j in kept], path.at_lambda(lam).time)
    weights = {j: -float(np.sum(shares * np.exp(-lam) * values)) for j, values in zip(kept, basis, strict=True)}
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
    """Diffusion exponential integrator sampler (multistep).

        x_s / alpha_s = x_t / alpha_t + sum_j eps_j int l_j d(rho)

    over rho = sigma/alpha, with l_j the Lagrange polynomials of the last `order` points (1 to 4; the paper's tAB-r has
    order r + 1) in the path's time (kind="tab"), in rho ("rhoab", the weights of `lms`) or in log rho ("logrho",
    diffusers' DEIS). order=1 is `ddim`. The step into sigma = 0 is DDIM's; with `lower_order_final` so is the one to
    the smallest sigma if there are fewer than 15, and the one before it is of second order at most.
    """
    check_order(order, 4)

    def weights(points: Sequence[Point], then: Point) -> list[float]:
        if then.is_clean or len(points) == 1:
            return whole_step(points, then, EQUAL_STEPS[0])
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
