"""The checks of noise sources: built-in sources pass them, and each catches a planted fault."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import sdesamplers as sds
from sdesamplers import BrownianNoise, IndependentNoise, NormalSource
from sdesamplers.testing import KITS, check_noise_source

FAULTS: dict[str, tuple[str, sds.NoiseSource]] = {}


def fault(check: str, **declared: Any) -> Any:
    """Register a faulty noise source, given as a function of the source, with the check that must catch it."""

    def mark(function: Any) -> Any:
        def make(source, shortest):
            """A noise source with a fault."""
            return function(source)

        declared.setdefault("reference", "none")
        FAULTS[function.__name__] = check, sds.noise_source(function.__name__.replace("_", "-"), **declared)(make)
        return function

    return mark


class Changed:
    """Independent noise, changed by a function of the noise and the number of the draw."""

    def __init__(self, source, change):
        self.plain, self.change, self.count = IndependentNoise(source), change, 0

    def __call__(self, start, end, rows=None):
        self.count += 1
        return self.change(self.plain(start, end, rows), self.count)


@fault("declaration", reference="")
def without_reference(source):
    return IndependentNoise(source)


@fault("shape and dtype")
def flattened(source):
    return Changed(source, lambda z, _: z.flatten(1).sum(1))


@fault("keyed")
def global_generator(source):
    return Changed(source, lambda z, _: torch.randn_like(z))


@fault("keyed")
def mean_of_the_batch(source):
    return Changed(source, lambda z, _: z - z.mean(0))


@fault("keyed")
def one_noise_for_all_samples(source):
    return Changed(source, lambda z, _: z[:1].expand_as(z))


@fault("rekeyed")
def drawn_in_advance(source):
    drawn = [source.draw(NormalSource.PATH, k) for k in range(9)]
    return Changed(source, lambda z, k: drawn[k])


@fault("rows")
def rows_ignored(source):
    return Changed(source, lambda z, k: source.draw(NormalSource.PATH, k)[: len(z)])


class Forgets(Changed):
    """A `skip` that does not count the draw."""

    def skip(self, start, end, rows=None):
        pass


@fault("skipped")
def skip_not_counted(source):
    return Forgets(source, lambda z, _: z)


@fault("moments")
def one_tenth_too_small(source):
    return Changed(source, lambda z, _: 0.9 * z)


@fault("moments")
def uniform(source):
    return Changed(source, lambda z, _: math.sqrt(3) * torch.erf(z / math.sqrt(2)))  # mean 0 and variance 1, no normal


@fault("moments", limits="a shift")
def shifted(source):
    return Changed(source, lambda z, _: z + 0.2)


@fault("elements")
def neighbours_alike(source):
    return Changed(source, lambda z, _: (z + z.roll(1, -1)) / math.sqrt(2))


@fault("intervals")
def the_same_in_every_step(source):
    return lambda start, end, rows=None: source.draw(NormalSource.PATH, 1, rows=rows)


@fault("additive", additive=True)
def no_brownian_motion(source):
    return IndependentNoise(source)


@fault("additive")
def brownian_not_declared(source):
    return BrownianNoise(source)


@sds.noise_source("idle-option", reference="none")
def idle_option(source, shortest, *, strength: float = 1.0):
    """strength does nothing."""
    return IndependentNoise(source)


FAULTS["idle_option"] = "options", idle_option


@pytest.mark.parametrize("name", FAULTS)
def test_the_kit_catches_a_planted_fault(name: str) -> None:
    check, spec = FAULTS[name]
    (finding,) = check_noise_source(spec, checks=[check])
    assert finding.verdict == "fail", finding
    assert finding.required not in ("a run that does not raise", "no error"), finding


def test_every_check_has_a_fault_that_it_catches() -> None:
    assert {check for check, _ in FAULTS.values()} == set(KITS["noise source"])


@pytest.mark.parametrize("name", sorted(sds.noises()))
def test_built_in_noise_sources_pass(name: str) -> None:
    check_noise_source(name).require()


def test_statistical_limits_are_not_reached_by_exact_normals() -> None:
    """NumPy's own normals, keyed by sample and step, pass the moments that a faulty source fails."""

    @sds.noise_source("numpy", reference="none")
    def numpy_normals(source, shortest):
        """Normals of NumPy."""
        counts = [0]

        def noise(start, end, rows=None):
            counts[0] += 1
            drawn = [np.random.default_rng([*key, counts[0]]).normal(size=source.shape) for key in source.keys]
            return torch.from_numpy(np.array(drawn)).float()

        return noise

    report = check_noise_source(numpy_normals, checks=["keyed", "moments", "elements", "intervals"])
    assert report.require().passed
