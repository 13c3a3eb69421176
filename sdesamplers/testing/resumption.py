"""The check that copies of a run in progress continue as the run does: advanced by hand, and in a pipeline's loop."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..models.base import Model, Output
from ..sampling.recipe import registered_name
from ..sampling.stepper import Stepper
from .case import Case
from .report import Outcome

Copy = Callable[[Any], Any]

EDITED = 2
"""The evaluation whose state is edited, so that copies of an edited run are checked too."""


def resumed(case: Case) -> Outcome:
    """A run that is copied, pickled and stored before every evaluation continues as an uninterrupted run, bit for bit.

    Advanced by hand (`Stepper`), it is also the run of `sample`. In a pipeline's loop (`Scheduler`) it is checked if
    the sampler runs there.
    """
    wrong, counts = [], []
    for grid in ({"steps": 12}, {})[: 1 + (case.spec.adaptive and case.gaussian)]:
        run = _Run(replace(case, free=not grid), grid)
        if not torch.equal(run.samples(), run.sampled()):
            wrong.append("a Stepper differs from sample")
        edited, ways = run.samples(edits=True), run.ways()
        for shift, name in enumerate(ways if grid else list(ways)[:1]):  # each way at each evaluation, in some run
            if not torch.equal(run.samples(list(ways.values()), shift, edits=True), edited):
                wrong.append(f"a run that is copied before every evaluation (first by {name}) differs")
        if not torch.equal(run.samples([run.left_alone], edits=True), edited):
            wrong.append("a copy changes the run that it is made of")
        counts.append(f"{run.most_kept} of {run.evaluations}")
    for name, same in _pushed(case):
        if not same:
            wrong.append(f"a pipeline's loop whose scheduler is copied by {name} differs")
    return "; ".join(wrong) or f"kept {', '.join(counts)} predictions", "bit for bit", not wrong


class _Run:
    """A sampler's run by hand, in several ways.

    Attributes:
        most_kept: the largest number of predictions that a run has kept for its copies.
        evaluations: the number of evaluations of a run.
    """

    def __init__(self, case: Case, grid: dict[str, Any]) -> None:
        self.case, self.grid = case, grid
        self.most_kept = self.evaluations = 0

    def sampled(self) -> Tensor:
        """The samples of `sample`."""
        return self.case.sample(self.case.main_model, num_samples=3, seed=6, **self.grid).samples

    def start(self) -> Stepper:
        """A run that has just begun."""
        return by_hand(self.case, self.grid)

    def samples(self, ways: Sequence[Copy] = (), shift: int = 0, edits: bool = False) -> Tensor:
        """The samples of a run that is replaced by a copy before every evaluation, in different ways in turn."""
        stepper = self.start()
        while not stepper.is_done:
            if edits and stepper.evaluations == EDITED:
                stepper.x = stepper.x + 0.05
            if ways:
                stepper = ways[(stepper.evaluations + shift) % len(ways)](stepper)
            self.most_kept = max(self.most_kept, stepper.kept)
            _send(stepper, self.case.main_model)
        self.evaluations = stepper.evaluations
        return stepper.result.samples

    def ways(self) -> dict[str, Copy]:
        """The ways in which a run can be copied. A sampler that is not registered cannot be pickled."""
        ways: dict[str, Copy] = {"copy.deepcopy": copy.deepcopy, "state_dict": self._stored}
        if registered_name(self.case.spec) is not None:
            ways["pickle"] = lambda stepper: pickle.loads(pickle.dumps(stepper))
        return ways

    def _stored(self, stepper: Stepper) -> Stepper:
        file, made = io.BytesIO(), self.start()
        torch.save(stepper.state_dict(), file)
        file.seek(0)
        made.load_state_dict(torch.load(file, weights_only=True))
        return made

    def left_alone(self, stepper: Stepper) -> Stepper:
        """The run itself, of which a copy has been made and advanced."""
        _send(copy.deepcopy(stepper), self.case.main_model)
        return stepper


def by_hand(case: Case, grid: dict[str, Any]) -> Stepper:
    """A run of three samples that has just begun."""
    model, options = case.main_model, {**grid, **case.options_for(grid)}
    return Stepper(
        model.process,
        case.spec,
        prediction=model.prediction,
        shape=model.shape,
        num_samples=3,
        seed=6,
        dtype=torch.float64,
        **options,
    )


def _send(stepper: Stepper, model: Model) -> None:
    output, extra = sent(stepper, model)
    stepper.send(output, **extra)


def sent(stepper: Stepper, model: Model) -> tuple[Tensor, dict[str, Tensor]]:
    """The model's output for the states of a run, and the further arguments of `Stepper.send`."""
    requests, extra = stepper.requests, dict[str, Tensor]()
    is_single = len(requests) == 1 and requests[0][1].rows is None
    found = model.predict(stepper.x, requests[0][1].t if is_single else stepper.times)
    output = found if isinstance(found, Output) else Output(found)
    if "unguided" in stepper.spec.needs:
        extra["unguided"] = output.value
    if output.log_density is not None:
        extra["log_density"] = output.log_density
    return output.value, extra


def _pushed(case: Case) -> Iterator[tuple[str, bool]]:
    """For each way of copying a scheduler: its name, and True if a copied loop ends in the same samples."""
    if not case.gaussian:
        return
    from ..scheduler.scheduler import Scheduler  # imports diffusers, which only this check needs

    def made() -> Scheduler:
        return Scheduler(case.spec, trained=TRAINED, seed=6, **case.options_for({"steps": 1}))

    def stored(scheduler: Scheduler) -> Scheduler:
        again = made()
        again.load_state_dict(scheduler.state_dict())
        return again

    try:
        expected = _looped(made())
    except UsageError:  # the sampler needs more than a pipeline passes to its scheduler
        return
    ways: dict[str, Copy] = {"copy.deepcopy": copy.deepcopy, "state_dict": stored}
    if registered_name(case.spec) is not None:
        ways["pickle"] = lambda scheduler: pickle.loads(pickle.dumps(scheduler))
    for name, way in ways.items():
        yield name, torch.equal(_looped(made(), way), expected)


TRAINED = {"_class_name": "DDIMScheduler", "clip_sample": False}


def _looped(scheduler: Any, way: Copy = lambda scheduler: scheduler) -> Tensor:
    """The samples of a pipeline's loop whose scheduler is replaced by a copy after every step."""
    x = torch.randn(2, 2, generator=torch.Generator().manual_seed(3))
    scheduler.set_timesteps(6)
    for t in scheduler.timesteps:
        output = torch.tanh(scheduler.scale_model_input(x, t) * (1 + float(t) / 1000))
        x = scheduler.step(output, t, x).prev_sample
        scheduler = way(scheduler)
    return x
