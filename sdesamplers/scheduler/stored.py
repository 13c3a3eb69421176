"""Copies of a scheduler, its pickles, and its grid and run as plain data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checks import shown
from ..errors import UsageError
from ..models.clipping import Clip
from ..sampling.record_state import device_of
from .choice import Choice
from .run import PushedRun
from .run_state import differing, dump_pushed, restore_pushed, run_identity
from .timeline import Timeline
from .unguided import Unguided

if TYPE_CHECKING:
    from typing_extensions import Self

    from .scheduler import Scheduler


class Stored:
    """The methods of a `Scheduler` that copy or store it."""

    config: Any
    trained: dict[str, Any]
    clip: Clip | None
    timesteps: Tensor
    set_timesteps: Callable[..., None]
    set_begin_index: Callable[[int], None]
    _reset: Callable[[], None]
    _choice: Choice
    _timeline: Timeline
    _unguided: Unguided
    _run: PushedRun | None
    _grid_arguments: dict[str, Any]

    def clone(self) -> Self:
        """A scheduler of the same configuration without a run: the pipeline of each thread needs its own."""
        rest = {key: self.config[key] for key in ("seed", "adaptive", "round_timesteps", "clip")}
        choice = self._choice
        make: Any = type(self)
        arguments = {**choice.recipe_arguments, **rest, **choice.options}
        made: Self = make(choice.sampler, trained=self.trained, **arguments)
        return made

    def __deepcopy__(self, memo: Any) -> Self:
        """A scheduler of the same configuration, grid and run; both continue independently, bit for bit alike.

        Pipelines that generate two modalities, or one image in several views, copy the scheduler.
        """
        made = self.clone()
        made._unguided = copy.deepcopy(self._unguided, memo)
        if self._run is not None:
            laid_out = ("convention", "num_inference_steps", "order", "_grid_arguments")
            made.__dict__.update({name: getattr(self, name) for name in laid_out})
            made._run = copy.deepcopy(self._run, memo)
            made._timeline = made._run.timeline
            made.timesteps = made._timeline.from_step(0)
        return made

    def __copy__(self) -> Self:
        return copy.deepcopy(self)

    def __reduce__(self) -> Any:
        state = self.state_dict()
        unguided = self._unguided if self._unguided.is_connected else None
        return _unpickled, (type(self), dict(self.config), state["grid"], state["begin_index"], state["run"], unguided)

    def state_dict(self) -> dict[str, Any]:
        """The grid and the run in progress, as plain data and tensors, for `torch.save` and `load_state_dict`.

        torch.save(scheduler.state_dict(), "run.pt")
        """
        run = self._run
        grid, pushed = (None, None) if run is None else (self._grid_arguments, dump_pushed(run))
        made_for = None if run is None else run_identity(run.layout.recipe, self.trained, self.clip)
        return {"grid": grid, "begin_index": self._timeline.begin_index, "run": pushed, "made_for": made_for}

    def load_state_dict(self, state: Mapping[str, Any], device: str | torch.device | None = None) -> None:
        """Continue the run of a dictionary from `state_dict`, in a scheduler of the same configuration.

            scheduler.load_state_dict(torch.load("run.pt"))

        Args:
            state: the dictionary.
            device: of the states and timesteps; by default that of the stored tensors.

        Raises:
            UsageError: it is no such dictionary, or that of a scheduler with another sampler, grid, clipping or model.
        """
        if not isinstance(state, Mapping) or not {"grid", "begin_index", "run"} <= state.keys():
            raise UsageError(f"this is no state of a Scheduler: pass what state_dict() returned, not {shown(state)}")
        self._reset()
        if state["grid"] is not None:
            grid = dict(state["grid"])
            if device is not None:
                grid["device"] = str(device)
            elif grid["device"] is not None and state["run"] is not None:
                grid["device"] = str(device_of(state["run"]["run"]))
            self.set_timesteps(**grid)
        if self._run is not None and state.get("made_for") is not None:
            here = run_identity(self._run.layout.recipe, self.trained, self.clip)
            if (other := differing(state["made_for"], here)) is not None:
                self._reset()
                raise UsageError(f"this is the state of a Scheduler with another {other}; load it in one like it")
        if state["begin_index"] is not None:
            self.set_begin_index(state["begin_index"])
        if state["run"] is not None and self._run is not None:
            restore_pushed(self._run, state["run"], device)


def _unpickled(
    cls: type[Scheduler],
    config: dict[str, Any],
    grid: Any,
    begin_index: int | None,
    run: Any = None,
    unguided: Unguided | None = None,
) -> Scheduler:
    """A scheduler from its configuration, with the grid and the run that it had; pickles of early 0.1 have no run."""
    made: Scheduler = cls.from_config(config)
    made._unguided = unguided or made._unguided
    made.load_state_dict({"grid": grid, "begin_index": begin_index, "run": run})
    return made


_unpickled.__module__ = "sdesamplers.scheduler.scheduler"  # the name by which all pickles know it
