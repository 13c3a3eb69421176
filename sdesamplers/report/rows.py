"""Figures with a row for each sampler: its time grid, and the error of each of its samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import UsageError
from .style import drawn_name, log_axis, panels, plain, styles
from .view import View, log_snr, shown_on_log_axis


def grids(view: View, axes: Any = None, *, nfe: int | None = None) -> Any:
    """The time grid of each sampler on the axis of the log signal-to-noise ratio, a panel for each budget.

    Noise is on the left and data on the right. Triangles are ends at alpha = 0 or sigma = 0, which lie at infinity.

    Args:
        view: the comparison.
        axes: matplotlib axes, one for each budget; a new figure by default.
        nfe: one budget; all by default.

    Raises:
        UsageError: no cell has a grid on this axis, or there is no such budget.
    """
    _, budgets = view.chosen(None, nfe)
    places = {(c.sampler, c.budget): [log_snr(r) for r in c.ratios] for c in view.comparison.cells if c.ratios}
    finite = [x for each in places.values() for x in each if math.isfinite(x)]
    if not finite:
        raise UsageError("nothing to draw: no run has a grid of noise levels (adaptive runs choose their own)")
    margin = 0.06 * (max(finite) - min(finite)) + 0.2
    ends = (min(finite) - margin, max(finite) + margin)
    drawn = panels(axes, len(budgets), 4.6, 1.3 + 0.28 * len(view.samplers), 2)
    for axis, budget in zip(drawn, budgets, strict=True):
        for row, (sampler, style) in enumerate(styles(view.samplers).items()):
            own = places.get((sampler, budget))
            if own is not None:
                _grid(axis, row, own, ends, style)
            else:
                cell = view.cell(sampler, budget)
                _note(axis, row, "not run" if cell is None or cell.problem else "no fixed grid")
        axis.set_xlim(*ends)
        axis.set_xlabel("log SNR = log(alpha\u00b2/sigma\u00b2)")
        _rows(axis, view.samplers, f"{budget} evaluations")
    _title(axes, drawn[0].figure, f"Time grids: {view.size}")
    return drawn[0].figure


def _grid(axis: Any, row: int, places: Sequence[float], ends: tuple[float, float], style: Any) -> None:
    inside = [min(max(x, ends[0]), ends[1]) for x in places]
    axis.plot([min(inside), max(inside)], [row, row], color=style.colour, linewidth=0.8, alpha=0.6, gid=style.gid())
    finite = [x for x in places if math.isfinite(x)]
    axis.plot(finite, [row] * len(finite), "|", color=style.colour, markersize=9, markeredgewidth=1.6, gid=style.gid())
    for end, marker, infinite in ((ends[0], "<", -math.inf), (ends[1], ">", math.inf)):
        if infinite in places:
            axis.plot([end], [row], marker, color=style.colour, markersize=5, clip_on=False, gid=style.gid())


def errors(view: View, axes: Any = None, *, nfe: int | None = None) -> Any:
    """The error of each sample of each deterministic sampler, a panel for each budget.

    A dot is a sample, the upright line their root mean square. A dot far to the right of its row is a sample that
    has gone to another mode, which a mean hides.

    Args:
        view: the comparison.
        axes: matplotlib axes, one for each budget; a new figure by default.
        nfe: one budget; all by default.

    Raises:
        UsageError: no errors were measured, or there is no such budget.
    """
    _, budgets = view.chosen(None, nfe)
    every = [e for c in view.comparison.cells for e in (c.errors or ()) if shown_on_log_axis(e)]
    if not every:
        raise UsageError(
            "nothing to draw: this comparison has no errors (reference_samples=0, or only stochastic samplers)"
        )
    drawn = panels(axes, len(budgets), 4.6, 1.3 + 0.28 * len(view.samplers), 2)
    for axis, budget in zip(drawn, budgets, strict=True):
        for row, (sampler, style) in enumerate(styles(view.samplers).items()):
            cell = view.cell(sampler, budget)
            found = [e for e in (cell.errors or () if cell else ()) if shown_on_log_axis(e)]
            if cell is None or not found:
                reason = "not run" if cell is None or cell.problem else "stochastic: no ODE error"
                _note(axis, row, reason if cell is None or cell.errors is None else "no difference")
                continue
            heights = row + 0.5 * (np.argsort(np.argsort(found)) % 3 - 1) / 3  # neighbours do not hide one another
            axis.plot(
                found, heights, "o", color=style.colour, markersize=4, markeredgewidth=0, alpha=0.55, gid=style.gid()
            )
            if shown_on_log_axis(cell.error):
                axis.plot(
                    [cell.error] * 2, [row - 0.38, row + 0.38], color=style.colour, linewidth=1.6, zorder=1.8,
                    solid_capstyle="butt", gid=style.gid(),
                )  # fmt: skip
        axis.set_xscale("log")
        axis.set_xlim(min(every) / 1.5, max(every) * 1.5)
        log_axis(axis.xaxis)
        axis.set_xlabel("error of a sample (RMS, data units)")
        _rows(axis, view.samplers, f"{budget} evaluations")
    _title(axes, drawn[0].figure, f"Error of each of {view.comparison.reference_count} samples: {view.size}")
    return drawn[0].figure


def _rows(axis: Any, samplers: Sequence[str], title: str) -> None:
    axis.set(ylim=(len(samplers) - 0.4, -0.6), yticks=range(len(samplers)))
    axis.set_yticklabels([drawn_name(name) for name in samplers], parse_math=False)
    axis.set_title(title, size="medium")
    axis.tick_params(axis="y", length=0)
    plain(axis, "x")


def _note(axis: Any, row: int, text: str) -> None:
    axis.text(
        0.5, row, text, transform=axis.get_yaxis_transform(), ha="center", va="center", fontsize="small", alpha=0.7
    )


def _title(axes: Any, figure: Any, text: str) -> None:
    if axes is None:
        figure.suptitle(text, size="medium", parse_math=False)
