"""Noise added around an ODE solver: EDM's churn, a little before every step, and Restart, much at a few noise levels.

With r = sigma/alpha, both add noise as the forward process does, (alpha_up/alpha) x + alpha_up sqrt(r_up^2 - r^2) z,
which preserves the marginals exactly for any process; then a one-step ODE solver removes it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from sdesamplers import (
    SDE,
    Evaluator,
    FunctionModel,
    Path,
    Point,
    Run,
    Sampler,
    UnknownNameError,
    default_registry,
    drive,
    hookimpl,
    sampler,
)

from ._shared import check_noise


def one_step_solver(name: str, path: Path) -> Sampler:
    """The registered sampler `name`, which must be a deterministic one-step method.

    Raises:
        UnknownNameError: no sampler of this name.
        ValueError: the sampler is stochastic or multistep, or needs more than a prediction.
    """
    registered = default_registry().samplers
    if name not in registered:
        raise UnknownNameError("solver", name, registered, " (any one-step ODE sampler: euler, heun, rk4, dpm2, ...)")
    found = registered[name]
    reason = ""
    if found.stochastic:
        reason = "adds noise itself"
    elif set(found.needs) - {"marginals"}:
        reason = f"needs more than a prediction ({', '.join(found.needs)})"
    elif is_multistep(found, path.process):
        reason = "is a multistep method, and noise is added between its steps"
    if reason:
        raise ValueError(f"solver={name!r} {reason}; use a one-step ODE solver such as heun, euler, ddim or dpm2")
    return found


@lru_cache(maxsize=64)
def is_multistep(solver: Sampler, process: SDE) -> bool:
    """True if a run of five steps and five runs of one step give different results (toy model with x0 = tanh(x))."""
    path = Path(process, [])
    lowest = float(path.at(process.t_min).ratio)
    highest = min(highest_ratio(path), 1e4 * lowest)
    points = [path.at_ratio(r) for r in np.geomspace(highest, lowest, 6)]
    model = FunctionModel(lambda x, t: torch.tanh(x), process, "sample", (1,), dtype=torch.float64)

    def run(x: Tensor, points: Sequence[Point]) -> Tensor:
        return drive(solver(x, Path(process, points)), Evaluator(model, len(x), solver.name))

    start = stepwise = float(points[0].sigma) * torch.tensor([[-1.3], [0.4], [1.1]], dtype=torch.float64)
    for pair in itertools.pairwise(points):
        stepwise = run(stepwise, pair)
    return not torch.allclose(run(start, points), stepwise, rtol=1e-9, atol=1e-9)


def highest_ratio(path: Path) -> float:
    """sigma/alpha at the noise end of the process, the largest that the model was trained at."""
    return float(path.at(path.process.t_max).ratio)


def add_noise(x: Tensor, path: Path, now: Point, up: Point, s_noise: float) -> Tensor:
    """The forward process from `now` to the noisier point `up`, with the noise multiplied by `s_noise`."""
    spread = math.sqrt((up.ratio - now.ratio) * (up.ratio + now.ratio))
    return path.draw(x * (up.alpha / now.alpha), s_noise * up.alpha * spread, now, up)


@sampler(
    "churn",
    order=2,
    evaluations=2,
    stochastic=True,
    noiseless={"s_churn": 0.0},
    needs=("marginals",),
    coordinates="ve",
    spacing="karras",
    reference="Karras et al. 2022, algorithm 2",
)
def churn(
    x: Tensor,
    path: Path,
    *,
    solver: str = "heun",
    s_churn: float = 5.0,
    s_tmin: float = 0.0,
    s_tmax: float | None = None,
    s_noise: float = 1.0,
) -> Run:
    """EDM's stochastic sampler ("churn"), with any one-step ODE solver.

    With r = sigma/alpha and N steps, noise is added before each step whose r lies in [s_tmin, s_tmax],

        gamma = min(s_churn/N, sqrt(2) - 1),   r_hat = (1 + gamma) r
        x_hat = (alpha_hat/alpha) x + alpha_hat sqrt(r_hat^2 - r^2) s_noise z

    and `solver` steps from r_hat to the next point. r_hat is limited to the largest r that the model was trained at.
    The evaluations per step are those of the solver.

    The paper's settings: s_churn 30 to 80, s_tmin 0.01 or 0.05, s_tmax 1 or 50, s_noise 1.003 or 1.007 (table 5), in up
    to 256 steps.

    Args:
        solver: name of a deterministic one-step sampler, such as heun, euler, ddim or dpm2.
        s_churn: amount of noise added over all steps; 0 is the plain solver.
        s_tmin: smallest r = sigma/alpha from which noise is added.
        s_tmax: largest r from which noise is added; None for no limit.
        s_noise: factor on the added noise; any value but 1 changes the distribution.
    """
    largest = math.inf if s_tmax is None else s_tmax
    if not (0 <= s_churn < math.inf and 0 <= s_noise < math.inf and 0 <= s_tmin <= largest):
        raise ValueError(
            "s_churn and s_noise must be 0 or more and 0 <= s_tmin <= s_tmax, not "
            f"s_churn={s_churn}, s_noise={s_noise}, s_tmin={s_tmin}, s_tmax={s_tmax}"
        )
    step, top = one_step_solver(solver, path), highest_ratio(path)
    gamma = min(s_churn / len(path.steps), math.sqrt(2) - 1)
    for now, then in path.steps:
        raised = min((1 + gamma) * now.ratio, top)
        if s_tmin <= now.ratio <= largest and raised > (1 + 1e-9) * now.ratio:
            hat = path.at_ratio(raised)
            x, now = add_noise(x, path, now, hat, s_noise), hat
        x = yield from step(x, path.part([now, then]))
    return x


def check_intervals(intervals: Sequence[Sequence[float]]) -> None:
    """Raise ValueError unless each interval is (points, repetitions, t_min, t_max), as in the paper's tables."""
    for interval in intervals:
        try:
            count, repeats, low, high = interval
            sensible = count == int(count) >= 2 and repeats == int(repeats) >= 1 and 0 < low < high < math.inf
        except (TypeError, ValueError):
            sensible = False
        if not sensible:
            raise ValueError(
                "intervals must be a list of [N, K, t_min, t_max] with whole N >= 2 and K >= 1 and 0 < t_min < t_max, "
                f"such as [[3, 2, 0.06, 0.3]]; {interval!r} is not such an interval"
            )


def restarts(path: Path, intervals: Sequence[Sequence[float]]) -> dict[int, list[tuple[int, list[Point]]]]:
    """The restarts at each grid point: index -> [(repetitions, points from t_max down to the grid point), ...]."""
    check_intervals(intervals)
    plan: dict[int, list[tuple[int, list[Point]]]] = {}
    noisy = [k for k, point in enumerate(path.points) if k > 0 and not point.is_clean]
    for count, repeats, low, high in intervals:
        index = min(noisy, key=lambda k: abs(path.points[k].ratio - low), default=0)
        bottom, top = path.points[index], min(high, highest_ratio(path))
        if index and bottom.ratio < top:
            ratios = np.linspace(top ** (1 / 7), bottom.ratio ** (1 / 7), int(count))[:-1] ** 7
            plan.setdefault(index, []).append((int(repeats), [*(path.at_ratio(r) for r in ratios), bottom]))
    return plan


@sampler(
    "restart",
    order=None,
    evaluations=2,
    stochastic=True,
    noiseless={"intervals": ()},
    ode_order=2,
    needs=("marginals",),
    coordinates="ve",
    spacing="karras",
    reference="Xu et al. 2023 (Restart), algorithms 1-2 and tables 3 and 5",
)
def restart(
    x: Tensor,
    path: Path,
    *,
    solver: str = "heun",
    intervals: Sequence[Sequence[float]] = ((3, 2, 0.06, 0.3),),
    s_noise: float = 1.0,
) -> Run:
    """Restart sampling: an ODE solver that, at a few noise levels, adds much noise and solves back down.

    At the grid point nearest to r = sigma/alpha = t_min of an interval [N, K, t_min, t_max], the run repeats K times:
    add noise up to t_max,

        x_up = (alpha_up/alpha) x + alpha_up sqrt(r_up^2 - r^2) s_noise z

    and solve the ODE back down over N points of Karras et al.'s grid (rho = 7). An interval with no grid point below
    its t_max is skipped. N does not depend on the main grid, so no order of convergence is claimed.

    Args:
        solver: name of a deterministic one-step sampler, such as heun, euler, ddim or dpm2.
        intervals: list of [N, K, t_min, t_max]. The default is the paper's for CIFAR-10, 43 evaluations in 18 steps;
            for ImageNet-64: [4, 1, 19.35, 40.79], [4, 1, 1.09, 1.92], [4, 5, 0.59, 1.09], [4, 5, 0.3, 0.59],
            [6, 6, 0.06, 0.3].
        s_noise: factor on the added noise; any value but 1 changes the distribution.
    """
    check_noise(s_noise=s_noise)
    step, plan = one_step_solver(solver, path), restarts(path, intervals)
    for index, pair in enumerate(path.steps, 1):
        x = yield from step(x, path.part(pair))
        for repeats, points in plan.get(index, []):
            for _ in range(repeats):
                x = add_noise(x, path, pair[1], points[0], s_noise)
                x = yield from step(x, path.part(points))
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [churn, restart]
