"""The figures of a comparison by their names, and their files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import shown
from ..errors import UnknownNameError, UsageError
from ..io.files import make_folder, write
from .curves import work_precision
from .pictures import samples
from .planes import trajectories
from .rows import errors, grids
from .style import require_matplotlib
from .view import COSTS, View

if TYPE_CHECKING:
    from ..comparison.result import Comparison

FIGURES: dict[str, Callable[..., Any]] = {
    "work-precision": work_precision,
    "samples": samples,
    "trajectories": trajectories,
    "grids": grids,
    "errors": errors,
}
FORMATS = ("png", "svg", "pdf")
NOT_IN_FILES, LONGEST = re.compile(r"[^\w-]"), 120
"""Characters of a metric's name, which may come from a file of others, that are replaced in the names of files."""


def plot(comparison: Comparison, figure: str, axes: Any = None, **options: Any) -> Any:
    """Draw a figure of a comparison: see `Comparison.plot`."""
    if figure not in FIGURES:
        raise UnknownNameError("figure", str(figure), FIGURES, f"; there are {', '.join(FIGURES)}")
    require_matplotlib()
    draw = FIGURES[figure]
    known = draw.__kwdefaults__ or {}
    for name in options:
        if name not in known:
            raise UnknownNameError(f"option of the figure {figure!r}", name, known)
    return draw(View(comparison), axes, **options)


def as_formats(formats: str | Iterable[str]) -> list[str]:
    """Names of file formats, checked.

    Raises:
        UsageError: an unknown format.
    """
    found = [formats] if isinstance(formats, str) else list(formats)
    for name in found:
        if name not in FORMATS:
            raise UsageError(f"the formats of figures are {', '.join(FORMATS)}, not {shown(name)}")
    return list(dict.fromkeys(found))


def save_figures(comparison: Comparison, folder: str | Path, formats: str | Iterable[str] = "png") -> list[Path]:
    """Write all figures that a comparison has data for: see `Comparison.save_figures`."""
    chosen = as_formats(formats)
    require_matplotlib()
    out = make_folder(folder)
    written = []
    for name, options in available(View(comparison)):
        made = plot(comparison, name, **options)
        made.draw_without_rendering()
        made.set_layout_engine("none")  # a layout depends a little on the layouts before it
        stem = NOT_IN_FILES.sub("_", "-".join([name, *options.values()]))[:LONGEST]
        for form in chosen:
            file = out / f"{stem}.{form}"
            written.append(write(file, partial(save, made, form)))
    return written


def available(view: View) -> list[tuple[str, dict[str, str]]]:
    """The figures for which a comparison has data, with their options."""
    found: list[tuple[str, dict[str, str]]] = [
        ("work-precision", {"y": y, "x": x})
        for y, quality in view.qualities.items()
        for x, cost in COSTS.items()
        if view.has(quality) and view.has(cost)
    ]
    cells = view.comparison.cells
    if view.has_images or view.has_vectors:
        found.append(("samples", {}))
    if view.comparison.trajectories:
        found.append(("trajectories", {}))
    if any(cell.ratios for cell in cells):
        found.append(("grids", {}))
    if any(cell.errors for cell in cells):
        found.append(("errors", {}))
    return found


def save(figure: Any, form: str, path: Path) -> None:
    """Save a figure without the date, so that the same figure has the same bytes; the text of SVG stays text."""
    from matplotlib import rc_context

    dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "sdesamplers", "pdf.fonttype": 42}):
        figure.savefig(path, format=form, metadata=dated[form])
