"""DDIM, DDPM and CPS: Gaussian transitions between two noise levels, given x0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from sdesamplers import Path, Run, Sampler, hookimpl, sampler
from sdesamplers.path.points import added_noise_fraction


@sampler("ddim", order=1, needs=("marginals",), reference="Song, Meng & Ermon 2021, eq. 12 and 16")
def ddim(x: Tensor, path: Path, *, eta: float = 0.0) -> Run:
    """Denoising diffusion implicit models (DDIM).

        x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std z
        std = eta sigma_s sqrt(1 - e^{2 (lambda_t - lambda_s)})

    where std is eta times the standard deviation of q(x_s | x_t, x0).

    Args:
        eta: scale of the noise. 0 is deterministic, the exponential Euler method for the probability-flow ODE; 1 is
            DDPM; larger values are allowed as long as std <= sigma_s in every step.
    """
    shares = [added_noise_fraction(now, then) for now, then in path.steps]
    noisy = [share for share, point in zip(shares, path.points[1:], strict=True) if not point.is_clean]
    largest = 1 / math.sqrt(max(noisy)) if any(noisy) else math.inf
    if not 0 <= eta <= largest * (1 + 1e-12):
        raise ValueError(
            f"eta must lie in [0, {largest:.6g}] on this grid (a larger one makes a variance negative), not {eta}"
        )
    for (now, then), share in zip(path.steps, shares, strict=True):
        out = yield x, now
        mean = out.compose(x0=then.alpha, eps=then.sigma * math.sqrt(max(1 - eta**2 * share, 0.0)))
        x = path.draw(mean, eta * then.sigma * math.sqrt(share), now, then)
    return x


@sampler("ddpm", order=1, stochastic=True, needs=("marginals",), reference="Ho et al. 2020, eq. 6-7 and section 3.2")
def ddpm(x: Tensor, path: Path, *, variance: Literal["posterior", "beta"] = "posterior") -> Run:
    """DDPM ancestral sampling: a draw from q(x_s | x_t, x0) with the predicted x0.

        x_s = (alpha_t sigma_s^2) / (alpha_s sigma_t^2) x_t + alpha_s k x0 + std z
        k = 1 - e^{2 (lambda_t - lambda_s)}

    No noise is added in the step into sigma = 0.

    Args:
        variance: "posterior", std^2 = sigma_s^2 k, exact if the data are a single point; or "beta", the variance of
            the forward step, std^2 = sigma_t^2 k in native coordinates, exact for standard normal data in a VP process.
    """
    for now, then in path.steps:
        fresh = added_noise_fraction(now, then)
        width = then.sigma if variance == "posterior" or then.is_clean else now.sigma * then.scale / now.scale
        out = yield x, now
        keep = now.alpha * then.sigma**2 / (then.alpha * now.sigma**2)
        # keep x + alpha_s fresh x0, with x = alpha_t x0 + sigma_t eps
        mean = out.compose(x0=keep * now.alpha + then.alpha * fresh, eps=keep * now.sigma)
        x = path.draw(mean, width * math.sqrt(fresh), now, then)
    return x


@sampler(
    "cps",
    order=None,
    stochastic=True,
    noiseless={"eta": 0.0},
    ode_order=1,
    needs=("marginals",),
    limits="the noise of a step does not shrink with the step, so that many steps lose variance of the data",
    reference="Wang & Yu 2025 (Coefficients-Preserving Sampling, arXiv 2509.05952)",
)
def cps(x: Tensor, path: Path, *, eta: float = 0.7) -> Run:
    """Coefficients-Preserving Sampling (CPS): DDIM in which a fixed share of the noise is new in every step.

        x_s = alpha_s x0 + sigma_s [cos(pi eta/2) eps + sin(pi eta/2) z]

    In flow coordinates this is (1 - s) x0 + sqrt(s^2 - std^2) eps + std z with std = s sin(pi eta/2), the paper's form.

    Args:
        eta: from 0, which is `ddim`, to 1, at which all noise is new in every step.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], not {eta}")
    old, new = math.cos(0.5 * math.pi * eta), math.sin(0.5 * math.pi * eta)
    for now, then in path.steps:
        out = yield x, now
        x = path.draw(out.compose(then.alpha, then.sigma * old), then.sigma * new, now, then)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [ddim, ddpm, cps]
