"""`Registry`: finds plugins by entry point, and resolves names to samplers, spacings, noise sources and recipes."""

from __future__ import annotations

import copyreg
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..checks import one_of_types, warn
from ..errors import PluginError, UnknownNameError, UsageError
from ..public import public
from .catalogue import Catalogue, load_catalogue
from .discovery import Discovery, Plugin
from .names import Names, Preset
from .options import other_owners
from .plugin import NoiseSource, Registered, Sampler, Spacing
from .shelf import Shelf, shipped_names


@public
class Registry:
    """All samplers, spacings, noise sources, processes and recipes of installed plugins and registry files.

    Args:
        file: a registry file that takes precedence over the shipped file and the one in the user's configuration.
        plugins: modules or Python files to import as plugins.
        catalogue: a catalogue to use instead of all registry files.

    Raises:
        UsageError: a file in `plugins` does not exist.
        PluginError: one of `plugins` cannot be imported, or registers nothing.
    """

    def __init__(
        self,
        file: str | Path | None = None,
        *,
        plugins: Sequence[str | Path] = (),
        catalogue: Catalogue | None = None,
    ) -> None:
        one_of_types("file", file, (str, Path, type(None)), "a registry file or None")
        one_of_types("catalogue", catalogue, (Catalogue, type(None)), "a Catalogue or None")
        for plugin in one_of_types("plugins", plugins, (list, tuple), "a list of modules and files"):
            one_of_types("plugins", plugin, (str, Path), "a list of modules and files")
        self.catalogue: Catalogue = load_catalogue(file) if catalogue is None else catalogue
        named = partial(shipped_names, self.catalogue)
        self.samplers: Shelf[Sampler] = Shelf("sampler", named(("recipes", "aliases"), "samplers"))
        self.spacings: Shelf[Spacing] = Shelf("spacing", named(("spacing_aliases",), "spacings"))
        self.noises: Shelf[NoiseSource] = Shelf("noise source", named(("noise_aliases",), "noises"))
        self.sdes: Shelf[Callable[..., Any]] = Shelf("process")
        self._discovery = Discovery(self.samplers, self.spacings, self.noises, self.sdes)
        self.plugins: list[Plugin] = self._discovery.plugins
        self.names = Names(self.catalogue, self.samplers, self.spacings, self.noises, self.plugins)
        self._add_installed()
        self._discovery.add_listed(self.catalogue)
        for plugin in dict.fromkeys(str(plugin) for plugin in plugins):
            self._discovery.add_named(plugin, _local.values())
        self._warn_of_hidden_names()

    def _warn_of_hidden_names(self) -> None:
        """Warn of recipes and aliases that nobody can use, because a sampler has their name."""
        for section in ("recipes", "aliases"):
            for name in getattr(self.catalogue, section):
                if name in self.samplers:
                    place = self.catalogue.where(section, name)
                    warn(f"{place}: the sampler of this name is used instead; give the entry another name")

    def _add_installed(self) -> None:
        """Register what the plugins of installed distributions offer."""
        self._discovery.add_installed()

    def register(self, plugin: Any, name: str, dist: str = "local") -> None:
        """Register a plugin object (a module or anything with hook implementations) atomically: all its items or none.

        Raises:
            PluginError: a hook returned an object of the wrong type, or a name twice; or a function is not a valid
                hook, because its name is misspelt or it lacks `@hookimpl`.
        """
        self._discovery.register(plugin, name, dist)

    def adopt(self, items: Iterable[Sampler | Spacing | NoiseSource]) -> None:
        """Register items of the running program, replacing its earlier items of the same names."""
        self.names.clear_cache()  # recipes may have been built with the earlier items
        shelves: dict[type, Shelf[Any]] = {Sampler: self.samplers, Spacing: self.spacings, NoiseSource: self.noises}
        for item in items:
            item.plugin = item.plugin or "local"
            shelves[type(item)].put(item.name, item, "local")

    def load_model(self, source: str, options: dict[str, Any]) -> Any:
        """Return the model from the first plugin whose `sdesamplers_load_model` returns one, or None.

        Raises:
            PluginError: a plugin failed; the message has its file and line.
        """
        return self._discovery.load_model(source, options)

    def resolve(self, name: str) -> Preset:
        """Resolve a name to a sampler and its settings; see `Names.resolve` for the order of lookups.

        Raises:
            UnknownNameError: no such name; the message suggests similar names.
            UsageError: a name in another library without an equivalent here; the message has the reason.
        """
        return self.names.resolve(name)

    def sampler_names(self) -> list[str]:
        """Every name that `resolve` knows, ours first; for a recipe `head{option}` one name per value of the option."""
        return self.names.sampler_names()

    def spacing(self, name: str) -> Spacing:
        """Return a spacing by its name, an alias or its name in another library."""
        return self.names.grid(name)[0]

    def grid(self, name: str) -> tuple[Spacing, dict[str, Any]]:
        """Resolve the name of a registered spacing, an alias or a name in another library to a spacing and its options.

        Raises:
            UnknownNameError: no such name; the message suggests similar names.
            UsageError: a name in another library without an equivalent here; the message has the reason.
        """
        return self.names.grid(name)

    def grid_names(self) -> list[str]:
        """Every name that `grid` knows, ours first."""
        return self.names.grid_names()

    def noise(self, name: str) -> tuple[NoiseSource, dict[str, Any]]:
        """Resolve the name of a registered noise source or an alias to a noise source and its options.

        Raises:
            UnknownNameError: no such name; the message suggests similar names.
        """
        return self.names.noise(name)


_lock = threading.RLock()  # reentrant: a plugin may call `register` while it is imported
_default: Registry | None = None
_local: dict[tuple[str, str], Sampler | Spacing | NoiseSource] = {}


@public
def default_registry() -> Registry:
    """The process-wide registry, built on first use."""
    global _default
    with _lock:
        if _default is None:
            _default = Registry()
            _default.adopt(_local.values())
        return _default


def in_use() -> bool:
    """True if the process-wide registry has been built, or the program has registered items."""
    return _default is not None or bool(_local)


def having_option(kind: str, option: str) -> list[str]:
    """The names of the registered samplers, spacings or noise sources with an option; [] before there is a registry.

    Args:
        kind: "sampler", "spacing" or "noise".
    """
    if _default is None:
        return []
    shelves: dict[str, Shelf[Any]]
    shelves = {"sampler": _default.samplers, "spacing": _default.spacings, "noise": _default.noises}
    return [name for name, item in shelves.get(kind, {}).items() if option in item.options and ":" not in name]


other_owners.append(having_option)


def local_items() -> list[Sampler | Spacing | NoiseSource]:
    """The items that the program has registered."""
    return [*_local.values()]


@public
def use_registry(file: str | Path | None, *, plugins: Sequence[str | Path] = ()) -> Registry:
    """Rebuild the process-wide registry with an additional registry file and plugins; `use_registry(None)` resets it.

    `plugins` are modules or Python files (`folder/file.py`), which are imported.
    """
    global _default
    fresh = Registry(file, plugins=plugins)
    fresh.adopt(_local.values())
    with _lock:
        _default = fresh
    return fresh


@public
def register(*items: Sampler | Spacing | NoiseSource) -> None:
    """Register samplers, spacings and noise sources of this program, without packaging a plugin.

    An item that this program has registered before under the same name is replaced, as notebooks need. If another
    distribution has registered the name, it must then be written as `dist:name`.
    """

    if not all(isinstance(item, Sampler | Spacing | NoiseSource) for item in items):
        raise PluginError("register takes objects made by @sampler, @spacing or @noise_source")
    names = [(type(item).__name__, item.name) for item in items]
    if len(set(names)) < len(names):
        raise PluginError("register received two items with the same name")
    catalogue = default_registry().catalogue
    for item in items:
        if isinstance(item, Sampler) and (item.name in catalogue.recipes or item.name in catalogue.aliases):
            raise PluginError(f"{item.name!r} is a recipe or an alias, which a sampler of this name would hide")
    for item in items:
        _local[type(item).__name__, item.name] = item
    default_registry().adopt(items)


# Pickles


def _shelf(kind: str) -> Mapping[str, Registered]:
    """The registered items of a kind."""
    registry = default_registry()
    shelves: dict[str, Mapping[str, Registered]]
    shelves = {"sampler": registry.samplers, "spacing": registry.spacings, "noise source": registry.noises}
    return shelves[kind]


def _reduced(item: Registered) -> str | tuple[Any, ...]:
    """Pickle an item by its name in its module, like a function, or else by its name in the registry.

    Raises:
        UsageError: it has neither name.
    """
    module = sys.modules.get(item.__module__)
    place = next((name for name, value in vars(module).items() if value is item), None) if module else None
    if place is not None:
        return place
    name = next((name for name, other in _shelf(item.kind).items() if other is item), None)
    if name is None:
        raise UsageError(
            f"{item.kind} {item.name!r} cannot be pickled: it has no name at the top level of its module, and it "
            "is not registered; register it, or define it at the top level"
        )
    return _registered, (item.kind, name)


def _registered(kind: str, name: str) -> Registered:
    """Unpickle an item by its name in the registry.

    Raises:
        UnknownNameError: the process that reads the pickle has not registered the item.
    """
    shelf = _shelf(kind)
    if name not in shelf:
        raise UnknownNameError(kind, name, shelf, "; the process that wrote the pickle had registered it")
    return shelf[name]


for _kind in (Sampler, Spacing, NoiseSource):
    copyreg.pickle(_kind, _reduced)
