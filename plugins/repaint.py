"""RePaint: DDIM with repeated jumps back to higher noise, which reconcile a constrained part with the rest."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sdesamplers import Path, Run, Sampler, hookimpl, sampler

from .churn import add_noise
from .ddim import ddim


def jumps(count: int, jump_length: int) -> list[int]:
    """Indices of the points, of 0 ... count - 1, to jump back from: every `jump_length`-th, counted from the last."""
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
    """RePaint resampling: DDIM that repeats each section of the grid, adding noise back in between.

    At every grid point that is a multiple of `jump_length` steps from the last noisy one, the run goes back
    `jump_length` steps by the forward process,

        x_t = (alpha_t/alpha_s) x_s + alpha_t sqrt(r_t^2 - r_s^2) z,   r = sigma/alpha

    and repeats them, so that each section is run `resamples` times. A run takes about `resamples` evaluations per step.

    Use it for a model whose prediction holds a part of the sample fixed (`PosteriorSampling` with a `Mask` and method
    "projection"): each repetition brings the rest into better agreement with that part. For other models it does not
    change the distribution, apart from the discretisation errors of the repeated steps. The paper uses eta = 1 (DDPM),
    250 steps, jump_length 10 and resamples 10; with fewer steps, fewer resamples and a smaller eta are better, as their
    errors are smaller. No order of convergence is claimed.

    Args:
        jump_length: steps per section; 1 is algorithm 1 of the paper.
        resamples: number of times that each section is run; 1 is `ddim`.
        eta: scale of the noise of the DDIM steps, as in `ddim`.
    """
    if jump_length < 1 or resamples < 1:
        raise ValueError(f"jump_length and resamples must be 1 or more, not {jump_length} and {resamples}")
    points = [p for p in path.points if not (p.is_clean or p.is_pure_noise)]
    sections = {id(points[k]): points[k - jump_length : k + 1] for k in jumps(len(points), jump_length)}
    for pair in path.steps:
        x = yield from ddim(x, path.part(pair), eta=eta)
        section = sections.get(id(pair[1]), [])
        for _ in range(resamples - 1 if section else 0):
            x = add_noise(x, path, section[-1], section[0], 1.0)
            x = yield from ddim(x, path.part(section), eta=eta)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [repaint]
