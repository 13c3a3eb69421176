"""Samples and trajectories in two dimensions: the data's own, or the reference's first two principal components."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from ..text import one_line
from .style import REFERENCE, Style, drawn_name, legend, panels, plain, styles
from .view import View, number

if TYPE_CHECKING:
    from ..comparison.result import Cell

RASTER_POINTS = 2000
"""Points of a panel above which a vector graphic holds them as pixels."""


@dataclass(frozen=True)
class Plane:
    """A projection to two dimensions.

    Attributes:
        mean: (D,) subtracted first.
        directions: (2, D).
        labels: of the two axes.
        about: the sentence that says what they are; empty for data of two dimensions.
    """

    mean: np.ndarray
    directions: np.ndarray
    labels: tuple[str, str]
    about: str = ""

    @classmethod
    def of(cls, rows: np.ndarray, whose: str) -> Plane:
        """The plane of rows (N, D): their own two dimensions, or their first two principal components."""
        size = rows.shape[1]
        if size == 2:
            return cls(np.zeros(2), np.eye(2), ("first coordinate", "second coordinate"))
        mean = rows.mean(0)
        _, scales, directions = np.linalg.svd(rows - mean, full_matrices=False)
        if len(directions) < 2:
            raise UsageError(f"a plane needs 3 or more samples of {whose}, not {len(rows)}")
        share = np.square(scales[:2]).sum() / max(np.square(scales).sum(), 1e-300)
        about = (
            f"first two principal components of {whose}, {100 * share:.0f}% of the variance of its {len(rows)} samples"
        )
        return cls(mean, directions[:2], ("component 1", "component 2"), about)

    def project(self, rows: np.ndarray) -> np.ndarray:
        """The points (N, 2) of rows (N, D)."""
        with np.errstate(invalid="ignore"):  # a sample that is infinite is outside of every window
            return np.asarray((rows - self.mean) @ self.directions.T)


def rows_of(samples: Any) -> np.ndarray:
    """Samples (N, *shape) as rows (N, D) of float64."""
    return np.asarray(samples.flatten(1).double().cpu().numpy())


def window(points: np.ndarray, others: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """The range of both axes: of the reference's points (N, 2) if there are 50, else of the middle 96% of all."""
    data = points if len(points) >= 50 else np.concatenate([points, others])
    data = data[np.isfinite(data).all(1)]
    low, high = np.quantile(data, [0.005, 0.995] if len(points) >= 50 else [0.02, 0.98], axis=0)
    half, middle = 0.62 * max(float((high - low).max()), 1e-9), (low + high) / 2  # one scale for both axes
    (a, b), (c, d) = zip(middle - half, middle + half, strict=True)
    return (float(a), float(c)), (float(b), float(d))


def scatter(
    view: View, axes: Any = None, *, sampler: str | None = None, nfe: int | None = None, most: int | None = None
) -> Any:
    """Samples as points over those of the ODE reference, a panel for each sampler and budget.

    The axes are set by the data, and a corner counts the samples outside. A thin line joins a sample of a deterministic
    sampler with its reference.

    Args:
        view: the comparison.
        axes: matplotlib axes, one for each sampler and budget, sampler by sampler; a new figure by default.
        sampler, nfe: one sampler, one budget; all by default.
        most: number of samples and of reference samples that are drawn in a panel; all by default.

    Raises:
        UsageError: the samples are not vectors, or there is no such sampler or budget.
    """
    if not view.has_vectors:
        raise UsageError(f"samples of shape {view.shape} cannot be shown as points")
    names, budgets = view.chosen(sampler, nfe)
    everything = np.concatenate([rows_of(s) for s in view.comparison.samples.values()])
    given = view.comparison.reference
    reference = None if given is None else rows_of(given)
    few = reference is None or len(reference) < 3
    plane = Plane.of(everything if few or reference is None else reference, "all samples" if few else "the reference")
    under = np.zeros((0, 2)) if reference is None else plane.project(reference)
    left, right = window(under, plane.project(everything))
    drawn = panels(axes, len(names) * len(budgets), 2.5, 2.6, len(budgets), sharex=True, sharey=True)
    every = styles(view.samplers)
    for place, axis in enumerate(drawn):
        name, budget = names[place // len(budgets)], budgets[place % len(budgets)]
        cell, samples = view.cell(name, budget), view.comparison.samples.get((name, budget))
        axis.set(xlim=(left[0], right[0]), ylim=(left[1], right[1]), aspect="equal")
        if samples is not None:
            axis.plot(*under[:most].T, ".", color=REFERENCE, markersize=7, alpha=0.5, markeredgewidth=0)
            _points(axis, plane.project(rows_of(samples)), under, every[name], cell, most)
        else:
            reason(axis, cell)
        axis.set_title(heading(cell, budget), size="small")
        plain(axis, None)
        if place % len(budgets) == 0:
            axis.set_ylabel(f"{drawn_name(name)}\n{plane.labels[1]}", parse_math=False, size="small")
        if place >= len(drawn) - len(budgets):
            axis.set_xlabel(plane.labels[0], size="small")
        axis.tick_params(labelsize="x-small")
    if axes is None:
        below = "grey: the ODE reference from the same starts. " if len(under) else ""
        about = f"Axes: {plane.about}. " if plane.about else ""
        width = int(drawn[0].figure.get_size_inches()[0] * 13)
        text = textwrap.fill(f"{view.size}. {below}{about}", width)
        drawn[0].figure.suptitle(text, size="small", parse_math=False)
    return drawn[0].figure


def _points(
    axis: Any, points: np.ndarray, under: np.ndarray, style: Style, cell: Cell | None, most: int | None
) -> None:
    if cell is not None and cell.errors:
        count = min(len(points), len(under), most or len(points))
        breaks = np.full((count, 2), np.nan)  # one line with gaps is drawn faster than many
        joined = np.stack([points[:count], under[:count], breaks], 1).reshape(-1, 2)
        axis.plot(*joined.T, color=style.colour, linewidth=0.6, alpha=0.6)
    size = float(np.clip(40 / np.sqrt(len(points)), 2.0, 5.0))
    axis.plot(
        *points[:most].T, style.marker, color=style.colour, markersize=size, markeredgewidth=0, alpha=0.65,
        rasterized=len(points) > RASTER_POINTS,
    )  # fmt: skip
    _count_outside(axis, points)


def _count_outside(axis: Any, points: np.ndarray) -> None:
    (a, b), (c, d) = axis.get_xlim(), axis.get_ylim()
    outside = int((~((points[:, 0] >= a) & (points[:, 0] <= b) & (points[:, 1] >= c) & (points[:, 1] <= d))).sum())
    if outside:
        axis.text(0.97, 0.03, f"{outside} outside", transform=axis.transAxes, ha="right", va="bottom", size="x-small")


def reason(axis: Any, cell: Cell | None) -> None:
    """Write into an empty panel why its cell has no samples."""
    why = one_line("not run" if cell is None or cell.problem is None else cell.problem)
    text = textwrap.fill(textwrap.shorten(why, 150, placeholder=" …"), 30)
    axis.text(0.5, 0.5, text, ha="center", va="center", size="x-small", transform=axis.transAxes, parse_math=False)


def heading(cell: Cell | None, budget: int) -> str:
    """The title of a cell's panel."""
    if cell is None or cell.nfe is None:
        return f"{budget} evaluations"
    error = "" if cell.error is None else f", error {number(cell.error, 2)}"
    return f"{cell.nfe} NFE{error}"


def trajectories(view: View, axes: Any = None, *, nfe: int | None = None) -> Any:
    """The states of a few samples on the way from noise to data, a panel for each budget.

    States are divided by sqrt(alpha^2 + sigma^2). Rings are the starts, which all samplers share; crosses the samples
    of the ODE reference.

    Args:
        view: the comparison, made with `compare(..., trajectories=3)`.
        axes: matplotlib axes, one for each budget; a new figure by default.
        nfe: one budget; all by default.

    Raises:
        UsageError: the comparison keeps no trajectories, or has no such budget.
    """
    kept = view.comparison.trajectories
    if not kept:
        raise UsageError("this comparison keeps no trajectories; compare with trajectories=3")
    _, budgets = view.chosen(None, nfe)
    states = {key: t.states.double().flatten(2).numpy() for key, t in kept.items()}  # (K, N, D)
    given = view.comparison.reference
    size = next(iter(states.values())).shape[2]
    own = given is not None and len(given) >= 3 and given[0].numel() == size
    exact = rows_of(given) if own else np.concatenate([each[-1] for each in states.values()])
    plane = Plane.of(exact, "the reference" if own else "the samples at the ends")
    drawn = panels(axes, len(budgets), 3.6, 3.7, 3, sharex=True, sharey=True)
    points = {key: plane.project(each) for key, each in states.items()}
    left, right = window(np.zeros((0, 2)), np.concatenate([each.reshape(-1, 2) for each in points.values()]))
    for axis, budget in zip(drawn, budgets, strict=True):
        axis.set(xlim=(left[0], right[0]), ylim=(left[1], right[1]), aspect="equal")
        for sampler, style in styles(view.samplers).items():
            if (sampler, budget) in points:
                cell = view.cell(sampler, budget)
                _paths(axis, points[sampler, budget], style, 0.35 if cell is not None and cell.drew_noise else 0.9)
        _count_outside(axis, np.concatenate([points[s, b][-1] for s, b in points if b == budget] or [np.zeros((0, 2))]))
        if own:
            count = min(len(exact), next(iter(states.values())).shape[1])
            axis.plot(*plane.project(exact[:count]).T, "x", color=REFERENCE, markersize=9, markeredgewidth=2, zorder=4)
        axis.set(xlabel=plane.labels[0], ylabel=plane.labels[1])
        axis.set_title(f"{budget} evaluations", size="medium")
        plain(axis)
    if axes is None:
        about = f"; {plane.about}" if plane.about else ""
        crosses = ", crosses the ODE reference" if own else ""
        figure = drawn[0].figure
        note = textwrap.fill(f"rings are the starts{crosses}{about}", int(figure.get_size_inches()[0] * 13))
        legend(figure, view.samplers, {s for s, _ in states}, note)
        figure.suptitle(f"Trajectories: {view.size}", size="medium", parse_math=False)
    return drawn[0].figure


def _paths(axis: Any, points: np.ndarray, style: Style, alpha: float) -> None:
    for path in points.swapaxes(0, 1):  # (samples, K, 2)
        axis.plot(*path.T, color=style.colour, linestyle=style.dash, linewidth=1.1, alpha=alpha, gid=style.gid())
        axis.plot(*path[:1].T, "o", color=style.colour, fillstyle="none", markersize=6, gid=style.gid())
        axis.plot(*path[-1:].T, style.marker, color=style.colour, markersize=5, markeredgewidth=0, gid=style.gid())
