"""The command line. Exit codes: 0 done, 1 failed, 2 wrong usage; errors are one line on standard error."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .errors import SdesamplersError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from .models.base import Model
    from .options import Option
    from .registry import Preset, Registry

PRESET_WORDS = (
    "options",
    "spacing",
    "spacing_options",
    "coordinates",
    "steps",
    "noise",
    "noise_options",
    "final",
    "description",
)


class Suggesting(click.Group):
    """A command group that offers the nearest command for a mistyped one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command, or raise with the nearest names."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise UnknownNameError("command", args[0], self.commands, "; see sdesamplers --help")
        return super().resolve_command(ctx, args)


def show(table: Table) -> None:
    """Print a table as wide as the terminal or $COLUMNS, else 160 columns wide."""
    from rich.console import Console

    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    Console(width=None if known else 160).print(table)


def table(title: str, *columns: str) -> Table:
    """An empty table; columns that end in ">" are right-aligned."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for column in columns:
        made.add_column(column.rstrip(">"), justify="right" if column.endswith(">") else "left", overflow="fold")
    return made


def emit(data: Any) -> None:
    """Print data as JSON."""
    click.echo(json.dumps(data, indent=2, default=str))


@click.group(cls=Suggesting, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="sdesamplers")
@click.option("--registry", "registry_file", type=click.Path(), help="A registry.yaml on top of the shipped one.")
@click.option(
    "--plugin", "plugins", multiple=True, metavar="MODULE_OR_FILE.py", help="Import your own plugin; repeat for more."
)
def cli(registry_file: str | None, plugins: tuple[str, ...]) -> None:
    """Diffusion samplers as plugins, on every diffusers model."""
    from .registry import use_registry

    if registry_file is not None or plugins:
        use_registry(registry_file, plugins=plugins)


def sampler_facts(spec: Any) -> dict[str, Any]:
    """What `list --json` and `info --json` say of a sampler."""
    return {
        "name": spec.name,
        "summary": spec.summary,
        "order": spec.order,
        "evaluations": spec.evaluations,
        "stochastic": spec.stochastic,
        "adaptive": spec.adaptive,
        "coordinates": spec.coordinates,
        "spacing": spec.spacing or "the process's",
        "options": {o.name: {"type": o.type_name, "default": o.default} for o in spec.options.values()},
        "plugin": spec.plugin,
        "needs": spec.needs,
        "limits": spec.limits,
        "strong_order": spec.strong_order,
        "reference": spec.reference,
    }


def family(item: Any) -> str:
    """The plugin that a sampler, spacing or noise source comes from, without its distribution."""
    return str(item.plugin).rpartition(":")[2]


def listing(title: str, *columns: str) -> Table:
    """A table of one line an entry, with as much room for its last column as there is."""
    made = table(title, *columns)
    made.columns[0].no_wrap = True
    made.pad_edge, made.show_edge, made.padding = False, False, (0, 1, 0, 0)
    return made


def one_line(text: str) -> Text:
    """Text of a cell that is cut off where the table is too narrow for it."""
    from rich.text import Text

    return Text(text, no_wrap=True, overflow="ellipsis")


@cli.command("list")
@click.argument("part", required=False, metavar="[NAME-PART]")
@click.option("--family", "wanted", help="Only what this plugin file brings: exponential, runge_kutta, ...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(part: str | None, wanted: str | None, as_json: bool) -> None:
    """List samplers, spacings, noise sources and recipes: all, or those with NAME-PART in their name."""
    from .registry import default_registry

    registry = default_registry()
    shelves: tuple[Mapping[str, Any], ...] = (registry.samplers, registry.spacings, registry.noises)
    families = dict.fromkeys(family(item) for shelf in shelves for item in shelf.values())
    if wanted is not None and wanted not in families:
        raise UnknownNameError("family", wanted, families, f" (known: {', '.join(sorted(families))})")

    def asked(name: str, item: Any = None) -> bool:
        here = wanted is None or (item is not None and family(item) == wanted)
        return here and (part is None or part.casefold() in name.casefold())

    samplers, spacings, noises = ({n: item for n, item in shelf.items() if asked(n, item)} for shelf in shelves)
    recipes = {name: recipe for name, recipe in registry.catalogue.recipes.items() if asked(name)}
    if not (samplers or spacings or noises or recipes):
        known = [*registry.sampler_names(), *registry.grid_names()]
        raise UnknownNameError("name", part or "", known, opening=f"nothing listed has {part!r} in its name")
    if as_json:
        emit(
            {
                "samplers": [{**sampler_facts(s), "name": name} for name, s in samplers.items()],
                "spacings": [{"name": n, "summary": s.summary, "plugin": s.plugin} for n, s in spacings.items()],
                "noises": [
                    {"name": n, "summary": s.summary, "limits": s.limits, "plugin": s.plugin} for n, s in noises.items()
                ],
                "recipes": recipes,
                "aliases": registry.catalogue.aliases,
                "spacing_aliases": registry.catalogue.spacing_aliases,
                "noise_aliases": registry.catalogue.noise_aliases,
                "peers": registry.catalogue.peers,
            }
        )
        return
    if samplers:
        made = listing("Samplers", "name", "order>", "NFE>", "noise", "adaptive", "what it is")
        before = None
        for name, s in sorted(samplers.items(), key=lambda pair: (family(pair[1]), pair[0])):
            if family(s) != before:
                before = family(s)
                made.add_row(f"[bold]{before}:[/]")
            counts = ("-" if count is None else str(count) for count in (s.order, s.evaluations))
            flags = ("yes" if flag else "" for flag in (s.stochastic, s.adaptive))
            made.add_row(name, *counts, *flags, one_line(s.summary))
        show(made)
        click.echo()
    for title, texts in (
        ("Spacings", {name: grid.summary for name, grid in spacings.items()}),
        ("Noise sources", {name: source.summary for name, source in noises.items()}),
        ("Recipes", {name: recipes[name].get("description", "") for name in sorted(recipes)}),
    ):
        if texts:
            made = listing(title, "name", "what it is")
            for name, text in texts.items():
                made.add_row(name, one_line(text))
            show(made)
            click.echo()
    click.echo("sdesamplers info NAME says more, also of names of k-diffusion, diffusers, ComfyUI and A1111")
    broken = [p for p in registry.plugins if p.error]
    if broken:
        click.echo(
            f"{len(broken)} broken plugin(s): {', '.join(p.name for p in broken)}; see sdesamplers doctor", err=True
        )


def explain(registry: Registry, name: str) -> tuple[dict[str, Any], str | None]:
    """What `info` says of a name, and the docstring of what it stands for.

    Our own samplers and recipes come first, then registered spacings and noise sources, then samplers under all their
    names, then other names of grids and noise sources.
    """
    ours = name in registry.samplers or name in registry.catalogue.recipes
    if ours or (name not in registry.spacings and name not in registry.noises):
        try:
            return sampler_explained(registry, name)
        except UnknownNameError as unknown:
            refusal = unknown
    for word, find in (("spacing", registry.grid), ("noise", registry.noise)):
        try:
            item, chosen = find(name)
        except UnknownNameError:
            continue
        facts = {"asked for": name, word: item.name, f"{word} options": chosen, **plugin_facts(item)}
        return {k: v for k, v in facts.items() if v != {}}, item.__doc__
    if refusal.name != name:  # an alias or recipe that leads nowhere
        raise refusal
    known = [*registry.candidates(name), *registry.grid_names(), *registry.noises]
    raise UnknownNameError("sampler", name, registry.composites(name) or known, registry.hint())


def plugin_facts(item: Any) -> dict[str, Any]:
    """Options, origin and limits of a spacing or noise source."""
    facts = {
        "options": {o.name: f"{o.type_name} = {o.default!r}" for o in item.options.values()},
        "plugin": item.plugin,
        "reference": item.reference,
    }
    limits = getattr(item, "limits", "")
    return {**facts, "samples": limits} if limits else facts


def sampler_explained(registry: Registry, name: str) -> tuple[dict[str, Any], str | None]:
    """A sampler, the recipe that its name stands for, and its docstring."""
    preset = registry.resolve(name)
    facts = {"asked for": name, "runs": what_runs(preset), **sampler_facts(preset.sampler)}
    facts.pop("summary")
    facts["sampler"] = facts.pop("name")
    for key in PRESET_WORDS:
        value = getattr(preset, key)
        if value:
            facts[f"recipe {key}" if key == "options" else key] = dict(value) if isinstance(value, Mapping) else value
    return facts, preset.sampler.__doc__


def what_runs(preset: Preset) -> str:
    """A recipe in one line: "dpmpp-2m-sde on karras, brownian noise"."""
    spec = preset.sampler
    grid = preset.spacing or spec.spacing or "the process's grid"
    parts = [f"{spec.name} on {grid}"]
    if preset.noise or spec.stochastic:
        parts.append(f"{preset.noise or 'independent'} noise")
    if preset.steps is not None:
        parts.append(f"{preset.steps} steps")
    elif spec.adaptive:
        parts = [f"{spec.name} with steps of its own", *parts[1:]]
    return ", ".join(parts)


def with_options(name: str, options: Mapping[str, Any]) -> str:
    """`karras (rho=5.0)`."""
    return f"{name} ({', '.join(f'{key}={value!r}' for key, value in options.items())})" if options else name


def sampler_rows(preset: Preset) -> dict[str, str]:
    """What `info` prints of a sampler as it will run, then of what it declares."""
    spec = preset.sampler
    values = {o.name: preset.options.get(o.name, o.default) for o in spec.options.values()}
    changed = any(value != spec.options[name].default for name, value in values.items())
    steps = f"{preset.steps}, unless you say otherwise" if preset.steps else "as you say"
    declared = " (with default options)" if changed else ""

    def count(value: float | None, unclaimed: str) -> str:
        return unclaimed if value is None else f"{value}{declared}"

    return {
        "sampler": spec.name,
        "options": "\n".join(f"{n} = {v!r} ({spec.options[n].type_name})" for n, v in values.items()),
        "spacing": with_options(preset.spacing or spec.spacing or "the process's", preset.spacing_options),
        "coordinates": preset.coordinates or spec.coordinates,
        "noise": with_options(preset.noise or "independent", preset.noise_options),
        "steps": f"{steps}, or its own" if spec.adaptive and not preset.steps else steps,
        "final": preset.final or "",
        "description": preset.description,
        "order": count(spec.order, "none claimed"),
        "evaluations a step": count(spec.evaluations, "depends on the values met"),
        "stochastic": f"{'yes' if spec.stochastic else 'no'}{declared}",
        "strong order": count(spec.strong_order, ""),
        "needs": ", ".join(spec.needs),
        "limits": spec.limits,
        "plugin": spec.plugin,
        "reference": spec.reference,
    }


@cli.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(name: str, as_json: bool) -> None:
    """Explain a sampler, recipe, spacing or noise source, by its own name, an alias or another library's name."""
    from .registry import default_registry

    registry = default_registry()
    facts, text = explain(registry, name)
    if as_json:
        emit({**facts, "doc": text})
        return
    import inspect

    made = table("", "", "")
    made.show_header = False
    doc = inspect.cleandoc(text or "")
    if "runs" in facts:
        click.echo(f"runs {facts['runs']}")
        rows: Mapping[str, Any] = {key: value for key, value in sampler_rows(registry.resolve(name)).items() if value}
    else:
        options = "\n".join(f"{key}: {value}" for key, value in facts["options"].items())
        rows = {**facts, "options": options or "-"}
    for key, value in rows.items():
        made.add_row(key, str(value) or "-")
    show(made)
    click.echo(doc)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(as_json: bool) -> None:
    """List the models of the registry."""
    from .registry import default_registry

    entries = default_registry().catalogue.models
    if as_json:
        emit({name: {k: v for k, v in entry.items() if k != "base"} for name, entry in entries.items()})
        return
    made = table("Models", "name", "where", "what it is")
    for name, entry in sorted(entries.items()):
        where = f"{entry['repo']}@{entry['revision']}" if "repo" in entry else str(entry["path"])
        made.add_row(name, where, entry.get("description", ""))
    show(made)


@cli.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--check", "checks", multiple=True, help="Only this check; repeat for more.")
@click.option("--option", "-o", multiple=True, metavar="KEY=VALUE", help="Option of the sampler; repeat.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(names: tuple[str, ...], checks: tuple[str, ...], option: tuple[str, ...], as_json: bool) -> None:
    """Run the conformance kit on samplers; exit code 1 if one fails."""
    from rich.console import Console

    from .registry import default_registry
    from .testing import check_sampler

    reports = []
    specs = {name: default_registry().resolve(name).sampler for name in names}
    for name, spec in specs.items():
        options = pairs(option, spec.options, f"sampler {spec.name!r}")
        with Console(stderr=True).status(f"checking {name}") as status:
            report = check_sampler(name, checks=checks or None, options=options, progress=status.update)
        reports.append(report)
        if not as_json:
            made = table(f"Conformance of {name}", "check", "measured", "required", "verdict")
            colours = {"pass": "green", "fail": "bold red", "skip": "dim"}
            for finding in report:
                colour = colours[finding.verdict]
                made.add_row(finding.check, finding.measured, finding.required, f"[{colour}]{finding.verdict}[/]")
            show(made)
    if as_json:
        emit([report.as_dict() for report in reports])
    if not all(report.passed for report in reports):
        raise click.exceptions.Exit(1)


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """Comma-separated numbers."""

    name = "a,b,..."

    def __init__(self, kind: Callable[[str], Any]) -> None:
        self.kind = kind

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Parse, or fail with what was wrong."""
        try:
            return [self.kind(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a comma-separated list of {self.kind.__name__}s", param, ctx)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how a model is loaded and conditioned."""
    for option in reversed(
        [
            click.option("--revision", help="Branch, tag or commit on the Hub."),
            click.option("--subfolder", help="Where the model lies inside the folder or repository."),
            click.option("--variant", help="Weights variant, such as fp16."),
            click.option("--dtype", help="Of the network: float32, bfloat16, float16 or float64."),
            click.option("--device", help="cpu, cuda, cuda:1, mps; accelerate's choice by default."),
            click.option("--size", type=int, help="Height and width, where not the UNet's own."),
            click.option("--token", help="Hub token; by default the one you logged in with."),
            click.option("--cache-dir", type=click.Path(), help="Where downloads are kept."),
            click.option("--local-files-only", is_flag=True, help="Never use the network."),
            click.option("--allow-pickle", is_flag=True, help="Also read pickled weights, which can run code."),
            click.option("--zero-snr", is_flag=True, help="Rescale the table to zero terminal SNR (Lin et al. 2024)."),
            click.option("--mixed-precision", type=click.Choice(["no", "bf16", "fp16"]), help="Autocast."),
            click.option("--null-condition", type=int, help="The label that means no label, for guidance."),
            click.option("--condition", type=Numbers(int), help="Class label, or one a sample."),
        ]
    ):
        command = option(command)
    return command


def load_model(source: str, words: dict[str, Any]) -> tuple[Model, Any]:
    """Load with the options of `model_options`, which are taken out of `words`; the model and its condition."""
    from .models.loading import load

    keys = "revision subfolder variant dtype device size token cache_dir local_files_only allow_pickle mixed_precision"
    options = {key: words.pop(key) for key in [*keys.split(), "null_condition", "zero_snr"]}
    return load(source, **options), words.pop("condition")


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that `sample` and `compare` share."""
    for option in reversed(
        [
            click.option("--spacing", help="Time grid; see sdesamplers list."),
            click.option("--spacing-option", multiple=True, metavar="KEY=VALUE", help="Option of the spacing; repeat."),
            click.option("--coordinates", help="native, ve, flow or angle."),
            click.option("--final", help="zero ends at sigma = 0, min at the smallest trained sigma."),
            click.option("--noise", help="independent, brownian or another noise source; see sdesamplers list."),
            click.option("--noise-option", multiple=True, metavar="KEY=VALUE", help="Option of the noise; repeat."),
            click.option("--option", "-o", multiple=True, metavar="KEY=VALUE", help="Option of the sampler; repeat."),
            click.option("--seed", type=int, default=0, show_default=True),
            click.option("--batch-size", type=int, default=64, show_default=True, help="How many at once."),
            click.option("--out", type=click.Path(), default="out", show_default=True, help="Folder for the results."),
            click.option("--json", "as_json", is_flag=True, help="Print JSON."),
            click.option("--quiet", is_flag=True, help="No progress."),
        ]
    ):
        command = option(command)
    return command


def pairs(texts: tuple[str, ...], known: Mapping[str, Option], owner: str) -> dict[str, Any]:
    """KEY=VALUE texts to checked options."""
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise UsageError(f"options are given as KEY=VALUE, not {text!r}")
        if key not in known:
            listing = f" (it takes {', '.join(known) or 'none'})"
            raise UnknownNameError("option", key, known, listing, opening=f"{owner} has no option {key!r}")
        values[key] = known[key].parse(value, owner)
    return values


def grid_words(words: dict[str, Any], preset: Preset | None = None) -> dict[str, Any]:
    """Spacing, coordinates, final and noise, as `sample` takes them; those not given are left out.

    Options of a spacing or noise source that is not given are for the preset's.
    """
    from .registry import default_registry

    texts, noise_texts = words.pop("spacing_option"), words.pop("noise_option")
    chosen = {k: v for k in ("spacing", "coordinates", "final", "noise") if (v := words.pop(k)) is not None}
    if texts:
        name = chosen.get("spacing", preset and preset.spacing)
        if name is None:
            raise UsageError("--spacing-option needs --spacing")
        grid = default_registry().spacing(name)
        chosen["spacing_options"] = pairs(texts, grid.options, f"spacing {grid.name!r}")
    if noise_texts:
        name = chosen.get("noise", preset and preset.noise)
        if name is None:
            raise UsageError("--noise-option needs --noise")
        source, _ = default_registry().noise(name)
        chosen["noise_options"] = pairs(noise_texts, source.options, f"noise {source.name!r}")
    return chosen


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
    from .statistics import compute_statistics
    from .terminal import evaluation_bar

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
    from .files import output_folder
    from .recipe import check_count, check_grid_words, make_recipe, require_grid
    from .registry import default_registry
    from .sampling import sample

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
    from .files import write
    from .images import grid

    sheet = grid(result.images)
    return [write(folder / "grid.png", lambda path: sheet.save(path, format="PNG"))]


def write_pngs(result: Any, folder: Path) -> list[Path]:
    """One PNG a sample, named by its index."""
    from .files import write

    paths = []
    for index, image in zip(result.indices, result.images, strict=True):
        path = folder / f"sample-{index:06d}.png"
        paths.append(write(path, lambda place, image=image: image.save(place, format="PNG")))  # type: ignore[misc]
    return paths


def write_safetensors(result: Any, folder: Path) -> list[Path]:
    """All samples and their indices, with seed, recipe, model and versions as metadata."""
    import torch
    from safetensors.torch import save_file

    from . import __version__
    from .files import write

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
    from .comparison import compare
    from .files import output_folder
    from .metrics import Scorer
    from .recipe import check_count
    from .registry import default_registry

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


def status_line() -> Callable[[str], None]:
    """A line on standard error that is overwritten, or lines where it is not a terminal."""
    if not sys.stderr.isatty():
        return lambda line: click.echo(line, err=True) if line else None
    return lambda line: click.echo(f"\r\x1b[2K{line}", err=True, nl=False)


def comparison_table(result: Any) -> Table:
    """The cells of a comparison as a table, with what they are to be read against below it."""
    made = table(f"{result.model_name}: {result.num_samples} samples, seed {result.seed}", "sampler", "NFE>", "steps>")
    for column in ("seconds", "ODE error", "Fréchet", "sliced W2"):
        made.add_column(column, justify="right")

    def number(value: float | None, form: str = ".3g") -> str:
        return "-" if value is None else format(value, form)

    previous = None
    for cell in result.cells:
        name = "" if cell.sampler == previous else cell.sampler
        previous = cell.sampler
        if cell.problem:
            made.add_row(name, f"({cell.budget})", "", "", "", "", "", style="dim")
            continue
        scores = (number(cell.error), number(cell.frechet), number(cell.sliced_wasserstein))
        made.add_row(name, str(cell.nfe), str(cell.steps), number(cell.seconds, ".1f"), *scores)
    notes = []
    if result.floor is not None:
        floor = result.floor
        made.add_section()
        best = (number(floor.frechet), number(floor.sliced_wasserstein))
        made.add_row(f"{floor.count} real images", "", "", "", "", *best, style="bold")
        notes.append(f"Fréchet and sliced W2: {result.metrics}")
    if result.reference_count:
        notes.append(
            f"ODE error: RMS difference from rk45 at tolerance 1e-5 ({result.reference_nfe} NFE), first "
            f"{result.reference_count} samples, deterministic samplers"
        )
    problems = dict.fromkeys(cell.problem for cell in result.cells if cell.problem)
    made.caption = "\n".join([*notes, *problems])
    made.caption_justify = "left"
    return made


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Check versions, devices, plugins, the cache and the embedded model."""
    from .diagnosis import diagnose

    findings = diagnose()
    if as_json:
        emit([{"what": what, "state": state, "good": good} for what, state, good in findings])
    else:
        made = table("", "", "", "")
        made.show_header = False
        for what, state, good in findings:
            made.add_row("[green]ok[/]" if good else "[red]broken[/]", what, state)
        show(made)
    if not all(good for *_, good in findings):
        raise SdesamplersError("something above is broken")


def main(arguments: list[str] | None = None) -> None:
    """Entry point: run, and turn every error into one line and an exit code."""
    debug = bool(os.environ.get("SDESAMPLERS_DEBUG"))
    try:
        with warnings.catch_warnings():
            warnings.showwarning = tell
            sys.exit(cli.main(args=arguments, prog_name="sdesamplers", standalone_mode=False) or 0)
    except SdesamplersError as error:
        if debug:
            raise
        fail(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        fail(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort):
        fail("stopped", 1)
    except BrokenPipeError:
        os._exit(1)
    except Exception as error:
        if debug:
            raise
        fail(f"{type(error).__name__}: {error} (a bug of sdesamplers or a plugin; SDESAMPLERS_DEBUG=1 shows where)", 1)


def tell(message: Warning | str, *where: Any, **more: Any) -> None:
    """A warning as one line on standard error."""
    click.echo(f"warning: {' '.join(str(message).split())}", err=True)


def fail(message: str, code: int) -> None:
    """One line on standard error, and out."""
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
