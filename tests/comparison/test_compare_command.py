"""`sdesamplers compare`: what it prints as it runs, how it resumes, and how it judges."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest

from sdesamplers.cli import main
from sdesamplers.comparison import comparison, runs

MODEL = """
import sdesamplers as sds
model = sds.grid_mixture(sds.VP())
other = sds.FunctionModel(lambda x, t: 0.5 * x, sds.VP(), "epsilon", (2,), name="halves")
"""
FEW = ("--nfe", "3,5", "-n", "4", "--reference-samples", "2")


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command in a folder with a model."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(MODEL)

    def run_main(*words: str, command: str = "compare") -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([command, *words])
        written = capsys.readouterr()
        return Ran(int(caught.value.code or 0), written.out, written.err)

    return run_main


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    sample = runs.sample
    monkeypatch.setattr(runs, "sample", lambda m, s, **w: (found.append((str(s), w.get("nfe"))), sample(m, s, **w))[1])
    return found


def test_lines_appear_as_cells_finish(run: Any) -> None:
    ran = run("net.py:model", "--samplers", "ddim,heun spacing=karras", "--samplers", "ddpm", *FEW)
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0].split() == ["sampler", "NFE", "steps", "seconds", "ODE", "error", "Fréchet", "sliced", "W2"]
    starts = [line.split()[0:2] for line in lines[1:7]]
    assert starts == [["ddim", "3"], ["ddim", "5"], ["heun", "spacing=karras"], ["heun", "spacing=karras"],
                      ["ddpm", "3"], ["ddpm", "5"]]  # fmt: skip
    assert len({line.index("±") for line in lines[1:3]}) <= 2
    assert any(line.startswith("ODE error: RMS difference from rk45") for line in lines)
    assert [line.strip() for line in lines[-3:]] == ["out/compare.png", "out/compare.json", "out/compare.csv"]


def test_json_is_one_document(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--samplers", "ddim,heun", *FEW, "--json", "--recommend", "5", "--fail-if", "nfe>100")
    ran = run("net.py:model", "net.py:other", *words, "--repeats", "2")
    assert ran.code == 0, ran.err
    data = json.loads(ran.out)
    assert [group["model_name"] for group in data["groups"]] == ["mixture", "halves"]
    assert len(data["cells"]) == 8
    assert [each["model"] for each in data["recommended"]] == ["mixture", "halves"]
    assert {check["outcome"] for check in data["checks"]} == {"passed"}
    stored = json.loads(Path("out/compare.json").read_text())
    assert stored["cells"] == data["cells"]


def test_an_interrupted_command_continues(run: Any, made: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("net.py:model", "--samplers", "ddim,heun,euler", *FEW, "--out", "night")
    held = comparison.Contest.cell

    def stop(self: Any, setting: Any, budget: int, found: Any) -> Any:
        if (setting.label, budget) == ("heun", 5):
            raise KeyboardInterrupt
        return held(self, setting, budget, found)

    monkeypatch.setattr(comparison.Contest, "cell", stop)
    ran = run(*words)
    assert ran.code == 1
    assert [line for line in ran.err.splitlines() if line][-2:] == [
        f"the finished runs are kept in {Path('night/.cells')}; the same command continues", "error: stopped"
    ]  # fmt: skip
    assert ran.out.count("ddim") == 2
    monkeypatch.setattr(comparison.Contest, "cell", held)
    made.clear()
    assert run(*words).code == 0
    assert made == [("euler", 3), ("euler", 5)]
    made.clear()
    assert run(*words[:-2], "--out", "night", "--fresh").code == 0
    assert len(made) == 7


def test_a_baseline(run: Any) -> None:
    words = ("net.py:model", "--samplers", "ddim,heun", *FEW, "-n", "16", "--reference-samples", "16", "--quiet")
    assert run(*words, "--out", "old").code == 0
    same = run(*words, "--out", "new", "--baseline", "old", "--fail-if", "error>1.01x", "--junit", "junit.xml")
    assert (same.code, same.out.splitlines()[-1]) == (0, "4 passed")
    data = json.loads(Path("old/compare.json").read_text())
    for cell in data["cells"][:1]:
        cell["errors"] = [error / 2 for error in cell["errors"]]
        cell["error"] /= 2
    data["cells"][2]["sampler"] = "gone"
    Path("old/compare.json").write_text(json.dumps(data))
    ran = run(
        *words, "--out", "new", "--baseline", "old/compare.json", "--fail-if", "error>1.1x", "--junit", "junit.xml"
    )
    assert ran.code == 1
    assert "failed error>1.1x: mixture, ddim, 3 evaluations: error" in ran.out
    assert ran.out.splitlines()[-1] == "2 passed, 2 failed, 1 skipped"
    suite = ElementTree.parse("junit.xml").getroot().find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("5", "2", "1")
    assert (Path("new/compare.json")).exists()  # the finished work is there, whatever the outcome


def test_results_are_printed_before_a_refused_recommendation(run: Any) -> None:
    ran = run("net.py:model", "--samplers", "ddim", *FEW, "--recommend", "1")
    assert ran.code == 2
    assert "  out/compare.json" in ran.out
    assert ran.err.splitlines()[-1].startswith("error: no setting was compared at 1 evaluations or fewer")


def test_the_junit_file_may_lie_in_a_new_folder(run: Any) -> None:
    words = ("net.py:model", "--samplers", "ddim", *FEW, "--quiet", "--fail-if", "nfe>4")
    assert run(*words, "--junit", "reports/ci/compare.xml").code == 1
    assert ElementTree.parse("reports/ci/compare.xml").getroot().find("testsuite") is not None


def test_what_is_refused_before_a_run(run: Any, made: list[Any]) -> None:
    assert run("net.py:model", "--samplers", "ddim", *FEW, "--quiet", "--out", "old").code == 0
    made.clear()
    for words, part in (
        (("--fail-if", "error>1.1x"), "relative to a baseline; pass --baseline FILE"),
        (("--fail-if", "error!"), "a rule is METRIC OP NUMBER"),
        (("--fail-if", "eror>1"), "did you mean 'error'"),
        (("--baseline", "old"), "--baseline requires --fail-if"),
        (("--junit", "", "--fail-if", "error>1"), "--junit must be a file"),
        (("--junit", "x.xml"), "--junit requires --fail-if"),
        (("--baseline", "nowhere", "--fail-if", "error>1x"), "nowhere: No such file"),
        (("--baseline", "net.py", "--fail-if", "error>1x"), "net.py: not a JSON file"),
        (
            ("--baseline", "old", "--fail-if", "error>1x", "--seed", "3"),
            "the baseline has seed=0 and this comparison 3",
        ),
        (("--samplers", "ddim eta=x"), "option 'eta' must be float"),
        (("--samplers", "ddim steps=3"), "the number of evaluations is an argument of its own"),
        (("--samplers", "ddim,"), "unknown sampler ''"),
        (("--guidance-scale", "1,x"), "comma-separated"),
        (("--repeats", "0"), "repeats"),
    ):
        ran = run("net.py:model", *FEW, *words)
        assert (ran.code, ran.out) == (2, ""), words
        assert ran.err.count("\n") == 1
        assert part in ran.err
    assert made == []
    assert not Path("out").exists()


def test_a_growing_table_on_a_terminal(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    ran = run("net.py:model", "--samplers", "ddim,heun", *FEW)
    assert ran.code == 0, ran.err
    assert "mixture: 4 samples, seed 0" in ran.out
    final = ran.out[ran.out.index("mixture: 4 samples") :]
    assert final.count("ddim") == 1  # a repeated name is left out
    assert final.count("heun") == 1
