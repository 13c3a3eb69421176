"""Trajectories and grids as pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import UsageError
from ..io.images import grid, to_images
from ..models.base import Model
from ..processes.sde import GaussianProcess
from ..sampling.recipe import Recipe
from ..sampling.result import Result
from ..sampling.runs import make_path
from ..text import printable

if TYPE_CHECKING:
    from PIL.Image import Image

COLUMNS = 8
"""States of a trajectory that are shown."""


def samples_picture(result: Result) -> Image:
    """All samples of a run, tiled."""
    return grid(result.images)


def trajectory_picture(model: Model, results: Sequence[Result]) -> Image:
    """The states of the first sample of each run, one run in a row, from noise to the sample.

    A state x = alpha x0 + sigma eps is divided by sqrt(alpha^2 + sigma^2), so that its noise has the same size at all
    times; states of a latent model are decoded.
    """
    rows = []
    for result in results:
        trajectory = result.trajectory
        assert trajectory is not None
        count = len(trajectory.states)
        chosen = np.unique(np.linspace(0, count - 1, min(COLUMNS, count)).round().astype(int))
        states = torch.stack([trajectory.states[k, 0].float() / _size(model, trajectory.times[k]) for k in chosen])
        states = torch.cat([states[:1].expand(COLUMNS - len(states), *states.shape[1:]), states])
        decoded = states if result.decoder is None else model.decode(states.to(model.device)).cpu()
        rows += to_images(decoded, model.decoded_range)
    return grid(rows, COLUMNS)


def _size(model: Model, time: Any) -> float:
    """sqrt(alpha^2 + sigma^2) at a time; 1 for the sample itself, whose time is NaN."""
    first = float(np.asarray(time).reshape(-1)[0])
    if math.isnan(first) or not isinstance(model.process, GaussianProcess):
        return 1.0
    return float(math.hypot(float(model.process.alpha(first)), float(model.process.sigma(first))))


def grids_figure(model: Model, names: Sequence[str], recipes: Sequence[Recipe]) -> Any:
    """The grid of each run on the log-SNR axis, from noise on the left to data on the right, as a matplotlib figure.

    Triangles are ends at alpha = 0 or sigma = 0, which lie at infinity.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # matplotlib takes seconds to import, and is optional
    except ImportError:
        raise UsageError("plots need matplotlib: pip install 'sdesamplers[app]'") from None

    grids = [_log_snrs(model, recipe) for recipe in recipes]
    finite = [x for each in grids for x in each if math.isfinite(x)]
    low, high = min(finite, default=-1.0), max(finite, default=1.0)
    left, right = low - 0.08 * (high - low) - 0.3, high + 0.08 * (high - low) + 0.3
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(grids)), dpi=110, layout="constrained")
    axis = figure.add_subplot()
    for row, each in enumerate(grids):
        inside = [x for x in each if math.isfinite(x)]
        axis.plot(inside, [row] * len(inside), "o-", color=f"C{row}", markersize=5, linewidth=0.8)
        for end, place, marker in ((-math.inf, left, "<"), (math.inf, right, ">")):
            if end in each:
                axis.plot([place], [row], marker, color=f"C{row}", clip_on=False)
    axis.set(xlim=(left, right), ylim=(len(grids) - 0.5, -0.5), yticks=range(len(grids)))
    axis.set_yticklabels([printable(name) for name in names], parse_math=False)
    axis.set_xlabel("log SNR = log(alpha\u00b2/sigma\u00b2)      (noise on the left, data on the right)")
    axis.grid(axis="x", alpha=0.3)
    return figure


def _log_snrs(model: Model, recipe: Recipe) -> list[float]:
    """log(alpha^2/sigma^2) at the points of a run; empty if the process has no alpha and sigma."""
    if not isinstance(model.process, GaussianProcess):
        return []
    ratios = [float(np.max(point.ratio)) for point in make_path(model.process, recipe).points]
    return [math.inf if r <= 0 else -math.inf if math.isinf(r) else -2 * math.log(r) for r in ratios]
