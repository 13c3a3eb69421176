"""A `Scheduler`'s configuration: the model's words as diffusers has them, and ours under one key beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from diffusers.configuration_utils import FrozenDict
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..errors import UsageError
from ..pretrained.configuration import class_of, defaults_of
from ..pretrained.saved_keys import KEY, OURS, own_part, trained_part
from ..pretrained.scheduler_keys import KEYS

ANSWERS = {
    *("prediction_type", "clip_sample", "clip_sample_range", "clip_denoised"),
    *("thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
}
"""Words of a configuration that say what a network's answer means, and nothing of time."""


class Configuration(FrozenDict):
    """A configuration whose iteration has the model's words alone, and that is read for ours too (`config.sampler`)."""

    @classmethod
    def of(cls, config: Mapping[str, Any], trained: Mapping[str, Any]) -> Configuration:
        """`config` with the model's words as they are now, by its class, and which of them are the class's defaults."""
        words = models_words(trained)
        defaults = {word: words[word] for word in words["_use_default_values"]}
        ours = {**config.get(KEY, {}), "trained_class": trained["_class_name"], "defaults": defaults}
        return cls({**config, **words, KEY: ours})

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


def models_words(trained: Mapping[str, Any]) -> dict[str, Any]:
    """The model's words, with the list of those that were left at their class's defaults."""
    return {word: value for word, value in trained.items() if word != "_class_name"}


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


def says_answers_alone(words: Mapping[str, Any]) -> bool:
    """Whether words of the model's say what its answer means, and nothing of time."""
    return not set(words) - ANSWERS


def same(a: Any, b: Any) -> bool:
    """Whether two words' values are equal, arrays among them."""
    return a is b or bool(np.array_equal(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else a == b)


def arguments_from(config: Any, sampler: Any, words: dict[str, Any]) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """(sampler, words, trained) of the scheduler that `from_config` is to make of a configuration and its arguments.

    Raises:
        UsageError: it is no configuration.
    """
    if isinstance(config, SchedulerMixin):
        config = {"_class_name": type(config).__name__, **cast(Any, config).config}
    if not isinstance(config, Mapping):
        kind = type(config).__name__
        raise UsageError(f"config must be a scheduler's configuration, such as pipe.scheduler.config, not {kind}")
    words = {key: value for key, value in words.items() if not key.startswith("_")}
    own = own_part(config)
    if own and sampler is None and "recipe" not in words:
        own = {word: value for word, value in own.items() if word in OURS}
        sampler = own.pop("sampler", None)
        words = {**(own.pop("options", None) or {}), **own, **words}
    return sampler, words, trained_part(config)


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
    for word in [word for word in words if word not in ours and word in KEYS]:
        row, value = KEYS[word], words[word]
        write = f"; write {row.write}" if row.write else ""
        if row.role == "solver":
            raise UsageError(
                f"{word} is of diffusers' own solvers ({row.why}), and this sampler has no such option{write}"
            )
        if word not in known:
            raise UsageError(f"{kind}, which this model came with, has no {word}{write}")
        found[word] = value
    return found
