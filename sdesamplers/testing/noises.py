"""Checks of a noise source: keys, moments, intervals and what it declares.

Each check takes a `NoiseCase` and returns (measured, required, passed), or None if it does not apply. Statistical
checks have a fixed seed and limits of 5.5 standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import raised_at, summary
from ..path.noise import Noise, NormalSource, skip_draw
from ..registry.plugin import NoiseSource
from .declared import candidates, declaration_of
from .randomness import global_state
from .report import Outcome

SHAPES = ((3,), (2, 4, 4))
"""Shapes of samples, a vector and an image; the first that the source accepts is used."""
EDGES = (-2.0, -1.3, -0.55, 0.1, 1.0)
"""Ends of steps in lambda = log(alpha/sigma), from noise to data, in which no two lengths are equal."""
SHORTEST = 0.1
COUNT = 4000
"""Number of samples of a statistical check."""
LIMIT = 5.5
"""Allowed deviation in standard errors."""


@dataclass(frozen=True)
class NoiseCase:
    """A noise source, and the options with which it is checked."""

    spec: NoiseSource
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def failure(self) -> str | None:
        """The first error, if the source fails for every shape of samples."""
        return None if self._tried[0] else self._tried[1][0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The first shape of samples that the source accepts."""
        return self._tried[0][0]

    @cached_property
    def _tried(self) -> tuple[list[tuple[int, ...]], list[str]]:
        good, bad = list[tuple[int, ...]](), list[str]()
        for shape in SHAPES:
            try:
                self.start(3, shape=shape)(EDGES[0], EDGES[1])
            except Exception as error:  # whatever a faulty source raises
                bad.append(self.describe(error))
            else:
                good.append(shape)
        return good, bad

    def source(self, indices: Any, seed: int = 1, shape: tuple[int, ...] | None = None) -> NormalSource:
        """The seeded normals of samples."""
        return NormalSource(seed, indices, self.shape if shape is None else shape)

    def start(self, count: int, *, seed: int = 1, shape: tuple[int, ...] | None = None, **options: Any) -> Noise:
        """The noise of a run of the samples 0, 1, ..., count - 1."""
        return self.of(self.source(range(count), seed, shape), **options)

    def of(self, source: NormalSource, **options: Any) -> Noise:
        """The noise of a run with the normals of `source`."""
        return self.spec(source, SHORTEST, **{**self.options, **options})

    def describe(self, error: Exception) -> str:
        """An error with its line in the source's file."""
        place = raised_at(error, self.spec.function.__code__.co_filename)
        return f"{summary(error)}{'' if place in str(error) else place}"

    @cached_property
    def run(self) -> list[Tensor]:
        """The noise of the steps between `EDGES`, for `COUNT` samples: (COUNT, D) in float64, one for each step."""
        return [z.double().flatten(1) for z in steps(self.start(COUNT, seed=7))]


def steps(noise: Noise, count: int = len(EDGES) - 1) -> list[Tensor]:
    """The noise of the first steps between `EDGES`."""
    return [noise(start, end) for start, end in list(pairwise(EDGES))[:count]]


def starting(noise: Noise) -> Tensor | None:
    """The noise that a run starts from, if the source defines it."""
    begin: Callable[[], Tensor] | None = getattr(noise, "start_noise", None)
    return None if begin is None else begin()


def declaration(case: NoiseCase) -> Outcome:
    """The source has a reference, and a docstring that names every option."""
    return declaration_of(case.spec)


def shape_and_dtype(case: NoiseCase) -> Outcome:
    """Noise is a finite floating-point tensor (N, *shape), for 1 sample and several."""
    wrong = []
    for shape in case._tried[0]:
        for count in (1, 3):
            noise = case.start(count, shape=shape)
            for name, found in (("a step", noise(EDGES[0], EDGES[1])), ("the start", starting(noise))):
                if found is None and name == "the start":
                    continue
                if not isinstance(found, Tensor):
                    wrong.append(f"{name}: {type(found).__name__}")
                elif found.shape != (count, *shape) or not found.is_floating_point() or not found.isfinite().all():
                    wrong.append(f"{name}: {found.dtype} of shape {tuple(found.shape)} for {count} of {shape}")
    return "; ".join(wrong[:2]) or "kept", "(N, *shape), finite", not wrong


def keyed(case: NoiseCase) -> Outcome:
    """Noise is a function of seed, sample index and step: equal for one seed, alone or in a batch, else different.

    No global generator is used, and nothing survives a run.
    """
    before = global_state()
    first, again, other = (steps(case.start(4, seed=seed)) for seed in (1, 1, 2))
    alone = steps(case.of(case.source([2])))
    faults = {
        "two runs with one seed differ": not _equal(first, again),
        "another seed gives the same noise": _any_equal(first, other),
        "sample 2 differs alone and in a batch": not _equal([z[2:3] for z in first], alone),
        "two samples have the same noise": any(torch.equal(z[0], z[1]) for z in first),
        "a global random generator was used": global_state() != before,
    }
    wrong = [fault for fault, there in faults.items() if there]
    return "; ".join(wrong) or "as keyed", "a function of (seed, sample index, step), from source.draw alone", not wrong


def rekeyed(case: NoiseCase) -> Outcome:
    """If the samples of a run are exchanged (steering, branches), the noise of later steps is that of the new keys."""
    source, other = case.source([0, 1, 2]), case.source([5, 0, 1])
    noise, wanted = case.of(source), case.of(other)
    for each in (noise, wanted):
        each(EDGES[0], EDGES[1])
    source.rekey(other.keys)
    same = torch.equal(noise(EDGES[1], EDGES[2]), wanted(EDGES[1], EDGES[2]))
    measured = "follows the keys" if same else "later noise is that of the earlier keys"
    return measured, "the noise of the new keys (keep no draws, or compare source.version)", same


def rows(case: NoiseCase) -> Outcome:
    """The noise of some samples of the batch (`rows`) is that of the whole batch, if the source allows it."""
    picked = np.array([2, 0])
    try:
        some = case.start(3)(EDGES[0], EDGES[1], picked)
    except ValueError:
        return "refused", "the samples' own noise, or a UsageError", True
    whole = case.start(3)(EDGES[0], EDGES[1])[picked]
    same = isinstance(some, Tensor) and some.shape == whole.shape and torch.equal(some, whole)
    return "the same" if same else "differs", "the samples' own noise, or a UsageError", same


def skipped(case: NoiseCase) -> Outcome:
    """A step whose draw is skipped, as in replays, leaves the noise of later steps the same."""
    drawn, skipping = case.start(3), case.start(3)
    drawn(EDGES[0], EDGES[1])
    skip_draw(skipping, EDGES[0], EDGES[1])
    same = torch.equal(drawn(EDGES[1], EDGES[2]), skipping(EDGES[1], EDGES[2]))
    return "the same" if same else "later noise differs", "the same noise after a skipped step", same


def moments(case: NoiseCase) -> Outcome:
    """Every step's noise has mean 0 and, unless `limits` is declared, variance 1 and the kurtosis of a normal.

    4,000 samples; the variance of the normal's square is 2, that of its fourth power 96.
    """
    worst = {"mean": 0.0, "variance": 0.0, "fourth moment": 0.0}
    start = starting(case.start(COUNT, seed=7))
    for z in [*case.run, *([] if start is None else [start.double().flatten(1)])]:
        worst["mean"] = max(worst["mean"], float((z.mean(0) / z.std(0) * math.sqrt(COUNT)).abs().max()))
        for name, power, exact, variance in (("variance", 2, 1, 2), ("fourth moment", 4, 3, 96)):
            error = (z.pow(power).mean(0) - exact).abs() / math.sqrt(variance / COUNT)
            worst[name] = max(worst[name], float(error.max()))
    checked = list(worst) if not case.spec.limits else ["mean"]
    wrong = [name for name in checked if not worst[name] < LIMIT]
    advice = "" if case.spec.limits else ", or declares limits="
    measured = ", ".join(f"{name} off by {worst[name]:.1f} SE" for name in checked)
    return measured, f"within {LIMIT} SE of a standard normal{advice}" if len(checked) > 1 else f"{LIMIT} SE", not wrong


def elements(case: NoiseCase) -> Outcome:
    """The elements of a sample are uncorrelated, unless `limits` is declared."""
    if case.spec.limits:
        return None
    worst = 0.0
    for z in case.run:
        correlation = torch.corrcoef(z.T)
        worst = max(worst, float((correlation - torch.eye(len(correlation))).abs().max()) * math.sqrt(COUNT))
    return f"{worst:.1f} SE", f"below {LIMIT} SE, or declares limits=", worst < LIMIT


def intervals(case: NoiseCase) -> Outcome:
    """The noises of different steps are uncorrelated, and uncorrelated with the start of the run."""
    start = starting(case.start(COUNT, seed=7))
    if start is None:
        start = case.source(range(COUNT), 7).draw(NormalSource.START)
    drawn = [start.double().flatten(1), *case.run]
    standard = [(z - z.mean(0)) / z.std(0) for z in drawn]
    worst = max(
        float((standard[i] * standard[j]).mean(0).abs().max()) * math.sqrt(COUNT)
        for j in range(len(standard))
        for i in range(j)
    )
    return f"{worst:.1f} SE", f"below {LIMIT} SE", worst < LIMIT


def additive(case: NoiseCase) -> Outcome:
    """The noise of a step is the sum of its parts' noises if and only if `additive` is declared (Brownian motion).

    With z(a, b) the noise of a step: sqrt(c - a) z(a, c) = sqrt(b - a) z(a, b) + sqrt(c - b) z(b, c).
    """
    a, b, c = EDGES[0], EDGES[2], EDGES[3]
    whole = case.start(4)(a, c).double() * math.sqrt(c - a)
    noise = case.start(4)
    parts = noise(a, b).double() * math.sqrt(b - a) + noise(b, c).double() * math.sqrt(c - b)
    error, declared = float((whole - parts).abs().max()), case.spec.additive
    measured = f"the sum of its parts to {error:.1e}"
    required = "<= 1e-5 (additive=True is declared)" if declared else "not additive, or declares additive=True"
    return measured, required, (error <= 1e-5) is declared


def options_matter(case: NoiseCase) -> Outcome:
    """Every option changes the noise of a step or of the start, or is refused with a ValueError."""
    free = [name for name in case.spec.options if name not in case.options]
    if not free:
        return None
    plain = _all_of(case.start(3))
    idle = []
    for name in free:
        tried = effect = False
        for value in candidates(case.spec.options[name]):
            try:
                other = _all_of(case.start(3, **{name: value}))
            except ValueError:
                continue
            tried, effect = True, effect or not _equal(plain, other)
        if tried and not effect:
            idle.append(name)
    measured = f"no effect: {', '.join(idle)}" if idle else f"{len(free)} of {len(free)} do"
    return measured, "every option changes the noise", not idle


def _all_of(noise: Noise) -> list[Tensor]:
    start = starting(noise)
    return [*steps(noise, 2), *([] if start is None else [start])]


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _any_equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


NOISE_CHECKS: Mapping[str, Callable[[NoiseCase], Outcome]] = {
    "declaration": declaration,
    "shape and dtype": shape_and_dtype,
    "keyed": keyed,
    "rekeyed": rekeyed,
    "rows": rows,
    "skipped": skipped,
    "moments": moments,
    "elements": elements,
    "intervals": intervals,
    "additive": additive,
    "options": options_matter,
}
"""The checks of a noise source by name; the docstring of each describes what it checks."""
