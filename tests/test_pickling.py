"""Errors, results, models and processes go to other processes by pickle, and are copied; what cannot says why."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from lanes import mostly_slow
from process_cases import TABLE

import sdesamplers as sds
from sdesamplers import errors

WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
PROCESSES = [
    sds.VP(),
    sds.ConstantVP(),
    sds.CosineVP(),
    sds.SubVP(),
    sds.VE(),
    sds.EDM(),
    sds.RectifiedFlow(3.0),
    sds.ShiftedFlow(2.0),
    sds.TrigFlow(),
    sds.DiscreteVP(TABLE),
]
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))


class Net(torch.nn.Module):
    """A little network of a state and a time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * t


class Flow(Net):
    """The same of two times."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, end: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.layer(x) * (t + 2 * end)


def log_normal(x: torch.Tensor) -> torch.Tensor:
    return -0.5 * x.square().sum(1)


MODELS: dict[str, Callable[[], sds.Model]] = {
    "mixture": lambda: sds.grid_mixture(sds.VP()),
    "gaussian": lambda: sds.GaussianModel([0.0, 1.0], 2.0, sds.EDM()),
    "module": lambda: sds.FunctionModel(Net(), sds.VP(), "epsilon", (2,)),
    "flow map": lambda: sds.FlowMapModel(Flow(), sds.RectifiedFlow(), (2,)),
    "density": lambda: sds.DensityModel(log_normal, (2,)),
    "funnel": lambda: sds.FunnelModel(3),
    "guided": lambda: sds.Guided(sds.grid_mixture(sds.VP()), 1.0),
}


def error_classes() -> list[type[errors.SdesamplersError]]:
    found, waiting = [], [errors.SdesamplersError]
    while waiting:
        found.append(waiting.pop())
        waiting += found[-1].__subclasses__()
    return sorted(found, key=lambda kind: kind.__name__)


@each_way
@pytest.mark.parametrize("kind", error_classes(), ids=lambda kind: kind.__name__)
def test_an_error_keeps_its_message_and_attributes(kind: type[errors.SdesamplersError], way: Any) -> None:
    made = {
        "UnknownNameError": lambda: errors.UnknownNameError("sampler", "eulr", ["euler", "heun"]),
        "UnknownHookError": lambda: errors.UnknownHookError("hook", "sdesamplers_sampler", ["sdesamplers_samplers"]),
    }
    error = made.get(kind.__name__, lambda: kind("what was wrong"))()
    again = way(error)
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    if kind is errors.UnknownNameError:
        assert (again.kind, again.name) == ("sampler", "eulr")


def test_an_error_of_a_constructor_of_its_own_is_pickled() -> None:
    again = pickle.loads(pickle.dumps(Special(3, where="here")))
    assert (str(again), again.where) == ("3 things", "here")


class Special(sds.UsageError):
    def __init__(self, count: int, *, where: str) -> None:
        super().__init__(f"{count} things")
        self.where = where


def mistyped(seed: int) -> float:
    return float(sds.sample(sds.grid_mixture(sds.VP()), "eulr", steps=2, seed=seed).samples.sum())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_mistyped_sampler_in_a_worker_reaches_its_parent() -> None:
    with (
        multiprocessing.get_context("fork").Pool(1) as pool,
        pytest.raises(sds.UnknownNameError, match="did you mean 'euler'"),
    ):
        pool.apply_async(mistyped, (0,)).get(60)


@each_way
@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_processes_and_their_views(process: sds.GaussianProcess, way: Any) -> None:
    views = [process]
    for coordinates in ("native", "ve", "flow", "angle"):
        if coordinates != "ve" or np.isfinite(process.ratio(process.t_max)):
            views.append(sds.view(process, coordinates))
    for each in views:
        again, times = way(each), np.linspace(each.t_min, each.t_max, 7)
        assert type(again) is type(each)
        assert np.array_equal(again.alpha(times), each.alpha(times))
        assert np.array_equal(again.sigma(times), each.sigma(times))


@each_way
@pytest.mark.parametrize("name", MODELS)
def test_models_draw_the_same_samples(name: str, way: Any) -> None:
    model = MODELS[name]()
    again = way(model)
    density = isinstance(model, sds.DensityModel)
    words: dict[str, Any] = {"steps": 4, "num_samples": 3, "check_finite": False}
    sampler = "euler-maruyama" if density else "flow-map-euler" if name == "flow map" else "heun"
    assert torch.equal(sds.sample(again, sampler, **words).samples, sds.sample(model, sampler, **words).samples)


def test_a_deep_copy_of_a_density_asks_its_own_function() -> None:
    model = sds.DensityModel(Energy(), (2,))
    again = copy.deepcopy(model)
    again.log_density.scale = 3.0  # type: ignore[attr-defined]
    x = torch.ones(1, 2, dtype=torch.float64)
    assert model.process.drift(x, 0.0).tolist() == [[-0.5, -0.5]]
    assert again.process.drift(x, 0.0).tolist() == [[-1.5, -1.5]]


class Energy:
    scale = 1.0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return -0.5 * self.scale * x.square().sum(1)


@pytest.mark.filterwarnings("ignore:the model of a .* evaluates the denoising network alone")
@pytest.mark.parametrize("name", mostly_slow(sorted(tiny.BUILDERS), keep=tiny.ONE_OF_EACH))
def test_models_of_pipelines(name: str) -> None:
    try:
        model = sds.from_pipeline(tiny.BUILDERS[name]())
    except (sds.ModelError, sds.UsageError):
        pytest.skip("not a model")
    again = pickle.loads(pickle.dumps(model))
    assert (type(again), again.shape, again.prediction) == (type(model), model.shape, model.prediction)
    pairs = zip(model.network.parameters(), again.network.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
    assert copy.copy(model).network is model.network


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_a_pipeline_that_has_encoded_a_prompt(name: str) -> None:
    """transformers leaves hooks without names in text encoders that it has asked for hidden states."""
    model = sds.from_pipeline(tiny.BUILDERS[name]())
    words: dict[str, Any] = {"steps": 2, "condition": tiny.PROMPT, "guidance_scale": 2.0, "seed": 1}
    expected = sds.sample(model, "euler", **words).samples
    again = pickle.loads(pickle.dumps(model))
    for each in (again, model):
        torch.testing.assert_close(sds.sample(each, "euler", **words).samples, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("no_pickler_by_value")
def test_hooks_of_a_users_network() -> None:
    network = torch.nn.Linear(2, 2)
    network.register_forward_hook(same)
    model = sds.FunctionModel(network, sds.VP(), "epsilon", (2,))
    pickle.loads(pickle.dumps(model))
    network.register_forward_pre_hook(lambda module, given: None)
    with pytest.raises(sds.UsageError, match=r"its Linear has a hook, the function .*lambda.*top level of a module"):
        pickle.dumps(model)
    copy.deepcopy(model)


def same(module: Any, given: Any, answer: Any) -> Any:
    return answer


@pytest.mark.slow
def test_a_loaded_model_goes_to_another_process(tmp_path: Any) -> None:
    model = sds.load("fashion-mnist", mixed_precision="bf16", device="cpu")
    file = tmp_path / "model.pickle"
    file.write_bytes(pickle.dumps(model))
    code = (
        "import pickle, sys, warnings; warnings.simplefilter('ignore'); import torch, sdesamplers as sds; "
        "torch.set_num_threads(1); model = pickle.load(open(sys.argv[1], 'rb')); "
        "print(sds.sample(model, 'ddim', steps=3, seed=5).samples.double().sum().item())"
    )
    found = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    here = sds.sample(model, "ddim", steps=3, seed=5).samples.double().sum().item()
    assert float(found.stdout) == pytest.approx(here, abs=1e-3)


@each_way
def test_results(way: Any) -> None:
    model = sds.grid_mixture(sds.VP())
    results: list[Any] = [
        sds.sample(model, "ddpm", steps=4, num_samples=3, log_probs=True, trajectory=True),
        sds.sample(model, "rk45", num_samples=3),
        sds.encode(model, torch.zeros(2, 2), "heun", steps=4),
        sds.sample(sds.load("fashion-mnist"), "ddim", steps=2),
    ]
    for result in results:
        again = way(result)
        assert torch.equal(again.samples, result.samples)
        assert again.recipe == result.recipe
        assert again.nfe == result.nfe
    assert torch.equal(sds.replay_log_probs(model, way(results[0])), results[0].log_probs)
    likelihood = sds.log_likelihood(model, torch.zeros(2, 2), "heun", steps=4)
    assert np.array_equal(way(likelihood).nats, likelihood.nats)
    comparison = sds.compare(model, "heun", 4, num_samples=4, reference_samples=0)
    assert way(comparison).as_dict() == comparison.as_dict()


@each_way
def test_everything_registered_stands_for_itself(way: Any) -> None:
    for shelf in (sds.samplers(), sds.spacings(), sds.noises()):
        for item in shelf.values():
            assert way(item) is item


@pytest.mark.usefixtures("no_pickler_by_value")
def test_what_has_no_name_elsewhere_is_refused_in_a_sentence() -> None:
    class Inside(Net):
        """A network that another process cannot import."""

    lambdas = sds.FunctionModel(lambda x, t: x, sds.VP(), "epsilon", (2,))
    for model, what in (
        (lambdas, r"function is the function .*<lambda>, which another process cannot import by name"),
        (sds.FunctionModel(Inside(), sds.VP(), "epsilon", (2,)), r"function is of the class .*Inside"),
        (sds.DensityModel(lambda x: x.sum(1), (2,)), r"log_density is the function .*<lambda>"),
    ):
        with pytest.raises(sds.UsageError, match=what):
            pickle.dumps(model)
        assert isinstance(copy.deepcopy(model), type(model))  # which stays in this process
        assert isinstance(copy.copy(model), type(model))

    @sds.sampler("nameless", order=1)
    def nameless(x, path):  # type: ignore[no-untyped-def]
        """Euler's method, defined where no other process finds it."""
        for now, then in path.steps:
            out = yield x, now
            x = out.step_to(then)
        return x

    with pytest.raises(sds.UsageError, match="sampler 'nameless' cannot be pickled: it has no name"):
        pickle.dumps(sds.sample(sds.grid_mixture(sds.VP()), nameless, steps=2))
    assert copy.deepcopy(nameless) is nameless


def test_a_pickler_by_value_is_not_in_the_way() -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    model = sds.FunctionModel(lambda x, t: 2 * x, sds.VP(), "epsilon", (2,))
    again = pickle.loads(cloudpickle.dumps(model))
    assert torch.equal(again.predict(torch.ones(1, 2), 0.5), torch.full((1, 2), 2.0))


FORK = """
import multiprocessing, warnings
import torch, sdesamplers as sds
warnings.simplefilter("ignore")

def work(seed):
    return sds.sample(model, "ddim", steps=2, num_samples=2, seed=seed).samples

torch.set_num_threads(2)
model = sds.load("fashion-mnist", device="cpu")
here = work(3)
with multiprocessing.get_context("fork").Pool(1) as pool:
    there = pool.apply_async(work, (3,)).get(60)
print(float((here - there).abs().max() / here.abs().max()), torch.get_num_threads())
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_that_has_sampled_may_fork() -> None:
    found = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=180)
    assert found.returncode == 0, found.stderr
    difference, threads = found.stdout.split()
    assert float(difference) < 1e-4
    assert threads == "2"  # the parent keeps its own
