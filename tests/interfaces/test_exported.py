"""`export_solver`: the loop of its docstring, run in NumPy, is `sample`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from lanes import every_third

import sdesamplers as sds

PROCESSES = {
    "vp": sds.VP(),
    "edm": sds.EDM(0.002, 80),
    "flow": sds.RectifiedFlow(),
    "table": sds.DiscreteVP(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))),
    "cosine": sds.CosineVP(),
    "sub-vp": sds.SubVP(),
}
SAMPLERS = ("ab", "ddim", "dpmpp-2m", "unipc", "heun", "rk4", "lms", "pndm", "quality", "deis", "bdia-ddim", "table")
START = np.linspace(-1.5, 2.0, 6).reshape(2, 3)


def network(x: Any, t: Any) -> Any:
    """A network without weights that depends on state and time; in NumPy or torch."""
    module = torch if isinstance(x, torch.Tensor) else np
    return module.tanh(0.7 * x + 0.1) + 0.01 * module.cos(t)


def model(process: sds.GaussianProcess, prediction: str, **options: Any) -> sds.FunctionModel:
    return sds.FunctionModel(network, process, prediction, (3,), dtype=torch.float64, **options)


def loop(numbers: dict[str, Any], start: np.ndarray) -> np.ndarray:
    """The loop of the docstring, with clipping."""
    numbers = json.loads(json.dumps(numbers))  # as another language reads them
    history = [start]
    maps = zip(numbers["times"], numbers["x0_from_state"], numbers["x0_from_output"], strict=True)
    for (t, a, b), row in zip(maps, numbers["weights"][:-1], strict=True):
        state = sum(w * each for w, each in zip(row, history, strict=True))
        x0 = a * state + b * network(state, t)
        history.append(x0 if numbers["clip"] is None else x0.clip(*numbers["clip"]))
    return sum(w * each for w, each in zip(numbers["weights"][-1], history, strict=True))


def samples(made: sds.Model, sampler: Any, start: np.ndarray, **arguments: Any) -> np.ndarray:
    found = sds.sample(made, sampler, start=torch.from_numpy(start), dtype=torch.float64, **arguments)
    return found.samples.numpy()


@pytest.mark.parametrize(("process", "sampler"), every_third(PROCESSES, SAMPLERS))
def test_the_loop_is_sample(process, sampler):
    made = model(PROCESSES[process], "sample")
    numbers = sds.export_solver(made, sampler, steps=7)
    start = START * numbers["start_std"]
    expected = samples(made, sampler, start, steps=7)
    np.testing.assert_allclose(loop(numbers, start), expected, rtol=1e-8, atol=1e-9)
    assert len(numbers["times"]) == sds.sample(made, sampler, steps=7, num_samples=1).nfe


@pytest.mark.parametrize("prediction", sds.PREDICTIONS)
@pytest.mark.parametrize("process", ["edm", "table", "vp"])
def test_of_every_prediction_type(process, prediction):
    made = model(PROCESSES[process], prediction)
    numbers = sds.export_solver(made, "dpmpp-2m", steps=6)
    start = START * numbers["start_std"]
    np.testing.assert_allclose(loop(numbers, start), samples(made, "dpmpp-2m", start, steps=6), rtol=1e-8, atol=1e-8)


TABLE = sds.SolverTable(
    (1.2, 0.7, 0.3, 0.0),
    ((0.05, 0.9, -0.4), (0.02, 0.93, 0.1, -0.5), (-0.03, 0.97, 0.02, 0.05, -0.35)),
    (1.2, 0.75, 0.28),
)


@pytest.mark.filterwarnings("ignore:the grid starts from pure noise")
@pytest.mark.parametrize(
    "process", [sds.TrigFlow(), sds.RectifiedFlow(), sds.EDM(0.01, 10)], ids=lambda each: type(each).__name__
)
def test_a_solver_table_with_shifted_times(process, tmp_path):
    made = model(process, "sample")
    file = TABLE.save(tmp_path / "mine.json")
    numbers = sds.export_solver(made, str(file))
    np.testing.assert_allclose(np.arctan([float(process.ratio(t)) for t in numbers["times"]]), TABLE.network_angles)
    np.testing.assert_allclose(loop(numbers, START), samples(made, TABLE, START), rtol=1e-12, atol=1e-12)


def test_clipping_to_bounds_is_exported():
    made = model(PROCESSES["table"], "epsilon", data_range=(-1, 1))
    numbers = sds.export_solver(made, "unipc", steps=5)
    assert numbers["clip"] == [-1, 1]
    expected = samples(made, "unipc", START, steps=5)
    np.testing.assert_allclose(loop(numbers, START), expected, rtol=1e-8, atol=1e-8)
    assert np.abs(expected - samples(model(PROCESSES["table"], "epsilon"), "unipc", START, steps=5)).max() > 0.1


def test_the_embedded_models_tuned_table():
    made = sds.load("fashion-mnist")
    numbers = sds.export_solver(made, "tuned", nfe=5)
    assert len(numbers["weights"]) == 6
    assert numbers["prediction"] == made.prediction
    json.dumps(numbers, allow_nan=False)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_start_is_normal_with_the_std_that_is_exported(process):
    made = model(PROCESSES[process], "sample")
    numbers = sds.export_solver(made, "dpmpp-2m", steps=4)
    normal = sds.NormalSource(3, range(2), (3,)).draw(sds.NormalSource.START).double().numpy()
    drawn = sds.sample(made, "dpmpp-2m", steps=4, seed=3, num_samples=2).samples.numpy()
    np.testing.assert_allclose(loop(numbers, normal * numbers["start_std"]), drawn, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("sampler", "arguments", "message"),
    [
        ("rk45", {}, "rk45 chooses its steps by the states; pass steps="),
        ("ddim", {"steps": 3, "eta": 1.0}, "has no noise; turn it off, for example with eta=0"),
        ("er-sde", {"steps": 3}, "has no noise"),
        ("paradigms", {"steps": 3}, "is not linear|cannot be written|chooses"),
        ("euler-cfgpp", {"steps": 3}, "it needs unguided"),
        ("ddim", {"steps": 3, "seed": 1}, "seed= does not apply to export_solver"),
        ("ddim", {"stepz": 3}, "did you mean steps="),
    ],
)
def test_what_numbers_cannot_describe_is_refused(sampler, arguments, message):
    with pytest.raises(sds.UsageError, match=message):
        sds.export_solver(model(sds.VP(), "sample"), sampler, **arguments)


def test_a_percentile_is_refused():
    made = model(sds.VP(), "sample", data_range=(-1, 1), clip=sds.Clip(percentile=0.995))
    with pytest.raises(sds.UsageError, match="clips x0 by a percentile"):
        sds.export_solver(made, "ddim", steps=3)


def test_epsilon_at_alpha_zero_is_refused():
    with pytest.raises(sds.ConversionError):
        sds.export_solver(model(sds.CosineVP(), "epsilon"), "ddim", times=[1.0, 0.5, 0.1])
