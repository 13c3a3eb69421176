"""A `Stepper`'s run as plain data and tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..checks import shown
from ..errors import UsageError
from .parts import stack
from .recorded import RecordedRun
from .records import Output, Record, Sent
from .result import Result, process_ends

if TYPE_CHECKING:
    from .stepper import Stepper

FORMAT = 1
"""The version of the layout of the dictionary."""


def dump(stepper: Stepper) -> dict[str, Any]:
    """The dictionary that `Stepper.state_dict` returns. Its tensors are those of the run, which do not change."""
    run = stepper._run
    record, ledger = run.paused(), run.ledger
    return {
        "format": FORMAT,
        "recipe": stepper.recipe.as_dict(),
        "prediction": stepper.prediction,
        "shape": list(stepper.shape),
        "dtype": str(stepper.dtype),
        "seed": stepper.seed,
        "indices": list(stepper.indices),
        "evaluations": stepper.evaluations,
        "evaluations_of_each": listed(stepper._single),
        "first": stepper._first,
        "edited": stepper._edit,
        "keys": [[at, [list(key) for key in keys]] for at, keys in record.keys],
        "earlier": [list(step) for step in record.earlier],
        "count": record.count,
        "start": record.start,
        "states": record.states,
        "sent": {k: [_from_sent(each) for each in sent] for k, sent in record.sent.items()},
        "log_probs": record.log_probs,
        "draws": record.draws,
        "end": run.end,
        "ledger": [ledger.drew_noise, listed(ledger.accepted), listed(ledger.rejected)],
    }


def listed(array: np.ndarray | None) -> list[int] | None:
    """An array as a list."""
    return None if array is None else array.tolist()


def _array(numbers: Sequence[int] | None) -> np.ndarray | None:
    return None if numbers is None else np.array(numbers)


def _from_sent(sent: Sent) -> dict[str, Any]:
    return {**sent.output._asdict(), "state": sent.state, "edited": sent.edited}


def _to_sent(entry: Mapping[str, Any], stepper: Stepper) -> Sent:
    tensors = {name: _placed(value, stepper) for name, value in entry.items() if isinstance(value, Tensor)}
    plain = entry["unguided"]
    unguided = None if plain is None else (_placed(plain[0], stepper), str(plain[1]))
    output = Output(tensors["raw"], str(entry["kind"]), unguided, tensors.get("log_density"))
    return Sent(output, tensors.get("state"), tensors.get("edited"))


def _placed(tensor: Tensor, stepper: Stepper) -> Tensor:
    return tensor.to(stepper.device)


def load(stepper: Stepper, state: Mapping[str, Any]) -> None:
    """Make a stepper continue the run of a dictionary from `dump`."""
    if not isinstance(state, Mapping) or "recipe" not in state or "sent" not in state:
        raise UsageError(f"this is no state of a Stepper: pass what state_dict() returned, not {shown(state)}")
    if state["format"] != FORMAT:
        raise UsageError(f"this state has format {state['format']}, and this version of sdesamplers reads {FORMAT}")
    _check(stepper, state)

    def tensor(value: Tensor | None) -> Tensor | None:
        return None if value is None else _placed(value, stepper)

    def tensors(values: Sequence[Tensor]) -> list[Tensor]:
        return [_placed(value, stepper) for value in values]

    record = Record(
        start=tensor(state["start"]),
        shape=torch.Size([len(state["indices"]), *stepper.shape]),
        dtype=stepper.dtype,
        device=stepper.device,
        keys=[(at, [(seed, index) for seed, index in keys]) for at, keys in state["keys"]],
        earlier=[(start, end) for start, end in state["earlier"]],
        sent={int(k): [_to_sent(each, stepper) for each in sent] for k, sent in state["sent"].items()},
        count=state["count"],
        states=tensors(state["states"]),
        log_probs=None if state["log_probs"] is None else tensors(state["log_probs"]),
        draws=tensors(state["draws"]),
    )
    stepper.seed, stepper.indices, stepper.evaluations = state["seed"], list(state["indices"]), state["evaluations"]
    stepper._single, stepper._first = _array(state["evaluations_of_each"]), tensor(state["first"])
    drew_noise, accepted, rejected = state["ledger"]
    stepper._run = RecordedRun.resumed(stepper._setup, record, tensor(state["end"]))
    ledger = stepper._run.ledger
    ledger.drew_noise, ledger.accepted, ledger.rejected = drew_noise, _array(accepted), _array(rejected)
    stepper._now, stepper._edited = None, tensor(state["edited"])


def result_of(stepper: Stepper) -> Result:
    """The `Result` of a finished run."""
    ledger, record, count = stepper._run.ledger, stepper._run.record, len(stepper.indices)
    recorded: dict[str, Any] = {}
    if record.log_probs is not None:
        recorded["log_probs"] = stack(record.log_probs, count).cpu()
        recorded["draws"] = stack(record.draws, count, stepper.shape).cpu()
        recorded["start"] = None if stepper._first is None else stepper._first.cpu()
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
        **recorded,
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
