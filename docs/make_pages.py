"""Pages that are made from the registry: docs/samplers.md and docs/names.md. `python docs/make_pages.py`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdesamplers.registry.catalogue import SHIPPED, read
from sdesamplers.registry.names import Preset
from sdesamplers.registry.registry import Registry

PEERS = {"k-diffusion": "k-diffusion", "diffusers": "diffusers", "comfyui": "ComfyUI", "a1111": "A1111 and Forge"}
MADE = "<!-- Made by `python docs/make_pages.py` from the registry; do not edit. -->\n"


def table(*columns: str, rows: Iterator[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def code(names: Any) -> str:
    """Names as code, comma-separated."""
    return ", ".join(f"`{name}`" for name in names)


def pairs(options: Mapping[str, Any]) -> str:
    """Options as code, `eta=0.0`."""
    return code(
        f"{name}={value!r}" if not isinstance(value, str) else f"{name}={value}" for name, value in options.items()
    )


def what_runs(preset: Preset) -> str:
    """A preset in one line: sampler, options, grid, coordinates, noise."""
    parts = [f"`{preset.sampler.name}`"]
    if preset.options:
        parts.append(pairs(preset.options))
    if preset.spacing:
        chosen = f" with {pairs(preset.spacing_options)}" if preset.spacing_options else ""
        parts.append(f"grid `{preset.spacing}`{chosen}")
    if preset.steps:
        parts.append(f"{preset.steps} steps")
    if preset.coordinates:
        parts.append(f"in `{preset.coordinates}` coordinates")
    if preset.noise and preset.noise != "independent":
        parts.append(f"noise `{preset.noise}`")
    if preset.final and preset.final != "zero":
        parts.append(f"final `{preset.final}`")
    return ", ".join(parts) + (f" ({preset.description})" if preset.description else "")


def same(first: Preset, second: Preset) -> bool:
    """Whether two presets run the same."""
    return replace(first, description="") == replace(second, description="")


def own_names(registry: Registry) -> Iterator[tuple[str, str]]:
    """(sampler, recipe or alias that runs it)."""
    for name in (*registry.catalogue.recipes, *registry.catalogue.aliases):
        if "{" in name:
            yield registry.catalogue.recipes[name]["sampler"], name
        else:
            yield registry.resolve(name).sampler.name, name


def peers_samplers(registry: Registry) -> Iterator[tuple[str, str, Preset | str]]:
    """(peer, its name of a sampler, what runs here or the reason why nothing does)."""
    for peer, kinds in registry.catalogue.peers.items():
        for name, entry in kinds.get("samplers", {}).items():
            reason = entry.get("reason") if isinstance(entry, Mapping) else None
            yield peer, name, reason or registry.resolve(f"{peer}:{name}")


def clashes(registry: Registry) -> list[tuple[str, str]]:
    """(peer, name) where the name alone runs something else than the peer's own: another has it, or we do."""
    found = []
    for peer, name, preset in peers_samplers(registry):
        if isinstance(preset, Preset) and not same(registry.resolve(name), preset):
            found.append((peer, name))
    return found


def samplers_page(registry: Registry) -> str:
    """docs/samplers.md: every built-in sampler, grid and noise source with what it declares."""
    names: dict[str, list[str]] = {}
    for sampler, name in own_names(registry):
        names.setdefault(sampler, []).append(name)
    peers: dict[str, set[str]] = {}
    for peer, _, preset in peers_samplers(registry):
        if isinstance(preset, Preset):
            peers.setdefault(preset.sampler.name, set()).add(peer)
    for peer, kinds in registry.catalogue.peers.items():
        for name in kinds.get("methods", {}):
            peers.setdefault(name, set()).add(peer)

    def samplers() -> Iterator[tuple[str, ...]]:
        built_in = {
            name: s for name in registry.samplers if (s := registry.samplers[name]).plugin.startswith("sdesamplers:")
        }
        for name, s in sorted(built_in.items(), key=lambda item: (item[1].plugin, item[0])):
            strong = f", strong {s.strong_order:g}" if s.strong_order is not None else ""
            yield (
                f"`{name}`",
                s.plugin.removeprefix("sdesamplers:"),
                ("-" if s.order is None else str(s.order)) + strong,
                "varies" if s.evaluations is None else str(s.evaluations),
                "yes" if s.stochastic else "no",
                "yes" if s.adaptive else "no",
                pairs({o.name: o.default for o in s.options.values()}),
                s.reference,
                code(names.get(name, [])),
                ", ".join(title for peer, title in PEERS.items() if peer in peers.get(name, ())),
            )

    def grids() -> Iterator[tuple[str, ...]]:
        for name in registry.spacings:
            grid = registry.spacings[name]
            if grid.plugin.startswith("sdesamplers:"):
                options = pairs({o.name: o.default for o in grid.options.values()})
                yield f"`{name}`", grid.summary, options, grid.reference

    def noises() -> Iterator[tuple[str, ...]]:
        for name in registry.noises:
            source = registry.noises[name]
            if source.plugin.startswith("sdesamplers:"):
                options = pairs({o.name: o.default for o in source.options.values()})
                yield (
                    f"`{name}`",
                    source.summary,
                    options,
                    source.limits or "the model's distribution",
                    source.reference,
                )

    def equations() -> Iterator[str]:
        for name in registry.samplers:
            if (s := registry.samplers[name]).plugin.startswith("sdesamplers:"):
                yield f"### {name}\n\n{inspect.cleandoc(s.__doc__ or '')}\n"

    columns = ("name", "family", "order", "evaluations a step", "stochastic", "adaptive", "options", "reference")
    return "\n".join(
        [
            "# Samplers, grids and noise sources\n",
            MADE,
            "Orders are those of the default options: of the sample for a deterministic sampler, of its first two "
            "moments for a stochastic one. They are measured by `sdesamplers check NAME`, on grids whose start costs "
            "no order; what is left of it from alpha = 0 is in [writing-samplers.md](writing-samplers.md). A family "
            "is a file in `plugins/`. The last column says which other libraries have the method, of those whose names "
            "are in [names.md](names.md), as a sampler of its own or by options; that they have it right is another "
            "question ([parity.md](parity.md)). The equations are [below](#what-each-sampler-does).\n",
            table(*columns, "recipes and aliases", "also in", rows=samplers()),
            "## Grids\n",
            table("name", "what it is", "options", "reference", rows=grids()),
            "## Noise sources\n",
            table("name", "what it is", "options", "what it samples", "reference", rows=noises()),
            "## What each sampler does\n",
            "As `sdesamplers info NAME` prints it. A step goes from t to s; x0 and eps are the predictions of data and "
            "noise at t, v is the velocity of the probability-flow ODE, lambda = log(alpha/sigma), r = sigma/alpha, z "
            "is a standard normal draw, phi_k are the functions of exponential integrators "
            "([theory.md](theory.md)).\n",
            *equations(),
        ]
    )


def names_page(registry: Registry) -> str:
    """docs/names.md: every sampler and grid name of the peers, and what it runs here or why nothing does."""
    parts = [
        "# Names of other libraries\n",
        MADE,
        "Each of these names can be given to `sample`, to the command line and to `sdesamplers info`, as it stands or "
        "with its library in front: `k-diffusion:sample_euler`, `comfyui:euler`. A name alone means, in this order: "
        "our own sampler, recipe or alias; then the first of " + ", ".join(PEERS.values()) + " that has it. A "
        "sampler's name and a grid's, with a space between them, are that sampler on that grid: "
        "`DPM++ 2M SDE Karras`.\n",
    ]
    for peer, kinds in registry.catalogue.peers.items():
        parts.append(f"## {PEERS.get(peer, peer)}\n")
        if kinds.get("samplers"):
            parts.append(table("sampler", "what runs here", rows=_sampler_rows(registry, peer)))
        if kinds.get("spacings"):
            parts.append(table("grid", "what runs here", rows=_grid_rows(registry, peer)))
        if kinds.get("methods"):
            rows = ((f"`{registry.samplers[name].name}`", str(where)) for name, where in kinds["methods"].items())
            parts.append(table("ours, that it has by options", "where", rows=rows))
    return "\n".join(parts)


def _sampler_rows(registry: Registry, wanted: str) -> Iterator[tuple[str, str]]:
    for peer, name, preset in peers_samplers(registry):
        if peer != wanted:
            continue
        if isinstance(preset, str):
            yield f"`{name}`", f"nothing: {preset}"
            continue
        alone = registry.resolve(name)
        other = "" if same(alone, preset) else f"; without `{peer}:` in front, {what_runs(alone)}"
        yield f"`{name}`", what_runs(preset) + other


def _grid_rows(registry: Registry, peer: str) -> Iterator[tuple[str, str]]:
    for name, entry in registry.catalogue.peers[peer]["spacings"].items():
        if isinstance(entry, Mapping) and "reason" in entry:
            yield f"`{name}`", f"nothing: {entry['reason']}"
            continue
        note = entry.get("description", "") if isinstance(entry, Mapping) else ""
        grid, options = registry.grid(f"{peer}:{name}")
        text = f"`{grid.name}`" + (f" with {pairs(options)}" if options else "") + (f" ({note})" if note else "")
        alone, chosen = registry.grid(name)
        if (alone.name, chosen) != (grid.name, options):
            text += f"; without `{peer}:` in front, `{alone.name}`" + (f" with {pairs(chosen)}" if chosen else "")
        yield f"`{name}`", text


PAGES = {"samplers.md": samplers_page, "names.md": names_page}


def write_pages(folder: Path) -> list[Path]:
    """Write both pages from the shipped registry alone."""
    registry = Registry(catalogue=read(SHIPPED, allow_plugins=False))
    for name, page in PAGES.items():
        (folder / name).write_text(page(registry), encoding="utf-8")
    return [folder / name for name in PAGES]


if __name__ == "__main__":
    for file in write_pages(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs")):
        print(file)
