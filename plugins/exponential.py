"""Exponential integrators in lambda = log(alpha/sigma), where the ODE's linear part is exact.

With h = lambda_s - lambda_t, data prediction is x_s = (sigma_s / sigma_t) x_t + alpha_s int e^{u - lambda_s} x0(u) du
over the step, and y = x / alpha obeys y' = -y + x0, the semilinear equation that exponential integrators are made for:
their tableaux apply, with phi_k(-h). Where lambda is infinite, steps into sigma = 0 and multistep ones out of alpha = 0
are DDIM's; Runge-Kutta steps out of alpha = 0 run in alpha/sigma, in which x / sigma has the derivative x0: phi_k(0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from sdesamplers import Path, Point, Prediction, Run, Sampler, hookimpl, sampler, weighted_sum
from sdesamplers.coefficients import phi

from ._dpm_stages import inner
from ._shared import exponential_adams


def data_step(out: Prediction, then: Point, weights: Sequence[float], older: Sequence[Tensor]) -> Tensor:
    """(sigma_s / sigma_t) x_t + alpha_s sum_j w_j x0_j; weights[0] belongs to `out`, the others to `older`."""
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
    """Exponential Adams-Bashforth.

    The polynomial in lambda through the last `order` predictions (1 to 8), integrated exactly:

        x_s = (sigma_s/sigma_t) x_t + alpha_s sum_j x0_j int e^{u - lambda_s} l_j(u) du
        x_s = (alpha_s/alpha_t) x_t - sigma_s sum_j eps_j int e^{lambda_s - u} l_j(u) du        prediction="eps"

    order=1 is `ddim`. `lower_order_final` makes the step to the smallest sigma of first order (of second from 15
    steps).
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
    """Refined exponential solver, multistep of order 2.

        x_s = (sigma_s/sigma_t) x_t + alpha_s h [(phi_1 - phi_2 / c) x0_t + (phi_2 / c) x0_last]

    with phi_k at -h, h = lambda_s - lambda_t and c h = lambda_last - lambda_t < 0: `exp-ab` of order 2.
    DPM-Solver++(2M) has phi_1 / 2 for phi_2.
    """
    return (yield from exponential_adams(x, path, 2, "data"))


@sampler(
    "res-3m",
    order=3,
    needs=["marginals"],
    reference="Zhang et al. 2023 (RES), multistep with three predictions",
)
def res_3m(x: Tensor, path: Path) -> Run:
    """Refined exponential solver, multistep of order 3.

        x_s = (sigma_s/sigma_t) x_t + alpha_s int e^{u - lambda_s} [parabola through the last three x0](u) du

    integrated exactly with phi_1, phi_2, phi_3: `exp-ab` of order 3.
    """
    return (yield from exponential_adams(x, path, 3, "data"))


Tableau = tuple[tuple[float, ...], list[list[float]]]
"""Nodes c_2, c_3, ..., and the rows of weights of the stages after the first and, last, of the step."""


def with_first(nodes: Sequence[float], h: float, rows: Sequence[Sequence[float]]) -> Tableau:
    """Put the first column before the others: row i adds up to c_i phi_1(-c_i h), so that constants are exact."""
    ends = (*nodes, 1.0)
    return tuple(nodes), [[c * phi(1, -c * h) - sum(row), *row] for c, row in zip(ends, rows, strict=True)]


def two_stages(h: float, c: float) -> Tableau:
    """Hochbruck & Ostermann 2005, section 5.1: order 2 for any c, also where the linear part is stiff."""
    return with_first((c,), h, [[], [phi(2, -h) / c]])


def three_stages(h: float, c2: float, c3: float, gamma: float) -> Tableau:
    """Hochbruck & Ostermann 2005, section 5.2: order 3 where 2 (gamma c2 + c3) = 3 (gamma c2^2 + c3^2)."""
    middle = gamma * c2 * phi(2, -c2 * h) + c3**2 / c2 * phi(2, -c3 * h)
    last = phi(2, -h) / (gamma * c2 + c3)
    return with_first((c2, c3), h, [[], [middle], [gamma * last, last]])


def krogstad(h: float) -> Tableau:
    """Krogstad 2005, ETDRK4-B: four stages, order 3 where the linear part is stiff."""
    half2, one2, one3 = phi(2, -h / 2), phi(2, -h), phi(3, -h)
    last = [2 * one2 - 4 * one3, 2 * one2 - 4 * one3, 4 * one3 - one2]
    return with_first((0.5, 0.5, 1.0), h, [[], [half2], [0.0, 2 * one2], last])


def hochbruck_ostermann(h: float) -> Tableau:
    """Hochbruck & Ostermann 2005, section 5.3: five stages, order 4 also where the linear part is stiff."""
    half2, half3, one2, one3 = phi(2, -h / 2), phi(3, -h / 2), phi(2, -h), phi(3, -h)
    a = half2 / 2 - one3 + one2 / 4 - half3 / 2
    fourth = [a, a, half2 / 4 - a]
    return with_first(
        (0.5, 0.5, 1.0, 0.5), h, [[], [half2], [one2, one2], fourth, [0.0, 0.0, 4 * one3 - one2, 4 * one2 - 8 * one3]]
    )


def exponential_runge_kutta(x: Tensor, path: Path, tableau: Callable[[float], Tableau]) -> Run:
    """x_i = (sigma_i / sigma_t) x_t + alpha_i h sum_j a_ij(-h) x0_j at the points lambda_t + c_i h, and so at s.

    Out of alpha = 0 it is x_i = (sigma_i / sigma_t) x_t + sigma_i u sum_j a_ij(0) x0_j at c_i u; u = alpha_s / sigma_s.
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
            point = then if c == 1 else inner(path, now, then, c)
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
    """Refined exponential solver, two stages, order 2.

        x_s = (sigma_s/sigma_t) x_t + alpha_s h [(phi_1 - phi_2 / c2) x0_1 + (phi_2 / c2) x0_2]

    with phi_k at -h and x0_2 taken at lambda_t + c2 h. (DPM-Solver++(2S) has phi_1 / 2 in the place of phi_2.)
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
    """Refined exponential solver, three stages, order 3.

        x_i = (sigma_i/sigma_t) x_t + alpha_i h sum_j a_ij(-h) x0_j        at lambda_t + c_i h
        gamma = (3 c3^2 - 2 c3) / (c2 (2 - 3 c2))
        a_32 = gamma c2 phi_2(-c2 h) + (c3^2 / c2) phi_2(-c3 h)
        b_3 = phi_2(-h) / (gamma c2 + c3),   b_2 = gamma b_3

    and first columns that make constants exact.
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

    with h = lambda_s - lambda_t: the exponential form of Heun's method, `res-2s` with c2 = 1.
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

    Of order 3 also for stiff linear parts, which the ETD3RK of Cox & Matthews 2002 is not.
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

    tableau="krogstad" has four stages at 0, 1/2, 1/2, 1, the exponential form of the classical Runge-Kutta method;
    "hochbruck-ostermann" has five and keeps order 4 for stiff linear parts.
    """
    rows = krogstad if tableau == "krogstad" else hochbruck_ostermann
    return (yield from exponential_runge_kutta(x, path, rows))


@sampler("gradient-estimation", order=1, needs=["marginals"], reference="Permenter & Yuan 2024, algorithm 2")
def gradient_estimation(x: Tensor, path: Path, *, gamma: float = 2.0) -> Run:
    """Gradient estimation: DDIM with noise extrapolated from the last two predictions.

        x_s = ddim(x_t, gamma eps_t + (1 - gamma) eps_last)

    gamma = 1 is `ddim`, 3/2 the second-order Adams method on equal steps of sigma/alpha. The first step, and the one
    into sigma = 0, are DDIM's.
    """
    before: Tensor | None = None
    for now, then in path.steps:
        out = yield x, now
        x = out.step_to(then)
        if now.is_pure_noise:
            continue
        noise = out.eps
        if before is not None and not then.is_clean:
            x = torch.add(x, noise - before, alpha=(gamma - 1) * (then.sigma - then.alpha * now.ratio))
        before = noise
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [exp_ab, res_2m, res_3m, res_2s, res_3s, etdrk2, etdrk3, etdrk4, gradient_estimation]
