"""What a name refers to in the conformance kit: a registered item of any kind, or an object in a Python file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import PluginError, UnknownNameError
from ..models.base import Model
from ..pretrained.factories import from_file, is_factory
from ..pretrained.loading import as_model
from ..processes.sde import SDE
from ..registry.discovery import check_hooks
from ..registry.plugin import NoiseSource, Sampler, Spacing
from ..registry.registry import default_registry
from ..registry.shelf import Shelf
from .explanations import Kind

CLASSES: dict[Kind, type] = {
    "sampler": Sampler,
    "spacing": Spacing,
    "noise source": NoiseSource,
    "process": SDE,
    "model": Model,
}
"""The class of each kind of item."""


class Target(NamedTuple):
    """What a name refers to: a sampler, spacing or noise source by its name, or an object."""

    kind: Kind
    item: str | Sampler | Spacing | NoiseSource | SDE | Model


def find(name: str, kind: Kind | None = None) -> Target:
    """Find what a name refers to.

    The kinds are tried in the order of `CLASSES`. A name of the form FILE.py:NAME is an object in a Python file, or
    what a function of this name in it returns; the file is run. Names of models are those of `sds.load`.

    Args:
        kind: look for items of this kind only.

    Raises:
        UnknownNameError: it is no name; the message suggests similar names.
        PluginError: a plugin registers a process that is no SDE.
        ModelError: a model cannot be loaded.
    """
    if is_factory(name):
        wanted = tuple(CLASSES.values()) if kind is None else (CLASSES[kind],)
        made = from_file(name, wanted)
        return Target(next(each for each, cls in CLASSES.items() if isinstance(made, cls)), made)
    for each in CLASSES if kind is None else (kind,):
        if name in set(_names(each)) or _is_sampler(name, each):
            return Target(each, _object(name, each))
    if kind in (None, "model"):
        model = default_registry().load_model(name, {})
        if model is not None or "/" in name or Path(name).is_dir() or kind == "model":
            return Target("model", as_model(name if model is None else model))
    known = [known for each in (CLASSES if kind is None else (kind,)) for known in _names(each)]
    raise UnknownNameError(kind or "name", name, known, default_registry().names.hint())


def items_of(plugin: Any) -> list[tuple[Kind, str]]:
    """The kind and name of all samplers, spacings, noise sources and processes that the hooks of a plugin return.

    Models are not among them, as a hook that loads models has no list of their names. The names are those under which
    the items are registered, so that a test of all that a package offers needs no edit when an item is added:

        import my_package.samplers


        @pytest.mark.parametrize(("kind", "name"), items_of(my_package.samplers))
        def test_conformance(kind, name):
            check(name, kind).require()

    Args:
        plugin: a plugin's module, or another object with its hooks.

    Raises:
        PluginError: an item is not registered, because no entry point names the plugin; or a hook is faulty.
    """
    check_hooks(plugin)
    registry, found = default_registry(), list[tuple[Kind, str]]()
    shelves: tuple[tuple[Kind, str, Shelf[Any]], ...] = (
        ("sampler", "sdesamplers_samplers", registry.samplers),
        ("spacing", "sdesamplers_spacings", registry.spacings),
        ("noise source", "sdesamplers_noises", registry.noises),
        ("process", "sdesamplers_sdes", registry.sdes),
    )
    for kind, hook, shelf in shelves:
        for item in getattr(plugin, hook, list)():
            own = item if kind == "process" else item.name
            name = item if kind == "process" else shelf.name_of(item) or own
            if name not in shelf:
                origin = getattr(plugin, "__name__", plugin)
                raise PluginError(
                    f"{kind} {own!r} of {origin} is not registered: name the module as an entry point of the group "
                    "sdesamplers, and install the package again"
                )
            found.append((kind, str(name)))
    return found


def process_of(name: str) -> SDE:
    """The process of a plugin, by its registered name, or a process in a file, FILE.py:NAME.

    Raises:
        UnknownNameError: no such process.
    """
    found = find(name, "process").item
    assert isinstance(found, SDE)
    return found


def _names(kind: Kind) -> Iterator[str]:
    """The names of all items of a kind."""
    registry = default_registry()
    if kind == "sampler":
        yield from registry.sampler_names()
    elif kind == "spacing":
        yield from registry.grid_names()
    elif kind == "noise source":
        yield from (*registry.noises, *registry.catalogue.noise_aliases)
    elif kind == "process":
        yield from registry.sdes
    else:
        yield from registry.catalogue.models


def _is_sampler(name: str, kind: Kind) -> bool:
    """True for names of samplers that are not listed: `SAMPLER GRID`, `dist:name`, `peer:name`."""
    if kind != "sampler":
        return False
    try:
        default_registry().resolve(name)
    except UnknownNameError:
        return False
    return True


def _object(name: str, kind: Kind) -> str | SDE | Model:
    if kind == "model":
        return as_model(name)
    if kind != "process":
        return name
    made = default_registry().sdes[name]
    process = made() if callable(made) else made
    if not isinstance(process, SDE):
        raise PluginError(f"the process {name!r} of a plugin is of class {type(process).__name__}, not an SDE")
    return process
