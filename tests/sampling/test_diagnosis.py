"""An error of a sampler names the step in which it was raised, and its likely cause; the kit shows both."""

from __future__ import annotations

import math
import traceback
from typing import Any

import numpy as np
import pytest
import torch

import sdesamplers as sds
from sdesamplers.errors import NonFiniteError, PluginError
from sdesamplers.testing import check_sampler

BODY = '''
def faulty(x, path):
    """A sampler with a fault in the line that follows an evaluation."""
    older, history = None, []
    for k, (now, then) in enumerate(path.steps):
        out = yield x, now
        FAULT
        x = out.step_to(then)
    return x
'''
VP = sds.grid_mixture(sds.VP())
FLOW = sds.grid_mixture(sds.RectifiedFlow(), prediction="flow")
CLEAN, NOISE, FIRST, LAST = "if then.is_clean, use out", "if now.is_pure_noise, use out", "no earlier", "loop over `for"


def faulty(fault: str, body: str = BODY) -> sds.Sampler:
    names: dict[str, Any] = {"math": math, "np": np, "torch": torch}
    exec(body.replace("FAULT", fault), names)
    return sds.sampler("faulty", order=1, reference="none")(names["faulty"])


def message(fault: str, model: sds.Model = VP, steps: int = 4, body: str = BODY) -> str:
    """The message of a run with a fault in a sampler of a plugin."""
    sampler = faulty(fault, body)
    sampler.plugin = "lab"
    with pytest.raises(sds.SdesamplersError) as caught:
        sds.sample(model, sampler, steps=steps)
    return str(caught.value)


@pytest.mark.parametrize(
    ("fault", "model", "place", "cause"),
    [
        ("1 / then.ratio", VP, "in step 4 of 4, from t = 0.25075 to sigma = 0", CLEAN),
        ("math.log(then.sigma)", VP, "in step 4 of 4", CLEAN),
        ("int(then.lam)", VP, "in step 4 of 4", CLEAN),
        ("1 / now.alpha", FLOW, "in step 1 of 4, from t = 1 to t = 0.75", NOISE),
        ("math.log(now.alpha)", FLOW, "in step 1 of 4", NOISE),
        ("int(now.ratio)", FLOW, "in step 1 of 4", NOISE),
        ("math.exp(1000 * k)", VP, "in step 2 of 4", "math.expm1"),
        ("path.points[k + 2]", VP, "in step 4 of 4", LAST),
        ("history[-1]", VP, "in step 1 of 4", FIRST),
        ("{}[k - 1]", VP, "in step 1 of 4", FIRST),
        ("older.x0", VP, "in step 1 of 4", FIRST),
        ("2 * older", VP, "in step 1 of 4", FIRST),
        ("x + torch.ones(3, 5)", VP, "in step 1 of 4", "of shape (N, 1, ..., 1)"),
        ("out.x0.reshape(7)", VP, "in step 1 of 4", "of shape (N, 1, ..., 1)"),
        ("x @ x.T.double().float()", VP, "in step 1 of 4", "keep the state's dtype"),
        ("float(out.x0)", VP, "in step 1 of 4", "compute with torch"),
        ("if out.x0 > 0: pass", VP, "in step 1 of 4", "torch.where"),
        ("leaf = torch.ones(2, requires_grad=True); torch.set_grad_enabled(True); leaf += 1", VP, "step 1", "x = x +"),
    ],
)
def test_an_error_names_its_step_and_its_cause(fault: str, model: sds.Model, place: str, cause: str) -> None:
    with torch.no_grad():
        found = message(fault, model)
    assert "sampler 'faulty' of plugin lab: " in found
    assert place in found
    assert cause in found


def test_an_error_of_unknown_cause_has_its_step_only() -> None:
    assert message("assert k < 2, 'odd'").endswith("in step 3 of 4, from t = 0.5005 to t = 0.25075")


def test_one_step_is_the_first_and_the_last() -> None:
    assert FIRST in (found := message("path.points[k + 2]", steps=1))
    assert LAST in found


def test_the_step_is_that_of_the_last_evaluation_if_the_sampler_has_no_points_at_hand() -> None:
    body = '''
def faulty(x, path):
    """Evaluates at each point, and keeps none."""
    for k in range(4):
        x = (yield x, path.points[k]).x
        if k == 2:
            raise RuntimeError("odd")
    return x
'''
    assert "in step 3 of 4" in message("", body=body)


def test_a_fault_before_the_first_evaluation_has_its_cause_too() -> None:
    body = '''
def faulty(x, path):
    """Prepares all steps at once."""
    weights = [math.log(point.sigma) for point in path.points]
    return (yield x, path.points[0]).x
'''
    assert CLEAN in message("", body=body)
    options = body.replace("[math.log(point.sigma) for point in path.points]", "int('node must lie in (0, 1]')")
    assert message("", body=options).endswith("'node must lie in (0, 1]'")  # about options: nothing is added


def test_a_sampler_of_the_program_raises_its_own_error_with_a_note() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        sds.sample(VP, faulty("1 / then.ratio"), steps=4)
    (note,) = caught.value.__notes__
    assert note.startswith("raised by the sampler 'faulty' in step 4 of 4, from t = 0.25075 to sigma = 0; sigma is 0")
    if hasattr(caught.value, "add_note"):  # Python 3.11
        assert note in "".join(traceback.format_exception(caught.value))


def test_the_kit_shows_step_and_cause_and_explains_the_exception_and_not_the_check() -> None:
    report = check_sampler(faulty("1 / then.ratio"), checks=["finite", "edits"])
    failed, skipped = report
    assert "ZeroDivisionError" in failed.measured
    assert "in step 12 of 12" in failed.measured
    assert CLEAN in failed.measured
    assert "docs/mistakes.md" in report.where_to_look(failed)
    assert skipped.verdict == "skip"


def test_a_state_that_the_sampler_makes_nan_is_not_blamed_on_the_model() -> None:
    with pytest.raises(NonFiniteError, match=r"the sampler's state is not finite at evaluation 2, .*inf \* 0"):
        sds.sample(FLOW, faulty("x = x + 0 * now.ratio; out = yield x, then"), steps=4)


def test_a_noise_source_that_raises_is_named_in_place_of_the_sampler() -> None:
    def broken(source: Any, shortest: float) -> Any:
        """Fails at its first draw."""
        return lambda start, end, rows=None: 1 / 0

    noise = sds.noise_source("broken", reference="none")(broken)
    with pytest.raises(
        PluginError, match=r"the noise source raised ZeroDivisionError.*\(test_diagnosis.py, line \d+\)"
    ):
        sds.sample(VP, "ddpm", steps=4, noise=noise)


@pytest.mark.parametrize(
    ("name", "options"), [("karras", {"sigma_min": 0.1}), ("logsnr", {"sigma_min": 0.1}), ("beta", {"last": False})]
)
@pytest.mark.parametrize("final", ["zero", "min"])
def test_options_may_move_the_end_of_a_grid(name: str, options: dict, final: str) -> None:
    model = sds.grid_mixture(sds.EDM())
    result = sds.sample(model, "euler", steps=5, spacing=name, spacing_options=options, final=final, num_samples=1)
    assert result.nfe == 5
