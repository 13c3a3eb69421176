"""Tables of earlier calls in the output folder: taken for the same arguments, and for no others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from solver_tables import BRIEF, conditional, first_element, labelled, mixture
from tiny_models import save_pipeline

import sdesamplers as sds
from sdesamplers.sampling.table import read_table

pytestmark = pytest.mark.filterwarnings("ignore:the teacher, :sdesamplers.AccuracyWarning")


def counted(model: sds.Model, folder: Path, **arguments: Any) -> int:
    """The number of trials of a call of `tune`: 0 if the table in the folder was returned."""
    messages: list[str] = []
    sds.tune(model, 4, out=folder, **{**BRIEF, **arguments}, advance=messages.append)
    return len(messages)


OTHERS: dict[str, Callable[[], dict[str, Any]]] = {
    "formula": lambda: {"model": sds.Guided(conditional(), 4.0, combine="apg")},
    "negative": lambda: {"model": sds.Guided(conditional(), 4.0, negative=0)},
    "condition": lambda: {"condition": 0},
    "late in a list": lambda: {"condition": [2, 2, 2, 2, 2, 0]},
    "function": lambda: {"model": sds.Guided(conditional(function=lambda x, t, c=None: 0.5 * labelled(x, t, c)), 4.0)},
    "distance": lambda: {"distance": lambda one, other: (one - other).abs().amax(1)},
}


@pytest.mark.filterwarnings("ignore:.*; it is now:sdesamplers.OutputWarning")
@pytest.mark.parametrize("other", OTHERS)
def test_a_table_for_another_model_guidance_or_condition_is_not_taken_for_this_one(other, tmp_path):
    usual: dict[str, Any] = {"model": sds.Guided(conditional(), 4.0), "condition": 2}
    assert counted(folder=tmp_path, **usual) == 2
    assert counted(folder=tmp_path, **usual) == 0
    assert counted(folder=tmp_path, **{**usual, **OTHERS[other]()}) == 2


def test_a_table_for_another_distance_is_not_taken_for_the_usual_one(tmp_path):
    assert counted(mixture(), tmp_path, distance=first_element) == 2
    assert counted(mixture(), tmp_path, distance=first_element) == 0
    with pytest.warns(sds.OutputWarning, match=r"with other arguments, distance first_element \(now -\); it is now"):
        assert counted(mixture(), tmp_path) == 2


def test_the_table_of_another_model_is_not_overwritten(tmp_path):
    assert counted(conditional("one"), tmp_path, condition=1) == 2
    with pytest.raises(sds.UsageError, match=r"nfe-4.json is a solver table of 'one'; choose another folder"):
        counted(conditional("other"), tmp_path, condition=1)


def test_a_table_for_other_arguments_is_kept_beside_the_new_one(tmp_path):
    file = tmp_path / "nfe-4.json"
    sds.tune(mixture(), [3, 4], out=tmp_path, **BRIEF)
    first = read_table(file)
    with pytest.warns(sds.OutputWarning) as told:
        again = sds.tune(mixture(), 4, out=tmp_path, **{**BRIEF, "trials": 1, "teacher_nfe": 20})
    kept = tmp_path / "former" / f"nfe-4-{first.sha256[:8]}.json"
    changes = f"teacher quality at {BRIEF['teacher_nfe']} (now quality at 20), trials {BRIEF['trials']} (now 1)"
    expected = f"{file} was made with other arguments, {changes}; it is now {kept}"
    assert [str(each.message) for each in told] == [expected]
    assert read_table(kept) == first
    assert read_table(file) == again.tables[4] != first
    assert sorted(each.name for each in tmp_path.iterdir()) == ["former", "nfe-3.json", "nfe-4.json"]
    sds.tune(mixture(), 4, out=tmp_path, **{**BRIEF, "trials": 1, "teacher_nfe": 20})  # found
    with pytest.warns(sds.OutputWarning, match="; it is now"):
        better_yet = sds.tune(mixture(), 4, out=tmp_path, warm_start=tmp_path, **{**BRIEF, "trials": 12})
    assert read_table(file) == better_yet.tables[4]
    beginning = tmp_path / "former" / f"nfe-4-{again.tables[4].sha256[:8]}.json"
    assert read_table(beginning) == again.tables[4]
    assert {*(tmp_path / "former").iterdir()} == {kept, beginning}
    (tmp_path / "former").rename(tmp_path / "gone")
    (tmp_path / "former").write_text("a file")
    with pytest.raises(sds.SdesamplersError, match=r"former"):
        sds.tune(mixture(), 4, out=tmp_path, **{**BRIEF, "seed": 5})
    assert read_table(file) == better_yet.tables[4]


class Weighted:
    """A distance with a parameter."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, samples: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        return self.weight * first_element(samples, others)

    def method(self, samples: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        return self(samples, others)


def weighted(samples: torch.Tensor, others: torch.Tensor, weight: float) -> torch.Tensor:
    return weight * first_element(samples, others)


class Network(torch.nn.Module):
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(6, 1, bias=False)
        torch.nn.init.constant_(self.linear.weight, weight)

    def forward(self, samples: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        apart: torch.Tensor = self.linear((samples - others).float()).abs()[:, 0]
        return apart


SHARED: dict[str, Any] = {}


def by_shared_network(samples: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    apart: torch.Tensor = SHARED["network"](samples, others)
    return apart


def with_shared_network(weight: float) -> Any:
    SHARED["network"] = Network(weight)
    return by_shared_network


def with_default(weight: float) -> Any:
    space: dict[str, Any] = {"first_element": first_element, "weight": torch.full((2000,), weight)}
    exec("def apart(a, b, weight=weight):\n    return weight[1000] * first_element(a, b)", space)
    return space["apart"]


FUNCTIONS: dict[str, Callable[[float], Any]] = {
    "an object": Weighted,
    "a partial function": lambda weight: partial(weighted, weight=weight),
    "a method": lambda weight: Weighted(weight).method,
    "a lambda with a closure": lambda weight: lambda samples, others: weight * first_element(samples, others),
    "a network": Network,
    "a lambda with a network": lambda weight: (lambda own: lambda samples, others: own(samples, others))(
        Network(weight)
    ),
    "a global network": with_shared_network,
    "a default tensor": with_default,
}


@pytest.mark.filterwarnings("ignore:.*; it is now:sdesamplers.OutputWarning")
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_a_function_is_the_same_if_what_it_uses_is(kind: str, tmp_path: Path) -> None:
    for weight, trials in ((1.0, 2), (1.0, 0), (3.0, 2)):
        assert counted(mixture(), tmp_path, distance=FUNCTIONS[kind](weight)) == trials


def test_calls_with_minutes_complete_tables_for_a_lambda(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"starts": 8, "trials": 2, "teacher_nfe": 16, "minutes": 0, "out": tmp_path}
    calls = [sds.tune(mixture(), [3, 4], distance=lambda a, b: first_element(a, b), **arguments) for _ in range(3)]
    assert [list(call.tables) for call in calls] == [[3], [3, 4], [3, 4]]
    assert [call.interrupted for call in calls] == [True, True, False]


class Opaque:
    """An object of which nothing is known."""

    __slots__ = ()

    def __call__(self, samples: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        return first_element(samples, others)


@pytest.mark.filterwarnings("ignore:.*; it is now:sdesamplers.OutputWarning")
def test_a_function_that_cannot_be_identified_is_warned_of(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.warns(sds.OutputWarning, match="distance uses an object whose content cannot be determined, so"):
            assert counted(mixture(), tmp_path, distance=Opaque()) == 2


@pytest.mark.filterwarnings("ignore:.*; it is now:sdesamplers.OutputWarning")
def test_a_distance_that_is_defined_again_is_another_one(tmp_path: Path) -> None:
    """As in a notebook: its name is the same."""

    def defined(body: str) -> Any:
        space: dict[str, Any] = {}
        exec(f"def apart(samples, others, power=2):\n    return {body}", space)
        return space["apart"]

    root, mean = "(samples - others).square().mean(1).sqrt()", "(samples - others).abs().mean(1)"
    for body, trials in ((root, 2), (root, 0), (mean, 2), (mean, 0), (mean.replace("1", "-1"), 2), (mean, 2)):
        assert counted(mixture(), tmp_path, distance=defined(body)) == trials


class Compared:
    """A distance by a network, of which the object's text says nothing but its class."""

    def __init__(self, weight: float) -> None:
        self.network = torch.nn.Linear(6, 2, bias=False)
        torch.nn.init.constant_(self.network.weight, weight)

    def __repr__(self) -> str:
        return "Compared()"

    def distance(self, samples: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        apart: torch.Tensor = self.network((samples - others).float()).square().sum(1).sqrt()
        return apart


@pytest.mark.filterwarnings("ignore:.*; it is now:sdesamplers.OutputWarning")
def test_a_distance_by_another_network_is_another_one(tmp_path: Path) -> None:
    for weight, trials in ((1.0, 2), (1.0, 0), (2.0, 2)):
        assert counted(mixture(), tmp_path, distance=Compared(weight).distance) == trials


def test_the_fingerprint_of_a_function_is_the_same_in_another_process() -> None:
    """Sets of texts have another order there, and objects other addresses."""
    code = """
from functools import partial
import torch
from sdesamplers.tuning.functions import code_of
class Own:
    def __init__(self): self.kept = {"a": 1, "b": [torch.zeros(3), None]}
    def __call__(self, a, b): return len(self.kept)
network = torch.nn.Linear(2, 2)
torch.nn.init.ones_(network.weight), torch.nn.init.ones_(network.bias)
own = Own()
def apart(a, b, c=own): return network(a - b) if a in {"x", "y", "z", "u", "v"} else partial(max, 1)
print(code_of(apart), code_of(own), code_of(network), code_of(lambda a, b: a in {"x", "y", "z", "u", "v"}))
"""
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(found) == 1
    assert "None" not in found.pop()


def test_tables_of_another_model_that_are_not_in_the_way_are_left(tmp_path: Path) -> None:
    assert counted(conditional("one"), tmp_path, condition=1, guidance_scale=2.0) == 2
    first = (tmp_path / "nfe-4-guidance-2.json").read_bytes()
    assert counted(conditional("other"), tmp_path, condition=1) == 2
    assert counted(conditional("other"), tmp_path, condition=1) == 0
    assert (tmp_path / "nfe-4-guidance-2.json").read_bytes() == first
    with pytest.raises(
        sds.UsageError, match=r"nfe-4-guidance-2.json is a solver table of 'one'; choose another folder"
    ):
        counted(conditional("other"), tmp_path, condition=1, guidance_scale=2.0)


def test_the_result_is_not_saved_over_tables_of_another_model(tmp_path: Path) -> None:
    one, other = (sds.tune(conditional(name), 4, condition=1, **BRIEF) for name in ("one", "other"))
    one.save(tmp_path)
    content = (tmp_path / "nfe-4.json").read_bytes()
    with pytest.raises(sds.UsageError, match=r"nfe-4.json is a solver table of 'one'; choose another folder"):
        other.save(tmp_path)
    assert (tmp_path / "nfe-4.json").read_bytes() == content
    one.save(tmp_path)  # its own


def test_a_table_whose_facts_have_no_numbers_to_compare_is_computed_anew(tmp_path: Path) -> None:
    table = sds.tune(mixture(), 4, **BRIEF, out=tmp_path).tables[4]
    for probe in (None, [None] * len(table.facts["probe"]), table.facts["probe"][1:]):
        replace(table, facts={**table.facts, "probe": probe}).save(tmp_path)
        assert counted(mixture(), tmp_path) == 2


def test_a_models_folder_that_was_moved_has_its_tables(tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path / "tiny")
    assert counted(sds.load(folder), tmp_path / "tables") == 2
    assert counted(sds.load(f"{folder}/"), tmp_path / "tables") == 0
    folder = folder.rename(tmp_path / "other")
    assert counted(sds.load(folder), tmp_path / "tables") == 0


@pytest.mark.filterwarnings("ignore:.*; it is now:sdesamplers.OutputWarning")
def test_a_model_in_another_precision_is_the_same_model(tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path / "tiny")
    assert counted(sds.load(folder), tmp_path / "tables") == 2
    counted(sds.load(folder, dtype="bfloat16"), tmp_path / "tables")  # not refused as another model
    coarse = read_table(tmp_path / "tables/nfe-4.json").facts["signature"]
    exact = sds.sampling.table_facts.signature(sds.load(folder))
    assert coarse != exact  # of the second call, with rounded weights
    np.testing.assert_allclose(coarse, exact, rtol=0.02)


def test_a_model_of_the_same_name_with_other_weights_is_refused(tmp_path: Path) -> None:
    nets = [torch.nn.Linear(3, 3, bias=False) for _ in range(2)]
    for scale, net in enumerate(nets, 1):
        torch.nn.init.constant_(net.weight, 0.1 * scale)
    one, other = (sds.FunctionModel(lambda x, t, n=n: n(x), sds.TrigFlow(), "sample", (3,), name="net") for n in nets)
    for model, net in ((one, nets[0]), (other, nets[1])):
        model.network = net
    assert counted(one, tmp_path) == 2
    with pytest.raises(sds.UsageError, match=r"nfe-4.json is a solver table of 'net' with other weights; choose"):
        counted(other, tmp_path)


def test_a_path_is_expanded_and_an_empty_one_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    counted(mixture(), Path("~/tables"))
    assert read_table(tmp_path / "tables/nfe-4.json").nfe == 4
    assert [each.name for each in tmp_path.iterdir()] == ["tables"]
    with pytest.raises(sds.UsageError, match=r"out must be the path of a folder, not empty; .* pass '\.'"):
        sds.tune(mixture(), 4, out="", **BRIEF)
