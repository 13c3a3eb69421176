"""SDE-DPM-Solver++: exponential integrators of the reverse SDE in data prediction, multistep and singlestep.

With eta times the reverse SDE's noise (eta = 0 is the probability-flow ODE), a step from t to s is
x_s = (sigma_s / sigma_t) e^{-eta^2 h} x_t + (1 + eta^2) alpha_s int e^{(1 + eta^2) (lambda - lambda_s)} x0 dlambda
+ sigma_s sqrt(1 - e^{-2 eta^2 h}) z, where h = lambda_s - lambda_t. The solvers differ in how they follow x0.
k-diffusion's multistep eta is this one squared; at 0 and 1 the two agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from sdesamplers import Path, Point, Prediction, Run, Sampler, hookimpl, sampler, weighted_sum
from sdesamplers.coefficients import lagrange_integrals, semilinear_sde

PAPER = "Lu et al. 2022b (DPM-Solver++), section 5"


def check(eta: float, s_noise: float) -> None:
    """Refuse options outside their range."""
    if eta < 0 or s_noise < 0:
        raise ValueError(f"eta and s_noise scale the noise and must be 0 or more, not {eta} and {s_noise}")


def singular_step(out: Prediction, path: Path, now: Point, then: Point, eta: float, s_noise: float) -> Tensor:
    """The first-order step at an infinite lambda: x0 into sigma = 0; out of alpha = 0 the start is forgotten."""
    mean = out.compose(then.alpha, 0.0 if eta else then.sigma)
    return path.draw(mean, s_noise * then.sigma if eta else 0.0, now, then)


def multistep(
    x: Tensor, path: Path, order: int, eta: float, s_noise: float, midpoint: bool = False, lower_last: bool = False
) -> Run:
    """Integrate the polynomial in lambda through the last `order` predictions of x0.

    With `lower_last` the step before the one into sigma = 0 is of second order.
    """
    check(eta, s_noise)
    lowered = path.points[-2] if lower_last and path.points[-1].is_clean else None
    history: list[tuple[float, Tensor]] = []
    for now, then in path.steps:
        out = yield x, now
        if now.is_pure_noise or then.is_clean:
            x = singular_step(out, path, now, then, eta, s_noise)
            continue
        history = [(now.lam, out.x0), *history][:order]
        nodes, data = zip(*history[: 2 if then is lowered else order], strict=True)
        carry, gain, rate, std = semilinear_sde(now, then, "data", eta)
        weights = lagrange_integrals(nodes, now.lam, then.lam, rate=rate)
        if midpoint and len(nodes) == 2:  # the line through both at the middle of the step
            ahead = 0.5 * sum(weights) * (then.lam - now.lam) / (nodes[0] - nodes[1])
            weights = [sum(weights) + ahead, -ahead]
        mean = weighted_sum([carry, *(gain * w for w in weights)], [out.x, *data])
        x = path.draw(mean, s_noise * std, now, then)
    return x


@sampler(
    "dpmpp-2m-sde",
    order=2,
    stochastic=True,
    noiseless={"eta": 0.0},
    needs=("marginals",),
    reference=PAPER + ", SDE-DPM-Solver++(2M)",
)
def dpmpp_2m_sde(
    x: Tensor, path: Path, *, eta: float = 1.0, s_noise: float = 1.0, solver: Literal["midpoint", "heun"] = "midpoint"
) -> Run:
    """SDE-DPM-Solver++(2M), two-step with one evaluation a step.

    x0 is followed along the line through its last two predictions: solver = "heun" integrates that line exactly,
    "midpoint" takes its value in the middle of the step. eta scales the noise of the SDE that is solved (0 is
    `dpmpp-2m`), s_noise the noise alone, which changes the distribution.
    """
    return (yield from multistep(x, path, 2, eta, s_noise, solver == "midpoint"))


@sampler(
    "dpmpp-3m-sde",
    order=2,
    ode_order=3,
    stochastic=True,
    noiseless={"eta": 0.0},
    needs=("marginals",),
    reference=PAPER + ", with the parabola through three predictions",
)
def dpmpp_3m_sde(
    x: Tensor, path: Path, *, eta: float = 1.0, s_noise: float = 1.0, lower_order_final: bool = True
) -> Run:
    """SDE-DPM-Solver++(3M), three-step with one evaluation a step.

    The parabola through the last three predictions of x0 is integrated exactly. (Usual implementations give its
    curvature half that weight, which makes them of second order.) eta and s_noise as in `dpmpp-2m-sde`.
    lower_order_final makes the step before the one into sigma = 0 of second order, which few steps need.
    """
    return (yield from multistep(x, path, 3, eta, s_noise, lower_last=lower_order_final))


@sampler(
    "dpmpp-sde",
    order=2,
    strong_order=1.0,
    evaluations=2,
    stochastic=True,
    noiseless={"eta": 0.0},
    needs=("marginals",),
    reference=PAPER + "; two stages as in DPM-Solver++(2S), algorithm 1",
)
def dpmpp_sde(x: Tensor, path: Path, *, eta: float = 1.0, s_noise: float = 1.0, r: float = 0.5) -> Run:
    """SDE-DPM-Solver++(2S), a stage at lambda_t + r h and a step with both predictions of x0.

    The step integrates (1 - 1/(2r)) x0_t + 1/(2r) x0_u as a constant. Its noise is the stage's, carried on, and the
    rest of the step's: with two unrelated noises the variance would be right to first order only. eta and s_noise as in
    `dpmpp-2m-sde`; 0 < r <= 1.
    """
    check(eta, s_noise)
    if not 0 < r <= 1:
        raise ValueError(f"r places the stage inside the step and must lie in (0, 1], not {r}")
    for now, then in path.steps:
        out = yield x, now
        if now.is_pure_noise or then.is_clean:
            x = singular_step(out, path, now, then, eta, s_noise)
            continue
        middle = path.between(now, then, r) if r < 1 else then
        x, data = out.x, out.x0
        carry, gain, rate, std = semilinear_sde(now, middle, "data", eta)
        (weight,) = lagrange_integrals([now.lam], now.lam, middle.lam, rate=rate)
        mean = weighted_sum([carry, gain * weight], [x, data])
        stage = path.draw(mean, s_noise * std, now, middle)
        ahead = yield stage, middle
        noise = stage - mean
        carry, gain, rate, _ = semilinear_sde(now, then, "data", eta)
        (weight,) = lagrange_integrals([now.lam], now.lam, then.lam, rate=rate)
        onward, _, _, std = semilinear_sde(middle, then, "data", eta)
        shares = [carry, gain * weight * (1 - 0.5 / r), gain * weight * 0.5 / r, onward]
        x = path.draw(weighted_sum(shares, [x, data, ahead.x0, noise]), s_noise * std, middle, then)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [dpmpp_sde, dpmpp_2m_sde, dpmpp_3m_sde]
