"""What a `Scheduler` of ours adds to the configuration of a model's own one, and how both are told apart again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEY = "_sdesamplers"
"""Where our words are: diffusers' classes keep private words of a configuration, and do not warn of them."""

OURS = (
    *("sampler", "options", "spacing", "spacing_options", "coordinates", "noise", "noise_options", "final"),
    *("seed", "adaptive", "round_timesteps", "clip"),
)
"""What our configuration says beside what the model came with."""


def own_part(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a configuration says of ours; None where it is not one of ours, nor made of one."""
    if KEY in config:
        return dict(config[KEY])
    if "trained_class" in config:  # as 0.1 wrote it
        return {word: config[word] for word in (*OURS, "trained_class") if word in config}
    return None


def trained_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says of the model, without what ours adds to it.

    In one that comes from ours, perhaps by way of a scheduler of diffusers, words that were left at a class's defaults
    are those of the model's own class.
    """
    own, listed = own_part(config) or {}, list(config.get("_use_default_values") or ())
    trained = {
        word: value
        for word, value in config.items()
        if not (word.startswith("_") or word in OURS or word == "trained_class" or (own and word in listed))
    }
    if own:
        kept = {word: value for word, value in own.get("defaults", {}).items() if word not in trained}
        trained, listed = {**trained, **kept}, list(kept)
    kind = own.get("trained_class", config.get("_class_name"))
    if kind is not None:
        trained["_class_name"] = kind
    return {**trained, "_use_default_values": listed} if listed else trained
