"""Multistep DPM-Solver++ and DPM-Solver (Lu et al. 2022b, 2022), with one evaluation per step.

On a step from t to s, h = lambda_s - lambda_t with lambda = log(alpha/sigma), the probability-flow ODE's solution is

    x_s = (sigma_s/sigma_t) x_t + alpha_s int e^{u - lambda_s} x0(u) du        over u from lambda_t to lambda_s
        = (alpha_s/alpha_t) x_t - sigma_s int e^{lambda_s - u} eps(u) du

and the samplers replace x0(u) (DPM-Solver++) or eps(u) (DPM-Solver) by a polynomial through the last predictions. With
a constant both are DDIM, x_s = alpha_s x0 + sigma_s eps. Lambda is infinite at sigma = 0 and at alpha = 0: steps to or
from there are DDIM's, and a prediction made there is not used in later steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from sdesamplers import Path, Prediction, Run, Sampler, hookimpl, sampler
from sdesamplers.coefficients import NEAREST, lagrange_integrals

from ._shared import exponential_adams, orders


def require_second(order: int) -> None:
    """Raise ValueError unless `order` is 1 or 2."""
    if order not in (1, 2):
        raise ValueError(f"order must be 1 (DDIM) or 2, not {order}; for order 3 use the 3m sampler")


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

    With h = lambda_s - lambda_t and r = h_last / h,

        D = (1 + 1/(2r)) x0 - 1/(2r) x0_last
        x_s = (sigma_s/sigma_t) x_t - alpha_s (e^{-h} - 1) D

    D is the straight line through the last two x0, evaluated in the middle of the step. The step into sigma = 0 is of
    first order.

    Args:
        order: 2, or 1 for DDIM (D = x0).
        solver: "midpoint" as above; "heun" integrates the straight line exactly.
        lower_order_final: with fewer than 15 steps, make the step to the smallest sigma first-order.
    """
    require_second(order)
    last: Prediction | None = None
    for (now, then), size in zip(path.steps, orders(path, order, lower_order_final), strict=True):
        out = yield x, now
        h = then.lam - now.lam
        r = 0.0 if last is None or size == 1 else (now.lam - last.point.lam) / h
        if last is None or r < NEAREST:  # two predictions from all but the same place tell no slope
            x = out.step_to(then)
        else:
            if solver == "midpoint":
                w = -then.alpha * (np.expm1(-h) * (0.5 / r))
            else:
                w = -then.alpha * lagrange_integrals([now.lam, last.point.lam], now.lam, then.lam, rate=1.0)[1]
            x = out.compose(then.alpha + w, then.sigma, (last, -w, 0.0))  # DDIM's step + w (x0 - x0_last)
        last = None if now.is_pure_noise else out
    return x


@sampler(
    "dpmpp-3m",
    order=3,
    needs=["marginals"],
    reference="Lu et al. 2022b (DPM-Solver++); exact weights: Hochbruck & Ostermann 2010, section 2.5",
)
def dpmpp_3m(x: Tensor, path: Path, *, lower_order_final: bool = True) -> Run:
    """DPM-Solver++(3M), multistep in data prediction.

        x_s = (sigma_s/sigma_t) x_t + alpha_s int e^{l - lambda_s} [parabola through the last three x0](l) dl

    The integral is exact; k-diffusion and diffusers give the curvature half its weight in their 3M, which makes them
    second-order. The step into sigma = 0 is of first order.

    Args:
        lower_order_final: lower the order of the step to the smallest sigma, to 2, or with fewer than 15 steps to 1;
            the step before a first-order last step is then of order 2.
    """
    return (yield from exponential_adams(x, path, 3, "data", lower=lower_order_final, second=True))


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

    With h = lambda_s - lambda_t and r = h_last / h,

        D = (1 + 1/(2r)) eps - 1/(2r) eps_last
        x_s = (alpha_s/alpha_t) x_t - sigma_s (e^h - 1) D

    D is the straight line through the last two eps, evaluated in the middle of the step. The step into sigma = 0 is of
    first order.

    Args:
        order: 2, or 1 for DDIM (D = eps).
        solver: "midpoint" as above; "heun" integrates the straight line exactly.
        lower_order_final: with fewer than 15 steps, make the step to the smallest sigma first-order.
    """
    require_second(order)
    last: Prediction | None = None
    for (now, then), size in zip(path.steps, orders(path, order, lower_order_final), strict=True):
        out = yield x, now
        h = then.lam - now.lam
        r = 0.0 if last is None or size == 1 else (now.lam - last.point.lam) / h
        if last is None or r < NEAREST:  # two predictions from all but the same place tell no slope
            x = out.step_to(then)
        else:
            if solver == "midpoint":
                w = -then.sigma * (np.expm1(h) * (0.5 / r))
            else:
                w = then.sigma * lagrange_integrals([now.lam, last.point.lam], now.lam, then.lam, rate=-1.0)[1]
            x = out.compose(then.alpha, then.sigma + w, (last, 0.0, -w))  # DDIM's step + w (eps - eps_last)
        last = None if now.is_pure_noise else out
    return x


@sampler(
    "dpm-solver-3m",
    order=3,
    needs=["marginals"],
    reference="Lu et al. 2022b, in noise prediction; exact weights: Hochbruck & Ostermann 2010, section 2.5",
)
def dpm_solver_3m(x: Tensor, path: Path, *, lower_order_final: bool = True) -> Run:
    """DPM-Solver(3M), multistep in noise prediction.

        x_s = (alpha_s/alpha_t) x_t - sigma_s int e^{lambda_s - l} [parabola through the last three eps](l) dl

    The step into sigma = 0 is of first order.

    Args:
        lower_order_final: lower the order of the step to the smallest sigma, to 2, or with fewer than 15 steps to 1;
            the step before a first-order last step is then of order 2.
    """
    return (yield from exponential_adams(x, path, 3, "noise", lower=lower_order_final, second=True))


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [dpmpp_2m, dpmpp_3m, dpm_solver_2m, dpm_solver_3m]
