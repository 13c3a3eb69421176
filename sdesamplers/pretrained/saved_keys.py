"""The keys that our `Scheduler` adds to a model's own scheduler configuration, and how to separate the two again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEY = "_sdesamplers"
"""The key that holds our settings: diffusers' classes keep private keys of a configuration without a warning."""

OURS = (
    *("sampler", "options", "spacing", "spacing_options", "coordinates", "noise", "noise_options", "final"),
    *("seed", "adaptive", "round_timesteps", "clip"),
)
"""Our settings, in addition to the model's own configuration."""


def own_part(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return our settings in a configuration; None if it does not derive from one written by our `Scheduler`."""
    if KEY in config:
        return dict(config[KEY])
    if "trained_class" in config:  # as early 0.1 wrote it
        return {key: config[key] for key in (*OURS, "trained_class") if key in config}
    return None


def trained_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's own configuration, without our settings.

    In a configuration created by our `Scheduler`, perhaps converted by a diffusers scheduler since, keys listed as left
    at their defaults get the defaults of the model's own class.
    """
    own, listed = own_part(config) or {}, list(config.get("_use_default_values") or ())
    trained = {
        key: value
        for key, value in config.items()
        if not (key.startswith("_") or key in OURS or key == "trained_class" or (own and key in listed))
    }
    if own:
        kept = {key: value for key, value in own.get("defaults", {}).items() if key not in trained}
        trained, listed = {**trained, **kept}, list(kept)
    kind = own.get("trained_class", config.get("_class_name"))
    if kind is not None:
        trained["_class_name"] = kind
    return {**trained, "_use_default_values": listed} if listed else trained
