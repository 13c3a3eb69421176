"""The command group and its global options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..errors import UnknownNameError
from .streams import say

if TYPE_CHECKING:
    from ..registry.registry import Registry


class Suggesting(click.Group):
    """A command group that suggests the nearest command for a mistyped one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command, or raise UnknownNameError with the nearest names."""
        if ctx.resilient_parsing:  # for shell completion
            return super().resolve_command(ctx, args)
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise UnknownNameError("command", args[0], self.commands, "; see sdesamplers --help")
        return super().resolve_command(ctx, args)


class Describing(click.Command):
    """A command that describes what is registered and runs none of it, so it needs no plugin; see `described`."""


@click.group(cls=Suggesting, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="sdesamplers")
@click.option(
    "--registry",
    "registry_file",
    metavar="FILE",
    help="A registry.yaml file that extends the shipped one, or hf://OWNER/NAME, with @REVISION and /PATH if needed.",
)
@click.option(
    "--plugin",
    "plugins",
    multiple=True,
    metavar="MODULE_OR_FILE.py",
    help="Import a plugin of your own; may be repeated.",
)
@click.option(
    "--verbosity",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Which messages are printed on standard error; by default only warnings.",
)
@click.pass_context
def cli(ctx: click.Context, registry_file: str | None, plugins: tuple[str, ...], verbosity: str | None) -> None:
    """Diffusion samplers, as plugins, for every diffusers model."""
    if verbosity is not None:
        from ..io.log import set_verbosity

        set_verbosity(verbosity)
    from ..registry.registry import use_registry

    describing = isinstance(cli.commands.get(ctx.invoked_subcommand or ""), Describing)
    if (registry_file is not None or plugins) and not describing:
        say_address(registry_file, use_registry(registry_file, plugins=plugins))


def described(ctx: click.Context | None = None) -> Registry:
    """The registry of a `Describing` command or of shell completion, as the options --registry and --plugin set it.

    Completion imports no plugin that is named on the command line.
    """
    from ..registry.described import registry_to_describe

    ctx = ctx or click.get_current_context()
    chosen = ctx.find_root().params
    file = chosen.get("registry_file")
    found = registry_to_describe(file, () if ctx.resilient_parsing else chosen["plugins"])
    if not ctx.resilient_parsing:
        say_address(file, found)
    return found


def say_address(file: str | None, registry: Registry) -> None:
    """Print the commit of the registry file at an address on the Hub that has none, so that a run can be repeated."""
    from ..hub.address import Address, is_address

    if is_address(file) and not Address.parse(str(file)).is_pinned:
        say(f"registry: {[*registry.catalogue.addresses.values()][-1]}", err=True)
