"""`Comparison` in notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import SdesamplersError
from ..html import picture, rows_table

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
    rows = ([getattr(cell, name) for name in used] for cell in comparison.cells)
    title = f"{comparison.model_name}: {comparison.num_samples} samples, seed {comparison.seed}"
    table = rows_table(title, [COLUMNS[name] for name in used], rows)
    try:
        return table + picture(comparison.picture())
    except SdesamplersError:  # samples that cannot be shown
        return table
