"""Commands on the registry and the installation: list, info, models, doctor."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ..errors import SdesamplersError, UnknownNameError
from .group import Describing, cli, described
from .model_entries import model_facts, model_rows, source_of, tables_line
from .streams import say
from .tables import emit, listing, one_line, show, styled, table

if TYPE_CHECKING:
    from rich.table import Table

    from ..registry.names import Preset
    from ..registry.registry import Registry


PRESET_FIELDS = (
    "options",
    "spacing",
    "spacing_options",
    "coordinates",
    "steps",
    "noise",
    "noise_options",
    "final",
    "description",
    "times",
    "sigmas",
    "start_time",
)


def sampler_facts(spec: Any) -> dict[str, Any]:
    """A sampler's entry in `list --json` and `info --json`."""
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
        "no_density": spec.no_density,
        "strong_order": spec.strong_order,
        "reference": spec.reference,
    }


def family(item: Any) -> str:
    """The name of the plugin that an item comes from, without its distribution."""
    return str(item.plugin).rpartition(":")[2]


@cli.command("list", cls=Describing)
@click.argument("part", required=False, metavar="[NAME-PART]")
@click.option("--family", "wanted", help="List only items of this plugin file: exponential, runge_kutta, ...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(part: str | None, wanted: str | None, as_json: bool) -> None:
    """List samplers, spacings, noise sources and recipes.

    With NAME-PART, list only names that contain it.
    """
    registry = described()
    click.get_current_context().call_on_close(partial(say_broken, registry))  # also after an error
    shelves: tuple[Mapping[str, Any], ...] = (registry.samplers, registry.spacings, registry.noises)
    families = dict.fromkeys(family(item) for shelf in shelves for item in shelf.values())
    if wanted is not None and wanted not in families:
        raise UnknownNameError("family", wanted, families, f" (known: {', '.join(sorted(families))})")

    def matches(name: str, item: Any = None) -> bool:
        here = wanted is None or (item is not None and family(item) == wanted)
        return here and (part is None or part.casefold() in name.casefold())

    samplers, spacings, noises = ({n: item for n, item in shelf.items() if matches(n, item)} for shelf in shelves)
    recipes = {name: recipe for name, recipe in registry.catalogue.recipes.items() if matches(name)}
    if not (samplers or spacings or noises or recipes):
        known = [*registry.sampler_names(), *registry.grid_names()]
        raise UnknownNameError("name", part or "", known, opening=f"no name contains {part!r}")
    if as_json:
        facts = {
            "samplers": [{**sampler_facts(s), "name": name} for name, s in samplers.items()],
            "spacings": [{"name": n, "summary": s.summary, "plugin": s.plugin} for n, s in spacings.items()],
            "noises": [
                {"name": n, "summary": s.summary, "limits": s.limits, "plugin": s.plugin} for n, s in noises.items()
            ],
            "recipes": recipes,
        }
        names = ("aliases", "spacing_aliases", "noise_aliases", "peers")
        emit({**facts, **{key: getattr(registry.catalogue, key) for key in names}})
        return
    if samplers:
        show(samplers_table(samplers))
        say()
    for title, texts in (
        ("Spacings", {name: grid.summary for name, grid in spacings.items()}),
        ("Noise sources", {name: source.summary for name, source in noises.items()}),
        ("Recipes", {name: recipes[name].get("description", "") for name in sorted(recipes)}),
    ):
        if texts:
            made = listing(title, "name", "description")
            for name, text in texts.items():
                made.add_row(name, one_line(text))
            show(made)
            say()
    say("details: sdesamplers info NAME, also for names of k-diffusion, diffusers, ComfyUI and A1111")


def say_broken(registry: Registry) -> None:
    """Print which plugins are broken, and which recipes cannot be read, on standard error: they are missing."""
    broken = [p.name for p in registry.plugins if p.error]
    if broken:
        say(f"broken plugins: {', '.join(broken)}; see sdesamplers doctor", err=True)
    for reason in registry.catalogue.unread.values():
        say(reason, err=True)


def samplers_table(samplers: Mapping[str, Any]) -> Table:
    """A table of samplers by family, one line each."""
    made = listing("Samplers", "name", "order>", "NFE>", "noise", "adaptive", "description")
    before = None
    for name, s in sorted(samplers.items(), key=lambda pair: (family(pair[1]), pair[0])):
        if family(s) != before:
            before = family(s)
            made.add_row(styled(f"{before}:", "bold"))
        counts = ("-" if count is None else str(count) for count in (s.order, s.evaluations))
        flags = ("yes" if flag else "" for flag in (s.stochastic, s.adaptive))
        made.add_row(name, *counts, *flags, one_line(s.summary))
    return made


def explain(registry: Registry, name: str) -> tuple[dict[str, Any], str | None]:
    """The facts that `info` prints about a name, and the docstring of the item that it refers to.

    A name is looked up in this order: registered samplers and recipes, registered spacings and noise sources, other
    names of samplers, other names of grids and noise sources, registered models.

    Raises:
        UnknownNameError: the name refers to nothing, or to an alias or recipe of an unknown sampler.
    """
    ours = name in registry.samplers or name in registry.catalogue.recipes
    if ours or (name not in registry.spacings and name not in registry.noises):
        try:
            return sampler_explained(registry, name)
        except UnknownNameError as unknown:
            refusal = unknown
    for key, find in (("spacing", registry.grid), ("noise", registry.noise)):
        try:
            item, chosen = find(name)
        except UnknownNameError:
            continue
        facts = {"asked for": name, key: item.name, f"{key} options": chosen, **plugin_facts(item)}
        return {k: v for k, v in facts.items() if v != {}}, item.__doc__
    if name in registry.catalogue.models:
        return model_rows(registry.catalogue, name), registry.catalogue.models[name].get("description")
    if refusal.name != name:  # an alias or recipe of an unknown sampler
        raise refusal
    known = [*registry.names.candidates(name), *registry.grid_names(), *registry.noises, *registry.catalogue.models]
    raise UnknownNameError("sampler", name, registry.names.composites(name) or known, registry.names.hint())


def plugin_facts(item: Any) -> dict[str, Any]:
    """Options, origin and limits of a spacing or noise source."""
    facts = {
        "options": {o.name: f"{o.type_name} = {o.default!r}" for o in item.options.values()},
        "plugin": item.plugin,
        "reference": item.reference,
    }
    if hasattr(item, "reaches"):
        facts["includes"] = {"both": "both ends of the range", "neither": "neither end of the range"}.get(
            item.reaches, f"the {item.reaches} of the range"
        )
    limits = getattr(item, "limits", "")
    return {**facts, "samples": limits} if limits else facts


def sampler_explained(registry: Registry, name: str) -> tuple[dict[str, Any], str | None]:
    """The facts of a sampler and of the recipe that a name refers to, and the sampler's docstring."""
    preset = registry.resolve(name)
    facts = {"asked for": name, "runs": what_runs(preset), **sampler_facts(preset.sampler)}
    facts.pop("summary")
    facts["sampler"] = facts.pop("name")
    for key in PRESET_FIELDS:
        value = getattr(preset, key)
        if value:
            facts[f"recipe {key}" if key == "options" else key] = dict(value) if isinstance(value, Mapping) else value
    return facts, preset.sampler.__doc__


def what_runs(preset: Preset) -> str:
    """A recipe in one line: "dpmpp-2m-sde on karras, brownian noise"."""
    spec = preset.sampler
    grid = preset.spacing or spec.spacing or "the process's default grid"
    parts = [f"{spec.name} on {grid}"]
    if preset.noise or spec.stochastic:
        parts.append(f"{preset.noise or 'independent'} noise")
    if preset.steps is not None:
        parts.append(f"{preset.steps} steps")
    elif preset.grid:
        parts[0] = f"{spec.name} on {own_grid(preset)}"
    elif spec.adaptive:
        parts = [f"{spec.name} with adaptive steps", *parts[1:]]
    return ", ".join(parts)


def own_grid(preset: Preset) -> str:
    """The grid that a recipe lists: "its own grid of 9 sigmas"; "" if it has none."""
    return "".join(
        f"its own grid of {len(preset.grid[key])} {key}" for key in ("times", "sigmas") if key in preset.grid
    )


def with_options(name: str, options: Mapping[str, Any]) -> str:
    """A name with its options: `karras (rho=5.0)`."""
    return f"{name} ({', '.join(f'{key}={value!r}' for key, value in options.items())})" if options else name


def sampler_rows(preset: Preset) -> dict[str, str]:
    """The rows that `info` prints: the sampler as the recipe runs it, then its declared properties."""
    spec = preset.sampler
    values = {o.name: preset.options.get(o.name, o.default) for o in spec.options.values()}
    changed = any(value != spec.options[name].default for name, value in values.items())
    steps = f"{preset.steps} by default" if preset.steps else "" if preset.grid else "set by the caller"
    declared = " (with default options)" if changed else ""

    def count(value: float | None, unclaimed: str) -> str:
        return unclaimed if value is None else f"{value}{declared}"

    return {
        "sampler": spec.name,
        "options": "\n".join(f"{n} = {v!r} ({spec.options[n].type_name})" for n, v in values.items()),
        "spacing": own_grid(preset)
        or with_options(preset.spacing or spec.spacing or "the process's default", preset.spacing_options),
        "coordinates": preset.coordinates or spec.coordinates,
        "noise": with_options(preset.noise or "independent", preset.noise_options),
        "steps": f"{steps}, or adaptive" if spec.adaptive and not preset.grid else steps,
        "final": preset.final or "",
        "description": preset.description,
        "order": count(spec.order, "not declared"),
        "evaluations per step": count(spec.evaluations, "varies with the values of the state"),
        "stochastic": f"{'yes' if spec.stochastic else 'no'}{declared}",
        "strong order": count(spec.strong_order, ""),
        "needs": ", ".join(spec.needs),
        "limits": spec.limits,
        "density of a step": f"none: {spec.no_density}" if spec.no_density else "exact" if spec.stochastic else "",
        "plugin": spec.plugin,
        "reference": spec.reference,
    }


@cli.command(cls=Describing)
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(name: str, as_json: bool) -> None:
    """Describe a sampler, recipe, spacing, noise source or registered model.

    NAME may also be an alias or a name from another library.
    """
    registry = described()
    facts, text = explain(registry, name)
    if as_json:
        emit({**facts, "doc": text})
        return
    import inspect

    made = table("", "", "")
    made.show_header = False
    doc = inspect.cleandoc(text or "")
    if "runs" in facts:
        say(f"runs {facts['runs']}")
        rows: Mapping[str, Any] = {key: value for key, value in sampler_rows(registry.resolve(name)).items() if value}
    else:
        options = "\n".join(f"{key}: {value}" for key, value in facts.get("options", {}).items())
        rows = {**facts, **({"options": options or "-"} if "options" in facts else {})}
    for key, value in rows.items():
        made.add_row(key, str(value) or "-")
    show(made)
    say(doc)


@cli.command(cls=Describing)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(as_json: bool) -> None:
    """List the registered models."""
    catalogue = described().catalogue
    facts = {name: model_facts(catalogue, name) for name in catalogue.models}
    if as_json:
        emit(facts)
        return
    made = table("Models", "name", "source", "solver tables", "description")
    made.columns[0].no_wrap = True
    for name, entry in sorted(facts.items()):
        made.add_row(name, source_of(entry), tables_line(entry), entry.get("description", ""))
    show(made)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Check the installation: versions, devices, plugins, the cache and the embedded model."""
    from .doctor import diagnose

    findings = diagnose()
    if as_json:
        emit([{"what": what, "state": state, "good": good} for what, state, good in findings])
    else:
        made = table("", "", "", "")
        made.show_header = False
        for what, state, good in findings:
            made.add_row(styled("ok", "green") if good else styled("broken", "red"), what, state)
        show(made)
    if not all(good for *_, good in findings):
        raise SdesamplersError("the installation has problems, marked broken above")
