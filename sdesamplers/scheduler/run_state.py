"""A pushed run as plain data and tensors, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from ..models.clipping import Clip
from ..sampling.recipe import Recipe
from ..sampling.record_state import dump_run, load_run, placed
from .pending import PendingStep
from .run import History, PushedRun
from .timesteps import Passed, Place


def run_identity(recipe: Recipe, trained: Mapping[str, Any], clip: Clip | None) -> dict[str, str]:
    """What the runs of a scheduler depend on, each part as JSON: recipe, clipping, the model's configuration."""
    recipe_part = recipe.as_dict()
    parts = {
        "sampler": [recipe_part.pop("sampler"), recipe_part.pop("options", {})],
        "grid or noise": recipe_part,
        "clip": None if clip is None else vars(clip),
        "configuration of the model": {k: v for k, v in trained.items() if k == "_class_name" or not k.startswith("_")},
    }
    return {name: json.dumps(part, sort_keys=True, default=_plain) for name, part in parts.items()}


def differing(stored: Mapping[str, str], here: Mapping[str, str]) -> str | None:
    """The first part in which two results of `run_identity` differ; None if they are equal."""
    return next((name for name, part in here.items() if stored.get(name) != part), None)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def dump_pushed(run: PushedRun) -> dict[str, Any] | None:
    """The run as numbers, lists, dictionaries and tensors; None if it has not begun."""
    history, pending = run.history, run.pending
    if history is None:
        return None
    passed, given = history.passed, None if pending is None else pending.given
    return {
        "begun_at": run.begun_at,
        "evaluations": run.evaluations,
        "history": [history.begin, history.offset, history.eta],
        "given_draws": sorted(history.given),
        "passed": [passed.value, passed.slack, None if passed.place is None else list(passed.place[1:])],
        "run": dump_run(history.run),
        "given": None if given is None else given.detach(),
        "discards_next_output": pending is not None and pending.discard_next_output,
        "timeline": run.timeline.state(),
    }


def restore_pushed(pushed: PushedRun, state: Mapping[str, Any], device: torch.device | str | None) -> None:
    """Continue the run of a dictionary from `dump_pushed` on the same grid; the device is as in `load_run`."""
    begin, offset, eta = state["history"]
    pushed.begun_at, pushed.evaluations = state["begun_at"], state["evaluations"]
    run = load_run(pushed.setup(pushed.begun_at, eta), state["run"], device)
    value, slack, place = state["passed"]
    passed = Passed(value, None if place is None else Place(pushed.layout.number, *place), slack)
    pushed.history = History(begin, offset, run, eta, passed, given=set(state.get("given_draws", ())))
    pushed.is_over, pushed.pending = run.is_over, None
    if not run.is_over:
        given = placed(state["given"], run.record.device)
        version = None if given is None or given.is_inference() else given._version
        pushed.pending = PendingStep(run, given, version, state["discards_next_output"])
    pushed.timeline.restore(state["timeline"])
