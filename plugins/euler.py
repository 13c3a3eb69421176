"""First- and second-order solvers of the probability-flow ODE, and Euler-Maruyama on the reverse SDE.

Euler-Maruyama in flow coordinates, x = (1 - t) x0 + t eps, has two forms of its own, which policy-gradient training of
flow models uses. With t = sigma/(alpha + sigma) and k = alpha + sigma they are the same in all coordinates.

`out.ahead(h)` is x + h * out.velocity in one pass; `torch.add(x, slope, alpha=h)` is x + h * slope in one kernel
instead of two, and `add_` adds to that new tensor in place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdesamplers import Path, Point, Prediction, Run, Sampler, hookimpl, sampler


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


def flow_time(point: Point) -> float:
    """t = sigma/(alpha + sigma), the time of a point in flow coordinates."""
    return point.sigma / (point.alpha + point.sigma)


def flow_step(out: Prediction, path: Path, then: Point, variance: float) -> Tensor:
    """A step of Euler-Maruyama in flow coordinates: alpha_s x0 + (sigma_s - k w/(2 t)) eps + k sqrt(w) z.

    w = `variance` is that of the step's noise there; the drift of the SDE with the same marginals is -w/(2 t) eps.
    """
    now, k = out.point, then.alpha + then.sigma
    mean = out.compose(then.alpha, then.sigma - 0.5 * k * variance / flow_time(now))
    return path.draw(mean, k * math.sqrt(variance), now, then)


@sampler(
    "flow-sde",
    order=1,
    stochastic=True,
    noiseless={"noise_level": 0.0},
    needs=("marginals",),
    reference="Liu et al. 2025 (Flow-GRPO, arXiv 2505.05470), eq. 9",
)
def flow_sde(x: Tensor, path: Path, *, noise_level: float = 0.7, noisy_end: bool = False) -> Run:
    """Flow-SDE, the sampler of Flow-GRPO: Euler-Maruyama in flow coordinates.

        x_s = x_t + [v + g^2/(2t) (x_t + (1 - t) v)] (s - t) + g sqrt(t - s) z,   g = a sqrt(t/(1 - t))

    with x_t = (1 - t) x0 + t eps, and a = `noise_level`. It is `euler-maruyama` in flow coordinates with
    eta = a/sqrt(2), except for the step out of t = 1: there g is infinite, and 1 - s replaces 1 - t in it, as in the
    paper's code.

    Args:
        noise_level: a, 0 or more; 0 is `ddim`. The marginals are the same for every a.
        noisy_end: add noise in the step into sigma = 0 too, as the paper's code does; its samples keep this noise.
    """
    if noise_level < 0:
        raise ValueError(f"noise_level must be 0 or more, not {noise_level}")
    for now, then in path.steps:
        out = yield x, now
        if then.is_clean and not noisy_end:
            x = out.step_to(then)
            continue
        t, s = flow_time(now), flow_time(then)
        odds = t / (1 - s) if now.is_pure_noise else now.ratio
        x = flow_step(out, path, then, noise_level**2 * odds * (t - s) if noise_level else 0.0)
    return x


@sampler(
    "dance-sde",
    order=1,
    stochastic=True,
    noiseless={"eta": 0.0},
    needs=("marginals",),
    reference="Xue et al. 2025 (DanceGRPO, arXiv 2505.07818), section 3.2 and its code",
)
def dance_sde(x: Tensor, path: Path, *, eta: float = 0.3) -> Run:
    """Dance-SDE, the sampler of DanceGRPO: Euler-Maruyama in flow coordinates with constant noise.

        x_s = x_t + [v - eta^2/2 score] (s - t) + eta sqrt(t - s) z

    with x_t = (1 - t) x0 + t eps. Relative to the reverse SDE the noise is eta/g(t), where g is that of the flow. No
    noise is added in the step into sigma = 0.

    Args:
        eta: standard deviation of the noise per square root of flow time, 0 or more; 0 is `ddim`. The marginals are
            the same for every eta.
    """
    if eta < 0:
        raise ValueError(f"eta must be 0 or more, not {eta}")
    for now, then in path.steps:
        out = yield x, now
        noisy = eta and not then.is_clean
        x = flow_step(out, path, then, eta**2 * (flow_time(now) - flow_time(then)) if noisy else 0.0)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [euler, heun, euler_maruyama, flow_sde, dance_sde]
