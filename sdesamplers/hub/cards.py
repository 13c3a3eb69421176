"""Cards: README.md files that describe what was uploaded, and are recognised if nobody has changed them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from typing import Any

from ..text import one_line
from .upload import Destination

README = "README.md"
SEAL = re.compile(r"\n<!-- sdesamplers card ([0-9a-f]{64}) -->\s*$")
"""The last line of a card: a checksum of the text above it, which shows if somebody has changed the card."""


def sealed(text: str) -> str:
    """A card's text with its last line, the checksum."""
    text = text.rstrip() + "\n"
    return f"{text}\n<!-- sdesamplers card {_checksum(text)} -->\n"


def is_unchanged_card(text: str) -> bool:
    """True if a text is a card as `sealed` returned it."""
    text = text.replace("\r\n", "\n")
    seal = SEAL.search(text)
    return seal is not None and seal[1] == _checksum(text[: seal.start()])


def may_replace(readme: str | None, title: str) -> bool:
    """True if there is no README, or if it is a card that nobody has changed, of the kind whose title begins so."""
    return readme is None or (is_unchanged_card(readme) and f"\n# {title}" in readme)


def place_of_card(to: Destination, names: Collection[str], title: str, folder: str) -> str:
    """The path of a card in a repository: README.md, or in `folder` if the repository has another README.

    Args:
        to: the repository.
        names: the paths of its files.
        title: the beginning of the card's title, which tells cards of this kind from others.
        folder: of what the card describes.
    """
    root = to.text(README) if README in names else None
    return README if may_replace(root, title) else f"{folder}/{README}"


def metadata(*lines: str) -> list[str]:
    """The head of a card: its metadata on the Hub, with the library's name and tags, and then these lines."""
    return ["---", "library_name: sdesamplers", "tags: [sdesamplers, diffusion]", *lines, "---", ""]


def code(text: Any) -> str:
    """Text in the code style of Markdown, also in a cell of a table."""
    return "`" + one_line(text).replace("`", "'").replace("|", "\\|") + "`"


def quoted(value: Any) -> str:
    """A value as in Python, on one line."""
    return (
        '"' + one_line(value).replace("\\", "\\\\").replace('"', '\\"') + '"' if isinstance(value, str) else repr(value)
    )


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogateescape")).hexdigest()
