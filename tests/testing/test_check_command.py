"""`sdesamplers check`: names of all kinds, explanations, JUnit XML, badges; and pytest on any kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

import sdesamplers as sds
from sdesamplers.cli import cli
from sdesamplers.errors import SdesamplersError
from sdesamplers.testing import EXPLANATIONS, KITS, Finding, Report, check, explain
from sdesamplers.testing.lookup import find
from sdesamplers.testing.records import badge_json, badge_svg, junit_xml

FAULTY = '''
import numpy as np
import sdesamplers as sds


@sds.spacing("backwards", reference="none")
def backwards(span, count):
    """Runs from data to noise."""
    return np.linspace(span.end, span.start, count)


@sds.noise_source("none", reference="none")
def silent(source, shortest):
    """No noise at all."""
    return lambda start, end, rows=None: 0 * source.draw(source.PATH, 1, rows=rows)


def model():
    return sds.grid_mixture(sds.VP())
'''


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    file = tmp_path / "faulty_items.py"
    file.write_text(FAULTY)
    return file


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(cli, ["check", *map(str, arguments)])


def test_every_check_is_explained() -> None:
    assert {kind: list(texts) for kind, texts in EXPLANATIONS.items()} == {k: list(c) for k, c in KITS.items()}
    for kind, texts in EXPLANATIONS.items():
        for name, text in texts.items():
            assert text.meaning.endswith("."), (kind, name)
            assert text.look.endswith((".", "...")), (kind, name)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ddim", "sampler"),
        ("DPM++ 2M Karras", "sampler"),
        ("karras", "spacing"),
        ("brownian", "noise source"),
        pytest.param("fashion-mnist", "model", marks=pytest.mark.slow),
    ],
)
def test_a_name_of_any_kind_is_found(name: str, kind: str) -> None:
    assert find(name).kind == kind


def test_names_in_a_file_and_their_kinds(faulty: Path) -> None:
    kinds = {name: find(f"{faulty}:{name}").kind for name in ("backwards", "silent", "model")}
    assert kinds == {"backwards": "spacing", "silent": "noise source", "model": "model"}
    with pytest.raises(SdesamplersError, match="must return a SDE"):
        find(f"{faulty}:model", "process")


def test_an_unknown_name_gets_the_nearest_of_all_kinds() -> None:
    with pytest.raises(sds.UnknownNameError, match="unknown name 'brownain'; did you mean 'brownian'"):
        find("brownain")
    with pytest.raises(sds.UnknownNameError, match="unknown spacing 'karas'; did you mean 'karras'"):
        find("karas", "spacing")


def test_options_and_conditions_are_for_some_kinds() -> None:
    with pytest.raises(sds.UsageError, match="options are those of samplers, spacings and noise sources"):
        check("fashion-mnist", options={"eta": 1.0})
    with pytest.raises(sds.UsageError, match="a condition is for models, and 'ddim' is a sampler"):
        check("ddim", condition=3)


def test_explain_adds_what_failed_checks_mean(faulty: Path) -> None:
    done = run(f"{faulty}:backwards", "--check", "falling", "--check", "declaration", "--explain")
    text = " ".join(done.output.split())
    assert done.exit_code == 1
    assert "What the failed checks mean" in text
    assert "times[::-1]" in text
    done = run(f"{faulty}:backwards", "--check", "falling", "--explain", "--json")
    assert json.loads(done.stdout)[0]["findings"][0]["explanation"] == explain("spacing", "falling")


def test_explain_without_names_lists_checks() -> None:
    done = run("--explain", "--json")
    assert done.exit_code == 0
    assert set(json.loads(done.stdout)) == set(KITS)
    done = run("--explain", "--kind", "noise", "--check", "rekeyed")
    assert "source.version" in done.output
    assert "declaration" not in done.output
    assert run("--explain", "--check", "nothing").exit_code != 0
    assert "name what to check" in str(run().exception)


def test_junit_and_badges_are_written(faulty: Path, tmp_path: Path) -> None:
    junit, badge, drawn = tmp_path / "report.xml", tmp_path / "badge.json", tmp_path / "badge.svg"
    names = ("karras", f"{faulty}:silent")
    chosen = ("--check", "declaration", "--check", "options")
    done = run(*names, *chosen, "--junit", junit, "--badge", badge)
    assert done.exit_code == 0
    suites = ElementTree.parse(junit).getroot()
    assert [(suite.get("tests"), suite.get("failures"), suite.get("skipped")) for suite in suites] == [
        ("2", "0", "0"),
        ("2", "0", "1"),
    ]
    assert json.loads(badge.read_text())["message"] == "3 checks passed"
    done = run(f"{faulty}:silent", "--check", "moments", "--junit", junit, "--badge", drawn)
    assert done.exit_code == 1
    (failure,) = ElementTree.parse(junit).getroot().iter("failure")
    assert failure.text == explain("noise source", "moments")
    assert "variance" in failure.get("message", "")
    assert "1 of 1 check failed" in drawn.read_text()


def test_a_folder_that_does_not_exist_is_found_before_the_checks(tmp_path: Path) -> None:
    done = run("ddim", "--junit", tmp_path / "nowhere" / "report.xml")
    assert "there is no folder" in str(done.exception)
    assert not done.output


def test_text_of_plugins_is_escaped_in_xml_and_svg() -> None:
    finding = Finding("falling", 'a <b> & "c" \x1b[31m', "none", "fail")
    report = Report("x<y>\x07", (finding,), "spacing")
    (suite,) = ElementTree.fromstring(junit_xml([report]))
    assert suite.get("name") == "spacing x<y>\\x07"
    (failure,) = suite.iter("failure")
    assert failure.get("message") == 'measured a <b> & "c" \\x1b[31m; required none'
    assert ElementTree.fromstring(badge_svg([report])).get("aria-label") == "sdesamplers: 1 of 1 check failed"
    assert json.loads(badge_json([report]))["color"] == "red"


def test_pytest_checks_a_spacing(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--sdesamplers", "karras", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=len(KITS["spacing"]))
