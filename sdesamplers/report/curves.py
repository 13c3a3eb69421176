"""Work-precision curves: quality against cost, a line for each sampler."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from .style import REFERENCE, Style, drawn_name, legend, log_axis, panels, plain, styles
from .view import COSTS, QUALITIES, Quantity, View, quantity, shown_on_log_axis


def work_precision(view: View, axes: Any = None, *, x: str = "evaluations", y: str | None = None) -> Any:
    """Quality against cost on logarithmic axes, with 95% intervals, a line for each sampler.

    Args:
        view: the comparison.
        axes: matplotlib axes; a new figure with a legend by default.
        x: "evaluations" or "seconds".
        y: "error", "frechet" or "sliced-wasserstein"; by default the first that was measured.

    Raises:
        UsageError: an unknown quantity, or one that was not measured.
    """
    cost = quantity(COSTS, x, "x")
    measured = [name for name, each in QUALITIES.items() if view.has(each)]
    if not measured:
        raise UsageError("nothing to draw: this comparison has no error and no distances")
    name = y or measured[0]
    quality = quantity(QUALITIES, name, "y")
    if name not in measured:
        raise UsageError(f"this comparison has no {name!r}; it has {', '.join(map(repr, measured))}")
    [axis] = panels(axes, 1, 6.4, 4.6)
    for sampler, style in styles(view.samplers).items():
        _line(axis, view, sampler, style, cost, quality)
    real = view.comparison.floor
    floor = None if real is None else getattr(real, quality.field, None)
    if real is not None and floor is not None and shown_on_log_axis(floor):
        _floor(axis, floor, real.count)
    axis.set(xscale="log", yscale="log", xlabel=cost.label, ylabel=quality.label)
    values = [v for c in view.comparison.cells if shown_on_log_axis(v := getattr(c, quality.field))]
    lowest = min([*values, *([floor] if shown_on_log_axis(floor) else [])])
    axis.set_ylim(bottom=max(axis.get_ylim()[0], lowest / 2))  # bars may leave the axis, since 0 is infinitely far
    log_axis(axis.xaxis)
    log_axis(axis.yaxis)
    plain(axis)
    if axes is None:
        drawn = [s for s in view.samplers if any(shown_on_log_axis(getattr(c, quality.field)) for c in view.of(s))]
        axis.set_title(drawn_name(view.comparison.model_name), parse_math=False)
        legend(axis.figure, view.samplers, shown=drawn, note=caption(view, quality))
    return axis.figure


def caption(view: View, quality: Quantity) -> str:
    """What was run, and what the bars are."""
    found = view.comparison
    counted = f"first {found.reference_count} of {found.num_samples}" if quality.field == "error" else found.num_samples
    has_bars = any(view.interval(cell, quality) is not None for cell in found.cells)
    over = "samples" if quality.field == "error" or found.repeats == 1 else "repeats"
    bars = f"bars: 95% intervals over {over}, " if has_bars else ""
    runs = f", {found.repeats} repeats" if found.repeats > 1 else ""
    return f"{bars}{counted} samples, seed {found.seed}{runs}"


def _line(axis: Any, view: View, sampler: str, style: Style, cost: Quantity, quality: Quantity) -> None:
    cells = [c for c in view.of(sampler) if shown_on_log_axis(getattr(c, quality.field))]
    cells = [c for c in cells if shown_on_log_axis(getattr(c, cost.field))]
    places = [(getattr(c, cost.field), getattr(c, quality.field)) for c in cells]
    if not places:
        return
    axis.plot(*zip(*places, strict=True), color=style.colour, linestyle=style.dash, linewidth=1.4, gid=style.gid())
    for cell, (x, y) in zip(cells, places, strict=True):
        ends = view.interval(cell, quality)
        if ends is not None:
            low = max(ends[0], y / 30)  # an interval down to 0 leaves a logarithmic axis
            axis.plot([x, x], [low, ends[1]], color=style.colour, linewidth=1.0, alpha=0.75, gid=style.gid())
        axis.plot(
            [x], [y], style.marker, color=style.colour, markersize=5.5, markeredgewidth=0,
            gid=style.gid(view.number(cell)),
        )  # fmt: skip


def _floor(axis: Any, value: float, count: int) -> None:
    axis.axhline(value, color=REFERENCE, linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)
    axis.annotate(
        f"{count} real samples", (0.01, value), xycoords=axis.get_yaxis_transform(), xytext=(0, -3),
        textcoords="offset points", va="top", fontsize="small",
    )  # fmt: skip
