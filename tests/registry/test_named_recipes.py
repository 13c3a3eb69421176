"""Recipes under names of a registry file: inline, by the path of their file, or of the same repository on the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from process_cases import TABLE

import sdesamplers as sds
from sdesamplers.errors import UsageError
from sdesamplers.registry.catalogue import read
from sdesamplers.registry.recipe_data import missing
from sdesamplers.registry.registry import Registry


@pytest.fixture(scope="module")
def mixture() -> sds.MixtureModel:
    return sds.grid_mixture(sds.DiscreteVP(TABLE))


@pytest.fixture
def use(tmp_path: Path) -> object:
    """A function that writes registry.yaml and uses it; the registry is reset afterwards."""

    def write(text: str) -> Path:
        file = tmp_path / "registry.yaml"
        file.write_text(text)
        sds.use_registry(file)
        return file

    yield write
    sds.use_registry(None)


RUNS = {
    "steps": ("dpmpp-2m", {"steps": 5, "spacing": "karras", "spacing_options": {"rho": 5.0}}),
    "sigmas": ("euler", {"sigmas": [80.0, 5.0, 1.0, 0.0]}),
    "times": ("euler", {"times": [900.0, 400.0, 10.0]}),
    "own steps": ("rk45", {"rtol": 1e-3, "atol": 1e-3}),
}


@pytest.mark.parametrize("form", ["inline", "path", "json"])
@pytest.mark.parametrize("name", RUNS)
def test_a_saved_recipe_runs_under_a_name(name, form, mixture, use, tmp_path, monkeypatch) -> None:
    sampler, arguments = RUNS[name]
    ran = sds.sample(mixture, sampler, **arguments, num_samples=3, seed=7)
    suffix = ".json" if form == "json" else ".yaml"
    file = ran.recipe.save(tmp_path / "recipes" / f"mine{suffix}")
    inline = "\n".join(f"    {line}" for line in file.read_text().splitlines())
    monkeypatch.chdir("/")  # the path is relative to the registry file
    use(f"recipes:\n  mine:\n{inline}\n" if form == "inline" else f"recipes:\n  mine: recipes/mine{suffix}\n")
    again = sds.sample(mixture, "mine", num_samples=3, seed=7)
    assert torch.equal(again.samples, ran.samples)
    assert again.recipe == ran.recipe
    assert sds.sample(mixture, "mine", steps=3).nfe == sds.sample(mixture, sampler, steps=3).nfe


def test_a_recipe_may_refer_to_a_name_of_another_library_and_to_another_recipe(mixture, use) -> None:
    use("recipes:\n  a: {sampler: DPM++ 2M Karras, steps: 4}\n  b: {sampler: a, steps: 6, spacing_options: {rho: 3}}\n")
    recipe = sds.sample(mixture, "b").recipe
    assert (recipe.sampler, recipe.steps, recipe.spacing) == ("dpmpp-2m", 6, "karras")
    assert recipe.spacing_options["rho"] == 3
    assert sds.sample(mixture, "a").recipe.steps == 4


def test_a_scheduler_refuses_a_named_grid_of_its_own(use) -> None:
    use("recipes:\n  a: {sampler: euler, sigmas: [3, 1, 0]}\n  b: {sampler: euler, steps: 4}\n")
    with pytest.raises(UsageError, match="the recipe 'a' has its own grid; pass timesteps="):
        sds.Scheduler("a")
    assert sds.Scheduler("b").spec.name == "euler"


def test_a_spacing_for_the_listed_grid_of_another_recipe_is_refused(mixture, use) -> None:
    listed = "recipes:\n  a: {sampler: euler, sigmas: [3, 1, 0]}\n  b:\n    sampler: a\n    spacing: karras\n"
    use(listed)
    with pytest.raises(UsageError, match=r"registry\.yaml:5: recipes\.b\.spacing: contradicts sigmas of 'a'"):
        sds.sample(mixture, "b")
    use(listed + "    steps: 4\n")
    assert (sds.sample(mixture, "b").recipe.steps, sds.sample(mixture, "b").recipe.spacing) == (4, "karras")


def test_a_circle_of_recipes_is_refused(use) -> None:
    use("recipes:\n  a: {sampler: b, steps: 4}\n  b: {sampler: a}\n")
    with pytest.raises(UsageError, match=r"registry\.yaml:\d: recipes\.\w\.sampler: the recipe refers to itself"):
        sds.default_registry().resolve("a")


INLINE = {
    "sampler: dimm": r"unknown sampler of .*registry\.yaml:3: recipes\.r\.sampler: 'dimm'; did you mean 'ddim'",
    "sampler: ddim\n    options: {et: 1}": r"registry\.yaml:4: recipes\.r\.options\.et: .* did you mean 'eta'",
    "sampler: ddim\n    options:\n      eta: big": r"registry\.yaml:5: recipes\.r\.options\.eta: .*float, not 'big'",
    "sampler: ddim\n    stepz: 3": r"registry\.yaml:4: recipes\.r\.stepz: unknown key; did you mean 'steps'",
    "sampler: ddim\n    steps: x": r"registry\.yaml:4: recipes\.r\.steps: must be a whole number, not 'x'",
    "sampler: ddim\n    steps: 3\n    sigmas: [1, 0]": r"registry\.yaml:5: .*contradicts steps in line 4",
    "sampler: ddim\n    sigmas: [1, 0]\n    spacing: karras": r"registry\.yaml:5: .*spacing: contradicts sigmas in",
    "sampler: ddim\n    times: [1, 0]\n    start_time: 3": r"registry\.yaml:5: .*start_time: contradicts times",
    "sampler: ddim\n    coordinates: vee": r"registry\.yaml:4: .*not 'vee'; did you mean 've'",
    "sampler: ddim\n    requires: {warp: ''}": r"registry\.yaml:4: .*requires: .*warp.*pass --plugin warp\.py",
    "sampler: ddim\n    requires: {warp: '1.2'}": r"registry\.yaml:4: .*requires: .*pip install warp==1\.2",
}


@pytest.mark.parametrize("text", INLINE)
def test_mistakes_have_the_line_of_the_key(text: str, tmp_path: Path) -> None:
    (tmp_path / "registry.yaml").write_text(f"recipes:\n  r:\n    {text}\n")
    with pytest.raises(UsageError, match=INLINE[text]):
        Registry(tmp_path / "registry.yaml").resolve("r")


@pytest.mark.parametrize("requires", [{"x; true": "1"}, {"--pre": "1"}, {"warp": "1; true"}, {"x; true": ""}])
def test_what_a_recipe_requires_is_no_command_of_a_shell(requires: dict[str, str]) -> None:
    """Messages have commands to be pasted, and recipes come from other people."""
    message = missing(requires, [])
    assert "which is not installed" in message
    assert "pip install" not in message
    assert "--plugin x;" not in message


@pytest.mark.parametrize("text", INLINE)
def test_mistakes_in_a_recipes_own_file_have_its_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "registry.yaml").write_text("recipes:\n  r: mine.yaml\n")
    (tmp_path / "mine.yaml").write_text("\n\n" + text.replace("\n    ", "\n") + "\n")  # the same lines as above
    message = INLINE[text].replace("registry", "mine").replace(r"recipes\.r\.", "")
    with pytest.raises(UsageError, match=message):
        Registry(tmp_path / "registry.yaml").resolve("r")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("none.yaml", r"registry\.yaml:1: recipes\.r: .*none\.yaml: no such file; .* relative to the registry file"),
        ("heun", r"registry\.yaml:1: recipes\.r: 'heun' is neither a recipe.*aliases"),
        ("[1]", r"registry\.yaml:1: recipes\.r: must be a mapping or text, not \[1\]"),
        ("hf://a/b/c.yaml", r"registry\.yaml:1: recipes\.r: .* needs a revision"),
    ],
)
def test_entries_that_are_no_recipes(entry: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "registry.yaml").write_text(f"recipes: {{r: {entry}}}\n")
    with pytest.raises(UsageError, match=message):
        Registry(tmp_path / "registry.yaml")


@pytest.mark.parametrize("entry", ["/etc/mine.yaml", "../mine.yaml", "recipes/../../mine.yaml"])
def test_a_registry_on_the_hub_names_no_files_of_this_machine(entry: str, tmp_path: Path) -> None:
    file = tmp_path / "registry.yaml"
    file.write_text(f"recipes: {{r: {entry}}}\n")
    address = sds.hub.address.Address.parse("hf://me/registry@" + "a" * 40 + "/registry.yaml")
    with pytest.raises(UsageError, match=r"registry\.yaml:1: recipes\.r: .*may not name files of your machine"):
        read(file, allow_plugins=False, address=address)


@pytest.mark.parametrize("section", ["recipes:\n  churn: {sampler: heun, steps: 3}", "aliases:\n  churn: heun"])
def test_a_name_that_a_sampler_hides_is_warned_of(section: str, tmp_path: Path) -> None:
    (tmp_path / "registry.yaml").write_text(f"# mine\n{section}\n")
    with pytest.warns(
        sds.SdesamplersWarning, match=r"registry.yaml:3: (recipes|aliases).churn: the sampler of this name"
    ):
        registry = Registry(tmp_path / "registry.yaml")
    assert registry.resolve("churn").sampler.name == "churn"
