"""First- and second-order solvers of the probability-flow ODE, and Euler-Maruyama on the reverse SDE.

`out.ahead(h)` is x + h * out.velocity in one pass; `torch.add(x, slope, alpha=h)` is x + h * slope in one kernel
instead of two, and `add_` adds to that new tensor in place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdesamplers import Path, Run, Sampler, hookimpl, sampler


@sampler("euler", order=1, reference="Song et al. 2021, eq. 13; Karras et al. 2022, algorithm 1 without correction")
def euler(x: Tensor, path: Path) -> Run:
    """Euler's method on the probability-flow ODE.

        x_s = x_t + h v(x_t, t),   v = f - g^2 score / 2

    with h = s - t. In `ve` coordinates this is DDIM; in the native time of a VP process it is the textbook
    discretisation.
    """
    for now, then in path.steps:
        out = yield x, now
        x = out.ahead(then.time - now.time)
    return x


@sampler(
    "heun",
    order=2,
    evaluations=2,
    coordinates="ve",
    spacing="karras",
    reference="Karras et al. 2022, algorithm 1 with sigma(t) = t and s(t) = 1",
)
def heun(x: Tensor, path: Path) -> Run:
    """Heun's method (explicit trapezoidal rule) on the probability-flow ODE.

        x' = x_t + h v(x_t, t)
        x_s = x_t + h/2 [v(x_t, t) + v(x', s)]

    with h = s - t. The step into sigma = 0 is an Euler step.
    """
    for now, then in path.steps:
        h = then.time - now.time
        out = yield x, now
        x, slope = out.x, out.velocity
        if then.is_clean:
            x = torch.add(x, slope, alpha=h)
        else:
            out = yield torch.add(x, slope, alpha=h), then
            x = torch.add(x, slope, alpha=h / 2).add_(out.velocity, alpha=h / 2)
    return x


@sampler(
    "euler-maruyama",
    order=1,
    stochastic=True,
    reference="Anderson 1982; Song et al. 2021, eq. 6; eta as in Huang et al. 2021",
)
def euler_maruyama(x: Tensor, path: Path, *, eta: float = 1.0) -> Run:
    """Euler-Maruyama on the reverse SDE, or on an SDE with the same marginals and more or less noise.

        x_s = x_t + h [f - (1 + eta^2)/2 g^2 score] + eta g sqrt|h| z

    with h = s - t. The steps out of alpha = 0, where g is infinite, and into sigma = 0 use eta = 0; eta may change
    along the path without changing the marginals.

    Args:
        eta: noise relative to the reverse SDE. 1 is the reverse SDE, 0 the probability-flow ODE (`euler`).
    """
    if eta < 0:
        raise ValueError(f"eta must be 0 or more, not {eta}")
    for now, then in path.steps:
        h = then.time - now.time
        amount = 0.0 if now.is_pure_noise or then.is_clean else eta
        out = yield x, now
        mean = out.ahead(h, amount)
        x = path.draw(mean, amount and amount * now.diffusion * math.sqrt(abs(h)), now, then)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [euler, heun, euler_maruyama]
