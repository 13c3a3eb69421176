"""Commands that run a model: sample, statistics."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import click

from ..errors import Cancelled, UsageError
from .config import Configured
from .group import cli
from .options import Numbers, load_model, model_options, pairs, run_options, take_grid_options
from .streams import say
from .tables import emit

if TYPE_CHECKING:
    from ..generation import Generated
    from ..metrics import FeatureScorer
    from ..models.base import Model
    from ..sampling.recipe import Recipe
    from ..sampling.table import SolverTable


@cli.command("statistics", cls=Configured)
@click.argument("source", metavar="MODEL")
@click.option("--out", type=click.Path(), default="statistics.safetensors", show_default=True, help="Output file.")
@click.option("--samples", type=int, default=64, show_default=True, help="Number of trajectories.")
@click.option("--nodes", type=int, default=60, show_default=True, help="Number of values of lambda.")
@click.option("--batch-size", type=int, default=16, show_default=True, help="Trajectories per batch.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random numbers.")
@click.option("--guidance-scale", type=float, default=1.0, help="Guidance scale at which the model will be sampled.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@model_options
def statistics_command(source: str, **kwargs: Any) -> None:
    """Measure MODEL's statistics for dpm-solver-v3 (Zheng et al. 2023), and save them to a file."""
    from ..io.terminal import evaluation_bar
    from ..ode.statistics import compute_statistics

    out, nodes, as_json = kwargs.pop("out"), kwargs["nodes"], kwargs.pop("as_json")
    silent = kwargs.pop("quiet") or as_json or not sys.stderr.isatty()  # without a terminal a bar prints an empty line
    model, condition = load_model(source, kwargs)
    batches = -(-kwargs["samples"] // max(kwargs["batch_size"], 1))
    bar = nullcontext(None) if silent else evaluation_bar(f"statistics of {model.name}", nodes * batches)
    with bar as advance:
        progress = None if advance is None else lambda done, total: advance(None)
        table = compute_statistics(model, condition=condition, **kwargs, progress=progress)
    file = table.save(out)
    if as_json:
        emit({"model": model.name, "revision": model.revision, "file": str(file), **kwargs})
        return
    say(f"{file}: use it as --sampler dpm-solver-v3 -o statistics={out}")


@cli.command("sample", cls=Configured)
@click.argument("source", metavar="MODEL")
@click.option(
    "--sampler",
    default="quality",
    show_default=True,
    help="Sampler, recipe or alias; the file of a recipe or a solver table; or hf://OWNER/NAME, with @REVISION and "
    "/PATH if needed.",
)
@click.option(
    "--recipe",
    help="Run the recipe in this file (YAML or JSON, a manifest.json or the output of --json), or at hf://OWNER/NAME.",
)
@click.option("--steps", type=int, help="Number of steps.")
@click.option("--nfe", type=int, help="Budget of model evaluations per sample, instead of --steps.")
@click.option("--times", type=Numbers(float), help="Custom time grid, in the model's native time.")
@click.option("--sigmas", type=Numbers(float), help="Custom grid of sigma/alpha; a final 0 is the clean end.")
@click.option("--num-samples", "-n", type=int, default=16, show_default=True, help="Number of samples.")
@click.option("--first-index", type=int, default=0, show_default=True, help="Index of the first sample.")
@click.option("--guidance-scale", type=float, default=1.0, help="Classifier-free guidance weight.")
@click.option(
    "--format",
    "formats",
    help="One or more of grid,svg,png,safetensors,webdataset; by default grid, or safetensors for more than 256 "
    "samples and for samples that are not pictures.",
)
@click.option("--batch-size", type=int, help="Samples per batch; by default as many as fit in memory.")
@click.option("--shard-size", type=int, help="Samples per file; by default for about 256 files.")
@click.option(
    "--memory-limit", metavar="SIZE", help="Memory for a batch, such as 8GB; by default half of the free memory."
)
@click.option("--resume", is_flag=True, help="Continue the same job in --out, after verifying its files.")
@click.option("--overwrite", is_flag=True, help="Discard an earlier job in --out.")
@click.option(
    "--part", metavar="K/N", help="Generate only the K-th of N parts, for example in a job array; use with --resume."
)
@click.option(
    "--score",
    is_flag=True,
    help="Compare with real data by the metrics that the registry names for MODEL; writes scores.json.",
)
@click.option("--metrics", type=click.Path(), help="Score with the feature classifier in this folder.")
@click.option(
    "--reference", type=click.Path(), help="Compute the FID to these pictures, or to an .npz file of mu and sigma."
)
@click.option(
    "--inception-weights", type=click.Path(), help="File of Inception weights from torch-fidelity, for --reference."
)
@click.option("--json-log", type=click.Path(dir_okay=False), help="Append a log of events to this file, as JSON lines.")
@run_options
@model_options
def sample_command(source: str, **kwargs: Any) -> None:
    """Sample MODEL and write pictures or data.

    MODEL is a registered name, a folder, a Hub id or FILE.py:NAME. To use several processes, run
    accelerate launch -m sdesamplers sample MODEL ...
    """
    from ..checks import whole
    from ..generation import generate
    from ..generation.ranks import Ranks
    from ..io.files import output_folder
    from ..sampling.arguments import make_recipe, require_grid, table_for
    from ..sampling.request import Request
    from ..sampling.setting import preset_of
    from ..sampling.table import TUNED

    name, as_json, quiet = kwargs.pop("sampler"), kwargs.pop("as_json"), kwargs.pop("quiet")
    recipe = read_recipe(kwargs.pop("recipe"))
    sampler = named_sampler(name, kwargs) if recipe is None else recipe
    preset = preset_of(sampler)
    spec = preset.sampler
    options = pairs(kwargs.pop("option"), spec.options, f"sampler {spec.name!r}")
    chosen = take_grid_options(kwargs, preset)
    counts = {k: kwargs.pop(k) for k in ("steps", "nfe", "times", "sigmas")}
    request = Request(sampler, **counts, **chosen, options=options)
    counted_by = request.counted_by
    if isinstance(sampler, str) and sampler != TUNED:
        require_grid(preset, counted_by)
    whole("num_samples", kwargs["num_samples"])
    parse_job_options(kwargs)
    scorer = scorer_for(
        source, **{key: kwargs.pop(key) for key in ("score", "metrics", "reference", "inception_weights")}
    )
    ranks = Ranks.here()
    with ranks.one_after_first():
        model, condition = load_model(source, kwargs)
    choose_formats(kwargs, model)
    table = table_for(request, model.process, kwargs["guidance_scale"])
    make_recipe(request if table is None else replace(request, sampler=table), process=model.process)
    # Everything that can be refused has been, before a folder is created.
    try:
        with output_folder(kwargs["out"]):
            kwargs |= {"condition": condition, "scorer": scorer, "progress": not quiet}
            done = generate(model, sampler, **counts, **chosen, **options, **kwargs)
    except Cancelled as stopped:
        if ranks.is_first:
            raise
        sys.exit(stopped.exit_code)  # a signal stops all processes; only the first reports it
    if ranks.is_first:
        print_summary(done, as_json)


def parse_job_options(kwargs: dict[str, Any]) -> None:
    """Parse the texts of --format, --memory-limit and --part in place; without --format, `formats` is None."""
    from ..generation.memory import parse_bytes
    from ..generation.ranks import parse_part

    formats = kwargs.pop("formats")
    kwargs["formats"] = None if formats is None else [each.strip() for each in formats.split(",")]
    kwargs["memory_limit"] = parse_bytes(kwargs["memory_limit"]) if kwargs["memory_limit"] else None
    kwargs["part"] = parse_part(kwargs["part"]) if kwargs["part"] else (0, 1)


def choose_formats(kwargs: dict[str, Any], model: Model) -> None:
    """Without --format: a grid for up to 256 pictures, else safetensors, also for samples that are not pictures."""
    from ..generation.formats import makes_pictures

    if kwargs["formats"] is not None:
        return
    pictures = makes_pictures(model)
    kwargs["formats"] = ["grid"] if pictures and kwargs["num_samples"] <= 256 else ["safetensors"]
    if not pictures:
        say(f"samples of shape {tuple(model.shape)} are not pictures, so they are written as safetensors", err=True)


def read_recipe(file: str | None) -> Recipe | None:
    """Read the recipe of --recipe: its file, manifest.json or the output of --json, or an address on the Hub.

    Raises:
        ModelError: the repository cannot be read.
        UsageError: the file cannot be read or holds no recipe, or --sampler is given too.
    """
    from ..sampling.recipe import Recipe

    if file is None:
        return None
    source = click.get_current_context().get_parameter_source("sampler")
    if source is not click.core.ParameterSource.DEFAULT:
        raise UsageError("--recipe names its sampler; omit --sampler")
    return Recipe.load(file)


def named_sampler(name: str, kwargs: dict[str, Any]) -> str | Recipe | SolverTable:
    """The argument of --sampler: a name, or the recipe or solver table of a file, a folder or a Hub repository."""
    from ..sampling.arguments import opened
    from ..sampling.request import Request

    request = opened(Request(name, steps=kwargs["steps"], nfe=kwargs["nfe"]), kwargs["guidance_scale"])
    return cast("str | Recipe | SolverTable", request.sampler)


def scorer_for(
    source: str, score: bool, metrics: str | None, reference: str | None, inception_weights: str | None
) -> FeatureScorer | None:
    """The scorer that --score and its options select; None without them."""
    from ..comparison.scoring import find_scorer
    from ..metrics import InceptionScorer, Scorer

    if reference:
        if metrics:
            raise UsageError("pass --metrics or --reference, not both")
        return InceptionScorer(reference, weights=inception_weights)
    if inception_weights:
        raise UsageError("--inception-weights requires --reference")
    if metrics:
        return Scorer(metrics)
    scorer = find_scorer(source) if score else None
    if score and scorer is None:
        raise UsageError(
            f"--score: the registry names no metrics for {source!r}; pass --metrics FOLDER, or --reference for FID"
        )
    return scorer


def print_summary(done: Generated, as_json: bool) -> None:
    """Print a summary of the job."""
    manifest = done.manifest
    if manifest is None:
        if as_json:
            emit({"folder": str(done.folder), "made": done.made, "complete": False})
        else:
            say(f"{done.made} samples generated; other parts of the job in {done.folder} are not finished yet")
        return
    files = [str(file) for file in done.files]
    model, recipe = manifest["model"], manifest["recipe"]
    if as_json:
        facts = {"model": model["name"], "revision": model.get("revision"), "nfe": manifest["nfe"]["largest"]}
        origin = {key: manifest[key] for key in ("recipe_source",) if key in manifest}
        emit({**facts, "recipe": recipe, **origin, "made": done.made, "complete": True, "files": files})
        return
    own = "custom grid" if "times" in recipe or "sigmas" in recipe else "adaptive steps"
    grid = f"{recipe['steps']} steps, {recipe['spacing']}" if "steps" in recipe else own
    say(
        f"{manifest['num_samples']} samples of {model['name']} with {recipe['sampler']} ({grid}), "
        f"{manifest['nfe']['largest']} NFE each"
    )
    if "recipe_source" in manifest:
        say(f"  from {manifest['recipe_source']}")
    for file in files[:4]:
        say(f"  {file}")
    if len(files) > 4:
        say(f"  ... {len(files)} files in total")
