"""The JSON Schemas for editors: fresh, valid, and in agreement with what the code accepts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft7Validator
from make_pages import schema_text, shipped_registry

import sdesamplers as sds
from sdesamplers.cli import cli
from sdesamplers.errors import UsageError
from sdesamplers.registry.editor_schemas import SCHEMAS, described
from sdesamplers.registry.schema import ADDRESSES

FOLDER = Path(sds.__file__).parent / "schemas"


@pytest.fixture(scope="module")
def schemas() -> dict[str, Draft7Validator]:
    return {name: Draft7Validator(json.loads((FOLDER / f"{name}.json").read_text("utf-8"))) for name in SCHEMAS}


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_shipped_schemas_are_fresh_and_valid(name: str, schemas: dict[str, Draft7Validator]) -> None:
    text = (FOLDER / f"{name}.json").read_text("utf-8")
    assert text == schema_text(name, shipped_registry()), "run python docs/make_pages.py"
    Draft7Validator.check_schema(json.loads(text))
    assert (
        json.loads(text)["$id"] == ADDRESSES[name] == f"https://sdesamplers.github.io/sdesamplers/schemas/{name}.json"
    )


def test_the_shipped_registry_is_valid_and_names_its_schema(schemas: dict[str, Draft7Validator]) -> None:
    text = (FOLDER.parent / "registry.yaml").read_text("utf-8")
    assert text.startswith(f"# yaml-language-server: $schema={ADDRESSES['registry']}\n")
    assert not list(schemas["registry"].iter_errors(yaml.safe_load(text)))


def test_every_sampler_grid_and_noise_source_has_its_options(schemas: dict[str, Draft7Validator]) -> None:
    """The defaults of every item are valid for it, and an option that it does not have is not."""
    validator, registry = schemas["recipe"], shipped_registry()
    shelves = {"options": registry.samplers, "spacing_options": registry.spacings, "noise_options": registry.noises}
    for key, shelf in shelves.items():
        kind = {"options": "sampler", "spacing_options": "spacing", "noise_options": "noise"}[key]
        for name, item in shelf.items():
            if not item.is_built_in:
                continue
            defaults = json.loads(json.dumps({o.name: o.default for o in item.options.values()}))
            finite = {k: v for k, v in defaults.items() if v not in (float("inf"), float("-inf"))}
            recipe = {"sampler": "heun", kind: name, key: finite}
            assert not list(validator.iter_errors(recipe)), (name, finite)
            assert list(validator.iter_errors({**recipe, key: {**finite, "nothing": 1}})), name


CASES: dict[str, tuple[Any, bool]] = {
    "the least": ({"sampler": "heun"}, True),
    "a label": ({"sampler": "DPM++ 2M Karras", "steps": 8}, True),
    "a recipe": ({"sampler": "edm"}, True),
    "an option": ({"sampler": "ddim", "steps": 4, "options": {"eta": 0.3}}, True),
    "a whole number for a float": ({"sampler": "ddim", "steps": 4, "options": {"eta": 1}}, True),
    "a grid": ({"sampler": "euler", "sigmas": [80, 1.5, 0]}, True),
    "no sampler": ({"steps": 4}, False),
    "another key": ({"sampler": "heun", "step": 4}, False),
    "a text for a number": ({"sampler": "heun", "steps": "4"}, False),
    "no step": ({"sampler": "heun", "steps": 0}, False),
    "two grids": ({"sampler": "heun", "steps": 4, "sigmas": [80, 0]}, False),
    "coordinates": ({"sampler": "heun", "steps": 4, "coordinates": "polar"}, False),
    "an option of others": ({"sampler": "heun", "steps": 4, "options": {"eta": 1.0}}, False),
    "a text for an option": ({"sampler": "ddim", "steps": 4, "options": {"eta": "much"}}, False),
    "a choice": ({"sampler": "dpmpp-2m", "steps": 4, "options": {"solver": "hein"}}, False),
    "a spacing's option": ({"sampler": "heun", "steps": 4, "spacing": "karras", "spacing_options": {"rh": 5}}, False),
}


@pytest.mark.parametrize("case", CASES)
def test_schema_and_code_agree(case: str, schemas: dict[str, Draft7Validator], tmp_path: Path) -> None:
    recipe, valid = CASES[case]
    assert (not list(schemas["recipe"].iter_errors(recipe))) is valid
    (tmp_path / "a.yaml").write_text(json.dumps(recipe))
    model = sds.GaussianModel([0.5, -0.5], 0.3, sds.VP())
    arguments = {} if set(recipe) & {"steps", "sigmas"} else {"nfe": 12}
    if valid:
        sds.sample(model, str(tmp_path / "a.yaml"), **arguments)
    else:
        with pytest.raises(UsageError):
            sds.sample(model, str(tmp_path / "a.yaml"), **arguments)


def test_names_complete_and_options_are_described(schemas: dict[str, Draft7Validator]) -> None:
    schema = schemas["recipe"].schema
    names = schema["properties"]["sampler"]["anyOf"][0]["enum"]
    assert names[0] in sds.samplers()
    assert {"heun", "quality", "DPM++ 2M", "k_dpmpp_2m"} <= set(names)
    assert len(names) == len(set(names))
    ddim = next(each for each in schema["allOf"] if each["if"]["properties"].get("sampler") == {"const": "ddim"})
    eta = ddim["then"]["properties"]["options"]["properties"]["eta"]
    assert (eta["type"], eta["default"]) == ("number", 0.0)
    assert len(eta["description"]) > 10
    text = "A sampler.\n\nArgs:\n    a, b: both of\n        them.\n    c: alone: so.\n"
    assert described(text) == {"a": "both of them.", "b": "both of them.", "c": "alone: so."}


def test_the_command_prints_the_schema_with_plugins() -> None:
    @sds.sampler("my-own", order=1)
    def my_own(x, path, *, strength: float = 1.0):  # type: ignore[no-untyped-def]
        """A sampler of the test.

        Args:
            strength: of nothing.
        """
        for now, _ in path.steps:
            out = yield x, now
            x = out.x
        return x

    sds.register(my_own)
    printed = json.loads(CliRunner().invoke(cli, ["schema", "recipe"]).stdout)
    assert "my-own" in printed["properties"]["sampler"]["anyOf"][0]["enum"]
    assert list(Draft7Validator(printed).iter_errors({"sampler": "my-own", "options": {"strenght": 1.0}}))
    assert "my-own" not in (FOLDER / "recipe.json").read_text("utf-8")
    refused = CliRunner().invoke(cli, ["schema", "recipes"])
    assert "did you mean 'recipe'" in str(refused.exception)
