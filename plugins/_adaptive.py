"""Adaptive step sizes: one integration loop, `adapt`, and the three step-size controllers of the papers.

Every sample of a batch has its own step sizes, so that samples do not affect each other, and leaves the batch when it
reaches the end. The last bits of a network's output depend on the rest of the batch. Two measures keep these
differences out of the step sizes, and so out of the samples: errors are at least `ROUNDING`, and step sizes are rounded
to fractions of an octave.
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
"""Tensors carried from step to step: the states x first, then any further per-sample memory of the method."""

END_MARGIN = 1e-9
"""A step that would leave less than this fraction of the remaining interval is extended to the end."""
SMALLEST = 1e-14
"""The smallest step, as a fraction of the whole interval, that is not lost to rounding."""


class Trial(NamedTuple):
    """Trial steps of the samples `rows`: of size `step`, from `now` to `then` in the method's integration variable."""

    rows: np.ndarray
    now: np.ndarray
    step: np.ndarray
    then: np.ndarray


class Outcome(NamedTuple):
    """Result of a trial step.

    Attributes:
        begin: the state before the step, which a sample keeps if its step is rejected.
        end: the state after the step.
        error: (N,), the error estimate of each sample divided by its tolerance.
    """

    begin: State
    end: State
    error: np.ndarray


Estimate = Callable[[State, Trial], Generator[Any, Any, Outcome]]
"""Takes one step with two methods of different order and estimates the error from their difference."""


class Controller(Protocol):
    """Step-size controller: accepts or rejects steps by their errors and sets the next step sizes."""

    h: np.ndarray
    """(N,), the next step of each sample, negative if the integration variable decreases."""

    def judge(self, rows: np.ndarray, step: np.ndarray, error: np.ndarray) -> np.ndarray:
        """Return which samples of `rows` accept their `step`; set their next `h`. Errors are at least `ROUNDING`."""


@dataclass(frozen=True)
class Tolerance:
    """Relative and absolute error tolerances."""

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
    """Elementwise maximum of the absolute values."""
    size = first.abs()
    for other in others:
        size = torch.maximum(size, other.abs())
    return size


def rms(ratio: Tensor) -> np.ndarray:
    """Root mean square of each sample, (N,) float64 on the host."""
    return ratio.detach().flatten(1).square().mean(1).sqrt().double().cpu().numpy()


@dataclass(frozen=True)
class Budget:
    """Limit on the evaluations of a sample: `first` before its steps and `cost` per step tried, rejected or not."""

    name: str
    tolerance: Tolerance
    max_nfe: int
    cost: int
    first: int = 0

    def check(self, tries: int) -> None:
        """Raise SolverError if `tries` steps would exceed max_nfe."""
        if self.first + self.cost * tries > self.max_nfe:
            raise SolverError(f"{self.name} needs more than max_nfe={self.max_nfe} evaluations at {self.tolerance}")


def adapt(
    state: State, path: Path, begin: float, end: float, estimate: Estimate, controller: Controller, budget: Budget
) -> Generator[Any, Any, State]:
    """Integrate every sample from `begin` to `end` with its own step sizes; return the state there."""
    state, count = tuple(part.clone() for part in state), len(state[0])
    time, device = np.full(count, begin), state[0].device
    accepted = path.ledger.accepted = np.zeros(count, int)
    rejected = path.ledger.rejected = np.zeros(count, int)
    while len(rows := np.flatnonzero(time != end)):
        budget.check(1 + (accepted + rejected)[rows].max())
        trial = next_steps(rows, time[rows], controller.h[rows], end)
        if np.any(np.abs(trial.step) < SMALLEST * abs(end - begin)):
            raise SolverError(
                f"{budget.name}'s step size fell below the rounding error; the model is not smooth enough for an "
                "adaptive solver"
            )
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
    """Steps of size h, shortened to end at `end`."""
    last = np.abs(h) >= np.abs(end - now) * (1 - END_MARGIN)
    return Trial(rows, now, np.where(last, end - now, h), np.where(last, end, now + h))


class PI:
    """Gustafsson 1991: accept an error E <= 1; h <- 0.9 h E^(-0.7/k) E_last^(0.4/k), for an estimate of order k in h.

    A step grows at most tenfold, shrinks at most fivefold, and does not grow after a rejection. If the error is no
    larger than `ROUNDING`, or the step was rejected, the last error is not used: h <- 0.9 h E^(-1/k).
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
        fraction = octave_parts(np.abs(step / self.span) * (self.safety * error**-self.power))
        self.h[rows] = fraction * self.span
        return error <= 1
