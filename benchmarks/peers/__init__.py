"""Other libraries' deterministic samplers as settings of the work-precision benchmark, each in its own conventions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdesamplers import DiscreteVP


class TooManyEvaluations(Exception):
    """A run asked the model more often than its budget allows."""


@dataclass
class Problem:
    """A model that predicts epsilon at a DDPM table's timesteps, whole or fractional, and counts how often it is asked.

    Attributes:
        name: of the model.
        process: the table, with its interpolant.
        predict: epsilon at (x, t), x in the table's own coordinates.
        start: (N, *shape) states at the last timestep, where all samplers begin.
        truth: (N, *shape) where the probability-flow ODE takes them at sigma = 0.
        dtype: of the states.
        budget: evaluations that a run may make.
        count: evaluations made.
    """

    name: str
    process: DiscreteVP
    predict: Callable[[Tensor, Any], Tensor] = field(repr=False)
    start: Tensor = field(repr=False)
    truth: Tensor | None = field(repr=False, default=None)
    dtype: torch.dtype = torch.float32
    budget: float = float("inf")
    count: int = 0

    def eps(self, x: Tensor, t: Any) -> Tensor:
        """The model's epsilon, counted."""
        self.count += 1
        if self.count > self.budget:
            raise TooManyEvaluations
        return self.predict(x, float(t))

    def denoised(self, x: Tensor, ratio: float) -> Tensor:
        """x0 at state x / alpha, where sigma/alpha is `ratio`: the function that k-diffusion calls a model."""
        scale = 1 / np.hypot(1.0, ratio)  # alpha
        return x - float(ratio) * self.eps(x * scale, self.process.time_at_ratio(float(ratio)))

    def part(self, rows: slice, *, budget: float = float("inf")) -> Problem:
        """The same for some of the starts, with a count of its own."""
        some = copy.copy(self)
        some.start, some.count, some.budget = self.start[rows], 0, budget
        some.truth = None if self.truth is None else self.truth[rows]
        return some

    def silent(self, budget: float) -> Problem:
        """One start and a model that answers with the state at no cost, to count evaluations with."""
        some = self.part(slice(0, 1), budget=budget)
        some.predict = lambda x, t: x
        return some


@dataclass(frozen=True)
class Setting:
    """One sampler of a library with its grid and options.

    Attributes:
        library, name: what it is; the name says everything that differs from the library's defaults.
        run: takes a problem and a number of steps in the library's own counting, returns samples at the clean end.
        family: sampler without grid, to group settings by.
        budgeted: whether `run` takes a budget of evaluations instead of a number of steps.
    """

    library: str
    name: str
    run: Callable[[Problem, int], Tensor] = field(repr=False, compare=False)
    family: str = ""
    budgeted: bool = False

    @property
    def key(self) -> str:
        """Library and name."""
        return f"{self.library}: {self.name}"
