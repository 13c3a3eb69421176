"""What a name stands for: a sampler with options, a grid and noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UnknownNameError
from .options import check_options
from .plugin import Sampler
from .shelf import Shelf, T


@dataclass(frozen=True)
class Preset:
    """A sampler with everything it is to be run with; what is None is left to the call or to defaults."""

    sampler: Sampler
    options: Mapping[str, Any] = field(default_factory=dict)
    spacing: str | None = None
    spacing_options: Mapping[str, Any] = field(default_factory=dict)
    coordinates: str | None = None
    steps: int | None = None
    noise: str | None = None
    noise_options: Mapping[str, Any] = field(default_factory=dict)
    final: str | None = None
    description: str = ""


def chosen_entry(entry: str | Mapping[str, Any], word: str, shelf: Shelf[T], where: str) -> tuple[T, dict[str, Any]]:
    """The spacing or noise source that an alias stands for, and its options, checked."""
    name, options = (entry, {}) if isinstance(entry, str) else (entry[word], entry.get("options", {}))
    if name not in shelf:
        raise UnknownNameError(f"{shelf.kind} of {where}:", name, shelf)
    item: Any = shelf[name]
    return item, check_options(options, item.options, where)
