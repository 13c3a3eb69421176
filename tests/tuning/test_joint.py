"""Steps in all numbers of a table at once, tables from which a search begins, and a teacher with settings."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from solver_tables import BRIEF, conditional, mixture
from tiny_models import save_pipeline

import sdesamplers as sds
from sdesamplers.cli import main
from sdesamplers.sampling.request import Request
from sdesamplers.sampling.table import read_table
from sdesamplers.tuning import tuner as tuner_module
from sdesamplers.tuning.field import Measured, continued
from sdesamplers.tuning.gauss_newton import ELEMENTS, GaussNewton, flat, normal_equations
from sdesamplers.tuning.joint import adjust, first_steps, numbers_of, with_numbers
from sdesamplers.tuning.search import Candidate, Judged
from sdesamplers.tuning.trace import table_of
from sdesamplers.tuning.tuner import CHOOSE, FIT, Tuner

WIDTHS = np.array([0.05, 0.2, 0.5, 0.9, 1.4, 2.0])


def tuner_of(model: sds.Model, starts: int) -> Tuner:
    return Tuner(model, starts, 0, None, 1.0, None, "quality", 64)


def judged(tuner: Tuner, nfe: int) -> Judged:
    """The table of `ab`, with its errors on the fitting starts."""
    table = table_of(tuner.model.gaussian, "ab", nfe=nfe, spacing="angle", final="zero")
    table = replace(table, network_angles=table.angles[:-1])
    measured = tuner.on(FIT)[1].measured(tuner.on(FIT)[0].run(Request(table))[0])
    return Judged(Candidate.of(table.angles, "ab"), table, measured)


def test_a_run_continued_from_any_step_is_the_samplers_own_run():
    tuner = tuner_of(mixture(), 8)
    field = tuner.on(FIT)[0]
    table = judged(tuner, 4).table
    numbers = numbers_of(table)
    states, velocities = continued(field, table, [field.start], [])
    for k, n in enumerate(first_steps(4)):
        moved = with_numbers(table, numbers + 0.1 * np.eye(len(numbers))[k], field.smallest)
        known = n if k < 6 else n + 1
        ends = continued(field, moved, states[: n + 1], velocities[:known])[0][-1]
        torch.testing.assert_close(ends, field.run(Request(moved))[0], rtol=1e-4, atol=1e-5)
        assert (ends - states[-1]).abs().max() > 1e-4, f"number {k} changes nothing"


def test_numbers_of_a_table_are_all_but_those_that_add_nothing():
    table = judged(tuner_of(mixture(), 8), 5).table
    assert len(numbers_of(table)) == len(first_steps(5)) == 4 + 4 + 5 * 8 // 2
    again = with_numbers(table, numbers_of(table), 1e-4)
    np.testing.assert_allclose(numbers_of(again), numbers_of(table), atol=1e-12)
    assert [row[1] for row in again.weights] == [row[1] for row in table.weights]


def test_angles_fall_whatever_the_change():
    table = judged(tuner_of(mixture(), 8), 3).table
    numbers = numbers_of(table)
    numbers[:2] = numbers[1], numbers[0]
    moved = with_numbers(table, numbers, 1e-4)
    assert moved.angles[0] == table.angles[0] > moved.angles[1] > moved.angles[2] > moved.angles[3] == 0


def test_the_moment_is_the_slope_of_the_score():
    """By autograd of log mean r^2 + mean log(r^2 + m), in which r^2 are the samples' mean squares."""
    draw = torch.Generator().manual_seed(0)
    residual, slopes = (torch.randn(*shape, dtype=torch.float64, generator=draw) for shape in ((7, 5), (3, 7, 5)))
    change = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    squares = (residual + torch.einsum("k,knd->nd", change, slopes)).square().mean(1)
    middle = residual.square().mean(1).median()
    loss = (squares.mean().log() / 2 + (squares + middle).log().mean() / 2) / 2
    slope = torch.autograd.grad(loss, change)[0]
    _, moment = normal_equations(residual, list(slopes))
    np.testing.assert_allclose(moment, slope.numpy(), rtol=1e-12)


def test_samples_of_many_elements_are_represented_by_the_same_choice_of_them():
    large = torch.arange(2.0 * 3 * 50 * 50).reshape(2, 3, 50, 50)
    one, other = flat(large), flat(large + 1)
    assert one.shape == (2, ELEMENTS)
    assert torch.equal(other, one + 1)
    assert len(set(one[0].tolist())) == ELEMENTS


def test_steps_stop_if_derivatives_are_not_finite():
    slopes = [torch.full((4, 3), math.nan, dtype=torch.float64)]
    equations = normal_equations(torch.ones(4, 3, dtype=torch.float64), slopes)
    assert GaussNewton().step(equations, np.ones(1), lambda change: True) == (False, 0)


def test_the_steps_reach_what_scipy_reaches():
    """SciPy minimises the mean square alone, so that by the score, which has the median too, its end is not better."""
    model = sds.GaussianModel(np.zeros(6), WIDTHS**2, sds.RectifiedFlow(), prediction="v", name="widths")
    tuner = tuner_of(model, 64)
    (field, teacher), first = tuner.on(FIT), judged(tuner, 3)
    *_, (_, best) = adjust(field, teacher, first, 30)

    def residual(numbers: np.ndarray) -> np.ndarray:
        table = with_numbers(first.table, numbers, field.smallest)
        ends = continued(field, table, [field.start], [])[0][-1]
        return (ends - teacher.end).double().flatten().numpy()

    found = least_squares(residual, numbers_of(first.table), diff_step=1e-3, max_nfev=40).x
    other = np.sqrt(np.square(residual(found).reshape(64, -1)).mean(1))
    assert best.score < first.score - 1
    assert best.score < Measured(other).score + 0.1


@pytest.mark.parametrize("nfe", [4, 5])
def test_the_method_is_better_on_starts_that_it_has_not_seen(nfe):
    model = mixture()
    arguments: dict[str, Any] = {"starts": 64, "trials": 24, "teacher_nfe": 96}
    plain, joint = (
        sds.tune(model, nfe, **arguments, method=method).tables[nfe] for method in ("least-squares", "joint")
    )
    assert joint.facts["method"] == "joint"
    assert joint.facts["iterations"] == 12
    common: dict[str, Any] = {"num_samples": 1024, "seed": 11}
    exact = sds.sample(model, "rk45", rtol=1e-7, atol=1e-7, dtype=torch.float64, **common).samples
    errors = [
        (sds.sample(model, table, **common).samples - exact).square().mean(1).sqrt().numpy() for table in (plain, joint)
    ]
    assert Measured(errors[1]).score < Measured(errors[0]).score - 0.1


def test_progress_counts_the_steps_and_minutes_end_them_within_one(monkeypatch):
    messages: list[str] = []
    sds.tune(mixture(), 3, **BRIEF, method="joint", iterations=1, advance=messages.append)
    assert [message.split(":")[0].split(", ")[1] for message in messages[:3]] == [
        "trial 1/2",
        "trial 2/2",
        "iteration 1/1",
    ]
    assert len(messages) == 2 + len(first_steps(3)) + 1

    class Stop:
        calls = 0

        def __call__(self, message: str) -> None:
            self.calls += 1
            if "iteration" in message:
                raise KeyboardInterrupt

    stop = Stop()
    stopped = sds.tune(mixture(), 3, **BRIEF, method="joint", iterations=1, advance=stop)
    assert stopped.interrupted
    assert stop.calls == 4  # the last says that it was stopped
    calls: list[str] = []  # each takes a minute by this clock
    monkeypatch.setattr(tuner_module, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 60 * len(calls)))
    timed = sds.tune(mixture(), 3, **BRIEF, method="joint", minutes=4.5, advance=calls.append)
    assert timed.tables[3].facts["interrupted"]
    assert len(calls) == 5  # two trials, and three derivatives of the first step


def test_a_search_that_begins_with_a_table_keeps_or_improves_it(tmp_path):
    first = sds.tune(mixture(), [3, 4], starts=32, trials=40, teacher_nfe=48, method="joint", out=tmp_path)
    brief: dict[str, Any] = {"starts": 32, "trials": 1, "teacher_nfe": 48}
    without = sds.tune(mixture(), 4, **brief).tables[4]
    field, teacher = Tuner(mixture(), 32, 0, None, 1.0, None, "quality", 48).on(CHOOSE)
    measured = lambda table: teacher.measured(field.run(Request(table))[0]).score  # noqa: E731
    for begun in (first, first.tables[4], str(tmp_path), tmp_path / "nfe-4.json"):
        table = sds.tune(mixture(), 4, **brief, warm_start=begun).tables[4]
        assert table.facts["warm_start"] == first.tables[4].sha256
        assert measured(table) <= measured(first.tables[4])
        assert measured(table) < measured(without)


def test_a_number_of_evaluations_without_a_table_begins_as_usual():
    first = sds.tune(mixture(), 3, **BRIEF)
    tables = sds.tune(mixture(), [3, 4], **BRIEF, warm_start=first).tables
    assert "warm_start" not in tables[4].facts
    assert tables[4] == sds.tune(mixture(), 4, **BRIEF).tables[4]


def test_tables_of_another_beginning_are_computed_anew_and_the_same_are_not(tmp_path):
    first, other = (sds.tune(mixture(), 3, **BRIEF, seed=seed) for seed in (0, 1))
    calls: list[str] = []
    arguments: dict[str, Any] = {**BRIEF, "out": tmp_path, "advance": calls.append}
    for begun, expected in ((None, 2), (first, 2), (first, 0), (other, 2)):
        calls.clear()
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always", sds.OutputWarning)
            sds.tune(mixture(), 3, **arguments, warm_start=begun)
        assert len(calls) == expected
        kept = [str(each.message) for each in found if each.category is sds.OutputWarning]
        assert all("was made from another beginning (warm_start); it is now" in text for text in kept)
        assert len(kept) == (begun is other)  # the first one does not improve what the search finds
    assert read_table(tmp_path / "nfe-3.json").facts["warm_start"] == other.tables[3].sha256


@pytest.mark.filterwarnings("ignore:.*; it is now:sdesamplers.OutputWarning")
def test_tables_are_improved_in_their_own_folder_once_by_the_same_call(tmp_path):
    begun = sds.tune(mixture(), 3, **{**BRIEF, "starts": 16}, out=tmp_path).tables[3]
    longer: dict[str, Any] = {**BRIEF, "starts": 16, "trials": 12}
    calls: list[str] = []
    for expected in (12, 0):
        calls.clear()
        improved = sds.tune(mixture(), 3, **longer, out=tmp_path, advance=calls.append, warm_start=tmp_path)
        assert len(calls) == expected
    assert improved.tables[3] != begun
    assert [read_table(file) for file in (tmp_path / "former").iterdir()] == [begun]


def test_a_beginning_of_another_guidance_is_not_warned_of():
    model = conditional()
    first = sds.tune(model, 4, **BRIEF, condition=2, guidance_scale=3.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "this solver table", sds.AccuracyWarning)
        sds.tune(model, 4, **BRIEF, condition=2, guidance_scale=2.0, warm_start=first)


def test_the_models_own_tables_begin_a_search(tmp_path, capsys):
    folder = save_pipeline(tmp_path / "tiny")
    sds.tune(str(folder), 2, starts=4, trials=1, teacher_nfe=16).save(folder / "sdesamplers", card=False)
    words = ["tune", str(folder), "--nfe", "2", "--starts", "4", "--trials", "1", "--teacher-nfe", "16"]
    with pytest.raises(SystemExit) as end:
        main(
            [*words, "--method", "joint", "--iterations", "1", "--warm-start", "tuned", "--out", str(tmp_path / "out")]
        )
    assert not end.value.code, capsys.readouterr().err
    table = read_table(tmp_path / "out/nfe-2.json")
    assert table.facts["warm_start"] == read_table(folder / "sdesamplers/nfe-2.json").sha256


def test_a_teacher_may_have_settings_and_the_card_names_them(tmp_path):
    teacher = "unipc  spacing=logsnr order=2"
    tuning = sds.tune(mixture(), 3, **BRIEF, teacher=teacher)
    facts = tuning.tables[3].facts["teacher"]
    assert (facts["sampler"], facts["nfe"]) == ("unipc spacing=logsnr order=2", 16)
    field, found = Tuner(mixture(), 8, 0, None, 1.0, None, teacher, 16).on(FIT)
    made = sds.sample(mixture(), "unipc", spacing="logsnr", order=2, nfe=16, num_samples=8, first_index=FIT)
    torch.testing.assert_close(found.end, made.samples, rtol=1e-4, atol=1e-5)
    assert len(field.start) == 8
    tuning.save(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert 'teacher="unipc spacing=logsnr order=2"' in card
    assert "--teacher 'unipc spacing=logsnr order=2'" in card
