"""HTML for notebooks: tables and small pictures, in which all text is escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .text import printable

if TYPE_CHECKING:
    from PIL.Image import Image

WIDEST = 900
"""Pixels of an inline picture."""


class Markup(str):
    """HTML that is not to be escaped."""


def cell(value: Any) -> str:
    """The HTML of a value in a table: escaped text; floats are shortened, flags are yes or no, and None is empty."""
    if isinstance(value, Markup):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return html.escape(printable(f"{value:.4g}" if isinstance(value, float) else value))


def facts_table(title: str, facts: Mapping[str, Any]) -> Markup:
    """A table with one row for each fact that has a value."""
    rows = (
        f"<tr><th style='text-align:left'>{cell(name)}</th><td style='text-align:left'>{cell(value)}</td></tr>"
        for name, value in facts.items()
        if value not in (None, "", {}, (), [])
    )
    return Markup(f"<div><b>{cell(title)}</b><table>{''.join(rows)}</table></div>")


def rows_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markup:
    """A table with a header."""
    head = "".join(f"<th style='text-align:left'>{cell(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{cell(value)}</td>" for value in row) + "</tr>" for row in rows
    )
    return Markup(f"<div><b>{cell(title)}</b><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>")


def details(summary: str, text: str) -> Markup:
    """Text that is shown on a click."""
    return Markup(f"<details><summary>{cell(summary)}</summary><pre>{cell(text)}</pre></details>")


def picture(image: Image) -> Markup:
    """An inline PNG, reduced to WIDEST pixels."""
    if image.width > WIDEST:
        image = image.resize((WIDEST, max(1, round(image.height * WIDEST / image.width))))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return png(buffer.getvalue())


def png(content: bytes) -> Markup:
    """The bytes of a PNG as an inline picture."""
    data = base64.b64encode(content).decode()
    return Markup(f"<img alt='' style='max-width:100%' src='data:image/png;base64,{data}'>")


def joined(options: Mapping[str, Any]) -> str:
    """Options in one line: "rho=7.0, eta=0.5"."""
    return ", ".join(f"{name}={value!r}" for name, value in options.items())
