"""Exponential integrators in lambda = log(alpha/sigma), which solve the linear part of the ODE exactly.

With h = lambda_s - lambda_t, a step in data prediction is x_s = (sigma_s / sigma_t) x_t
+ alpha_s int e^{u - lambda_s} x0(u) du, and y = x / alpha satisfies y' = -y + x0, the semilinear equation that
exponential integrators solve: their tableaus apply, with phi_k(-h). At sigma = 0 and alpha = 0 lambda is infinite.
Steps into sigma = 0, and multistep steps out of alpha = 0, are DDIM's; Runge-Kutta steps out of alpha = 0 use
alpha/sigma as the variable, in which the derivative of x / sigma is x0, so that the tableaus apply with phi_k(0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from sdesamplers import Path, Point, Prediction, Run, Sampler, hookimpl, sampler, weighted_sum
from sdesamplers.coefficients import phi

from ._dpm_stages import intermediate_point
from ._shared import exponential_adams


def data_step(out: Prediction, then: Point, weights: Sequence[float], older: Sequence[Tensor]) -> Tensor:
    """(sigma_s / sigma_t) x_t + alpha_s sum_j w_j x0_j; weights[0] is for `out`, the others for `older`."""
    now = out.point
    keep = then.sigma * now.alpha / now.sigma  # (sigma_s / sigma_t) x_t = keep x0 + sigma_s eps
    x = out.compose(x0=keep + then.alpha * weights[0], eps=then.sigma)
    return torch.add(x, weighted_sum(weights[1:], older), alpha=then.alpha) if older else x


@sampler(
    "exp-ab",
    order=3,
    needs=["marginals"],
    reference="Hochbruck & Ostermann 2010 (exponential Adams methods); Norsett 1969",
)
def exp_ab(
    x: Tensor, path: Path, *, order: int = 3, prediction: Literal["x0", "eps"] = "x0", lower_order_final: bool = True
) -> Run:
    """Exponential Adams-Bashforth: the polynomial in lambda through the last predictions, integrated exactly.

        x_s = (sigma_s/sigma_t) x_t + alpha_s sum_j x0_j int e^{u - lambda_s} l_j(u) du
        x_s = (alpha_s/alpha_t) x_t - sigma_s sum_j eps_j int e^{lambda_s - u} l_j(u) du        prediction="eps"

    with l_j the Lagrange polynomials of the last `order` values of lambda.

    Args:
        order: number of predictions, 1 (`ddim`) to 8.
        prediction: the prediction that is extrapolated, "x0" or "eps".
        lower_order_final: lower the order of the step to the smallest sigma, to 2, or with fewer than 15 steps to 1.
    """
    if not 1 <= order <= 8:
        raise ValueError(f"order must be from 1 to 8, not {order}")
    kind = "noise" if prediction == "eps" else "data"
    return (yield from exponential_adams(x, path, order, kind, lower=lower_order_final))


@sampler(
    "res-2m",
    order=2,
    needs=["marginals"],
    reference="Zhang et al. 2023 (RES), multistep with two predictions",
)
def res_2m(x: Tensor, path: Path) -> Run:
    """Refined exponential solver (RES), multistep of order 2.

        x_s = (sigma_s/sigma_t) x_t + alpha_s h [(phi_1 - phi_2 / c) x0_t + (phi_2 / c) x0_last]

    with phi_k evaluated at -h, h = lambda_s - lambda_t and c h = lambda_last - lambda_t < 0. This is `exp-ab` with
    order=2; DPM-Solver++(2M) has phi_1 / 2 in place of phi_2.
    """
    return (yield from exponential_adams(x, path, 2, "data"))


@sampler(
    "res-3m",
    order=3,
    needs=["marginals"],
    reference="Zhang et al. 2023 (RES), multistep with three predictions",
)
def res_3m(x: Tensor, path: Path) -> Run:
    """Refined exponential solver (RES), multistep of order 3.

        x_s = (sigma_s/sigma_t) x_t + alpha_s int e^{u - lambda_s} [parabola through the last three x0](u) du

    integrated exactly with phi_1, phi_2 and phi_3. This is `exp-ab` with order=3.
    """
    return (yield from exponential_adams(x, path, 3, "data"))


Tableau = tuple[tuple[float, ...], list[list[float]]]
"""Nodes c_2, c_3, ..., and the rows of weights: one per stage after the first, then that of the step."""


def with_first(nodes: Sequence[float], h: float, rows: Sequence[Sequence[float]]) -> Tableau:
    """Add the first column: row i must sum to c_i phi_1(-c_i h), so that the method is exact for constants."""
    ends = (*nodes, 1.0)
    return tuple(nodes), [[c * phi(1, -c * h) - sum(row), *row] for c, row in zip(ends, rows, strict=True)]


def two_stages(h: float, c: float) -> Tableau:
    """Hochbruck & Ostermann 2005, section 5.1: order 2 for any c, also for a stiff linear part."""
    return with_first((c,), h, [[], [phi(2, -h) / c]])


def three_stages(h: float, c2: float, c3: float, gamma: float) -> Tableau:
    """Hochbruck & Ostermann 2005, section 5.2: order 3 if 2 (gamma c2 + c3) = 3 (gamma c2^2 + c3^2)."""
    middle = gamma * c2 * phi(2, -c2 * h) + c3**2 / c2 * phi(2, -c3 * h)
    last = phi(2, -h) / (gamma * c2 + c3)
    return with_first((c2, c3), h, [[], [middle], [gamma * last, last]])


def krogstad(h: float) -> Tableau:
    """Krogstad 2005, ETDRK4-B: four stages, order 4, or 3 for a stiff linear part."""
    half2, one2, one3 = phi(2, -h / 2), phi(2, -h), phi(3, -h)
    last = [2 * one2 - 4 * one3, 2 * one2 - 4 * one3, 4 * one3 - one2]
    return with_first((0.5, 0.5, 1.0), h, [[], [half2], [0.0, 2 * one2], last])


def hochbruck_ostermann(h: float) -> Tableau:
    """Hochbruck & Ostermann 2005, section 5.3: five stages, order 4, also for a stiff linear part."""
    half2, half3, one2, one3 = phi(2, -h / 2), phi(3, -h / 2), phi(2, -h), phi(3, -h)
    a = half2 / 2 - one3 + one2 / 4 - half3 / 2
    fourth = [a, a, half2 / 4 - a]
    return with_first(
        (0.5, 0.5, 1.0, 0.5), h, [[], [half2], [one2, one2], fourth, [0.0, 0.0, 4 * one3 - one2, 4 * one2 - 8 * one3]]
    )


def exponential_runge_kutta(x: Tensor, path: Path, tableau: Callable[[float], Tableau]) -> Run:
    """x_i = (sigma_i / sigma_t) x_t + alpha_i h sum_j a_ij(-h) x0_j at lambda_t + c_i h, and likewise at s.

    Out of alpha = 0 it is x_i = (sigma_i / sigma_t) x_t + sigma_i u sum_j a_ij(0) x0_j at c_i u, with
    u = alpha_s / sigma_s.
    """
    for now, then in path.steps:
        out = yield x, now
        if then.is_clean:
            x = out.step_to(then)
            continue
        h = 0.0 if now.is_pure_noise else float(then.lam - now.lam)
        nodes, rows = tableau(h)
        values: list[Tensor] = []  # x0 of the stages after the first
        for c, row in zip(nodes, rows[:-1], strict=True):
            point = then if c == 1 else intermediate_point(path, now, then, c)
            size = h or 1 / c  # alpha_i / c = sigma_i u
            stage = yield data_step(out, point, [size * a for a in row], values), point
            values.append(stage.x0)
        x = data_step(out, then, [(h or 1.0) * b for b in rows[-1]], values)
    return x


@sampler(
    "res-2s",
    order=2,
    evaluations=2,
    needs=["marginals"],
    reference="Zhang et al. 2023 (RES), single step; Hochbruck & Ostermann 2005, section 5.1",
)
def res_2s(x: Tensor, path: Path, *, c2: float = 0.5) -> Run:
    """Refined exponential solver (RES), two stages, order 2.

        x_s = (sigma_s/sigma_t) x_t + alpha_s h [(phi_1 - phi_2 / c2) x0_1 + (phi_2 / c2) x0_2]

    with phi_k evaluated at -h, and x0_1 and x0_2 predicted at lambda_t and lambda_t + c2 h. (DPM-Solver++(2S) has
    phi_1 / 2 in place of phi_2.)

    Args:
        c2: position of the second stage in the step, in (0, 1].
    """
    if not 0 < c2 <= 1:
        raise ValueError(f"c2 must lie in (0, 1], not {c2}")
    return (yield from exponential_runge_kutta(x, path, lambda h: two_stages(h, c2)))


@sampler(
    "res-3s",
    order=3,
    evaluations=3,
    needs=["marginals"],
    reference="Zhang et al. 2023 (RES), single step; Hochbruck & Ostermann 2005, section 5.2",
)
def res_3s(x: Tensor, path: Path, *, c2: float = 0.5, c3: float = 1.0) -> Run:
    """Refined exponential solver (RES), three stages, order 3.

        x_i = (sigma_i/sigma_t) x_t + alpha_i h sum_j a_ij(-h) x0_j        at lambda_t + c_i h
        gamma = (3 c3^2 - 2 c3) / (c2 (2 - 3 c2))
        a_32 = gamma c2 phi_2(-c2 h) + (c3^2 / c2) phi_2(-c3 h)
        b_3 = phi_2(-h) / (gamma c2 + c3),   b_2 = gamma b_3

    where a_i1 and b_1 are such that the method is exact for constant x0.

    Args:
        c2: position of the second stage in the step, in (0, 1], not 2/3.
        c3: position of the third stage, in (0, 1], different from c2.
    """
    if not (0 < c2 <= 1 and 0 < c3 <= 1 and c2 != c3 and abs(c2 - 2 / 3) > 1e-6):
        raise ValueError(f"c2 and c3 must lie in (0, 1] and differ, and c2 must not be 2/3; not {c2=}, {c3=}")
    gamma = (3 * c3**2 - 2 * c3) / (c2 * (2 - 3 * c2))
    return (yield from exponential_runge_kutta(x, path, lambda h: three_stages(h, c2, c3, gamma)))


@sampler("etdrk2", order=2, evaluations=2, needs=["marginals"], reference="Cox & Matthews 2002, eq. 22")
def etdrk2(x: Tensor, path: Path) -> Run:
    """Exponential time differencing Runge-Kutta, order 2.

        a = ddim(x_t, x0_t)
        x_s = a + alpha_s h phi_2(-h) (x0_a - x0_t)

    with h = lambda_s - lambda_t. This is the exponential form of Heun's method, and `res-2s` with c2 = 1.
    """
    return (yield from exponential_runge_kutta(x, path, lambda h: two_stages(h, 1.0)))


@sampler(
    "etdrk3",
    order=3,
    evaluations=3,
    needs=["marginals"],
    reference="Hochbruck & Ostermann 2005, section 5.2, with c2 = 1/3 and c3 = 2/3",
)
def etdrk3(x: Tensor, path: Path) -> Run:
    """Exponential time differencing Runge-Kutta, order 3: the exponential form of Heun's third-order method.

        x_i = (sigma_i/sigma_t) x_t + alpha_i h sum_j a_ij(-h) x0_j        at lambda_t + c_i h
        c = (0, 1/3, 2/3),   a_32 = (4/3) phi_2(-2h/3),   b = (phi_1 - 3/2 phi_2, 0, 3/2 phi_2)(-h)

    The order is 3 also for a stiff linear part, unlike that of ETD3RK (Cox & Matthews 2002).
    """
    return (yield from exponential_runge_kutta(x, path, lambda h: three_stages(h, 1 / 3, 2 / 3, 0.0)))


@sampler(
    "etdrk4",
    order=4,
    evaluations=4,
    needs=["marginals"],
    reference="Krogstad 2005 (ETDRK4-B); Hochbruck & Ostermann 2005, section 5.3",
)
def etdrk4(x: Tensor, path: Path, *, tableau: Literal["krogstad", "hochbruck-ostermann"] = "krogstad") -> Run:
    """Exponential time differencing Runge-Kutta, order 4.

        x_i = (sigma_i/sigma_t) x_t + alpha_i h sum_j a_ij(-h) x0_j        at lambda_t + c_i h

    Args:
        tableau: "krogstad", with four stages at 0, 1/2, 1/2, 1, the exponential form of the classical Runge-Kutta
            method; or "hochbruck-ostermann", with five stages, of order 4 also for a stiff linear part.
    """
    rows = krogstad if tableau == "krogstad" else hochbruck_ostermann
    return (yield from exponential_runge_kutta(x, path, rows))


@sampler("gradient-estimation", order=1, needs=["marginals"], reference="Permenter & Yuan 2024, algorithm 2")
def gradient_estimation(x: Tensor, path: Path, *, gamma: float = 2.0) -> Run:
    """Gradient estimation: DDIM with eps extrapolated from the last two predictions.

        x_s = ddim(x_t, gamma eps_t + (1 - gamma) eps_last)

    The first step and the step into sigma = 0 are DDIM's.

    Args:
        gamma: weight of the current prediction. 1 is `ddim`; 3/2 is the second-order Adams method if the steps of
            sigma/alpha are equal.
    """
    last: Tensor | None = None
    for now, then in path.steps:
        out = yield x, now
        x = out.step_to(then)
        if now.is_pure_noise:
            continue
        eps = out.eps
        if last is not None and not then.is_clean:
            x = torch.add(x, eps - last, alpha=(gamma - 1) * (then.sigma - then.alpha * now.ratio))
        last = eps
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [exp_ab, res_2m, res_3m, res_2s, res_3s, etdrk2, etdrk3, etdrk4, gradient_estimation]
