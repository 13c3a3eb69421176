"""The mean and covariance of features as a part of what `tune` minimises."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from lanes import mostly_slow
from solver_tables import BRIEF, mixture

import sdesamplers as sds
from sdesamplers.cli import main
from sdesamplers.comparison.scoring import find_scorer
from sdesamplers.metrics.distances import frechet_distance, gaussian_statistics
from sdesamplers.sampling.request import Request
from sdesamplers.sampling.table import read_table
from sdesamplers.tuning.field import Measured, Teacher
from sdesamplers.tuning.gauss_newton import Slopes
from sdesamplers.tuning.gradient import slope_of_loss
from sdesamplers.tuning.moments import WEIGHT, Moments
from sdesamplers.tuning.tuner import REPORT, Tuner


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def squares(samples: torch.Tensor) -> torch.Tensor:
    """Samples and their squares."""
    return torch.cat([samples, samples.square()], 1)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return frechet_distance(*(gaussian_statistics(squares(each).double().numpy()) for each in (one, other)))


def test_the_square_of_the_residual_is_the_frechet_distance_to_second_order():
    samples = draw(200, 5) * torch.tensor([0.3, 0.5, 1, 2, 3])
    moments = Moments(squares, samples)
    change = draw(200, 5, seed=1)
    gaps = []
    for size in (1e-1, 1e-2, 1e-3):
        moved = samples * (1 + size) + size * change
        exact = apart(moved, samples)
        gaps.append(abs(float(moments.residual(moved).square().sum()) / exact - 1))
        assert moments.distance(moved) == pytest.approx(exact, rel=1e-6)
    assert gaps[0] < 0.2
    assert gaps[1] < 0.2 * gaps[0]  # the relative gap falls as the change
    assert gaps[2] < 0.2 * gaps[1]


def test_the_score_has_the_frechet_distance():
    teacher = Teacher(np.array([0.0]), [draw(60, 4)], features=squares)
    near, far, lost = (teacher.measured(teacher.end * (1 + size)) for size in (1e-2, 1e-1, math.inf))
    assert near.frechet == pytest.approx(apart(teacher.end * 1.01, teacher.end), rel=0.1)
    assert near.frechet is not None
    rms, median = np.sqrt(np.square(near.errors).mean()), np.median(near.errors)
    expected = (np.log(rms) + np.log(median) + WEIGHT * np.log(near.frechet)) / 2
    assert near.score == pytest.approx(expected)
    assert near.score < far.score < lost.score == math.inf
    assert Measured(near.errors).score == pytest.approx((np.log(rms) + np.log(median)) / 2)
    assert Measured(near.errors, math.nan).score == math.inf


def test_more_features_than_samples_have_finite_moments():
    samples = draw(20, 90)
    moments = Moments(lambda images: images, samples)
    assert moments.residual(2 * samples).shape == (90 + 64**2,)
    assert moments.residual(2 * samples).isfinite().all()
    assert Moments(lambda images: 0 * images, samples).residual(samples).square().sum() == 0


def test_the_equations_are_the_slope_of_the_penalty():
    """By autograd of WEIGHT / 2 log |residual|^2, on samples that are linear in the numbers."""
    samples, ends, *slopes = draw(4, 30, 4)
    with_features, without = (
        Teacher(np.array([0.0]), [samples], features=features) for features in ((lambda x: x), None)
    )
    moments = with_features.moments
    assert moments is not None
    size = 1e-6
    found = []
    for teacher in (with_features, without):
        made = Slopes(teacher, ends)
        for slope in slopes:
            made.add(ends + size * slope, size)
        found.append(made.equations())
    change = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    moved = ends + change[0] * slopes[0] + change[1] * slopes[1]
    residual = moments.residual(moved)
    expected = torch.autograd.grad(WEIGHT / 2 * residual.square().sum().log(), change, retain_graph=True)[0]
    np.testing.assert_allclose(found[0][1] - found[1][1], expected.numpy(), rtol=1e-4, atol=1e-6)
    jacobian = torch.stack([torch.autograd.grad(each, change, retain_graph=True)[0] for each in residual])
    matrix = WEIGHT * jacobian.T @ jacobian / residual.square().sum()
    np.testing.assert_allclose(found[0][0] - found[1][0], matrix.detach().numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", mostly_slow(["least-squares", "joint", "gradient"], keep=["joint"]))
def test_samples_are_nearer_in_distribution_on_starts_that_were_not_seen(method):
    iterations = {} if method == "least-squares" else {"iterations": 12}
    arguments: dict[str, Any] = {"starts": 256, "trials": 30, "teacher_nfe": 48, "method": method, **iterations}
    model = mixture()
    plain = sds.tune(model, 3, **arguments).tables[3]
    table = sds.tune(model, 3, **arguments, features=squares).tables[3]
    assert table.facts["features"] == "squares"
    common: dict[str, Any] = {"num_samples": 2048, "seed": 11}
    exact = sds.sample(model, "rk45", rtol=1e-6, atol=1e-6, **common).samples
    own, other = (apart(sds.sample(model, each, **common).samples, exact) for each in (table, plain))
    assert own < 0.7 * other
    tuner = Tuner(model, 256, 0, None, 1.0, None, "quality", 48)
    field, teacher = tuner.on(REPORT)
    expected = apart(field.run(Request(table))[0], teacher.end)
    assert table.facts["errors"]["frechet"] == pytest.approx(expected, rel=1e-3)


def test_a_table_for_other_features_is_not_taken_for_the_usual_one(tmp_path):
    for arguments, expected in (({"features": squares}, 2), ({"features": squares}, 0), ({}, 2)):
        calls: list[str] = []
        sds.tune(mixture(), 3, out=tmp_path, **BRIEF, **arguments, advance=calls.append)
        assert len(calls) == expected
        assert all((", Fréchet " in call) == bool(arguments) for call in calls)


def test_the_card_has_the_frechet_distances(tmp_path):
    tuning = sds.tune(mixture(), 3, **BRIEF, features=squares)
    tuning.save(tmp_path)
    card = (tmp_path / "README.md").read_text()
    errors = tuning.tables[3].facts["errors"]
    assert "With 3 evaluations the Fréchet distance of `squares` counted too. It is " in card
    assert f"{errors['frechet']:.4g} from the teacher's samples, and {errors['fixed']['frechet']:.4g} for" in card
    assert "features=squares)" in card
    assert "sdesamplers tune" not in card


BAD: dict[str, tuple[Any, str]] = {
    "one number for each sample": (
        lambda x: x.mean(1),
        r"features must return numbers of shape \(8, D\), not a Tensor",
    ),
    "one vector": (lambda x: x.mean(0, keepdim=True), r"features must return numbers of shape \(8, D\)"),
    "no features": (lambda x: x[:, :0], r"features must return numbers of shape \(8, D\)"),
    "words": (lambda x: [["a"]] * 8, r"features must return numbers of shape \(8, D\), not \[\['a'\], "),
    "lists of several lengths": (
        lambda x: [[1.0], *[[1.0, 2.0]] * 7],
        r"must return numbers of shape \(8, D\), not \[\[",
    ),
    "NaN": (lambda x: x * math.nan, "the features of the teacher's samples are not finite"),
    "a name": ("inception", "features must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_features_are_refused_in_a_line(case):
    features, message = BAD[case]
    with pytest.raises(sds.UsageError, match=message) as error:
        sds.tune(mixture(), 3, **BRIEF, features=features)
    assert "\n" not in str(error.value)


def test_the_slope_of_the_gradient_method_has_the_features():
    """By central differences of mean log d^2 + WEIGHT log |residual|^2 along a random direction."""
    teacher, ends, direction = (
        Teacher(np.array([0.0]), [draw(40, 4)], features=squares),
        draw(40, 4, seed=1),
        draw(40, 4),
    )
    moments = teacher.moments
    assert moments is not None

    def loss(samples: torch.Tensor) -> float:
        errors = (samples - teacher.end).square().mean(1).log().mean()
        return float(errors + WEIGHT * moments.residual(samples).square().sum().log())

    size = 1e-5
    expected = (loss(ends + size * direction) - loss(ends - size * direction)) / (2 * size)
    assert float((slope_of_loss(ends, teacher) * direction).sum()) == pytest.approx(expected, rel=1e-5)
    alone = Teacher(teacher.angles, teacher.states)
    assert abs(float((slope_of_loss(ends, alone) * direction).sum()) - expected) > 1e-3 * abs(expected)


def test_the_gradient_needs_features_with_a_derivative():
    with pytest.raises(sds.UsageError, match="needs features that are differentiable by torch"):
        sds.tune(mixture(), 3, **BRIEF, method="gradient", features=lambda x: x.detach().numpy())


@pytest.mark.slow
def test_the_features_of_the_models_metrics_on_the_command_line(tmp_path, capsys, monkeypatch):
    words = ["tune", "fashion-mnist", "--nfe", "3", "--starts", "8", "--trials", "2", "--teacher-nfe", "16"]
    with pytest.raises(SystemExit) as end:
        main([*words, "--features", "--out", str(tmp_path / "tables"), "--json"])
    assert not end.value.code
    row = json.loads(capsys.readouterr().out)["tables"][0]
    scorer = find_scorer("fashion-mnist")
    assert scorer is not None
    field, teacher = Tuner(sds.load("fashion-mnist"), 8, 0, None, 1.0, None, "quality", 16).on(REPORT)
    ends = field.run(Request(read_table(tmp_path / "tables/nfe-3.json")))[0]
    expected = frechet_distance(*(gaussian_statistics(scorer.features(each)) for each in (ends, teacher.end)))
    assert row["frechet"] == pytest.approx(expected, rel=1e-3)
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        main([*words, "--features", "--out", str(tmp_path / "tables")])
    assert not end.value.code
    out = capsys.readouterr().out
    assert re.search(r"^ +evaluations +sampler +RMS error +median error +Fréchet *$", out, re.MULTILINE)
    assert re.search(rf"^ +3 +tuned +0\.\d+ +0\.\d+ +{row['frechet']:.4g} *$", out, re.MULTILINE)
    with pytest.raises(SystemExit) as end:
        main(["tune", "google/ddpm-cat-256", "--features", "--out", str(tmp_path / "none")])
    assert end.value.code == 2
    assert "--features needs a model whose entry in registry.yaml has metrics" in capsys.readouterr().err
