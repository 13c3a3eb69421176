"""A `Scheduler`'s configuration: the model's words as diffusers has them, and ours under one key beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from diffusers.configuration_utils import FrozenDict

from ..errors import UsageError
from ..pretrained.configuration import class_of, defaults_of
from ..pretrained.saved_words import KEY
from ..pretrained.scheduler_words import WORDS


class Configuration(FrozenDict):
    """A configuration whose iteration has the model's words alone, and that is read for ours too (`config.sampler`)."""

    def __missing__(self, word: str) -> Any:
        return _own(self)[word]

    def __contains__(self, word: object) -> bool:
        return dict.__contains__(self, word) or word in _own(self)

    def get(self, word: str, default: Any = None) -> Any:
        try:
            return self[word]
        except KeyError:
            return default

    def __getattr__(self, word: str) -> Any:
        if word.startswith("__") or word not in _own(self):
            raise AttributeError(f"the configuration has no word {word!r}")
        return self[word]


def _own(config: Configuration) -> dict[str, Any]:
    found: dict[str, Any] = dict.get(config, KEY) or {}
    return found


def explicit(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the words that were left at their class's defaults."""
    return {word: value for word, value in config.items() if word not in (config.get("_use_default_values") or ())}


def updated(trained: Mapping[str, Any], words: Mapping[str, Any]) -> dict[str, Any]:
    """The model's words with others set, which are no defaults any more."""
    left = [word for word in trained.get("_use_default_values") or () if word not in words]
    return {**trained, **words, "_use_default_values": left}


def changed(trained: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The model's words that a configuration has another value for, or has anew."""
    return {
        word: value
        for word, value in config.items()
        if not word.startswith("_") and not (word in trained and same(trained[word], value))
    }


def same(a: Any, b: Any) -> bool:
    """Whether two words' values are equal, arrays among them."""
    return a is b or bool(np.array_equal(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else a == b)


def split_words(words: dict[str, Any], ours: set[str], trained: Mapping[str, Any]) -> dict[str, Any]:
    """The words among a call's arguments that change the model's own, by diffusers' names.

    Args:
        words: of the call.
        ours: names of our own arguments and of the sampler's options, which come first.
        trained: the model's words.

    Raises:
        UsageError: a word of diffusers that is written otherwise here.
    """
    kind = class_of(trained)
    known = defaults_of(kind)
    found: dict[str, Any] = {}
    for word in [word for word in words if word not in ours and word in WORDS]:
        row, value = WORDS[word], words[word]
        write = f"; write {row.write}" if row.write else ""
        if row.role == "solver":
            raise UsageError(
                f"{word} is of diffusers' own solvers ({row.why}), and this sampler has no such option{write}"
            )
        if word not in known:
            raise UsageError(f"{kind}, which this model came with, has no {word}{write}")
        found[word] = value
    return found
