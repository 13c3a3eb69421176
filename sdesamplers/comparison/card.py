"""The card of a comparison: a table, a picture, how to repeat it, and its numbers in the Hub's model-index form."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeGuard

from ..hub.cards import code, quoted
from ..io.text import one_line
from ..public import SITE
from ..registry.registry import default_registry
from ..version import __version__

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

TITLE = "Comparison of samplers on"
GUIDE = f"{SITE}choosing.html"
METRICS = {
    "error": ("rmse", "RMS error"),
    "frechet": ("frechet-distance", "Fréchet distance"),
    "sliced_wasserstein": ("sliced-wasserstein-distance", "sliced Wasserstein-2 distance"),
}
"""Keys of a cell that are results: their types in the model index, and their names."""
TASK = "unconditional-image-generation"
GRID = ("spacing", "spacing_options", "coordinates", "noise", "final")
LONGEST = 200
"""Characters of the options that a card writes out."""


def make_card(
    data: Mapping[str, Any],
    *,
    files: Mapping[str, str] | None = None,
    task: str = TASK,
    dataset: tuple[str, str] | None = None,
) -> ModelCard:
    """The card of a comparison.

    Args:
        data: the comparison as plain data, `Comparison.as_dict()` or the content of compare.json.
        files: address of each file of the comparison beside the card, by type: png, json, csv, html.
        task: the model's task, by its name on the Hub.
        dataset: type (an id on the Hub) and name of the real data that the distances refer to; by default they refer to
            the metrics' own.
    """
    from huggingface_hub import ModelCard, ModelCardData  # needed only for the Hub

    files, cells = files or {}, rows_of(data)
    names = list(dict.fromkeys(model for model, _ in cells))
    base = [repo for name in names if (repo := _repo(name, data)) is not None]
    metadata = ModelCardData(
        model_name=names[0] if names else "model",
        base_model=base[0] if len(base) == 1 else base or None,
        library_name="sdesamplers",
        tags=["sdesamplers", "diffusion"],
        eval_results=[*_results(cells, data, task, dataset)] or None,
    )
    text = [
        f"# {TITLE} {', '.join(map(code, names))}",
        "",
        f"{_facts(data)} Made with [sdesamplers]({GUIDE}) {__version__}.",
        "",
        *_table(cells, data),
        "",
        *_notes(cells, data),
        *_shown(files),
        *_again(cells, data, files),
    ]
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n".join(text).rstrip() + "\n")


def rows_of(data: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(model, cell) of every cell."""
    return [(_short(cell.get("model") or data.get("model_name") or "model"), cell) for cell in data["cells"]]


def _short(model: Any) -> str:
    """A model's name; of a folder the last part of its path, which others do not have."""
    name = one_line(model)
    return name if name.count("/") <= 1 and not name.startswith(("/", ".", "~")) else PurePath(name).name


def _repo(name: str, data: Mapping[str, Any]) -> str | None:
    """The model's Hub repository, if it has one."""
    repo: str | None = default_registry().catalogue.models.get(name, {}).get("repo")
    facts = data.get("model") or {}
    own = isinstance(facts, Mapping) and facts.get("revision") and facts.get("name") == name and "/" in name
    return repo or (name if own else None)


def _results(
    cells: Sequence[tuple[str, Mapping[str, Any]]],
    data: Mapping[str, Any],
    task: str,
    dataset: tuple[str, str] | None,
) -> Iterator[EvalResult]:
    """The results of all cells, as the Hub lists them."""
    from huggingface_hub import EvalResult  # needed only for the Hub

    drawn = f"{data.get('num_samples')} samples, seed {data.get('seed')}"
    for _, cell in cells:
        arguments = {key: cell.get(key) for key in ("sampler", "nfe", "steps", "guidance_scale") if cell.get(key)}
        for key, (kind, name) in METRICS.items():
            if not is_number(cell.get(key)):
                continue
            about = ("generated", f"solution of the ODE, {drawn}") if key == "error" else dataset
            about = about or ("real", one_line(data.get("metrics") or "real images"))
            yield EvalResult(
                task_type=task,
                dataset_type=about[0],
                dataset_name=about[1],
                metric_type=kind,
                metric_name=f"{name}, {one_line(cell['sampler'])}, {cell.get('nfe')} evaluations",
                metric_value=cell[key],
                metric_args=arguments,
                verified=False,
            )


def is_number(value: Any) -> TypeGuard[float]:
    """True for a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# The parts of the card, as lines.


def _facts(data: Mapping[str, Any]) -> str:
    scale = data.get("guidance_scale")
    guided = f", guidance scale {scale:g}" if is_number(scale) and scale != 1 else ""
    return f"{data.get('num_samples')} samples each, seed {data.get('seed')}, the same starting noise for all{guided}."


def _table(cells: Sequence[tuple[str, Mapping[str, Any]]], data: Mapping[str, Any]) -> list[str]:
    several = len({model for model, _ in cells}) > 1
    guided = len({cell.get("guidance_scale") for _, cell in cells}) > 1
    keys = [key for key in METRICS if any(is_number(cell.get(key)) for _, cell in cells)]
    columns = [*(["model"] if several else []), "sampler", *(["guidance"] if guided else []), "evaluations", "steps"]
    columns += [METRICS[key][1] for key in keys] + ["seconds"]
    text = {"model", "sampler"}
    lines = [f"| {' | '.join(columns)} |", f"|{'|'.join('---' if name in text else '--:' for name in columns)}|"]
    for model, cell in cells:
        front = [*([code(model)] if several else []), code(cell["sampler"])]
        front += [_number(cell.get("guidance_scale"))] if guided else []
        counts = [str(cell.get("nfe") or f"({cell.get('budget')})"), str(cell.get("steps") or "-")]
        values = [_number(cell.get(key)) for key in (*keys, "seconds")]
        lines.append(f"| {' | '.join([*front, *counts, *values])} |")
    floor = data.get("floor")
    if isinstance(floor, Mapping) and any(key in keys for key in ("frechet", "sliced_wasserstein")):
        blank = [""] * (len(columns) - len(keys) - 2)
        name = f"{floor.get('count')} real images"
        lines.append(f"| {' | '.join([name, *blank, *(_number(floor.get(key)) for key in keys), ''])} |")
    return lines


def _number(value: Any) -> str:
    return format(value, ".3g") if is_number(value) else "-"


def _notes(cells: Sequence[tuple[str, Mapping[str, Any]]], data: Mapping[str, Any]) -> list[str]:
    notes = []
    if data.get("reference_count"):
        notes.append(
            "RMS error: root mean square of the difference from the solution of the probability-flow ODE, in units of "
            f"the data, over the first {data['reference_count']} samples; deterministic samplers only."
        )
    if data.get("metrics"):
        notes.append(f"Fréchet and Wasserstein distances: {code(data['metrics'])}.")
    problems = dict.fromkeys(one_line(cell["problem"]) for _, cell in cells if cell.get("problem"))
    notes += [f"Not run: {code(problem)}" for problem in problems]
    return [line for note in notes for line in (note, "")]


def _shown(files: Mapping[str, str]) -> list[str]:
    if "png" not in files:
        return []
    text = "Samples of each sampler at each number of evaluations, from the same starting noise"
    return [f"![{text}]({files['png']})", ""]


def _again(
    cells: Sequence[tuple[str, Mapping[str, Any]]], data: Mapping[str, Any], files: Mapping[str, str]
) -> list[str]:
    """How to run the best setting, and where the recipes are."""
    lines = []
    model, best = min(((name, cell) for name, cell in cells if cell.get("recipe")), key=_rank, default=("", {}))
    recipe = best.get("recipe") or {}
    options = recipe.get("options") or {}
    if recipe and recipe.get("sampler") != "table" and len(str(options)) < LONGEST:
        kept = {key: recipe[key] for key in GRID if key in recipe}
        settings = {"nfe": best.get("budget"), **options, **kept, "seed": data.get("seed")}
        written = ", ".join(f"{key}={quoted(value)}" for key, value in settings.items())
        lines += [f"The row with {_reason(best)} is", "", "```python", "import sdesamplers as sds", ""]
        lines += [f"sds.sample({quoted(model)}, {quoted(recipe['sampler'])}, {written})", "```", ""]
    others = ", ".join(f"[{PurePath(path).name}]({path})" for kind, path in files.items() if kind != "png")
    lines += [f"Recipes of all rows, and the versions: {others}.", ""] if others else []
    return ["## Use", "", *lines] if lines else []


def _rank(row: tuple[str, Mapping[str, Any]]) -> tuple[float, float]:
    """The order of cells: by their distance from real data, and then by their error."""
    frechet, error = (row[1].get(key) for key in ("frechet", "error"))
    return (float(frechet) if is_number(frechet) else math.inf, float(error) if is_number(error) else math.inf)


def _reason(cell: Mapping[str, Any]) -> str:
    return "the least Fréchet distance" if is_number(cell.get("frechet")) else "the least error"
