"""A matplotlib figure as a part of a page: its colours follow the page, its objects know their sampler and cell."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import Any
from xml.etree import ElementTree

from ..text import printable
from .style import COLOURS, REFERENCE

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
INK, RULE = "#1b1f24", "#d3d8de"
"""Colours of text and of lines behind the data, replaced by the page's."""
VARIABLES = {INK: "var(--ink)", RULE: "var(--rule)", REFERENCE: "var(--reference)"}
VARIABLES |= {colour: f"var(--s{place})" for place, colour in enumerate(COLOURS)}
SETTINGS = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "figure.facecolor": "none",
    "font.size": 9.5,
    "grid.color": RULE,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
"""matplotlib's settings for figures of the page."""
GID = re.compile(r"s(\d+)(?:-c(\d+))?")
REFERENCES = re.compile(r"url\(#([^)]+)\)")


def drawn(draw: Callable[[], Any], prefix: str, label: str, notes: Mapping[int, str] | None = None) -> str:
    """The SVG element of a figure.

    Args:
        draw: returns the figure; it is called with the page's settings, whatever those of the user are.
        prefix: of the ids in the element, which are unique on the page if the prefix is.
        label: what the figure shows, for readers who do not see it.
        notes: text that appears when the pointer is over a cell's marker, by the number of the cell.

    Returns:
        an `svg` element that scales to its box, without style sheets, scripts and references to anything outside.
    """
    from matplotlib import rc_context, rcParamsDefault

    defaults = {key: value for key, value in rcParamsDefault.items() if not key.startswith(("backend", "date."))}
    content = io.BytesIO()
    with rc_context({**defaults, **SETTINGS, "svg.hashsalt": prefix}):
        draw().savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    return element(content.getvalue(), prefix, label, notes or {})


def element(content: bytes, prefix: str, label: str, notes: Mapping[int, str]) -> str:
    """A matplotlib SVG file as an element of a page."""
    root = ElementTree.fromstring(content)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    _mark(root, notes)
    _rename(root, prefix)
    for each in root.iter():
        for name, value in each.attrib.items():
            if "#" in value:
                each.set(name, _coloured(value))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", printable(label))
    ElementTree.register_namespace("", SVG)
    return ElementTree.tostring(root, encoding="unicode")


def _mark(root: ElementTree.Element, notes: Mapping[int, str]) -> None:
    """Give the objects of samplers a class, and their markers a title."""
    for each in root.iter(f"{{{SVG}}}g"):
        found = GID.fullmatch(each.get("id", ""))
        if found is None:
            continue
        each.set("data-sampler", found[1])
        if found[2] is not None and int(found[2]) in notes:
            title = ElementTree.Element(f"{{{SVG}}}title")
            title.text = printable(notes[int(found[2])])
            each.insert(0, title)


def _rename(root: ElementTree.Element, prefix: str) -> None:
    """Keep only ids that the element refers to, and put the prefix before them."""
    used: set[str] = set()
    for each in root.iter():
        used.update(*(REFERENCES.findall(value) for value in each.attrib.values()), ())
        link = each.attrib.pop(f"{{{XLINK}}}href", None)
        if link is not None:
            each.set("href", f"#{prefix}-{link[1:]}" if link.startswith("#") else link)
            used.add(link[1:])
    for each in root.iter():
        name = each.attrib.pop("id", None)
        if name in used:
            each.set("id", f"{prefix}-{name}")
        for key, value in each.attrib.items():
            each.set(key, REFERENCES.sub(rf"url(#{prefix}-\1)", value))


def _coloured(value: str) -> str:
    for colour, variable in VARIABLES.items():
        value = value.replace(colour, variable)
    return value
