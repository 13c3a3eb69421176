"""Runge-Kutta solvers of the probability-flow ODE, dx/dt = v(x, t): `fixed` on a given grid, `controlled` adaptive.

The methods are the tableaus in `_tableaux`:

    k_i = v(x + h sum_j a_ij k_j, t + c_i h)
    x_s = x + h sum_i b_i k_i
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdesamplers import Path, Point, Run, Sampler, hookimpl, sampler, weighted_sum
from sdesamplers.coefficients import octave_parts

from ._adaptive import PI, Budget, Outcome, State, Tolerance, Trial, adapt, rms
from ._tableaux import METHODS, PAIRS, Tableau


def fixed(x: Tensor, path: Path, tableau: Tableau, slope: Tensor | None = None) -> Run:
    """Integrate on the grid of the path; `slope` is the slope at its first point, if known.

    The step into sigma = 0 is an Euler step if a stage would lie outside the training range of the model: at sigma = 0
    or between it and the model's smallest sigma.
    """
    for now, then in path.steps:
        if slope is None:
            out = yield x, now
            x, slope = out.x, out.velocity
        h = then.time - now.time
        if then.is_clean and now.time + max(tableau.nodes) * h < path.process.t_min:
            return torch.add(x, slope, alpha=h)

        def at(node: float, now: Point = now, then: Point = then, h: float = h) -> Point:
            return then if node == 1 else path.at(now.time + node * h)

        slopes = yield from stages(tableau, x, slope, h, at)
        x, slope = advance(x, h, tableau.weights, slopes), None
        if tableau.fsal and not then.is_clean:
            out = yield x, then
            x, slope = out.x, out.velocity
    return x


def controlled(x: Tensor, path: Path, tableau: Tableau, budget: Budget) -> Generator[Any, Any, State]:
    """Integrate between the first two points of the path with step sizes per sample; return the end state and slope."""
    begin, end = path.points[0].time, path.points[1].time
    out = yield x, path.at(np.full(len(x), begin), np.arange(len(x)))
    h = first_step(budget.tolerance, out.x, out.velocity, end - begin)

    def attempt(state: State, trial: Trial) -> Generator[Any, Any, Outcome]:
        (x, slope), h = state, path.expand(trial.step, state[0])

        def at(node: float) -> Point[Any]:
            return path.at(trial.now + node * trial.step, trial.rows)

        slopes = yield from stages(tableau, x, slope, h, at)
        out = yield advance(x, h, tableau.weights, slopes), at(1.0)
        slopes.append(out.velocity)
        error = step_error(tableau, h, slopes, budget.tolerance.total(x, out.x))
        return Outcome(state, (out.x, slopes[-1]), error)

    control = PI(h, tableau.error_order)
    return (yield from adapt((out.x, out.velocity), path, begin, end, attempt, control, budget))


def advance(x: Tensor, h: Any, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """x + h sum_j weights_j slopes_j; h is a float or an expanded tensor with one step per sample."""
    used = [(weight, slope) for weight, slope in zip(weights, slopes, strict=True) if weight]
    total = weighted_sum(*zip(*used, strict=True))
    return torch.add(x, total, alpha=h) if isinstance(h, float) else x + h * total


def stages(
    tableau: Tableau, x: Tensor, slope: Tensor, h: Any, at: Callable[[float], Point[Any]]
) -> Generator[Any, Any, list[Tensor]]:
    """The slopes k_1 ... k_s of one step from x; `slope` is k_1, and `at(c)` returns the point at t + c h."""
    slopes = [slope]
    for node, row in zip(tableau.nodes, tableau.stages, strict=True):
        out = yield advance(x, h, row, slopes), at(node)
        slopes.append(out.velocity)
    return slopes


def step_error(tableau: Tableau, h: Any, slopes: Sequence[Tensor], allowed: Tensor) -> np.ndarray:
    """The error estimate of one step for each sample, divided by the tolerance `allowed`."""
    error = rms(h * weighted_sum(tableau.error, slopes[: len(tableau.error)]) / allowed)
    if tableau.damper:
        # Hairer, Norsett & Wanner 1993, II.10: |e5|^2 / sqrt(|e5|^2 + 0.01 |e3|^2), of order 8 in h
        lower = rms(h * weighted_sum(tableau.damper, slopes[: len(tableau.damper)]) / allowed)
        error = error * np.divide(error, np.hypot(error, 0.1 * lower), out=np.ones_like(error), where=error != 0)
    return error


def first_step(tolerance: Tolerance, x: Tensor, slope: Tensor, span: float) -> np.ndarray:
    """0.01 |x| / |v|, estimate (a) of Hairer, Norsett & Wanner 1993, II.4, with the sign of `span`.

    Their refinement by a difference quotient is omitted: it amplifies rounding errors in float32, and the controller
    can increase a step that is too small tenfold at once.
    """
    size, rate = (rms(part / tolerance.total(x)) for part in (x, slope))
    tiny = (size < 1e-5) | (rate < 1e-5)
    first = np.where(tiny, 1e-6 * abs(span), 0.01 * size / np.maximum(rate, 1e-300))
    return octave_parts(np.copysign(np.minimum(first, abs(span)), span))


def fixed_step(tableau: Tableau) -> Sampler:
    """The fixed-step sampler of a tableau."""

    def run(x: Tensor, path: Path) -> Run:
        return (yield from fixed(x, path, tableau))

    run.__doc__ = f"""{tableau.title}, on the probability-flow ODE.

        k_i = v(x_t + h sum_j a_ij k_j, t + c_i h)
        x_s = x_t + h sum_i b_i k_i

    with h = s - t. The step into sigma = 0 is an Euler step if one of its stages would lie below the model's smallest
    sigma.
    """
    cost = len(tableau.weights)
    return Sampler(run, tableau.name, order=tableau.order, evaluations=cost, reference=tableau.reference)


def adaptive(tableau: Tableau) -> Sampler:
    """The adaptive sampler of an embedded pair."""
    cost = len(tableau.weights)

    def run(x: Tensor, path: Path, *, rtol: float = 1e-4, atol: float = 1e-4, max_nfe: int = 10_000) -> Run:
        if not (rtol > 0 and atol > 0 and max_nfe > 0):
            raise ValueError("rtol, atol and max_nfe must be positive")
        if not path.is_free:
            return (yield from fixed(x, path, tableau))
        budget = Budget(tableau.name, Tolerance(rtol, atol), max_nfe, cost, first=1)
        x, slope = yield from controlled(x, path, tableau, budget)
        return (yield from fixed(x, path.part(path.points[1:]), tableau, slope))

    run.__doc__ = f"""{tableau.title} on the probability-flow ODE, adaptive, or with the steps of a given grid.

        k_i = v(x_t + h sum_j a_ij k_j, t + c_i h)
        x_s = x_t + h sum_i b_i k_i
        E = RMS over a sample of |error| / (atol + rtol max(|x_t|, |x_s|))

    with h = s - t. A step is accepted if E is at most 1. Every sample has its own step sizes, so samples do not affect
    each other. The step from the model's smallest sigma into sigma = 0 is an Euler step. With a grid (`steps`, `times`,
    ...) there is no error control, and a step takes {cost} evaluations.

    Args:
        rtol: relative error tolerance.
        atol: absolute error tolerance.
        max_nfe: most evaluations per sample; a run that needs more is an error.
    """
    return Sampler(
        run,
        tableau.name,
        order=tableau.order,
        evaluations=cost,
        control=("rtol", "atol", "max_nfe"),
        reference=tableau.reference,
    )


@sampler(
    "heunpp2",
    order=1,
    evaluations=3,
    coordinates="ve",
    needs=("marginals",),
    reference="Heun++ 2 of ComfyUI (no paper); see Karras et al. 2022, algorithm 1, for its first two slopes",
)
def heunpp2(x: Tensor, path: Path) -> Run:
    """Heun++ with up to three slopes: those at the current point and at the next two, reached by Euler steps.

        x_s = x_t + h [(1 - w_1 - w_2) v_0 + w_1 v_1 + w_2 v_2],   w_j = sigma_j / (n sigma_start)

    for n slopes. No slope is evaluated at the last point of the grid, so the last step is an Euler step and the step
    before it has two slopes. The weights decrease with sigma: early steps look ahead like a larger Heun step, late
    steps approach Euler steps. Second order would require w_1 h + w_2 (h + h') = h/2, which these weights do not
    satisfy, so the method is of first order.
    """
    largest = max(path.points[0].sigma, path.points[-1].sigma)  # sigma_start, for a path in either direction
    for k, (now, then) in enumerate(path.steps):
        out = yield x, now
        x, slopes, weights = out.x, [out.velocity], [1.0]
        ahead = path.points[k + 1 : min(k + 3, len(path.points) - 1)]
        state, before = x, now
        for point in ahead:
            state = torch.add(state, slopes[-1], alpha=point.time - before.time)
            out = yield state, point
            state, before = out.x, point
            slopes.append(out.velocity)
            weights.append(point.sigma / ((len(ahead) + 1) * largest))
        weights[0] -= sum(weights[1:])
        x = advance(x, then.time - now.time, weights, slopes)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [*map(fixed_step, METHODS), *map(adaptive, PAIRS), heunpp2]
