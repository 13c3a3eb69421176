"""Shell completion: names of samplers, spacings, noise sources, models and options, and the script that enables it."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import click
from click.shell_completion import CompletionItem, get_completion_class

from ..errors import SdesamplersError
from .group import cli, described

if TYPE_CHECKING:
    from ..registry.options import Option
    from ..registry.registry import Registry

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
Names = Callable[["Registry"], Iterable[str]]
PLAIN = re.compile(r"[\w.:-]+")
"""Names that shells complete as one word; "DPM++ 2M Karras" is not."""
COORDINATES = ("native", "ve", "flow", "angle")
FORMATS = ("grid", "png", "safetensors", "webdataset")


def samplers(registry: Registry) -> list[str]:
    """The names of samplers, recipes and aliases."""
    return [*registry.samplers, *registry.catalogue.recipes, *registry.catalogue.aliases]


def spacings(registry: Registry) -> list[str]:
    """The names of spacings and their aliases."""
    return [*registry.spacings, *registry.catalogue.spacing_aliases]


def noises(registry: Registry) -> list[str]:
    """The names of noise sources and their aliases."""
    return [*registry.noises, *registry.catalogue.noise_aliases]


def models(registry: Registry) -> list[str]:
    """The names of registered models."""
    return list(registry.catalogue.models)


def described_names(registry: Registry) -> list[str]:
    """Every name of ours that `info` describes."""
    return [*samplers(registry), *spacings(registry), *noises(registry), *models(registry)]


def families(registry: Registry) -> list[str]:
    """The names of plugin files, as `list --family` takes them."""
    shelves: tuple[Mapping[str, Any], ...] = (registry.samplers, registry.spacings, registry.noises)
    return sorted({item.plugin.rpartition(":")[2] for shelf in shelves for item in shelf.values()})


def quiet(complete: Complete) -> Complete:
    """Complete nothing if the registry cannot be read; the command itself reports why."""

    def completed(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            return complete(ctx, param, incomplete)
        except SdesamplersError:
            return []

    return completed


def names(*kinds: Names, several: bool = False, files: bool = False) -> Complete:
    """A completion of the names of some kinds.

    Args:
        several: names are separated by commas.
        files: the names of files are completed too.
    """

    @quiet
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",") if several else ("", "", incomplete)
        registry = described(ctx)
        known = dict.fromkeys(name for kind in kinds for name in kind(registry))
        found = [name for name in known if name.startswith(last) and PLAIN.fullmatch(name)]
        items = [CompletionItem(f"{before}{comma}{name}") for name in found]
        return items or ([CompletionItem(incomplete, type="file")] if files else [])

    return complete


def terms(*known: str, several: bool = False) -> Complete:
    """A completion of fixed terms."""
    return names(lambda registry: known, several=several)


def pairs_of(kind: Literal["sampler", "spacing", "noise"]) -> Complete:
    """A completion of KEY=VALUE for the options of the sampler, spacing or noise source on the command line."""

    @quiet
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        registry = described(ctx)
        found: dict[str, Option] = {}
        for name in str(ctx.params.get(kind) or ctx.params.get(f"{kind}s") or "").split(","):
            if name:
                find: dict[str, Callable[[str], Any]] = {"spacing": registry.grid, "noise": registry.noise}
                found |= (find[kind](name)[0] if kind in find else registry.resolve(name).sampler).options
        key, equals, value = incomplete.partition("=")
        if not equals:
            return [CompletionItem(f"{name}=", help=o.type_name) for name, o in found.items() if name.startswith(key)]
        choices = [choice for one in found[key].kinds for choice in _choices(one)] if key in found else []
        return [CompletionItem(f"{key}={choice}") for choice in choices if choice.startswith(value)]

    return complete


def _choices(kind: Any) -> list[str]:
    """The possible values of a type, as they are typed."""
    if kind is bool:
        return ["true", "false"]
    return [str(choice) for choice in typing.get_args(kind)] if typing.get_origin(kind) is Literal else []


COMPLETIONS: dict[str, Complete] = {
    "source": names(models, files=True),
    "sources": names(models, files=True),
    "sampler": names(samplers, files=True),
    "teacher": names(samplers),
    "warm_start": names(files=True),
    "samplers": names(samplers, several=True),
    "spacing": names(spacings),
    "noise": names(noises),
    "coordinates": terms(*COORDINATES),
    "final": terms("zero", "min"),
    "formats": terms(*FORMATS, several=True),
    "dtype": terms("float32", "bfloat16", "float16", "float64"),
    "option": pairs_of("sampler"),
    "spacing_option": pairs_of("spacing"),
    "noise_option": pairs_of("noise"),
    "data": names(lambda registry: ["fashion-mnist-test"], files=True),
    "wanted": names(families),
    "part": names(described_names),
    "name": names(described_names),
    "names": names(samplers, lambda registry: registry.sdes),
    "config": names(files=True),
}
"""Parameters of commands, by their names in the code."""


def add_completions() -> None:
    """Add COMPLETIONS to the parameters of all commands."""
    for command in cli.commands.values():
        for param in command.params:
            complete = COMPLETIONS.get(param.name or "")
            if complete is not None:
                vars(param)["shell_complete"] = partial(_completed, complete, param)


def _completed(complete: Complete, param: click.Parameter, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    return complete(ctx, param, incomplete)


@cli.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print the script that enables completion in a shell.

    \b
    bash, in ~/.bashrc:   eval "$(sdesamplers completion bash)"
    zsh, in ~/.zshrc:     eval "$(sdesamplers completion zsh)"
    fish:                 sdesamplers completion fish > ~/.config/fish/completions/sdesamplers.fish
    """
    cls = get_completion_class(shell)
    assert cls is not None
    click.echo(cls(cli, {}, "sdesamplers", "_SDESAMPLERS_COMPLETE").source())
