"""A pushed run as plain data and tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..sampling.record_state import dump_run, load_run, placed
from .pending import PendingStep
from .run import History, PushedRun
from .timesteps import Passed, Place


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
        "passed": [passed.value, passed.slack, None if passed.place is None else list(passed.place[1:])],
        "run": dump_run(history.run),
        "given": None if given is None else given.detach(),
        "discards_next_output": pending is not None and pending.discard_next_output,
        "timeline": run.timeline.state(),
    }


def restore_pushed(pushed: PushedRun, state: Mapping[str, Any], device: torch.device | str | None) -> None:
    """Continue the run of a dictionary from `dump_pushed` on the same grid, by default on the device that it was on."""
    begin, offset, eta = state["history"]
    pushed.begun_at, pushed.evaluations = state["begun_at"], state["evaluations"]
    run = load_run(pushed.setup(pushed.begun_at, eta), state["run"], device)
    value, slack, place = state["passed"]
    passed = Passed(value, None if place is None else Place(pushed.layout.number, *place), slack)
    pushed.history = History(begin, offset, run, eta, passed)
    pushed.is_over, pushed.pending = run.is_over, None
    if not run.is_over:
        given = placed(state["given"], run.record.device)
        version = None if given is None or given.is_inference() else given._version
        pushed.pending = PendingStep(run, given, version, state["discards_next_output"])
    pushed.timeline.restore(state["timeline"])
