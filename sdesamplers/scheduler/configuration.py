"""A `Scheduler`'s configuration: the model's keys as in diffusers, and ours under one additional key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
from diffusers.configuration_utils import FrozenDict
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..errors import UsageError
from ..pretrained.configuration import class_of, defaults_of
from ..pretrained.saved_keys import KEY, OURS, own_part, trained_part
from ..pretrained.scheduler_keys import KEYS
from ..sampling.sampler_files import recipe_or_name

OUTPUT_KEYS = {
    *("prediction_type", "clip_sample", "clip_sample_range", "clip_denoised"),
    *("thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
}
"""Configuration keys that set how the network's output is read, and do not affect the time axis."""


class Configuration(FrozenDict):
    """A configuration that iterates over the model's keys only, but whose look-ups find ours too (`config.sampler`)."""

    @classmethod
    def of(cls, config: Mapping[str, Any], trained: Mapping[str, Any]) -> Configuration:
        """`config` with the model's current values, its class, and the values that are defaults of that class."""
        values = model_values(trained)
        defaults = {key: values[key] for key in values["_use_default_values"]}
        ours = {**config.get(KEY, {}), "trained_class": trained["_class_name"], "defaults": defaults}
        return cls({**config, **values, KEY: ours})

    def __missing__(self, key: str) -> Any:
        return _own(self)[key]

    def __contains__(self, key: object) -> bool:
        return dict.__contains__(self, key) or key in _own(self)

    def get(self, key: str, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__") or key not in _own(self):
            raise AttributeError(f"the configuration has no key {key!r}")
        return self[key]


def _own(config: Configuration) -> dict[str, Any]:
    found: dict[str, Any] = dict.get(config, KEY) or {}
    return found


def model_values(trained: Mapping[str, Any]) -> dict[str, Any]:
    """The model's keys and values, including the list of keys left at their class's defaults."""
    return {key: value for key, value in trained.items() if key != "_class_name"}


def explicit(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the keys left at their class's defaults."""
    return {key: value for key, value in config.items() if key not in (config.get("_use_default_values") or ())}


def updated(trained: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The model's configuration with new `values`, whose keys no longer count as defaults."""
    left = [key for key in trained.get("_use_default_values") or () if key not in values]
    return {**trained, **values, "_use_default_values": left}


def changed(trained: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The public keys of `config` that `trained` lacks or has with another value."""
    return {
        key: value
        for key, value in config.items()
        if not key.startswith("_") and not (key in trained and same(trained[key], value))
    }


def affects_output_only(keys: Iterable[str]) -> bool:
    """True if keys of a model's configuration only set how its network's output is read."""
    return not set(keys) - OUTPUT_KEYS


def same(a: Any, b: Any) -> bool:
    """True if two configuration values, possibly arrays, are equal."""
    return a is b or bool(np.array_equal(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else a == b)


def arguments_from(config: Any, sampler: Any, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """(sampler, arguments, trained) of the scheduler that `from_config` creates from a configuration and arguments.

    Raises:
        UsageError: `config` is not a configuration.
    """
    if isinstance(config, SchedulerMixin):
        config = {"_class_name": type(config).__name__, **cast(Any, config).config}
    if not isinstance(config, Mapping):
        kind = type(config).__name__
        raise UsageError(f"config must be a scheduler's configuration, such as pipe.scheduler.config, not {kind}")
    arguments = {name: value for name, value in arguments.items() if not name.startswith("_")}
    own = own_part(config)
    if own and sampler is None and "recipe" not in arguments:
        own = {key: value for key, value in own.items() if key in OURS}
        sampler = own.pop("sampler", None)
        arguments = {**(own.pop("options", None) or {}), **own, **arguments}
    if "recipe" in arguments:
        arguments["recipe"] = recipe_or_name(arguments["recipe"])
    return recipe_or_name(sampler), arguments, trained_part(config)


def model_overrides(arguments: dict[str, Any], ours: set[str], trained: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call that override keys of the model's configuration, by their diffusers names.

    Args:
        arguments: of the call.
        ours: names of our own arguments and of the sampler's options, which take precedence.
        trained: the model's configuration.

    Raises:
        UsageError: a diffusers parameter that is called something else here, or that the model's class does not have.
    """
    kind = class_of(trained)
    known = defaults_of(kind)
    found: dict[str, Any] = {}
    for name in [name for name in arguments if name not in ours and name in KEYS]:
        row, value = KEYS[name], arguments[name]
        write = f"; write {row.write}" if row.write else ""
        if row.role == "solver":
            raise UsageError(
                f"{name} belongs to diffusers' own solvers ({row.why}), and this sampler has no such option{write}"
            )
        if name not in known:
            raise UsageError(f"{kind}, this model's original scheduler, has no parameter {name}{write}")
        found[name] = value
    return found
