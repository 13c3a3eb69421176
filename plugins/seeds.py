"""SEEDS: exponential Runge-Kutta methods for the reverse SDE, whose stages share one Brownian motion.

The SDE with eta times the noise of the reverse SDE has the exact solution, from t to s with h = lambda_s - lambda_t,

    "data"   x_s = (sigma_s / sigma_t) e^{-eta^2 h} x_t + (1 + eta^2) alpha_s int e^{(1 + eta^2)(lambda - lambda_s)} x0
                   + sigma_s sqrt(1 - e^{-2 eta^2 h}) z
    "noise"  x_s = (alpha_s / alpha_t) x_t - (1 + eta^2) sigma_s int e^{lambda_s - lambda} eps
                   + eta sigma_s sqrt(e^{2h} - 1) z

Both are the same equation, but the second removes the old noise through eps. In a step with constant eps an error of x
in units of sigma is multiplied by 1 + eta^2 - eta^2 e^h, so that for eta = 1 only steps h < ln 3 are stable.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sdesamplers import Path, Run, Sampler, hookimpl, sampler

from ._dpm_stages import dpm_solver_3_step
from ._shared import Kind, check_noise, predicted, sde_stage, singular_step, two_stage_sde


@sampler(
    "exp-euler-maruyama",
    order=1,
    strong_order=1.0,
    stochastic=True,
    noiseless={"eta": 0.0},
    needs=("marginals",),
    reference="Gonzalez et al. 2023, SEEDS-1; Lu et al. 2022b, SDE-DPM-Solver++1",
)
def exp_euler_maruyama(x: Tensor, path: Path, *, eta: float = 1.0, prediction: Kind = "data") -> Run:
    """Exponential Euler-Maruyama (SEEDS-1): the linear part of the reverse SDE is exact, the prediction constant.

    With h = lambda_s - lambda_t, for `prediction` "data" and "noise",

        x_s = alpha_s x0 + sigma_s e^{-eta^2 h} eps + sigma_s sqrt(1 - e^{-2 eta^2 h}) z
        x_s = (alpha_s/alpha_t) x_t - (1 + eta^2) sigma_s (e^h - 1) eps + eta sigma_s sqrt(e^{2h} - 1) z

    The first is gDDIM (Zhang et al. 2022), and DDPM for eta = 1.

    Args:
        eta: noise of the SDE relative to the reverse SDE; its marginals are the same for every eta. 0 is DDIM.
        prediction: "data" (x0) or "noise" (eps); "noise" needs many steps.
    """
    check_noise(eta=eta)
    for now, then in path.steps:
        out = yield x, now
        if now.is_pure_noise or then.is_clean:
            x = singular_step(out, path, now, then, prediction, eta)
        else:
            held = [(now.lam, predicted(out, prediction))]
            x, _ = sde_stage(out.x, path, held, 0.0, now, now, then, prediction, eta)
    return x


@sampler(
    "seeds-2",
    order=2,
    strong_order=1.0,
    evaluations=2,
    stochastic=True,
    noiseless={"eta": 0.0},
    needs=("marginals",),
    reference="Gonzalez et al. 2023, SEEDS-2",
)
def seeds_2(x: Tensor, path: Path, *, eta: float = 1.0, prediction: Kind = "data", r: float = 0.5) -> Run:
    """SEEDS-2: a stage at lambda_t + r h, then the step with both predictions.

    With h = lambda_s - lambda_t and f either x0 or eps,

        u = step to lambda_t + r h with D = f_t
        D = (1 - 1/(2r)) f_t + 1/(2r) f_u
        x_s = carry x_t + gain int e^{rate (l - lambda_s)} D dl + std z

    with the carry, gain, rate and std of `semilinear_sde`.

    Args:
        eta: noise of the SDE relative to the reverse SDE; its marginals are the same for every eta. 0 is
            DPM-Solver++(2S) or, in noise prediction, DPM-Solver-2.
        prediction: "data" (f = x0; the same method as `dpmpp-sde`) or "noise" (f = eps).
        r: position of the stage in the step, in (0, 1]. Use a small r only with eta = 0: f_u contains the stage's
            noise, whose contribution to the variance, through the factor 1/(2r), grows like 1/r.
    """
    return (yield from two_stage_sde(x, path, prediction, eta, 1.0, r))


@sampler(
    "seeds-3",
    order=2,
    ode_order=3,
    strong_order=1.0,
    evaluations=3,
    stochastic=True,
    noiseless={"eta": 0.0},
    needs=("marginals",),
    reference="Gonzalez et al. 2023, SEEDS-3",
)
def seeds_3(x: Tensor, path: Path, *, eta: float = 1.0, prediction: Kind = "data") -> Run:
    """SEEDS-3: stages at lambda_t + h/3 and lambda_t + 2h/3, then the step.

    With h = lambda_s - lambda_t and f either x0 or eps,

        u1 = step to lambda_t + h/3 with the constant f_t
        u2 = step to lambda_t + 2h/3 with the line through f_t and f_u1
        x_s = carry x_t + gain int e^{rate (l - lambda_s)} [line through f_t and f_u2](l) dl + std z

    with the carry, gain, rate and std of `semilinear_sde`. With noise the variance is of second order.

    Args:
        eta: noise of the SDE relative to the reverse SDE; its marginals are the same for every eta. 0 is
            DPM-Solver++(3S) or, in noise prediction, DPM-Solver-3, of third order.
        prediction: "data" (f = x0) or "noise" (f = eps).
    """
    check_noise(eta=eta)
    for now, then in path.steps:
        out = yield x, now
        if now.is_pure_noise and not (eta or then.is_clean):
            x, _ = yield from dpm_solver_3_step(out, then, path, prediction)
            continue
        if now.is_pure_noise or then.is_clean:
            x = singular_step(out, path, now, then, prediction, eta)
            continue
        s1, s2 = path.between(now, then, 1 / 3), path.between(now, then, 2 / 3)
        x, first = out.x, (now.lam, predicted(out, prediction))
        state, noise = sde_stage(x, path, [first], 0.0, now, now, s1, prediction, eta)
        out = yield state, s1
        line = [first, (s1.lam, predicted(out, prediction))]
        state, noise = sde_stage(x, path, line, noise, now, s1, s2, prediction, eta)
        out = yield state, s2
        line = [first, (s2.lam, predicted(out, prediction))]
        x, _ = sde_stage(x, path, line, noise, now, s2, then, prediction, eta)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [exp_euler_maruyama, seeds_2, seeds_3]
