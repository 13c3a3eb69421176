"""The command that runs a YAML file: run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import UnknownNameError, UsageError
from ..registry.validation import line_of
from .config import Configured, read_mapping
from .group import cli


@cli.command(
    "run",
    context_settings={
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
        "help_option_names": ["-h", "--help"],
    },
)
@click.argument("file", type=click.Path(), metavar="FILE.yaml")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run_command(ctx: click.Context, file: str, options: tuple[str, ...]) -> Any:
    """Run a recipe or a configuration from a YAML file.

    FILE.yaml has the keys of a recipe in registry.yaml (sampler, options, spacing, steps, ...) and `model`, `seed`,
    `num_samples` or any other option of `sdesamplers sample`; or it was written by --dump-config of a command, whose
    name it has under `command`. OPTIONS are options of that command, and take precedence over the file.

    \b
    model: fashion-mnist
    sampler: ddim
    options: {eta: 0.5}
    steps: 20
    seed: 3
    num_samples: 16
    """
    if any(option.partition("=")[0] == "--config" for option in options):
        raise UsageError("run reads its options from FILE.yaml, so --config does not apply to it")
    data, text = read_mapping(Path(file))
    name = data.get("command", "sample")
    known = {key: command for key, command in cli.commands.items() if isinstance(command, Configured)}
    if not isinstance(name, str) or name not in known:
        place = f"{file}:{line_of(text, ['command'])}: command"
        opening, listing = f"{place}: unknown command {name!r}", f" (known: {', '.join(sorted(known))})"
        raise UnknownNameError("command", str(name), known, listing, opening=opening)
    command = known[name]
    with command.make_context(name, [*options, "--config", file], parent=ctx.parent) as inner:
        return command.invoke(inner)
