"""Langevin Monte Carlo on a density without noise levels (`LangevinSDE`), from its score or log-density.

The time of the path is that of dx = s/2 dt + dw with s = grad log p. A step h in this time is e = h/2 in papers that
write x + e s + sqrt(2e) z.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdesamplers import GaussianProcess, Path, Run, Sampler, UsageError, hookimpl, sampler


def require_density(path: Path) -> None:
    """Raise ValueError for a process with a noise schedule: these samplers draw from a single density."""
    if isinstance(path.process, GaussianProcess):
        raise ValueError(
            "this sampler needs a density without a noise schedule (a model on LangevinSDE); for a diffusion model use "
            "annealed-langevin or predictor-corrector"
        )


@sampler(
    "ula",
    order=None,
    stochastic=True,
    needs=("stationary",),
    limits="the stationary distribution has a bias that depends on the step",
    reference="Roberts & Tweedie 1996, section 1.4.1",
)
def ula(x: Tensor, path: Path) -> Run:
    """Unadjusted Langevin algorithm (ULA).

        x <- x + h/2 score(x) + sqrt(h) z

    This is Euler-Maruyama on the Langevin SDE, of order 1. For N(0, v) the stationary variance is v / (1 - h/(4v)), and
    the algorithm diverges for h >= 4v.
    """
    require_density(path)
    for now, then in path.steps:
        h = abs(then.time - now.time)
        out = yield x, now
        x = path.draw(torch.add(out.x, out.score, alpha=h / 2), math.sqrt(h), now, then)
    return x


@sampler(
    "mala",
    order=None,
    stochastic=True,
    needs=("log_density", "stationary"),
    no_density="proposals may be rejected, so that the next state is the present one with positive probability",
    reference="Besag 1994; Roberts & Tweedie 1996, section 1.4.2",
)
def mala(x: Tensor, path: Path) -> Run:
    """Metropolis-adjusted Langevin algorithm (MALA), whose stationary distribution is exact for any step size.

        y ~ q(y|x) = N(x + h/2 score(x), h),   accepted if log u < log p(y) q(x|y) - log p(x) q(y|x)

    Each sample is accepted or rejected separately, without a transfer from the device. The uniform u is the normal
    distribution function of a number from the step's noise.
    """
    require_density(path)
    out = yield x, path.points[0]
    if out.log_density is None:
        raise UsageError("this sampler needs a model that returns its log-density with the score (Output.log_density)")
    x, score, density = out.x, out.score, out.log_density
    for now, then in path.steps:
        h = abs(then.time - now.time)
        mean = torch.add(x, score, alpha=h / 2)
        trial = yield path.draw(mean, math.sqrt(h), now, then), then
        back = torch.add(trial.x, trial.score, alpha=h / 2)
        gain = trial.log_density - density + (squares(trial.x - mean) - squares(x - back)) / (2 * h)
        chance = path.draw(torch.zeros_like(x), 1.0, now, then).flatten(1)[:, 0]
        accept = torch.special.log_ndtr(chance.double()) < gain
        keep = accept.view(-1, *(1,) * (x.dim() - 1))
        x, score = torch.where(keep, trial.x, x), torch.where(keep, trial.score, score)
        density = torch.where(accept, trial.log_density, density)
    return x


def squares(x: Tensor) -> Tensor:
    """The squared norm of each sample, (N,), float64."""
    return x.double().flatten(1).square().sum(1)


@sampler(
    "underdamped-langevin",
    order=None,
    stochastic=True,
    needs=("stationary",),
    limits="the stationary distribution has a bias that depends on the step",
    no_density="the noise is that of a velocity, which is part of the state",
    reference="Leimkuhler & Matthews 2013 (BAOAB); Cheng et al. 2018 for the dynamics as a sampler",
)
def underdamped_langevin(x: Tensor, path: Path, *, friction: float = 1.0) -> Run:
    """Underdamped (kinetic) Langevin dynamics, integrated by BAOAB.

        dx = v dt,   dv = score(x) dt - friction v dt + sqrt(2 friction) dw,   v ~ N(0, 1) at the start

    A step consists of half a kick (velocity update by the score), half a drift (position update by the velocity), an
    exact Ornstein-Uhlenbeck step of the velocity, half a drift and half a kick. It is of order 2. The stationary
    variance of x is exact for a Gaussian; otherwise its bias is of second order in the step, at high friction of
    fourth.

    Args:
        friction: the friction coefficient, positive.
    """
    require_density(path)
    if not friction > 0:
        raise ValueError(f"friction must be positive, not {friction}")
    kick, velocity = 0.0, path.draw(torch.zeros_like(x), 1.0, *path.steps[0])
    for now, then in path.steps:
        h = abs(then.time - now.time)
        out = yield x, now
        # The half kick at the end of the last step and the one at the start of this step use the same score.
        velocity = torch.add(velocity, out.score, alpha=kick + h / 2)
        x, kick = torch.add(out.x, velocity, alpha=h / 2), h / 2
        velocity = path.draw(velocity * math.exp(-friction * h), math.sqrt(-math.expm1(-2 * friction * h)), now, then)
        x = torch.add(x, velocity, alpha=h / 2)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [ula, mala, underdamped_langevin]
