"""A sampler under test, with the models on which it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import notes_of, raised_at, summary
from ..models.analytic import grid_mixture
from ..models.base import Model, Output
from ..models.calling import isolated
from ..models.density import FunnelModel, LangevinSDE
from ..processes.scalars import Scalar
from ..processes.schedules import EDM, VE, VP, RectifiedFlow, SubVP
from ..processes.sde import GaussianProcess
from ..processes.table import DiscreteVP
from ..registry.plugin import Sampler
from ..sampling.calls import sample
from ..sampling.request import GRID
from ..sampling.result import Result

_TABLE = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


def processes() -> dict[str, GaussianProcess]:
    """One process of every type; the last two start at alpha = 0."""
    return {
        "vp": VP(),
        "sub-vp": SubVP(),
        "ve": VE(),
        "edm": EDM(),
        "table": DiscreteVP(_TABLE),
        "zero-snr table": DiscreteVP(_TABLE).with_zero_terminal_snr(),
        "flow": RectifiedFlow(),
    }


class StationaryModel(Model):
    """N(0, I) under Langevin dynamics, for samplers that need only a score or log-density."""

    prediction = "score"
    name = "stationary Gaussian"
    pure = True

    def __init__(self, shape: tuple[int, ...] = (2,), dtype: torch.dtype = torch.float64) -> None:
        self.shape, self.dtype = shape, dtype
        self.process = LangevinSDE(torch.neg, duration=2.0)

    def predict(self, x: Tensor, t: Scalar, condition: Any = None) -> Output:
        return Output(-x, None, -0.5 * x.flatten(1).square().sum(1))


class CountingModel(Model):
    """A wrapper of a model that counts the evaluations of single samples."""

    pure = True

    def __init__(self, inner: Model) -> None:
        self.inner, self.count = inner, 0
        self.process, self.prediction, self.shape = inner.process, inner.prediction, inner.shape
        self.dtype, self.device, self.name = inner.dtype, inner.device, inner.name

    def predict(self, x: Tensor, t: Scalar, condition: Any = None) -> Tensor | Output:
        self.count += len(x)
        return isolated(self.inner)(x, t, condition)


@dataclass(frozen=True)
class Case:
    """A sampler, the options with which it is checked, and the models on which it runs.

    Attributes:
        spec: the sampler.
        options: options that replace its defaults in all checks.
        free: True if an adaptive sampler chooses its own steps in checks that set no grid.
    """

    spec: Sampler
    options: Mapping[str, Any] = field(default_factory=dict)
    free: bool = False

    def sample(self, model: Model, **kwargs: Any) -> Result:
        """Call `sample` with the case's options; by default 12 steps and 4 samples.

        Options that control adaptive steps are omitted on a grid, where `sample` refuses them.
        """
        if set(kwargs).isdisjoint(GRID) and not self.free:
            kwargs["steps"] = 12
        kwargs.setdefault("num_samples", 4)
        return sample(model, self.spec, **{**self.options_for(kwargs), **kwargs})

    def options_for(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The case's options that are valid together with other arguments of a run."""
        control = () if set(arguments).isdisjoint(GRID) else self.spec.control
        return {name: value for name, value in self.options.items() if name not in control}

    @property
    def as_declared(self) -> bool:
        """True if grid runs use the default options, for which orders and evaluations are declared."""
        return all(value == self.spec.options[name].default for name, value in self.options_for({"steps": 1}).items())

    @cached_property
    def failure(self) -> str | None:
        """The first error, with file and line, if every run fails; None if at least one run succeeds."""
        first = None
        for model, steps in ((self.main_model, 12), (self.main_model, 3), (self.other_model, 12)):
            try:
                self.sample(model, steps=steps)
            except Exception as error:  # whatever a faulty sampler raises
                first = first or self.describe(error)
            else:
                return None
        return first

    def describe(self, error: Exception) -> str:
        """An error with its line in the sampler's file."""
        note = notes_of(error)
        return f"{summary(error)}{self.place(error)}{'; ' if note else ''}{note}"

    def place(self, error: Exception) -> str:
        """The place in the sampler's file of an error; empty if it was raised elsewhere, or names the place."""
        place = raised_at(error, self.spec.function.__code__.co_filename)
        return "" if place in str(error) else place

    def effort(self, evaluations: int) -> dict[str, int]:
        """The arguments of a run with about this number of evaluations."""
        return {"steps": max(1, evaluations // (self.spec.evaluations or 1))}

    @property
    def gaussian(self) -> bool:
        """True if the sampler runs on Gaussian processes (all samplers except those of a stationary density)."""
        return "stationary" not in self.spec.needs

    @cached_property
    def main_model(self) -> Model:
        """The model of most checks, of a type that the sampler supports; two-dimensional and in float64."""
        return grid_mixture(VP()) if self.gaussian else StationaryModel()

    @property
    def other_model(self) -> Model:
        """Another model on which the sampler should run."""
        return grid_mixture(RectifiedFlow(), prediction="flow") if self.gaussian else FunnelModel(duration=0.5)
