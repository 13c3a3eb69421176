"""Registry files from the Hub: names of models and recipes, and nothing that runs or reads files of this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hub_cache import hub_cache  # noqa: F401
from hub_server import HubServer
from tiny_models import save_pipeline

import sdesamplers as sds
from sdesamplers.cli import cli
from sdesamplers.registry.catalogue import load_catalogue

pytestmark = pytest.mark.usefixtures("hub_cache")
COMMIT = "ab" * 20
RECIPES = b"recipes:\n  ours:\n    sampler: ddim\n    options: {eta: 0.5}\n    steps: 3\naliases: {mine: ours}\n"


def test_a_registry_from_the_hub_is_an_overlay(hub: HubServer, tmp_path: Path) -> None:
    save_pipeline(tmp_path / "tiny")
    model = hub.repo("me/tiny").commit_folder(tmp_path / "tiny")
    text = RECIPES + f"models:\n  small:\n    repo: me/tiny\n    revision: {model}\n".encode()
    first = hub.repo("me/registry").commit({"registry.yaml": text})
    hub.repos["me/registry"].commit({"registry.yaml": RECIPES.replace(b"0.5", b"0.25"), "more/other.yaml": RECIPES})
    registry = sds.use_registry(f"hf://me/registry@{first}")
    loaded = sds.load("small")
    assert loaded.revision == model
    by_recipe = sds.sample(loaded, "mine", num_samples=2)
    assert torch.equal(by_recipe.samples, sds.sample(loaded, "ddim", steps=3, eta=0.5, num_samples=2).samples)
    assert [str(address) for address in registry.catalogue.addresses.values()] == [
        f"hf://me/registry@{first}/registry.yaml"
    ]
    assert sds.use_registry("hf://me/registry").resolve("ours").options == {"eta": 0.25}
    assert sds.use_registry("hf://me/registry/more/other.yaml").resolve("ours").options == {"eta": 0.5}
    assert "fashion-mnist" in sds.default_registry().catalogue.models  # the shipped file is still there


REFUSED = {
    "plugins": ("plugins: [os]\n", 1, "plugins: a registry on the Hub is data and may not import plugins"),
    "no plugins": ("aliases: {}\nplugins: []\n", 2, "plugins: a registry on the Hub is data"),
    "a folder": (
        "models:\n  m:\n    path: ../secrets\n",
        3,
        "models.m.path: a registry on the Hub may not",
    ),
    "metrics": (
        f"models:\n  m:\n    repo: a/b\n    revision: {COMMIT}\n    metrics: /etc\n",
        5,
        "models.m.metrics: a registry on the Hub may not name files of your machine",
    ),
    "tables": (
        f"models:\n  m:\n    repo: a/b\n    revision: {COMMIT}\n    tables: tables\n",
        5,
        "models.m.tables: a registry on the Hub may not name files",
    ),
    "a key": ("recepies: {}\n", 1, "recepies: unknown key; did you mean 'recipes'?"),
    "a recipe": (
        "recipes:\n  a:\n    sampler: ddim\n    stepz: 3\n",
        4,
        "recipes.a.stepz: unknown key; did you mean 'steps'?",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_registry_from_the_hub_may_not_have(case: str, hub: HubServer) -> None:
    text, line, message = REFUSED[case]
    commit = hub.repo("me/registry").commit({"registry.yaml": text.encode()})
    with pytest.raises(sds.UsageError) as refused:
        sds.use_registry("hf://me/registry")
    assert str(refused.value).startswith(f"hf://me/registry@{commit}/registry.yaml:{line}: {message}")


def test_tables_on_the_hub_may_be_named(hub: HubServer) -> None:
    text = f"models:\n  m:\n    repo: a/b\n    revision: {COMMIT}\n    tables: hf://a/tables@{COMMIT}\n"
    hub.repo("me/registry").commit({"registry.yaml": text.encode()})
    assert sds.use_registry("hf://me/registry").catalogue.tables("m") == f"hf://a/tables@{COMMIT}"


def test_a_mistake_that_is_found_later_names_the_address_too(hub: HubServer) -> None:
    commit = hub.repo("me/registry").commit({"registry.yaml": b"recipes:\n  ours:\n    sampler: warp\n"})
    sds.use_registry("hf://me/registry")
    with pytest.raises(
        sds.UsageError, match=rf"sampler of hf://me/registry@{commit}/registry\.yaml:3: recipes\.ours\.sampler"
    ):
        sds.sample(sds.GaussianModel([0.5], 0.3, sds.VP()), "ours", steps=2)


def test_a_missing_repository_and_file(hub: HubServer) -> None:
    with pytest.raises(sds.ModelError, match=r"^me/none: no such repository on the Hub"):
        sds.use_registry("hf://me/none")
    hub.repo("me/other").commit({"recipe.yaml": b""})
    with pytest.raises(sds.ModelError, match=r"^me/other@main: no file 'registry\.yaml' in the repository"):
        sds.use_registry("hf://me/other")


def test_the_environment_may_name_an_address(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repo("me/registry").commit({"registry.yaml": RECIPES})
    monkeypatch.setenv("SDESAMPLERS_REGISTRY", "hf://me/registry")
    assert "ours" in load_catalogue().recipes


def test_the_command_line_shows_the_commit(hub: HubServer) -> None:
    commit = hub.repo("me/registry").commit({"registry.yaml": RECIPES})
    found = CliRunner().invoke(cli, ["--registry", "hf://me/registry", "info", "mine", "--json"])
    assert json.loads(found.stdout)["recipe options"] == {"eta": 0.5}
    assert found.stderr == f"registry: hf://me/registry@{commit}/registry.yaml\n"
    pinned = CliRunner().invoke(cli, ["--registry", f"hf://me/registry@{commit}", "info", "mine", "--json"])
    assert (pinned.exit_code, pinned.stderr) == (0, "")
    rows = json.loads(CliRunner().invoke(cli, ["--registry", "hf://me/registry", "doctor", "--json"]).stdout)
    assert {"what": "registry file", "state": f"hf://me/registry@{commit}/registry.yaml", "good": True} in rows


RECIPE = b"sampler: ddim\nsteps: 3\noptions: {eta: 0.5}\n"


@pytest.mark.parametrize("entry", ["@{commit}/some/mine.yaml", "@v1/some/mine.yaml", "@{commit}"])
def test_a_registry_file_names_a_recipe_on_the_hub(entry: str, hub: HubServer, tmp_path: Path) -> None:
    repo = hub.repo("me/recipes")
    commit = repo.commit({"some/mine.yaml": RECIPE, "recipe.yaml": RECIPE})
    repo.refs["v1"] = commit
    repo.commit({"some/mine.yaml": b"sampler: heun\nsteps: 2\n", "recipe.yaml": b"sampler: heun\nsteps: 2\n"})
    (tmp_path / "registry.yaml").write_text(f"recipes: {{r: hf://me/recipes{entry.format(commit=commit)}}}\n")
    registry = sds.use_registry(tmp_path / "registry.yaml")
    preset = registry.resolve("r")
    assert (preset.sampler.name, preset.options, preset.steps) == ("ddim", {"eta": 0.5}, 3)
    path = "some/mine.yaml" if "some" in entry else "recipe.yaml"
    assert registry.catalogue.where("recipes", "r", "steps") == f"hf://me/recipes@{commit}/{path}:2: steps"


def test_a_mistake_in_a_recipe_on_the_hub_has_its_address(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.repo("me/recipes").commit({"mine.yaml": RECIPE.replace(b"steps", b"stepz")})
    (tmp_path / "registry.yaml").write_text(f"recipes: {{r: 'hf://me/recipes@{commit}/mine.yaml'}}\n")
    with pytest.raises(sds.UsageError, match=rf"^hf://me/recipes@{commit}/mine\.yaml:2: stepz: unknown key"):
        sds.use_registry(tmp_path / "registry.yaml")


@pytest.mark.parametrize("entry", ["parts/mine.yaml", "~/mine.yaml"])
def test_paths_in_a_registry_on_the_hub_are_those_of_its_commit(
    entry: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it names a folder `~`, which is not the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("sampler: heun\nsteps: 2\n")
    repo, text = hub.repo("me/registry"), f"recipes: {{r: {entry}}}\n".encode()
    first = repo.commit({"sets/registry.yaml": text, f"sets/{entry}": RECIPE})
    repo.commit({"sets/registry.yaml": text, f"sets/{entry}": RECIPE.replace(b"3", b"4")})
    pinned = sds.use_registry(f"hf://me/registry@{first}/sets/registry.yaml")
    assert pinned.resolve("r").steps == 3
    assert pinned.catalogue.where("recipes", "r") == f"hf://me/registry@{first}/sets/{entry}:1"
    assert sds.use_registry("hf://me/registry/sets/registry.yaml").resolve("r").steps == 4


def test_a_recipe_that_cannot_be_downloaded_spoils_no_other_name(hub: HubServer, tmp_path: Path) -> None:
    """Nor does a name of it that the shipped file has resolve to the shipped recipe."""
    shipped = next(name for name in load_catalogue().recipes if "{" not in name)
    gone = f"hf://me/gone@{COMMIT}/mine.yaml"
    file = tmp_path / "registry.yaml"
    file.write_text(
        f"recipes:\n  ok: {{sampler: ddim, steps: 3}}\n  '{shipped}': {gone}\naliases: {{also: '{shipped}'}}\n"
    )
    registry = sds.use_registry(file)
    assert registry.resolve("ok").steps == 3
    for name in (shipped, "also"):
        with pytest.raises(sds.ModelError, match=r"registry\.yaml:3: recipes\..*: me/gone: no such repository"):
            registry.resolve(name)
    listed = CliRunner().invoke(cli, ["--registry", str(file), "list"])
    assert listed.exit_code == 0
    assert "registry.yaml:3: recipes." in listed.stderr
    with pytest.raises(sds.ModelError, match=r"^hf://me/registry/registry\.yaml:3: recipes\."):
        sds.push_to_hub(file, "me/registry")
    (tmp_path / "over.yaml").write_text(f"recipes: {{'{shipped}': {{sampler: heun, steps: 5}}}}\n")
    over = registry.catalogue.overlay(sds.registry.catalogue.read(tmp_path / "over.yaml", allow_plugins=False))
    assert (over.recipes[shipped]["steps"], over.unread) == (5, {})
