"""Ancestral samplers: an ODE step to below the next noise level, then fresh noise back up to it, and DPM-2.

Every formula is written in r = sigma/alpha and the predictions, so a sampler takes the same steps in all coordinates
and is exact in flow models too. With r_s the next level and r_t the present one, `Path.ancestral` gives
up^2 = eta^2 r_s^2 (1 - r_s^2/r_t^2) and down^2 = r_s^2 - up^2 (Song et al. 2021, appendix F, at eta = 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdesamplers import Path, Point, Run, Sampler, hookimpl, sampler

from ._shared import check_noise


def back_up(x: Tensor, path: Path, down: Point, std: float, now: Point, then: Point) -> Tensor:
    """From the state at `down` to `then`: rescaled, with noise of deviation `std` that makes up for what is missing."""
    mean = x if down is then else x * (then.alpha / down.alpha)
    return path.draw(mean, std, now, then)


def midpoint_step(x: Tensor, path: Path, now: Point, then: Point, prediction: str) -> Run:
    """A step of DPM-Solver-2 ("noise") or DPM-Solver++ 2S ("data"): x_s is linear in x and the prediction halfway.

    The middle is that of lambda, or from alpha = 0, where lambda is infinite, that of alpha/sigma; there x0 serves both
    methods. The step into sigma = 0 is DDIM's.
    """
    out = yield x, now
    if then.is_clean:
        return out.step_to(then)
    middle = path.at_ratio(2 * then.ratio) if now.is_pure_noise else path.between(now, then, 0.5)
    halfway = yield out.step_to(middle), middle
    if prediction == "data" or now.is_pure_noise:
        carry = then.sigma / now.sigma  # then.alpha - carry now.alpha = alpha_s (1 - e^{-h})
        return torch.add(out.x * carry, halfway.x0, alpha=then.alpha - carry * now.alpha)
    carry = then.alpha / now.alpha
    return torch.add(out.x * carry, halfway.eps, alpha=then.sigma - carry * now.sigma)


@sampler(
    "euler-ancestral",
    order=1,
    stochastic=True,
    noiseless={"eta": 0.0},
    needs=("marginals",),
    reference="Song et al. 2021, appendix F; Song, Meng & Ermon 2021, eq. 12",
)
def euler_ancestral(x: Tensor, path: Path, *, eta: float = 1.0, s_noise: float = 1.0) -> Run:
    """Euler ancestral sampling.

        x_s = alpha_s (x0 + down eps + s_noise up z),   down^2 + up^2 = r_s^2

    with r = sigma/alpha. Its transition is DDIM's with the same eta, so eta = 1 is DDPM and eta = 0 is DDIM. `s_noise`
    multiplies the noise.
    """
    check_noise(eta=eta, s_noise=s_noise)
    for now, then in path.steps:
        down, std = path.ancestral(now, then, eta)
        out = yield x, now
        x = back_up(out.step_to(down), path, down, s_noise * std, now, then)
    return x


@sampler(
    "dpm2",
    order=2,
    evaluations=2,
    needs=("marginals",),
    reference="Lu et al. 2022 (DPM-Solver), algorithm 1 (DPM-Solver-2)",
)
def dpm2(x: Tensor, path: Path) -> Run:
    """DPM-2: the midpoint rule with its stage halfway in log sigma, which is DPM-Solver-2.

    With r = sigma/alpha,

        u = DDIM's step to the middle of lambda
        x_s = (alpha_s/alpha_t) x_t + alpha_s (r_s - r_t) eps(u)

    In `ve` coordinates this is x + (sigma_s - sigma_t) eps(u); in DPM-Solver's words alpha_s (r_s - r_t) is -sigma_s
    (e^h - 1).
    """
    for now, then in path.steps:
        x = yield from midpoint_step(x, path, now, then, "noise")
    return x


@sampler(
    "dpm2-ancestral",
    order=2,
    evaluations=2,
    stochastic=True,
    noiseless={"eta": 0.0},
    needs=("marginals",),
    reference="Lu et al. 2022 (DPM-Solver), algorithm 1, with the noise of Song et al. 2021, appendix F",
)
def dpm2_ancestral(x: Tensor, path: Path, *, eta: float = 1.0, s_noise: float = 1.0) -> Run:
    """DPM-2 with ancestral noise.

        x_down = a step of `dpm2` from r_t to `down`
        x_s = (alpha_s/alpha_down) x_down + alpha_s s_noise up z

    with down^2 + up^2 = r_s^2, r = sigma/alpha. eta = 0 is `dpm2`. `s_noise` multiplies the noise.
    """
    check_noise(eta=eta, s_noise=s_noise)
    for now, then in path.steps:
        down, std = path.ancestral(now, then, eta)
        x = yield from midpoint_step(x, path, now, down, "noise")
        x = back_up(x, path, down, s_noise * std, now, then)
    return x


@sampler(
    "dpmpp-2s-ancestral",
    order=2,
    evaluations=2,
    stochastic=True,
    noiseless={"eta": 0.0},
    needs=("marginals",),
    reference="Lu et al. 2022 (DPM-Solver++), algorithm 1, with the noise of Song et al. 2021, appendix F",
)
def dpmpp_2s_ancestral(x: Tensor, path: Path, *, eta: float = 1.0, s_noise: float = 1.0) -> Run:
    """DPM-Solver++ 2S with ancestral noise.

    With h = lambda_down - lambda_t,

        u = DDIM's step to the middle of lambda
        x_down = (sigma_down/sigma_t) x_t - alpha_down (e^{-h} - 1) x0(u)
        x_s = (alpha_s/alpha_down) x_down + alpha_s s_noise up z

    where down^2 + up^2 = r_s^2, r = sigma/alpha. eta = 0 is `dpmpp-2s`. `s_noise` multiplies the noise.
    """
    check_noise(eta=eta, s_noise=s_noise)
    for now, then in path.steps:
        down, std = path.ancestral(now, then, eta)
        x = yield from midpoint_step(x, path, now, down, "data")
        x = back_up(x, path, down, s_noise * std, now, then)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [euler_ancestral, dpm2, dpm2_ancestral, dpmpp_2s_ancestral]
