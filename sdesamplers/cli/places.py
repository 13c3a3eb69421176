"""Places in a YAML file of options, for errors that are found only when a command runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from ..errors import SdesamplersError, UnknownNameError

FIRST = re.compile(r"[a-z_]+")
KEY = "sdesamplers.places"
"""The key of the places in the `meta` of a click context."""


@dataclass
class Places:
    """Where the values of parameters come from.

    Attributes:
        file: the file.
        values: `file:line: key` of a parameter -> its texts.
        options: KEY=VALUE -> `file:line: key.KEY`, of options of samplers, spacings and noise sources.
        names: the name of a parameter -> its place.
    """

    file: str = ""
    values: dict[str, list[str]] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def of(self, error: SdesamplersError) -> str | None:
        """The place that an error is about: of the name that it has, or of the parameter that it begins with."""
        text = str(error)
        if not self.file or self.file in text:
            return None
        if isinstance(error, UnknownNameError):
            for place, texts in self.values.items():
                if error.name in texts:
                    return place
        for place, texts in self.values.items():
            written = [*texts, *(str(Path(each)) for each in texts)]
            if any(each and text.startswith((f"{each}:", f"{each} ", f"{each!r} ", f"{each}@")) for each in written):
                return place
        opening = FIRST.match(text)
        place_of = self.names.get(opening[0]) if opening else None
        return None if place_of is None else place_of.rpartition(": ")[0]  # the message begins with the key


@contextmanager
def placing(places: Places) -> Iterator[None]:
    """Context in which an error about a value in a file gets the file, the line and the key."""
    try:
        yield
    except SdesamplersError as error:
        place = places.of(error)
        if place is not None:
            error.put_before(place)
        raise


@contextmanager
def placing_option(text: str) -> Iterator[None]:
    """Context in which an error about the option KEY=VALUE gets its place, if it comes from a file."""
    try:
        yield
    except SdesamplersError as error:
        context: Any = click.get_current_context(silent=True)
        found: Mapping[str, str] = getattr(context and context.meta.get(KEY), "options", {})
        if text in found:
            error.put_before(found[text])
        raise
