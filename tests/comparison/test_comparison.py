"""`compare`: what it takes, what a scorer may be, what a refused cell says, and that its files say what ran."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import sdesamplers as sds
from sdesamplers.cli import cli
from sdesamplers.comparison import comparison, runs, trajectories
from sdesamplers.comparison.picture import image_table
from sdesamplers.metrics import Score
from sdesamplers.report.view import View


class Net(torch.nn.Module):
    """A network of pictures that answers with a half of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.part = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.part * x


class Means:
    """What the protocol asks for and no more: a picture's mean and deviation as features."""

    description = "means and deviations"
    fails_at = 99

    def __init__(self) -> None:
        self.calls = 0

    def features(self, samples: torch.Tensor) -> np.ndarray:
        self.calls += 1
        if self.calls > self.fails_at:
            raise RuntimeError("the device is gone")
        flat = samples.flatten(1).double()
        return torch.stack([flat.mean(1), flat.std(1)], 1).numpy()

    def score_features(self, features: np.ndarray) -> Score:
        return Score(len(features), float(features.mean()), None)


class WithFloor(Means):
    def floor(self, count: int) -> Score:
        return Score(count, 0.125, None)


@pytest.fixture(scope="module")
def pictures() -> sds.FunctionModel:
    return sds.FunctionModel(Net(), sds.VP(), "epsilon", (1, 4, 4), data_range=(-1.0, 1.0), name="halves")


@pytest.fixture(scope="module")
def mixture() -> sds.MixtureModel:
    return sds.grid_mixture(sds.VP())


FEW: dict[str, Any] = {"num_samples": 4, "reference_samples": 0}
pytestmark = pytest.mark.filterwarnings("ignore:.*samples lie far outside the data range")


def test_the_documented_protocol_is_enough(pictures: sds.FunctionModel) -> None:
    result = sds.compare(pictures, ["euler", "ddim"], 3, scorer=Means(), **FEW)
    for cell in result.cells:
        own = Means()
        expected = own.features(result.samples[cell.sampler, 3]).mean()
        assert cell.frechet == pytest.approx(expected, rel=1e-12)
        assert cell.sliced_wasserstein is None
    assert result.floor is None
    assert result.metrics == "means and deviations"


def test_a_floor_is_shown_where_there_is_one(pictures: sds.FunctionModel) -> None:
    result = sds.compare(pictures, "euler", 3, scorer=WithFloor(), **FEW)
    assert result.floor == Score(4, 0.125, None)
    sheet = image_table(View(result), 4)
    assert f"FD {result.cells[0].frechet:.3g} (real 0.125)" in sheet.rows[0][1][0].caption
    assert "FD: Frechet distance, squared feature units" in sheet.note
    assert "halves, 4 samples, seed 0" in sheet.note
    assert result.picture().size == sheet.image().size


class Broken(Means):
    def features(self, samples: torch.Tensor) -> np.ndarray:
        raise KeyError("weights")


class Flat(Means):
    def features(self, samples: torch.Tensor) -> np.ndarray:
        return np.zeros(len(samples))


class NoScore(Means):
    def score_features(self, features: np.ndarray) -> Any:
        return "fine"


class OnlyScore:
    description = "score alone"

    def score(self, samples: torch.Tensor) -> Score:
        return Score(len(samples), 0.0, None)


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (Broken(), r"Broken does not work: KeyError: 'weights' \(test_comparison.py, line \d+\)"),
        (Flat(), r"features of 2 images must be numbers of shape \(2, D\)"),
        (NoScore(), "score_features must return a Score"),
        (OnlyScore(), "OnlyScore lacks features"),
        ("fid", "str lacks description"),
    ],
)
def test_a_broken_scorer_is_refused_before_anything_runs(
    pictures: sds.FunctionModel, monkeypatch: pytest.MonkeyPatch, scorer: Any, message: str
) -> None:
    monkeypatch.setattr(runs, "sample", lambda *a, **k: pytest.fail("a sampler ran"))
    with pytest.raises(sds.UsageError, match=message):
        sds.compare(pictures, "euler", 3, scorer=scorer, **FEW)


def test_nothing_is_lost_to_a_scorer_that_fails_later(pictures: sds.FunctionModel) -> None:
    scorer = Means()
    scorer.fails_at = 2  # the trial and the first cell
    result = sds.compare(pictures, ["euler", "ddim"], 3, scorer=scorer, **FEW)
    first, second = result.cells
    assert first.frechet is not None
    assert first.scoring_problem is None
    assert (second.frechet, second.nfe) == (None, 3)
    assert "RuntimeError: the device is gone" in (second.scoring_problem or "")
    assert torch.equal(result.samples["ddim", 3], sds.sample(pictures, "ddim", nfe=3, num_samples=4).samples)


def test_a_refused_cell_says_why() -> None:
    wide = sds.FunctionModel(Net(), sds.VP(), "epsilon", (1, 64, 256), data_range=(-1.0, 1.0))
    result = sds.compare(wide, ["euler", "heun", "paradigms"], [1, 4], **FEW)
    refused = {(cell.sampler, cell.budget): cell.problem for cell in result.cells if cell.problem}
    assert "number of evaluations depends on the states" in (refused["paradigms", 4] or "")
    rows = dict(image_table(View(result), 4).rows)
    assert rows["paradigms"][1].reason == refused["paradigms", 4]
    assert rows["euler"][1].picture is not None
    assert result.picture().width > 2 * 256


def test_what_figures_need_is_kept(mixture: sds.MixtureModel) -> None:
    """The error of each sample, the reference, and trajectories that are those of `sample`, scaled."""
    ve = sds.grid_mixture(sds.VE())
    for model in (mixture, ve):
        result = sds.compare(model, ["heun", "ddpm", "rk45"], 6, num_samples=5, reference_samples=4, trajectories=2)
        heun, ddpm, _ = result.cells
        assert result.reference is not None
        difference = (result.samples["heun", 6][:4].double() - result.reference).square().mean(1).sqrt()
        assert heun.errors == pytest.approx(difference.tolist(), rel=1e-4, abs=1e-6)
        assert heun.error == pytest.approx(float(np.sqrt(np.mean(np.square(heun.errors)))))
        assert (heun.drew_noise, ddpm.drew_noise, ddpm.errors) == (False, True, None)
        way = result.trajectories["heun", 6]
        exact = sds.sample(model, "heun", nfe=6, num_samples=2, trajectory=True).trajectory
        assert exact is not None
        times = exact.times[:-1]
        scale = np.hypot(model.process.alpha(times), model.process.sigma(times))
        expected = exact.states[:-1] / torch.from_numpy(np.asarray(scale))[:, None, None]
        assert torch.allclose(way.states[:-1], expected.float(), rtol=1e-5)
        assert torch.allclose(way.states[-1], result.samples["heun", 6][:2].float(), atol=1e-5)
        starts = [t.states[0] for key, t in result.trajectories.items()]
        assert all(torch.allclose(start, starts[0], rtol=1e-4, atol=1e-4) for start in starts)
        assert set(result.as_dict()["cells"][0]) == set(vars(heun))


def test_a_trajectory_that_fails_loses_nothing(mixture: sds.MixtureModel, monkeypatch: pytest.MonkeyPatch) -> None:
    real = trajectories.sample

    def sample(*arguments: Any, **options: Any) -> Any:
        if options.get("trajectory"):
            raise sds.NonFiniteError("not finite")
        return real(*arguments, **options)

    monkeypatch.setattr(trajectories, "sample", sample)
    with pytest.warns(UserWarning, match="no trajectories of euler at 3 evaluations: not finite"):
        result = sds.compare(mixture, "euler", 3, trajectories=2, **FEW)
    assert (result.cells[0].nfe, result.trajectories) == (3, {})


def test_a_comparison_is_printed_as_its_table(mixture: sds.MixtureModel) -> None:
    result = sds.compare(mixture, ["euler", "rk4"], [3, 4], metrics={"spread": lambda x: float(x.std())}, num_samples=4)
    lines = str(result).splitlines()
    assert lines[0] == repr(result)[1:-1]
    assert len(lines) == 6
    assert lines[1].split()[:3] == ["sampler", "budget", "NFE"]
    assert result.cells[0].error is not None
    assert f"{result.cells[0].error:.3g}" in lines[2]
    assert f"{result.cells[0].metrics['spread']:.3g}" in lines[2]
    assert repr(result.cells[0]).startswith("<Cell euler at 3: 3 NFE, error ")
    assert lines[4].split()[:2] == ["rk4", "3"]
    assert len(repr(result)) < 120


def test_objects_stand_beside_names(mixture: sds.MixtureModel) -> None:
    recipe = sds.sample(mixture, "ddim", steps=7, eta=0.5, spacing="karras").recipe
    heun, quadratic = sds.samplers()["heun"], sds.spacings()["quadratic"]
    result = sds.compare(mixture, ["ddim", heun, recipe], 6, **FEW)
    assert [cell.sampler for cell in result.cells] == ["ddim", "heun", "ddim #2"]
    again = sds.sample(mixture, "ddim", steps=6, eta=0.5, spacing="karras", num_samples=4).samples
    assert torch.equal(result.samples["ddim #2", 6], again)
    by_object = sds.compare(mixture, heun, 6, spacing=quadratic, **FEW)
    by_name = sds.compare(mixture, "heun", 6, spacing="quadratic", **FEW)
    assert torch.equal(by_object.samples["heun", 6], by_name.samples["heun", 6])
    with pytest.raises(sds.UsageError, match="this Recipe has its own grid"):
        sds.compare(mixture, sds.sample(mixture, "euler", times=[1.0, 0.5, 0.1]).recipe, 6, **FEW)
    with pytest.raises(sds.UsageError, match="must be names, Samplers, Recipes, SolverTables or Tunings, not 3"):
        sds.compare(mixture, ["euler", 3], 6, **FEW)  # type: ignore[list-item]


def test_the_files_say_what_ran(pictures: sds.FunctionModel, tmp_path: Path) -> None:
    result = sds.compare(pictures, ["dpmpp-2m", "ddim"], [4], spacing="karras", coordinates="ve", seed=3, **FEW)
    files = result.save(tmp_path)
    told = json.loads(files["json"].read_text())
    assert told["schema_version"] == 2
    weights = hashlib.sha256(b"part torch.float32 ()\n" + np.float32(0.5).tobytes()).hexdigest()
    assert told["groups"][0]["model"]["weights_sha256"] == weights
    assert told["environment"]["torch"] == torch.__version__
    assert told["environment"]["sdesamplers"] == sds.__version__
    for cell in told["cells"]:
        assert cell["recipe"]["spacing"] == "karras"
        assert cell["recipe"]["coordinates"] == "ve"
        assert len(cell["times"]) == cell["steps"] + 1
        again = sds.sample(pictures, cell["recipe"], num_samples=4, seed=told["seed"])
        assert torch.equal(again.samples, result.samples[cell["sampler"], 4])
        model = pictures.process
        ratios = [model.ratio(t) for t in cell["times"][:-1]]
        assert cell["ratios"][:-1] == pytest.approx(ratios, rel=1e-9)
        assert cell["ratios"][-1] == 0.0
    rows = list(csv.DictReader(io.StringIO(files["csv"].read_text())))
    assert [row["sampler"] for row in rows] == ["dpmpp-2m", "ddim"]
    assert {row["weights_sha256"] for row in rows} == {weights}
    assert {row["schema_version"] for row in rows} == {"2"}
    assert json.loads(rows[1]["recipe"]) == told["cells"][1]["recipe"]
    assert json.loads(rows[1]["options"])["eta"] == 0.0
    assert rows[0]["coordinates"] == "ve"


def test_numbers_are_kept_where_no_picture_can_be_made(mixture: sds.MixtureModel, tmp_path: Path) -> None:
    line = sds.GaussianModel([0.0], 1.0, sds.VP())
    with pytest.warns(UserWarning, match="compare.png is not written: samples of shape .* cannot be shown"):
        files = sds.compare(line, "euler", 3, **FEW).save(tmp_path)
    assert set(files) == {"json", "csv"}


def test_the_command_line_takes_a_guidance_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def compared(model: Any, samplers: Any, nfe: Any, **words: Any) -> Any:
        given.update(words)
        raise sds.UsageError("enough")

    monkeypatch.setattr(comparison, "compare", compared)
    run = CliRunner().invoke(
        cli,
        ["compare", "fashion-mnist", "--samplers", "euler", "--guidance-scale", "2.5", "--out", str(tmp_path / "o")],
    )
    assert "enough" in str(run.exception)
    assert given["guidance_scale"] == 2.5
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    run = CliRunner().invoke(cli, ["compare", "fashion-mnist", "--reference", str(tmp_path / "none")])
    assert "no such folder of images" in str(run.exception) or "torch-fidelity" in str(run.exception)
