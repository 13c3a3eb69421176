"""Commands that run a model: sample, compare, statistics."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from ..errors import UnknownNameError, UsageError
from .group import cli
from .tables import comparison_table, emit, show, status_line
from .words import Numbers, grid_words, load_model, model_options, pairs, run_options


@cli.command("statistics")
@click.argument("source", metavar="MODEL")
@click.option("--out", type=click.Path(), default="statistics.safetensors", show_default=True, help="File to write.")
@click.option("--samples", type=int, default=64, show_default=True, help="Trajectories.")
@click.option("--nodes", type=int, default=60, show_default=True, help="Values of lambda.")
@click.option("--batch-size", type=int, default=16, show_default=True, help="How many at once.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--guidance-scale", type=float, default=1.0, help="That the model will be sampled with.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--quiet", is_flag=True, help="No progress.")
@model_options
def statistics_command(source: str, **words: Any) -> None:
    """Measure MODEL's statistics for dpm-solver-v3 (Zheng et al. 2023) and keep them in a file."""
    from ..statistics import compute_statistics
    from ..terminal import evaluation_bar

    out, nodes, as_json = words.pop("out"), words["nodes"], words.pop("as_json")
    silent = words.pop("quiet") or as_json or not sys.stderr.isatty()  # where it is no terminal, a bar is an empty line
    model, condition = load_model(source, words)
    batches = -(-words["samples"] // max(words["batch_size"], 1))
    bar = nullcontext(None) if silent else evaluation_bar(f"statistics of {model.name}", nodes * batches)
    with bar as advance:
        progress = None if advance is None else lambda done, total: advance(None)
        table = compute_statistics(model, condition=condition, **words, progress=progress)
    file = table.save(out)
    if as_json:
        emit({"model": model.name, "revision": model.revision, "file": str(file), **words})
        return
    click.echo(f"{file}: use it as --sampler dpm-solver-v3 -o statistics={out}")


@cli.command("sample")
@click.argument("source", metavar="MODEL")
@click.option("--sampler", default="quality", show_default=True, help="Sampler, recipe or alias.")
@click.option("--steps", type=int, help="Grid intervals; or give --nfe.")
@click.option("--nfe", type=int, help="Budget of model evaluations a sample.")
@click.option("--times", type=Numbers(float), help="Your own grid on the model's clock.")
@click.option("--sigmas", type=Numbers(float), help="Your own grid of sigma/alpha; a last 0 is the clean end.")
@click.option("--num-samples", "-n", type=int, default=16, show_default=True)
@click.option("--format", "formats", default="grid", show_default=True, help="Any of grid,png,safetensors.")
@click.option("--guidance-scale", type=float, default=1.0, help="Classifier-free guidance weight.")
@run_options
@model_options
def sample_command(source: str, **words: Any) -> None:
    """Sample MODEL (registered name, folder or Hub id) and write pictures."""
    from ..files import output_folder
    from ..recipe import check_count, check_grid_words, make_recipe, require_grid
    from ..registry import default_registry
    from ..sampling import sample

    formats = [f.strip() for f in words.pop("formats").split(",")]
    for kind in formats:
        if kind not in FORMATS:
            raise UnknownNameError("format", kind, FORMATS, f" (known: {', '.join(FORMATS)})")
    name, as_json, quiet, out = words.pop("sampler"), words.pop("as_json"), words.pop("quiet"), words.pop("out")
    preset = default_registry().resolve(name)
    spec = preset.sampler
    options = pairs(words.pop("option"), spec.options, f"sampler {spec.name!r}")
    chosen = grid_words(words, preset)
    counts = {k: words.pop(k) for k in ("steps", "nfe", "times", "sigmas")}
    require_grid(preset, check_grid_words(**counts))
    for word in ("num_samples", "batch_size"):
        check_count(word, words[word])
    model, condition = load_model(source, words)
    make_recipe(name, process=model.process, options=options, **counts, **chosen)  # refuse before a folder is made
    with output_folder(out) as folder:
        result = sample(model, name, **counts, **chosen, **options, **words, condition=condition, progress=not quiet)
        written = [str(path) for kind in formats for path in FORMATS[kind](result, folder)]
    if as_json:
        facts = {"model": model.name, "revision": model.revision, "nfe": result.nfe}
        emit({**facts, "recipe": result.recipe.as_dict(), "files": written})
        return
    recipe = result.recipe
    own = "your own grid" if recipe.times or recipe.sigmas else "steps of its own"
    grid = f"{recipe.steps} steps, {recipe.spacing}" if recipe.steps else own
    click.echo(f"{len(result.samples)} samples of {model.name} by {recipe.sampler} ({grid}), {result.nfe} NFE each")
    for path in written[:4]:
        click.echo(f"  {path}")
    if len(written) > 4:
        click.echo(f"  ... {len(written)} files in all")


def write_grid(result: Any, folder: Path) -> list[Path]:
    """One PNG with all samples."""
    from ..files import write
    from ..images import grid

    sheet = grid(result.images)
    return [write(folder / "grid.png", lambda path: sheet.save(path, format="PNG"))]


def write_pngs(result: Any, folder: Path) -> list[Path]:
    """One PNG a sample, named by its index."""
    from ..files import write

    paths = []
    for index, image in zip(result.indices, result.images, strict=True):
        path = folder / f"sample-{index:06d}.png"
        paths.append(write(path, lambda place, image=image: image.save(place, format="PNG")))  # type: ignore[misc]
    return paths


def write_safetensors(result: Any, folder: Path) -> list[Path]:
    """All samples and their indices, with seed, recipe, model and versions as metadata."""
    import torch
    from safetensors.torch import save_file

    from .. import __version__
    from ..files import write

    metadata = {
        "model": result.model_name,
        "revision": str(result.revision or ""),
        "seed": str(result.seed),
        "nfe": str(result.nfe),
        "recipe": json.dumps(result.recipe.as_dict()),
        "condition": "" if result.condition is None else json.dumps(result.condition.tolist()),
        "guidance_scale": str(result.guidance_scale),
        "sdesamplers": __version__,
        "torch": torch.__version__,
    }
    tensors = {"samples": result.samples.contiguous(), "indices": torch.tensor(result.indices)}
    return [write(folder / "samples.safetensors", lambda path: save_file(tensors, path, metadata))]


FORMATS: dict[str, Callable[[Any, Path], list[Path]]] = {
    "grid": write_grid,
    "png": write_pngs,
    "safetensors": write_safetensors,
}


@cli.command("compare")
@click.argument("source", metavar="MODEL")
@click.option("--samplers", default="ddim,heun,rk45,euler,ddpm,euler-maruyama", show_default=True)
@click.option("--nfe", type=Numbers(int), default="5,10,20,50", show_default=True, help="Budgets of evaluations.")
@click.option("--num-samples", "-n", type=int, default=64, show_default=True)
@click.option(
    "--reference-samples",
    type=click.IntRange(min=0),
    default=16,
    show_default=True,
    help="For the ODE error; 0 for none.",
)
@click.option("--metrics", type=click.Path(), help="Folder of a feature classifier; the registry's by default.")
@run_options
@model_options
def compare_command(source: str, **words: Any) -> None:
    """Run samplers side by side on MODEL: a picture, a table, JSON and CSV."""
    from ..comparison import compare
    from ..files import output_folder
    from ..metrics import Scorer
    from ..recipe import check_count
    from ..registry import default_registry

    as_json, quiet, out = words.pop("as_json"), words.pop("quiet"), words.pop("out")
    names = [name.strip() for name in words.pop("samplers").split(",")]
    specs = [default_registry().resolve(name).sampler for name in names]
    options: dict[str, Any] = {}
    for text in words.pop("option"):
        options |= pairs((text,), {k: o for s in specs for k, o in s.options.items()}, "this comparison")
    if options and any(set(options) - set(s.options) for s in specs):
        lacking = next(s.name for s in specs if set(options) - set(s.options))
        raise UsageError(f"--option must fit every sampler compared, and {lacking} lacks one; name a recipe instead")
    chosen = grid_words(words)
    metrics = words.pop("metrics")
    scorer = Scorer(metrics) if metrics else None
    for word in ("num_samples", "batch_size"):
        check_count(word, words[word])
    model, condition = load_model(source, words)
    say = (lambda line: None) if quiet or as_json else status_line()
    budgets = words.pop("nfe")
    with output_folder(out) as folder:
        result = compare(
            model, names, budgets, scorer=scorer, condition=condition, progress=say, **words, **chosen, **options
        )
        say("")
        files = result.save(folder)
    if as_json:
        emit({**result.as_dict(), "files": {k: str(v) for k, v in files.items()}})
        return
    show(comparison_table(result))
    for path in files.values():
        click.echo(f"  {path}")
