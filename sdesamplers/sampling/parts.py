"""The batches of a run, recorded and joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..path.path import Ledger, Path
from ..path.points import model_state
from ..path.prediction import Prediction
from .loop import Evaluator
from .result import Trajectory


class Recorder:
    """Records the trajectory of one batch: the state of every sample at every evaluation."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.times: list[np.ndarray] = []
        self.states: list[Tensor] = []

    def __call__(self, prediction: Prediction) -> None:
        point = prediction.point
        state = model_state(prediction.x, point)
        times = np.broadcast_to(np.asarray(point.t, dtype=float), (len(state),))
        if point.rows is not None:
            whole = self.states[-1].clone() if self.states else state.new_zeros(self.count, *state.shape[1:])
            clock = self.times[-1].copy() if self.times else np.zeros(self.count)
            whole[torch.from_numpy(point.rows)] = state.detach().to(whole)
            clock[point.rows] = times
            state, times = whole, clock
        self.times.append(np.array(times))
        self.states.append(state.detach().clone().cpu())


def recording(recorder: Recorder | None, ledger: Ledger | None) -> Callable[[Prediction], None]:
    """Adds each evaluation to a trajectory, and its state to what a ledger records; either may be None."""

    def record(prediction: Prediction) -> None:
        if recorder is not None:
            recorder(prediction)
        if ledger is not None:
            ledger.visited.append(prediction.x.detach())

    return record


@dataclass
class Part:
    """The results kept of one batch, on the CPU; only those that were requested."""

    OPTIONAL: ClassVar = ("accepted", "rejected", "log_probs", "draws", "start", "visited")

    samples: Tensor
    nfe: np.ndarray
    drew_noise: bool
    recorder: Recorder | None
    accepted: np.ndarray | None
    rejected: np.ndarray | None
    log_probs: Tensor | None = None
    draws: Tensor | None = None
    start: Tensor | None = None
    visited: Tensor | None = None
    transition_steps: list[int] | None = None
    edited: list[int] | None = None

    @classmethod
    def of(cls, samples: Tensor, evaluator: Evaluator, path: Path, recorder: Recorder | None, start: Tensor) -> Part:
        """The part of a finished batch, from its evaluator and its path's ledger."""
        ledger = path.ledger
        part = cls(samples.clone().cpu(), evaluator.nfe, ledger.drew_noise, recorder, ledger.accepted, ledger.rejected)
        part.edited = evaluator.edited
        if path.ledger.log_probs is not None:
            vars(part).update(recorded(path, len(samples), samples.shape[1:]))
            part.start = start.cpu()
        return part


def recorded(path: Path, count: int, shape: Sequence[int]) -> dict[str, Any]:
    """What a run has recorded of its transitions, as fields of a `Result`, on the CPU."""
    ledger = path.ledger
    is_whole = all(len(x) == count for x in ledger.visited)  # else the samples take their own steps
    return {
        "log_probs": stack(ledger.log_probs or [], count).cpu(),
        "draws": stack(ledger.draws, count, shape).cpu(),
        "visited": stack(ledger.visited, count, shape).cpu() if is_whole else None,
        "transition_steps": steps_at(path, ledger.times),
    }


def steps_at(path: Path, times: Sequence[float]) -> list[int]:
    """The step of the grid, from 0, in which each of these times on the path's clock lies; its first point counts."""
    grid = np.array([point.time for point in path.points], dtype=np.float64)
    sign = -1.0 if grid[0] > grid[-1] else 1.0
    found = np.searchsorted(sign * grid, sign * np.asarray(times, dtype=np.float64), side="right") - 1
    return np.clip(found, 0, max(0, len(grid) - 2)).tolist()  # type: ignore[no-any-return]


def stack(parts: list[Tensor], count: int, shape: Sequence[int] = ()) -> Tensor:
    """Stack per-transition tensors (count, *shape) to (count, transitions, *shape); `parts` may be empty."""
    return torch.stack([part.clone() for part in parts], 1) if parts else torch.zeros(count, 0, *shape)


def join(parts: list[Any]) -> Any:
    """Concatenate the tensors or arrays of batches; None if any of them is None."""
    if any(part is None for part in parts):
        return None
    return torch.cat(parts) if isinstance(parts[0], Tensor) else np.concatenate(parts)


def edits_of(parts: Sequence[Part]) -> dict[str, Any]:
    """The evaluations with edited states, as fields of a `Result`; empty if they were not recorded."""
    if any(part.edited is None for part in parts):
        return {}
    lists = [part.edited or [] for part in parts]
    edited = sorted({k for each in lists for k in each})
    if all(each == edited for each in lists):
        return {"edited": edited}
    rows = [
        torch.tensor([[k in each for k in edited]]).expand(len(part.samples), -1)
        for part, each in zip(parts, lists, strict=True)
    ]
    return {"edited": edited, "edited_rows": torch.cat(rows)}


def join_trajectories(parts: Sequence[Part]) -> Trajectory:
    """Join the trajectories of batches; in adaptive runs the shorter trajectories are padded with their last state."""
    recorders = [part.recorder for part in parts if part.recorder is not None]
    longest = max(len(r.states) for r in recorders)
    times, states = [], []
    for recorder in recorders:
        pad = longest - len(recorder.states)
        states.append(torch.stack(recorder.states + [recorder.states[-1]] * pad))
        times.append(np.stack(recorder.times + [recorder.times[-1]] * pad))
    clock = np.concatenate(times, axis=1)
    clock = np.concatenate([clock, np.full((1, clock.shape[1]), np.nan)])
    joined = torch.cat([torch.cat(states, 1), torch.cat([part.samples for part in parts])[None]])
    same = bool(np.all(clock[:-1] == clock[:-1, :1]))
    return Trajectory(clock[:, 0] if same else clock, joined)
