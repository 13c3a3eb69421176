"""The checks of spacings: built-in spacings pass them, and each catches a planted fault."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lanes import mostly_slow

import sdesamplers as sds
from sdesamplers.testing import KITS, check_spacing

FAULTS: dict[str, tuple[str, sds.Spacing]] = {}


def fault(check: str, **declared: Any) -> Any:
    """Register a faulty spacing with the check that must catch it."""

    def mark(function: Any) -> Any:
        function.__doc__ = function.__doc__ or "A spacing with a fault."
        declared.setdefault("reference", "none")
        FAULTS[function.__name__] = check, sds.spacing(function.__name__.replace("_", "-"), **declared)(function)
        return function

    return mark


def even(span: sds.Span, count: int) -> np.ndarray:
    return np.linspace(span.start, span.end, count)


@fault("declaration", reference="")
def without_reference(span, count):
    return even(span, count)


@fault("size")
def one_time_too_many(span, count):
    return even(span, count + 1)


@fault("size")
def undefined_with_one_point(span, count):
    i = np.arange(count)
    return span.start + np.divide(i, count - 1) * (span.end - span.start)  # 0 / 0 with one point


@fault("falling")
def from_data_to_noise(span, count):
    return even(span, count)[::-1]


@fault("falling")
def rounded_to_tenths(span, count):
    return np.round(even(span, count), 1)


@fault("range", reaches="end")
def from_zero_to_a_thousand(span, count):
    return np.linspace(1000.0, span.end, count)


@fault("ends")
def last_point_left_out(span, count):
    return even(span, count + 1)[:-1]


@fault("ends", reaches="start")
def reaches_more_than_it_declares(span, count):
    return even(span, count)


@fault("start times")
def start_ignored(span, count):
    return np.linspace(span.process.t_max, span.end, count)


@fault("repeatable")
def random_points(span, count):
    inside = np.sort(np.random.uniform(span.end, span.start, max(count - 2, 0)))[::-1]
    return np.concatenate([[span.start], inside, [span.end]])[:count]


KEPT: dict[Any, np.ndarray] = {}


@fault("repeatable")
def array_of_its_own(span, count):
    return KEPT.setdefault((type(span.process), span.start, span.ends_clean, count), even(span, count))


@fault("refined")
def half_in_one_step(span, count):
    if count < 3:
        return even(span, count)
    middle = float(span.gaussian.time_at_ratio(0.3))
    return np.append(np.linspace(span.start, float(span.gaussian.time_at_ratio(3.0)), count - 1), middle * 0 + span.end)


@fault("options")
def idle_option(span, count, *, rho: float = 7.0):
    """rho does nothing."""
    return even(span, count)


@fault("sampled")
def raises_from_two_points_on(span, count):
    if span.ends_clean and count == 5:
        raise KeyError("five")
    return even(span, count)


@pytest.mark.parametrize("name", FAULTS)
def test_the_kit_catches_a_planted_fault(name: str) -> None:
    check, spec = FAULTS[name]
    (finding,) = check_spacing(spec, checks=[check])
    assert finding.verdict == "fail", finding
    assert finding.required != "a run that does not raise", finding


def test_every_check_has_a_fault_that_it_catches() -> None:
    assert {check for check, _ in FAULTS.values()} == set(KITS["spacing"])


@pytest.mark.parametrize("name", mostly_slow(sorted(sds.spacings()), keep=["karras", "leading", "even", "ays-sd1"]))
def test_built_in_spacings_pass(name: str) -> None:
    check_spacing(name).require()


def test_a_spacing_that_never_returns_a_grid_is_reported_once() -> None:
    @sds.spacing("never", reference="none")
    def never(span, count):
        """Raises."""
        return {}["grid"]

    findings = list(check_spacing(never, checks=["size", "ends"]))
    assert findings[0].measured == f"KeyError: 'grid' (test_spacing_checks.py, line {line_of(never)})"
    assert [finding.verdict for finding in findings] == ["fail", "skip"]


def line_of(spec: sds.Spacing) -> int:
    """The last line of a function of three lines with a decorator."""
    return spec.function.__code__.co_firstlineno + 3


def test_options_and_checks_are_known() -> None:
    assert check_spacing("karras", options={"rho": 3.0}, checks=["options"]).findings[0].measured == "1 of 1 do"
    with pytest.raises(sds.UsageError, match="has no option 'rhoo'; did you mean 'rho'"):
        check_spacing("karras", options={"rhoo": 3.0})
    with pytest.raises(sds.UnknownNameError, match="unknown check of a spacing 'end'"):
        check_spacing("karras", checks=["end"])
