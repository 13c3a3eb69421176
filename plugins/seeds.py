"""SEEDS: exponential Runge-Kutta methods for the reverse SDE, whose stages share one Brownian motion.

The SDE with eta times the reverse SDE's noise, from t to s, h = lambda_s - lambda_t, exactly but for the prediction:

    "data"   x_s = (sigma_s / sigma_t) e^{-eta^2 h} x_t + (1 + eta^2) alpha_s int e^{(1 + eta^2)(lambda - lambda_s)} x0
                   + sigma_s sqrt(1 - e^{-2 eta^2 h}) z
    "noise"  x_s = (alpha_s / alpha_t) x_t - (1 + eta^2) sigma_s int e^{lambda_s - lambda} eps
                   + eta sigma_s sqrt(e^{2h} - 1) z

They are one equation, but the second takes out its old noise through eps. With a step whose eps is held, an error of x
in units of sigma is multiplied by 1 + eta^2 - eta^2 e^h, which at eta = 1 is stable for steps h below ln 3 alone.
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
    """Exponential Euler-Maruyama (SEEDS-1): the linear part of the reverse SDE exactly, the prediction held.

    With h = lambda_s - lambda_t, for `prediction` "data" and "noise",

        x_s = alpha_s x0 + sigma_s e^{-eta^2 h} eps + sigma_s sqrt(1 - e^{-2 eta^2 h}) z
        x_s = (alpha_s/alpha_t) x_t - (1 + eta^2) sigma_s (e^h - 1) eps + eta sigma_s sqrt(e^{2h} - 1) z

    The first is gDDIM (Zhang et al. 2022) and at eta = 1 DDPM, the second wants many steps. eta scales the noise of the
    SDE that is solved; 0 is DDIM with either.
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
    """SEEDS-2, two stages: one at lambda_t + r h, then the step with both predictions.

    With h = lambda_s - lambda_t and f either x0 (`prediction` "data", which is `dpmpp-sde`) or eps ("noise"),

        u = the step to lambda_t + r h with D = f_t
        D = (1 - 1/(2r)) f_t + 1/(2r) f_u
        x_s = carry x_t + gain int e^{rate (l - lambda_s)} D dl + std z

    with the carry, gain, rate and std of `semilinear_sde`. eta scales the noise of the SDE that is solved, 0 is
    DPM-Solver++(2S) or DPM-Solver-2; 0 < r <= 1, where a small r is for eta = 0 alone: f_u has the stage's noise in it,
    and 1/(2r) makes of it a variance that grows like 1/r.
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
    """SEEDS-3, three stages: at lambda_t + h/3 and lambda_t + 2h/3, then the step.

    With h = lambda_s - lambda_t and f either x0 (`prediction` "data") or eps ("noise"),

        u1 = the step to lambda_t + h/3 with the constant f_t
        u2 = the step to lambda_t + 2h/3 with the line through f_t and f_u1
        x_s = carry x_t + gain int e^{rate (l - lambda_s)} [line through f_t and f_u2](l) dl + std z

    with the carry, gain, rate and std of `semilinear_sde`. eta scales the noise of the SDE that is solved; with 0 it is
    DPM-Solver++(3S) or DPM-Solver-3, of third order. With noise the variance is of second order.
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
