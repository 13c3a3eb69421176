"""compare.png: the samples of a comparison as one image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import UsageError
from ..io.images import grid, to_images
from ..io.sheets import Sheet, Tile
from ..metrics import Score
from ..text import printable
from .cell import Cell

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..report.view import View
    from .result import Comparison


def stacked(pictures: Sequence[Image], titles: Sequence[str]) -> Image:
    """Pictures below each other, each with a title."""
    from PIL import Image, ImageDraw, ImageFont  # only images need it

    font, line = ImageFont.load_default(20), 40
    width = max(*(picture.width for picture in pictures), *(int(font.getlength(title)) + 24 for title in titles))
    sheet = Image.new("RGB", (width, sum(picture.height + line for picture in pictures)), "white")
    draw, y = ImageDraw.Draw(sheet), 0
    for picture, title in zip(pictures, titles, strict=True):
        draw.text((12, y + line / 2), printable(title), "black", font, "lm")
        sheet.paste(picture, (0, y + line))
        y += line + picture.height
    return sheet


def comparison_picture(comparison: Comparison, each: int) -> Image:
    """The image of `Comparison.picture`."""
    from ..report.view import View

    view = View(comparison)
    if view.has_images:
        return image_table(view, each).image()
    if view.has_vectors:
        from PIL import Image  # only images need it

        content = io.BytesIO()
        comparison.plot("samples").savefig(content, format="png")
        content.seek(0)
        return Image.open(content).convert("RGB")
    raise UsageError(f"samples of shape {view.shape} cannot be shown")


def image_table(view: View, each: int) -> Sheet:
    """The samples as a sheet, with the ODE reference in the first row."""
    comparison = view.comparison

    def strip(samples: Tensor) -> Image:
        return grid(to_images(samples[:each], comparison.data_range), min(each, 4))

    rows = []
    if comparison.reference is not None:
        first = Tile(strip(comparison.reference), f"{comparison.reference_nfe} NFE")
        rows.append(("ODE reference", [first]))
    for name in view.samplers:
        tiles = []
        for budget in view.budgets:
            cell, samples = view.cell(name, budget), comparison.samples.get((name, budget))
            if samples is None or cell is None:
                tiles.append(Tile(reason=(None if cell is None else cell.problem) or "not run"))
            else:
                tiles.append(Tile(strip(samples), caption(cell, comparison.floor)))
        rows.append((name, tiles))
    note = [f"{view.size}; pictures at the same place start from the same noise."]
    if comparison.reference_count:
        note.append(
            f"error: RMS difference from the ODE reference over {comparison.reference_count} samples, data units."
        )
    if any(cell.frechet is not None for cell in comparison.cells):
        note.append("FD: Frechet distance, squared feature units.")  # Pillow's own font has no accents
    return Sheet(rows, [f"{budget} evaluations" for budget in view.budgets], note=" ".join(note))


def caption(cell: Cell, floor: Score | None) -> str:
    """A cell's cost and values in a line."""
    facts = [f"{cell.nfe} NFE"]
    if cell.error is not None:
        facts.append(f"error {cell.error:.2g}")
    if cell.frechet is not None:
        facts.append(f"FD {cell.frechet:.3g}" + ("" if floor is None else f" (real {floor.frechet:.3g})"))
    return ",  ".join(facts)
