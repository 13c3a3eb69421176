"""`tune`: exact on a Gaussian, better than fixed settings on starts that it has not seen, and what ends it early."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from hub_server import HubServer
from huggingface_hub import constants
from lanes import mostly_slow
from solver_tables import BRIEF, conditional, first_element, mixture
from tiny_models import save_pipeline

import sdesamplers as sds
from sdesamplers.cli import main
from sdesamplers.comparison.comparison import find_scorer
from sdesamplers.sampling.request import Request
from sdesamplers.sampling.table import read_table
from sdesamplers.tuning import search as search_module
from sdesamplers.tuning.field import Field, Measured, Teacher
from sdesamplers.tuning.fit import solve
from sdesamplers.tuning.gradient import gradients
from sdesamplers.tuning.search import Search
from sdesamplers.tuning.trace import table_of
from sdesamplers.tuning.tuner import CHOOSE, FIT, REPORT, Tuner, first_candidates

pytestmark = pytest.mark.filterwarnings("ignore:the teacher, :sdesamplers.AccuracyWarning")
QUICK: dict[str, Any] = {"starts": 48, "trials": 8, "teacher_nfe": 48}


def errors_on_new_starts(model: sds.Model, sampler: Any, **arguments: Any) -> tuple[float, float]:
    """RMS and median of the errors of 256 samples, against rk45."""
    common: dict[str, Any] = {"num_samples": 256, "seed": 11}
    exact = sds.sample(model, "rk45", rtol=1e-7, atol=1e-7, dtype=torch.float64, **common).samples
    found = sds.sample(model, sampler, **common, **arguments).samples
    error = (found - exact).square().mean(1).sqrt()
    return float(error.square().mean().sqrt()), float(error.median())


ZERO_SNR = sds.DiscreteVP(np.linspace(0.9999, 0.01, 1000) ** 2).with_zero_terminal_snr()
GAUSSIAN = {"vp": sds.VP(), "flow": sds.RectifiedFlow(), "edm": sds.EDM(), "zero-snr": ZERO_SNR}


@pytest.mark.parametrize("process", mostly_slow(GAUSSIAN, keep=["flow", "zero-snr"]))
def test_isotropic_gaussian_data_are_exact_with_two_evaluations(process):
    """The ODE is y_end = c y_0, which the weights of the start can represent."""
    model = sds.GaussianModel([0.0, 0.0, 0.0], 0.36, GAUSSIAN[process], prediction="v")
    table = sds.tune(model, 2, starts=8, trials=1, teacher_nfe=200).tables[2]
    exact = sds.sample(model, "rk45", rtol=1e-8, atol=1e-8, dtype=torch.float64, num_samples=16).samples
    found = sds.sample(model, table, dtype=torch.float64, num_samples=16).samples
    fixed = sds.sample(model, "dpmpp-2m", nfe=2, dtype=torch.float64, num_samples=16).samples
    assert float((found - exact).abs().max()) < 3e-3
    assert float((found - exact).abs().max()) < 0.02 * float((fixed - exact).abs().max())


@pytest.mark.parametrize(
    ("process", "nfe"),
    [(sds.VP(), 5), pytest.param(sds.RectifiedFlow(), 8, marks=pytest.mark.slow)],
    ids=["vp", "flow"],
)
def test_a_tuned_table_is_ahead_of_fixed_settings_on_starts_that_nothing_has_seen(process, nfe):
    means = np.random.default_rng(0).normal(size=(4, 6))
    model = sds.MixtureModel([0.2, 0.3, 0.1, 0.4], means, [0.05, 0.1, 0.2, 0.02], process, prediction="v")
    table = sds.tune(model, nfe, **QUICK).tables[nfe]
    rms, median = errors_on_new_starts(model, table)
    fixed = [errors_on_new_starts(model, name, nfe=nfe) for name in ("unipc", "dpmpp-2m", "fast", "quality")]
    assert rms < 0.8 * min(each[0] for each in fixed)
    assert median < 0.5 * min(each[1] for each in fixed)
    reported = table.facts["errors"]  # on other starts: the same within the noise of 48 samples
    assert 0.4 < reported["median"] / median < 2.5
    assert table.facts["returned"] == "tuned"
    assert reported["fixed"]["median"] > 2 * reported["median"]


def spike(count: int) -> torch.Tensor:
    """0 but for one sample."""
    return 30.0 * (torch.arange(count, dtype=torch.float64) == 3)[:, None].expand(count, 5)


def test_the_weights_of_a_step_solve_the_normal_equations():
    rng = torch.Generator().manual_seed(0)
    features = [torch.randn(40, 5, generator=rng, dtype=torch.float64) for _ in range(3)]
    target = 0.5 * features[0] - 2 * features[1] + 0.25 * features[2]
    np.testing.assert_allclose(solve(target, features, 0.0), [0.5, -2, 0.25], atol=1e-10)
    columns = torch.stack([feature.flatten() for feature in features], 1).numpy()
    plain = np.linalg.lstsq(columns, (target + spike(40)).flatten().numpy(), rcond=None)[0]
    robust = solve(target + spike(40), features, 0.0)  # a sample in another mode counts little
    assert np.abs(robust - [0.5, -2, 0.25]).max() < 0.02 * np.abs(plain - [0.5, -2, 0.25]).max()


def log_error(field: Field, teacher: Teacher, table: sds.SolverTable) -> float:
    """The mean logarithm of the samples' squared errors, by the table's recursion."""
    y, velocities = field.start, list[torch.Tensor]()
    start = y
    for n, row in enumerate(table.weights):
        velocities.append(field(y, table.angles[n], table.network_angles[n]))
        y = row[0] * start + row[1] * y + sum(w * v for w, v in zip(row[2:], velocities, strict=True))
    return float((y - teacher.end).square().flatten(1).sum(1).log().mean())


def changed(table: sds.SolverTable, place: tuple[Any, ...], by: float) -> sds.SolverTable:
    """A table with one of its numbers changed."""
    name, *where = place
    values = json.loads(json.dumps(getattr(table, name)))
    holder = values
    for index in where[:-1]:
        holder = holder[index]
    holder[where[-1]] += by
    return replace(table, **{name: values})


def test_the_gradient_is_that_of_difference_quotients():
    model = sds.FunctionModel(
        lambda x, t: 0.6 * torch.tanh(1.3 * x + t), sds.VP(), "sample", (3,), dtype=torch.float64, name="tanh"
    )
    tuner = Tuner(model, 6, 0, None, 1.0, None, "quality", 40)
    field, teacher = tuner.on(FIT)
    table = table_of(model.process, "ab", steps=4, spacing="angle", final="zero")
    table = replace(table, network_angles=tuple(phi * 0.97 for phi in table.angles[:-1]))
    _, (by_angle, by_network_angle, by_row) = gradients(field, teacher, table)
    found = {("angles", 2): by_angle[2], ("network_angles", 1): by_network_angle[1], ("weights", 0, 1): by_row[0][1]}
    found |= {("weights", 1, 2): by_row[1][2], ("weights", 3, 0): by_row[3][0], ("weights", 2, 4): by_row[2][4]}
    for place, slope in found.items():
        h = 1e-5
        one, other = (log_error(field, teacher, changed(table, place, sign * h)) for sign in (1, -1))
        assert float(slope) == pytest.approx((one - other) / (2 * h), rel=0.02 if "angles" in place[0] else 1e-5), place


@pytest.mark.slow
def test_the_gradient_method_improves_the_fit():
    arguments: dict[str, Any] = {"starts": 32, "trials": 6, "teacher_nfe": 48}
    messages: list[str] = []
    plain = sds.tune(mixture(), 4, **arguments).tables[4]
    refined = sds.tune(mixture(), 4, **arguments, method="gradient", iterations=25, advance=messages.append).tables[4]
    assert messages[-1].startswith("4 evaluations, iteration 25/25: ")
    rms, median = (float(text.split(" ")[-1]) for text in messages[-1].split(", ")[-2:])
    before = [float(text.split(" ")[-1]) for text in messages[5].split(", ")[-2:]]
    assert rms * median < 0.95 * before[0] * before[1]
    assert refined.facts["method"] == "gradient"
    field, teacher = Tuner(mixture(), 32, 0, None, 1.0, None, "quality", 48).on(CHOOSE)
    own, other = (teacher.measured(field.run(Request(table))[0]).score for table in (refined, plain))
    assert own <= other  # on the starts for the choice, the last word


def test_the_same_seed_gives_the_same_table_and_another_seed_another():
    first, again, other = (
        sds.tune(mixture(), 4, seed=seed, starts=16, trials=4, teacher_nfe=24).tables[4] for seed in (3, 3, 4)
    )
    assert first == again
    assert first.facts == again.facts
    assert first != other


def test_the_best_fixed_setting_is_returned_if_the_search_finds_nothing_better(monkeypatch):
    judge = search_module.judge

    def spoiled(*arguments: Any) -> Any:
        judged, ends = judge(*arguments)
        rows = tuple((*row[:-1], 0.5 * row[-1]) for row in judged.table.weights)
        judged.table = sds.SolverTable(judged.table.angles, rows)
        return judged, ends

    monkeypatch.setattr(search_module, "judge", spoiled)
    model = mixture()
    table = sds.tune(model, 6, starts=16, trials=3, teacher_nfe=32).tables[6]
    assert table.facts["returned"].startswith("fixed: ")
    name, *arguments = table.facts["returned"].removeprefix("fixed: ").split(" ")
    grid = dict(text.split("=") for text in arguments)
    expected = sds.sample(model, name, nfe=6, num_samples=3, **grid).samples
    torch.testing.assert_close(sds.sample(model, table, num_samples=3).samples, expected, rtol=1e-4, atol=1e-4)
    assert table.facts["errors"]["rms"] == table.facts["errors"]["fixed"]["rms"]


def test_the_three_sets_of_starts_are_disjoint_and_beyond_those_of_runs(monkeypatch):
    seen: set[int] = set()
    sets: list[set[int]] = []
    init = Field.__init__

    def noting(self: Field, model: Any, indices: Any, *rest: Any) -> None:
        sets.append(set(indices))
        init(self, model, indices, *rest)

    monkeypatch.setattr(Field, "__init__", noting)
    sds.tune(mixture(), 3, starts=5, trials=1, teacher_nfe=16)
    probe, fitted, check, reported, few, chosen = sets
    assert probe < fitted  # a fingerprint of the model, on starts for the fit
    assert few <= fitted  # the derivatives
    assert check == reported  # the teacher's own error, before the search
    for each in (fitted, chosen, reported):
        assert not seen & each
        assert min(each) >= 2**40
        seen |= each


def test_gauss_newton_steps_improve_the_grids_of_fixed_settings():
    means = np.random.default_rng(0).normal(size=(4, 6))
    model = sds.MixtureModel([0.2, 0.3, 0.1, 0.4], means, [0.05, 0.1, 0.2, 0.02], sds.VP(), prediction="v")
    tuner = Tuner(model, 48, 0, None, 1.0, None, "quality", 96)
    field, teacher = tuner.on(FIT)
    first = first_candidates([table for _, _, table in tuner.fixed(4)], field.angle)
    scores = [each.score for each in Search(field, teacher, tuner.base, (0, 4)).run(first, 60)]
    assert len(scores) == 60
    assert scores == sorted(scores, reverse=True)
    assert scores[29] < scores[8] - 0.3  # 0.59; the first nine are grids of fixed settings


def test_a_conditional_model_is_tuned_at_its_guidance_on_all_its_conditions():
    model = conditional()
    arguments: dict[str, Any] = {"starts": 12, "trials": 4, "teacher_nfe": 48}
    table = sds.tune(model, 4, condition=[0, 2], guidance_scale=3.0, **arguments).tables[4]
    assert (table.facts["guidance_scale"], table.facts["condition"]) == (3.0, "[0, 2]")
    assert table.file_name == "nfe-4-guidance-3.json"
    common: dict[str, Any] = {"num_samples": 8, "guidance_scale": 3.0, "condition": [0, 2] * 4}
    exact = sds.sample(model, "rk45", rtol=1e-7, atol=1e-7, **common).samples
    tuned, fixed = (
        (sds.sample(model, sampler, nfe=4, **common).samples - exact).square().mean().sqrt()
        for sampler in (table, "unipc")
    )
    assert tuned < 0.25 * fixed


def test_a_guided_model_is_tuned_with_its_interval_and_the_table_knows_its_scale():
    model = conditional()
    guided = sds.Guided(model, 3.0, interval=(0.2, 5.0))
    table = sds.tune(guided, 4, condition=[0, 2], starts=12, trials=4, teacher_nfe=48).tables[4]
    assert table.facts["guidance_scale"] == 3.0
    assert table.facts["guidance_interval"] == ["0.2", "5.0"]
    common: dict[str, Any] = {"num_samples": 8, "condition": [0, 2] * 4}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tuned = sds.sample(guided, table, **common).samples
    exact = sds.sample(guided, "rk45", rtol=1e-7, atol=1e-7, **common).samples
    fixed = sds.sample(guided, "unipc", nfe=4, **common).samples
    assert (tuned - exact).square().mean() < 0.2 * (fixed - exact).square().mean()
    with pytest.warns(UserWarning, match="computed for guidance_scale=3, and this run has 1"):
        sds.sample(model, table, **common)


@pytest.mark.parametrize("method", mostly_slow(["least-squares", "gradient"], keep=["least-squares"]))
def test_another_distance_is_what_the_search_minimises(method):
    arguments: dict[str, Any] = {"starts": 48, "trials": 30, "teacher_nfe": 48, "method": method, "iterations": 10}
    plain = sds.tune(mixture(), 3, **arguments).tables[3]
    table = sds.tune(mixture(), 3, **arguments, distance=first_element).tables[3]
    assert table.facts["distance"] == "first_element"
    assert table.facts["errors"]["distance"] > 0
    common: dict[str, Any] = {"num_samples": 1024, "seed": 11}
    exact = sds.sample(mixture(), "rk45", rtol=1e-6, atol=1e-6, **common).samples
    own, other = (first_element(sds.sample(mixture(), each, **common).samples, exact) for each in (table, plain))
    print(own.median(), other.median(), own.square().mean(), other.square().mean())
    assert Measured(own.numpy()).score < Measured(other.numpy()).score


@pytest.mark.slow
def test_the_features_of_the_models_metrics_are_a_distance_on_the_command_line(tmp_path, capsys):
    words = ["--nfe", "3", "--starts", "4", "--trials", "2", "--teacher-nfe", "16", "--distance", "features"]
    assert run("tune", "fashion-mnist", *words, "--out", str(tmp_path / "tables"), "--json") == 0
    row = json.loads(capsys.readouterr().out)["tables"][0]
    scorer = find_scorer("fashion-mnist")
    assert scorer is not None
    table = read_table(tmp_path / "tables/nfe-3.json")
    assert table.facts["distance"] == "Scorer.distance of Scorer('fashion-mnist-metrics')"
    tuner = Tuner(sds.load("fashion-mnist"), 4, 0, None, 1.0, None, "quality", 16)
    field, teacher = tuner.on(REPORT)
    ends = field.run(Request(table))[0]
    expected = np.square(scorer.features(ends) - scorer.features(teacher.end)).mean(1) ** 0.5
    assert row["distance"] == pytest.approx(expected.mean(), rel=1e-3)
    assert run("tune", "google/ddpm-cat-256", *words, "--out", str(tmp_path / "none")) == 2
    assert "has none" in capsys.readouterr().err


def pair(x: torch.Tensor, t: torch.Tensor, c: Any) -> torch.Tensor:
    """A network with a tuple of two tensors as its condition."""
    return 0.1 * x + 0.1 * c[0] * c[1]


def test_conditions_of_every_form():
    """One condition for each start, a tuple of tensors, and lists of tensors, dictionaries and tuples."""
    many = sds.tune(conditional(), 4, condition=torch.arange(8) % 3, **BRIEF).tables[4]
    assert many == sds.tune(conditional(), 4, condition=[0, 1, 2], **BRIEF).tables[4]
    model = sds.FunctionModel(pair, sds.TrigFlow(), "sample", (3,), conditional=True, name="pair")
    one = (torch.tensor([[1.0]]), torch.tensor([[3.0]]))
    assert (
        sds.tune(model, 4, condition=one, **BRIEF).tables[4] == sds.tune(model, 4, condition=[one], **BRIEF).tables[4]
    )
    other = (torch.tensor([[2.0]]), torch.tensor([[-1.0]]))
    mixed = sds.tune(model, 4, condition=[one, other], **BRIEF).tables[4]
    rows = tuple(torch.cat([first, second]).repeat(4, 1) for first, second in zip(one, other, strict=True))
    assert mixed == sds.tune(model, 4, condition=rows, **BRIEF).tables[4]
    sds.tune(model, 4, condition=rows, **{**BRIEF, "starts": 8})  # the report needs fewer starts than there are rows
    with pytest.raises(sds.UsageError, match="empty list"):
        sds.tune(model, 4, condition=[], **BRIEF)


def test_more_starts_than_the_teachers_check_with_a_condition_each():
    table = sds.tune(conditional(), 4, condition=torch.arange(20) % 3, **{**BRIEF, "starts": 20}).tables[4]
    assert table.facts["teacher"]["errors"]["rms"] > 0


def test_numbers_of_numpy_are_saved(tmp_path):
    one = {"starts": np.int64(8), "trials": np.int64(2), "teacher_nfe": np.int64(16), "seed": np.int64(3)}
    sds.tune(mixture(), np.int64(4), **one, out=tmp_path)
    assert read_table(tmp_path / "nfe-4.json").facts["seed"] == 3


def other_start() -> sds.SolverTable:
    return sds.SolverTable([1.2, 0.7, 0.3, 0.0], [[0.0, 0.7, -0.7], [0.0, 0.75, 0.1, -0.6], [0.0, 0.9, 0.1, 0.1, -0.3]])


def test_a_teacher_that_is_not_better_than_the_table_is_warned_of():
    """The median error of `quality` with 12 evaluations, against a solution of the ODE, is that of the table."""
    with pytest.warns(sds.AccuracyWarning) as told:
        table = sds.tune(mixture(), 10, starts=64, trials=10, teacher_nfe=12).tables[10]
    text = str(told[-1].message)
    assert text.startswith("the teacher, quality with 12 evaluations, has itself a median error of ")
    assert text.endswith("its error may be larger; pass a larger teacher_nfe")
    assert errors_on_new_starts(mixture(), table)[1] > 1.5 * table.facts["errors"]["median"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fair = sds.tune(mixture(), 4, starts=16, trials=4, teacher_nfe=100).tables[4]
    assert fair.facts["teacher"]["errors"]["median"] < 0.5 * fair.facts["errors"]["median"]


def test_a_teacher_with_fewer_evaluations_is_warned_of_before_the_search():
    warned = list[Any]()

    def first(text: str) -> None:
        warned.append([str(each.message) for each in found])
        raise KeyboardInterrupt

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        sds.tune(mixture(), [4, 9], starts=4, trials=2, teacher_nfe=8, advance=first)
    expected = "the teacher has 8 evaluations, and a table that is measured against it 9; pass a larger teacher_nfe"
    assert expected in warned[0]


def test_the_default_teacher_of_a_model_whose_own_grid_begins_below_pure_noise(tmp_path: Path) -> None:
    """diffusers shifts the flow sigmas of DPM-Solver from 0.999 on; a table begins at alpha = 0."""
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0, final_sigmas_type="zero"
    )
    model = sds.load(save_pipeline(tmp_path, scheduler))
    table = sds.tune(model, 4, **BRIEF).tables[4]
    assert table.angles[0] == np.pi / 2
    exact = sds.sample(model, "quality", nfe=200, num_samples=4).samples
    errors = (sds.sample(model, table, num_samples=4).samples - exact).square().mean((1, 2, 3)).sqrt()
    assert float(errors.median()) < 3 * table.facts["errors"]["median"]
    with pytest.raises(
        sds.UsageError, match='this one\'s grid does not; name another grid, as in "unipc spacing=power"'
    ):
        sds.tune(model, 4, **BRIEF, teacher="unipc")


def test_labels_as_a_range_an_array_or_a_tensor_are_taken_in_turn():
    listed = sds.tune(conditional(), 4, condition=[0, 1, 2], **BRIEF).tables[4]
    for labels in (range(3), np.arange(3), torch.arange(3)):
        assert sds.tune(conditional(), 4, condition=labels, **BRIEF).tables[4].facts == listed.facts
    with pytest.warns(sds.AccuracyWarning, match=r"condition has 9 entries, and the 8 starts take the first 8 of them"):
        sds.tune(conditional(), 4, condition=range(9), **BRIEF)


def cosine(samples: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """1 minus the cosine of the angle between two samples, which may be below 0 by rounding."""
    return 1 - torch.cosine_similarity(samples, others, dim=1) - 1e-6


def test_a_distance_may_be_negative_by_rounding():
    table = sds.tune(mixture(), 4, starts=48, trials=10, teacher_nfe=48, distance=cosine).tables[4]
    common: dict[str, Any] = {"num_samples": 256, "seed": 11}
    exact = sds.sample(mixture(), "rk45", rtol=1e-7, atol=1e-7, **common).samples
    far = [cosine(sds.sample(mixture(), each, nfe=4, **common).samples, exact).median() for each in (table, "unipc")]
    assert far[0] < 0.2 * far[1]


def distances(found: Any) -> dict[str, Any]:
    return {"starts": 4, "trials": 1, "teacher_nfe": 16, "distance": lambda one, other: found(one)}


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no starts": (lambda: sds.tune(mixture(), starts=0), "starts must be a whole number of 4 or more, not 0"),
    "no trials": (lambda: sds.tune(mixture(), trials=0), "trials must be"),
    "one evaluation": (lambda: sds.tune(mixture(), 1), "nfe must be a whole number of 2 or more, not 1"),
    "no evaluations": (lambda: sds.tune(mixture(), []), "nfe must name a number of evaluations"),
    "one twice": (lambda: sds.tune(mixture(), [5, 5]), "twice"),
    "a teacher of two stages": (lambda: sds.tune(mixture(), teacher="heun"), "evaluate the model once at each point"),
    "an unknown teacher": (lambda: sds.tune(mixture(), teacher="qualty"), "quality"),
    "a teacher with noise": (
        lambda: sds.tune(mixture(), teacher="ddpm"),
        "draws noise; a deterministic sampler",
    ),
    "no distance": (
        lambda: sds.tune(mixture(), starts=4, trials=1, distance=lambda one, other: (one - other).abs()),
        r"distance must return a tensor of shape \(4,\), one number for each sample, not \(4, 6\)",
    ),
    "a negative distance": (lambda: sds.tune(mixture(), **distances(lambda x: -x[:, 0].abs() - 1)), "0 or more, not -"),
    "a distance of whole numbers": (
        lambda: sds.tune(mixture(), **distances(lambda x: x[:, 0].long())),
        "real numbers, not .*int64",
    ),
    "a distance that is no number": (lambda: sds.tune(mixture(), **distances(lambda x: x[:, 0] / 0 * 0)), "finite"),
    "too many evaluations": (lambda: sds.tune(mixture(), 501), "nfe must be 500 or less, not 501"),
    "a tensor of no number": (lambda: sds.tune(mixture(), torch.tensor(1)), "nfe must be a whole number of 2 or more"),
    "nothing to begin with": (lambda: sds.tune(mixture(), 3, warm_start=sds.Tuning()), "warm_start has no solver"),
    "a number as a folder": (lambda: sds.Tuning().save(3), "folder must be a path, not 3"),  # type: ignore[arg-type]
    "a number as a table's path": (lambda: sds.SolverTable.load(3), "path must be"),  # type: ignore[arg-type]
    "a name of a distance": (lambda: sds.tune(mixture(), distance="lpips"), "distance must be"),
    "a path": (lambda: sds.tune(mixture(), 3, out=5), "out must be a path"),
    "minutes": (lambda: sds.tune(mixture(), 3, minutes=-1), "minutes must be 0 or more"),
    "advance": (lambda: sds.tune(mixture(), 3, advance="x"), "advance must be"),
    "a condition": (lambda: sds.tune(mixture(), condition=3), "unconditional"),
    "another method": (lambda: sds.tune(mixture(), 3, method="joints"), "method must be .*joint"),
    "no iterations": (lambda: sds.tune(mixture(), 3, method="joint", iterations=0), "iterations must be"),
    "a number to begin with": (lambda: sds.tune(mixture(), 3, warm_start=5), "warm_start must be a solver table"),
    "no table of the number": (
        lambda: sds.tune(mixture(), 4, warm_start=other_start()),
        "warm_start has solver tables for 3 evaluations, and none for 4",
    ),
    "a table of another start": (
        lambda: sds.tune(mixture(), 3, **BRIEF, warm_start=other_start()),
        "the table for 3 evaluations leads from phi = 1.2 to 0, and tables for this model from 1.564",
    ),
    "a folder that is not there": (lambda: sds.tune(mixture(), 3, warm_start="./nowhere"), "nowhere"),
    "no tables of its own": (lambda: sds.tune(mixture(), 3, warm_start="tuned"), "this model has none"),
    "a teacher that is no text": (lambda: sds.tune(mixture(), 3, teacher=5), "teacher must be"),
    "an unknown option": (lambda: sds.tune(mixture(), 3, teacher="unipc ordr=2"), "order"),
    "an unknown grid": (lambda: sds.tune(mixture(), 3, teacher="unipc spacing=logsn"), "logsnr"),
    "its evaluations in the text": (lambda: sds.tune(mixture(), 3, teacher="unipc nfe=20"), "remove nfe="),
}


@pytest.mark.parametrize("call", WRONG)
def test_wrong_arguments_are_refused_in_a_line(call):
    function, reason = WRONG[call]
    with pytest.raises(sds.SdesamplersError, match=reason) as error:
        function()
    assert "\n" not in str(error.value)


def test_a_network_that_returns_nan_is_named():
    model = sds.FunctionModel(lambda x, t: x * float("nan"), sds.VP(), "epsilon", (3,), name="broken")
    with pytest.raises(sds.NonFiniteError, match="broken"):
        sds.tune(model, 3, starts=4, trials=1)


def test_a_models_folder_carries_its_tables(tmp_path):
    folder = save_pipeline(tmp_path / "tiny")
    tuning = sds.tune(str(folder), [2, 3], starts=4, trials=1, teacher_nfe=16)
    tables = [folder / "sdesamplers/nfe-2.json", folder / "sdesamplers/nfe-3.json"]
    assert tuning.save(folder / "sdesamplers", card=False) == tables
    model = sds.load(folder)
    expected = sds.sample(model, tuning.tables[3], num_samples=2).samples
    assert torch.equal(sds.sample(model, "tuned", nfe=3, num_samples=2).samples, expected)
    with pytest.raises(sds.UsageError, match="no solver table for 5 evaluations, only for 2, 3"):
        sds.sample(model, "tuned", nfe=5)


@pytest.mark.slow
def test_a_hub_repository_carries_its_tables(tmp_path, hub: HubServer):
    folder = save_pipeline(tmp_path / "tiny")
    table = sds.tune(str(folder), 2, starts=4, trials=1, teacher_nfe=16).tables[2]
    table.save(folder / "sdesamplers")
    hub.repo("me/tiny").commit_folder(folder)
    model = sds.load("me/tiny", cache_dir=tmp_path / "cache")
    expected = sds.sample(model, table, num_samples=2).samples
    assert torch.equal(sds.sample(model, "tuned", nfe=2, num_samples=2).samples, expected)


def test_a_hub_repository_of_tables(tmp_path, hub: HubServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    model = mixture()
    table = sds.SolverTable([1.5, 0.7, 0.0], [[0.0, 0.7, -0.7], [0.0, 0.75, 0.1, -0.6]])
    (tmp_path / "repo").mkdir()
    table.save(tmp_path / "repo")
    (tmp_path / "repo/code.py").write_text("raise SystemExit('run')")
    hub.repo("me/tables").commit_folder(tmp_path / "repo")
    hub.repo("me/nothing").commit_folder(save_pipeline(tmp_path / "tiny"))
    assert sds.SolverTable.load("hf://me/tables") == table
    expected = sds.sample(model, table, num_samples=2).samples
    assert torch.equal(sds.sample(model, "hf://me/tables@main", nfe=2, num_samples=2).samples, expected)
    assert not list((tmp_path / "cache").rglob("code.py"))
    with pytest.raises(sds.ModelError, match=r"^hf://me/nothing has no solver tables"):
        sds.SolverTable.load("hf://me/nothing")
    with pytest.raises(sds.UsageError, match=r"^hf://me/tables has no solver table for 3 evaluations, only for 2"):
        sds.sample(model, "hf://me/tables", nfe=3)
    with pytest.raises(sds.ModelError, match="me/missing: no such repository"):
        sds.SolverTable.load("hf://me/missing")


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main([*words])
    return int(end.value.code or 0)


def test_the_command_line_tunes_prints_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = save_pipeline(tmp_path / "tiny")
    words = ["tune", str(folder), "--nfe", "2,3", "--starts", "4", "--trials", "2", "--teacher-nfe", "16"]
    words += ["--out", str(tmp_path / "tables")]
    assert run(*words, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["nfe"] for row in printed["tables"]] == [2, 3]
    assert sorted(file.name for file in (tmp_path / "tables").iterdir()) == ["nfe-2.json", "nfe-3.json"]
    before = (tmp_path / "tables/nfe-2.json").stat().st_mtime_ns
    assert run(*words) == 0
    out = capsys.readouterr().out
    assert (tmp_path / "tables/nfe-2.json").stat().st_mtime_ns == before
    assert f"--sampler {tmp_path / 'tables'} --nfe 2" in "".join(out.splitlines())
    assert run("tune", str(folder), "--starts", "0", "--out", str(tmp_path / "none")) == 2
    assert "starts must be a whole number of 4 or more, not 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("made", "flags", "use"),
    [
        ("conditional()", ["--guidance-scale", "2.00000001"], "--nfe 4 --guidance-scale 2.00000001"),
        ("sds.Guided(conditional(), 3.0)", [], "--nfe 4"),  # a command refuses a scale of its own with this model
    ],
    ids=["scale", "guided model"],
)
def test_the_command_line_prints_the_flags_that_use_the_tables(
    made: str, flags: list[str], use: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "own.py"
    source.write_text(f"import sdesamplers as sds\nfrom solver_tables import conditional\nmodel = {made}\n")
    words = ["--nfe", "4", "--starts", "4", "--trials", "1", "--teacher-nfe", "16", "--condition", "2"]
    out = str(tmp_path / "tables")
    with pytest.raises(SystemExit) as end:
        main(["tune", f"{source}:model", *words, *flags, "--out", out])
    assert not end.value.code
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.endswith(f"use it as --sampler {out} {use}")
    command = ["sample", f"{source}:model", "--sampler", out, *use.split(), "--condition", "2", "-n", "2"]
    with pytest.raises(SystemExit) as end:
        main([*command, "--format", "safetensors", "--out", str(tmp_path / "samples")])
    assert not end.value.code, capsys.readouterr().err
    assert "this solver table" not in capsys.readouterr().err  # no warning of another guidance
    with pytest.raises(SystemExit):
        main(["tune", f"{source}:model", *words, "--out", ""])
    assert "--out must be the path of a folder, not empty" in capsys.readouterr().err
