"""The card of a comparison: the numbers are those of the cells, in a form that huggingface_hub reads back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hub_cache import head, hub_cache  # noqa: F401
from hub_server import TOKEN, HubServer
from huggingface_hub import ModelCard

import sdesamplers as sds
from sdesamplers.comparison.card import make_card
from sdesamplers.comparison.reading import validate
from sdesamplers.hub.cards import is_unchanged_card

MODEL = sds.MixtureModel([0.4, 0.6], [[1.0, -0.5], [-0.7, 0.8]], [0.02, 0.1], sds.VP(), name="two-modes")


@pytest.fixture(scope="module")
def comparison() -> sds.Comparison:
    return sds.compare(MODEL, ["heun", "ddpm"], nfe=[5, 9], num_samples=8, reference_samples=4)


def cell(**values: Any) -> dict[str, Any]:
    """A cell as in compare.json."""
    shared = {"model": "m", "guidance_scale": 1.0, "sampler": "heun", "budget": 9, "nfe": 9, "steps": 5}
    return {**shared, "seconds": 1.0, "problem": None, **values}


def data(*cells: dict[str, Any], **group: Any) -> dict[str, Any]:
    """A comparison as in compare.json, with what `group` has for every model and guidance scale."""
    places = dict.fromkeys((each["model"], each["guidance_scale"]) for each in cells)
    groups = [{"model_name": model, "guidance_scale": scale, **group} for model, scale in places]
    facts = {"schema_version": 2, "num_samples": 4, "seed": 1, "repeats": 1, "environment": {}, "arguments": {}}
    return {**facts, "groups": groups, "cells": [*cells]}


def test_the_data_of_these_tests_are_valid() -> None:
    validate(data(cell(error=0.5), cell(guidance_scale=3.0)), "compare.json")


def test_the_model_index_has_every_error_of_the_comparison(comparison: sds.Comparison, tmp_path: Path) -> None:
    comparison.card().save(tmp_path / "README.md")
    found = ModelCard.load(tmp_path / "README.md").data
    assert (found.model_name, found.library_name, found.base_model) == ("two-modes", "sdesamplers", None)
    wanted = {(each.sampler, each.nfe): each.error for each in comparison.cells if each.error is not None}
    assert len(wanted) == 2  # heun's; ddpm is stochastic and has none
    assert {(r.metric_args["sampler"], r.metric_args["nfe"]): r.metric_value for r in found.eval_results} == wanted
    assert {r.metric_type for r in found.eval_results} == {"rmse"}
    assert {r.task_type for r in found.eval_results} == {"unconditional-image-generation"}


def test_the_table_has_the_numbers_and_the_notes() -> None:
    cells = [
        cell(error=0.125, frechet=12.5, sliced_wasserstein=0.75),
        cell(sampler="ddpm", frechet=float("nan"), error=None),
        cell(sampler="unipc", nfe=None, steps=None, seconds=None, problem="unipc does not run here"),
    ]
    floor = {"count": 4, "frechet": 2.0, "sliced_wasserstein": 0.5}
    made = make_card(
        data(*cells, reference_count=2, metrics="features of x", floor=floor),
        files={"png": "compare/compare.png", "json": "compare/compare.json"},
        dataset=("zalando-datasets/fashion_mnist", "Fashion-MNIST"),
        task="text-to-image",
    )
    text = str(made)
    assert "| `heun` | 9 | 5 | 0.125 | 12.5 | 0.75 | 1 |" in text
    assert "| `ddpm` | 9 | 5 | - | - | - | 1 |" in text
    assert "| `unipc` | (9) | - | - | - | - | - |" in text
    assert "| 4 real images |  |  | - | 2 | 0.5 |  |" in text
    assert "over the first 2 samples" in text
    assert "Not run: `unipc does not run here`" in text
    assert "](compare/compare.png)" in text
    results = {(r.metric_type, r.metric_value): r for r in made.data.eval_results}
    assert set(results) == {
        ("rmse", 0.125),
        ("frechet-distance", 12.5),
        ("sliced-wasserstein-distance", 0.75),
    }
    assert results["frechet-distance", 12.5].dataset_type == "zalando-datasets/fashion_mnist"
    assert {r.task_type for r in made.data.eval_results} == {"text-to-image"}
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1


def test_several_models_and_scales_have_columns() -> None:
    cells = [cell(model=name, guidance_scale=scale, error=0.5) for name in ("a/one", "b/two") for scale in (1.0, 3.0)]
    floor = {"count": 4, "frechet": 2.0, "sliced_wasserstein": None}
    made = make_card(data(*cells, cell(model="a/one", guidance_scale=3.0, frechet=7.0), floor=floor))
    text = str(made)
    assert "# Comparison of samplers on `a/one`, `b/two`" in text
    assert "| model | sampler | guidance | evaluations |" in text
    assert "| `b/two` | `heun` | 3 | 9 | 5 | 0.5 | - | 1 |" in text
    assert "| `b/two` | 4 real images |  |  |  | - | 2 |  |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    places = [(each.metric_args["model"], each.metric_args["guidance_scale"]) for each in made.data.eval_results]
    assert places == [("a/one", 1.0), ("a/one", 3.0), ("b/two", 1.0), ("b/two", 3.0), ("a/one", 3.0)]


def test_own_metrics_intervals_repeats_and_guidance_are_shown() -> None:
    recipe = {"sampler": "heun", "spacing": "karras"}
    best = cell(error=0.5, guidance_scale=2.0, metrics={"a|b": 3.0}, intervals={"error": [0.4, 0.6]}, recipe=recipe)
    made = make_card({**data(best), "repeats": 3, "arguments": {"condition": 7}})
    text = str(made)
    assert "Each setting: 4 samples, seeds 1 to 3, the same starting noise for all, guidance scale 2." in text
    assert "| sampler | evaluations | steps | RMS error | `a\\|b` | seconds |" in text
    assert "| `heun` | 9 | 5 | 0.5 (0.4 to 0.6) | 3 | 1 |" in text
    assert "In brackets: 95 % intervals." in text
    assert 'sds.sample("m", "heun", nfe=9, spacing="karras", seed=1, guidance_scale=2.0)' in text
    assert "The row with the least error is, with the condition of the comparison," in text
    assert {(each.metric_type, each.metric_value) for each in made.data.eval_results} == {("rmse", 0.5), ("a|b", 3.0)}


def test_hostile_names_stay_in_their_cell() -> None:
    name = "a|b`<script>alert(1)</script>\n# c"
    recipe = {"sampler": name, "options": {'"': '"\n'}}
    text = str(make_card(data(cell(model="/home/me/secret/m`\n# d", sampler=name, error=0.5, recipe=recipe))))
    body = text.split("\n---\n", 1)[1]
    assert [line for line in body.splitlines() if line.startswith("# ")] == ["# Comparison of samplers on `m' # d`"]
    assert "secret" not in text
    assert "| `a\\|b'<script>alert(1)</script> # c` | 9 |" in body
    assert ModelCard(text).data.eval_results[0].metric_args["sampler"] == name


def test_a_registered_model_has_its_repository() -> None:
    assert make_card(data(cell(model="ddpm-cat-256", error=0.5))).data.base_model == "google/ddpm-cat-256"
    facts = {"name": "me/model", "revision": "ab" * 20}
    assert make_card(data(cell(model="me/model", error=0.5), model=facts)).data.base_model == "me/model"


@pytest.mark.usefixtures("hub_cache")
def test_a_comparison_is_pushed_with_its_card(comparison: sds.Comparison, hub: HubServer) -> None:
    address = comparison.push_to_hub("me/results", token=TOKEN)
    assert address == f"{hub.url}/me/results/commit/{hub.repos['me/results'].refs['main']}"
    files = head(hub, "me/results")
    names = {f"compare/compare.{ending}" for ending in ("json", "csv", "png", "html")}
    assert set(files) == {".gitattributes", "README.md", *names}
    assert json.loads(files["compare/compare.json"]) == json.loads(json.dumps(comparison.as_dict()))
    card = files["README.md"].decode()
    assert is_unchanged_card(card)
    assert "](compare/compare.png)" in card
    assert "[compare.csv](compare/compare.csv)" in card
    hub.repo("me/model").commit({"README.md": b"# My model\n"})
    comparison.push_to_hub("me/model", "results/first", token=TOKEN)
    files = head(hub, "me/model")
    assert files["README.md"] == b"# My model\n"
    assert "](compare.png)" in files["results/first/README.md"].decode()


@pytest.mark.usefixtures("hub_cache")
def test_a_comparison_is_read_from_the_hub(comparison: sds.Comparison, hub: HubServer) -> None:
    comparison.push_to_hub("me/results", token=TOKEN)
    comparison.push_to_hub("me/results", "results/first", token=TOKEN)
    commit = hub.repos["me/results"].refs["main"]
    for place in ("", "/compare", "/results/first", f"@{commit}/results/first/compare.json"):
        found = sds.Comparison.load(f"hf://me/results{place}", token=TOKEN)
        assert found.cells == comparison.cells
    assert comparison.check("error>1.01x", baseline="hf://me/results")[0].outcome == "passed"
    hub.repo("me/other").commit({"compare/compare.json": b"[]"})
    with pytest.raises(sds.UsageError, match=r"hf://me/other@\w{40}/compare/compare\.json: not a comparison"):
        sds.Comparison.load("hf://me/other", token=TOKEN)
    with pytest.raises(sds.ModelError, match=r"me/other@main: no file 'none/compare\.json' in the repository"):
        sds.Comparison.load("hf://me/other/none", token=TOKEN)
