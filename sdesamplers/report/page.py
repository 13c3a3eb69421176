"""The page of a comparison: one HTML file that needs no network and no other file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..io.files import make_folder, write
from ..metrics.intervals import LEVEL
from ..text import printable, without_nan
from ..version import __version__
from . import reading
from .curves import work_precision
from .planes import scatter, trajectories
from .plots import available
from .rows import errors, grids
from .style import COLOURS, Style, new_figure, require_matplotlib
from .svg import drawn
from .view import COSTS, View

if TYPE_CHECKING:
    from ..comparison.result import Comparison

NAME = "compare.html"
FOLDER = files("sdesamplers") / "report" / "page"


def require_page() -> None:
    """Check that what a page is made with is installed.

    Raises:
        UsageError: it is not.
    """
    require_matplotlib("reports")
    try:
        import jinja2  # noqa: F401  optional
    except ImportError:
        raise UsageError("reports need Jinja2: pip install 'sdesamplers[report]'") from None


def write_page(comparison: Comparison, path: str | Path) -> Path:
    """Write the page of a comparison: see `Comparison.report`."""
    require_page()
    file = Path(path)
    if file.is_dir() or not file.suffix:
        file = file / NAME
    make_folder(file.parent)
    return write(file, page(comparison))


def page(comparison: Comparison) -> str:
    """The page of a comparison, HTML."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    view = View(comparison)
    loaded = {name: FOLDER.joinpath(name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")}
    # Text of users has been escaped when it is shown; characters that would change the writing direction are, too.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(value),
    )  # fmt: skip
    rows, exact = reading.sample_pictures(view) if view.has_images else ([], [])
    digest = base64.b64encode(hashlib.sha256(loaded["page.js"].encode()).digest()).decode()
    return environment.from_string(loaded["page.html"]).render(
        version=__version__,
        title=comparison.model_name,
        style=Markup(loaded["page.css"]),
        script=Markup(loaded["page.js"]),
        script_hash=digest,
        colours=len(COLOURS),
        level=round(100 * LEVEL),
        view=view,
        comparison=comparison,
        facts=reading.facts(view),
        marks=[Markup(mark(place)) for place in range(len(view.samplers))],
        problems=problems(view),
        figures={name: [(t, Markup(svg)) for t, svg in found] for name, found in figures(view).items()},
        pictures=rows,
        reference=exact,
        size_note=reading.size_note(view),
        most_points=reading.points_of(view),
        films=reading.films(view),
        qualities=reading.qualities(view),
        own_metrics=reading.own_metrics(view),
        intervals=reading.intervals(view),
        table=reading.table(view),
        recipes=reading.recipes(view),
        document=without_nan(comparison.as_dict()),
        dump=lambda data: json.loads(json.dumps(data, default=str)),
    )


def problems(view: View) -> dict[str, list[str]]:
    """By sampler, the reasons for which some of its cells have not run."""
    found: dict[str, list[str]] = {}
    for cell in view.comparison.cells:
        if cell.problem and cell.problem not in found.setdefault(cell.sampler, []):
            found[cell.sampler].append(cell.problem)
    return found


def mark(place: int) -> str:
    """A sampler's line and marker, for the legend and the names in tables."""
    style = Style.of(place)

    def draw() -> Any:
        figure = new_figure(36 / 72, 12 / 72)
        figure.set_layout_engine("none")
        axis = figure.add_axes((0, 0, 1, 1))
        axis.set_axis_off()
        axis.set(xlim=(0, 1), ylim=(0, 1))
        axis.plot([0.04, 0.96], [0.5, 0.5], color=style.colour, linestyle=style.dash, linewidth=1.6, clip_on=False)
        axis.plot([0.5], [0.5], style.marker, color=style.colour, markersize=6.5, markeredgewidth=0, clip_on=False)
        return figure

    return drawn(draw, f"m{place}", "")


def figures(view: View) -> dict[str, list[tuple[str, str]]]:
    """The drawings of each section, with their headings."""
    notes = {view.number(c): reading.note(view, c) for c in view.comparison.cells if c.nfe is not None}
    found: dict[str, list[tuple[str, str]]] = {"work-precision": [], "scatter": []}
    names = available(view)
    for name, options in names:
        if name == "work-precision":
            heading = f"{view.qualities[options['y']].label.partition(' (')[0]} against {COSTS[options['x']].label}"
            label = f"{heading}, a line for each sampler; the table below has the numbers"
            drawing = alone(partial(work_precision, view, **options), 5.0, 3.5)
            found[name].append((heading, drawn(drawing, f"wp{len(found[name])}", label, notes)))
    per_budget: dict[str, tuple[Callable[..., Any], str, tuple[float, float]]] = {
        "grids": (grids, "time grids", (5.0, 0.75 + 0.24 * len(view.samplers))),
        "errors": (errors, "error of each sample", (5.0, 0.75 + 0.24 * len(view.samplers))),
        "trajectories": (trajectories, "trajectories", (4.2, 4.2)),
    }
    present = {name for name, _ in names}
    for name, (draw, what, size) in per_budget.items():
        budgets = view.budgets if name in present else []
        found[name] = [
            (
                f"{budget} evaluations",
                drawn(
                    alone(partial(draw, view, nfe=budget), *size), f"{name}{budget}", f"{what}, {budget} evaluations"
                ),
            )
            for budget in budgets
        ]
    if view.has_vectors:
        found["scatter"] = [
            (
                sampler,
                drawn(
                    partial(_scatter_row, view, sampler),
                    f"points{place}",
                    f"samples of {sampler} at each budget over the reference",
                ),
            )
            for place, sampler in enumerate(view.samplers)
        ]
    return found


def alone(draw: Callable[..., Any], width: float, height: float) -> Callable[[], Any]:
    """A function that draws one panel on a figure of this size, without a legend."""

    def drawing() -> Any:
        figure = draw(new_figure(width, height).subplots())
        figure.axes[0].set_title("")  # the page has it as a heading
        return figure

    return drawing


def _scatter_row(view: View, sampler: str) -> Any:
    count = len(view.budgets)
    axes = new_figure(2.4 * count, 2.7).subplots(1, count, squeeze=False, sharex=True, sharey=True)
    return scatter(view, axes, sampler=sampler, most=reading.points_of(view))
