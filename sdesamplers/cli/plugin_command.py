"""`sdesamplers new-plugin`: a package with a sampler or another item, to be replaced by one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from .group import cli
from .streams import say


@cli.command("new-plugin")
@click.argument("name")
@click.option("--sampler", is_flag=True, help="Include a sampler; the default if nothing is chosen.")
@click.option("--spacing", is_flag=True, help="Include a spacing.")
@click.option("--noise", is_flag=True, help="Include a noise source.")
@click.option("--process", is_flag=True, help="Include a process.")
@click.option("--model", is_flag=True, help="Include a loader of models, with a model.")
@click.option("--out", type=click.Path(), default=".", show_default=True, help="Folder for the package's folder.")
def new_plugin(name: str, out: str, **chosen: bool) -> None:
    """Create the package sdesamplers-NAME: one of each item chosen, with tests, CI workflow and README.

    The package passes its tests as created. Replace the items by your own.
    """
    from ..registry.registry import default_registry
    from ..scaffold import packages
    from ..scaffold.naming import Part, plugin_name

    checked = plugin_name(name)
    parts: list[Part] = [part for part in packages.PARTS if chosen[part]] or ["sampler"]
    registry = default_registry()
    known: dict[str, Any] = {
        "sampler": registry.sampler_names(),
        "spacing": registry.grid_names(),
        "noise": registry.noises,
        "process": registry.sdes,
        "model": registry.catalogue.models,
    }
    for part in parts:
        if checked.item(part) in known[part]:
            raise UsageError(f"{checked.item(part)!r} is a registered {packages.PARTS[part][0]}; choose another name")
    folder = packages.new_plugin(checked, parts, Path(out))
    items = " ".join(checked.item(part) for part in parts)
    say(f"created {folder}; next:")
    say(f"  cd {folder}")
    say('  pip install -e ".[dev]"')
    say("  pytest")
    say(f"  sdesamplers check {items} --explain")
