"""Samplers of score-based SDE models: predictors, the Langevin corrector, and annealed Langevin dynamics.

Between two noise levels the forward process is x_t = a x_s + b z with a = alpha_t / alpha_s and
b^2 = sigma_t^2 - a^2 sigma_s^2 = sigma_t^2 (1 - e^{2(lambda_t - lambda_s)}): (1, sqrt(sigma_t^2 - sigma_s^2)) in VE,
(sqrt(1 - beta), sqrt(beta)) in VP. The predictors below are written with these two numbers.
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
    """Reverse diffusion predictor: the reverse SDE in steps of the same form as the forward chain's.

        x_s = (2 - a) x_t + b^2 score + b z,   where x_t = a x_s + b z is the forward step

    Out of alpha = 0, where the score says nothing of the data, and into sigma = 0, where there is no noise to add, the
    step is DDIM's.
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
    """Whether the model's own process has alpha^2 + sigma^2 = 1."""
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

    Its mean is DDPM's; its std is the forward step's b for a variance-preserving model (then it is `ddpm` with
    variance="beta") and the posterior's b sigma_s / sigma_t for every other one (then it is `ddpm`). Model coordinates
    decide, so the samples are the same in all coordinates. No noise into sigma = 0.
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
    """The Euclidean norm of each sample, (N,) float64 on the host: one wait for the device."""
    return np.asarray(torch.linalg.vector_norm(x.detach().flatten(1), dim=1).double().cpu().numpy())


def langevin_step(
    out: Prediction, now: Point, then: Point, path: Path, snr: float, step: Literal["schedule", "measured"]
) -> Tensor:
    """x + e score + sqrt(2e) z at `then`, with e = 2 a^2 (snr |z|/|score|)^2; `now` is where the step came from."""
    a = now.alpha / then.alpha if now.alpha else 1.0
    score = out.score
    width = 2 * a * snr * then.sigma
    if step == "measured":
        usual = math.sqrt(score[0].numel())  # |z|; a score of 0 is no reason for an infinite step
        width = 2 * a * snr * usual / np.maximum(sample_norms(score), 1e-3 * usual / then.sigma)
        return path.draw(out.x + path.expand(width**2 / 2, score) * score, width, now, then)
    return path.draw(torch.add(out.x, score, alpha=width**2 / 2), width, now, then)


@sampler(
    "predictor-corrector",
    order=None,
    evaluations=2,
    stochastic=True,
    needs=("marginals",),
    limits="the corrector's step follows snr and not the grid, so the variance keeps a bias of relative size snr^2",
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

    The corrector makes `corrector_steps` steps

        x <- x + e score + sqrt(2e) z,   e = 2 a^2 (snr |z| / |score|)^2

    with a^2 = 1 - beta in VP and 1 in VE. `predictor` is the name of any sampler that can take one step alone, or
    "none". step="measured" takes |score| from each sample (the paper: from the batch, which couples samples) and waits
    for the device to know it; "schedule" takes what it is at high noise, sqrt(D)/sigma. |z| is sqrt(D), as the paper
    advises for small batches, so that a transition is a Gaussian and has an exact log-probability. There is no
    correction at sigma = 0.
    """
    known = samplers()
    if predictor != "none" and (predictor not in known or predictor == "predictor-corrector"):
        raise ValueError(f"predictor must be the name of another sampler or 'none', not {predictor!r}")
    if predictor != "none" and set(known[predictor].needs) - {"marginals"}:
        raise ValueError(f"{predictor} cannot be a predictor here: it needs {', '.join(known[predictor].needs)}")
    if corrector_steps < 0 or snr <= 0:
        raise ValueError(f"corrector_steps must be 0 or more and snr positive, not {corrector_steps} and {snr}")
    for now, then in path.steps:
        if predictor != "none":
            x = yield from known[predictor](x, path.part([now, then]))
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
    limits="steps of a fixed share of sigma^2 keep a bias; exact only as step_size falls and levels get longer",
    spacing="logsnr",
    reference="Song & Ermon 2019, algorithm 1; last step: Jolicoeur-Martineau et al. 2021, section 3.1",
)
def annealed_langevin(
    x: Tensor, path: Path, *, steps_per_level: int = 5, step_size: float = 0.2, denoise: bool = True
) -> Run:
    """Annealed Langevin dynamics (NCSN): Langevin steps at every noise level of the grid, from high to low.

        x <- x + e/2 score + sqrt(e) z,   e = step_size sigma^2

    `steps_per_level` times at each level; step_size is the paper's epsilon / sigma_L^2 (2e-5 / 0.01^2 there, with 10
    levels of 100 steps; Song & Ermon 2020 take 5 steps at each of some hundred levels). From level to level x / alpha
    is kept. `denoise` ends with the x0 estimate (one more evaluation) where the grid ends at sigma = 0.
    """
    if steps_per_level < 1 or not 0 < step_size < 4:
        raise ValueError(
            f"steps_per_level must be 1 or more and step_size between 0 and 4 (beyond which Langevin steps "
            f"diverge), not {steps_per_level} and {step_size}"
        )
    for now, then in path.steps:
        if now.is_pure_noise:  # there is nothing to learn of the data at this level
            out = yield x, now
            x = out.step_to(then)
            continue
        x = yield from stay(x, now, (now, then), path, steps_per_level, step_size)
        if then.is_clean and denoise:
            out = yield x, now
            x = out.step_to(then)
        else:
            x = x * (then.alpha / now.alpha)
    if not then.is_clean:
        x = yield from stay(x, then, (now, then), path, steps_per_level, step_size)
    return x


def stay(x: Tensor, level: Point, step: tuple[Point, Point], path: Path, count: int, step_size: float) -> Run:
    """`count` Langevin steps at one noise level, with noise that belongs to the grid's `step`."""
    for _ in range(count):
        out = yield x, level
        e = step_size * level.sigma**2
        x = path.draw(torch.add(out.x, out.score, alpha=e / 2), math.sqrt(e), *step)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [reverse_diffusion, score_ancestral, predictor_corrector, annealed_langevin]
