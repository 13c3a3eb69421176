"""azula: its samplers on its noise schedules, used as time grids of the DDPM process.

azula's samplers take equal time steps of a schedule (alpha, sigma). The user can choose any schedule, because its
denoisers can be evaluated at any noise level, so a schedule determines the grid. Each of azula's own schedules is
rescaled so that sigma/alpha goes from the largest value of the process to its smallest, or down to almost 0.
"""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from azula import noise, sample
from azula.denoise import Denoiser, DiracPosterior
from torch import Tensor

from . import Problem, Setting

LIBRARY = "azula"
VERSION = importlib.metadata.version("azula")

SAMPLERS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "DDIM": (sample.DDIMSampler, {}),
    "Heun": (sample.HeunSampler, {}),
    **{
        f"{kind.__name__.removesuffix('Sampler')} order={order}": (kind, {"order": order})
        for kind in (
            sample.zABSampler,
            sample.vABSampler,
            sample.zEABSampler,
            sample.xEABSampler,
            sample.REABSampler,
        )
        for order in (2, 3, 4)
    },
}


class Grid(noise.Schedule):
    """alpha = 1 and sigma a function of t in [0, 1]: azula's VE coordinates on any grid."""

    def __init__(self, ratio: Callable[[Tensor], Tensor]) -> None:
        self.ratio = ratio

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        ratio = self.ratio(t)
        return torch.ones_like(ratio), ratio


class TableGrid(Grid):
    """Equal timesteps; below the smallest sigma, sigma is extrapolated by its tangent there."""

    def __init__(self, problem: Problem, last: float) -> None:
        process = problem.process
        slope = float(process.ratio(1.0) - process.ratio(0.0))
        first, low = process.t_max, float(process.ratio(0.0))
        stop = 0.0 if last >= low else (last - low) / slope

        def ratio(t: Tensor) -> Tensor:
            time = stop + t.double().numpy() * (first - stop)
            inside = process.ratio(np.maximum(time, 0.0))
            return torch.as_tensor(np.where(time < 0, low + slope * time, inside))

        super().__init__(ratio)


def between(first: float, last: float, schedule: noise.Schedule) -> Grid:
    """The sigma/alpha of a schedule, rescaled in its logarithm to go from `last` to `first` exactly."""
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    (alpha, sigma) = schedule(times)
    low, high = (torch.log(sigma / alpha)).tolist()

    def ratio(t: Tensor) -> Tensor:
        a, s = schedule(t.double())
        fraction = (torch.log(s / a) - low) / (high - low)
        return torch.exp(math.log(last) + fraction * (math.log(first) - math.log(last)))

    return Grid(ratio)


def grids(problem: Problem, last: float) -> dict[str, noise.Schedule]:
    """azula's schedules over the process's range of sigma/alpha, ending at `last`."""
    first = float(problem.process.ratio(problem.process.t_max))
    alpha, sigma = 1 / math.hypot(1, first), last
    own: dict[str, noise.Schedule] = {
        "VE": noise.VESchedule(last, first),
        "VP": noise.VPSchedule(alpha, sigma),
        "cosine": noise.CosineSchedule(alpha, sigma),
        "rectified": noise.RectifiedSchedule(1 / (1 + first), sigma),
        **{f"decay gamma={g}": noise.DecaySchedule(1 / (1 + first), sigma, g) for g in (0.3, 0.1, 0.03, 0.01)},
    }
    made: dict[str, noise.Schedule] = {name: between(first, last, schedule) for name, schedule in own.items()}
    return {"table": TableGrid(problem, last), **made}


class Epsilon(Denoiser):
    """The model of a problem as a denoiser of azula."""

    def __init__(self, problem: Problem, schedule: noise.Schedule) -> None:
        super().__init__()
        self.problem, self.schedule = problem, schedule

    def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> DiracPosterior:
        """A posterior concentrated at its mean."""
        ratio = float(self.schedule(t)[1])
        return DiracPosterior(mean=self.problem.denoised(x_t, ratio))


ENDS = (None, 0.03, 0.003, 0.001)
"""Ends of the schedule: the smallest sigma of the process (None) or 0.03, from which a last evaluation gives x0; or, as
in azula's own schedules, a sigma so small that the remaining noise is negligible, without a last evaluation."""


def run(sampler: type[Any], options: dict[str, Any], grid: str, end: float | None, problem: Problem, n: int) -> Tensor:
    """Run one sampler on one grid, from the start to sigma = 0."""
    table = float(problem.process.ratio(0.0))
    last = table if end is None else end
    schedule = grids(problem, last)[grid]
    denoiser = Epsilon(problem, schedule)
    finish = last >= table
    steps = n - 1 if finish else n
    if steps < 1:
        raise ValueError("no evaluations are left for the sampler")
    x = problem.start * float(torch.hypot(*schedule(torch.tensor(1.0, dtype=torch.float64))))
    x = sampler(denoiser, steps=steps, silent=True, dtype=torch.float64, **options)(x).to(problem.start.dtype)
    return problem.denoised(x, last) if finish else x


def settings() -> list[Setting]:
    """Settings for every sampler, schedule and end."""
    names = ("table", "VE", "VP", "cosine", "rectified", *(f"decay gamma={g}" for g in (0.3, 0.1, 0.03, 0.01)))
    made = []
    for title, (sampler, options) in SAMPLERS.items():
        for grid, end in itertools.product(names, ENDS):
            call = functools.partial(run, sampler, options, grid, end)
            where = "" if end is None else f" to sigma={end}"
            made.append(Setting(LIBRARY, f"{title} {grid}{where}", call, title))
    return made
