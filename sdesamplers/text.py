"""Untrusted text from files, plugins and models, made safe to print by escapes; data made fit for JSON or aligned."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

KEPT = "\n\t"
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories of invisible characters, which may move the cursor, change the writing direction, or be
surrogates of bytes outside UTF-8."""


def printable(text: Any) -> str:
    """Text with control characters escaped: `\\x1b` for escape, `\\xff` for a byte outside UTF-8."""
    text = str(text)
    return text if text.isprintable() else "".join(_seen(character) for character in text)


def _seen(character: str) -> str:
    if character in KEPT or character.isprintable() or unicodedata.category(character) not in UNSEEN:
        return character
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # Python's surrogate escapes for bytes of file names that are not UTF-8
        return f"\\x{number - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def one_line(text: Any) -> str:
    """Printable text without line breaks."""
    return " ".join(printable(text).split())


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of texts as lines, with columns that begin below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def without_nan(data: Any) -> Any:
    """Plain data with None for every float that is not finite."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: without_nan(value) for key, value in data.items()}
    return [without_nan(value) for value in data] if isinstance(data, list | tuple) else data
