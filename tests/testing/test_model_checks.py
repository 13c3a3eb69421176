"""The checks of models: exact models and the embedded network pass them, and each catches a planted fault."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sdesamplers as sds
from sdesamplers.models.density import LangevinSDE
from sdesamplers.testing import KITS, check_model

VP = sds.VP()


def exact(prediction: str = "epsilon", process: sds.GaussianProcess = VP) -> Any:
    """The function of a mixture's exact prediction."""
    mixture = sds.grid_mixture(process, prediction=prediction)
    return lambda x, t: mixture.predict(x.double(), t.flatten().double().numpy()).to(x.dtype)


def changed(change: Any, **options: Any) -> sds.FunctionModel:
    """The exact model of epsilon with a change of its prediction."""
    function = exact()
    return sds.FunctionModel(lambda x, t: change(function(x, t), x, t), VP, "epsilon", (2,), **options)


class Direct(sds.Model):
    """A model class whose `predict` is a function."""

    def __init__(self, function: Any, pure: bool = False) -> None:
        self.process, self.prediction, self.shape, self.function, self.pure = VP, "epsilon", (2,), function, pure

    def predict(self, x, t, condition=None):
        return self.function(x, t)


def first_time_only() -> sds.Model:
    mixture = sds.grid_mixture(VP, prediction="epsilon")
    return Direct(lambda x, t: mixture.predict(x.double(), t if not hasattr(t, "shape") else float(t[0])).to(x.dtype))


BUFFER = torch.zeros(8, 2)


def overwriting(x, t):
    out = BUFFER[: len(x)]
    out.copy_(0.5 * x)
    return out


def calls() -> Any:
    count = [0]

    def drift(out, x, t):
        count[0] += 1
        return out + 1e-3 * count[0]

    return drift


class AcceptsAll(Direct):
    """An unconditional model that ignores conditions silently."""

    def condition_for(self, condition, count):
        return None


def no_effect() -> sds.Model:
    function = exact()
    return sds.FunctionModel(
        lambda x, t, label: function(x, t), VP, "epsilon", (2,), conditional=True, null_condition=0
    )


def mistyped(prediction: str, declared: str) -> sds.Model:
    return sds.FunctionModel(exact(prediction), VP, declared, (2,))


def without_name() -> sds.Model:
    made = changed(lambda out, x, t: out)
    made.name = ""
    return made


FAULTS = {
    "no name": ("declaration", without_name),
    "not finite at t_min": ("shape and dtype", lambda: changed(lambda out, x, t: out / (t > VP.t_min))),
    "random numbers": ("deterministic", lambda: changed(lambda out, x, t: out + 1e-2 * torch.randn_like(out))),
    "counts its calls": ("deterministic", lambda: changed(calls())),
    "mean of the batch": ("batch independence", lambda: changed(lambda out, x, t: out - out.mean(0))),
    "time of the first sample": ("times", first_time_only),
    "overwrites its output": ("pure", lambda: Direct(overwriting, pure=True)),
    "changes the state": ("pure", lambda: Direct(lambda x, t: x.mul_(0.5).clone(), pure=True)),
    "x0 as epsilon": ("noisy end", lambda: mistyped("sample", "epsilon")),
    "epsilon as v": ("noisy end", lambda: mistyped("epsilon", "v")),
    "v as x0": ("clean end", lambda: mistyped("v", "sample")),
    "ignores conditions": ("condition", lambda: AcceptsAll(lambda x, t: 0.5 * x)),
    "condition without effect": ("condition", no_effect),
    "far from the data": ("sampled", lambda: changed(lambda out, x, t: out, data_range=(-0.1, 0.1), clip=False)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_kit_catches_a_planted_fault(name: str) -> None:
    check, make = FAULTS[name]
    condition = 1 if name == "condition without effect" else None
    (finding,) = check_model(make(), checks=[check], condition=condition)
    assert finding.verdict == "fail", finding
    assert finding.required not in ("a run that does not raise", "no error"), finding


def test_every_check_has_a_fault_that_it_catches() -> None:
    assert {check for check, _ in FAULTS.values()} == set(KITS["model"])


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v", "flow", "score"])
@pytest.mark.parametrize("process", [VP, sds.EDM(), sds.RectifiedFlow()], ids=["vp", "edm", "flow"])
def test_exact_models_pass(process: sds.GaussianProcess, prediction: str) -> None:
    if isinstance(process, sds.RectifiedFlow) and prediction in ("epsilon", "score"):
        pytest.skip("epsilon and score do not determine x0 where alpha = 0")
    model = sds.FunctionModel(exact(prediction, process), process, prediction, (2,))
    check_model(model).require()


def test_sixteen_of_twenty_confusions_of_prediction_types_are_found() -> None:
    kinds = ("epsilon", "sample", "v", "flow", "score")
    missed = {
        (right, wrong)
        for right in kinds
        for wrong in kinds
        if right != wrong and check_model(mistyped(right, wrong), checks=["noisy end", "clean end"]).passed
    }
    assert missed == {("sample", "v"), ("sample", "flow"), ("v", "flow"), ("flow", "v")}


@pytest.mark.slow
def test_the_embedded_network_passes() -> None:
    report = check_model("fashion-mnist").require()
    assert report.kind == "model"


def test_a_conditional_model_is_checked_with_its_condition() -> None:
    means = torch.tensor([[0.0, 0.0], [2.0, -1.0], [-1.0, 1.0]])

    def function(x, t, label):
        """The exact epsilon of N(mean of the label, I): alpha^2 + sigma^2 = 1."""
        alpha = torch.from_numpy(VP.alpha(t.double().numpy())).to(x.dtype)
        sigma = torch.from_numpy(VP.sigma(t.double().numpy())).to(x.dtype)
        return sigma * (x - alpha * means[label])

    made = sds.FunctionModel(function, VP, "epsilon", (2,), conditional=True, null_condition=0)
    assert check_model(made, condition=2).require().passed
    needs_one = sds.FunctionModel(function, VP, "epsilon", (2,), conditional=True)
    finding = check_model(needs_one, checks=["shape and dtype"]).findings[0]
    assert "is conditional: give condition=" in finding.measured
    (finding,) = check_model(made, condition=[1, 2], checks=["condition"])
    assert finding.verdict == "fail"


def test_a_score_without_marginals_is_checked_where_checks_apply() -> None:
    model = sds.FunctionModel(lambda x, t: -x, LangevinSDE(torch.neg, duration=2.0), "score", (2,))
    report = check_model(model).require()
    assert {f.check for f in report if f.verdict == "skip"} == {"noisy end", "clean end"}
