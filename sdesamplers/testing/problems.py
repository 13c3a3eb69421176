"""Problems with closed-form solutions, and grids on which to measure convergence.

In one dimension the probability-flow ODE keeps every sample's quantile, so its solution from time t to s is
F_s^-1(F_t(x)) for any data distribution: an exact solution of a nonlinear problem, without a solver. On Gaussian data a
sampler's whole run is affine in its initial state and its noise, so its mean and variance follow exactly from runs on
unit vectors, without Monte Carlo error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

from ..models.analytic import GaussianModel, MixtureModel
from ..path.grid import given_points
from ..path.path import Path
from ..path.points import model_state, path_process
from ..processes.scalars import expand
from ..processes.schedules import VP, RectifiedFlow
from ..processes.sde import GaussianProcess
from ..registry.names import Preset
from ..registry.plugin import Sampler
from ..sampling.arguments import fill_options
from ..sampling.loop import Evaluator, drive
from ..sampling.runs import start_run

WEIGHTS, MEANS, DEVIATIONS = (0.3, 0.5, 0.2), (-1.2, 0.3, 1.5), (0.5, 0.4, 0.6)


@dataclass(frozen=True)
class Transport:
    """A one-dimensional mixture on a process: exact ODE solutions between two values of lambda.

    Attributes:
        process: the process.
        first, last: lambda = log(alpha/sigma) at which grids begin and end, both away from the singular ends.
    """

    process: GaussianProcess
    first: float = -1.5
    last: float = 1.5

    @cached_property
    def model(self) -> MixtureModel:
        """The mixture with its exact score."""
        means = np.array(MEANS)[:, None]
        return MixtureModel(WEIGHTS, means, np.square(DEVIATIONS), self.process, name="1-D mixture")

    def time(self, lam: float | np.ndarray) -> Any:
        """The native time at which log(alpha/sigma) = lam."""
        return self.process.time_at_log_snr(2 * np.asarray(lam))

    def _parts(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        alpha, sigma = float(self.process.alpha(t)), float(self.process.sigma(t))
        return alpha * np.array(MEANS), np.hypot(alpha * np.array(DEVIATIONS), sigma)

    def quantile(self, x: np.ndarray, t: float) -> np.ndarray:
        """F_t(x), the mixture's cumulative distribution at time t."""
        means, widths = self._parts(t)
        return np.asarray(ndtr((x[:, None] - means) / widths) @ WEIGHTS)

    def at_quantile(self, q: np.ndarray, t: float) -> np.ndarray:
        """F_t^-1(q) to rounding error, by bisection and Newton's method."""
        means, widths = self._parts(t)
        low = np.full(len(q), (means - 9 * widths).min())
        high = np.full(len(q), (means + 9 * widths).max())
        for _ in range(40):
            middle = 0.5 * (low + high)
            above = self.quantile(middle, t) > q
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        x = 0.5 * (low + high)
        for _ in range(3):
            z = (x[:, None] - means) / widths
            density = (np.exp(-0.5 * z**2) / widths) @ WEIGHTS / math.sqrt(2 * math.pi)
            x = x - (self.quantile(x, t) - q) / density
        return x

    def ends(self, times: Sequence[float], count: int = 33) -> tuple[Tensor, Tensor]:
        """`count` states at times[0], at even quantiles, and their ODE solutions at times[-1]; (count, 1) each."""
        q = (np.arange(count) + 0.5) / count
        first, last = (torch.from_numpy(self.at_quantile(q, float(t)))[:, None] for t in (times[0], times[-1]))
        return first, last


def graded(first: float, last: float, steps: int, order: int) -> np.ndarray:
    """An uneven grid of lambda from `first` to `last`: step sizes alternate 1 : 1.5, and the first steps are tiny.

    A multistep method begins with methods of lower order; initial steps that double from h^((order + 1) / 2) on make
    the error of its starting values smaller than its own, so that its order can be measured. There are at least `steps`
    steps after them, and a multiple of 6 in all, because some methods take steps in groups of two or three.
    """
    small = (1.0 / steps) ** ((order - 1) / 2)
    growth = [small * 2**k for k in range(math.ceil(-math.log2(small)))]
    full = -(-(len(growth) + steps) // 6) * 6 - len(growth)
    shares = np.concatenate([growth, np.tile([1.0, 1.5], full)[:full]])
    edges = np.concatenate([[0.0], np.cumsum(shares)])
    return np.asarray(first + (last - first) * edges / edges[-1])


def run(
    model: Any,
    spec: Sampler,
    x: Tensor,
    *,
    times: Sequence[float] | np.ndarray,
    coordinates: str = "native",
    options: Mapping[str, Any] | None = None,
    noise: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Run a sampler over given times from state `x`, with any noise; `x` and the result are in model coordinates."""
    path = Path(path_process(model.process, coordinates), [], noise=noise)
    path.points = given_points(path.process, list(times), None)
    evaluator = Evaluator(model, len(x), spec.name, both="unguided" in spec.needs)
    filled = fill_options(Preset(spec, dict(options or {})), {}, "times")
    with torch.no_grad():
        state = drive(start_run(spec, x * expand(path.points[0].scale, x), path, filled), evaluator)
        return model_state(state, path.points[-1])


ROUNDING = 3e-14
"""Errors below this are rounding, not discretization."""

COUNTS = (6, 12, 18, 24, 36, 48, 72, 96, 144, 192, 288)
"""Step numbers of the grids that measure convergence; the finest four with an error above rounding are used."""


def fitted_order(error: Callable[[np.ndarray], float], order: int, first: float, last: float) -> float:
    """The slope of log error against the log of the largest step in lambda.

    Args:
        error: function of a grid of lambda that returns the error on it.
        order: argument of `graded`: how small its first steps are.
        first, last: the ends of the grid.

    Returns:
        The fitted slope; infinite if the method is exact to rounding, NaN if errors are not finite.
    """
    usable: list[tuple[float, float]] = []
    finest = COUNTS[-1] if order < 5 else 96  # there a method of high order has already reached rounding
    for count in (n for n in reversed(COUNTS) if n <= finest):
        grid = graded(first, last, count, order)
        found = error(grid)
        if not math.isfinite(found):
            return math.nan
        if found > ROUNDING:
            usable.append((float(np.diff(grid).max()), found))
        if len(usable) == 4:
            break
    if len(usable) < 2:
        return math.inf
    h, e = np.log(np.array(usable)).T
    return float(np.polyfit(h, e, 1)[0])


def measure_order(
    spec: Sampler,
    process: GaussianProcess,
    *,
    order: int,
    coordinates: str = "native",
    options: Mapping[str, Any] | None = None,
) -> float:
    """The order of convergence of an ODE sampler, measured on `Transport` in float64 over uneven grids.

    Args:
        spec: the sampler.
        process: the process of the test problem.
        order: the expected order; it determines only how small the first steps of the grids are.
        coordinates, options: as in `sample`.

    Returns:
        The fitted order; infinite if the method is exact to rounding, NaN if errors are not finite.
    """
    problem = Transport(process)

    def error(grid: np.ndarray) -> float:
        times = problem.time(grid)
        start, exact = problem.ends(times)
        found = run(problem.model, spec, start, times=times, coordinates=coordinates, options=options)
        return float((found - exact).square().mean().sqrt())

    return fitted_order(error, order, problem.first, problem.last)


class Counter:
    """Noise for `run` that is 1 for row j at draw number j - 2 and 0 otherwise; counts the draws.

    The last row receives the values `extra` instead, if they are given.
    """

    def __init__(self, rows: int, extra: Tensor | None = None) -> None:
        self.rows, self.extra, self.draws = rows, extra, 0

    def __call__(self, start: float, end: float, rows: np.ndarray | None = None) -> Tensor:
        value = torch.zeros(self.rows, 1, dtype=torch.float64)
        if self.draws + 2 < self.rows:
            value[self.draws + 2] = 1.0
        if self.extra is not None and self.draws < len(self.extra):
            value[-1] = self.extra[self.draws]
        self.draws += 1
        return value if rows is None else value[torch.from_numpy(rows)]


MEAN, DEVIATION = 0.7, 0.6


@dataclass(frozen=True)
class Moments:
    """The exact mean and variance of a sampler's output on Gaussian data, and their true values.

    `affinity` is the difference between a run on random noise and the affine map. If it is large, the sampler is not
    affine on Gaussian data and these are not its moments.
    """

    mean: float
    variance: float
    exact_mean: float
    exact_variance: float
    affinity: float


def gaussian_moments(
    spec: Sampler,
    process: GaussianProcess,
    times: Sequence[float] | np.ndarray,
    *,
    coordinates: str = "native",
    options: Mapping[str, Any] | None = None,
) -> Moments:
    """Moments of a sampler's output for data N(MEAN, DEVIATION^2), from the exact distribution at times[0]."""
    model = GaussianModel([MEAN], DEVIATION**2, process)
    arguments: dict[str, Any] = {"times": times, "coordinates": coordinates, "options": options}
    dry = Counter(1)
    run(model, spec, torch.zeros(1, 1, dtype=torch.float64), noise=dry, **arguments)
    count = dry.draws
    z = torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = torch.zeros(count + 3, 1, dtype=torch.float64)
    start[1], start[-1] = 1.0, 0.7
    out = run(model, spec, start, noise=Counter(count + 3, z), **arguments).flatten()
    offset, gain = out[0], out[1] - out[0]
    shares = out[2:-1] - offset
    affinity = float((out[-1] - (offset + 0.7 * gain + (shares * z).sum())).abs())
    laws = [(float(process.alpha(t)), float(process.sigma(t))) for t in (float(times[0]), float(times[-1]))]
    (mean, variance), (exact_mean, exact_variance) = (
        (alpha * MEAN, (alpha * DEVIATION) ** 2 + sigma**2) for alpha, sigma in laws
    )
    return Moments(
        mean=float(offset + gain * mean),
        variance=float(gain**2 * variance + shares.square().sum()),
        exact_mean=exact_mean,
        exact_variance=exact_variance,
        affinity=affinity,
    )


def measure_weak_order(
    spec: Sampler,
    process: GaussianProcess,
    *,
    order: int,
    coordinates: str = "native",
    options: Mapping[str, Any] | None = None,
) -> tuple[float, float]:
    """(order of the mean, order of the variance) on Gaussian data, from exact moments; infinite if exact to rounding.

    Arguments as in `measure_order`.
    """
    problem = Transport(process)
    found: dict[int, Moments] = {}

    def moments(grid: np.ndarray) -> Moments:
        if len(grid) not in found:
            times = problem.time(grid)
            found[len(grid)] = gaussian_moments(spec, process, times, coordinates=coordinates, options=options)
        return found[len(grid)]

    def mean(grid: np.ndarray) -> float:
        return abs(moments(grid).mean - moments(grid).exact_mean)

    def variance(grid: np.ndarray) -> float:
        return abs(moments(grid).variance - moments(grid).exact_variance)

    ends = problem.first, problem.last
    return fitted_order(mean, order, *ends), fitted_order(variance, order, *ends)


PROCESSES: dict[str, GaussianProcess] = {"vp": VP(), "flow": RectifiedFlow()}
"""The two processes on which convergence is measured."""
