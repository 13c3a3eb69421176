"""Settings: samplers with their own grid and options, as text and as objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdesamplers as sds
from sdesamplers.comparison.settings import as_settings
from sdesamplers.sampling.setting import parse_setting, split_settings

FEW: dict[str, Any] = {"num_samples": 4, "reference_samples": 0}


@pytest.fixture(scope="module")
def mixture() -> sds.MixtureModel:
    return sds.grid_mixture(sds.VP())


@pytest.mark.parametrize(
    ("text", "sampler", "arguments"),
    [
        ("ddim eta=0.5", "ddim", {"eta": 0.5}),
        ("dpmpp-2m spacing=karras", "dpmpp-2m", {"spacing": "karras"}),
        ("heun spacing=karras spacing.rho=5 coordinates=flow", "heun",
         {"spacing": "karras", "spacing_options": {"rho": 5.0}, "coordinates": "flow"}),
        ("DPM++ 2M Karras coordinates='angle'", "DPM++ 2M Karras", {"coordinates": "angle"}),
        ("Euler a noise=brownian final=min", "Euler a", {"noise": "brownian", "final": "min"}),
        ("  heun   final=zero ", "heun", {"final": "zero"}),
    ],
)  # fmt: skip
def test_a_text_runs_what_the_arguments_run(
    mixture: sds.MixtureModel, text: str, sampler: str, arguments: dict[str, Any]
) -> None:
    result = sds.compare(mixture, text, 6, **FEW)
    expected = sds.sample(mixture, sampler, nfe=6, num_samples=4, **arguments)
    (cell,) = result.cells
    assert cell.sampler == " ".join(text.split())
    assert torch.equal(result.samples[cell.sampler, 6], expected.samples)
    assert cell.recipe == expected.recipe.as_dict()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ddim etta=0.5", "has no option 'etta'; did you mean 'eta'"),
        ("ddim spcing=karras", "unknown key 'spcing'; did you mean 'spacing'"),
        ("ddim spacing=karas", "unknown spacing 'karas'; did you mean 'karras'"),
        ("hein eta=0.5", "unknown sampler 'hein'; did you mean 'heun'"),
        ("ddim eta=high", "option 'eta' must be float, not 'high'"),
        ("ddim steps=5", "the number of evaluations is an argument of its own"),
        ("ddim seed=5", "seed is not part of a setting"),
        ("ddim guidance_scale=5", "guidance_scale is not part of a setting"),
        ("ddim spacing=karras rho=5", "rho is an option of the spacing; write spacing.rho="),
        ("ddim spacing=karras spacing.roh=5", "spacing 'karras' has no option 'roh'; did you mean 'rho'"),
        ("ddim spacing.rho=5", "spacing.rho= needs spacing="),
        ("ddim use_karras_sigmas=true", 'the equivalent of diffusers\' use_karras_sigmas is spacing="karras"'),
        ("spacing=karras", "has no sampler"),
        ("ddim eta=", "expected KEY=VALUE"),
        ("ddim eta=0.5 karras", "expected KEY=VALUE, not 'karras'"),
        ("ddim eta=0.5 eta=0.2", "has eta twice"),
        ("tuned spacing=karras", "a solver table has its own grid"),
    ],
)
def test_texts_that_are_refused(mixture: sds.MixtureModel, text: str, message: str) -> None:
    with pytest.raises(sds.UsageError) as refused:
        sds.compare(mixture, ["heun", text], 6, **FEW)
    assert message in str(refused.value)


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=30) | st.from_regex(r"(ddim|heun|./a) ([a-z.]{1,7}=[\[\]\"'0-9a-z,.]{0,6} ?){0,3}", fullmatch=True)
)
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        sampler, arguments = parse_setting(text)
    except sds.UsageError:
        pass
    else:
        assert isinstance(sampler, str)
        assert isinstance(arguments, dict)


def test_commas_separate_settings_outside_of_lists_and_quotes() -> None:
    assert split_settings("heun") == ["heun"]
    assert split_settings("heun, ddim eta=0.5 ,x a=[1, 2] b='3,4'") == ["heun", "ddim eta=0.5", "x a=[1, 2] b='3,4'"]
    assert split_settings("a,,b") == ["a", "", "b"]


def test_labels_of_a_dictionary(mixture: sds.MixtureModel) -> None:
    result = sds.compare(mixture, {"ours": "heun spacing=karras", "theirs": sds.samplers()["ddim"]}, 6, **FEW)
    assert [cell.sampler for cell in result.cells] == ["ours", "theirs"]
    assert result.cells[0].recipe is not None
    assert result.cells[0].recipe["spacing"] == "karras"


def test_recipes_as_dictionaries_and_files(mixture: sds.MixtureModel, tmp_path: Path) -> None:
    recipe = sds.sample(mixture, "ddim", steps=7, eta=0.5, spacing="karras").recipe
    plain, manifest = tmp_path / "plain.json", tmp_path / "manifest.json"
    plain.write_text(json.dumps(recipe.as_dict()))
    manifest.write_text(json.dumps({"recipe": recipe.as_dict(), "num_samples": 3}))
    result = sds.compare(mixture, [recipe.as_dict(), str(plain), f"{manifest} eta=0"], 6, **FEW)  # type: ignore[list-item]
    expected = sds.sample(mixture, "ddim", nfe=6, eta=0.5, spacing="karras", num_samples=4).samples
    without = sds.sample(mixture, "ddim", nfe=6, eta=0.0, spacing="karras", num_samples=4).samples
    for label, samples in zip(("ddim", str(plain), f"{manifest} eta=0"), (expected, expected, without), strict=True):
        assert torch.equal(result.samples[label, 6], samples)
    for content, message in (
        ("[1]", "neither a recipe nor"),
        ("{", "neither a recipe nor"),
        ('{"a": 1}', "neither a recipe nor"),
        ('{"sampler": "ddim", "step": 1}', "plain.json:1: step: unknown key; did you mean 'steps'"),
    ):
        plain.write_text(content)
        with pytest.raises(sds.UsageError, match=message):
            as_settings(str(plain))


def test_a_setting_with_its_own_grid_does_not_inherit_the_options_of_the_common_one(mixture: sds.MixtureModel) -> None:
    common: dict[str, Any] = {"spacing": "karras", "spacing_options": {"rho": 3.0}}
    result = sds.compare(mixture, ["heun", "heun spacing=linspace"], 6, **common, **FEW)
    recipes = [cell.recipe or {} for cell in result.cells]
    assert recipes[0]["spacing_options"]["rho"] == 3.0
    assert recipes[1]["spacing"] == "linspace"
    assert "rho" not in recipes[1].get("spacing_options", {})


def test_an_option_that_no_setting_has_is_refused_before_anything_runs(mixture: sds.MixtureModel) -> None:
    with pytest.raises(sds.UsageError, match="unknown option 'etta'; did you mean 'eta'"):
        sds.compare(mixture, ["ddim", "heun"], 6, etta=0.5, **FEW)
