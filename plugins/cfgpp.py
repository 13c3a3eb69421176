"""CFG++: classifier-free guidance that moves the clean estimate and leaves the noise unguided.

The paper's lambda in [0, 1] is `guidance_scale`: x0 is unguided + guidance_scale (conditional - unguided), and 0 to 1
interpolates where classifier-free guidance takes 2 to 12. Every step is the plain sampler's with the unguided
prediction, plus alpha_s (x0 - x0_unguided). That addition does not shrink with the step, so a guided run depends on
how many steps it has; without guidance each is its plain sampler. The model is asked as often as in any guided run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdesamplers import Path, Run, Sampler, hookimpl, sampler
from sdesamplers.coefficients import apart

from ._shared import check_noise, orders

LIMITS = "with guidance the result depends on the number of steps"


@sampler(
    "euler-cfgpp",
    order=1,
    needs=("unguided", "marginals"),
    limits=LIMITS,
    reference="Chung et al. 2024, algorithm 2 (CFG++ on DDIM)",
)
def euler_cfgpp(x: Tensor, path: Path) -> Run:
    """Euler's method with CFG++ guidance.

        x_s = alpha_s x0 + sigma_s eps_unguided

    `guidance_scale` is the paper's lambda, best within [0, 1]. Without guidance it is `ddim`.
    """
    for now, then in path.steps:
        out = yield x, now
        x = out.compose(then.alpha, 0.0) + out.unguided.compose(0.0, then.sigma)
    return x


@sampler(
    "euler-ancestral-cfgpp",
    order=1,
    stochastic=True,
    noiseless={"eta": 0.0},
    needs=("unguided", "marginals"),
    limits=LIMITS,
    reference="Chung et al. 2024, appendix on other solvers; noise of Song et al. 2021, appendix F",
)
def euler_ancestral_cfgpp(x: Tensor, path: Path, *, eta: float = 1.0, s_noise: float = 1.0) -> Run:
    """Euler ancestral sampling with CFG++ guidance.

        x_s = alpha_s (x0 + down eps_unguided + s_noise up z)

    where `eta` splits the noise level into down and up as in `euler-ancestral`, which it is without guidance; eta = 0
    is `euler-cfgpp`. `guidance_scale` is the paper's lambda, best within [0, 1].
    """
    check_noise(eta=eta, s_noise=s_noise)
    for now, then in path.steps:
        down, std = path.ancestral(now, then, eta)
        out = yield x, now
        mean = out.compose(then.alpha, 0.0) + out.unguided.compose(0.0, then.alpha * down.ratio)
        x = path.draw(mean, s_noise * std, now, then)
    return x


@sampler(
    "dpmpp-2m-cfgpp",
    order=2,
    needs=("unguided", "marginals"),
    limits=LIMITS,
    reference="Chung et al. 2024, appendix on other solvers; Lu et al. 2022 (DPM-Solver++), algorithm 2",
)
def dpmpp_2m_cfgpp(x: Tensor, path: Path) -> Run:
    """DPM-Solver++ 2M with CFG++ guidance.

    With h the steps of lambda,

        w = alpha_s (1 - e^{-h}) h / (2 h_last)
        x_s = alpha_s x0 + sigma_s eps_unguided + w (x0_unguided - x0_unguided_last)

    Of the guided prediction only x0 enters, the memory is the unguided model's. Without guidance it is `dpmpp-2m`.
    `guidance_scale` is the paper's lambda, best within [0, 1].
    """
    last: tuple[Tensor, float] | None = None
    for (now, then), size in zip(path.steps, orders(path, 2), strict=True):
        out = yield x, now
        clean = out.unguided.x0
        x = out.compose(then.alpha, 0.0) + out.unguided.compose(0.0, then.sigma)
        if last is not None and size > 1:
            h, earlier = then.lam - now.lam, now.lam - last[1]
            if len(apart([now.lam, last[1]], h)) == 2:
                x = torch.add(x, clean - last[0], alpha=-then.alpha * math.expm1(-h) * h / (2 * earlier))
        last = None if now.is_pure_noise else (clean, now.lam)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [euler_cfgpp, euler_ancestral_cfgpp, dpmpp_2m_cfgpp]
