"""Small figures of samples and numbers for notebooks, without a comparison."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import UsageError
from ..html import Markup, png
from .planes import Plane, rows_of, window
from .style import new_figure, plain

MOST = 2000
"""Number of samples that are drawn."""
POINT, BARS = "#1f6f8b", "#7fb2c2"


def inline(draw: Callable[[], Any]) -> Markup:
    """The figure that `draw` returns as an inline PNG; empty if matplotlib is not installed."""
    try:
        figure = draw()
    except UsageError:
        return Markup("")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return png(buffer.getvalue())


def points(samples: Any) -> Any:
    """Vectors (N, D) as points: their two coordinates or, of more, their first two principal components.

    A histogram if D is 1. Samples that are not finite are left out; the title says what is drawn, and of how many.

    Raises:
        UsageError: no sample is finite, or matplotlib is not installed.
    """
    everything = rows_of(samples)
    rows = everything[np.isfinite(everything).all(1)][:MOST]
    if not len(rows):
        raise UsageError("no sample is finite, so there is nothing to draw")
    of = f"{len(rows)} samples" if len(rows) == len(everything) else f"{len(rows)} of {len(everything)} samples"
    if rows.shape[1] == 1:
        return histogram(rows[:, 0], "value", of)
    if rows.shape[1] > 2 and len(rows) < 3:  # too few for components
        directions, labels = np.eye(2, rows.shape[1]), ("first coordinate", "second coordinate")
        plane = Plane(np.zeros(rows.shape[1]), directions, labels, f"first two of {rows.shape[1]} coordinates")
    else:
        plane = Plane.of(rows, "these samples")
    figure = new_figure(3.4, 3.6)
    axes = figure.subplots()
    projected = plane.project(rows)
    left, right = window(projected, projected)
    axes.plot(*projected.T, ".", color=POINT, markersize=4, alpha=0.6, markeredgewidth=0)
    axes.set(xlim=(left[0], right[0]), ylim=(left[1], right[1]), aspect="equal")
    axes.set_xlabel(plane.labels[0], size="small")
    axes.set_ylabel(plane.labels[1], size="small")
    axes.set_title(
        "\n".join([of, *textwrap.wrap(plane.about.rpartition(" of its ")[0] or plane.about, 44)]), size="small"
    )
    axes.tick_params(labelsize="x-small")
    plain(axes, None)
    return figure


def histogram(values: Any, label: str, title: str) -> Any:
    """A histogram of finite numbers (N,).

    Raises:
        UsageError: no number is finite, or matplotlib is not installed.
    """
    numbers = np.asarray(values, dtype=np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        raise UsageError("no number is finite, so there is nothing to draw")
    figure = new_figure(3.6, 2.4)
    axes = figure.subplots()
    axes.hist(numbers, bins=int(np.clip(np.sqrt(len(numbers)), 5, 60)), color=BARS)
    axes.set_xlabel(label, size="small")
    axes.set_ylabel("samples", size="small")
    axes.set_title(title, size="small")
    axes.tick_params(labelsize="x-small")
    plain(axes, None)
    return figure
