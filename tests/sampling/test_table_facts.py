"""A table is refused, or warned of, where its facts say that it is for another process, prediction or guidance."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from solver_tables import BRIEF, conditional, mixture, table_for
from tiny_models import save_pipeline

import sdesamplers as sds
from sdesamplers.pretrained.conventions import convention_of
from sdesamplers.sampling.table_facts import clock, conversions
from sdesamplers.tuning.card import make_card

pytestmark = pytest.mark.filterwarnings("ignore:the teacher, :sdesamplers.AccuracyWarning")


def linear(prediction: str = "epsilon", beta_end: float = 0.02) -> sds.FunctionModel:
    betas = torch.linspace(1e-4, beta_end, 1000, dtype=torch.float64)
    process = sds.DiscreteVP(torch.cumprod(1 - betas, 0))
    return sds.FunctionModel(lambda x, t: 0.3 * x, process, prediction, (3,), name="own")


@pytest.fixture(scope="module")
def table() -> sds.SolverTable:
    return sds.tune(linear(), 4, **BRIEF).tables[4]


def test_the_clock_of_a_process_is_that_of_its_formulas() -> None:
    """Flow: alpha = 1 - t, sigma = t, so that sigma/alpha = r at t = r / (1 + r)."""
    rows = clock(sds.RectifiedFlow())
    for (time, alpha, sigma), ratio in zip(rows, (0.3, 1.0, 3.0), strict=True):
        assert time == sigma == pytest.approx(ratio / (1 + ratio), rel=1e-5)
        assert alpha == pytest.approx(1 / (1 + ratio), rel=1e-5)


OTHERS: dict[str, tuple[Any, str]] = {
    "v-prediction": (lambda: linear("v"), "a model that predicts 'epsilon', and this one predicts 'v'"),
    "another noise schedule": (lambda: linear(beta_end=0.012), "another process than .*times or the scales"),
    "flow": (
        lambda: sds.FunctionModel(lambda x, t: 0.3 * x, sds.RectifiedFlow(), "epsilon", (3,)),
        "another process than RectifiedFlow",
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_model_with_another_process_or_prediction_is_refused(other: str, table: sds.SolverTable) -> None:
    made, reason = OTHERS[other]
    with pytest.raises(sds.UsageError, match=f"^this solver table was computed for {reason}") as error:
        sds.sample(made(), table, num_samples=2)
    assert "\n" not in str(error.value)
    assert sds.sample(linear(), table, num_samples=2).samples.shape == (2, 3)
    assert "process" not in table.for_any_model().facts
    assert "prediction" not in table.for_any_model().facts


def test_a_scheduler_of_another_configuration_refuses_the_table(table: sds.SolverTable) -> None:
    """Without a model, its configuration has the process and the prediction type."""
    own = DDIMScheduler(beta_start=1e-4, beta_end=0.02)
    sds.Scheduler.from_config(own.config, recipe=table).set_timesteps(4)
    wrong = {
        "another process": DDIMScheduler(beta_start=1e-4, beta_end=0.012),
        "predicts 'epsilon', and this one predicts 'v'": DDIMScheduler(
            beta_start=1e-4, beta_end=0.02, prediction_type="v_prediction"
        ),
        "RectifiedFlow|predicts 'epsilon', and": FlowMatchEulerDiscreteScheduler(),
    }
    for reason, scheduler in wrong.items():
        with pytest.raises(sds.UsageError, match=reason):
            sds.Scheduler.from_config(scheduler.config, recipe=table).set_timesteps(4)


CONFIGURATIONS: dict[str, tuple[Any, Any]] = {
    "sigma_data": (EDMEulerScheduler(), EDMEulerScheduler(sigma_data=1.0)),
    "sign of the output": (EDMEulerScheduler(), EDMEulerScheduler(prediction_type="v_prediction")),
    "timesteps of a flow": (
        FlowMatchEulerDiscreteScheduler(),
        FlowMatchEulerDiscreteScheduler(num_train_timesteps=500),
    ),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_a_configuration_with_the_same_process_and_another_meaning_is_refused(case: str, tmp_path: Path) -> None:
    own, other = CONFIGURATIONS[case]
    model = sds.load(save_pipeline(tmp_path / "own", own))
    table = sds.tune(model, 4, **BRIEF).tables[4]
    made = sds.Scheduler.from_config(own.config, recipe=table)
    made.set_timesteps(4)
    refusal = "computed for another scheduler configuration: the network's timesteps, the scales of its input or the"
    with pytest.raises(sds.UsageError, match=refusal):
        sds.Scheduler.from_config(other.config, recipe=table)
    public = {key: value for key, value in other.config.items() if not key.startswith("_")}
    changed = {key: value for key, value in public.items() if own.config.get(key) != value}
    before = dict(made.config)
    for _ in range(2):
        with pytest.raises(sds.UsageError, match=refusal):
            made.register_to_config(**changed)
        assert dict(made.config) == before  # a refusal changes nothing
        made.set_timesteps(4)
    free = sds.Scheduler.from_config(own.config, "unipc")
    free.register_to_config(**changed)
    assert all(free.config[key] == value for key, value in changed.items())
    with pytest.raises(sds.UsageError, match=refusal):  # with the same weights
        sds.sample(sds.load(save_pipeline(tmp_path / "other", other)), table, num_samples=1)
    assert sds.sample(model, table, num_samples=1).samples.isfinite().all()
    assert "convention" not in table.for_any_model().facts


def test_the_facts_about_a_convention_are_those_of_the_paper() -> None:
    """Karras et al. (2022), table 1: c_noise = log(t)/4, c_in = (t^2 + d^2)^(-1/2), F = (x0 - c_skip x) / c_out."""
    rows, d = conversions(convention_of({"_class_name": "EDMEulerScheduler", "sigma_data": 0.7})), 0.7
    assert rows is not None
    for t, row in zip((0.3, 1.0, 3.0), rows, strict=True):
        norm = math.hypot(t, d)
        skip, out = d**2 / norm**2, t * d / norm
        assert row == pytest.approx([math.log(t) / 4, 1 / norm, (1 - skip) / out, -skip * t / out], rel=1e-5, abs=1e-6)
    assert conversions(None) is None


def test_a_convention_with_an_infinite_number_has_no_row_for_it(tmp_path: Path) -> None:
    """A flow map's x0 is the state at its boundary, here at one of the sigmas that are compared."""
    convention = convention_of({"_class_name": "CMStochasticIterativeScheduler", "sigma_min": 0.3})
    rows = conversions(convention)
    assert rows is not None
    assert len(rows) == 2
    table = replace(table_for(sds.EDM()), facts={"convention": rows})
    assert sds.SolverTable.load(table.save(tmp_path)) == table
    with pytest.raises(sds.UsageError, match="a solver table's facts must be data that JSON has: Out of range float"):
        replace(table, facts={"convention": [[math.nan]]}).save(tmp_path)


def test_another_interval_or_scale_of_guidance_is_warned_of() -> None:
    guided = {
        interval: sds.Guided(conditional(), 3.0, **({} if interval is None else {"interval": interval}))
        for interval in (None, (0.2, 5.0), (0.5, 5.0))
    }
    condition = [0, 2]
    made = sds.tune(guided[0.2, 5.0], 4, condition=condition, **BRIEF).tables[4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sds.sample(guided[0.2, 5.0], made, num_samples=2, condition=condition)
    asked = "computed for guidance at sigma/alpha of 0.2 to 5.0, and this run has it "
    for interval, has in ((None, "at all times"), ((0.5, 5.0), "at sigma/alpha of 0.5 to 5.0")):
        with pytest.warns(sds.AccuracyWarning, match=asked + has):
            sds.sample(guided[interval], made, num_samples=2, condition=condition)
    numbers = replace(made, facts={**made.facts, "guidance_interval": [0.2, 5]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sds.sample(guided[0.2, 5.0], numbers, num_samples=2, condition=condition)
    assert "guidance: `0.2, 5`" in make_card([numbers], "./tables")
    plain = sds.tune(guided[None], 4, condition=condition, **BRIEF).tables[4]
    with pytest.warns(sds.AccuracyWarning, match="guidance at all times, and this run has it at sigma/alpha of 0.2"):
        sds.sample(guided[0.2, 5.0], plain, num_samples=2, condition=condition)


FACTS: dict[str, tuple[dict[str, Any], str]] = {
    "a process that is no list": ({"process": 3}, "process of a solver table's facts must be rows"),
    "a process of texts": ({"process": [["a"]]}, "process of a solver table's facts must be rows"),
    "an interval of one": ({"guidance_interval": ["1"]}, "guidance_interval .* two numbers"),
    "an interval of texts": ({"guidance_interval": ["a", "1"]}, "guidance_interval .* two numbers"),
    "a convention of lists": ({"convention": [[[1.0]]]}, "convention of a solver table's facts must be rows"),
    "a probe of texts": ({"probe": ["a"]}, "probe of a solver table's facts must be a list of finite numbers"),
    "an error that is a text": ({"errors": {"rms": "small"}}, "errors.rms .* finite number, not 'small'"),
    "an error of the fixed setting": ({"errors": {"fixed": {"median": []}}}, "errors.fixed.median"),
    "fixed errors that are a number": (
        {"errors": {"fixed": 3}},
        "errors.fixed of a solver table's facts must be a mapp",
    ),
    "an error of the teacher": ({"teacher": {"errors": {"rms": True}}}, "teacher.errors.rms"),
}


@pytest.mark.parametrize("case", FACTS)
def test_facts_that_are_wrong_are_refused_when_the_file_is_read(case: str, tmp_path: Path) -> None:
    facts, reason = FACTS[case]
    file = replace(table_for(sds.VP()), facts=facts).save(tmp_path)
    with pytest.raises(sds.UsageError, match=reason) as error:
        sds.SolverTable.load(file)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


def test_an_error_names_the_folder_once_whatever_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder whose name is a part of the message, such as "table", is not replaced within it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "table"
    table_for(sds.VP(), errors={"rms": "small"}).save(folder)
    message = r"^(\./)?table/nfe-5\.json: errors\.rms of a solver table's facts must be a finite number"
    with pytest.raises(sds.UsageError, match=message):
        sds.SolverTable.load("./table")
    folder.rename("tables")  # without a slash it is a sampler's name
    hint = r"^unknown sampler 'tables'.*; for the file or folder of this name pass '\./tables'$"
    with pytest.raises(sds.UnknownNameError, match=hint):
        sds.sample(mixture(), "tables", nfe=5)


def test_tables_are_in_the_order_of_their_numbers_of_evaluations(tmp_path: Path) -> None:
    for count in (9, 3, 1):
        table_for(sds.VP(), [1.2 - 0.1 * k for k in range(count)]).save(tmp_path)
    table_for(sds.VP(), (0.5,), guidance_scale=2.0 + 1e-9).save(tmp_path)
    tables = sds.sampling.table.read_tables(tmp_path)
    assert [each.nfe for each in tables] == [2, 4, 10, 2]
    assert len(list(tmp_path.iterdir())) == 4
    assert torch.equal(torch.tensor(tables[-1].guidance_scale), torch.tensor(2.0 + 1e-9))
