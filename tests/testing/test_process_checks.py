"""The checks of processes: built-in processes pass them, and each catches a planted fault."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from lanes import mostly_slow

import sdesamplers as sds
from sdesamplers.testing import KITS, check_sde
from sdesamplers.testing.case import processes


class Trigonometric(sds.GaussianProcess):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2); the faulty processes below each change one thing."""

    t_max, clean_time = 1.0, 0.0

    def alpha(self, t):
        return np.cos(np.pi / 2 * t)

    def sigma(self, t):
        return np.sin(np.pi / 2 * t)

    def d_alpha(self, t):
        return -np.pi / 2 * np.sin(np.pi / 2 * t)

    def d_sigma(self, t):
        return np.pi / 2 * np.cos(np.pi / 2 * t)

    def time_at_ratio(self, ratio):
        return 2 / np.pi * np.arctan(ratio)


class NoRange(Trigonometric):
    t_max = 0.0


class FloatsOnly(Trigonometric):
    def d_sigma(self, t):
        return 0.0 if t > 1 else np.pi / 2 * np.cos(np.pi / 2 * t)


class InfiniteInside(Trigonometric):
    def d_alpha(self, t):
        return np.where(np.abs(t - 0.5) < 0.01, np.inf, super().d_alpha(t))


class Backwards(Trigonometric):
    def sigma(self, t):
        return np.cos(np.pi / 2 * t)

    def alpha(self, t):
        return np.sin(np.pi / 2 * t)


class NotNoise(Trigonometric):
    t_max = 0.05


class WrongSlope(Trigonometric):
    def d_sigma(self, t):
        return np.cos(np.pi / 2 * t)  # without the inner derivative


class WrongInverse(Trigonometric):
    def time_at_ratio(self, ratio):
        return np.arctan(ratio)


class WrongSchedule(Trigonometric):
    def schedule(self, t):
        return self.alpha(t), self.sigma(t), self.d_sigma(t), self.d_alpha(t)


class HalfDrift(Trigonometric):
    def drift(self, x, t):
        return 0.5 * super().drift(x, t)


class DriftOfTheBatch(Trigonometric):
    def drift(self, x, t):
        return super().drift(x - x.mean(0, keepdim=True), t)


class Squared(Trigonometric):
    def diffusion(self, t):
        return np.square(super().diffusion(t))


class NoiseTwice(Trigonometric):
    def perturb(self, x0, t, noise):
        return super().perturb(x0, t, 2 * noise)


class DensityOfAnother(sds.Prior):
    def log_prob(self, x):
        return super().log_prob(0.5 * x)


class WrongPrior(Trigonometric):
    @property
    def prior(self):
        return DensityOfAnother(1.0)


class NotPicklable(Trigonometric):
    def __init__(self):
        self.function = lambda t: t


class Unregistered(Trigonometric):
    preferred_spacing = "kaaras"


FAULTS = [
    ("range", NoRange),
    ("arrays", FloatsOnly),
    ("values", InfiniteInside),
    ("direction", Backwards),
    ("ends", NotNoise),
    ("slopes", WrongSlope),
    ("inverse", WrongInverse),
    ("derived", WrongSchedule),
    ("drift", HalfDrift),
    ("drift", DriftOfTheBatch),
    ("diffusion", Squared),
    ("perturb", NoiseTwice),
    ("prior", WrongPrior),
    ("copies", NotPicklable),
    ("transport", WrongSlope),
    ("sampled", Unregistered),
]


@pytest.mark.parametrize(("check", "cls"), FAULTS, ids=lambda value: getattr(value, "__name__", value))
def test_the_kit_catches_a_planted_fault(check: str, cls: type[sds.GaussianProcess]) -> None:
    (finding,) = check_sde(cls(), checks=[check])
    assert finding.verdict == "fail", finding
    if check != "transport":  # a run on this process is refused at its start
        assert finding.required != "no error", finding


def test_every_check_has_a_fault_that_it_catches() -> None:
    assert {check for check, _ in FAULTS} == set(KITS["process"])


def test_the_process_without_a_fault_passes() -> None:
    assert pickle.loads(pickle.dumps(Trigonometric())).t_max == 1.0
    report = check_sde(Trigonometric()).require()
    assert {finding.verdict for finding in report} == {"pass"}


@pytest.mark.parametrize("name", mostly_slow(processes(), keep=["edm"]))
def test_built_in_processes_pass(name: str) -> None:
    check_sde(processes()[name]).require()


class Free(sds.SDE):
    """dx = -x dt + dw, without alpha and sigma."""

    prior = sds.Prior(1.0)

    def drift(self, x, t):
        return -x

    def diffusion(self, t):
        return np.ones_like(t, dtype=float)


class Exploding(Free):
    def diffusion(self, t):
        return -np.ones_like(t, dtype=float)

    def drift(self, x, t):
        return x - x.mean()


def test_of_an_sde_without_marginals_the_checks_that_apply_are_made() -> None:
    verdicts = {finding.check: finding.verdict for finding in check_sde(Free()).require()}
    assert {check for check, verdict in verdicts.items() if verdict == "pass"} == {
        "drift",
        "diffusion",
        "prior",
        "copies",
        "sampled",
    }
    failed = {finding.check for finding in check_sde(Exploding(), checks=["drift", "diffusion"]).failed}
    assert failed == {"drift", "diffusion"}


def test_a_process_of_a_plugin_is_checked_by_its_name() -> None:
    with pytest.raises(sds.UnknownNameError, match="unknown process 'nowhere'"):
        check_sde("nowhere")
