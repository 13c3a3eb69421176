"""CFG++: classifier-free guidance that is applied to the x0 estimate only, not to the noise that is added back.

`guidance_scale` is the paper's lambda: x0 = x0_unguided + guidance_scale (x0_conditional - x0_unguided). Its values lie
in [0, 1], an interpolation; classifier-free guidance uses 2 to 12. Every step is the step of the plain sampler with the
unguided prediction, plus alpha_s (x0 - x0_unguided). This term does not shrink with the step size, so a guided result
depends on the number of steps. Without guidance each sampler is its plain sampler. The number of evaluations is that of
any guided run.
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

    x0 is the guided prediction. `guidance_scale`, the paper's lambda, should lie in [0, 1]. Without guidance this is
    `ddim`.
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

    with down and up as in `euler-ancestral`, and x0 the guided prediction. `guidance_scale`, the paper's lambda, should
    lie in [0, 1]. Without guidance this is `euler-ancestral`; with eta = 0 it is `euler-cfgpp`.

    Args:
        eta: scale of the noise, 0 or more, as in `euler-ancestral`.
        s_noise: factor on the added noise; any value but 1 changes the distribution.
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

    With h = lambda_s - lambda_t and h_last the previous step in lambda,

        w = alpha_s (1 - e^{-h}) h / (2 h_last)
        x_s = alpha_s x0 + sigma_s eps_unguided + w (x0_unguided - x0_unguided_last)

    Of the guided prediction only x0 is used; the multistep correction uses the unguided predictions. Without guidance
    this is `dpmpp-2m`. `guidance_scale`, the paper's lambda, should lie in [0, 1].
    """
    last: tuple[Tensor, float] | None = None
    for (now, then), size in zip(path.steps, orders(path, 2), strict=True):
        out = yield x, now
        x0_unguided = out.unguided.x0
        x = out.compose(then.alpha, 0.0) + out.unguided.compose(0.0, then.sigma)
        if last is not None and size > 1:
            h, earlier = then.lam - now.lam, now.lam - last[1]
            if len(apart([now.lam, last[1]], h)) == 2:
                x = torch.add(x, x0_unguided - last[0], alpha=-then.alpha * math.expm1(-h) * h / (2 * earlier))
        last = None if now.is_pure_noise else (x0_unguided, now.lam)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [euler_cfgpp, euler_ancestral_cfgpp, dpmpp_2m_cfgpp]
