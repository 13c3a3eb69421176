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

from sdesamplers import Path, Run, Sampler, hookimpl, sampler

from ._shared import exponential_adams, two_stage_sde

PAPER = "Lu et al. 2022b (DPM-Solver++), section 5"


@sampler(
    "dpmpp-2m-sde",
    order=2,
    stochastic=True,
    noiseless={"eta": 0.0},
    needs=("marginals",),
    reference=PAPER + ", SDE-DPM-Solver++(2M)",
)
def dpmpp_2m_sde(
    x: Tensor,
    path: Path,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True,
) -> Run:
    """SDE-DPM-Solver++(2M), two-step with one evaluation a step.

    With h = lambda_s - lambda_t and r = h_last / h,

        D = (1 + 1/(2r)) x0 - 1/(2r) x0_last
        x_s = (sigma_s/sigma_t) e^{-eta^2 h} x_t + alpha_s (1 - e^{-(1 + eta^2) h}) D
              + sigma_s sqrt(1 - e^{-2 eta^2 h}) z

    D is the line through the last two x0 in the middle of the step; `solver` "heun" integrates the line exactly. eta
    scales the noise of the SDE that is solved (0 is `dpmpp-2m`), s_noise the noise alone, which changes the
    distribution. lower_order_final is as in `dpmpp-2m`.
    """
    middle = solver == "midpoint"
    return (
        yield from exponential_adams(
            x, path, 2, "data", eta=eta, s_noise=s_noise, midpoint=middle, lower=lower_order_final
        )
    )


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

    With h = lambda_s - lambda_t and P the parabola through the last three x0,

        x_s = (sigma_s/sigma_t) e^{-eta^2 h} x_t + (1 + eta^2) alpha_s int e^{(1 + eta^2) (l - lambda_s)} P(l) dl
              + sigma_s sqrt(1 - e^{-2 eta^2 h}) z

    The integral is exact. (Usual implementations give the curvature half its weight, which makes them of second order.)
    eta and s_noise as in `dpmpp-2m-sde`. lower_order_final is as in `dpmpp-3m`.
    """
    return (
        yield from exponential_adams(x, path, 3, "data", eta=eta, s_noise=s_noise, lower=lower_order_final, second=True)
    )


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

    With h = lambda_s - lambda_t,

        u = the same step to lambda_t + r h with D = x0_t
        D = (1 - 1/(2r)) x0_t + 1/(2r) x0_u
        x_s = (sigma_s/sigma_t) e^{-eta^2 h} x_t + alpha_s (1 - e^{-(1 + eta^2) h}) D
              + sigma_s sqrt(1 - e^{-2 eta^2 h}) z

    The step's noise is the stage's, carried on, and the rest of the step's: with two unrelated noises the variance
    would be right to first order only. eta and s_noise as in `dpmpp-2m-sde`; 0 < r <= 1, where a small r is for eta = 0
    alone: x0_u has the stage's noise in it, and 1/(2r) makes of it a variance that grows like 1/r. `seeds-2` is the
    same in data prediction.
    """
    return (yield from two_stage_sde(x, path, "data", eta, s_noise, r))


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [dpmpp_sde, dpmpp_2m_sde, dpmpp_3m_sde]
