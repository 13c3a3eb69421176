"""Solver tables saved with a card, pushed to a Hub on 127.0.0.1 and used from there; and every failure in one line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import TOKEN, HubServer
from huggingface_hub import constants
from lanes import mostly_slow
from PIL import Image
from safetensors.torch import load_file
from solver_tables import table_for
from tiny_models import save_pipeline

import sdesamplers as sds
from sdesamplers.cli import main
from sdesamplers.cli.tune_command import print_rows
from sdesamplers.tuning import result

MODEL = sds.GaussianModel([0.5, -0.5, 0.0], 0.3, sds.VP(), name="gauss")
FACTS: dict[str, Any] = {
    "model": "gauss",
    "revision": None,
    "seed": 3,
    "starts": 16,
    "trials": 5,
    "method": "least-squares",
    "guidance_scale": 1.0,
    "condition": None,
    "returned": "tuned",
    "versions": {"torch": "2.5"},
    "teacher": {"sampler": "quality", "nfe": 64, "errors": {"rms": 0.00125, "median": 0.0005}},
    "errors": {"rms": 0.25, "median": 0.125, "fixed": {"rms": 0.75, "median": 0.5, "setting": "unipc spacing=power"}},
}


def tuning(*middles: tuple[float, ...], **facts: Any) -> sds.Tuning:
    """A tuning with tables that no search made."""
    tables = [table_for(MODEL.process, middle, **{**FACTS, **facts}) for middle in middles or ((0.9,), (1.2, 0.7, 0.3))]
    return sds.Tuning({table.nfe: table for table in tables})


def columns(text: str) -> list[list[str]]:
    """The texts of a table of two rows or more below the positions at which the titles begin."""
    lines = [line for line in text.splitlines() if set(line) - set(" ─")]
    title = next(line for line in lines if "evaluations" in line)
    starts = [title.index(name) for name in re.split(r" {2,}", title.strip())]
    rows = lines[lines.index(title) :]
    return [[row[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] for row in rows]


def test_the_errors_are_below_their_titles(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fixed = {**FACTS["errors"]["fixed"], "frechet": None}
    featured = tuning((0.9,), errors={"rms": 0.25, "median": 0.125, "frechet": 0.0625, "fixed": fixed})
    kept = tuning((1.2, 0.7, 0.3), returned="fixed: fast", errors={**FACTS["errors"], "distance": 3.0})
    shown = sds.Tuning({**featured.tables, **kept.tables})
    expected = [
        ["evaluations", "sampler", "RMS error", "median error", "distance", "Fréchet"],
        ["2", "tuned", "0.25", "0.125", "-", "0.0625"],
        ["", "best fixed: unipc spacing=power", "0.75", "0.5", "-", "diverged"],
        ["4", "fixed: fast", "0.25", "0.125", "3", "-"],
        ["", "teacher: quality at 64", "0.00125", "0.0005", "-", "-"],
    ]
    assert columns(str(shown)) == expected
    monkeypatch.setenv("COLUMNS", "120")
    print_rows(shown)
    assert columns(capsys.readouterr().out) == expected
    monkeypatch.setenv("COLUMNS", "80")
    print_rows(shown)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert any(all(name in line for name in expected[0]) for line in lines)
    html = shown._repr_html_()
    assert [text in html for row in expected for text in row] == [True] * 30
    assert str(sds.Tuning()) == "evaluations  sampler  RMS error  median error"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of downloads of the test's own."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card has the same picture every time, without the time that drawing takes."""
    picture = BytesIO()
    Image.new("L", (8, 8)).save(picture, "PNG")
    monkeypatch.setattr(result, "_picture", lambda tables: picture.getvalue())


def head(hub: HubServer, repo: str = "me/tables", branch: str = "main") -> dict[str, bytes]:
    """The files at the end of a branch."""
    return hub.repos[repo].commits[hub.repos[repo].refs[branch]]


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main([*words])
    return int(end.value.code or 0)


def test_tables_pushed_are_tables_pulled(hub: HubServer, cache: Path):
    made = tuning()
    address = made.push_to_hub("me/tables", token=TOKEN)
    assert address == f"{hub.url}/me/tables/commit/{hub.repos['me/tables'].refs['main']}"
    files = head(hub)
    names = {
        ".gitattributes",
        "README.md",
        "sdesamplers/nfe-2.json",
        "sdesamplers/nfe-4.json",
        "sdesamplers/tables.png",
    }
    assert set(files) == names
    assert len(hub.repos["me/tables"].commits) == 2  # the one that made the repository, and ours
    assert list(hub.repos["me/tables"].messages.values()) == ["Add solver tables for 2, 4 evaluations"]
    for nfe, table in made.tables.items():
        assert json.loads(files[f"sdesamplers/nfe-{nfe}.json"])["facts"] == table.facts
        expected = sds.sample(MODEL, table, num_samples=3).samples
        assert torch.equal(sds.sample(MODEL, "hf://me/tables", nfe=nfe, num_samples=3).samples, expected)
    picture = Image.open(BytesIO(files["sdesamplers/tables.png"]))
    assert (picture.format, picture.width >= 800) == ("PNG", True)
    pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in ((31, 119, 180), (255, 127, 14)):  # C0 and C1: the grid and the network's times
        assert (pixels == colour).all(1).sum() > 50
    assert {file.suffix for file in cache.rglob("snapshots/**/*.*") if file.is_file()} == {".json"}


@pytest.mark.usefixtures("undrawn")
def test_the_card_has_the_numbers_the_use_and_the_calls(hub: HubServer):
    made = tuning()
    made.tables[4].facts["returned"] = "fixed: unipc spacing=power"
    made.push_to_hub("me/tables", token=TOKEN)
    card = head(hub)["README.md"].decode()
    assert card.startswith("---\nlibrary_name: sdesamplers\n")
    assert "\n# license: " in card.split("---")[1]
    assert "base_model" not in card
    for nfe in (2, 4):
        assert f"| {nfe} | 1 | 0.25 | 0.125 | `unipc spacing=power` | 0.75 | 0.5 |" in card
    assert card.count("The teacher is `quality` with 64 evaluations") == 1
    assert "0.00125 (RMS) and 0.0005 (median)" in card
    assert "With 4 evaluations nothing better than the best fixed setting was found." in card
    assert "![Grids of the tables on the log-SNR axis, and their weights](sdesamplers/tables.png)" in card
    assert 'sds.sample(model, "hf://me/tables", nfe=4, num_samples=4)' in card
    assert 'from_config(pipe.scheduler.config, recipe="hf://me/tables")' in card
    assert "sdesamplers sample gauss --sampler hf://me/tables --nfe 4" in card
    call = 'sds.tune("gauss", nfe=[2, 4], starts=16, trials=5, method="least-squares", seed=3, teacher="quality"'
    assert f"{call}, teacher_nfe=64)" in card
    assert "sdesamplers tune gauss --nfe 2,4 --starts 16 --trials 5 --method least-squares --seed 3" in card
    assert "`torch 2.5`" in card


@pytest.mark.usefixtures("undrawn")
def test_a_push_does_not_replace_the_table_of_another_model(hub: HubServer):
    tuning((0.9,)).push_to_hub("me/tables", token=TOKEN)
    reason = r"^sdesamplers/nfe-2.json of hf://me/tables is a solver table of 'gauss'; choose another repository, or"
    with pytest.raises(sds.UsageError, match=reason):
        tuning((0.9,), model="another").push_to_hub("me/tables", token=TOKEN)
    tuning((1.2, 0.7, 0.3), model="another").push_to_hub("me/tables", token=TOKEN)  # for four evaluations
    tuning((0.8,)).push_to_hub("me/tables", token=TOKEN)  # its own


@pytest.mark.usefixtures("undrawn")
def test_a_later_push_keeps_earlier_tables_and_describes_all(hub: HubServer):
    tuning((0.9,)).push_to_hub("me/tables", token=TOKEN)
    tuning((1.2, 0.7, 0.3), seed=4).push_to_hub("me/tables", token=TOKEN, commit_message="four")
    files = head(hub)
    assert {"sdesamplers/nfe-2.json", "sdesamplers/nfe-4.json"} < set(files)
    card = files["README.md"].decode()
    assert "| 2 | 1 | " in card
    assert "| 4 | 1 | " in card
    assert "nfe=[2], starts=16, trials=5" in card
    assert "nfe=[4], starts=16, trials=5" in card  # another seed, so another call
    assert "four" in hub.repos["me/tables"].messages.values()
    assert "sdesamplers/README.md" not in files


@pytest.mark.parametrize("own", mostly_slow(["# My model\n", "a card, changed"], keep=["a card, changed"]))
@pytest.mark.usefixtures("undrawn")
def test_a_readme_of_the_repositorys_own_is_kept(hub: HubServer, own: str):
    if own == "a card, changed":
        tuning((0.9,)).push_to_hub("me/tables", token=TOKEN)
        own = head(hub)["README.md"].decode().replace("# license: ", "license: mit # ")
    hub.repo("me/tables").commit({**(head(hub) if hub.repos["me/tables"].refs else {}), "README.md": own.encode()})
    for _ in range(2):
        tuning().push_to_hub("me/tables", token=TOKEN)
    files = head(hub)
    assert files["README.md"] == own.encode()
    card = files["sdesamplers/README.md"].decode()
    assert "| 4 | 1 | " in card
    assert "(tables.png)" in card


@pytest.mark.usefixtures("undrawn")
def test_a_branch_and_a_private_repository(hub: HubServer):
    made = tuning()
    made.push_to_hub("me/tables", revision="trial", private=True, token=TOKEN)
    assert hub.repos["me/tables"].private
    assert "sdesamplers/nfe-2.json" in head(hub, branch="trial")
    assert "sdesamplers/nfe-2.json" not in head(hub)
    assert "hf://me/tables@trial" in head(hub, branch="trial")["README.md"].decode()
    tuning((0.8, 0.3)).push_to_hub("me/tables", revision="trial", token=TOKEN)
    card = head(hub, branch="trial")["README.md"].decode()  # of the private tables too, which are read with the token
    assert all(f"| {nfe} | 1 | 0.25 |" in card for nfe in (2, 3, 4))


@pytest.mark.usefixtures("undrawn")
def test_a_pull_request_to_a_repository_of_others(hub: HubServer):
    hub.repo("you/model").commit({"README.md": b"# Ours\n"})
    with pytest.raises(sds.ModelError, match=r"^you/model: your token may not write .* with create_pr=True"):
        tuning().push_to_hub("you/model", token=TOKEN)
    address = tuning().push_to_hub("you/model", token=TOKEN, create_pr=True)
    assert address == f"{hub.url}/you/model/discussions/1"
    assert head(hub, "you/model") == {"README.md": b"# Ours\n"}
    assert "sdesamplers/nfe-4.json" in head(hub, "you/model", "refs/pr/1")
    assert "hf://you/model" in head(hub, "you/model", "refs/pr/1")["sdesamplers/README.md"].decode()


BROKEN: dict[str, tuple[Callable[[HubServer], Any], dict[str, Any], str]] = {
    "no token": (lambda hub: None, {"token": None}, r"^me/tables: the Hub takes uploads only with a valid token"),
    "a wrong token": (
        lambda hub: None,
        {"token": "hf_bad"},
        r"^me/tables: the Hub takes uploads only with a valid token",
    ),
    "another's name": (lambda hub: hub.owners.clear(), {}, r"^me/tables: your token may not write"),
    "no connection": (lambda hub: hub.stop(), {}, r"^me/tables@main: the upload was interrupted \(ConnectError\)"),
    "a broken Hub": (
        lambda hub: setattr(hub, "fail_with", 500),
        {},
        r"^me/tables@main: the Hub returned HTTP status 500",
    ),
    "a storage that refuses": (
        lambda hub: setattr(hub, "refuses_uploads", True),
        {},
        r"^me/tables@main: the Hub returned HTTP status 400",
    ),
    "a proposal to nobody": (lambda hub: None, {"create_pr": True}, r"^me/tables: no such repository"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.usefixtures("undrawn")
def test_every_failure_of_a_push_is_one_line(case: str, hub: HubServer):
    spoil, arguments, message = BROKEN[case]
    spoil(hub)
    with pytest.raises(sds.ModelError, match=message) as error:
        tuning().push_to_hub("me/tables", **{"token": TOKEN, **arguments})
    assert "\n" not in str(error.value)
    assert TOKEN not in str(error.value)


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no owner": (
        lambda: tuning().push_to_hub("tables"),
        "repo must be the id of a Hub repository, owner/name, not 'tab",
    ),
    "a source": (lambda: tuning().push_to_hub("hf://me/tables"), "repo must be the id"),
    "no id": (lambda: tuning().push_to_hub("me/a..b"), "repo must be the id"),
    "a number": (lambda: tuning().push_to_hub(3), "repo must be the id"),  # type: ignore[arg-type]
    "a commit": (lambda: tuning().push_to_hub("me/t", revision="0" * 40), "revision must be a branch to push to"),
    "no tables": (lambda: sds.Tuning().push_to_hub("me/tables"), "there are no solver tables to push"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_refused_before_a_connection(case: str, hub: HubServer):
    call, message = WRONG[case]
    with pytest.raises(sds.UsageError, match=message):
        call()
    assert hub.requests == []


@pytest.mark.usefixtures("undrawn")
def test_a_saved_card_is_renewed_until_somebody_changes_it(tmp_path: Path):
    folder = tmp_path / "mine"
    assert [file.name for file in tuning((0.9,)).save(folder)] == ["nfe-2.json", "README.md", "tables.png"]
    assert "sdesamplers sample gauss --sampler ./mine --nfe 2" in (folder / "README.md").read_text()
    tuning((1.2, 0.7, 0.3)).save(folder)
    card = (folder / "README.md").read_text()
    assert "| 2 | 1 | " in card
    assert "| 4 | 1 | " in card
    (folder / "README.md").write_text(f"Mine.\n{card}")
    assert [file.name for file in tuning((0.8, 0.3)).save(folder)] == ["nfe-3.json"]
    assert (folder / "README.md").read_text() == f"Mine.\n{card}"


@pytest.mark.usefixtures("undrawn")
def test_hostile_facts_stay_on_their_line(tmp_path: Path):
    facts = {"model": "a|b`\n# c", "condition": "x\n" * 500, "teacher": {}, "errors": {}, "versions": {"a\x1b": "|"}}
    tuning((0.9,), **facts).save(tmp_path)
    lines = (tmp_path / "README.md").read_text().splitlines()
    titles = [line for line in lines if line.startswith("# ") and not line.startswith(("# license", "# In a diff"))]
    assert titles == ["# Solver tables for `a\\|b' # c`"]
    assert "| 2 | 1 | - | - | - | - | - |" in lines
    assert max(map(len, lines)) < 300
    assert not any("\x1b" in line for line in lines)


@pytest.mark.usefixtures("undrawn")
def test_the_card_names_a_distance_and_an_interval_and_what_diverged(tmp_path: Path):
    facts = {"distance": "features", "guidance_interval": ["0.3", "inf"], "errors": {"rms": None, "median": 0.5}}
    tuning((0.9,), **facts).save(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "in units of the data; with 2 evaluations it is `features`." in card
    assert "- Interval of sigma/alpha with guidance: `0.3, inf`" in card
    assert "| 2 | 1 | diverged | 0.5 | - | - | - |" in card
    assert "teacher_nfe=64, distance=features)" in card
    assert "sdesamplers tune" not in card


@pytest.mark.usefixtures("undrawn")
def test_tables_without_facts_have_a_card(tmp_path: Path):
    table = sds.SolverTable([1.5, 0.7, 0.0], [[0.0, 0.7, -0.7], [0.0, 0.75, 0.1, -0.6]])
    sds.Tuning({2: table}).save(tmp_path)
    assert "| 2 | 1 | - | - | - | - | - |" in (tmp_path / "README.md").read_text()


def test_without_matplotlib_a_card_has_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.warns(UserWarning, match=r"tables.png is not made: .*pip install 'sdesamplers\[report\]'"):
        assert [file.name for file in tuning((0.9,)).save(tmp_path)] == ["nfe-2.json", "README.md"]
    assert "tables.png" not in (tmp_path / "README.md").read_text()


def test_the_command_line_pushes_and_samples_from_the_hub(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = save_pipeline(tmp_path / "tiny")
    words = ["tune", str(folder), "--nfe", "2,3", "--starts", "4", "--trials", "1", "--teacher-nfe", "16"]
    words += ["--out", str(tmp_path / "tables"), "--token", TOKEN]
    assert run(*words, "--push", "me/tables@new", "--private", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["pushed"] == f"{hub.url}/me/tables/commit/{hub.repos['me/tables'].refs['new']}"
    assert hub.repos["me/tables"].private
    hub.repos["me/tables"].private = False
    assert run(*words, "--push", "me/tables") == 0
    assert "--sampler hf://me/tables --nfe 2" in " ".join(capsys.readouterr().out.split())
    card = head(hub)["README.md"].decode()
    assert 'sds.load("tiny")' in card
    assert str(tmp_path) not in card
    for source, out in (("hf://me/tables", "pulled"), (str(tmp_path / "tables"), "local")):
        call = [
            "sample",
            str(folder),
            "--sampler",
            source,
            "--nfe",
            "3",
            "-n",
            "2",
            "--format",
            "safetensors",
            "--quiet",
        ]
        assert run(*call, "--quiet", "--out", str(tmp_path / out)) == 0
    pulled, local = (next((tmp_path / out).rglob("*.safetensors")) for out in ("pulled", "local"))
    assert torch.equal(load_file(pulled)["samples"], load_file(local)["samples"])
    commit = hub.repos["me/tables"].refs["main"]
    manifest = json.loads((tmp_path / "pulled" / "manifest.json").read_text())
    assert manifest["recipe_source"] == f"hf://me/tables@{commit}/sdesamplers/nfe-3.json"
    capsys.readouterr()
    assert run("tune", str(folder), "--push", "tables", "--out", str(tmp_path / "none")) == 2
    assert "repo must be the id of a Hub repository, owner/name" in capsys.readouterr().err
    assert run("tune", str(folder), "--private", "--out", str(tmp_path / "none")) == 2
    assert "--private applies to the repository of --push" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
