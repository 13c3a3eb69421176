"""A `Stepper`'s run as plain data and tensors, and back; its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import shown
from ..errors import UsageError
from ..processes.fingerprint import fingerprint, is_same_process
from .parts import recorded
from .record_state import as_array, as_list, dump_run, load_run, placed
from .result import Result, process_ends

if TYPE_CHECKING:
    from .stepper import Stepper

FORMAT = 1
"""The version of the layout of the dictionary."""


def dump(stepper: Stepper) -> dict[str, Any]:
    """The dictionary that `Stepper.state_dict` returns."""
    return {
        "format": FORMAT,
        "recipe": stepper.recipe.as_dict(),
        "process": fingerprint(stepper.process),
        "prediction": stepper.prediction,
        "clip": None if stepper.clip is None else asdict(stepper.clip),
        "clock": None if callable(stepper.clock) else float(stepper.clock),
        "shape": list(stepper.shape),
        "dtype": str(stepper.dtype),
        "seed": stepper.seed,
        "indices": list(stepper.indices),
        "evaluations": stepper.evaluations,
        "evaluations_of_each": as_list(stepper._single),
        "first": stepper._first,
        "edited": None if stepper._edit is None else stepper._edit.detach().clone(),
        "run": dump_run(stepper._run),
    }


def load(stepper: Stepper, state: Mapping[str, Any]) -> None:
    """Make a stepper continue the run of a dictionary from `dump`."""
    if not isinstance(state, Mapping) or "recipe" not in state or "run" not in state:
        raise UsageError(f"this is no state of a Stepper: pass what state_dict() returned, not {shown(state)}")
    if state["format"] != FORMAT:
        raise UsageError(f"this state has format {state['format']}, and this version of sdesamplers reads {FORMAT}")
    _check(stepper, state)
    device = stepper.device
    stepper.seed, stepper.indices, stepper.evaluations = state["seed"], list(state["indices"]), state["evaluations"]
    stepper._single, stepper._first = as_array(state["evaluations_of_each"]), placed(state["first"], device)
    stepper._run = load_run(stepper._setup, state["run"], device)
    stepper._now, stepper._edited = None, placed(state["edited"], device)


def result_of(stepper: Stepper) -> Result:
    """The `Result` of a finished run."""
    ledger, record, count = stepper._run.ledger, stepper._run.record, len(stepper.indices)
    facts: dict[str, Any] = {}
    if record.log_probs is not None:
        facts = recorded(stepper._run.path, count, stepper.shape)
        facts["edited"] = list(record.edited)
        facts["start"] = None if stepper._first is None else stepper._first.cpu()
    single = stepper._single
    return Result(
        samples=stepper.x.cpu(),
        nfe_per_sample=np.full(count, stepper.evaluations) if single is None else single.copy(),
        recipe=stepper.recipe,
        seed=stepper.seed,
        indices=list(stepper.indices),
        model_name=type(stepper.process).__name__,
        revision=None,
        data_range=None,
        ends=process_ends(stepper.process),
        accepted=ledger.accepted,
        rejected=ledger.rejected,
        sampler=stepper.spec,
        drew_noise=ledger.drew_noise,
        clip=stepper.clip,
        **facts,
    )


def _check(stepper: Stepper, state: Mapping[str, Any]) -> None:
    """Raise a UsageError that names the first difference between a stepper's run and a stored one."""
    ours, theirs = stepper.recipe.as_dict(), state["recipe"]
    for name in {**ours, **theirs}:
        if _plain(ours.get(name)) != _plain(theirs.get(name)):
            raise UsageError(
                f"this state is of a run with {name}={theirs.get(name)!r}, and this stepper has {ours.get(name)!r}; "
                "make the stepper with the same arguments"
            )
    process, clock = state.get("process"), state.get("clock")
    if process is not None and not is_same_process(fingerprint(stepper.process), process):
        raise UsageError(
            f"this state is of a run on {process[0]} with another schedule than this stepper's "
            f"{type(stepper.process).__name__}"
        )
    # A clock that is a function cannot be compared.
    if clock is not None and not callable(stepper.clock) and clock != stepper.clock:
        raise UsageError(f"this state is of a run with clock={clock:g}, and this stepper has {stepper.clock:g}")
    clip = None if stepper.clip is None else asdict(stepper.clip)
    if state.get("clip", clip) != clip:
        raise UsageError(f"this state is of a run with clip {state['clip']}, and this stepper has {clip}")
    for name, ours_ in (
        ("prediction", stepper.prediction),
        ("shape", list(stepper.shape)),
        ("dtype", str(stepper.dtype)),
    ):
        if list(state[name]) != list(ours_):
            raise UsageError(f"this state is of a run with {name} {state[name]}, and this stepper has {ours_}")


def _plain(value: Any) -> Any:
    """A value with lists in the place of tuples."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return {key: _plain(each) for key, each in value.items()} if isinstance(value, dict) else value
