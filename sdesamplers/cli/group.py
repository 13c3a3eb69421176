"""The command group and its global options."""

from __future__ import annotations

from typing import Any

import click

from ..errors import UnknownNameError
from .streams import say


class Suggesting(click.Group):
    """A command group that suggests the nearest command for a mistyped one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command, or raise UnknownNameError with the nearest names."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise UnknownNameError("command", args[0], self.commands, "; see sdesamplers --help")
        return super().resolve_command(ctx, args)


@click.group(cls=Suggesting, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="sdesamplers")
@click.option(
    "--registry",
    "registry_file",
    metavar="FILE",
    help="A registry.yaml file that extends the shipped one, or hf://OWNER/NAME[@REVISION][/PATH].",
)
@click.option(
    "--plugin",
    "plugins",
    multiple=True,
    metavar="MODULE_OR_FILE.py",
    help="Import a plugin of your own; may be repeated.",
)
def cli(registry_file: str | None, plugins: tuple[str, ...]) -> None:
    """Diffusion samplers, as plugins, for every diffusers model."""
    from ..hub.address import Address, is_address
    from ..registry.registry import use_registry

    if registry_file is None and not plugins:
        return
    addresses = use_registry(registry_file, plugins=plugins).catalogue.addresses
    if is_address(registry_file) and not Address.parse(str(registry_file)).is_pinned:
        say(f"registry: {[*addresses.values()][-1]}", err=True)
