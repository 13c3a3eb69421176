"""The picture of a comparison."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..io.images import grid, to_images
from ..io.text import printable

if TYPE_CHECKING:
    from PIL.Image import Image

    from .result import Cell, Comparison


def comparison_picture(comparison: Comparison, each: int) -> Image:
    """Rows of samplers, columns of budgets."""
    shape = next(iter(comparison.samples.values())).shape[1:] if comparison.samples else ()
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        return _image_table(comparison, each)
    if len(shape) == 1 and shape[0] >= 2:
        return _scatter_table(comparison)
    raise UsageError(f"there is no picture for samples of shape {tuple(shape)}")


def _axes(comparison: Comparison) -> tuple[list[str], list[int], dict[tuple[str, int], Cell]]:
    cells = {(cell.sampler, cell.budget): cell for cell in comparison.cells}
    return list(dict.fromkeys(s for s, _ in cells)), list(dict.fromkeys(b for _, b in cells)), cells


def _image_table(comparison: Comparison, each: int) -> Image:
    from PIL import Image, ImageDraw, ImageFont

    samplers, budgets, cells = _axes(comparison)
    font, small = ImageFont.load_default(18), ImageFont.load_default(13)
    strips = {k: grid(to_images(v[:each], comparison.data_range), min(each, 4)) for k, v in comparison.samples.items()}
    width, height = next(iter(strips.values())).size
    left = 24 + int(max(font.getlength(name) for name in samplers))
    top, line = 36, 20
    sheet = Image.new("RGB", (left + len(budgets) * (width + 16), top + len(samplers) * (height + line + 8)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, budget in enumerate(budgets):
        draw.text((left + column * (width + 16) + width / 2, 18), f"{budget} evaluations", "black", font, "mm")
    for row, name in enumerate(samplers):
        y = top + row * (height + line + 8)
        draw.text((12, y + height / 2), name, "black", font, "lm")
        for column, budget in enumerate(budgets):
            x, cell = left + column * (width + 16), cells[name, budget]
            if (name, budget) not in strips:
                reason = wrapped(cell.problem or "nothing was run", small, width, height)
                draw.multiline_text((x + width / 2, y + height / 2), reason, "grey", small, "mm", align="center")
                continue
            sheet.paste(strips[name, budget], (x, y))
            facts = [f"{cell.nfe} NFE"]
            if cell.error is not None:
                facts.append(f"error {cell.error:.2g}")
            if cell.frechet is not None:
                floor = "" if comparison.floor is None else f" (real {comparison.floor.frechet:.3g})"
                facts.append(f"FD {cell.frechet:.3g}{floor}")  # Pillow's own font has no accents
            draw.text((x + width / 2, y + height + line / 2), ",  ".join(facts), (70, 70, 70), small, "mm")
    return sheet


def wrapped(text: str, font: Any, width: float, height: float) -> str:
    """A text in lines that fit a box, cut off where there are too many."""
    across = max(int(width / font.getlength("n")), 8)
    lines = textwrap.wrap(text, across)
    most = max(int(height / 17), 1)
    return "\n".join(lines if len(lines) <= most else [*lines[: most - 1], "..."])


def _scatter_table(comparison: Comparison) -> Image:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("a picture of vectors needs matplotlib: pip install 'sdesamplers[report]'") from None
    from PIL import Image

    samplers, budgets, cells = _axes(comparison)
    figure = Figure(figsize=(2.4 * len(budgets) + 0.6, 2.5 * len(samplers) + 0.4), dpi=110, layout="constrained")
    plots = figure.subplots(len(samplers), len(budgets), squeeze=False, sharex=True, sharey=True)
    for row, name in enumerate(samplers):
        for column, budget in enumerate(budgets):
            plot, cell = plots[row][column], cells[name, budget]
            points = comparison.samples.get((name, budget))
            if points is not None:
                plot.scatter(points[:, 0], points[:, 1], s=4, alpha=0.5, linewidths=0)
            if points is None and cell.problem:
                reason = textwrap.fill(cell.problem, 34)
                plot.text(
                    0.5, 0.5, reason, ha="center", va="center", size=6, transform=plot.transAxes, parse_math=False
                )
            plot.set_title(
                f"{cell.nfe or budget} NFE" + ("" if cell.error is None else f", error {cell.error:.2g}"), size=9
            )
            if column == 0:
                plot.set_ylabel(printable(name), parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")
