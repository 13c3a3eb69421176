"""Steps that a sampler chooses by itself: one loop, `adapt`, and the three controllers that papers steer it by.

Every sample of a batch has steps of its own, so that none changes another's result, and leaves the batch when it has
arrived. A network's output differs in its last bits with the batch that it is in; that is kept out of the steps, and so
out of the samples: errors below `ROUNDING` count as that much, and steps are rounded to parts of an octave.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from sdesamplers import Path, SolverError
from sdesamplers.coefficients import ROUNDING, octave_parts

State = tuple[Tensor, ...]
"""What is carried from step to step: the states x first, then what else a method remembers of every sample."""

NEARLY = 1e-9
"""A step that falls short of the end by less than this share of what is left goes there, for no sliver to remain."""
SMALLEST = 1e-14
"""The least step, as a share of the way, that rounding leaves anything of."""


class Trial(NamedTuple):
    """Steps to be tried by the samples `rows`: `step` long, from `now` to `then` on the method's clock."""

    rows: np.ndarray
    now: np.ndarray
    step: np.ndarray
    then: np.ndarray


class Outcome(NamedTuple):
    """What came of a trial: where it began (which is kept where it is rejected), where it led, and its error.

    `error` has one number a sample, in tolerances.
    """

    begin: State
    end: State
    error: np.ndarray


Estimate = Callable[[State, Trial], Generator[Any, Any, Outcome]]
"""One step of two methods of different order, and what their difference says of the error."""


class Controller(Protocol):
    """Decides by the errors which steps are taken, and how long the next ones are."""

    h: np.ndarray
    """The step that every sample tries next, with the sign of the way."""

    def judge(self, rows: np.ndarray, step: np.ndarray, error: np.ndarray) -> np.ndarray:
        """Which of the samples `rows` may take their `step`; sets their next `h`. Errors are `ROUNDING` at least."""


@dataclass(frozen=True)
class Tolerance:
    """What an error is measured by."""

    rtol: float
    atol: float

    def __str__(self) -> str:
        return f"rtol={self.rtol:g}, atol={self.atol:g}"

    def total(self, *states: Tensor) -> Tensor:
        """atol + rtol max|x| (Hairer, Norsett & Wanner 1993, II.4)."""
        return self.atol + self.rtol * largest(*states)

    def larger(self, *states: Tensor) -> Tensor:
        """max(atol, rtol max|x|) (Jolicoeur-Martineau et al. 2021, section 3.1)."""
        return (self.rtol * largest(*states)).clamp(min=self.atol)


def largest(first: Tensor, *others: Tensor) -> Tensor:
    """The larger of |x|, number by number."""
    size = first.abs()
    for other in others:
        size = torch.maximum(size, other.abs())
    return size


def rms(ratio: Tensor) -> np.ndarray:
    """The root of the mean square over each sample."""
    return ratio.detach().flatten(1).square().mean(1).sqrt().double().cpu().numpy()


@dataclass(frozen=True)
class Budget:
    """How many evaluations a sample may cost: `first` before its steps, and `cost` for every step that it tries."""

    name: str
    tolerance: Tolerance
    max_nfe: int
    cost: int
    first: int = 0

    def check(self, tries: int) -> None:
        """Raise where `tries` steps are too many."""
        if self.first + self.cost * tries > self.max_nfe:
            raise SolverError(f"{self.name} needs more than max_nfe={self.max_nfe} evaluations at {self.tolerance}")


def adapt(
    state: State, path: Path, begin: float, end: float, estimate: Estimate, controller: Controller, budget: Budget
) -> Generator[Any, Any, State]:
    """Take every sample from `begin` to `end` by steps of its own; what is carried there."""
    state, count = tuple(part.clone() for part in state), len(state[0])
    time, device = np.full(count, begin), state[0].device
    accepted = path.ledger.accepted = np.zeros(count, int)
    rejected = path.ledger.rejected = np.zeros(count, int)
    while len(rows := np.flatnonzero(time != end)):
        budget.check(1 + (accepted + rejected)[rows].max())
        trial = next_steps(rows, time[rows], controller.h[rows], end)
        if np.any(np.abs(trial.step) < SMALLEST * abs(end - begin)):
            raise SolverError(f"{budget.name}'s step fell below rounding; the model is not smooth enough for this")
        pick = torch.from_numpy(rows).to(device)
        outcome = yield from estimate(tuple(part[pick] for part in state), trial)
        if not np.all(np.isfinite(outcome.error)):
            raise SolverError(f"{budget.name}'s error estimate is not finite, so it cannot choose a step")
        good = controller.judge(rows, trial.step, np.maximum(outcome.error, ROUNDING))
        accepted[rows] += good
        rejected[rows] += ~good
        time[rows[good]] = trial.then[good]
        taken = torch.from_numpy(good).to(device).view(-1, *[1] * (state[0].dim() - 1))
        for part, old, new in zip(state, outcome.begin, outcome.end, strict=True):
            part[pick] = torch.where(taken, new, old)
    return state


def next_steps(rows: np.ndarray, now: np.ndarray, h: np.ndarray, end: float) -> Trial:
    """Steps of size h, or to the end where that is no further."""
    last = np.abs(h) >= np.abs(end - now) * (1 - NEARLY)
    return Trial(rows, now, np.where(last, end - now, h), np.where(last, end, now + h))


class PI:
    """Gustafsson 1991: accept an error E <= 1; h <- 0.9 h E^(-0.7/k) E_last^(0.4/k), for an estimate of order k in h.

    A step grows tenfold and shrinks fivefold at most, and does not grow after a rejection. Where the error is rounding,
    the last one says nothing and h <- 0.9 h E^(-1/k).
    """

    def __init__(self, h: np.ndarray, order: int) -> None:
        self.h, self.order, self.last = h, order, np.ones(len(h))

    def judge(self, rows: np.ndarray, step: np.ndarray, error: np.ndarray) -> np.ndarray:
        """See `Controller`."""
        k, good = self.order, error <= 1
        plain, damped = error ** (-1 / k), error ** (-0.7 / k) * self.last[rows] ** (0.4 / k)
        grow = 0.9 * np.where(good & (error > ROUNDING), damped, plain)
        self.h[rows] = octave_parts(step * np.clip(grow, 0.2, np.where(good, 10.0, 1.0)))
        self.last[rows[good]] = error[good]
        return good


class PID:
    """Soderlind 2003, with k-diffusion's limiter: h <- h F, F = 1 + atan(E^-a E_1^-b E_2^-c - 1); accept F >= `safety`.

    E_1 and E_2 are the errors of the last two accepted steps, (a, b, c) = (p + i + d, -p - 2d, d) / k.
    """

    def __init__(self, h: np.ndarray, order: int, coefficients: Sequence[float], safety: float) -> None:
        p, i, d = coefficients
        self.h, self.safety, self.powers = h, safety, np.array([p + i + d, -p - 2 * d, d]) / order
        self.past = np.full((len(h), 2), np.nan)  # the inverse errors of the last two accepted steps

    def judge(self, rows: np.ndarray, step: np.ndarray, error: np.ndarray) -> np.ndarray:
        """See `Controller`."""
        inverse = 1 / error
        past = np.where(np.isnan(self.past[rows]), inverse[:, None], self.past[rows])
        factor = 1 + np.arctan(np.prod(np.column_stack([inverse, past]) ** self.powers, axis=1) - 1)
        good = factor >= self.safety
        self.past[rows[good]] = np.column_stack([inverse, past[:, 0]])[good]
        self.h[rows] = octave_parts(step * factor, 8)
        return good


class Power:
    """Jolicoeur-Martineau et al. 2021, algorithm 1: accept an error E <= 1; h <- safety h E^-power."""

    def __init__(self, count: int, span: float, safety: float, power: float) -> None:
        self.span, self.safety, self.power = span, safety, power
        self.h = np.full(count, 0.01 * span)  # the paper's first step

    def judge(self, rows: np.ndarray, step: np.ndarray, error: np.ndarray) -> np.ndarray:
        """See `Controller`."""
        share = octave_parts(np.abs(step / self.span) * (self.safety * error**-self.power))
        self.h[rows] = share * self.span
        return error <= 1
