"""Sheets: pictures in labelled rows and columns, with a title and a note, as PNG or SVG."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from ..errors import UsageError
from ..text import one_line
from .images import grid

if TYPE_CHECKING:
    from PIL.Image import Image

TEXT, SMALL = 18, 13
"""Sizes of letters, in pixels."""
GAP, LINE = 16, 20
"""Pixels between columns, and of a line of small text."""
FORMATS = ("png", "svg")


@dataclass
class Tile:
    """A place of a sheet.

    Attributes:
        picture: None for an empty place.
        caption: the line below it.
        reason: text in an empty place.
    """

    picture: Image | None = None
    caption: str = ""
    reason: str = ""


@dataclass
class Sheet:
    """Pictures in rows and columns.

    Attributes:
        rows: the label and the tiles of each row.
        columns: the heading of each column; none if empty.
        title: the line above all.
        note: the text below all, such as the meaning of captions and what was run.
    """

    rows: list[tuple[str, list[Tile]]]
    columns: list[str] = field(default_factory=list)
    title: str = ""
    note: str = ""

    @classmethod
    def of_strips(cls, rows: Sequence[tuple[str, Sequence[Image]]], title: str = "", note: str = "") -> Sheet:
        """A sheet with a label and a row of pictures of one size for each entry."""
        return cls([(label, [Tile(grid(list(images), len(images)))]) for label, images in rows], [], title, note)

    def image(self) -> Image:
        """The sheet as a picture."""
        return _Drawn(self).image()

    def svg(self) -> str:
        """The sheet as SVG: its text stays text, its pictures are PNG inside of it."""
        return _Drawn(self).svg()

    def save(self, path: str | Path) -> Path:
        """Write the sheet, as SVG if the name ends so, else as PNG; return the path.

        Raises:
            UsageError: another ending.
        """
        from .files import make_folder, write

        path = Path(path)
        form = path.suffix.lower().removeprefix(".")
        if form not in FORMATS:
            raise UsageError(f"{path}: sheets are written as .png or .svg")
        make_folder(path.parent)
        if form == "svg":
            return write(path, self.svg())
        return write(path, lambda file: self.image().save(file, format="PNG"))


class _Drawn:
    """The places of all that is on a sheet: texts (x, y, lines, size, colour, anchor) and pictures (x, y, picture)."""

    def __init__(self, sheet: Sheet) -> None:
        from PIL import ImageFont  # only pictures need it

        self.fonts: dict[int, Any] = {size: ImageFont.load_default(size) for size in (TEXT, SMALL)}
        self.texts: list[tuple[float, float, list[str], int, str, str]] = []
        self.pictures: list[tuple[int, int, Image]] = []
        sizes = [tile.picture.size for _, tiles in sheet.rows for tile in tiles if tile.picture is not None]
        wide, tall = (max(size[axis] for size in sizes) for axis in (0, 1)) if sizes else (200, 100)
        across = max((len(tiles) for _, tiles in sheet.rows), default=1)
        left = 12 + int(
            max((self.fonts[TEXT].getlength(one_line(label)) + 12 for label, _ in sheet.rows if label), default=0)
        )
        captions = any(tile.caption for _, tiles in sheet.rows for tile in tiles)
        self.width = max(left + across * (wide + GAP), 360)
        y = 8.0
        if sheet.title:
            y = self._paragraph(sheet.title, TEXT, y, "black") + 4
        if sheet.columns:
            for column, heading in enumerate(sheet.columns):
                self._text(left + column * (wide + GAP) + wide / 2, y + 14, heading, TEXT, "black", "middle")
            y += 30
        for label, tiles in sheet.rows:
            self._text(12, y + tall / 2, label, TEXT, "black", "start")
            for column, tile in enumerate(tiles):
                x = left + column * (wide + GAP)
                if tile.picture is not None:
                    self.pictures.append((x, int(y), tile.picture))
                elif tile.reason:
                    lines = wrapped(one_line(tile.reason), self.fonts[SMALL], wide, tall)
                    self.texts.append((x + wide / 2, y + tall / 2, lines, SMALL, "#666666", "middle"))
                if tile.caption:
                    self._text(x + wide / 2, y + tall + LINE / 2, tile.caption, SMALL, "#464646", "middle")
            y += tall + 8 + (LINE if captions else 0)
        if sheet.note:
            y = self._paragraph(sheet.note, SMALL, y + 2, "#464646")
        self.height = int(y + 4)

    def _text(self, x: float, y: float, text: str, size: int, colour: str, anchor: str) -> None:
        if text:
            self.texts.append((x, y, [one_line(text)], size, colour, anchor))

    def _paragraph(self, text: str, size: int, y: float, colour: str) -> float:
        """Add lines that fit the width, from y down; return the end."""
        across = max(int((self.width - 24) / self.fonts[size].getlength("n") * 1.05), 20)
        for line in textwrap.wrap(one_line(text), across):
            self._text(12, y + size * 0.65, line, size, colour, "start")
            y += size * 1.35
        return y

    def image(self) -> Image:
        from PIL import Image, ImageDraw

        sheet = Image.new("RGB", (self.width, self.height), "white")
        draw = ImageDraw.Draw(sheet)
        for x, y, picture in self.pictures:
            sheet.paste(picture, (x, y))
        for left, middle, lines, size, colour, anchor in self.texts:
            place = "mm" if anchor == "middle" else "lm"
            draw.multiline_text((left, middle), "\n".join(lines), colour, self.fonts[size], place, align="center")
        return sheet

    def svg(self) -> str:
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" font-family="sans-serif">',
            '<rect width="100%" height="100%" fill="white"/>',
        ]
        for x, y, picture in self.pictures:
            content = io.BytesIO()
            picture.save(content, format="PNG", optimize=True)
            data = base64.b64encode(content.getvalue()).decode()
            size = f'width="{picture.width}" height="{picture.height}"'
            parts.append(f'<image x="{x}" y="{y}" {size} href="data:image/png;base64,{data}"/>')
        for left, middle, lines, letters, colour, anchor in self.texts:
            top = middle - (len(lines) - 1) * letters * 0.6 + letters * 0.35
            for place, line in enumerate(lines):
                parts.append(
                    f'<text x="{left:g}" y="{top + place * letters * 1.2:g}" font-size="{letters}" fill="{colour}" '
                    f'text-anchor="{anchor}">{escape(line)}</text>'
                )
        return "\n".join([*parts, "</svg>\n"])


def wrapped(text: str, font: Any, width: float, height: float) -> list[str]:
    """The lines of a text that fit a box of this size, cut off if there are too many."""
    across = max(int(width / font.getlength("n")), 8)
    lines = textwrap.wrap(text, across)
    most = max(int(height / 17), 1)
    return lines if len(lines) <= most else [*lines[: most - 1], "..."]
