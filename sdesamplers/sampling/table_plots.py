"""`plot_tables`: the grids of solver tables on the log-SNR axis, and their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..public import public
from ..text import one_line
from .table import TableSet

if TYPE_CHECKING:
    from .table import SolverTable

LONGEST = 80
"""Characters of a title."""
PANELS = 3
"""Panels of weights in a row of a new figure."""
WRITTEN = 12
"""Largest number of steps for which each weight is written into its cell."""


@public
def plot_tables(
    tables: SolverTable | TableSet | Sequence[SolverTable] | Mapping[int, SolverTable], axes: Any = None
) -> Any:
    """Plot solver tables: their grids above one another on the log-SNR axis, and the weights of each as a matrix.

    The grid of a table is a line with its points at log(alpha^2/sigma^2), from noise on the left to data on the right;
    triangles are ends at alpha = 0 or sigma = 0, which lie at infinity. The ticks under the line are the times that the
    network receives. A matrix has a row for each step and columns for the weights of y_0, y_n and of the velocities.

    Args:
        tables: one or several tables, or the result of `tune`.
        axes: matplotlib axes to draw on: one for the grids alone, or a sequence that continues with one for the weights
            of each table. A new figure by default.

    Returns:
        The matplotlib `Figure`.

    Raises:
        UsageError: no tables, another number of axes, or matplotlib is not installed.

    Example:
        >>> sds.plot_tables(tuning).savefig("tables.png")
    """
    given: Any = tables.tables if isinstance(tables, TableSet) else tables
    given = given.values() if isinstance(given, Mapping) else given
    chosen: list[SolverTable] = [given] if hasattr(given, "angles") else list(given)
    if not chosen:
        raise UsageError("plot_tables needs one solver table or more")
    if axes is None:
        return _new_figure(chosen)
    flat = list(axes.flat) if hasattr(axes, "flat") else list(axes) if isinstance(axes, Sequence) else [axes]
    if len(flat) not in (1, 1 + len(chosen)):
        raise UsageError(
            f"axes must be one, for the grids, or {1 + len(chosen)}, for the grids and the weights of each table, "
            f"not {len(flat)}"
        )
    _plot_grids(flat[0], chosen)
    for panel, table in zip(flat[1:], chosen, strict=False):
        _plot_weights(panel, table)
    return flat[0].figure


def log_snr(angle: float) -> float:
    """log(alpha^2/sigma^2) at phi = arctan(sigma/alpha); infinite at 0 and at pi/2."""
    if angle <= 0:
        return math.inf
    return -math.inf if angle >= math.pi / 2 else -2 * math.log(math.tan(angle))


def _new_figure(tables: Sequence[SolverTable]) -> Any:
    try:
        from matplotlib.figure import Figure  # matplotlib takes seconds to import, and is optional
    except ImportError:
        raise UsageError("plots of solver tables need matplotlib: pip install 'sdesamplers[report]'") from None
    columns = min(PANELS, len(tables))
    rows = -(-len(tables) // columns)
    heights = [1.0 + 0.55 * len(tables), *[3.4] * rows]
    figure = Figure(figsize=(max(4.4 * columns, 8.0), sum(heights) + 0.5), dpi=110, layout="constrained")
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=heights)
    top = figure.add_subplot(grid[0, :])
    panels = [figure.add_subplot(grid[1 + k // columns, k % columns]) for k in range(len(tables))]
    plot_tables(tables, [top, *panels])
    figure.suptitle(_title(tables), size="medium", parse_math=False)
    return figure


def _title(tables: Sequence[SolverTable]) -> str:
    """The models of the tables, whose names come from files."""
    models = dict.fromkeys(one_line(table.facts["model"]) for table in tables if table.facts.get("model"))
    of = f" of {', '.join(models)}" if models else ""
    title = f"Solver table{'s' if len(tables) > 1 else ''}{of}"
    return title if len(title) <= LONGEST else f"{title[: LONGEST - 1]}\u2026"


def _name(table: SolverTable) -> str:
    scale = table.guidance_scale
    return f"{table.nfe} evaluations" + ("" if scale in (None, 1.0) else f", guidance {scale:g}")


def _plot_grids(axis: Any, tables: Sequence[SolverTable]) -> None:
    finite = [x for table in tables for x in map(log_snr, (*table.angles, *table.network_angles)) if math.isfinite(x)]
    low, high = min(finite, default=-1.0), max(finite, default=1.0)
    margin = 0.08 * (high - low) + 0.2
    left, right = low - margin, high + margin
    for row, table in enumerate(tables):
        places = [min(max(log_snr(angle), left), right) for angle in table.angles]
        own = [x for x, angle in zip(places, table.angles, strict=True) if math.isfinite(log_snr(angle))]
        clocks = [min(max(log_snr(angle), left), right) for angle in table.evaluated_angles]
        axis.plot([places[0], places[-1]], [row, row], "-", color="0.75", zorder=1)
        axis.plot(own, [row] * len(own), "o", color="C0", zorder=3)
        axis.plot(clocks, [row + 0.24] * len(clocks), "|", color="C1", markersize=9, markeredgewidth=2, clip_on=False)
        for place, clock in zip(places, clocks, strict=False):
            axis.plot([place, clock], [row, row + 0.24], "-", color="C1", linewidth=0.7, zorder=2)
        for end, marker in ((places[0], "<"), (places[-1], ">")):
            if end in (left, right):
                axis.plot([end], [row], marker, color="C0", clip_on=False, zorder=3)
    for label, style in (("grid", "C0o"), ("network's time", "C1|"), ("sigma = 0 or alpha = 0", "C0>")):
        axis.plot([], [], style, label=label, markeredgewidth=2 if "|" in style else None)
    axis.set(xlim=(left, right), ylim=(len(tables) - 0.45, -0.55), yticks=range(len(tables)))
    axis.set_yticklabels([_name(table) for table in tables])
    axis.set_xlabel("log SNR = log(alpha\u00b2/sigma\u00b2)      (noise on the left, data on the right)")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9)
    axis.grid(axis="x", alpha=0.3)


def _plot_weights(axis: Any, table: SolverTable) -> None:
    matrix = [[*row, *[math.nan] * (table.nfe + 2 - len(row))] for row in table.weights]
    largest = max(abs(weight) for row in table.weights for weight in row) or 1.0
    axis.imshow(matrix, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
    if table.nfe <= WRITTEN:
        size = min(9.0, 62 / (table.nfe + 2))
        for n, row in enumerate(table.weights):
            for column, weight in enumerate(row):
                colour = "white" if abs(weight) > 0.6 * largest else "black"
                axis.text(
                    column,
                    n,
                    f"{weight:.2f}".replace("-0.00", "0.00"),
                    ha="center",
                    va="center",
                    size=size,
                    color=colour,
                )
    stride = 1 if table.nfe <= WRITTEN else -(-table.nfe // WRITTEN)
    columns = [0, 1, *range(2 if stride == 1 else 2 + stride, table.nfe + 2, stride)]
    axis.set(xticks=columns, yticks=range(0, table.nfe, stride))
    axis.set_xticklabels(["$y_0$", "$y_n$", *(f"$v_{{{column - 2}}}$" for column in columns[2:])])
    if stride > 1:
        axis.tick_params(labelsize=7)
    title = f"weights, {_name(table)}" + ("" if table.nfe <= WRITTEN else f" (dark red: {largest:.3g})")
    axis.set_title(title, size=10)
    axis.set_ylabel("step n")
    axis.set_xlabel("weight of state or velocity (red: positive, blue: negative)", size=8)
