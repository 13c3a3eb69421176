"""Samplers of score-based SDE models: predictors, the Langevin corrector, and annealed Langevin dynamics.

Between two noise levels the forward process is x_t = a x_s + b z with a = alpha_t / alpha_s and
b^2 = sigma_t^2 - a^2 sigma_s^2 = sigma_t^2 (1 - e^{2(lambda_t - lambda_s)}): (1, sqrt(sigma_t^2 - sigma_s^2)) in VE,
(sqrt(1 - beta), sqrt(beta)) in VP. The predictors below use these two numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sdesamplers import Path, Point, Prediction, Run, Sampler, hookimpl, sampler, samplers
from sdesamplers.path.points import added_noise_fraction


def forward_step(now: Point, then: Point) -> tuple[float, float]:
    """(a, b) of the forward transition x_now = a x_then + b z."""
    return now.alpha / then.alpha, now.sigma * math.sqrt(added_noise_fraction(now, then))


@sampler(
    "reverse-diffusion",
    order=1,
    stochastic=True,
    needs=("marginals",),
    reference="Song et al. 2021, eq. 46 (appendix E)",
)
def reverse_diffusion(x: Tensor, path: Path) -> Run:
    """Reverse diffusion predictor: the reverse SDE discretised like the forward chain.

        x_s = (2 - a) x_t + b^2 score + b z,   where x_t = a x_s + b z is the forward step

    Steps out of alpha = 0, where the score does not depend on the data, and into sigma = 0, which needs no noise, are
    DDIM's.
    """
    for now, then in path.steps:
        out = yield x, now
        if now.is_pure_noise or then.is_clean:
            x = out.step_to(then)
            continue
        a, b = forward_step(now, then)
        # b^2 score = -b^2/sigma eps, and x = alpha x0 + sigma eps
        mean = out.compose((2 - a) * now.alpha, (2 - a) * now.sigma - b**2 / now.sigma)
        x = path.draw(mean, b, now, then)
    return x


def keeps_variance(point: Point) -> bool:
    """True if alpha^2 + sigma^2 = 1 in native coordinates."""
    return abs(math.hypot(point.native[0], point.native[1]) - 1) < 1e-6


@sampler(
    "score-ancestral",
    order=1,
    stochastic=True,
    needs=("marginals",),
    reference="Song et al. 2021, eq. 4 and 47 (appendix F)",
)
def score_ancestral(x: Tensor, path: Path) -> Run:
    """Ancestral predictor of score-based models.

        x_s = (x_t + b^2 score) / a + std z,   where x_t = a x_s + b z is the forward step

    The mean is that of DDPM. For a variance-preserving model std is b, that of the forward step (as in `ddpm` with
    variance="beta"); for other models it is b sigma_s / sigma_t, that of the posterior (as in `ddpm`). This depends on
    the native coordinates only, so the samples are the same in all coordinates. No noise is added in the step into
    sigma = 0.
    """
    for now, then in path.steps:
        fresh = added_noise_fraction(now, then)  # b^2 / sigma_t^2
        out = yield x, now
        # (x + b^2 score)/a = alpha_s x0 + sigma_s sqrt(1 - fresh) eps, which is defined at a = 0 too
        mean = out.compose(then.alpha, then.sigma * math.sqrt(1 - fresh))
        forward = keeps_variance(now) and keeps_variance(then)
        width = now.sigma * then.scale / now.scale if forward else then.sigma
        x = path.draw(mean, 0.0 if then.is_clean else width * math.sqrt(fresh), now, then)
    return x


def sample_norms(x: Tensor) -> np.ndarray:
    """The Euclidean norm of each sample, (N,) float64 on the host; waits for the device."""
    return np.asarray(torch.linalg.vector_norm(x.detach().flatten(1), dim=1).double().cpu().numpy())


def langevin_step(
    out: Prediction, now: Point, then: Point, path: Path, snr: float, step: Literal["schedule", "measured"]
) -> Tensor:
    """x + e score + sqrt(2e) z at `then`, with e = 2 a^2 (snr |z|/|score|)^2, after a predictor step from `now`."""
    a = now.alpha / then.alpha if now.alpha else 1.0
    score = out.score
    width = 2 * a * snr * then.sigma
    if step == "measured":
        z_norm = math.sqrt(score[0].numel())
        # The lower bound on |score| keeps the step finite if the score is 0.
        width = 2 * a * snr * z_norm / np.maximum(sample_norms(score), 1e-3 * z_norm / then.sigma)
        return path.draw(out.x + path.expand(width**2 / 2, score) * score, width, now, then)
    return path.draw(torch.add(out.x, score, alpha=width**2 / 2), width, now, then)


@sampler(
    "predictor-corrector",
    order=None,
    evaluations=2,
    stochastic=True,
    needs=("marginals",),
    limits="the corrector's step depends on snr, not on the grid, so the variance has a relative bias of about snr^2",
    reference="Song et al. 2021, algorithms 1-5",
)
def predictor_corrector(
    x: Tensor,
    path: Path,
    *,
    predictor: str = "reverse-diffusion",
    corrector_steps: int = 1,
    snr: float = 0.16,
    step: Literal["schedule", "measured"] = "schedule",
) -> Run:
    """Predictor-corrector sampling: a step of any sampler, then Langevin steps at the new noise level.

    A corrector step is

        x <- x + e score + sqrt(2e) z,   e = 2 a^2 (snr |z| / |score|)^2

    with a^2 = 1 - beta in VP and 1 in VE. |z| is sqrt(D) for samples of D elements, as the paper advises for small
    batches, so that a transition is Gaussian and has an exact log-probability. There is no correction at sigma = 0.

    Args:
        predictor: name of the sampler that takes the steps, or "none". It starts anew in every step.
        corrector_steps: Langevin steps after each step of the predictor.
        snr: signal-to-noise ratio of a Langevin step; larger steps are less accurate.
        step: "schedule" uses |score| = sqrt(D)/sigma, its value at high noise; "measured" uses the |score| of each
            sample (in the paper that of the batch, which couples the samples), which has to wait for the device.
    """
    registered = samplers()
    if predictor != "none" and (predictor not in registered or predictor == "predictor-corrector"):
        raise ValueError(f"predictor must be the name of another sampler or 'none', not {predictor!r}")
    if predictor != "none" and set(registered[predictor].needs) - {"marginals"}:
        raise ValueError(f"{predictor} cannot be a predictor here: it needs {', '.join(registered[predictor].needs)}")
    if corrector_steps < 0 or snr <= 0:
        raise ValueError(f"corrector_steps must be 0 or more and snr positive, not {corrector_steps} and {snr}")
    for now, then in path.steps:
        if predictor != "none":
            x = yield from registered[predictor](x, path.part([now, then]))
        else:
            x = x * (then.scale / now.scale)
        for _ in range(0 if then.is_clean else corrector_steps):
            out = yield x, then
            x = langevin_step(out, now, then, path, snr, step)
    return x


@sampler(
    "annealed-langevin",
    order=None,
    evaluations=5,
    stochastic=True,
    needs=("marginals",),
    limits="biased; exact only in the limit of small step_size and many steps per level",
    spacing="logsnr",
    no_density="a level takes several Langevin steps, and the last of them is rescaled to the next level",
    reference="Song & Ermon 2019, algorithm 1; last step: Jolicoeur-Martineau et al. 2021, section 3.1",
)
def annealed_langevin(
    x: Tensor, path: Path, *, steps_per_level: int = 5, step_size: float = 0.2, denoise: bool = True
) -> Run:
    """Annealed Langevin dynamics (NCSN): Langevin steps at every noise level of the grid, from high to low.

        x <- x + e/2 score + sqrt(e) z,   e = step_size sigma^2

    Between levels x is rescaled so that x / alpha does not change.

    Args:
        steps_per_level: Langevin steps at each level. The paper has 10 levels of 100 steps; Song & Ermon 2020 have
            several hundred levels of 5.
        step_size: the step in units of sigma^2, the paper's epsilon / sigma_L^2 (2e-5 / 0.01^2 there); below 4.
        denoise: if the grid ends at sigma = 0, return the x0 estimate (one more evaluation).
    """
    if steps_per_level < 1 or not 0 < step_size < 4:
        raise ValueError(
            f"steps_per_level must be 1 or more and step_size between 0 and 4 (larger Langevin steps diverge), "
            f"not {steps_per_level} and {step_size}"
        )
    for now, then in path.steps:
        if now.is_pure_noise:  # the score does not depend on the data at this level
            out = yield x, now
            x = out.step_to(then)
            continue
        x = yield from langevin_steps(x, now, (now, then), path, steps_per_level, step_size)
        if then.is_clean and denoise:
            out = yield x, now
            x = out.step_to(then)
        else:
            x = x * (then.alpha / now.alpha)
    if not then.is_clean:
        x = yield from langevin_steps(x, then, (now, then), path, steps_per_level, step_size)
    return x


def langevin_steps(x: Tensor, level: Point, step: tuple[Point, Point], path: Path, count: int, step_size: float) -> Run:
    """`count` Langevin steps at one noise level, with the noise of the grid's `step`."""
    for _ in range(count):
        out = yield x, level
        e = step_size * level.sigma**2
        x = path.draw(torch.add(out.x, out.score, alpha=e / 2), math.sqrt(e), *step)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [reverse_diffusion, score_ancestral, predictor_corrector, annealed_langevin]
