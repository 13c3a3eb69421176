"""Recipes as files: what is written is read back and run again, and every mistake in a file has its line."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from hub_cache import head, hub_cache  # noqa: F401
from hub_server import TOKEN, HubServer
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from process_cases import TABLE
from safetensors.torch import load_file
from solver_tables import table_for

import sdesamplers as sds
from sdesamplers.cli import cli
from sdesamplers.registry.plain_yaml import dump, parse

SCHEMA = json.loads((Path(sds.__file__).parent / "schemas" / "recipe.json").read_text())
ADDRESS = "https://sdesamplers.github.io/sdesamplers/schemas/recipe.json"


@pytest.fixture(scope="module")
def mixture() -> sds.MixtureModel:
    return sds.grid_mixture(sds.DiscreteVP(TABLE))


CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "steps": ("dpmpp-2m", {"steps": 5, "spacing": "karras", "spacing_options": {"rho": 5.0}}),
    "options": ("ddim", {"steps": 4, "eta": 0.3}),
    "sigmas": ("euler", {"sigmas": [80.0, 5.0, 1e-5, 0.0]}),
    "own steps": ("rk45", {"rtol": 1e-3, "atol": 1e-3}),
    "noise": ("euler-maruyama", {"steps": 5, "noise": "brownian", "coordinates": "ve", "final": "min"}),
}


@pytest.mark.parametrize("ending", [".yaml", ".json"])
@pytest.mark.parametrize("name", CALLS)
def test_a_file_gives_the_same_samples(mixture: sds.MixtureModel, name: str, ending: str, tmp_path: Path) -> None:
    sampler, arguments = CALLS[name]
    result = sds.sample(mixture, sampler, **arguments, num_samples=3, seed=7)
    file = result.recipe.save(tmp_path / "new" / f"mine{ending}")
    loaded = sds.Recipe.load(file)
    assert loaded == result.recipe
    for again in (loaded, str(file)):
        assert torch.equal(sds.sample(mixture, again, num_samples=3, seed=7).samples, result.samples)
    data = (json.loads if ending == ".json" else yaml.safe_load)(file.read_text())  # readers of others
    assert data["$schema"] == ADDRESS
    assert data["sampler"] == result.recipe.sampler
    Draft7Validator(SCHEMA).validate(data)
    if ending == ".yaml":
        assert file.read_text().startswith(f"# yaml-language-server: $schema={ADDRESS}\n")


def test_a_table_in_a_recipe_is_data_too(mixture: sds.MixtureModel, tmp_path: Path) -> None:
    result = sds.sample(mixture, table_for(mixture.process, (1.2, 0.7, 0.3)), num_samples=2)
    file = result.recipe.save(tmp_path / "table.yaml")
    assert torch.equal(sds.sample(mixture, str(file), num_samples=2).samples, result.samples)


def test_what_somebody_writes_is_completed(mixture: sds.MixtureModel, tmp_path: Path) -> None:
    file = tmp_path / "short.yaml"
    file.write_text('sampler: DPM++ 2M SDE Karras\nsteps: 4\ndescription: "few: steps"\n')
    by_name = sds.sample(mixture, "DPM++ 2M SDE Karras", steps=4, num_samples=2)
    by_file = sds.sample(mixture, str(file), num_samples=2)
    assert torch.equal(by_file.samples, by_name.samples)
    assert by_file.recipe == by_name.recipe
    assert by_file.recipe.description == "few: steps"
    assert by_file.recipe.spacing == "karras"
    file.write_text("sampler: quality\n")
    assert sds.sample(mixture, str(file)).recipe == sds.sample(mixture, "quality").recipe
    changed = sds.sample(mixture, str(file), steps=3, spacing="karras").recipe
    assert (changed.steps, changed.spacing, changed.coordinates) == (3, "karras", "flow")


def test_everything_that_takes_a_sampler_takes_a_file(mixture: sds.MixtureModel, tmp_path: Path) -> None:
    recipe = sds.sample(mixture, "heun", steps=4, spacing="karras", coordinates="ve").recipe
    file = str(recipe.save(tmp_path / "mine.yaml"))
    done = sds.generate(mixture, file, out=tmp_path / "job", num_samples=2)
    assert done.manifest is not None
    assert done.manifest["recipe"] == recipe.as_dict()
    assert sds.Recipe.load(done.folder / "manifest.json") == recipe
    compared = sds.compare(mixture, [file, "heun"], nfe=7, num_samples=2, reference_samples=0)
    assert [cell.sampler for cell in compared.cells] == [file, "heun"]
    assert compared.cells[0].recipe == recipe.as_dict()
    data = torch.zeros(1, 2)
    assert torch.equal(sds.encode(mixture, data, file).samples, sds.encode(mixture, data, recipe).samples)
    folder = str(Path(file).rename(tmp_path / "recipe.yaml").parent)
    assert sds.sample(mixture, folder).recipe == recipe  # a folder means its recipe.yaml
    config = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000}
    for arguments in ({"recipe": folder}, {"sampler": f"{folder}/recipe.yaml"}):
        made = sds.Scheduler.from_config(config, **arguments)
        assert (made.spec.name, made.config.spacing, made.config.coordinates) == ("heun", "karras", "ve")


def test_options_of_a_recipe_can_be_overridden_in_a_scheduler(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("sampler: ddim\noptions: {eta: 0.5}\n")
    config = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000}
    assert sds.Scheduler.from_config(config, str(tmp_path / "mine.yaml")).config.options == {"eta": 0.5}
    made = sds.Scheduler.from_config(config, recipe=str(tmp_path / "mine.yaml"), eta=0.25)
    assert made.config.options == {"eta": 0.25}


MISTAKES = {
    "a key": ("sampler: heun\nstep: 4\n", r"mine\.yaml:2: step: unknown key; did you mean 'steps'\?"),
    "no sampler": ("steps: 4\n", r"mine\.yaml:1: top level: a recipe's file needs the key 'sampler'"),
    "a type": ("sampler: heun\nsteps: four\n", r"mine\.yaml:2: steps: must be a whole number, not 'four'"),
    "no step": ("sampler: heun\nsteps: 0\n", r"mine\.yaml:2: steps: must be 1 or more, not 0"),
    "a name": ("steps: 4\nsampler: eulr\n", r"mine\.yaml:2: sampler: unknown sampler 'eulr'; did you mean 'euler'"),
    "a grid": (
        "sampler: heun\n\nspacing: karas\n",
        r"mine\.yaml:3: spacing: unknown spacing 'karas'; did you mean 'karras'",
    ),
    "a noise": ("sampler: heun\nnoise: brown\n", r"mine\.yaml:2: noise: unknown noise source 'brown'"),
    "coordinates": ("sampler: heun\ncoordinates: xy\n", r"mine\.yaml:2: coordinates: must be 'native' or .* not 'xy'"),
    "no mapping": (
        "- heun\n",
        r"mine\.yaml:1: a recipe's file is a mapping with the key 'sampler'; this one is a list",
    ),
    "nothing": ("", r"mine\.yaml:1: a recipe's file is a mapping .* is empty"),
    "no YAML": ("sampler: [\n", r"mine\.yaml:\d: not valid YAML"),
    "an object": (
        "sampler: !!python/object/apply:os.system [ls]\n",
        r"mine\.yaml:1: not valid YAML: could not determine",
    ),
    "twice": ("sampler: heun\nsampler: euler\n", r"mine\.yaml:2: duplicate key 'sampler'"),
    "plugins": ("sampler: heun\nplugins: [os]\n", r"mine\.yaml:2: plugins: unknown key"),
    "a source": ("sampler: heun\nsource: hf://a/b\n", r"mine\.yaml:2: source: unknown key"),
    "a plugin": (
        "sampler: warp\nrequires: {warp-samplers: 1.2.0}\n",
        r"mine\.yaml:1: sampler: unknown sampler 'warp'; the recipe requires the plugin warp-samplers 1\.2\.0, which "
        r"is not installed: pip install warp-samplers==1\.2\.0$",
    ),
    "a plugin whose name is taken": (
        "sampler: heun\nrequires: {warp-samplers: 1.2.0}\n",
        r"mine\.yaml:2: requires: the recipe requires the plugin warp-samplers 1\.2\.0, which is not installed: "
        r"pip install warp-samplers==1\.2\.0$",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_a_file_has_its_line(case: str, mixture: sds.MixtureModel, tmp_path: Path) -> None:
    text, message = MISTAKES[case]
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    for call in (lambda: sds.Recipe.load(file), lambda: sds.sample(mixture, str(file))):
        with pytest.raises(sds.UsageError, match=message) as refused:
            call()
        assert "\n" not in str(refused.value)


def test_files_that_cannot_be_read_and_endings(mixture: sds.MixtureModel, tmp_path: Path) -> None:
    with pytest.raises(sds.UsageError, match=r"none\.yaml: cannot be read: No such file"):
        sds.sample(mixture, str(tmp_path / "none.yaml"))
    recipe = sds.sample(mixture, "heun", steps=2).recipe
    with pytest.raises(sds.UsageError, match=r"ends in \.yaml, \.yml or \.json, unlike 'mine\.txt'"):
        recipe.save(tmp_path / "mine.txt")
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(sds.UsageError, match=r"other\.json: neither a recipe nor a solver table"):
        sds.sample(mixture, str(tmp_path / "other.json"))


def test_what_nobody_registered_is_not_saved(mixture: sds.MixtureModel, tmp_path: Path) -> None:
    @sds.sampler("half-euler", order=1)
    def half_euler(x, path):  # type: ignore[no-untyped-def]
        """Half of Euler's step."""
        for now, then in path.steps:
            out = yield x, now
            x = out.x + 0.5 * (out.step_to(then) - out.x)
        return x

    recipe = sds.sample(mixture, half_euler, steps=2).recipe
    with pytest.raises(sds.UsageError, match="the sampler 'half-euler' of this recipe is not registered"):
        recipe.save(tmp_path / "mine.yaml")
    assert not (tmp_path / "mine.yaml").exists()
    sds.register(half_euler)
    recipe = sds.sample(mixture, "half-euler", steps=2).recipe
    assert sds.Recipe.load(recipe.save(tmp_path / "mine.yaml")) == recipe
    half_euler.plugin = "warp-samplers:warp"  # as the registry sets it for an installed plugin
    assert yaml.safe_load(recipe.as_text())["requires"] == {"warp-samplers": ""}


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
    max_leaves=6,
)
HOMOGRAPHS = ("1e5", "010", "08", "yes", "1:30", "null", ".inf", "2001-01-01", "0x10", "<<", "=", "1_000", "~", "")


@given(PLAIN)
@settings(max_examples=60, deadline=None)
def test_yaml_is_read_back_equal(data: Any) -> None:
    surrogates = any(0xD800 <= ord(letter) <= 0xDFFF for letter in json.dumps(data, ensure_ascii=False))
    if not surrogates:
        assert parse(dump({"a": data}), "test") == {"a": data}


def test_texts_that_look_like_numbers_stay_texts_in_both_versions_of_yaml() -> None:
    text = dump({"a": list(HOMOGRAPHS)})
    assert parse(text, "test") == yaml.safe_load(text) == {"a": list(HOMOGRAPHS)}
    assert math.isclose(parse(dump({"a": 1e-5}), "test")["a"], 1e-5)


# On the Hub


@pytest.mark.usefixtures("hub_cache")
def test_a_recipe_pushed_is_a_recipe_pulled(hub: HubServer, mixture: sds.MixtureModel, tmp_path: Path) -> None:
    recipe = sds.sample(mixture, "dpmpp-2m", steps=5, spacing="karras").recipe
    address = recipe.push_to_hub("me/recipes", token=TOKEN)
    first = hub.repos["me/recipes"].refs["main"]
    assert address == f"{hub.url}/me/recipes/commit/{first}"
    other = sds.sample(mixture, "heun", steps=3).recipe
    other.push_to_hub("me/recipes", "few/heun.yaml", token=TOKEN, commit_message="few steps")
    second = hub.repos["me/recipes"].refs["main"]
    assert set(head(hub, "me/recipes")) == {".gitattributes", "README.md", "recipe.yaml", "few/heun.yaml"}
    assert hub.repos["me/recipes"].messages[second] == "few steps"
    expected = sds.sample(mixture, recipe, num_samples=2).samples
    for source, commit, path in (
        ("hf://me/recipes", second, "recipe.yaml"),
        (f"hf://me/recipes@{first}", first, "recipe.yaml"),
        ("hf://me/recipes/recipe.yaml", second, "recipe.yaml"),
    ):
        found = sds.sample(mixture, source, num_samples=2)
        assert torch.equal(found.samples, expected)
        assert found.recipe.source == f"hf://me/recipes@{commit}/{path}"
        assert sds.Recipe.load(source).source == found.recipe.source
    assert sds.Recipe.load("hf://me/recipes@main/few/heun.yaml") == other
    with pytest.raises(sds.ModelError, match=r"me/recipes@\w{40}: no file 'few/heun\.yaml' in the repository"):
        sds.Recipe.load(f"hf://me/recipes@{first}/few/heun.yaml")
    with pytest.raises(sds.ModelError, match=r"no file 'few/huen\.yaml' .*did you mean 'few/heun\.yaml'"):
        sds.Recipe.load("hf://me/recipes/few/huen.yaml")
    card = head(hub, "me/recipes")["README.md"].decode()
    assert "| `few/heun.yaml` | `heun` | " in card
    assert (
        "| `recipe.yaml` | `dpmpp-2m` | `order=2, solver=midpoint, lower_order_final=True` | `5` | `karras` |" in card
    )
    assert 'sds.sample(model, "hf://me/recipes/few/heun.yaml", num_samples=4)' in card
    done = sds.generate(mixture, "hf://me/recipes", out=tmp_path / "job", num_samples=2)
    assert done.manifest is not None
    assert done.manifest["recipe_source"] == f"hf://me/recipes@{second}/recipe.yaml"
    assert "source" not in done.manifest["recipe"]
    again = sds.generate(mixture, recipe, out=tmp_path / "job", num_samples=2, resume=True)  # the same settings
    assert again.manifest == done.manifest


@pytest.mark.usefixtures("hub_cache")
def test_a_commit_in_the_cache_needs_no_hub(hub: HubServer, mixture: sds.MixtureModel) -> None:
    sds.sample(mixture, "heun", steps=3).recipe.push_to_hub("me/recipes", token=TOKEN)
    pinned = str(sds.Recipe.load("hf://me/recipes").source)
    before = len(hub.requests)
    assert sds.Recipe.load(pinned).source == pinned
    assert len(hub.requests) == before
    hub.stop()
    assert sds.sample(mixture, pinned).recipe.sampler == "heun"


@pytest.mark.usefixtures("hub_cache")
def test_a_readme_of_the_repositorys_own_is_kept(hub: HubServer, mixture: sds.MixtureModel) -> None:
    hub.repo("me/model").commit({"README.md": b"# My model\n"})
    sds.sample(mixture, "heun", steps=3).recipe.push_to_hub("me/model", "heun.yaml", token=TOKEN)
    assert head(hub, "me/model")["README.md"] == b"# My model\n"
    assert "heun.yaml" in head(hub, "me/model")


@pytest.mark.usefixtures("hub_cache")
def test_every_failure_of_the_hub_is_a_sentence(hub: HubServer, mixture: sds.MixtureModel) -> None:
    sds.sample(mixture, "heun", steps=3).recipe.push_to_hub("me/secret", private=True, token=TOKEN)
    hub.repo("me/gated", gated=True).commit({"recipe.yaml": b"sampler: heun\n"})
    hub.repo("me/bad").commit({"recipe.yaml": b"sampler: heun\nstep: 3\n", "nothing.txt": b""})
    cases = {
        "hf://me/none": "me/none: no such repository on the Hub, or it is private",
        "hf://me/none/a.yaml": "me/none: no such repository on the Hub, or it is private",
        "hf://me/secret/recipe.yaml": "me/secret: no such repository on the Hub, or it is private",
        "hf://me/gated/recipe.yaml": "me/gated: the repository is gated",
        "hf://me/bad@v9/recipe.yaml": "me/bad: no revision 'v9'",
    }
    for source, message in cases.items():
        with pytest.raises(sds.ModelError, match=message) as refused:
            sds.sample(mixture, source)
        assert "\n" not in str(refused.value)
    with pytest.raises(sds.UsageError, match=r"^hf://me/bad@\w{40}/recipe\.yaml:2: step: unknown key; did you mean"):
        sds.sample(mixture, "hf://me/bad")
    assert sds.Recipe.load("hf://me/secret", token=TOKEN).sampler == "heun"
    hub.repo("me/empty").commit({"a.txt": b""})
    with pytest.raises(sds.ModelError, match=r"hf://me/empty has no solver tables .* and no recipe\.yaml"):
        sds.sample(mixture, "hf://me/empty")
    with pytest.raises(sds.UsageError, match="is not an address on the Hub"):
        sds.sample(mixture, "hf://me")


@pytest.mark.usefixtures("hub_cache")
def test_no_connection_is_a_sentence(hub: HubServer) -> None:
    hub.stop()
    for source in ("hf://me/recipes", "hf://me/recipes/a.yaml"):
        with pytest.raises(
            sds.ModelError, match=r"^me/recipes@main: not complete in the local cache, and the Hub cannot"
        ):
            sds.sample(sds.GaussianModel([0.5], 0.3, sds.VP()), source)
    with pytest.raises(sds.ModelError, match=r"^me/recipes@main: not complete in the local cache, and offline mode is"):
        sds.Recipe.load("hf://me/recipes", local_files_only=True)


@pytest.mark.usefixtures("hub_cache")
def test_tables_and_a_recipe_in_one_repository(hub: HubServer, mixture: sds.MixtureModel) -> None:
    """The address of the repository means its tables, as before; the recipe has its own."""
    table = table_for(mixture.process, (0.9,))
    hub.repo("me/both").commit(
        {"recipe.yaml": b"sampler: heun\nsteps: 3\n", f"sdesamplers/{table.file_name}": table.as_json().encode()}
    )
    commit = hub.repos["me/both"].refs["main"]
    by_table = sds.sample(mixture, "hf://me/both", nfe=2)
    assert by_table.recipe.sampler == "table"
    assert by_table.recipe.source == f"hf://me/both@{commit}/sdesamplers/nfe-2.json"
    for source in ("hf://me/both/sdesamplers", "hf://me/both/sdesamplers/nfe-2.json"):
        assert sds.sample(mixture, source, nfe=2).recipe == by_table.recipe
    assert sds.sample(mixture, "hf://me/both/recipe.yaml").recipe.sampler == "heun"


# The command line


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, [*arguments])


@pytest.mark.usefixtures("hub_cache")
def test_the_command_line_takes_files_and_addresses(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("sampler: ddim\nsteps: 2\noptions: {eta: 0.5}\n")
    hub.repo("me/recipes").commit({"recipe.yaml": (tmp_path / "mine.yaml").read_bytes()})
    commit = hub.repos["me/recipes"].refs["main"]
    words = ["sample", "fashion-mnist", "-n", "1", "--format", "safetensors", "--quiet", "--json"]
    mine, found = str(tmp_path / "mine.yaml"), []
    by_name = ["--sampler", "ddim", "--steps", "2", "-o", "eta=0.5"]
    choices = (["--sampler", mine], ["--recipe", mine], ["--sampler", "hf://me/recipes"], by_name)
    for number, choice in enumerate(choices):
        out = tmp_path / str(number)
        done = run(*words, *choice, "--out", str(out))
        assert done.exit_code == 0, done.output
        found.append((load_file(out / "samples.safetensors")["samples"], json.loads(done.stdout)))
    assert all(torch.equal(samples, found[0][0]) for samples, _ in found)
    assert [facts.get("recipe_source") for _, facts in found] == [
        None, None, f"hf://me/recipes@{commit}/recipe.yaml", None,
    ]  # fmt: skip
    changed = run(*words, "--sampler", str(tmp_path / "mine.yaml"), "-o", "eta=0.0", "--out", str(tmp_path / "x"))
    assert json.loads(changed.stdout)["recipe"]["options"] == {"eta": 0.0}


@pytest.mark.slow
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("sampler: ddim\nstep: 2\n")
    command = [sys.executable, "-m", "sdesamplers", "sample", "fashion-mnist", "--sampler", str(tmp_path / "mine.yaml")]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "mine.yaml:2: step: unknown key; did you mean 'steps'?" in done.stderr
    assert not (tmp_path / "out").exists()
