"""`push_to_hub`: a path is recognised, checked before a connection is made, and used again from the Hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hub_cache import head, hub_cache  # noqa: F401
from hub_server import TOKEN, HubServer
from solver_tables import table_for

import sdesamplers as sds
from sdesamplers.cli import cli

pytestmark = pytest.mark.usefixtures("hub_cache")
MODEL = sds.GaussianModel([0.5, -0.5], 0.3, sds.VP(), name="gauss")
COMMIT = "ab" * 20
REGISTRY = f"""# ours
models:
  cats: {{repo: me/cats, revision: {COMMIT}, description: of cats}}
recipes:
  ours: {{sampler: ddim, steps: 3, description: "few | steps"}}
"""


def test_a_recipe(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("sampler: DPM++ 2M Karras\nsteps: 3\ndescription: for a test\n")
    sds.push_to_hub(tmp_path / "mine.yaml", "me/recipes", "few/mine.yaml", token=TOKEN)
    expected = sds.sample(MODEL, str(tmp_path / "mine.yaml"), num_samples=2)
    assert torch.equal(sds.sample(MODEL, "hf://me/recipes/few/mine.yaml", num_samples=2).samples, expected.samples)
    assert "- `few/mine.yaml`: `for a test`" in head(hub, "me/recipes")["README.md"].decode()


def test_a_registry_file(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "names.yaml").write_text(REGISTRY)
    sds.push_to_hub(tmp_path / "names.yaml", "me/registry", revision="next", token=TOKEN)
    files = head(hub, "me/registry", "next")
    assert files["registry.yaml"].decode() == REGISTRY  # with its comments
    card = files["README.md"].decode()
    assert f"| `cats` | `me/cats` | `{COMMIT}` | `of cats` |" in card
    assert "| `ours` | `ddim` | `few \\| steps` |" in card
    assert "sdesamplers --registry hf://me/registry@next/registry.yaml models" in card
    assert "ours" in sds.use_registry("hf://me/registry@next").catalogue.recipes


def test_a_registry_file_with_the_files_of_its_recipes(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "mine.yaml").write_text("sampler: heun\nsteps: 3\n")
    (tmp_path / "names.yaml").write_text("recipes: {ours: few/mine.yaml}\n")
    sds.push_to_hub(tmp_path / "names.yaml", "me/named", "all/registry.yaml", token=TOKEN)
    assert head(hub, "me/named")["all/few/mine.yaml"] == b"sampler: heun\nsteps: 3\n"
    try:
        sds.use_registry("hf://me/named/all/registry.yaml")
        assert sds.sample(MODEL, "ours").recipe.steps == 3
    finally:
        sds.use_registry(None)


def test_tables_of_several_scales(hub: HubServer, tmp_path: Path) -> None:
    tables = [table_for(MODEL.process, (0.9,)), table_for(MODEL.process, (0.8,), guidance_scale=3.0)]
    for table in tables:
        table.save(tmp_path)
    sds.push_to_hub(tmp_path, "me/tables", token=TOKEN)
    found = sds.SolverTable.load("hf://me/tables", nfe=2, guidance_scale=3.0)
    assert found == tables[1]
    commit = hub.repos["me/tables"].refs["main"]
    assert found.facts["source"] == f"hf://me/tables@{commit}/sdesamplers/nfe-2-guidance-3.json"


def test_a_comparison(hub: HubServer, tmp_path: Path) -> None:
    sds.compare(MODEL, "heun", nfe=5, num_samples=4).save(tmp_path)
    (tmp_path / "report.html").write_text("<p>report</p>")
    (tmp_path / "secret.txt").write_text("not of a comparison")
    sds.push_to_hub(tmp_path, "me/results", token=TOKEN)
    names = {f"compare/{name}" for name in ("compare.json", "compare.csv", "compare.png", "report.html")}
    assert set(head(hub, "me/results")) == {".gitattributes", "README.md", *names}
    assert "[report.html](compare/report.html)" in head(hub, "me/results")["README.md"].decode()


def test_a_card_of_another_kind_is_kept(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("sampler: heun\nsteps: 3\n")
    sds.push_to_hub(tmp_path / "recipe.yaml", "me/all", token=TOKEN)
    before = head(hub, "me/all")["README.md"]
    (tmp_path / "names.yaml").write_text(REGISTRY)
    sds.push_to_hub(tmp_path / "names.yaml", "me/all", token=TOKEN)
    assert head(hub, "me/all")["README.md"] == before
    (tmp_path / "recipe.yaml").write_text("sampler: heun\nsteps: 4\n")
    sds.push_to_hub(tmp_path / "recipe.yaml", "me/all", token=TOKEN)
    assert head(hub, "me/all")["README.md"] != before


WRONG = {
    "nothing": ("none.yaml", None, "none.yaml: no such file or folder"),
    "a key": ("a.yaml", "sampler: heun\nstep: 3\n", "a.yaml:2: step: unknown key; did you mean 'steps'"),
    "plugins": ("a.yaml", "plugins: [os]\n", "a registry on the Hub is data and may not import plugins"),
    "files": ("a.yaml", "models: {m: {path: x}}\n", "may not name files of your machine"),
    "a table": ("a.json", "{}", "not a solver table.*; push takes a recipe, a registry file, a solver table"),
    "an ending": ("a.txt", "sampler: heun\n", "not a solver table"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_before_a_connection(case: str, hub: HubServer, tmp_path: Path) -> None:
    name, text, message = WRONG[case]
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(sds.UsageError, match=message):
        sds.push_to_hub(tmp_path / name, "me/thing", token=TOKEN)
    assert hub.requests == []


def test_a_folder_without_anything_and_wrong_paths(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(sds.UsageError, match=r"has no solver tables .*; push takes a recipe"):
        sds.push_to_hub(tmp_path, "me/thing", token=TOKEN)
    (tmp_path / "a.yaml").write_text("sampler: heun\nsteps: 3\n")
    for path in ("../a.yaml", "/a.yaml", "a.txt"):
        with pytest.raises(sds.UsageError):
            sds.push_to_hub(tmp_path / "a.yaml", "me/thing", path, token=TOKEN)
    with pytest.raises(sds.UsageError, match="repo must be the id of a Hub repository"):
        sds.push_to_hub(tmp_path / "a.yaml", "thing", token=TOKEN)
    (tmp_path / "compare.json").write_text('{"cells": 3}')
    with pytest.raises(sds.UsageError, match=r"compare\.json: not a comparison"):
        sds.push_to_hub(tmp_path, "me/thing", token=TOKEN)
    for wrong in (lambda: sds.push_to_hub(3, "me/thing"), lambda: sds.Recipe.load(3)):  # type: ignore[arg-type]
        with pytest.raises(sds.UsageError, match="source must be"):
            wrong()
    assert hub.requests == []


def test_the_command_line_pushes(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("sampler: heun\nsteps: 3\n")
    words = ["push", str(tmp_path / "a.yaml"), "me/recipes@next", "--path", "a.yaml", "--token", TOKEN]
    done = CliRunner().invoke(cli, [*words, "--private", "--message", "one", "--json"])
    assert done.exit_code == 0, done.output
    commit = hub.repos["me/recipes"].refs["next"]
    assert json.loads(done.stdout) == {
        "pushed": f"{hub.url}/me/recipes/commit/{commit}",
        "source": "hf://me/recipes@next",
    }
    assert hub.repos["me/recipes"].private
    assert hub.repos["me/recipes"].messages[commit] == "one"
    assert sds.Recipe.load("hf://me/recipes@next/a.yaml", token=TOKEN).steps == 3
