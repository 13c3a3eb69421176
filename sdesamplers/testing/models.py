"""Checks of a model: its predictions at both ends of its process, batches, times, conditions and runs.

Each check takes a `ModelCase` and returns (measured, required, passed), or None if it does not apply. A model's data is
not known here, so a wrong prediction type is found only if it shows at one of the ends of the process.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SdesamplersError, UsageError, summary
from ..models.base import Model, Output
from ..models.calling import isolated
from ..models.conditions import take_rows
from ..models.running import running
from ..processes.predictions import PREDICTIONS, convert
from ..processes.sde import SDE, GaussianProcess
from ..sampling.calls import sample
from .randomness import global_state
from .report import Outcome

RATIOS = (0.05, 0.5, 2.0, 20.0)
"""Values of sigma/alpha at which a model is evaluated, besides both ends of its time."""
ELEMENTS = 256
"""Numbers that a check of averages needs at least; small samples are checked in larger batches."""


@dataclass(frozen=True)
class ModelCase:
    """A model under test, and the condition with which it is evaluated (as in `sample`); None for its default."""

    model: Model
    condition: Any = None

    @cached_property
    def failure(self) -> str | None:
        """The first error, if the model cannot be evaluated at all."""
        try:
            self.predict(self.states(2, self.times[2]), self.times[2])
        except Exception as error:  # whatever a faulty model raises
            return self.describe(error)
        return None

    def describe(self, error: Exception) -> str:
        """An error in one line."""
        return summary(error)

    @property
    def process(self) -> GaussianProcess | None:
        """The model's process, if it is Gaussian."""
        process = self.model.process
        return process if isinstance(process, GaussianProcess) else None

    @cached_property
    def times(self) -> list[float]:
        """t_max, t_min and times between them."""
        low, high = float(self.model.process.t_min), float(self.model.process.t_max)
        inside = np.linspace(low, high, len(RATIOS) + 2)[1:-1]
        if self.process is not None:
            inside = np.clip(np.asarray(self.process.time_at_ratio(np.array(RATIOS)), dtype=float), low, high)
        return [low, high, *inside.tolist()]

    def states(self, count: int, t: float, seed: int = 0) -> Tensor:
        """Noised states of standard normal data at time t, in the model's dtype."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(count, *self.model.shape, generator=generator, dtype=torch.float64)
        scale = 1.0 if self.process is None else math.hypot(float(self.process.alpha(t)), float(self.process.sigma(t)))
        return (scale * x).to(self.model.device, self.model.dtype)

    def conditions(self, count: int) -> Any:
        """The condition of `count` samples."""
        return self.model.condition_for(self.condition, count)

    def predict(self, x: Tensor, t: Any, condition: Any = ...) -> Tensor:
        """The model's prediction, as a run evaluates it, without seeding global generators for it."""

        def evaluate() -> Tensor:
            rows = self.conditions(len(x)) if condition is ... else condition
            with running(self.model, key=(0, 0)):
                output = isolated(self.model)(x, t, rows)
            return output.value if isinstance(output, Output) else output

        with ThreadPoolExecutor(1) as thread:  # in the main thread a run seeds torch's generators for the network
            return thread.submit(evaluate).result()

    @property
    def tolerance(self) -> float:
        """Allowed relative difference by rounding: a batch is computed in another order than a sample."""
        return max(1e-9, 2e3 * float(torch.finfo(self.model.network_dtype).eps))


def declaration(case: ModelCase) -> Outcome:
    """The attributes that every model has: process, prediction type, shape, dtype, name and range of the data."""
    model = case.model
    span = model.data_range
    faults = {
        "process is not an SDE": not isinstance(model.process, SDE),
        f"prediction {model.prediction!r} (known: {', '.join(PREDICTIONS)})": model.prediction not in PREDICTIONS,
        f"shape {model.shape!r} is not a tuple of whole numbers": not isinstance(model.shape, tuple)
        or not all(isinstance(size, int) and size > 0 for size in model.shape),
        f"dtype {model.dtype!r} is not floating-point": not getattr(model.dtype, "is_floating_point", False),
        "the name is not a text": not isinstance(model.name, str) or not model.name,
        f"data_range {span!r} is not (low, high)": span is not None and not (len(span) == 2 and span[0] < span[1]),
    }
    wrong = [fault for fault, there in faults.items() if there]
    return "; ".join(wrong) or "complete", "process, prediction, shape, dtype, name, data_range", not wrong


def shape_and_dtype(case: ModelCase) -> Outcome:
    """Predictions are finite and have the state's shape, for 1 and 3 samples, from t_max to t_min."""
    wrong = []
    for t in case.times:
        for count in (1, 3):
            x = case.states(count, t)
            found = case.predict(x, t)
            if found.shape != x.shape or not found.is_floating_point():
                wrong.append(f"{found.dtype} of shape {tuple(found.shape)} for {tuple(x.shape)}")
            elif not found.isfinite().all():
                wrong.append(f"not finite at t = {t:.6g}")
    return "; ".join(wrong[:2]) or f"kept at {len(case.times)} times", "finite, the state's shape", not wrong


def deterministic(case: ModelCase) -> Outcome:
    """Equal inputs give identical predictions, and no global generator is used."""
    t = case.times[3]
    x = case.states(3, t)
    before = global_state()
    first, again = case.predict(x, t), case.predict(x, t)
    faults = {
        "two evaluations differ": not torch.equal(first, again),
        "a global random generator was used": global_state() != before,
    }
    wrong = [fault for fault, there in faults.items() if there]
    return "; ".join(wrong) or "identical", "identical predictions for equal inputs", not wrong


def batch_independence(case: ModelCase) -> Outcome:
    """The prediction of a sample does not depend on the other samples of its batch, nor on their conditions."""
    worst = 0.0
    for t in case.times[2:4]:
        x, rows = case.states(4, t), case.conditions(4)
        together = case.predict(x, t, rows)
        alone = torch.cat([case.predict(x[k : k + 1], t, take_rows(rows, slice(k, k + 1))) for k in range(4)])
        worst = max(worst, _relative(together, alone))
    return f"differ by {worst:.1e}", f"<= {case.tolerance:.0e}, relative", worst <= case.tolerance


def times_of_samples(case: ModelCase) -> Outcome:
    """An array with one time for each sample gives the predictions that each time gives by itself."""
    times = np.array([case.times[2], case.times[3], case.times[4]])
    x = torch.cat([case.states(1, float(t), seed=k) for k, t in enumerate(times)])
    rows = case.conditions(3)
    together = case.predict(x, times, rows)
    each = [case.predict(x[k : k + 1], t, take_rows(rows, slice(k, k + 1))) for k, t in enumerate(times.tolist())]
    worst = _relative(together, torch.cat(each))
    return f"differ by {worst:.1e}", f"<= {case.tolerance:.0e}, relative", worst <= case.tolerance


def pure(case: ModelCase) -> Outcome:
    """If `pure` is declared, the state is left alone and the prediction is not overwritten by the next call."""
    if not case.model.pure:
        return None
    t = case.times[3]
    x, other, rows = case.states(2, t), case.states(2, t, seed=1), case.conditions(2)
    before = x.clone()
    with torch.no_grad():
        first = case.model.predict(x, t, rows)
        first = first.value if isinstance(first, Output) else first
        kept = first.clone()
        case.model.predict(other, t, rows)
    faults = {
        "the state was changed in place": not torch.equal(x, before),
        "the next call overwrote the prediction": not torch.equal(first, kept),
        "the prediction is the state itself": first.data_ptr() == x.data_ptr(),
    }
    wrong = [fault for fault, there in faults.items() if there]
    return "; ".join(wrong) or "left alone", "nothing is shared (pure=True is declared)", not wrong


def noisy_end(case: ModelCase) -> Outcome:
    """At t_max, where the state is noise, epsilon is the noise, and x0 does not depend on it (prediction type)."""
    process = case.process
    if process is None or float(process.ratio(process.t_max)) < 10:
        return None
    t = float(process.t_max)
    x = case.states(_count(case), t)
    raw, z = case.predict(x, t).double(), x.double() / float(process.sigma(t))
    if case.model.prediction in ("epsilon", "score"):
        eps = raw if case.model.prediction == "epsilon" else -float(process.sigma(t)) * raw
        slope = float((eps * z).mean() / z.square().mean())
        return f"epsilon is {slope:.2f} times the noise", "0.8 to 1.2", 0.8 <= slope <= 1.2
    x0 = convert(raw, case.model.prediction, "sample", x.double(), process, t)
    share = float((x0 - x0.mean(0)).mul(z).mean().abs() / x0.square().mean().sqrt().clamp(min=0.05))
    return f"{share:.2f} of x0 is the noise", "<= 0.5", share <= 0.5


def clean_end(case: ModelCase) -> Outcome:
    """At t_min, on samples of the model, epsilon is at most as large as noise, and not the sample (prediction type)."""
    process = case.process
    if process is None or not 0 < float(process.ratio(process.t_min)) < 0.2:
        return None
    t = float(process.t_min)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a model of the wrong prediction type ends far from the data
        arguments: dict[str, Any] = {"steps": 12, "final": "min", "condition": case.condition, "seed": 1}
        x = sample(case.model, "ddim", num_samples=_count(case), **arguments).samples.to(case.model.dtype)
    raw, state = case.predict(x, t).double(), x.double()
    eps = convert(raw, case.model.prediction, "epsilon", state, process, t)
    size = float(eps.square().mean().sqrt())
    share = float((eps * state).mean().abs() / state.square().mean().sqrt().clamp(min=1e-6))
    measured = f"epsilon has RMS {size:.2f}, {share:.2f} of it the sample"
    return measured, "RMS <= 2, share <= 0.5", size <= 2 and share <= 0.5


def _count(case: ModelCase) -> int:
    """The number of samples for averages over at least `ELEMENTS` numbers."""
    return min(max(-(-ELEMENTS // max(math.prod(case.model.shape), 1)), 4), 128)


def conditions(case: ModelCase) -> Outcome:
    """A condition is expanded to one row for each sample, and refused if there is none to take.

    If the model has an unconditional input, its prediction is finite and differs from the conditional one.
    """
    model, required = case.model, "one row for each sample; guided and unguided predictions differ"
    rows = case.conditions(3)
    if rows is None:
        try:
            model.condition_for(1, 3)
        except UsageError:
            return "refused", "an unconditional model refuses a condition with a UsageError", True
        return "accepted", "an unconditional model refuses a condition with a UsageError", False
    t = case.times[3]
    x = case.states(3, t)
    found = case.predict(x, t, rows)
    last = case.predict(x[2:], t, take_rows(rows, slice(2, 3)))
    if _relative(found[2:], last) > case.tolerance:
        return "row 2 is not the condition of sample 2", required, False
    try:
        null = model.unconditional(3)
    except UsageError:
        return "one row for each sample; no unconditional input", required, True
    plain = case.predict(x, t, null)
    differs = bool(plain.isfinite().all()) and not torch.equal(plain, found)
    same = case.condition is None  # the default condition may be the unconditional input
    return "one row for each sample" if differs or same else "the condition has no effect", required, differs or same


def sampled(case: ModelCase) -> Outcome:
    """A run gives finite samples, the same for one seed; within twice the range of the data, if it is declared."""
    name = "ddim" if case.process is not None else "euler-maruyama"
    arguments: dict[str, Any] = {"steps": 8, "num_samples": 2, "seed": 3, "condition": case.condition}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns of is measured here
        try:
            first, again = (sample(case.model, name, **arguments).samples for _ in range(2))
        except SdesamplersError as error:
            return str(error), "a run that succeeds", False
    low, high = case.model.data_range or (-math.inf, math.inf)
    middle, half = ((low + high) / 2, (high - low) / 2) if math.isfinite(low) else (0.0, math.inf)
    spread = float((first.double() - middle).square().mean().sqrt()) / half
    faults = {
        "two runs with one seed differ": not torch.equal(first, again),
        "not finite": not bool(first.isfinite().all()),
        f"RMS of {spread:.1f} half ranges": spread > 2,
    }
    wrong = [fault for fault, there in faults.items() if there]
    return "; ".join(wrong) or f"2 samples by {name}", "finite, repeatable, in the range of the data", not wrong


def _relative(found: Tensor, exact: Tensor) -> float:
    """The largest difference relative to the largest value; infinite for other shapes, NaN for NaN."""
    if found.shape != exact.shape:
        return math.inf
    return float((found.double() - exact.double()).abs().max() / exact.double().abs().max().clamp(min=1e-12))


MODEL_CHECKS: Mapping[str, Callable[[ModelCase], Outcome]] = {
    "declaration": declaration,
    "shape and dtype": shape_and_dtype,
    "deterministic": deterministic,
    "batch independence": batch_independence,
    "times": times_of_samples,
    "pure": pure,
    "noisy end": noisy_end,
    "clean end": clean_end,
    "condition": conditions,
    "sampled": sampled,
}
"""The checks of a model by name; the docstring of each describes what it checks."""
