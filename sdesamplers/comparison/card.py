"""The card of a comparison: a table, a picture, how to repeat it, and its numbers in the Hub's model-index form."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeGuard

from ..hub.cards import code, quoted
from ..public import SITE
from ..registry.registry import default_registry
from ..text import one_line
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
"""Keys of a cell that are results, besides the caller's metrics: their types in the model index, and their names."""
TASK = "unconditional-image-generation"
GRID = ("spacing", "spacing_options", "coordinates", "noise", "final")
LONGEST = 200
"""Characters of the options that a card writes out."""

Row = tuple[Mapping[str, Any], Mapping[str, Any]]
"""A cell, and what belongs to its model and guidance scale."""


def make_card(
    data: Mapping[str, Any],
    *,
    files: Mapping[str, str] | None = None,
    task: str = TASK,
    dataset: tuple[str, str] | None = None,
) -> ModelCard:
    """The card of a comparison.

    Args:
        data: the comparison as plain data, `Comparison.as_dict()` or the result of `read_comparison`.
        files: address of each file of the comparison beside the card, by type: png, json, csv, html.
        task: the model's task, by its name on the Hub.
        dataset: type (an id on the Hub) and name of the real data that the distances refer to; by default they refer to
            the metrics' own.
    """
    from huggingface_hub import ModelCard, ModelCardData  # needed only for the Hub

    files, rows = files or {}, rows_of(data)
    names = list(dict.fromkeys(_short(group["model_name"]) for group in data["groups"]))
    base = list(dict.fromkeys(repo for group in data["groups"] if (repo := _repo(group)) is not None))
    metadata = ModelCardData(
        model_name=names[0] if names else "model",
        base_model=base[0] if len(base) == 1 else base or None,
        library_name="sdesamplers",
        tags=["sdesamplers", "diffusion"],
        eval_results=[*_results(rows, data, task, dataset)] or None,
    )
    text = [
        f"# {TITLE} {', '.join(map(code, names))}",
        "",
        f"{_facts(data)} Made with [sdesamplers]({GUIDE}) {__version__}.",
        "",
        *_table(rows, data),
        "",
        *_notes(rows, data),
        *_shown(files),
        *_again(rows, data, files),
    ]
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n".join(text).rstrip() + "\n")


def rows_of(data: Mapping[str, Any]) -> list[Row]:
    """Every cell with its group."""
    groups = {(group["model_name"], group["guidance_scale"]): group for group in data["groups"]}
    unknown = {"model_name": "model", "guidance_scale": 1.0}
    return [(cell, groups.get((cell["model"], cell["guidance_scale"]), unknown)) for cell in data["cells"]]


def value_of(cell: Mapping[str, Any], key: str) -> Any:
    """A cell's value by a key of `METRICS` or the name of one of the caller's metrics."""
    return cell.get(key) if key in METRICS else (cell.get("metrics") or {}).get(key)


def results_of(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Type in the model index and name of every result that a cell has a number for."""
    own = {name: (one_line(name), one_line(name)) for cell, _ in rows for name in cell.get("metrics") or {}}
    known = {**METRICS, **{key: value for key, value in own.items() if key not in METRICS}}
    return {key: value for key, value in known.items() if any(is_number(value_of(cell, key)) for cell, _ in rows)}


def _short(model: Any) -> str:
    """A model's name; of a folder the last part of its path, which others do not have."""
    name = one_line(model)
    return name if name.count("/") <= 1 and not name.startswith(("/", ".", "~")) else PurePath(name).name


def _repo(group: Mapping[str, Any]) -> str | None:
    """The model's Hub repository, if it has one."""
    name, facts = group["model_name"], group.get("model") or {}
    repo: str | None = default_registry().catalogue.models.get(name, {}).get("repo")
    own = facts.get("revision") and facts.get("name") == name and "/" in name
    return repo or (name if own else None)


def _results(
    rows: Sequence[Row], data: Mapping[str, Any], task: str, dataset: tuple[str, str] | None
) -> Iterator[EvalResult]:
    """The results of all cells, as the Hub lists them."""
    from huggingface_hub import EvalResult  # needed only for the Hub

    drawn, several = _drawn(data), len({group["model_name"] for _, group in rows}) > 1
    for cell, group in rows:
        arguments = {key: cell.get(key) for key in ("sampler", "nfe", "steps", "guidance_scale") if cell.get(key)}
        arguments |= {"model": _short(group["model_name"])} if several else {}
        for key, (kind, name) in results_of(rows).items():
            if not is_number(value_of(cell, key)):
                continue
            real = dataset or ("real", one_line(group.get("metrics") or "real images"))
            about = {"error": ("generated", f"solution of the ODE, {drawn}")}.get(key, real)
            if key not in METRICS:
                about = ("generated", drawn)
            yield EvalResult(
                task_type=task,
                dataset_type=about[0],
                dataset_name=about[1],
                metric_type=kind,
                metric_name=f"{name}, {one_line(cell['sampler'])}, {cell.get('nfe')} evaluations",
                metric_value=value_of(cell, key),
                metric_args=arguments,
                verified=False,
            )


def is_number(value: Any) -> TypeGuard[float]:
    """True for a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# The parts of the card, as lines.


def _drawn(data: Mapping[str, Any]) -> str:
    """The number of samples and the seeds."""
    seed, repeats = data["seed"], data.get("repeats", 1)
    seeds = f"seed {seed}" if repeats == 1 else f"seeds {seed} to {seed + repeats - 1}"
    return f"{data['num_samples']} samples, {seeds}"


def _facts(data: Mapping[str, Any]) -> str:
    scales = {group["guidance_scale"] for group in data["groups"]}
    only = next(iter(scales)) if len(scales) == 1 else 1
    guided = f", guidance scale {only:g}" if only != 1 else ""
    return f"Each setting: {_drawn(data)}, the same starting noise for all{guided}."


def _table(rows: Sequence[Row], data: Mapping[str, Any]) -> list[str]:
    several = len({group["model_name"] for _, group in rows}) > 1
    guided = len({group["guidance_scale"] for _, group in rows}) > 1
    results = results_of(rows)
    columns = [*(["model"] if several else []), "sampler", *(["guidance"] if guided else []), "evaluations", "steps"]
    columns += [_plain(name) for _, name in results.values()] + ["seconds"]
    text = {"model", "sampler"}
    lines = [f"| {' | '.join(columns)} |", f"|{'|'.join('---' if name in text else '--:' for name in columns)}|"]
    for cell, group in rows:
        front = [*([code(_short(group["model_name"]))] if several else []), code(cell["sampler"])]
        front += [_number(cell.get("guidance_scale"))] if guided else []
        counts = [str(cell.get("nfe") or f"({cell.get('budget')})"), str(cell.get("steps") or "-")]
        values = [_with_interval(cell, key) for key in results]
        lines.append(f"| {' | '.join([*front, *counts, *values, _number(cell.get('seconds'))])} |")
    floors = {group["model_name"]: group["floor"] for group in data["groups"] if group.get("floor")}
    for model, floor in floors.items() if {"frechet", "sliced_wasserstein"} & set(results) else ():
        front = [*([code(_short(model))] if several else []), f"{floor.get('count')} real images"]
        blank = [""] * (len(columns) - len(front) - len(results) - 1)
        values = [_number(floor.get(key)) for key in results]
        lines.append(f"| {' | '.join([*front, *blank, *values, ''])} |")
    return lines


def _plain(name: str) -> str:
    """The heading of a column: the names of the caller's metrics may be anything."""
    return name if name in {known for _, known in METRICS.values()} else code(name)


def _with_interval(cell: Mapping[str, Any], key: str) -> str:
    """A value, and its interval if that is known."""
    value, interval = _number(value_of(cell, key)), (cell.get("intervals") or {}).get(key)
    return f"{value} ({_number(interval[0])} to {_number(interval[1])})" if interval and value != "-" else value


def _number(value: Any) -> str:
    return format(value, ".3g") if is_number(value) else "-"


def _notes(rows: Sequence[Row], data: Mapping[str, Any]) -> list[str]:
    notes = []
    if counts := {group.get("reference_count") for group in data["groups"]} - {0, None}:
        notes.append(
            "RMS error: root mean square of the difference from the solution of the probability-flow ODE, in units of "
            f"the data, over the first {max(counts)} samples; deterministic samplers only."
        )
    if scorers := dict.fromkeys(code(group["metrics"]) for group in data["groups"] if group.get("metrics")):
        notes.append(f"Fréchet and Wasserstein distances: {', '.join(scorers)}.")
    if any((cell.get("intervals") or {}).get(key) for cell, _ in rows for key in results_of(rows)):
        notes.append("In brackets: 95 % intervals.")
    problems = dict.fromkeys(one_line(cell["problem"]) for cell, _ in rows if cell.get("problem"))
    notes += [f"Not run: {code(problem)}" for problem in problems]
    return [line for note in notes for line in (note, "")]


def _shown(files: Mapping[str, str]) -> list[str]:
    if "png" not in files:
        return []
    text = "Samples of each sampler at each number of evaluations, from the same starting noise"
    return [f"![{text}]({files['png']})", ""]


def _again(rows: Sequence[Row], data: Mapping[str, Any], files: Mapping[str, str]) -> list[str]:
    """How to run the best setting, and where the recipes are."""
    lines = []
    best, group = min((row for row in rows if row[0].get("recipe")), key=_rank, default=({}, {}))
    recipe = best.get("recipe") or {}
    options = recipe.get("options") or {}
    if recipe and recipe.get("sampler") != "table" and len(str(options)) < LONGEST:
        kept = {key: recipe[key] for key in GRID if key in recipe}
        settings = {"nfe": best.get("budget"), **options, **kept, "seed": data["seed"]}
        settings |= {"guidance_scale": best["guidance_scale"]} if best["guidance_scale"] != 1 else {}
        written = ", ".join(f"{key}={quoted(value)}" for key, value in settings.items())
        conditioned = (data.get("arguments") or {}).get("condition") is not None
        about = ", with the condition of the comparison," if conditioned else ""
        lines += [f"The row with {_reason(best)} is{about}", "", "```python", "import sdesamplers as sds", ""]
        model = _short(group["model_name"])
        lines += [f"sds.sample({quoted(model)}, {quoted(recipe['sampler'])}, {written})", "```", ""]
    others = ", ".join(f"[{PurePath(path).name}]({path})" for kind, path in files.items() if kind != "png")
    lines += [f"Recipes of all rows, and the versions: {others}.", ""] if others else []
    return ["## Use", "", *lines] if lines else []


def _rank(row: Row) -> tuple[float, float]:
    """The order of cells: by their distance from real data, and then by their error."""
    frechet, error = (row[0].get(key) for key in ("frechet", "error"))
    return (float(frechet) if is_number(frechet) else math.inf, float(error) if is_number(error) else math.inf)


def _reason(cell: Mapping[str, Any]) -> str:
    return "the least Fréchet distance" if is_number(cell.get("frechet")) else "the least error"
