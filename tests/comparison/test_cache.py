"""Finished runs: what is taken from the folder, what is made again, and what a damaged or full disk does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sdesamplers as sds
from sdesamplers.comparison import cache, runs
from sdesamplers.comparison.cache import function_identity
from sdesamplers.metrics import Score

COMMON: dict[str, Any] = {"num_samples": 4, "reference_samples": 2}
pytestmark = pytest.mark.filterwarnings("ignore:.*cannot tell apart", "ignore:.*lie far outside the data range")


class Net(torch.nn.Module):
    """A network of vectors that returns a multiple of its input."""

    def __init__(self, part: float = 0.5) -> None:
        super().__init__()
        self.part = torch.nn.Parameter(torch.tensor(part))

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        return self.part * x + (0.0 if condition is None else 0.1 * condition.reshape(-1, 1))


def model(part: float = 0.5, **words: Any) -> sds.FunctionModel:
    given = {"conditional": True, "null_condition": 0.0, "name": "halves", **words}
    return sds.FunctionModel(Net(part), sds.VP(), "epsilon", (3,), **given)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """The runs that are really made: sampler, budget and seed; "rk45" without a budget is the reference."""
    found: list[tuple[str, int, int]] = []
    sample = runs.sample

    def counted(model: Any, sampler: Any, **words: Any) -> Any:
        found.append((str(sampler), words.get("nfe", 0), words["seed"]))
        return sample(model, sampler, **words)

    monkeypatch.setattr(runs, "sample", counted)
    return found


def without_time(result: sds.Comparison) -> list[dict[str, Any]]:
    cells = [asdict(cell) for cell in result.cells]
    return [{key: value for key, value in cell.items() if key not in ("seconds", "intervals")} for cell in cells]


def test_a_comparison_grows_by_its_new_runs_alone(made: list[Any], tmp_path: Path) -> None:
    def compare(samplers: list[str], budgets: list[int], **words: Any) -> sds.Comparison:
        made.clear()
        given = {"condition": 1.0, "cache": tmp_path / "runs", **COMMON, **words}
        return sds.compare(model(), samplers, budgets, **given)

    first = compare(["ddim", "heun"], [3, 5])
    assert made == [("rk45", 0, 0), ("ddim", 3, 0), ("ddim", 5, 0), ("heun", 3, 0), ("heun", 5, 0)]
    again = compare(["ddim", "heun"], [3, 5])
    assert made == []
    assert again.as_dict() == first.as_dict()  # times included, since nothing ran
    assert again.reference is not None
    assert first.reference is not None
    assert torch.equal(again.reference, first.reference)
    for key, samples in first.samples.items():
        assert torch.equal(again.samples[key], samples)
    more = compare(["ddim", "heun", "ddim eta=0.5"], [3, 5, 6])  # heun makes 5 evaluations of both 5 and 6
    assert made == [("ddim", 6, 0), ("ddim", 3, 0), ("ddim", 5, 0), ("ddim", 6, 0)]
    fresh = sds.compare(model(), ["ddim", "heun", "ddim eta=0.5"], [3, 5, 6], condition=1.0, **COMMON)
    assert without_time(more) == without_time(fresh)
    compare(["ddim"], [3], repeats=3)
    assert made == [("ddim", 3, 1), ("rk45", 0, 1), ("ddim", 3, 2), ("rk45", 0, 2)]
    compare(["ddim"], [3], guidance_scale=[1.0, 2.0])
    assert made == [("rk45", 0, 0), ("ddim", 3, 0)]


def mean_of_first(samples: torch.Tensor) -> torch.Tensor:
    return samples[:, 0]


def mean_of_second(samples: torch.Tensor) -> torch.Tensor:
    return samples[:, 1]


class Moments:
    """A scorer with a state of its own."""

    description = "moments"

    def __init__(self, power: int) -> None:
        self.power = power

    def features(self, samples: torch.Tensor) -> np.ndarray:
        return (samples.double() ** self.power).numpy()

    def score_features(self, features: np.ndarray) -> Score:
        return Score(len(features), float(features.mean()), None)


CHANGES: dict[str, tuple[Callable[[], sds.FunctionModel], dict[str, Any]]] = {
    "weights": (lambda: model(0.25), {}),
    "code of a model without weights": (lambda: sds.FunctionModel(
        lambda x, t, c: 0.4 * x, sds.VP(), "epsilon", (3,), conditional=True, null_condition=0.0, name="halves"), {}),
    "prediction": (lambda: sds.FunctionModel(
        Net(), sds.VP(), "sample", (3,), conditional=True, null_condition=0.0, name="halves"), {}),
    "process": (lambda: sds.FunctionModel(
        Net(), sds.VP(beta_max=15.0), "epsilon", (3,), conditional=True, null_condition=0.0, name="halves"), {}),
    "seed": (model, {"seed": 1}),
    "number of samples": (model, {"num_samples": 5}),
    "condition": (model, {"condition": 2.0}),
    "conditions of each": (model, {"condition": [1.0, 1.0, 1.0, 2.0]}),
    "guidance": (model, {"guidance_scale": 2.0}),
    "spacing": (model, {"spacing": "karras"}),
    "an option": (model, {"eta": 0.5}),
    "dtype": (model, {"dtype": torch.float64}),
    "first sample": (model, {"first_index": 1}),
    "samples of the reference": (model, {"reference_samples": 3}),
    "metric": (model, {"metrics": {"first": mean_of_second}}),
    "name of the metric": (model, {"metrics": {"other": mean_of_first}}),
    "scorer": (model, {"scorer": Moments(2)}),
    "refusal of infinite samples": (model, {"check_finite": False}),
    "samples that are kept": (model, {"keep_samples": 1}),
}  # fmt: skip


class Scaled(sds.Model):
    """A user's own class, which the probe's five digits cannot tell apart."""

    def __init__(self, factor: Any) -> None:
        self.process, self.prediction, self.shape, self.name = sds.VP(), "epsilon", (3,), "halves"
        self.dtype, self.device, self.factor = torch.float32, torch.device("cpu"), factor

    def predict(self, x: torch.Tensor, t: Any, condition: Any = None) -> torch.Tensor:
        return (self.factor if isinstance(self.factor, float) else self.factor.value) * x


def by_network(part: float) -> sds.FunctionModel:
    net = Net(part)
    return sds.FunctionModel(lambda x, t: net(x, t), sds.VP(), "epsilon", (3,), name="halves")


def scaled(x: torch.Tensor, t: torch.Tensor, factor: float) -> torch.Tensor:
    return factor * x


def by_partial(factor: float) -> sds.FunctionModel:
    return sds.FunctionModel(functools.partial(scaled, factor=factor), sds.VP(), "epsilon", (3,), name="halves")


def guided(factor: float) -> sds.Guided:
    return sds.Guided(
        model(), 3.0, combine=lambda with_it, without, scale: without + scale * factor * (with_it - without)
    )


@pytest.mark.parametrize("make", [by_network, by_partial, Scaled, lambda part: sds.Guided(Scaled(part), 1.0), guided])
def test_small_changes_of_functions_are_changes(made: list[Any], tmp_path: Path, make: Callable[..., Any]) -> None:
    words: dict[str, Any] = {"num_samples": 2, "reference_samples": 0}
    for part, count in ((0.5, 1), (0.5, 0), (0.5 + 1e-7, 1)):
        made.clear()
        sds.compare(make(part), "ddim", 3, cache=tmp_path, **words)
        assert len(made) == count


def test_lambdas_of_one_line_are_told_apart() -> None:
    metrics = [lambda samples: 1 * samples.mean(), lambda samples: 2 * samples.mean()]
    assert function_identity(metrics[0]) != function_identity(metrics[1])


def test_models_whose_state_is_unknown_are_run_again(made: list[Any], tmp_path: Path) -> None:
    class Factor:
        value = 0.5

    for _ in range(2):
        made.clear()
        with pytest.warns(UserWarning, match="model 'halves' .* earlier runs, which are made again: Factor"):
            sds.compare(Scaled(Factor()), "ddim", 3, cache=tmp_path, **COMMON)
        assert [name for name, *_ in made] == ["rk45", "ddim"]
    named = Scaled(Factor())
    named.identity = "a half"  # type: ignore[attr-defined]
    for count in (2, 0):
        made.clear()
        sds.compare(named, "ddim", 3, cache=tmp_path, **COMMON)
        assert len(made) == count


def test_the_end_of_the_reference_is_part_of_the_identity(made: list[Any], tmp_path: Path) -> None:
    errors = []
    for folder in (tmp_path, tmp_path, None):
        given: dict[str, Any] = {"final": "min" if not errors else "zero", "cache": folder, **COMMON}
        errors.append(sds.compare(model(), "euler final=zero", 3, **given).cells[0].error)
    assert errors[0] != errors[1] == errors[2]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_identity_is_never_taken(made: list[Any], tmp_path: Path, change: str) -> None:
    base: dict[str, Any] = {
        "condition": 1.0, "metrics": {"first": mean_of_first}, "scorer": Moments(1), "cache": tmp_path, **COMMON
    }  # fmt: skip
    sds.compare(model(), "ddim", 3, **base)
    made.clear()
    sds.compare(model(), "ddim", 3, **base)
    assert made == []
    another, words = CHANGES[change]
    sds.compare(another(), "ddim", 3, **{**base, **words})
    assert [run for run in made if run[0] == "ddim"] == [("ddim", 3, words.get("seed", 0))]


def test_the_code_of_an_own_sampler_is_part_of_the_identity(made: list[Any], tmp_path: Path) -> None:
    def sampler_of(factor: float) -> sds.Sampler:
        @sds.sampler("mine", order=1)
        def mine(x: Any, path: Any) -> Any:
            """Moves by a factor."""
            for now, then in path.steps:
                out = yield x, now
                x = out.x + factor * (then.time - now.time) * out.velocity
            return x

        return mine

    for factor, count in ((1.0, 1), (1.0, 1), (0.5, 2)):
        sds.compare(model(), sampler_of(factor), 3, cache=tmp_path, num_samples=2, reference_samples=0)
        assert len(made) == count


def test_an_interrupted_comparison_continues(made: list[Any], tmp_path: Path) -> None:
    words: dict[str, Any] = {"cache": tmp_path, "trajectories": 1, **COMMON}
    finished: list[Any] = []

    def stop(cell: Any) -> None:
        finished.append(cell.sampler)
        if len(finished) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sds.compare(model(), ["ddim", "heun", "euler"], 4, on_cell=stop, **words)
    made.clear()
    result = sds.compare(model(), ["ddim", "heun", "euler"], 4, **words)
    assert made == [("euler", 4, 0)]
    unbroken = sds.compare(model(), ["ddim", "heun", "euler"], 4, **{**words, "cache": None})
    assert without_time(result) == without_time(unbroken)
    for key, path in unbroken.trajectories.items():
        assert torch.equal(result.trajectories[key].states, path.states)
        assert np.array_equal(result.trajectories[key].times, path.times, equal_nan=True)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other file", "folder"])
def test_a_damaged_file_is_made_again_with_a_warning(made: list[Any], tmp_path: Path, damage: str) -> None:
    words: dict[str, Any] = {"cache": tmp_path, "num_samples": 4, "reference_samples": 0}
    first = sds.compare(model(), "ddim", 3, **words)
    (file,) = tmp_path.glob("*.safetensors")
    content = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    else:
        changed = bytes([content[-1] ^ 1])
        pieces = {
            "cut": content[:-9],
            "flipped": content[:-1] + changed,
            "empty": b"",
            "other file": b"PK\x03\x04" * 99,
        }
        file.write_bytes(pieces[damage])
    made.clear()
    with pytest.warns(UserWarning, match="the run is made again|finished runs are not kept"):
        again = sds.compare(model(), "ddim", 3, **words)
    assert made == [("ddim", 3, 0)]
    assert torch.equal(again.samples["ddim", 3], first.samples["ddim", 3])
    if damage != "folder":
        made.clear()
        sds.compare(model(), "ddim", 3, **words)
        assert made == []


def test_a_full_disk_loses_the_cache_and_not_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*words: Any) -> None:
        raise sds.SdesamplersError("No space left on device")

    monkeypatch.setattr(cache, "write", full)
    with pytest.warns(UserWarning, match="finished runs are not kept: No space left") as warned:
        result = sds.compare(model(), ["ddim", "heun"], 3, cache=tmp_path, **COMMON)
    assert all(cell.error is not None for cell in result.cells)
    assert sum("not kept" in str(each.message) for each in warned) == 1


def test_metrics_whose_state_is_unknown_are_never_taken_from_the_cache(made: list[Any], tmp_path: Path) -> None:
    class Metric:
        def __call__(self, samples: torch.Tensor) -> float:
            return float(samples.mean())

    words: dict[str, Any] = {"cache": tmp_path, "num_samples": 4, "reference_samples": 0}
    for _ in range(2):
        made.clear()
        with pytest.warns(UserWarning, match="metric 'mean' cannot be compared with that of earlier runs"):
            sds.compare(model(), "ddim", 3, metrics={"mean": Metric()}, **words)
        assert made == [("ddim", 3, 0)]
    named = Metric()
    named.identity = "mean of all, version 1"  # type: ignore[attr-defined]
    for count in (1, 0):
        made.clear()
        sds.compare(model(), "ddim", 3, metrics={"mean": named}, **words)
        assert len(made) == count
    assert not list(tmp_path.glob(".*"))  # no temporary files


SHIFT = 1.0


def test_identities_of_functions() -> None:
    def multiple(factor: Any) -> Any:
        return lambda samples: (factor * samples).mean()

    def through(function: Any) -> Any:
        return lambda samples: function(samples)

    same = function_identity(multiple(2.0))
    assert same == function_identity(multiple(2.0))
    identities = [
        same,
        function_identity(multiple(3.0)),
        function_identity(multiple(torch.ones(3))),
        function_identity(multiple(torch.zeros(3))),
        function_identity(multiple(np.ones(3))),
        function_identity(multiple(Net(0.5))),
        function_identity(multiple(Net(0.25))),
        function_identity(through(np.mean)),
        function_identity(through(np.median)),
        function_identity(through(multiple(2.0))),
        function_identity(through(multiple(3.0))),
        function_identity(lambda samples, power=2: samples.mean()),
        function_identity(lambda samples, power=3: samples.mean()),
        function_identity(lambda samples: SHIFT * samples.mean()),
    ]
    assert None not in identities
    assert len(set(identities)) == len(identities)
    for opaque in (multiple(object()), through(Net().forward), through([].count), Net(), Moments(1).features):
        assert function_identity(opaque) is None
