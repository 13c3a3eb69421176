"""What the page runs: several samplers at one budget, from the same starting noise."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..checks import number, whole
from ..errors import Cancelled, SdesamplersError, UsageError
from ..models.base import Model
from ..pretrained.pipelines.text import TextModel
from ..sampling.calls import sample
from ..sampling.loop import Event
from ..sampling.result import Result
from ..text import one_line

MOST_SAMPLERS, MOST_NFE, MOST_SAMPLES, LONGEST_PROMPT = 6, 200, 16, 2000
"""Limits of one request."""


@dataclass(frozen=True)
class Wanted:
    """A request of the page.

    Attributes:
        samplers: names, each once.
        nfe: budget of model evaluations per sample.
        num_samples, seed: of all runs.
        condition: a prompt, a class label, or None.
        guidance_scale: 1 for no guidance.

    Raises:
        UsageError: no sampler, or a value beyond the limits.
    """

    samplers: Sequence[str]
    nfe: int
    num_samples: int = 4
    seed: int = 0
    condition: Any = None
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        names = list(dict.fromkeys(self.samplers))
        if not 1 <= len(names) <= MOST_SAMPLERS:
            raise UsageError(f"choose 1 to {MOST_SAMPLERS} samplers, not {len(names)}")
        object.__setattr__(self, "samplers", names)
        for name, most in (("nfe", MOST_NFE), ("num_samples", MOST_SAMPLES)):
            if whole(name, getattr(self, name)) > most:
                raise UsageError(f"{name} must be {most} or less, not {getattr(self, name)}")
        whole("seed", self.seed, 0)
        number("guidance_scale", self.guidance_scale)
        if isinstance(self.condition, str) and len(self.condition) > LONGEST_PROMPT:
            raise UsageError(f"a prompt may have {LONGEST_PROMPT} characters here, not {len(self.condition)}")


@dataclass(frozen=True)
class Shown:
    """One sampler's run, or the reason why there is none.

    Attributes:
        name: the sampler.
        result: the samples, with their trajectory.
        seconds: wall time of the run.
        problem: the reason, or the warnings of the run, on one line.
    """

    name: str
    result: Result | None = None
    seconds: float = 0.0
    problem: str = ""

    @property
    def row(self) -> list[str]:
        """Sampler, evaluations, steps, seconds and note, as texts."""
        if self.result is None:
            return [self.name, "", "", "", self.problem]
        recipe = self.result.recipe
        steps = "adaptive" if recipe.steps is None else str(recipe.steps)
        return [self.name, str(self.result.nfe), steps, f"{self.seconds:.2f}", self.problem]


def run_samplers(
    model: Model,
    wanted: Wanted,
    progress: Callable[[float, str], Any] = lambda share, text: None,
    cancel: threading.Event | None = None,
) -> list[Shown]:
    """Run each sampler; one that does not run has its reason, and the others still run.

    Args:
        model: the model.
        wanted: the request.
        progress: called before each evaluation with the finished share, from 0 to 1, and a text.
        cancel: stops the runs when set.

    Raises:
        Cancelled: `cancel` was set.
        UsageError: no sampler ran; the message is the reason of the first.
    """
    found: list[Shown] = []
    for place, name in enumerate(wanted.samplers):

        def report(event: Event, place: int = place, name: str = name) -> None:
            share = min(event.evaluation / wanted.nfe, 1.0)
            progress((place + share) / len(wanted.samplers), f"{name}: {event.evaluation} evaluations")

        began = time.perf_counter()
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", UserWarning)
                result = sample(
                    model,
                    name,
                    nfe=wanted.nfe,
                    num_samples=wanted.num_samples,
                    seed=wanted.seed,
                    condition=wanted.condition,
                    guidance_scale=wanted.guidance_scale,
                    trajectory=True,
                    callback=report,
                    cancel=cancel,
                )
        except Cancelled:
            raise
        except SdesamplersError as reason:
            found.append(Shown(name, problem=one_line(reason)))
        else:
            notes = "; ".join(dict.fromkeys(one_line(each.message) for each in said))
            found.append(Shown(name, result, time.perf_counter() - began, notes))
    if all(each.result is None for each in found):
        raise UsageError(found[0].problem)
    return found


def check_shows(model: Model) -> None:
    """Raise a UsageError if a model's samples are not images."""
    decoded = type(model).decode is not Model.decode
    if not decoded and (len(model.shape) != 3 or model.shape[0] not in (1, 3, 4)):
        raise UsageError(f"the page shows images, and samples of {model.name!r} have shape {tuple(model.shape)}")


def takes_prompt(model: Model) -> bool:
    """True if a model's condition is a text."""
    return isinstance(model, TextModel)


def classes_of(model: Model) -> int:
    """The number of class labels that a model takes as its condition; 0 if it takes none."""
    return int(getattr(model, "num_classes", 0) or 0)
