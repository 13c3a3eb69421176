"""Deterministic samplers of other libraries as settings of the work-precision study, each in its own conventions."""

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
    """A run made more evaluations than its budget allows."""


@dataclass
class Problem:
    """A model that predicts epsilon at DDPM timesteps, whole or fractional, and counts its evaluations.

    Attributes:
        name: name of the model.
        process: the discrete process, with its interpolant.
        predict: epsilon at (x, t), with x in native coordinates.
        start: (N, *shape), the states at the last timestep, where all samplers start.
        truth: (N, *shape), the solution of the probability-flow ODE from there at sigma = 0.
        dtype: dtype of the states.
        budget: largest number of evaluations of a run.
        count: evaluations made so far.
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
        """The model's epsilon; counts the evaluation."""
        self.count += 1
        if self.count > self.budget:
            raise TooManyEvaluations
        return self.predict(x, float(t))

    def denoised(self, x: Tensor, ratio: float) -> Tensor:
        """x0 for the state x / alpha at sigma/alpha = `ratio`, the function that k-diffusion calls a model."""
        scale = 1 / np.hypot(1.0, ratio)  # alpha
        return x - float(ratio) * self.eps(x * scale, self.process.time_at_ratio(float(ratio)))

    def part(self, rows: slice, *, budget: float = float("inf")) -> Problem:
        """The same problem for some of the starts, with a separate count."""
        some = copy.copy(self)
        some.start, some.count, some.budget = self.start[rows], 0, budget
        some.truth = None if self.truth is None else self.truth[rows]
        return some

    def silent(self, budget: float) -> Problem:
        """One start and a model that returns the state at no cost, for counting evaluations."""
        some = self.part(slice(0, 1), budget=budget)
        some.predict = lambda x, t: x
        return some


@dataclass(frozen=True)
class Setting:
    """One sampler of a library with its grid and options.

    Attributes:
        library: name of the library.
        name: name of the setting, with everything that differs from the library's defaults.
        run: function of a problem and a number of steps, as the library counts them; returns samples at sigma = 0.
        family: the sampler without the grid, for grouping settings.
        budgeted: True if `run` takes a budget of evaluations instead of a number of steps.
    """

    library: str
    name: str
    run: Callable[[Problem, int], Tensor] = field(repr=False, compare=False)
    family: str = ""
    budgeted: bool = False

    @property
    def key(self) -> str:
        """Library and name, the key of the setting in logs."""
        return f"{self.library}: {self.name}"
