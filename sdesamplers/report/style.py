"""One colour, marker and dash for each sampler in every figure, and new figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UsageError
from ..text import one_line

COLOURS = ("#003793", "#df6f00", "#2c9f74", "#9686b6", "#6e4110", "#4754ff", "#214648")
"""Colours on white that readers with either kind of red-green blindness tell apart: the least difference of two was
maximised. page.css has others for dark pages."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)))
REFERENCE = "#8a9099"
"""Colour of the reference and of real data."""
NAME_LENGTH = 34
"""Characters of a sampler's name that are drawn."""


@dataclass(frozen=True)
class Style:
    """How a sampler is drawn.

    Attributes:
        colour, marker, dash: for matplotlib.
        index: place of the sampler in the comparison.
    """

    colour: str
    marker: str
    dash: Any
    index: int

    @classmethod
    def of(cls, index: int) -> Style:
        """The style of a sampler by its place: no two of the first 84 are alike."""
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        return cls(colour, marker, DASHES[index // len(COLOURS) % len(DASHES)], index)

    def gid(self, cell: int | None = None) -> str:
        """The id of a drawn object, from which the page knows its sampler and cell."""
        return f"s{self.index}" if cell is None else f"s{self.index}-c{cell}"


def styles(samplers: Iterable[str]) -> dict[str, Style]:
    """The style of each sampler."""
    return {name: Style.of(place) for place, name in enumerate(samplers)}


def require_matplotlib(what: str = "figures") -> None:
    """Check that matplotlib is installed.

    Raises:
        UsageError: it is not.
    """
    try:
        import matplotlib.figure  # noqa: F401  it takes seconds to import, and is optional
    except ImportError:
        raise UsageError(f"{what} need matplotlib: pip install 'sdesamplers[report]'") from None


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, in inches, which belongs to no window.

    Raises:
        UsageError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def panels(axes: Any, count: int, width: float, height: float, columns: int = 4, **shared: Any) -> list[Any]:
    """The axes to draw on: the caller's, or those of a new figure with panels of this size.

    Raises:
        UsageError: another number of axes, or matplotlib is not installed.
    """
    if axes is None:
        columns = min(columns, count)
        rows = -(-count // columns)
        figure = new_figure(width * columns, height * rows)
        made = figure.subplots(rows, columns, squeeze=False, **shared)
        for unused in made.flat[count:]:
            unused.set_axis_off()
        return list(made.flat[:count])
    flat = list(np.ravel(axes)) if isinstance(axes, np.ndarray | Sequence) else [axes]
    if len(flat) != count:
        raise UsageError(f"this figure has {count} panel{'s' if count > 1 else ''}, so axes must be {count} matplotlib "
                         f"axes, not {len(flat)}")  # fmt: skip
    return flat


def plain(axis: Any, grid: str | None = "both") -> None:
    """Axes with little ink."""
    axis.spines[["top", "right"]].set_visible(False)
    if grid:
        axis.grid(axis=grid, which="major", linewidth=0.6, alpha=0.5)
        axis.set_axisbelow(True)


def log_axis(axis: Any) -> None:
    """A logarithmic axis (`axes.xaxis` or `axes.yaxis`) whose ticks are plain numbers, also within one decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    decades = np.log10(high / low) if low > 0 else 9.0
    steps = (1.0, 2.0, 5.0) if decades < 2.2 else (1.0,)
    axis.set_major_locator(LogLocator(subs=steps, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def drawn_name(name: str) -> str:
    """A name of a user, safe and short enough to be drawn; draw it with `parse_math=False`."""
    text = one_line(name)
    return text if len(text) <= NAME_LENGTH else f"{text[: NAME_LENGTH - 1]}…"


def legend(figure: Any, names: Iterable[str], shown: Iterable[str] | None = None, note: str = "") -> None:
    """A legend below a figure, with a line of text under it.

    Args:
        figure: a matplotlib figure with a constrained layout.
        names: all samplers, whose places give their styles.
        shown: those that are drawn; all by default.
        note: the line of text.
    """
    from matplotlib.lines import Line2D

    entries = styles(names)
    drawn = list(entries) if shown is None else list(shown)
    handles = [
        Line2D([], [], color=s.colour, marker=s.marker, linestyle=s.dash, markersize=5, label=drawn_name(name))
        for name, s in entries.items()
        if name in drawn
    ]
    width = figure.get_size_inches()[0] * 12  # characters of small text
    columns = max(1, min(len(handles), 6, int(width // (max(len(str(h.get_label())) for h in handles) + 6))))
    made = figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize="small", title=note or None,
        title_fontsize="small",
    )  # fmt: skip
    for text in [*made.get_texts(), made.get_title()]:
        text.set_parse_math(False)
