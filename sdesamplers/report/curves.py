"""Work-precision curves: quality against cost, a line for each sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .style import REFERENCE, Style, drawn_name, legend, log_axis, panels, plain, styles
from .view import COSTS, Quantity, View, quantity, shown_on_log_axis

if TYPE_CHECKING:
    from ..comparison.cell import Cell


ASIDE, WIDEST = 5.0, 18.0
"""Distance of samplers that are drawn side by side, and of the first from the last at most, in points."""


def work_precision(view: View, axes: Any = None, *, x: str = "evaluations", y: str | None = None) -> Any:
    """Quality against cost on logarithmic axes, with 95% intervals, a line for each sampler.

    Samplers with the same number of evaluations are drawn side by side, so that no interval hides another. The axis of
    a metric of the caller is linear if one of its values is 0 or less.

    Args:
        view: the comparison.
        axes: matplotlib axes; a new figure with a legend by default.
        x: "evaluations" or "seconds".
        y: "error", "frechet", "sliced-wasserstein" or the name of one of the caller's metrics; by default the first
            that was measured.

    Raises:
        UsageError: an unknown quantity, or one that was not measured.
    """
    cost = quantity(COSTS, x, "x")
    measured = [name for name, each in view.qualities.items() if view.has(each)]
    name = y if y is not None else (measured or [""])[0]
    quality = quantity(view.qualities, name, "y") if y is not None or measured else None
    if not measured or quality is None:
        raise UsageError("nothing to draw: this comparison has no error, no distances and no metrics")
    if name not in measured:
        raise UsageError(f"this comparison has no {name!r}; it has {', '.join(map(repr, measured))}")
    [axis] = panels(axes, 1, 6.4, 4.6)
    linear = view.is_linear(quality)
    axis.set(xscale="log", yscale="linear" if linear else "log", xlabel=cost.label)
    axis.set_ylabel(drawn_name(quality.label) if quality.own else quality.label, parse_math=False)
    drawn = {sampler: cells for sampler in view.samplers if (cells := _drawn_cells(view, sampler, cost, quality))}
    aside = _places(view, drawn, cost)
    for sampler, style in styles(view.samplers).items():
        if sampler in drawn:
            _line(axis, view, drawn[sampler], style, cost, quality, aside[sampler])
    real = view.comparison.floor
    floor = None if real is None or quality.own else getattr(real, quality.field, None)
    if real is not None and floor is not None and shown_on_log_axis(floor):
        _floor(axis, floor, real.count)
    if not linear:
        values = [v for c in view.comparison.cells if (v := view.drawn(c, quality)) is not None]
        lowest = min([*values, *([floor] if floor is not None and shown_on_log_axis(floor) else [])])
        least = max(axis.get_ylim()[0], lowest / 2)  # bars may leave the axis, since 0 is infinitely far
        axis.set_ylim(bottom=least if floor is None else min(least, lowest / 1.2))  # space for the floor's text
        log_axis(axis.yaxis)
    log_axis(axis.xaxis)
    plain(axis)
    if axes is None:
        axis.set_title(drawn_name(view.run), parse_math=False)
        legend(axis.figure, view.samplers, shown=drawn, note=caption(view, quality))
    return axis.figure


def caption(view: View, quality: Quantity) -> str:
    """How many samples the values are of, and what the bars are."""
    found = view.comparison
    counted = f"first {found.reference_count} of {found.num_samples}" if quality.field == "error" else found.num_samples
    has_bars = any(view.interval(cell, quality) is not None for cell in found.cells)
    over_samples = found.repeats == 1 or any(cell.is_per_sample(quality.field) for cell in found.cells)
    bars = f"bars: 95% intervals over {'samples' if over_samples else 'repeats'}, " if has_bars else ""
    runs = f", {found.repeats} repeats" if found.repeats > 1 else ""
    return f"{bars}{counted} samples, seed {found.seed}{runs}"


def _drawn_cells(view: View, sampler: str, cost: Quantity, quality: Quantity) -> list[Cell]:
    cells = [cell for cell in view.of(sampler) if view.drawn(cell, quality) is not None]
    return [cell for cell in cells if view.drawn(cell, cost) is not None]


def _places(view: View, drawn: Mapping[str, Sequence[Cell]], cost: Quantity) -> dict[str, float]:
    """How far to the right each sampler is drawn, in points: 0 for all if no two cells have the same cost."""
    costs = [view.drawn(cell, cost) for cells in drawn.values() for cell in cells]
    if len(set(costs)) == len(costs):
        return dict.fromkeys(drawn, 0.0)
    apart = min(ASIDE, WIDEST / (len(drawn) - 1)) if len(drawn) > 1 else 0.0
    return {sampler: apart * (place - (len(drawn) - 1) / 2) for place, sampler in enumerate(drawn)}


def _line(
    axis: Any, view: View, cells: Sequence[Cell], style: Style, cost: Quantity, quality: Quantity, aside: float
) -> None:
    from matplotlib.transforms import ScaledTranslation

    moved = axis.transData + ScaledTranslation(aside / 72, 0, axis.figure.dpi_scale_trans)
    places = [(view.drawn(cell, cost), view.drawn(cell, quality) or 0.0) for cell in cells]
    drawn = axis.plot(
        *zip(*places, strict=True), linestyle=style.dash, linewidth=1.4, color=style.colour, gid=style.gid()
    )
    for cell, (x, y) in zip(cells, places, strict=True):
        ends = view.interval(cell, quality)
        if ends is not None:
            # An interval down to 0 leaves a logarithmic axis.
            low = ends[0] if view.is_linear(quality) else max(ends[0], y / 30)
            drawn += axis.plot(
                [x, x], [low, ends[1]], color=style.colour, linewidth=1.0, alpha=0.75, solid_capstyle="butt",
                zorder=1.8, gid=style.gid(),
            )  # fmt: skip
        drawn += axis.plot(
            [x], [y], style.marker, color=style.colour, markersize=5.5, markeredgewidth=0, zorder=3,
            gid=style.gid(view.number(cell)),
        )  # fmt: skip
    for line in drawn:  # last: the limits of the axes are those of the data as they are
        line.set_transform(moved)


def _floor(axis: Any, value: float, count: int) -> None:
    axis.axhline(value, color=REFERENCE, linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)
    axis.annotate(
        f"{count} real samples", (0.01, value), xycoords=axis.get_yaxis_transform(), xytext=(0, -3),
        textcoords="offset points", va="top", fontsize="small",
    )  # fmt: skip
