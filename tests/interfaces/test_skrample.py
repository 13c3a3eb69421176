"""The adapters for skrample that docs/interfaces.md prints, against skrample's own runs.

skrample needs Python 3.12 and is installed from its repository, `pip install git+https://github.com/Beinsezii/skrample`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sdesamplers as sds

REASON = "skrample is not installed: it needs Python 3.12 and its repository"
scheduling = pytest.importorskip("skrample.scheduling", reason=REASON)
models = pytest.importorskip("skrample.sampling.models", reason=REASON)
structured = pytest.importorskip("skrample.sampling.structured", reason=REASON)
interface = pytest.importorskip("skrample.sampling.interface", reason=REASON)

START = torch.tensor([[0.7, -1.2], [2.0, 0.1]], dtype=torch.float64)
SAME = [(structured.Euler(), "ddim"), (structured.DPM(order=1), "ddim"), (structured.DPM(order=2), "dpmpp-2m")]
PREDICTIONS = {"epsilon": models.NoiseModel(), "sample": models.DataModel(), "v": models.VelocityModel()}


@pytest.fixture(scope="module")
def adapters() -> dict[str, Any]:
    """The functions of the page."""
    page = (Path(__file__).parents[2] / "docs" / "interfaces.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"sds": sds, "np": np, "torch": torch}
    found = re.findall(r"^```python\n(from skrample.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(found) == 3
    for snippet in found:
        exec(snippet, names)
    return names


def network(x: torch.Tensor, t: Any, sigma: float = 0.0, alpha: float = 0.0) -> torch.Tensor:
    return torch.tanh(0.7 * x) + 0.1 * torch.as_tensor(t).to(x) / 1000


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("sampler", "name"), SAME)
def test_a_network_of_theirs_is_a_model(adapters, sampler, name, prediction):
    points, transform = scheduling.Karras(scheduling.Scaled()).schedule(9), PREDICTIONS[prediction]
    model = adapters["from_skrample"](network, transform, points, (2,))
    start = START * points[0].sigma
    schedule = scheduling.FixedSchedule(points, scheduling.VariancePreserving())
    expected = interface.StructuredFunctionalAdapter(sampler).sample_model(start, network, transform, schedule, 9)
    sigmas = [*(point.sigma / point.alpha for point in points), 0.0]
    close(sds.sample(model, name, sigmas=sigmas, start=start / points[0].alpha).samples, expected)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("sampler", "name"), SAME)
def test_a_model_runs_in_their_samplers(adapters, sampler, name, prediction):
    model = sds.FunctionModel(network, sds.VP(), prediction, (2,), dtype=torch.float64)
    times = np.linspace(1.0, 0.1, 9).tolist()
    theirs, schedule = adapters["as_skrample"](model, times)
    adapter = interface.StructuredFunctionalAdapter(sampler)
    found = adapter.sample_model(START, theirs, PREDICTIONS[prediction], schedule, len(times))
    close(found, sds.sample(model, name, times=[*times, 0.0], start=START).samples)


@pytest.mark.parametrize("process", [sds.VP(), sds.EDM(), sds.RectifiedFlow()], ids=lambda each: type(each).__name__)
@pytest.mark.parametrize(("sampler", "name"), SAME)
def test_a_sampler_of_theirs_runs_on_every_process(adapters, sampler, name, process):
    model = sds.FunctionModel(network, process, "sample", (2,), dtype=torch.float64)
    start = START * float(process.sigma(process.t_max))
    arguments = {"steps": 8, "start": start, "start_time": 0.9 * process.t_max}
    found = sds.sample(model, adapters["as_sampler"](sampler), **arguments).samples
    close(found, sds.sample(model, name, **arguments).samples)
