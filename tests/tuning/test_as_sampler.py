"""The result of `tune` as a sampler: every call takes the table for its number of evaluations."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sdesamplers as sds

pytestmark = pytest.mark.filterwarnings("ignore:the grid starts from pure noise")

THREE = sds.SolverTable(
    (1.2, 0.7, 0.3, 0.0), ((0.05, 0.9, -0.4), (0.02, 0.93, 0.1, -0.5), (-0.03, 0.97, 0.02, 0.05, -0.35))
)
TWO = sds.SolverTable((1.2, 0.5, 0.0), ((0.0, 0.9, -0.6), (0.0, 0.9, 0.1, -0.5)))
TUNING = sds.Tuning({2: TWO, 3: THREE})


def model() -> sds.FunctionModel:
    return sds.FunctionModel(lambda x, t: 0.3 * x * torch.cos(t), sds.TrigFlow(), "sample", (3,), name="linear")


def draw(sampler: Any, **arguments: Any) -> torch.Tensor:
    return sds.sample(model(), sampler, num_samples=4, **arguments).samples


@pytest.mark.parametrize("nfe", [2, 3])
def test_sample_takes_the_table_of_the_budget(nfe: int) -> None:
    expected = draw({2: TWO, 3: THREE}[nfe])
    assert torch.equal(draw(TUNING, nfe=nfe), expected)
    assert torch.equal(draw(TUNING, steps=nfe), expected)
    assert torch.equal(draw(pickle.loads(pickle.dumps(TUNING)), nfe=nfe), expected)
    assert torch.equal(draw(sds.Tuning({nfe: {2: TWO, 3: THREE}[nfe]})), expected)  # the only one


def test_jobs_and_steppers_take_it_too(tmp_path: Any) -> None:
    expected = draw(TUNING, nfe=3)
    sds.generate(model(), TUNING, num_samples=4, nfe=3, out=tmp_path, formats=["safetensors"])
    stored = [load_file(shard) for shard in sorted(tmp_path.rglob("*.safetensors"))]
    assert any(torch.equal(tensor, expected) for each in stored for tensor in each.values())
    stepper = sds.Stepper(sds.TrigFlow(), TUNING, prediction="sample", shape=(3,), num_samples=4, nfe=3)
    assert stepper.recipe == sds.sample(model(), THREE).recipe


@pytest.mark.parametrize(
    ("sampler", "arguments", "message"),
    [
        (TUNING, {"nfe": 5}, "this Tuning has no solver table for 5 evaluations, only for 2, 3"),
        (TUNING, {}, "this Tuning has solver tables for 2, 3 evaluations; choose one with nfe="),
        (sds.Tuning(), {"nfe": 5}, "this Tuning has no solver tables"),
        (TUNING, {"nfe": 3, "spacing": "karras"}, "spacing"),
    ],
)
def test_budgets_without_a_table_are_refused(sampler: Any, arguments: Any, message: str) -> None:
    with pytest.raises(sds.UsageError, match=message):
        draw(sampler, **arguments)


def test_compare_takes_the_table_of_each_budget() -> None:
    made = sds.compare(model(), [TUNING, "ddim"], [2, 3, 4], num_samples=4, reference_samples=2)
    cells = {(cell.sampler, cell.budget): cell for cell in made.cells}
    assert [cells["tuning", nfe].nfe for nfe in (2, 3)] == [2, 3]
    assert "this Tuning has no solver table for 4 evaluations, only for 2, 3" in str(cells["tuning", 4].problem)
    assert cells["ddim", 4].problem is None
    expected = sds.compare(model(), {"a": TWO}, 2, num_samples=4, reference_samples=2).cells[0]
    assert cells["tuning", 2].errors == expected.errors
    named = sds.compare(model(), {"mine": TUNING}, 3, num_samples=4, reference_samples=2)
    assert [cell.sampler for cell in named.cells] == ["mine"]
    two = sds.compare(model(), [TUNING, sds.Tuning({3: replace(THREE, network_angles=())})], 3, num_samples=2)
    assert [cell.sampler for cell in two.cells] == ["tuning", "tuning #2"]


def test_the_inverse_directions_refuse_tables_of_every_form(tmp_path: Any) -> None:
    TUNING.save(tmp_path, card=False)
    data = torch.zeros(2, 3)
    for sampler in (TUNING, THREE, str(tmp_path), sds.Tuning()):
        for call in (sds.encode, sds.log_likelihood):
            with pytest.raises(sds.UsageError, match="a solver table leads from noise to data"):
                call(model(), data, sampler)
            with pytest.raises(sds.UsageError, match="a solver table leads from noise to data"):
                call(model(), data, sampler, nfe=3)


def test_a_scheduler_takes_the_table_of_the_number_of_steps() -> None:
    made, listed = sds.Scheduler(TUNING), sds.Scheduler([TWO, THREE])
    for each in (made, listed):
        each.set_timesteps(3)
    assert torch.equal(made.timesteps, listed.timesteps)
    with pytest.raises(sds.UsageError, match="no solver table for 5 evaluations, only for 2, 3"):
        made.set_timesteps(5)
