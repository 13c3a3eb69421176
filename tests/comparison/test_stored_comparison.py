"""compare.json: its schema, and files of this and of former versions."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

import sdesamplers as sds
from sdesamplers.comparison.cell import Cell
from sdesamplers.comparison.reading import schema
from sdesamplers.metrics import Score

FORMER = Path(__file__).parent / "compare_version_1.json"
pytestmark = pytest.mark.filterwarnings("ignore:.*cannot tell apart", "ignore:.*lie far outside", "ignore:compare.png")


class Means:
    description = "means"

    def features(self, samples: torch.Tensor) -> np.ndarray:
        return samples.flatten(1).double().numpy()

    def score_features(self, features: np.ndarray) -> Score:
        return Score(len(features), float(features.mean()) ** 2, None)

    def floor(self, count: int) -> Score:
        return Score(count, 0.1, None)


def halves(name: str, factor: float) -> sds.FunctionModel:
    def net(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return factor * x + condition.reshape(-1, 1)

    return sds.FunctionModel(net, sds.VP(), "epsilon", (2,), conditional=True, null_condition=0.0, name=name)


@pytest.fixture(scope="module")
def everything() -> sds.Comparison:
    """Two models and guidance scales, repeats, metrics, a refusal, a stochastic sampler."""
    return sds.compare(
        [halves("one", 0.5), halves("two", 0.25)],
        ["ddim", "ddpm", "paradigms"],
        3,
        guidance_scale=[1.0, 2.0],
        condition=0.1,
        repeats=2,
        num_samples=3,
        reference_samples=2,
        scorer=Means(),
        metrics={"first": lambda x: x[:, 0], "top": lambda x: x.max()},
    )


def test_the_schema_is_valid_and_describes_every_field(everything: sds.Comparison) -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    data = json.loads(json.dumps(everything.as_dict()))
    jsonschema.validate(data, schema())
    cell, group = (schema()["properties"][name]["items"] for name in ("cells", "groups"))
    known = set(cell["properties"])
    assert known == {entry.name for entry in fields(Cell)}
    assert set(group["properties"]) == set(data["groups"][0])
    assert set(schema()["properties"]) == set(data)
    described = [*cell["properties"].values(), *group["properties"].values()]
    assert all(entry.get("description") for entry in described)
    assert schema()["properties"]["schema_version"]["const"] == data["schema_version"]


def test_a_comparison_is_read_back(everything: sds.Comparison, tmp_path: Path) -> None:
    files = everything.save(tmp_path)
    for place in (tmp_path, str(files["json"])):
        again = sds.Comparison.load(place)
        assert again.as_dict() == json.loads(json.dumps(everything.as_dict()))
        assert again.cells == [Cell(**cell) for cell in json.loads(files["json"].read_text())["cells"]]
        assert again.as_csv() == everything.as_csv()
        assert [group.model_name for group in again.groups] == ["one", "one", "two", "two"]
        assert again.groups[1].floor == Score(3, 0.1, None)
        assert again.select("two", 2.0).recommend(nfe=3).sampler == "ddim"
        assert not [check for check in again.check("error>1.01x", baseline=everything) if check.outcome == "failed"]
        with pytest.raises(sds.UsageError, match="cannot be shown"):
            again.groups[0].picture()


def test_a_file_of_version_1_is_read() -> None:
    """Written by the code of version 1."""
    data = json.loads(FORMER.read_text())
    assert data["schema_version"] == 1
    former = sds.Comparison.load(FORMER)
    assert (former.model_name, former.seed, former.repeats, former.reference_count) == ("mixture", 7, 1, 2)
    assert [cell.sampler for cell in former.cells] == ["heun", "ddpm", "paradigms"]
    assert former.cells[0].error == data["cells"][0]["error"]
    assert former.facts["model"]["schedule"] == data["model"]["schedule"]
    assert former.facts["spacing"] == "karras"
    new = sds.compare(
        sds.grid_mixture(sds.VP()),
        ["heun", "ddpm", "paradigms"],
        4,
        num_samples=4,
        reference_samples=2,
        seed=7,
        spacing="karras",
    )
    outcomes = {check.sampler: check.outcome for check in new.check("error>1.01x", baseline=former)}
    assert outcomes == {"heun": "passed", "ddpm": "skipped", "paradigms": "skipped"}
    jsonschema.validate(json.loads(json.dumps(former.as_dict())), schema())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
        ("[]", "not a comparison (it has no schema_version)"),
        ('{"schema_version": true}', "not a comparison"),
        ('{"schema_version": 99}', "schema version 99; this release of sdesamplers reads versions 1 to 2"),
        ('{"schema_version": 1}', "not a comparison: KeyError: 'model_name'"),
        ('{"schema_version": 1, "model_name": "x", "num_samples": 1, "seed": 0, "cells": 3}', "not a comparison"),
        ('{"schema_version": 2}', "not a comparison: top level"),
    ],
)
def test_other_files_are_refused_in_a_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "compare.json"
    file.write_text(content)
    with pytest.raises(sds.UsageError) as refused:
        sds.Comparison.load(file)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(sds.UsageError, match="No such file"):
        sds.Comparison.load(tmp_path / "none.json")


def test_a_field_of_the_wrong_type_is_named(everything: sds.Comparison, tmp_path: Path) -> None:
    data: Any = json.loads(json.dumps(everything.as_dict()))
    data["cells"][1]["budget"] = "3"
    file = tmp_path / "compare.json"
    file.write_text(json.dumps(data))
    with pytest.raises(sds.UsageError, match=r"cells.1.budget: '3' is not of type 'integer'"):
        sds.Comparison.load(file)
    data["cells"][1]["budget"] = 3
    data["cells"][1]["field_of_a_later_release"] = 1
    file.write_text(json.dumps(data))
    assert sds.Comparison.load(file).cells[1].budget == 3
