"""A search that Ctrl-C or `minutes` ends early keeps its best, and later calls complete it."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from solver_tables import BRIEF, mixture

import sdesamplers as sds
from sdesamplers.sampling.table import read_table
from sdesamplers.tuning import search as search_module
from sdesamplers.tuning.search import Candidate, Search
from sdesamplers.tuning.tuner import CHOOSE, Tuner

pytestmark = pytest.mark.filterwarnings("ignore:the teacher, :sdesamplers.AccuracyWarning")


class Stop:
    """Raises KeyboardInterrupt at one of the calls."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self, message: str) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt


def test_an_interrupted_search_keeps_its_best_and_the_same_call_completes_it(tmp_path):
    arguments: dict[str, Any] = {"starts": 12, "trials": 6, "teacher_nfe": 24}
    whole = sds.tune(mixture(), [3, 4], **arguments)
    stopped = sds.tune(mixture(), [3, 4], **arguments, out=tmp_path, advance=Stop(8))
    assert stopped.interrupted
    assert stopped.tables[3] == whole.tables[3]
    assert read_table(tmp_path / "nfe-4.json").facts["interrupted"]
    calls = Stop(-1)
    completed = sds.tune(mixture(), [3, 4], **arguments, out=tmp_path, advance=calls)
    assert calls.calls == 6  # the table for 3 evaluations was there
    assert completed.tables == whole.tables
    assert not completed.interrupted
    assert read_table(tmp_path / "nfe-4.json") == whole.tables[4]


def test_an_interruption_before_the_first_trial_is_passed_on(monkeypatch):
    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Search, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sds.tune(mixture(), 3, starts=4, trials=2, teacher_nfe=16)


def test_minutes_end_the_search_after_a_trial():
    tuning = sds.tune(mixture(), 3, starts=4, trials=1000, teacher_nfe=16, minutes=0)
    assert tuning.interrupted
    assert tuning.tables[3].nfe == 3


def test_an_interruption_after_the_first_table_keeps_it(monkeypatch):
    fixed, calls = Tuner.fixed, list[int]()

    def interrupted(self: Tuner, nfe: int) -> Any:
        calls.append(nfe)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fixed(self, nfe)

    monkeypatch.setattr(Tuner, "fixed", interrupted)
    tuning = sds.tune(mixture(), [3, 4], **BRIEF)
    assert tuning.interrupted
    assert list(tuning.tables) == [3]


def choice_of(arguments: dict[str, Any]) -> Tuner:
    """What judges the tables of a call, with its starts for the choice."""
    common = {name: arguments[name] for name in ("starts", "teacher_nfe")}
    return Tuner(mixture(), seed=0, condition=None, guidance_scale=1.0, batch_size=None, teacher="quality", **common)


LONG: dict[str, Any] = {"starts": 24, "trials": 30, "teacher_nfe": 32}


def test_a_shorter_search_does_not_replace_a_better_table(tmp_path: Path) -> None:
    file = tmp_path / "nfe-4.json"
    sds.tune(mixture(), 4, **LONG, out=tmp_path, advance=Stop(25))
    before = read_table(file)
    alone = sds.tune(mixture(), 4, **LONG, advance=Stop(2)).tables[4]
    tuner = choice_of(LONG)
    scores = [tuner.score_on(CHOOSE, table) for table in (before, alone)]
    assert scores[0] < scores[1]  # so that the shorter search by itself would have been a loss
    again = sds.tune(mixture(), 4, **LONG, out=tmp_path, advance=Stop(2))
    assert again.interrupted
    assert again.tables[4] == before == read_table(file)
    assert 20 < read_table(file).facts["trials_done"] == before.facts["trials_done"] <= 25
    assert read_table(file).facts["errors"] == before.facts["errors"]
    assert not (tmp_path / "former").exists()


@pytest.mark.parametrize(("first", "second"), [(25, 2), (9, 25)])
def test_a_second_interruption_does_not_replace_a_measured_table(
    first: int, second: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A longer search may have overfitted, and without the choice nobody knows."""
    sds.tune(mixture(), 4, **LONG, out=tmp_path, advance=Stop(first))
    before = read_table(tmp_path / "nfe-4.json")
    Interrupted(monkeypatch, "chosen")
    again = sds.tune(mixture(), 4, **LONG, out=tmp_path, advance=Stop(second))
    after = read_table(tmp_path / "nfe-4.json")
    assert again.interrupted
    assert after == before
    kept = ("errors", "returned", "base")
    assert {key: after.facts[key] for key in kept} == {key: before.facts[key] for key in kept}
    assert min(max(first, second), 20) <= after.facts["trials_done"]  # the longer search is what is continued


def test_an_interruption_of_the_message_about_it_keeps_the_table(tmp_path: Path) -> None:
    def stop(text: str) -> None:
        if "trial 2/" in text or "stopped" in text:
            raise KeyboardInterrupt

    stopped = sds.tune(mixture(), 4, **LONG, out=tmp_path, advance=stop)
    assert stopped.interrupted
    assert read_table(tmp_path / "nfe-4.json").facts["trials_done"] == 2


def test_calls_with_minutes_complete_the_missing_tables_one_by_one(tmp_path):
    arguments: dict[str, Any] = {"starts": 4, "trials": 1000, "teacher_nfe": 16, "minutes": 0, "out": tmp_path}
    calls = [sds.tune(mixture(), [3, 4, 5], **arguments) for _ in range(4)]
    assert [list(call.tables) for call in calls] == [[3], [3, 4], [3, 4, 5], [3, 4, 5]]
    assert [{n: t.facts["trials_done"] for n, t in call.tables.items()} for call in calls[2:]] == [
        {3: 1, 4: 1, 5: 1},
        {3: 2, 4: 1, 5: 1},
    ]
    assert all(call.interrupted for call in calls)


class Clock:
    """Time that passes only when the search completes a part: an hour each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hours, self.tried, self.random = 0, list[np.ndarray](), list[int]()
        complete, judge, changed = Search.complete, search_module.judge, Candidate.changed

        def passing(search: Search, trials: float) -> None:
            complete(search, trials)
            self.hours += 1

        def noting(field: Any, teacher: Any, base: Any, candidate: Candidate) -> Any:
            angles = candidate.angles(field.angle)
            self.tried.append(np.array([*angles, *candidate.network_angles(angles, field.smallest)]))
            return judge(field, teacher, base, candidate)

        def drawing(candidate: Candidate, *arguments: Any) -> Candidate:
            self.random.append(len(self.tried))
            return changed(candidate, *arguments)

        monkeypatch.setattr(Search, "complete", passing)
        monkeypatch.setattr(search_module, "judge", noting)
        monkeypatch.setattr(Candidate, "changed", drawing)
        for module in ("tune", "tuner"):
            time = SimpleNamespace(monotonic=lambda: 3600.0 * self.hours)
            monkeypatch.setattr(f"sdesamplers.tuning.{module}.time", time)


def test_calls_with_minutes_go_through_the_same_candidates_as_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    arguments: dict[str, Any] = {"starts": 16, "trials": 40, "teacher_nfe": 16}
    sds.tune(mixture(), 4, **arguments)
    expected, same = [*clock.tried], clock.random[0]  # until the first random change
    assert same >= 9 + 8  # the grids of three settings with three bases, and a Gauss-Newton step in seven numbers
    clock.tried.clear()
    calls = 0
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "minutes was too short")
        while sds.tune(mixture(), 4, **arguments, minutes=30, out=tmp_path).interrupted:
            calls += 1
    assert calls > 12
    np.testing.assert_allclose(clock.tried[:same], expected[:same], rtol=1e-9)
    assert len(clock.tried) < 1.3 * len(expected)
    distinct = {tuple(angles.round(9)) for angles in clock.tried[9:]}
    assert len(distinct) > 0.9 * len(clock.tried[9:])  # the base of a step is that of the candidate before


def test_a_call_that_ends_within_a_step_is_warned_of(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"starts": 8, "trials": 30, "teacher_nfe": 16, "minutes": 0, "out": tmp_path}
    for trial in range(9):
        assert sds.tune(mixture(), 4, **arguments).tables[4].facts["trials_done"] == trial + 1
    for _ in range(2):
        with pytest.warns(sds.AccuracyWarning, match="too short for the next step of the search with 4 evaluations"):
            assert sds.tune(mixture(), 4, **arguments).tables[4].facts["trials_done"] == 9


SEARCHES: dict[str, Any] = {
    "missing": None,
    "a text": "x",
    "no angles": {"weights": []},
    "of another": {"angles": [1, 0]},
}


@pytest.mark.parametrize("kept", SEARCHES)
def test_a_search_whose_state_was_edited_begins_anew(kept: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"starts": 8, "trials": 3, "teacher_nfe": 16, "minutes": 0, "out": tmp_path}
    for _ in range(2):
        table = sds.tune(mixture(), 4, **arguments).tables[4]
    assert table.facts["trials_done"] == 2
    sds.SolverTable(table.angles, table.weights, table.network_angles, {**table.facts, "search": SEARCHES[kept]}).save(
        tmp_path
    )
    assert sds.tune(mixture(), 4, **arguments).tables[4].facts["trials_done"] in (1, 2)


def test_a_search_whose_result_is_a_fixed_setting_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed, score_on, settings = Tuner.fixed, Tuner.score_on, list[sds.SolverTable]()

    def noting(self: Tuner, nfe: int) -> Any:
        found = fixed(self, nfe)
        settings.extend(table for _, _, table in found)
        return found

    def scored(self: Tuner, first: int, table: sds.SolverTable) -> float:
        return float("inf") if first == CHOOSE and table not in settings else score_on(self, first, table)

    monkeypatch.setattr(Tuner, "fixed", noting)
    monkeypatch.setattr(Tuner, "score_on", scored)
    arguments: dict[str, Any] = {"starts": 8, "trials": 3, "teacher_nfe": 16, "minutes": 0, "out": tmp_path}
    calls = [sds.tune(mixture(), 4, **arguments) for _ in range(3)]
    assert [call.tables[4].facts.get("trials_done") for call in calls] == [1, 2, None]
    assert all(call.tables[4].facts["returned"].startswith("fixed: ") for call in calls)


def test_minutes_that_are_too_short_for_a_step_are_warned_of(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {**BRIEF, "method": "joint", "iterations": 2, "minutes": 0, "out": tmp_path}
    for done in (1, 2):
        assert sds.tune(mixture(), 3, **arguments).tables[3].facts["trials_done"] == done
    reason = "minutes was too short for one iteration of method='joint' with 3 evaluations, which the next call will"
    for _ in range(2):
        with pytest.warns(sds.AccuracyWarning, match=reason):
            stopped = sds.tune(mixture(), 3, **arguments)
        assert stopped.tables[3].facts["trials_done"] == BRIEF["trials"] == 2
    assert not sds.tune(mixture(), 3, **{**arguments, "minutes": 60}).interrupted


def test_adams_iterations_begin_anew(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {**BRIEF, "method": "gradient", "iterations": 3, "minutes": 60, "out": tmp_path}

    def stop(text: str) -> None:
        if "iteration 2" in text:
            raise KeyboardInterrupt

    assert sds.tune(mixture(), 3, **arguments, advance=stop).tables[3].facts["trials_done"] == BRIEF["trials"]
    messages = list[str]()
    assert not sds.tune(mixture(), 3, **arguments, advance=messages.append).interrupted
    assert [text.split(": ")[0] for text in messages] == [f"3 evaluations, iteration {k}/3" for k in (1, 2, 3)]


class Interrupted:
    """A method of `Tuner` that is interrupted at its first calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, times: int = 1) -> None:
        self.calls, method = 0, getattr(Tuner, name)

        def interrupted(tuner: Tuner, *arguments: Any) -> Any:
            self.calls += 1
            if self.calls <= times:
                raise KeyboardInterrupt
            return method(tuner, *arguments)

        monkeypatch.setattr(Tuner, name, interrupted)


def test_an_interruption_of_the_choice_keeps_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sds.tune(mixture(), 4, **BRIEF).tables[4]
    Interrupted(monkeypatch, "chosen")
    stopped = sds.tune(mixture(), [4, 5], **BRIEF, out=tmp_path)
    assert stopped.interrupted
    assert list(stopped.tables) == [4]
    assert read_table(tmp_path / "nfe-4.json") == whole == stopped.tables[4]
    assert stopped.tables[4].facts["errors"] == whole.facts["errors"]
    assert "interrupted" not in stopped.tables[4].facts  # its search was complete
    messages = list[str]()
    assert not sds.tune(mixture(), 4, **BRIEF, out=tmp_path, advance=messages.append).interrupted
    assert not messages


def test_a_second_interruption_keeps_the_table_without_its_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Interrupted(monkeypatch, "chosen", times=2)
    stopped = sds.tune(mixture(), 4, **BRIEF, out=tmp_path)
    table = read_table(tmp_path / "nfe-4.json")
    assert stopped.interrupted
    assert "errors" not in table.facts
    assert sds.sample(mixture(), table, num_samples=2).samples.isfinite().all()
    assert stopped.report()[1][0] == ["4", "tuned", "-", "-"]
    assert stopped.rows()[0]["rms"] is None
    completed = sds.tune(mixture(), 4, **BRIEF, out=tmp_path)
    assert not completed.interrupted
    assert completed.tables[4].facts["errors"]["rms"] > 0
    assert not (tmp_path / "former").exists()


def test_calls_with_minutes_continue_a_search_until_it_is_completed(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"starts": 8, "trials": 3, "teacher_nfe": 16, "minutes": 0, "out": tmp_path}
    calls, messages = [], list[str]()
    for _ in range(5):
        calls.append(sds.tune(mixture(), [3, 4], **arguments, advance=messages.append))
    done = [{nfe: table.facts.get("trials_done") for nfe, table in call.tables.items()} for call in calls]
    # The last trial of each ends its search.
    assert done == [{3: 1}, {3: 1, 4: 1}, {3: 2, 4: 1}, {3: 2, 4: 2}, {3: None, 4: None}]
    assert [call.interrupted for call in calls] == [True] * 4 + [False]
    trials = [f"{nfe} evaluations, trial {trial}/3" for trial in (1, 2, 3) for nfe in (3, 4)]
    assert [text.split(": ")[0] for text in messages] == trials
    last = calls[-1]
    tuner = choice_of(arguments)
    scores = [tuner.score_on(CHOOSE, call.tables[3]) for call in (calls[0], calls[2], last)]
    assert scores == sorted(scores, reverse=True)
    assert sds.tune(mixture(), [3, 4], **arguments, advance=Stop(1)).tables == last.tables


def test_the_whole_tables_are_in_the_result_of_a_call_that_is_stopped(tmp_path: Path) -> None:
    whole = sds.tune(mixture(), [4, 5], **BRIEF, out=tmp_path)
    stopped = sds.tune(mixture(), [3, 4, 5], **BRIEF, out=tmp_path, advance=Stop(1))
    assert stopped.interrupted
    assert list(stopped.tables) == [3, 4, 5]
    assert stopped.tables[3].facts["trials_done"] == 1
    assert {nfe: stopped.tables[nfe] for nfe in (4, 5)} == whole.tables


def test_continued_iterations_are_those_that_are_left(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {**BRIEF, "method": "joint", "iterations": 2, "minutes": 60, "out": tmp_path}

    def stop(text: str) -> None:
        if "iteration 2/" in text:
            raise KeyboardInterrupt

    first = sds.tune(mixture(), 3, **arguments, advance=stop).tables[3]
    assert first.facts["trials_done"] == BRIEF["trials"] + 1
    messages = list[str]()
    assert not sds.tune(mixture(), 3, **arguments, advance=messages.append).interrupted
    assert {text.split(": ")[0] for text in messages} == {"3 evaluations, iteration 2/2"}


def test_the_command_line_names_the_tables_that_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sdesamplers.cli import main

    source = tmp_path / "own.py"
    source.write_text("from solver_tables import mixture\nmodel = mixture()\n")
    words = ["--nfe", "3,4,5", "--starts", "4", "--trials", "9", "--teacher-nfe", "16", "--minutes", "0"]
    with pytest.raises(SystemExit) as end:
        main(["tune", f"{source}:model", *words, "--out", str(tmp_path / "tables")])
    assert not end.value.code
    printed = " ".join(capsys.readouterr().out.split())
    assert "with none yet for 4, 5 evaluations; repeat the command to complete them" in printed
    with pytest.raises(SystemExit):
        main(["tune", f"{source}:model", *words, "--out", str(tmp_path / "tables")])
    printed = " ".join(capsys.readouterr().out.split())
    assert "with none yet for 5 evaluations; repeat" in printed  # that for 3 is in the folder


@pytest.mark.parametrize("category", [sds.AccuracyWarning, sds.OutputWarning])
def test_warnings_that_are_errors_do_not_lose_the_table(category: type[Warning], tmp_path: Path) -> None:
    arguments: dict[str, Any] = {**BRIEF, "teacher_nfe": 6, "out": tmp_path}
    sds.tune(mixture(), 4, **arguments, seed=5)
    first = read_table(tmp_path / "nfe-4.json")
    with warnings.catch_warnings():
        warnings.simplefilter("error", category)
        with pytest.raises(category, match=r"it is now|has itself a median error"):
            sds.tune(mixture(), 4, **arguments)
    assert read_table(tmp_path / "nfe-4.json").facts["seed"] == 0
    assert [read_table(file) for file in (tmp_path / "former").iterdir()] == [first]


def test_a_place_for_the_former_table_that_cannot_be_made_is_refused_before_the_search(tmp_path: Path) -> None:
    sds.tune(mixture(), 4, **BRIEF, out=tmp_path)
    (tmp_path / "former").write_text("a file")
    messages = list[str]()
    with pytest.raises(sds.UsageError, match="former"):
        sds.tune(mixture(), [3, 4], **BRIEF, seed=5, out=tmp_path, advance=messages.append)
    assert not messages


def test_an_error_at_a_later_number_of_evaluations_does_not_lose_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = Tuner.fixed

    def failing(self: Tuner, nfe: int) -> Any:
        if nfe == 4:
            raise sds.UsageError("no fixed sampler runs")
        return fixed(self, nfe)

    monkeypatch.setattr(Tuner, "fixed", failing)
    with pytest.warns(sds.OutputWarning, match="there is no table for 4 evaluations: no fixed sampler runs"):
        tuning = sds.tune(mixture(), [3, 4, 5], **BRIEF)
    assert list(tuning.tables) == [3, 5]
    with pytest.raises(sds.UsageError, match="no fixed sampler runs"):
        sds.tune(mixture(), [3, 4], **BRIEF, out=tmp_path)
    assert read_table(tmp_path / "nfe-3.json") == tuning.tables[3]
    with pytest.raises(sds.UsageError, match="no fixed sampler runs"):
        sds.tune(mixture(), 4, **BRIEF)
