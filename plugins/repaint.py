"""RePaint's walk: steps down, with jumps back up on the way that let a constraint and the rest agree."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sdesamplers import Path, Run, Sampler, hookimpl, sampler

from .churn import add_noise
from .ddim import ddim


def jumps(count: int, jump_length: int) -> list[int]:
    """Where the walk over points 0 ... count - 1, of falling noise, goes back up: every `jump_length` from the last."""
    return list(range(count - 1, jump_length - 1, -jump_length))


@sampler(
    "repaint",
    order=None,
    evaluations=4,
    stochastic=True,
    noiseless={"resamples": 1},
    ode_order=1,
    needs=("marginals",),
    reference="Lugmayr et al. 2022 (RePaint), algorithm 1 and appendix B",
)
def repaint(x: Tensor, path: Path, *, jump_length: int = 1, resamples: int = 4, eta: float = 0.0) -> Run:
    """RePaint's resampling: DDIM, every stretch of it walked several times, with noise put back in between.

    At every grid point that is a multiple of `jump_length` steps from the last noisy one, the walk goes back up
    `jump_length` steps, by the forward process

        x_t = (alpha_t/alpha_s) x_s + alpha_t sqrt(r_t^2 - r_s^2) z,   r = sigma/alpha

    and comes down again, so that each stretch is walked `resamples` times; `jump_length` 1 is algorithm 1. On a plain
    model this leaves the distribution as it is, but for the errors of its steps, which are repeated too. It is meant
    for a model whose prediction holds a part of the sample fixed (`PosteriorSampling` with a `Mask` and method
    "projection"): every walk brings the rest into line with that part. A run makes about `resamples` evaluations a
    step. `eta` is that of `ddim`. The paper has eta 1 (DDPM), 250 steps, jump_length 10 and resamples 10; fewer steps
    do better with fewer resamples and less eta, whose errors are smaller. No order of convergence is claimed.
    """
    if jump_length < 1 or resamples < 1:
        raise ValueError(f"jump_length and resamples must be 1 or more, not {jump_length} and {resamples}")
    points = [p for p in path.points if not (p.is_clean or p.is_pure_noise)]
    again = {id(points[k]): points[k - jump_length : k + 1] for k in jumps(len(points), jump_length)}
    for pair in path.steps:
        x = yield from ddim(x, path.part(pair), eta=eta)
        stretch = again.get(id(pair[1]), [])
        for _ in range(resamples - 1 if stretch else 0):
            x = add_noise(x, path, stretch[-1], stretch[0], 1.0)
            x = yield from ddim(x, path.part(stretch), eta=eta)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [repaint]
