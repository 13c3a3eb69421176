"""How a network was trained, where the caller says so: a scheduler and a prediction type in place of what was found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..processes.predictions import prediction_type
from .conventions import Convention, Preconditioned, convention_of
from .trust import read_json

DIFFUSERS_NAMES = {"epsilon": "epsilon", "sample": "sample", "v": "v_prediction", "flow": "flow_prediction"}
"""Our names of prediction types, and those of diffusers' configurations."""


def trained_config(found: Mapping[str, Any], scheduler: Any = None, prediction: str | None = None) -> dict[str, Any]:
    """A scheduler's configuration: the one found with a model, or that of `scheduler`, with the prediction type given.

    Args:
        found: what came with the model.
        scheduler: a scheduler, its configuration, or a folder or file that holds it; None for what was found.
        prediction: what the network predicts; None for what the configuration says.

    Raises:
        UsageError: `scheduler` is none of these, or configurations have no word for `prediction`.
    """
    config = dict(found) if scheduler is None else config_of(scheduler)
    if prediction is not None:
        kind = prediction_type(prediction)
        if kind not in DIFFUSERS_NAMES:
            raise UsageError(f"prediction must be {', '.join(DIFFUSERS_NAMES)}, not {prediction!r}: no scheduler is made for it")
        config["prediction_type"] = DIFFUSERS_NAMES[kind]
    return config


def config_of(scheduler: Any) -> dict[str, Any]:
    """The configuration of a scheduler, with the name of its class."""
    if isinstance(scheduler, str | Path):
        place = Path(scheduler).expanduser()
        files = [place, place / "scheduler_config.json", place / "scheduler" / "scheduler_config.json"]
        file = next((each for each in files if each.is_file()), None)
        if file is None:
            raise UsageError(f"scheduler: {place} is neither a scheduler_config.json nor a folder that holds one")
        return read_json(file)
    trained = getattr(scheduler, "trained", None)  # one of ours keeps what the model came with
    if trained:
        return dict(trained)
    config: Any
    if isinstance(scheduler, Mapping):
        config, name = scheduler, scheduler.get("_class_name")
    else:
        config, name = getattr(scheduler, "config", None), type(scheduler).__name__
    if isinstance(scheduler, type) or not isinstance(config, Mapping) or not isinstance(name, str):
        raise UsageError(
            "scheduler must be a scheduler such as DDPMScheduler(), its configuration with its _class_name, or a "
            f"folder that holds one, not {scheduler!r}"
        )
    return {**config, "_class_name": name}


def checked_convention(config: dict[str, Any], prediction: str | None) -> Convention:
    """The convention of a configuration, in which `prediction`, if given, has an effect.

    Raises:
        UsageError: networks of this scheduler predict something else, whatever the configuration says.
    """
    convention = convention_of(config)
    fixed = prediction is not None and convention.prediction != prediction_type(prediction)
    if fixed and not isinstance(convention, Preconditioned):
        kind = config.get("_class_name")
        raise UsageError(
            f"a network that is sampled with {kind} predicts {convention.prediction}, so prediction={prediction!r} "
            "does not fit; give scheduler= as well"
        )
    return convention
