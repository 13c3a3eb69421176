"""Exactly invertible samplers: each step is a bijection of a pair of states, so a run can be reversed exactly.

`encode` returns the second state of the pair as `Encoding.companion`, and `decode` starts from it. A run that starts
from one state derives the second from it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from sdesamplers import Path, Point, Run, Sampler, hookimpl, sampler
from sdesamplers.path.pairs import leave_companion, take_companion


def towards_noise(path: Path) -> bool:
    """True if the path runs from data to noise, so that the sampler must invert its steps towards the data."""
    return path.points[-1].time > path.points[0].time


def follow_edit(x: Tensor, requested: Tensor, evaluated: Tensor) -> Tensor:
    """One state of a pair, shifted by as much as a callback has changed the other, `requested`, before evaluation."""
    return x if evaluated is requested else x + (evaluated - requested)


@sampler("bdia-ddim", order=1, needs=("marginals",), reference="Zhang, Lewis & Kleijn 2023")
def bdia_ddim(x: Tensor, path: Path, *, gamma: float = 1.0) -> Run:
    """Bi-directional integration approximation (BDIA) of DDIM, exactly invertible.

        x_{i-1} = D_{i-1}(x_i) + gamma (x_{i+1} - D_{i+1}(x_i))

    where D_j(x_i) is the DDIM step from x_i to point j: the error of a DDIM step back to the previous state corrects
    the step to the next one. From data to noise the equation is solved for x_{i+1}. The pair is the last two states;
    the first step is DDIM's.

    Args:
        gamma: weight of the correction, in (0, 1]. Below 1, errors are damped towards the data (0.5 samples best in few
            steps) and grow like gamma^-steps towards the noise, where 1 is best.
    """
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma must lie in (0, 1], not {gamma}")
    weight = 1 / gamma if towards_noise(path) else gamma
    points = path.points
    ahead = take_companion(path)
    if ahead is None:
        out = yield x, points[0]
        x, ahead = out.x, out.step_to(points[1])
    for before, now, then in zip(points, points[1:], points[2:], strict=False):
        out = yield ahead, now
        error = follow_edit(x, ahead, out.x) - out.step_to(before)
        x, ahead = out.x, torch.add(out.step_to(then), error, alpha=weight)
    leave_companion(path, x)
    return ahead


@sampler("reversible-heun", order=2, reference="Kidger et al. 2021, algorithm 1")
def reversible_heun(x: Tensor, path: Path) -> Run:
    """Reversible Heun method, symmetric and exactly invertible, with one evaluation per step.

        z' = 2x - z + h v(z, t)
        x' = x + h/2 [v(z, t) + v(z', t + h)]

    The pair is (x, z), with z = x at the start. The step into sigma = 0 is an Euler step. As in every symmetric
    explicit method, z oscillates around x where the flow contracts.
    """
    first = take_companion(path)
    out = yield (x if first is None else first), path.points[0]
    x, z, slope = follow_edit(x, x if first is None else first, out.x), out.x, out.velocity
    for now, then in path.steps:
        h = then.time - now.time
        if then.is_clean:
            return torch.add(x, slope, alpha=h)
        ahead = torch.add(2 * x - z, slope, alpha=h)
        out = yield ahead, then
        x = follow_edit(torch.add(x, slope + out.velocity, alpha=h / 2), ahead, out.x)
        z, slope = out.x, out.velocity
    leave_companion(path, z)
    return x


@sampler("reversible-midpoint", order=2, evaluations=4, reference="McCallum & Foster 2024, section 3")
def reversible_midpoint(x: Tensor, path: Path, *, coupling: float = 0.99) -> Run:
    """The explicit midpoint rule, made exactly invertible by coupling two copies of the state.

        x' = c x + (1 - c) z + M_h(z)
        z' = z - M_{-h}(x')

    where M_h is the increment of a midpoint step from t to t + h, and M_{-h} that of one from t + h to t. The pair is
    (x, z), with z = x at the start. The step into sigma = 0 is an Euler step.

    Args:
        coupling: c, in (0, 1]. Below 1 it pulls the copies together, which keeps the method stable, but rounding errors
            grow like c^-steps towards the noise.
    """
    if not 0 < coupling <= 1:
        raise ValueError(f"coupling must lie in (0, 1], not {coupling}")
    z = take_companion(path)
    z = x if z is None else z
    for now, then in path.steps:
        if then.is_clean:
            out = yield x, now
            return torch.add(out.x, out.velocity, alpha=then.time - now.time)
        if towards_noise(path):
            x, z, gain = yield from midpoint_gain(x, z, path, now, then)
            z = z + gain
            z, x, gain = yield from midpoint_gain(z, x, path, then, now)
            x = (x - (1 - coupling) * z - gain) / coupling
        else:
            z, x, gain = yield from midpoint_gain(z, x, path, now, then)
            x = coupling * x + (1 - coupling) * z + gain
            x, z, gain = yield from midpoint_gain(x, z, path, then, now)
            z = z - gain
    leave_companion(path, z)
    return x


def midpoint_gain(
    x: Tensor, other: Tensor, path: Path, start: Point, end: Point
) -> Generator[tuple[Tensor, Point], Any, tuple[Tensor, Tensor, Tensor]]:
    """The increment of x in a midpoint step from `start` to `end`.

    Returns:
        (x, other, increment), with the pair as edited by callbacks.
    """
    h = end.time - start.time
    out = yield x, start
    x, other = out.x, follow_edit(other, x, out.x)
    requested = torch.add(x, out.velocity, alpha=h / 2)
    out = yield requested, path.at(start.time + h / 2)
    return follow_edit(x, requested, out.x), follow_edit(other, requested, out.x), h * out.velocity


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [bdia_ddim, reversible_heun, reversible_midpoint]
