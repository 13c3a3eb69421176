"""Several models and guidance scales, repeats, metrics, and the number of samples that are kept."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pytest
import torch

import sdesamplers as sds
from sdesamplers.comparison.cell import Cell

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot tell apart", "ignore:.*lie far outside")


class Classes(torch.nn.Module):
    """Epsilon of a Gaussian of variance 1 around the condition, on VP: eps = sigma (x - alpha c)."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        process = sds.VP()
        alpha, sigma = (torch.as_tensor(f(t.double().numpy()), dtype=x.dtype) for f in (process.alpha, process.sigma))
        return sigma * (x - alpha * condition.reshape(-1, 1))


def classes(name: str = "classes") -> sds.FunctionModel:
    return sds.FunctionModel(Classes(), sds.VP(), "epsilon", (2,), conditional=True, null_condition=0.0, name=name)


def test_every_model_and_guidance_scale_has_its_cells() -> None:
    result = sds.compare(
        [classes("one"), classes("one"), classes("two")],
        ["ddim", "heun"],
        [4, 6],
        guidance_scale=[1.0, 3.0],
        condition=1.0,
        num_samples=3,
        reference_samples=3,
    )
    assert len(result.cells) == 3 * 2 * 2 * 2
    assert list(dict.fromkeys(cell.model for cell in result.cells)) == ["one", "one #2", "two"]
    assert result.samples == {}
    assert result.guidance_scale is None
    for scale in (1.0, 3.0):
        group = result.select("two", scale)
        expected = sds.sample(classes(), "heun", nfe=6, condition=1.0, guidance_scale=scale, num_samples=3).samples
        assert torch.equal(group.samples["heun", 6], expected)
        cell = next(each for each in group.cells if (each.sampler, each.budget) == ("heun", 6))
        # In closed form the guided model is a Gaussian around scale * condition, whose ODE keeps x - mean.
        start = sds.sample(classes(), "rk45", condition=1.0, guidance_scale=scale, num_samples=3, rtol=1e-8, atol=1e-8)
        own = (expected.double() - start.samples.double()).square().mean(1).sqrt()
        assert cell.errors == pytest.approx(own.tolist(), abs=3e-5)
        assert cell.error == pytest.approx(float(own.square().mean().sqrt()), abs=3e-5)
    with pytest.raises(sds.UsageError, match=r"choose one model and guidance scale .*'one' at 1, 'one' at 3"):
        result.recommend(nfe=6)
    rows = list(csv.DictReader(io.StringIO(result.as_csv())))
    assert [(row["model"], float(row["guidance_scale"])) for row in rows[::4]] == [
        (name, scale) for name in ("one", "one #2", "two") for scale in (1.0, 3.0)
    ]
    picture = pytest.importorskip("matplotlib") and result.picture()
    assert picture.height > 6 * 200


def test_models_are_checked_before_the_first_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdesamplers.comparison import runs

    monkeypatch.setattr(runs, "sample", lambda *a, **k: pytest.fail("a sampler ran"))
    for words, message in (
        ({"model": [classes(), "nowhere"]}, "nowhere"),
        ({"model": []}, "at least one model"),
        ({"model": [classes(), 3]}, "model must be"),
        ({"model": classes(), "guidance_scale": []}, "at least one guidance_scale"),
        ({"model": classes(), "guidance_scale": ["x"]}, "guidance_scale must be a number"),
        ({"model": classes(), "repeats": 0}, "repeats must be"),
        ({"model": classes(), "keep_samples": -1}, "keep_samples must be"),
        ({"model": classes(), "on_cell": 3}, "on_cell must be a function"),
        ({"model": classes(), "metrics": [len]}, "metrics must be a dictionary"),
        ({"model": classes(), "metrics": {"error": len}}, "the name of a metric"),
        ({"model": classes(), "metrics": {"a b": len}}, "the name of a metric"),
        ({"model": classes(), "metrics": {"a": 3}}, "must be a function"),
        ({"model": classes(), "metrics": {"a": lambda x: x[:, 9]}}, "metric 'a' does not work on noise: IndexError"),
        ({"model": classes(), "metrics": {"a": lambda x: x}}, "must return a number or 64 numbers"),
        ({"model": classes(), "metrics": {"a": lambda x: x.sum() / 0}}, "not finite"),
    ):
        with pytest.raises((sds.UsageError, sds.ModelError)) as refused:
            sds.compare(samplers="ddim", nfe=4, **words)  # type: ignore[arg-type]
        assert message in str(refused.value)


def test_repeats_are_runs_with_other_seeds() -> None:
    metrics = {"first": lambda x: x[:, 0], "top": lambda x: float(x.max())}
    words: dict[str, Any] = {"num_samples": 5, "reference_samples": 3, "metrics": metrics}
    (cell,) = sds.compare(sds.grid_mixture(sds.VP()), "ddim", 5, seed=4, repeats=3, **words).cells
    singles = [sds.compare(sds.grid_mixture(sds.VP()), "ddim", 5, seed=seed, **words).cells[0] for seed in (4, 5, 6)]
    errors = [value for single in singles for value in single.errors or []]
    assert cell.errors == errors
    assert cell.error == pytest.approx(np.sqrt(np.square(errors).mean()), rel=1e-12)
    tops = [single.metrics["top"] for single in singles]
    assert cell.metrics["top"] == pytest.approx(np.mean(tops), rel=1e-12)
    assert [repeat["top"] for repeat in cell.repeats] == tops
    assert [repeat["seed"] for repeat in cell.repeats] == [4, 5, 6]
    assert cell.per_sample["first"] == [value for single in singles for value in single.per_sample["first"]]
    assert set(cell.intervals) == {"error", "first", "top", "seconds"}
    low, high = cell.intervals["error"]
    assert low < (cell.error or 0) < high
    samples = torch.cat([
        sds.sample(sds.grid_mixture(sds.VP()), "ddim", nfe=5, seed=seed, num_samples=5).samples for seed in (4, 5, 6)
    ])  # fmt: skip
    assert cell.metrics["first"] == pytest.approx(float(samples[:, 0].mean()), rel=1e-6)


def test_a_metric_that_fails_later_loses_nothing_else() -> None:
    calls: list[int] = []

    def fails(samples: torch.Tensor) -> float:
        calls.append(len(samples))
        if len(calls) == 3:
            raise RuntimeError("the device is gone")
        return 1.0

    words: dict[str, Any] = {"num_samples": 4, "reference_samples": 0}
    result = sds.compare(classes(), ["ddim", "heun"], 4, metrics={"mine": fails, "size": len}, condition=1.0, **words)
    first, second = result.cells
    assert (first.metrics, second.metrics) == ({"mine": 1.0, "size": 4.0}, {"size": 4.0})
    assert "RuntimeError: the device is gone" in (second.scoring_problem or "")


def test_few_samples_are_kept_of_many() -> None:
    model = sds.FunctionModel(lambda x, t: 0.5 * x, sds.VP(), "epsilon", (1, 64, 64), data_range=(-1.0, 1.0))
    seen: list[int] = []
    words: dict[str, Any] = {
        "num_samples": 300,
        "reference_samples": 0,
        "metrics": {"count": lambda x: seen.append(len(x)) or 1},
    }
    result = sds.compare(model, "ddim", 1, **words)
    assert seen == [300, 300]  # a metric has all samples, on noise and on the run
    kept = result.samples["ddim", 1]
    assert kept.shape == (256, 1, 64, 64)  # 2^20 numbers
    assert kept.untyped_storage().nbytes() == 2**22  # not a view of all samples
    one = sds.compare(model, "ddim", 1, keep_samples=1, num_samples=3, reference_samples=0).samples["ddim", 1]
    assert torch.equal(one, kept[:1])


def test_cells_arrive_as_they_finish() -> None:
    found: list[Cell] = []
    lines: list[str] = []
    words: dict[str, Any] = {"num_samples": 2, "reference_samples": 2, "progress": lines.append}
    result = sds.compare(sds.grid_mixture(sds.VP()), ["ddim", "heun"], [3, 4], on_cell=found.append, **words)
    assert found == result.cells
    assert lines == [
        "reference: rk45 at tolerance 1e-05 for 2 samples",
        *(f"{name}, {budget} evaluations" for name in ("ddim", "heun") for budget in (3, 4)),
    ]
