"""A recorded run as plain data and tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .recorded import RecordedRun
from .records import Output, Record, Sent, Setup, detached


def dump_run(run: RecordedRun) -> dict[str, Any]:
    """A run as numbers, text, lists, dictionaries and tensors. The tensors are not copied, and do not change."""
    record, ledger = run.paused(), run.ledger
    return {
        "keys": [[at, [list(key) for key in keys]] for at, keys in record.keys],
        "earlier": [list(step) for step in record.earlier],
        "steps": [list(step) for step in record.steps],
        "count": record.count,
        "shape": list(record.shape),
        "dtype": str(record.dtype).removeprefix("torch."),
        "device": str(record.device),
        "start": record.start,
        "states": record.states,
        "sent": {k: [_from_sent(each) for each in sent] for k, sent in record.sent.items()},
        "log_probs": record.log_probs,
        "draws": record.draws,
        "times": record.times,
        "visited": record.visited,
        "edited": record.edited,
        "given": record.given,
        "end": None if run.end is None else detached(run.end),
        "drew_noise": ledger.drew_noise,
        "accepted": as_list(ledger.accepted),
        "rejected": as_list(ledger.rejected),
    }


def load_run(setup: Setup, state: Mapping[str, Any], device: torch.device | str | None = None) -> RecordedRun:
    """The run of a dictionary from `dump_run`, on a device; by default on that of the stored tensors."""
    device = torch.device(device_of(state) if device is None else device)
    record = Record(
        start=placed(state["start"], device),
        shape=torch.Size(state["shape"]),
        dtype=getattr(torch, state["dtype"]),
        device=device,
        keys=[(at, [(seed, index) for seed, index in keys]) for at, keys in state["keys"]],
        earlier=[(start, end) for start, end in state["earlier"]],
        steps=[(start, end) for start, end in state["steps"]],
        sent={int(k): [_to_sent(each, device) for each in sent] for k, sent in state["sent"].items()},
        count=state["count"],
        states=[each.to(device) for each in state["states"]],
        log_probs=None if state["log_probs"] is None else [each.to(device) for each in state["log_probs"]],
        draws=[each.to(device) for each in state["draws"]],
        times=list(state["times"]),
        visited=[each.to(device) for each in state["visited"]],
        edited=list(state.get("edited", ())),
        given={int(d): x.to(device) for d, x in state["given"].items()},
    )
    run = RecordedRun.resumed(setup, record, placed(state["end"], device))
    ledger = run.ledger
    ledger.drew_noise = state["drew_noise"]
    ledger.accepted, ledger.rejected = as_array(state["accepted"]), as_array(state["rejected"])
    return run


def device_of(state: Mapping[str, Any]) -> torch.device | str:
    """The device of the tensors of a dictionary from `dump_run`, which `torch.load` may have moved."""
    stored = [*state["states"], state["end"], state["start"], *(state["log_probs"] or ())]
    for each in stored:
        if each is not None:
            device: torch.device = each.device
            return device
    return str(state["device"]) if torch.cuda.is_available() else "cpu"  # a run that is over


def placed(tensor: Tensor | None, device: torch.device | str) -> Tensor | None:
    """A tensor on a device."""
    return None if tensor is None else tensor.to(device)


def as_list(array: np.ndarray | None) -> list[int] | None:
    """An array of whole numbers as a list."""
    return None if array is None else array.tolist()


def as_array(numbers: Sequence[int] | None) -> np.ndarray | None:
    """The array of a list from `as_list`."""
    return None if numbers is None else np.array(numbers, dtype=np.int64)


def _from_sent(sent: Sent) -> dict[str, Any]:
    return {**sent.output._asdict(), "state": sent.state, "edited": sent.edited}


def _to_sent(entry: Mapping[str, Any], device: torch.device) -> Sent:
    plain = entry["unguided"]
    unguided = None if plain is None else (plain[0].to(device), str(plain[1]))
    output = Output(entry["raw"].to(device), str(entry["kind"]), unguided, placed(entry["log_density"], device))
    return Sent(output, placed(entry["state"], device), placed(entry["edited"], device))
