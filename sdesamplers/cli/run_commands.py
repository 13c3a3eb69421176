"""Commands that run a model: sample, compare, statistics."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import Cancelled, UsageError
from .group import cli
from .options import Numbers, load_model, model_options, pairs, run_options, take_grid_options
from .streams import say
from .tables import comparison_table, emit, show, status_line

if TYPE_CHECKING:
    from ..generation import Generated
    from ..metrics import FeatureScorer
    from ..registry.names import Preset
    from ..sampling.recipe import Recipe


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
def statistics_command(source: str, **kwargs: Any) -> None:
    """Measure MODEL's statistics for dpm-solver-v3 (Zheng et al. 2023) and keep them in a file."""
    from ..io.terminal import evaluation_bar
    from ..ode.statistics import compute_statistics

    out, nodes, as_json = kwargs.pop("out"), kwargs["nodes"], kwargs.pop("as_json")
    silent = (
        kwargs.pop("quiet") or as_json or not sys.stderr.isatty()
    )  # where it is no terminal, a bar is an empty line
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


@cli.command("sample")
@click.argument("source", metavar="MODEL")
@click.option("--sampler", default="quality", show_default=True, help="Sampler, recipe or alias.")
@click.option("--recipe", type=click.Path(), help="Run again what this JSON says: a recipe, manifest.json or --json's.")
@click.option("--steps", type=int, help="Grid intervals; or give --nfe.")
@click.option("--nfe", type=int, help="Budget of model evaluations a sample.")
@click.option("--times", type=Numbers(float), help="Your own grid on the model's clock.")
@click.option("--sigmas", type=Numbers(float), help="Your own grid of sigma/alpha; a last 0 is the clean end.")
@click.option("--num-samples", "-n", type=int, default=16, show_default=True)
@click.option("--first-index", type=int, default=0, show_default=True, help="Number of the first sample.")
@click.option("--guidance-scale", type=float, default=1.0, help="Classifier-free guidance weight.")
@click.option(
    "--format", "formats", help="Any of grid,png,safetensors,webdataset. Default: grid; above 256 samples safetensors."
)
@click.option("--batch-size", type=int, help="How many at once; as many as fit by default.")
@click.option("--shard-size", type=int, help="Samples a file; by default about 256 files.")
@click.option("--memory-limit", metavar="SIZE", help="For a batch, such as 8GB; half of what is free by default.")
@click.option("--resume", is_flag=True, help="Go on with the same job in --out, after a check of what is there.")
@click.option("--overwrite", is_flag=True, help="Discard an earlier job in --out.")
@click.option("--part", metavar="K/N", help="Make only the K-th of N parts, as in an array of jobs; with --resume.")
@click.option("--score", is_flag=True, help="Compare with real data, by the registry's metrics, in scores.json.")
@click.option("--metrics", type=click.Path(), help="Folder of a feature classifier for --score.")
@click.option("--reference", type=click.Path(), help="Score by FID against these pictures, or an .npz of mu and sigma.")
@click.option("--inception-weights", type=click.Path(), help="torch-fidelity's file, for --reference.")
@click.option("--json-log", type=click.Path(dir_okay=False), help="Log events to this file as lines of JSON.")
@run_options
@model_options
def sample_command(source: str, **kwargs: Any) -> None:
    """Sample MODEL (registered name, folder, Hub id or FILE.py:NAME) and write pictures or data.

    Alone, or on many processes: accelerate launch -m sdesamplers sample MODEL ...
    """
    from ..checks import whole
    from ..generation import generate
    from ..generation.ranks import Ranks
    from ..io.files import output_folder
    from ..registry.registry import default_registry
    from ..sampling.arguments import make_recipe, require_grid
    from ..sampling.request import Request

    name, as_json, quiet = kwargs.pop("sampler"), kwargs.pop("as_json"), kwargs.pop("quiet")
    recipe = read_recipe(kwargs.pop("recipe"))
    preset = default_registry().resolve(name) if recipe is None else preset_of(recipe)
    spec = preset.sampler
    options = pairs(kwargs.pop("option"), spec.options, f"sampler {spec.name!r}")
    chosen = take_grid_options(kwargs, preset)
    counts = {k: kwargs.pop(k) for k in ("steps", "nfe", "times", "sigmas")}
    request = Request(name if recipe is None else recipe, **counts, **chosen, options=options)
    counted_by = request.counted_by
    if recipe is None:
        require_grid(preset, counted_by)
    whole("num_samples", kwargs["num_samples"])
    parse_job_options(kwargs)
    scorer = scorer_for(
        source, **{key: kwargs.pop(key) for key in ("score", "metrics", "reference", "inception_weights")}
    )
    ranks = Ranks.here()
    with ranks.one_after_first():
        model, condition = load_model(source, kwargs)
    make_recipe(request, process=model.process)  # refuse before a folder is made
    try:
        with output_folder(kwargs["out"]):
            kwargs |= {"condition": condition, "scorer": scorer, "progress": not quiet}
            done = generate(model, request.sampler, **counts, **chosen, **options, **kwargs)
    except Cancelled as stopped:
        if ranks.is_first:
            raise
        sys.exit(stopped.exit_code)  # a signal stops all, and one of them says so
    if ranks.is_first:
        print_summary(done, as_json)


def parse_job_options(kwargs: dict[str, Any]) -> None:
    """Put what --format, --memory-limit and --part mean in the place of their texts."""
    from ..generation.memory import parse_bytes
    from ..generation.ranks import parse_part

    formats = kwargs.pop("formats")
    if formats is None:
        formats = "grid" if kwargs["num_samples"] <= 256 else "safetensors"
    kwargs["formats"] = [each.strip() for each in formats.split(",")]
    kwargs["memory_limit"] = parse_bytes(kwargs["memory_limit"]) if kwargs["memory_limit"] else None
    kwargs["part"] = parse_part(kwargs["part"]) if kwargs["part"] else (0, 1)


def read_recipe(file: str | None) -> Recipe | None:
    """The recipe in a JSON file: alone, or under "recipe" as in manifest.json and in what --json prints.

    Raises:
        UsageError: it cannot be read, or holds none; or a sampler is named besides.
    """
    from ..sampling.recipe import Recipe

    if file is None:
        return None
    source = click.get_current_context().get_parameter_source("sampler")
    if source is not click.core.ParameterSource.DEFAULT:
        raise UsageError("--recipe names its sampler; leave --sampler out")
    try:
        data = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--recipe {file}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"--recipe {file}: not a JSON file: {error}") from None
    data = data.get("recipe", data) if isinstance(data, dict) else data
    if not isinstance(data, dict):
        raise UsageError(f"--recipe {file}: it holds no recipe")
    return Recipe.from_dict(data)


def preset_of(recipe: Recipe) -> Preset:
    """A recipe's sampler, spacing and noise, which options on the command line may be for."""
    from ..registry.names import Preset
    from ..registry.registry import default_registry

    return Preset(default_registry().resolve(recipe.sampler).sampler, spacing=recipe.spacing, noise=recipe.noise)


def scorer_for(
    source: str, score: bool, metrics: str | None, reference: str | None, inception_weights: str | None
) -> FeatureScorer | None:
    """The metrics that --score and its options ask for."""
    from ..comparison.comparison import find_scorer
    from ..metrics import InceptionScorer, Scorer

    if reference:
        if metrics:
            raise UsageError("--metrics and --reference are two ways to score; give one of them")
        return InceptionScorer(reference, weights=inception_weights)
    if inception_weights:
        raise UsageError("--inception-weights are for --reference, which is not given")
    if metrics:
        return Scorer(metrics)
    scorer = find_scorer(source) if score else None
    if score and scorer is None:
        raise UsageError(
            f"--score: the registry names no metrics for {source!r}; give --metrics FOLDER, or --reference for FID"
        )
    return scorer


def print_summary(done: Generated, as_json: bool) -> None:
    """Print what was made."""
    manifest = done.manifest
    if manifest is None:
        if as_json:
            emit({"folder": str(done.folder), "made": done.made, "complete": False})
        else:
            say(f"{done.made} samples made; other parts of the job in {done.folder} are not finished yet")
        return
    files = [str(file) for file in done.files]
    model, recipe = manifest["model"], manifest["recipe"]
    if as_json:
        facts = {"model": model["name"], "revision": model.get("revision"), "nfe": manifest["nfe"]["largest"]}
        emit({**facts, "recipe": recipe, "made": done.made, "complete": True, "files": files})
        return
    own = "your own grid" if "times" in recipe or "sigmas" in recipe else "steps of its own"
    grid = f"{recipe['steps']} steps, {recipe['spacing']}" if "steps" in recipe else own
    say(
        f"{manifest['num_samples']} samples of {model['name']} by {recipe['sampler']} ({grid}), "
        f"{manifest['nfe']['largest']} NFE each"
    )
    for file in files[:4]:
        say(f"  {file}")
    if len(files) > 4:
        say(f"  ... {len(files)} files in all")


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
@click.option("--reference", type=click.Path(), help="Score by FID against these pictures, or an .npz of mu and sigma.")
@click.option("--inception-weights", type=click.Path(), help="torch-fidelity's file, for --reference.")
@click.option("--guidance-scale", type=float, default=1.0, show_default=True, help="Classifier-free guidance weight.")
@click.option("--batch-size", type=int, default=64, show_default=True, help="How many at once.")
@run_options
@model_options
def compare_command(source: str, **kwargs: Any) -> None:
    """Run samplers side by side on MODEL: a picture, a table, JSON and CSV."""
    from ..checks import whole
    from ..comparison.comparison import compare
    from ..io.files import output_folder
    from ..registry.registry import default_registry

    as_json, quiet, out = kwargs.pop("as_json"), kwargs.pop("quiet"), kwargs.pop("out")
    names = [name.strip() for name in kwargs.pop("samplers").split(",")]
    specs = [default_registry().resolve(name).sampler for name in names]
    options: dict[str, Any] = {}
    for text in kwargs.pop("option"):
        options |= pairs((text,), {k: o for s in specs for k, o in s.options.items()}, "this comparison")
    if options and any(set(options) - set(s.options) for s in specs):
        lacking = next(s.name for s in specs if set(options) - set(s.options))
        raise UsageError(f"--option must fit every sampler compared, and {lacking} lacks one; name a recipe instead")
    chosen = take_grid_options(kwargs)
    ways = {key: kwargs.pop(key) for key in ("metrics", "reference", "inception_weights")}
    scorer = scorer_for(source, score=False, **ways)
    for name in ("num_samples", "batch_size"):
        whole(name, kwargs[name])
    model, condition = load_model(source, kwargs)
    say = (lambda line: None) if quiet or as_json else status_line()
    budgets = kwargs.pop("nfe")
    with output_folder(out) as folder:
        result = compare(
            model, names, budgets, scorer=scorer, condition=condition, progress=say, **kwargs, **chosen, **options
        )
        say("")
        files = result.save(folder)
    if as_json:
        emit({**result.as_dict(), "files": {k: str(v) for k, v in files.items()}})
        return
    show(comparison_table(result))
    for path in files.values():
        say(f"  {path}")
