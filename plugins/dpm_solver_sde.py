"""SDE-DPM-Solver++: exponential integrators of the reverse SDE in data prediction, multistep and singlestep.

With the noise of the reverse SDE multiplied by eta (eta = 0 is the probability-flow ODE), a step from t to s is
x_s = (sigma_s / sigma_t) e^{-eta^2 h} x_t + (1 + eta^2) alpha_s int e^{(1 + eta^2) (lambda - lambda_s)} x0 dlambda
+ sigma_s sqrt(1 - e^{-2 eta^2 h}) z, where h = lambda_s - lambda_t. The solvers differ in how they approximate x0.
The eta of k-diffusion's multistep samplers is the square of this one; at 0 and 1 the two agree.
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
    """SDE-DPM-Solver++(2M), a two-step method for the reverse SDE.

    With h = lambda_s - lambda_t and r = h_last / h,

        D = (1 + 1/(2r)) x0 - 1/(2r) x0_last
        x_s = (sigma_s/sigma_t) e^{-eta^2 h} x_t + alpha_s (1 - e^{-(1 + eta^2) h}) D
              + sigma_s sqrt(1 - e^{-2 eta^2 h}) z

    D is the straight line through the last two x0, evaluated in the middle of the step. The step into sigma = 0 is of
    first order.

    Args:
        eta: noise of the SDE relative to the reverse SDE; its marginals are the same for every eta. 0 is `dpmpp-2m`.
        s_noise: factor on the added noise; any value but 1 changes the distribution.
        solver: "midpoint" as above; "heun" integrates the straight line exactly.
        lower_order_final: with fewer than 15 steps, make the step to the smallest sigma first-order.
    """
    midpoint = solver == "midpoint"
    return (
        yield from exponential_adams(
            x, path, 2, "data", eta=eta, s_noise=s_noise, midpoint=midpoint, lower=lower_order_final
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
    """SDE-DPM-Solver++(3M), a three-step method for the reverse SDE.

    With h = lambda_s - lambda_t and P the parabola through the last three x0,

        x_s = (sigma_s/sigma_t) e^{-eta^2 h} x_t + (1 + eta^2) alpha_s int e^{(1 + eta^2) (l - lambda_s)} P(l) dl
              + sigma_s sqrt(1 - e^{-2 eta^2 h}) z

    The integral is exact. (Other implementations give the curvature half its weight, which makes them second-order.)
    The step into sigma = 0 is of first order.

    Args:
        eta: noise of the SDE relative to the reverse SDE; its marginals are the same for every eta. 0 is `dpmpp-3m`.
        s_noise: factor on the added noise; any value but 1 changes the distribution.
        lower_order_final: as in `dpmpp-3m`, except that with noise the step to the smallest sigma is of order 1 for any
            number of steps.
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
    """SDE-DPM-Solver++(2S), a two-stage method for the reverse SDE.

    With h = lambda_s - lambda_t,

        u = step to lambda_t + r h with D = x0_t
        D = (1 - 1/(2r)) x0_t + 1/(2r) x0_u
        x_s = (sigma_s/sigma_t) e^{-eta^2 h} x_t + alpha_s (1 - e^{-(1 + eta^2) h}) D
              + sigma_s sqrt(1 - e^{-2 eta^2 h}) z

    The noise of the step contains the noise of the stage: both come from one Brownian motion. With independent noise
    the variance would be right to first order only. `seeds-2` in data prediction is the same method.

    Args:
        eta: noise of the SDE relative to the reverse SDE; its marginals are the same for every eta. 0 is `dpmpp-2s`.
        s_noise: factor on the added noise; any value but 1 changes the distribution.
        r: position of the stage in the step, in (0, 1]. Use a small r only with eta = 0: x0_u contains the stage's
            noise, whose contribution to the variance, through the factor 1/(2r), grows like 1/r.
    """
    return (yield from two_stage_sde(x, path, "data", eta, s_noise, r))


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [dpmpp_sde, dpmpp_2m_sde, dpmpp_3m_sde]
