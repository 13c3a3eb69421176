"""`Comparison` in notebooks and as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import SdesamplersError
from ..html import picture, rows_table
from ..text import aligned, one_line
from .cell import own_metrics

if TYPE_CHECKING:
    from .result import Comparison

COLUMNS = {
    "sampler": "sampler",
    "budget": "budget",
    "nfe": "NFE",
    "steps": "steps",
    "seconds": "seconds",
    "error": "ODE error",
    "frechet": "Fréchet",
    "sliced_wasserstein": "sliced W2",
    "problem": "problem",
}
"""Attributes of cells and their titles."""


def comparison_html(comparison: Comparison) -> str:
    """The cells as a table, without empty columns, and their samples as a picture if they can be shown."""
    used = [name for name in COLUMNS if any(getattr(cell, name) is not None for cell in comparison.cells)]
    own = own_metrics(comparison.cells)
    rows = ([*(getattr(cell, name) for name in used), *map(cell.value, own)] for cell in comparison.cells)
    title = f"{comparison.model_name}: {comparison.num_samples} samples, seed {comparison.seed}"
    table = rows_table(title, [*(COLUMNS[name] for name in used), *own], rows)
    try:
        return table + picture(comparison.picture())
    except SdesamplersError:  # samples that cannot be shown
        return table


def text_table(comparison: Comparison) -> str:
    """The cells as lines of text, without empty columns; three digits of each number."""
    used = [name for name in COLUMNS if any(getattr(cell, name) is not None for cell in comparison.cells)]
    own = own_metrics(comparison.cells)
    several = ("model", "guidance_scale") if comparison.groups else ()
    rows = [[*several, *(COLUMNS[name] for name in used), *own]]
    for cell in comparison.cells:
        values = [*(getattr(cell, name) for name in (*several, *used)), *(cell.metrics.get(name) for name in own)]
        rows.append([shown(value) for value in values])
    return f"{repr(comparison)[1:-1]}\n{aligned(rows)}"


def shown(value: object) -> str:
    """A value of a cell as text."""
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else one_line(value)
