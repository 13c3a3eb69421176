"""Rules for continuous integration: their grammar, when a cell is worse, and what JUnit readers see."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sdesamplers as sds
from sdesamplers.comparison.cell import Cell
from sdesamplers.comparison.rules import Rule, folded, junit, remarks

ERRORS = np.random.default_rng(0).gamma(4.0, 0.025, 16)


def cell(sampler: str = "ddim", factor: float = 1.0, errors: Any = ERRORS, **words: Any) -> Cell:
    """A cell with the errors of 16 samples, times a factor."""
    values = [] if errors is None else [float(value) for value in np.asarray(errors) * factor]
    rms = None if errors is None else float(np.sqrt(np.square(values).mean()))
    return Cell(sampler, 8, nfe=8, error=rms, errors=values or None, model="net", **words)


def comparison(*cells: Cell, **words: Any) -> sds.Comparison:
    given = {"model_name": "net", "num_samples": 16, "seed": 0, "samples": {}, "reference_count": 16, **words}
    return sds.Comparison(cells=list(cells), **given)


def outcomes(new: sds.Comparison, rule: str, old: sds.Comparison | None = None) -> dict[str, str]:
    return {check.sampler: check.outcome for check in new.check(rule, baseline=old)}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("error>1.1x", Rule("error", ">", 1.1, True)),
        (" frechet >= .5 ", Rule("frechet", ">=", 0.5, False)),
        ("clip<0.9x", Rule("clip", "<", 0.9, True)),
        ("seconds<=1e3", Rule("seconds", "<=", 1000.0, False)),
        ("sliced-wasserstein>2 x", Rule("sliced_wasserstein", ">", 2.0, True)),
    ],
)
def test_rules(text: str, rule: Rule) -> None:
    assert Rule.parse(text) == rule
    assert Rule.parse(str(rule)) == rule


@pytest.mark.parametrize(
    "text", ["", "error", "error>", ">1", "error=1", "error>1.1.1", "error>-1", "error>1xx", "error>nan", "a b>1",
             "1>1", "error>1.1x and frechet>2", "__import__('os')>1", "error>1y", None]
)  # fmt: skip
def test_other_texts_are_no_rules(text: Any) -> None:
    with pytest.raises(sds.UsageError, match="a rule is METRIC OP NUMBER"):
        Rule.parse(text)


@given(st.text(max_size=20))
def test_any_text_is_a_rule_or_refused(text: str) -> None:
    try:
        assert Rule.parse(text).operation in (">", ">=", "<", "<=")
    except sds.UsageError:
        pass


def test_absent_cells_are_one_line_in_either_direction() -> None:
    few = comparison(cell(), replace(cell(), budget=16))
    samplers = ["ddim", "heun", "a", "b", "c", "d"]
    many = comparison(*(replace(cell(name), budget=budget) for name in samplers for budget in (8, 16)))
    checks = few.check("error>1.1x", "nfe>2x", baseline=many)
    absent = [line for line in folded(checks) if "not in this comparison" in line]
    assert absent == [
        "failed error>1.1x, nfe>2x: 10 cells: in the baseline, but not in this comparison: "
        "heun at 8, 16; a at 8, 16; b at 8, 16; c at 8, 16; and 1 more setting"
    ]
    assert sum(check.outcome == "failed" for check in checks) == 20  # the cells are counted, and are all in the XML
    assert junit(checks).count("not in this comparison") == 20
    new = folded(many.check("error>1.1x", baseline=few))
    assert [line.partition(": not in")[0] for line in new] == ["skipped error>1.1x: 10 cells"]
    models = comparison(cell("heun"), replace(cell("heun"), guidance_scale=2.0))
    (line,) = folded(models.check("error>1.1x", baseline=few))[:1]
    assert line.endswith("not in the baseline: net, heun at 8; net, guidance 2, heun at 8")


def test_a_single_check_and_different_reasons_are_not_folded() -> None:
    old = comparison(cell(), cell("heun"))
    lines = folded(comparison(cell(factor=3.0), cell("heun", factor=2.0)).check("error>1.1x", baseline=old))
    assert [line.split(":")[0] for line in lines] == ["failed error>1.1x"] * 2
    assert folded(old.check("error>1.1x", baseline=old)) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("rule", ["frechet>2", "frechet>1.1x"])
def test_a_value_that_is_no_number_fails(value: float, rule: str) -> None:
    new, old = (comparison(cell(frechet=each)) for each in (value, 1.0))
    assert outcomes(new, rule, old) == {"ddim": "failed"}
    assert outcomes(old, rule, old) == {"ddim": "passed"}


def test_negative_baselines_have_no_multiples() -> None:
    old = comparison(cell(metrics={"score": -5.0}))
    with pytest.raises(sds.UsageError, match="negative score -5 at ddim"):
        old.check("score<0.9x", baseline=old)
    assert outcomes(old, "score<-0.0".replace("-", "")) == {"ddim": "failed"}


def test_cells_that_cannot_be_run_fail_without_any_value() -> None:
    assert outcomes(comparison(cell(errors=None, problem="no gradient")), "error>0.5") == {"ddim": "failed"}
    with pytest.raises(sds.UnknownNameError, match="metric 'frechet'"):
        comparison(cell()).check("frechet>0.5")  # a gate that would never close
    assert outcomes(comparison(cell(steps=8)), "steps>7") == {"ddim": "failed"}


def test_a_cell_fails_when_it_is_worse_on_the_same_samples() -> None:
    """A factor of 1.2 on each sample is certain, although the errors of single samples vary by half."""
    old, new = comparison(cell()), comparison(cell(factor=1.2))
    assert outcomes(new, "error>1.1x", old) == {"ddim": "failed"}
    assert outcomes(new, "error>1.3x", old) == {"ddim": "passed"}
    assert outcomes(old, "error>1.0x", old) == {"ddim": "passed"}
    assert outcomes(old, "error>=1x", old) == {"ddim": "failed"}
    (check,) = new.check("error>1.1x", baseline=old)
    assert "(1.2x), interval [1.2x, 1.2x]" in check.message
    assert outcomes(comparison(cell(factor=0.5)), "error<0.9x", old) == {"ddim": "failed"}


def test_a_difference_within_the_interval_does_not_fail() -> None:
    """One sample of 16 went to another mode: the error is larger, but 16 samples do not tell if it is."""
    flipped = ERRORS.copy()
    flipped[3] = 0.45
    new, old = comparison(cell(errors=flipped)), comparison(cell())
    ratio = np.sqrt(np.square(flipped).mean() / np.square(ERRORS).mean())
    assert ratio > 1.2
    assert outcomes(new, "error>1.05x", old) == {"ddim": "uncertain"}


def test_numbers_without_intervals_are_compared_as_they_are() -> None:
    new, old = comparison(cell(frechet=2.0)), comparison(cell(frechet=1.7))
    assert outcomes(new, "frechet>1.1x", old) == {"ddim": "failed"}
    assert outcomes(new, "frechet>1.9") == {"ddim": "failed"}
    assert outcomes(new, "frechet>2.1") == {"ddim": "passed"}
    known = comparison(cell(frechet=2.0, frechet_error=0.2))
    assert outcomes(known, "frechet>1.9") == {"ddim": "uncertain"}
    assert outcomes(known, "frechet>1.5") == {"ddim": "failed"}


def test_what_is_missing_is_not_ignored() -> None:
    old = comparison(cell("ddim"), cell("heun"), cell("euler"), cell("ddpm", errors=None), cell("rk45", errors=None))
    broken = Cell("heun", 8, problem="the run diverged", model="net")
    stochastic = replace(cell("rk45", errors=None), drew_noise=True)
    new = comparison(cell("ddim"), broken, cell("new"), cell("ddpm", errors=None), stochastic)
    checks = {check.sampler: check for check in new.check("error>1.1x", baseline=old)}
    assert {name: check.outcome for name, check in checks.items()} == {
        "ddim": "passed", "heun": "failed", "new": "skipped", "ddpm": "skipped", "rk45": "skipped", "euler": "failed"
    }  # fmt: skip
    assert checks["heun"].message == "the run diverged"
    assert "in the baseline, but not in this comparison" in checks["euler"].message
    assert "not in the baseline" in checks["new"].message
    assert outcomes(new, "error>1") == {"ddim": "passed", "heun": "failed", "new": "passed", "ddpm": "skipped",
                                        "rk45": "skipped"}  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "old", "message"),
    [
        ("error>1.1x", None, "relative to a baseline, and there is none"),
        ("eror>1", None, "unknown metric 'eror'; did you mean 'error'"),
        ("clip>1", None, "unknown metric 'clip'"),
        ("error>1.1x", comparison(cell(), seed=1), "the baseline has seed=1 and this comparison 0"),
        ("error>1.1x", comparison(cell(), num_samples=99), "the baseline has num_samples=99"),
        ("error>1.1x", comparison(cell(), repeats=3), "the baseline has repeats=3"),
        ("error>1.1x", comparison(cell(), model_name="other"), "the baseline is of other, and this comparison of net"),
        ("error>1.1x", comparison(cell(), reference_count=8), "the errors of 8 samples"),
        ("error>1.1x", comparison(cell(), facts={"condition": 3}), "another condition"),
        (
            "frechet>1.1x",
            comparison(cell(frechet=1.0), metrics="FID"),
            "other distances (FID) than this one (features)",
        ),
    ],
)
def test_baselines_that_do_not_fit_are_refused(rule: str, old: sds.Comparison | None, message: str) -> None:
    with pytest.raises(sds.UsageError) as refused:
        comparison(cell(), metrics="features").check(rule, baseline=old)
    assert message in str(refused.value)


def test_other_weights_are_reported() -> None:
    old, new = (comparison(cell(), facts={"model": {"weights_sha256": each}}) for each in ("a", "b"))
    assert remarks(new, old) == ["net has other weights than in the baseline"]
    assert remarks(new, new) == []


def test_junit_is_read_by_other_programs() -> None:
    strange = "a<b>&\"c'\x00\x1b[31m\ud800\ufffe\u202e]]>"
    new = comparison(cell(strange, factor=2.0), cell("heun"), Cell("x", 8, problem=strange, model="net"))
    old = comparison(cell(strange), cell("heun"), cell("gone"))
    text = junit([*new.check("error>1.1x", "error>0.001", baseline=old)])
    root = ElementTree.fromstring(text.encode())
    first, second = root.findall("testsuite")
    assert first.attrib == {"name": "error>1.1x", "tests": "4", "errors": "0", "failures": "2", "skipped": "1"}
    assert second.attrib["failures"] == "3"
    case = first.findall("testcase")[0]
    assert case.attrib["classname"] == "net"
    assert case.attrib["name"].startswith("a<b>&\"c'\\x00\\x1b[31m")
    failure = case.find("failure")
    assert failure is not None
    assert "(2x)" in failure.attrib["message"]
    assert len(root.findall(".//failure")) == 5
    assert len(root.findall(".//skipped")) == 1
