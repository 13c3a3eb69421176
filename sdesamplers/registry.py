"""The registry: plugins found by entry point, names and aliases resolved to samplers, spacings and recipes."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

import pluggy

from .catalogue import Catalogue, load_catalogue
from .errors import PluginError, UnknownNameError, UsageError
from .options import check_options
from .plugin import HookSpecs, Sampler, Spacing

GROUP = "sdesamplers"


@dataclass(frozen=True)
class Preset:
    """A sampler with everything it is to be run with; what is None is left to the call or to defaults."""

    sampler: Sampler
    options: Mapping[str, Any] = field(default_factory=dict)
    spacing: str | None = None
    spacing_options: Mapping[str, Any] = field(default_factory=dict)
    coordinates: str | None = None
    steps: int | None = None
    noise: str | None = None
    final: str | None = None
    description: str = ""


T = TypeVar("T")


class Shelf(Mapping[str, T], Generic[T]):
    """Name -> item; a name claimed by two distributions answers only as `dist:name`."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, dict[str, T]] = {}

    def put(self, name: str, item: T, dist: str) -> None:
        """Register `item`, or replace what `dist` had under this name."""
        self._items.setdefault(name, {})[dist] = item

    def __getitem__(self, name: str) -> T:
        dist, _, bare = name.rpartition(":")
        owners = self._items.get(bare) or {}
        if dist and dist in owners:
            return owners[dist]
        if dist or not owners:
            raise KeyError(name)
        if len(owners) > 1:
            picks = " or ".join(repr(f"{d}:{bare}") for d in sorted(owners))
            raise UsageError(f"{self.kind} {bare!r} is registered by {' and by '.join(sorted(owners))}; pick {picks}")
        return next(iter(owners.values()))

    def __iter__(self) -> Iterator[str]:
        for name, owners in sorted(self._items.items()):
            yield from [name] if len(owners) == 1 else (f"{dist}:{name}" for dist in sorted(owners))

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True)
class Plugin:
    """One plugin that was found: its name, distribution and, where it is broken, the error."""

    name: str
    dist: str
    error: str | None = None


class Registry:
    """Everything that installed plugins and registry files offer.

    Args:
        file: a registry file that the user named, on top of the shipped and the user's own.
    """

    def __init__(self, file: str | Path | None = None) -> None:
        self.catalogue: Catalogue = load_catalogue(file)
        self.samplers: Shelf[Sampler] = Shelf("sampler")
        self.spacings: Shelf[Spacing] = Shelf("spacing")
        self.sdes: Shelf[Callable[..., Any]] = Shelf("process")
        self.plugins: list[Plugin] = []
        self._presets: dict[str, Preset] = {}
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(HookSpecs)
        for entry in sorted(entry_points(group=GROUP), key=lambda e: (e.name, e.value)):
            dist = entry.dist.name if entry.dist is not None else entry.value
            self._try(entry.name, dist, entry.load)
        for module in self.catalogue.plugins:
            self._try(module, module, lambda module=module: importlib.import_module(module))  # type: ignore[misc]

    def _try(self, name: str, dist: str, load: Callable[[], Any]) -> None:
        try:
            self.register(load(), name, dist)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # a plugin that exits or fails in any way must not take the others down
            self.plugins.append(Plugin(name, dist, f"{type(error).__name__}: {error}"))
        else:
            self.plugins.append(Plugin(name, dist))

    def register(self, plugin: Any, name: str, dist: str = "local") -> None:
        """Register a plugin object (a module or anything with hook implementations), whole or not at all.

        Raises:
            PluginError: a hook returned something that is not a sampler, spacing or process, or a name twice.
        """
        staged: list[tuple[Shelf[Any], str, Any]] = []
        manager = pluggy.PluginManager(GROUP)
        manager.add_hookspecs(HookSpecs)
        manager.register(plugin, name)
        hooks = manager.hook
        for items, cls, shelf in (
            (hooks.sdesamplers_samplers(), Sampler, self.samplers),
            (hooks.sdesamplers_spacings(), Spacing, self.spacings),
        ):
            for item in _flat(items):
                if not isinstance(item, cls):
                    raise PluginError(f"a hook returned {item!r}, not a {shelf.kind}; is @{shelf.kind} missing?")
                item.plugin = f"{dist}:{name}" if dist != name else name
                staged.append((shelf, item.name, item))
        for processes in hooks.sdesamplers_sdes():
            staged.extend((self.sdes, key, process) for key, process in processes.items())
        seen: set[tuple[str, str]] = set()
        for shelf, key, _ in staged:
            if (shelf.kind, key) in seen or dist in shelf._items.get(key, {}):
                raise PluginError(f"{dist} registers {shelf.kind} {key!r} twice")
            seen.add((shelf.kind, key))
        self._manager.register(plugin, f"{dist}:{name}")
        for shelf, key, item in staged:
            shelf.put(key, item, dist)

    def adopt(self, items: Iterable[Sampler | Spacing]) -> None:
        """Register a program's own samplers and spacings, in place of its earlier ones of the same names."""
        for item in items:
            item.plugin = "local"
            shelf: Shelf[Any] = self.samplers if isinstance(item, Sampler) else self.spacings
            shelf.put(item.name, item, "local")

    def load_model(self, source: str, options: dict[str, Any]) -> Any:
        """The first plugin's answer to `sdesamplers_load_model`, or None."""
        return self._manager.hook.sdesamplers_load_model(source=source, options=options)

    def resolve(self, name: str) -> Preset:
        """Resolve a sampler, recipe or alias name.

        Raises:
            UnknownNameError: none of the three; the nearest names are offered.
        """
        aliases = self.catalogue.aliases
        chain: list[str] = []
        while name in aliases and name not in self.samplers and name not in self.catalogue.recipes:
            if name in chain:
                where = self.catalogue.where("aliases", name)
                raise UsageError(f"{where}: the alias leads back to itself ({' -> '.join([*chain, name])})")
            chain.append(name)
            name = aliases[name]
        if name in self.samplers:
            return Preset(self.samplers[name])
        if name in self.catalogue.recipes:
            if name not in self._presets:
                self._presets[name] = self._build(name)
            return self._presets[name]
        known = [*self.samplers, *self.catalogue.recipes, *aliases]
        broken = [p for p in self.plugins if p.error]
        hint = (
            f" ({len(broken)} plugin(s) are broken: see `sdesamplers doctor`)" if broken else "; see `sdesamplers list`"
        )
        kind = f"sampler of {self.catalogue.where('aliases', chain[-1])}:" if chain else "sampler"
        raise UnknownNameError(kind, name, known, hint)

    def _build(self, name: str) -> Preset:
        entry = dict(self.catalogue.recipes[name])
        where = self.catalogue.where("recipes", name)
        wanted, grid = entry.pop("sampler"), entry.get("spacing")
        if wanted not in self.samplers:
            raise UnknownNameError(f"sampler of {where}:", wanted, self.samplers)
        sampler = self.samplers[wanted]
        entry["options"] = check_options(entry.get("options", {}), sampler.options, where)
        if grid is not None:
            if grid not in self.spacings:
                raise UnknownNameError(f"spacing of {where}:", grid, self.spacings)
            options = self.spacings[grid].options
            entry["spacing_options"] = check_options(entry.get("spacing_options", {}), options, where)
        return Preset(sampler, **entry)

    def spacing(self, name: str) -> Spacing:
        """A spacing by name."""
        try:
            return self.spacings[name]
        except KeyError:
            raise UnknownNameError("spacing", name, self.spacings) from None


def _flat(answers: Iterable[Iterable[T]]) -> Iterator[T]:
    for answer in answers:
        yield from answer


_lock = threading.Lock()
_default: Registry | None = None
_local: dict[tuple[str, str], Sampler | Spacing] = {}


def default_registry() -> Registry:
    """The process-wide registry, built on first use."""
    global _default
    with _lock:
        if _default is None:
            _default = Registry()
        return _default


def use_registry(file: str | Path | None) -> Registry:
    """Rebuild the process-wide registry with a registry file on top; None brings the plain one back."""
    global _default
    fresh = Registry(file)
    fresh.adopt(_local.values())
    with _lock:
        _default = fresh
    return fresh


def register(*items: Sampler | Spacing) -> None:
    """Register samplers and spacings of this program, without packaging a plugin.

    A name that this program has registered before is replaced, as a notebook needs; a name of another distribution
    then has to be picked as `dist:name`.
    """

    if not all(isinstance(item, Sampler | Spacing) for item in items):
        raise PluginError("register takes objects made by @sampler or @spacing")
    names = [(type(item).__name__, item.name) for item in items]
    if len(set(names)) < len(names):
        raise PluginError("register was given two items of the same name")
    for item in items:
        _local[type(item).__name__, item.name] = item
    default_registry().adopt(items)


__all__ = ["Plugin", "Preset", "Registry", "default_registry", "register", "use_registry"]
