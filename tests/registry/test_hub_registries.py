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
