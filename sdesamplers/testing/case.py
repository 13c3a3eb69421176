"""One sampler under test, with the models that it can be run on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import raised_at
from ..models.analytic import GaussianModel, grid_mixture
from ..models.base import Model, Output
from ..models.calling import isolated
from ..models.density import FunnelModel, LangevinSDE
from ..processes.scalars import Scalar
from ..processes.schedules import EDM, VE, VP, RectifiedFlow, SubVP
from ..processes.sde import GaussianProcess
from ..processes.table import DiscreteVP
from ..registry.plugin import Sampler
from ..sampling.calls import sample
from ..sampling.result import Result

GRID_WORDS = {"steps", "nfe", "times", "sigmas"}
_TABLE = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


def processes() -> dict[str, GaussianProcess]:
    """One process of every kind; the last two start at alpha = 0."""
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
    """N(0, I) under Langevin dynamics, for samplers of a plain score or log-density."""

    prediction = "score"
    name = "stationary Gaussian"
    pure = True

    def __init__(self, shape: tuple[int, ...] = (2,), dtype: torch.dtype = torch.float64) -> None:
        self.shape, self.dtype = shape, dtype
        self.process = LangevinSDE(lambda x: -x, duration=2.0)

    def predict(self, x: Tensor, t: Scalar, condition: Any = None) -> Output:
        return Output(-x, None, -0.5 * x.flatten(1).square().sum(1))


class CountingModel(Model):
    """Another model, counting the samples that it is asked about."""

    pure = True

    def __init__(self, inner: Model) -> None:
        self.inner, self.asked = inner, 0
        self.process, self.prediction, self.shape = inner.process, inner.prediction, inner.shape
        self.dtype, self.device, self.name = inner.dtype, inner.device, inner.name

    def predict(self, x: Tensor, t: Scalar, condition: Any = None) -> Tensor | Output:
        self.asked += len(x)
        return isolated(self.inner)(x, t, condition)


@dataclass(frozen=True)
class Case:
    """A sampler, the options that it is checked with, and where it runs.

    Attributes:
        spec: the sampler.
        options: in place of its defaults, in all checks.
        free: whether an adaptive sampler is to choose its own steps where a check does not give any.
    """

    spec: Sampler
    options: Mapping[str, Any] = field(default_factory=dict)
    free: bool = False

    def sample(self, model: Model, **words: Any) -> Result:
        """`sample` with the case's options; 12 steps and 4 samples unless said otherwise.

        Options that steer free steps are left out of a run on a grid, which takes none.
        """
        if not GRID_WORDS & set(words) and not self.free:
            words["steps"] = 12
        words.setdefault("num_samples", 4)
        return sample(model, self.spec, **{**self.options_for(words), **words})

    def options_for(self, words: Mapping[str, Any]) -> dict[str, Any]:
        """The case's options that go with a run's other words."""
        steered = () if not GRID_WORDS & set(words) else self.spec.control
        return {name: value for name, value in self.options.items() if name not in steered}

    @property
    def as_declared(self) -> bool:
        """Whether grid runs have the default options, which orders and evaluations are declared for."""
        return all(value == self.spec.options[name].default for name, value in self.options_for({"steps": 1}).items())

    @cached_property
    def failure(self) -> str | None:
        """What every run of it ends in, an error with file and line; None where one run comes through."""
        first = None
        for model, steps in ((self.home, 12), (self.home, 3), (self.elsewhere, 12)):
            try:
                self.sample(model, steps=steps)
            except Exception as error:  # whatever a faulty sampler raises
                first = first or self.describe(error)
            else:
                return None
        return first

    def describe(self, error: Exception) -> str:
        """An error with the line of the sampler's file that it came through."""
        return f"{type(error).__name__}: {error}{self.place(error)}"

    def place(self, error: Exception) -> str:
        """Where in the sampler's file an error came from, or nothing."""
        return raised_at(error, self.spec.function.__code__.co_filename)

    def effort(self, evaluations: int) -> dict[str, int]:
        """The words that make a run of about this many evaluations."""
        return {"steps": max(1, evaluations // (self.spec.evaluations or 1))}

    @property
    def gaussian(self) -> bool:
        """Whether the sampler runs on Gaussian processes (all but those of a stationary density do)."""
        return "stationary" not in self.spec.needs

    @cached_property
    def home(self) -> Model:
        """A model that the sampler is at home on, two-dimensional and in float64."""
        return grid_mixture(VP()) if self.gaussian else StationaryModel()

    @property
    def elsewhere(self) -> Model:
        """Another model that it should run on."""
        return grid_mixture(RectifiedFlow(), prediction="flow") if self.gaussian else FunnelModel(duration=0.5)

    def gaussian_model(self, process: GaussianProcess, variance: float = 0.36) -> GaussianModel:
        """Two-dimensional Gaussian data."""
        return GaussianModel([0.7, -0.4], variance, process)
