"""Ancestral samplers: an ODE step to below the next noise level, then fresh noise up to that level; and DPM-2.

All formulas use r = sigma/alpha and the predictions, so the steps are the same in all coordinates and are right for
flow models too. With r_t the current and r_s the next noise level, `Path.ancestral` returns
up^2 = eta^2 r_s^2 (1 - r_s^2/r_t^2) and down^2 = r_s^2 - up^2 (Song et al. 2021, appendix F, at eta = 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdesamplers import Path, Point, Run, Sampler, hookimpl, sampler

from ._shared import check_noise


def renoise(x: Tensor, path: Path, down: Point, std: float, now: Point, then: Point) -> Tensor:
    """From the state at `down` to the noisier point `then`: rescaled, with noise of standard deviation `std` added."""
    mean = x if down is then else x * (then.alpha / down.alpha)
    return path.draw(mean, std, now, then)


def midpoint_step(x: Tensor, path: Path, now: Point, then: Point, prediction: str) -> Run:
    """A step of DPM-Solver-2 ("noise") or DPM-Solver++ 2S ("data"): x_s from x_t and the prediction at the midpoint.

    It is the midpoint in lambda, or, from alpha = 0, where lambda is infinite, the midpoint in alpha/sigma; there both
    methods use x0. The step into sigma = 0 is DDIM's.
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

        x_s = alpha_s (x0 + down eps + s_noise up z)
        up^2 = eta^2 r_s^2 (1 - r_s^2/r_t^2),   down^2 = r_s^2 - up^2

    with r = sigma/alpha. The transition is that of `ddim` with the same eta: eta = 1 is DDPM, eta = 0 is DDIM.

    Args:
        eta: scale of the noise, 0 or more; up is at most r_s.
        s_noise: factor on the added noise; any value but 1 changes the distribution.
    """
    check_noise(eta=eta, s_noise=s_noise)
    for now, then in path.steps:
        down, std = path.ancestral(now, then, eta)
        out = yield x, now
        x = renoise(out.step_to(down), path, down, s_noise * std, now, then)
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

        u = DDIM step from x_t to the midpoint in lambda
        x_s = (alpha_s/alpha_t) x_t + alpha_s (r_s - r_t) eps(u)

    In `ve` coordinates this is x + (sigma_s - sigma_t) eps(u). In the DPM-Solver paper alpha_s (r_s - r_t) is written
    -sigma_s (e^h - 1).
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

        x_down = dpm2 step from r_t to down
        x_s = (alpha_s/alpha_down) x_down + alpha_s s_noise up z
        up^2 = eta^2 r_s^2 (1 - r_s^2/r_t^2),   down^2 = r_s^2 - up^2

    with r = sigma/alpha. eta = 0 is `dpm2`.

    Args:
        eta: scale of the noise, 0 or more; up is at most r_s.
        s_noise: factor on the added noise; any value but 1 changes the distribution.
    """
    check_noise(eta=eta, s_noise=s_noise)
    for now, then in path.steps:
        down, std = path.ancestral(now, then, eta)
        x = yield from midpoint_step(x, path, now, down, "noise")
        x = renoise(x, path, down, s_noise * std, now, then)
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

        u = DDIM step from x_t to the midpoint in lambda
        x_down = (sigma_down/sigma_t) x_t - alpha_down (e^{-h} - 1) x0(u)
        x_s = (alpha_s/alpha_down) x_down + alpha_s s_noise up z
        up^2 = eta^2 r_s^2 (1 - r_s^2/r_t^2),   down^2 = r_s^2 - up^2

    where r = sigma/alpha. eta = 0 is `dpmpp-2s`.

    Args:
        eta: scale of the noise, 0 or more; up is at most r_s.
        s_noise: factor on the added noise; any value but 1 changes the distribution.
    """
    check_noise(eta=eta, s_noise=s_noise)
    for now, then in path.steps:
        down, std = path.ancestral(now, then, eta)
        x = yield from midpoint_step(x, path, now, down, "data")
        x = renoise(x, path, down, s_noise * std, now, then)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [euler_ancestral, dpm2, dpm2_ancestral, dpmpp_2s_ancestral]
