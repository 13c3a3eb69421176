"""Overrides of how a network was trained: a scheduler and a prediction type in place of those found with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..io.paths import expanded
from ..processes.predictions import prediction_type
from .conventions import Convention, Preconditioned, convention_of
from .trust import read_json

DIFFUSERS_NAMES = {"epsilon": "epsilon", "sample": "sample", "v": "v_prediction", "flow": "flow_prediction"}
"""Our names of prediction types, and their names in diffusers' configurations."""


def trained_config(found: Mapping[str, Any], scheduler: Any = None, prediction: str | None = None) -> dict[str, Any]:
    """Return the scheduler configuration found with a model, or that of `scheduler`, with the given prediction type.

    Args:
        found: the configuration that came with the model.
        scheduler: a scheduler, its configuration, or a folder or file that contains it; None for `found`.
        prediction: what the network predicts; None for the configuration's `prediction_type`.

    Raises:
        UsageError: `scheduler` is invalid, or no value of `prediction_type` corresponds to `prediction`.
    """
    config = dict(found) if scheduler is None else config_of(scheduler)
    if prediction is not None:
        kind = prediction_type(prediction)
        if kind not in DIFFUSERS_NAMES:
            names = ", ".join(DIFFUSERS_NAMES)
            raise UsageError(f"prediction must be {names}, not {prediction!r}: no diffusers scheduler supports it")
        config["prediction_type"] = DIFFUSERS_NAMES[kind]
    return config


def config_of(scheduler: Any) -> dict[str, Any]:
    """Return the configuration of a scheduler, including its class name."""
    if isinstance(scheduler, str | Path):
        place = expanded(scheduler)
        files = [place, place / "scheduler_config.json", place / "scheduler" / "scheduler_config.json"]
        file = next((each for each in files if each.is_file()), None)
        if file is None:
            raise UsageError(f"scheduler: {place} is neither a scheduler_config.json nor a folder that contains one")
        return read_json(file)
    trained = getattr(scheduler, "trained", None)  # our `Scheduler` keeps the model's own configuration there
    if trained:
        return dict(trained)
    config: Any
    if isinstance(scheduler, Mapping):
        config, name = scheduler, scheduler.get("_class_name")
    else:
        config, name = getattr(scheduler, "config", None), type(scheduler).__name__
    if isinstance(scheduler, type) or not isinstance(config, Mapping) or not isinstance(name, str):
        raise UsageError(
            "scheduler must be a scheduler such as DDPMScheduler(), its configuration including _class_name, or a "
            f"folder that contains one, not {scheduler!r}"
        )
    return {**config, "_class_name": name}


def checked_convention(config: dict[str, Any], prediction: str | None) -> Convention:
    """Return the convention of a configuration, after checking that it predicts `prediction`, if given.

    Raises:
        UsageError: networks of this scheduler have a fixed prediction type that is not `prediction`.
    """
    convention = convention_of(config)
    fixed = prediction is not None and convention.prediction != prediction_type(prediction)
    if fixed and not isinstance(convention, Preconditioned):
        kind = config.get("_class_name")
        raise UsageError(
            f"a network sampled with {kind} predicts {convention.prediction}, so prediction={prediction!r} "
            "does not fit; pass scheduler= as well"
        )
    return convention
