"""The registry: plugins found by entry point, names resolved to samplers, spacings, noise sources and recipes."""

from __future__ import annotations

import copyreg
import sys
import threading
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

import pluggy

from ..checks import one_of_types
from ..errors import PluginError, SdesamplersError, UnknownNameError, UsageError, last_place, nearest
from ..public import public
from .catalogue import SHIPPED, Catalogue, load_catalogue
from .discovery import Plugin, check_hooks, flattened, import_file, import_named
from .hooks import GROUP, HookSpecs
from .names import Preset, chosen_entry
from .options import Option, check_options
from .plugin import NoiseSource, Registered, Sampler, Spacing
from .shelf import Shelf, shipped_names


@public
class Registry:
    """Everything that installed plugins and registry files offer.

    Args:
        file: a registry file that the user named, on top of the shipped and the user's own.
        plugins: modules or Python files that the user named, to be imported as plugins.
        catalogue: instead of all these files.

    Raises:
        UsageError: a file among `plugins` that is not there.
        PluginError: one of `plugins` cannot be imported or offers nothing.
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
        self.plugins: list[Plugin] = []
        self._presets: dict[tuple[str, str], Preset] = {}
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(HookSpecs)
        for entry in sorted(entry_points(group=GROUP), key=lambda e: (e.name, e.value)):
            dist = entry.dist.name if entry.dist is not None else entry.value
            for shelf in (self.samplers, self.spacings, self.noises, self.sdes):
                shelf.installed.add(dist)
            self._try(entry.name, dist, entry.load)
        for module in self.catalogue.plugins:
            origin = self.catalogue.origins.get(("plugins", module))
            folder = None if origin is None else origin.resolve().parent
            self._try(module, module, lambda module=module, folder=folder: import_named(module, folder))  # type: ignore[misc]
        for plugin in dict.fromkeys(str(plugin) for plugin in plugins):
            self._add_named(plugin)

    def _try(self, name: str, dist: str, load: Callable[[], Any]) -> None:
        try:
            self.register(load(), name, dist)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # a plugin that exits or fails in any way must not take the others down
            self.plugins.append(Plugin(name, dist, f"{type(error).__name__}: {error}{last_place(error)}"))
        else:
            self.plugins.append(Plugin(name, dist))

    def _add_named(self, plugin: str) -> None:
        """Import and register a module or file that the user named; it must work."""
        file = Path(plugin).resolve() if plugin.endswith(".py") else None
        if file is not None and not file.is_file():
            raise UsageError(f"plugin {plugin}: there is no such file")
        name = plugin if file is None else file.stem
        try:
            module = import_named(plugin, None) if file is None else import_file(file)
            if self._manager.is_registered(module):
                return
            self.register(module, name, name)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            raise PluginError(f"plugin {plugin}: {type(error).__name__}: {error}{last_place(error)}") from error
        self.plugins.append(Plugin(name, name))
        registered_itself = any(item.function.__module__ == module.__name__ for item in _local.values())
        if not self._manager.get_hookcallers(module) and not registered_itself:
            raise PluginError(f"plugin {plugin} offers nothing: it needs @hookimpl def sdesamplers_samplers()")

    def register(self, plugin: Any, name: str, dist: str = "local") -> None:
        """Register a plugin object (a module or anything with hook implementations), whole or not at all.

        Raises:
            PluginError: a hook returned something that is not what it is for, or a name twice; or a function is no
                hook, for its name is misspelt or it lacks `@hookimpl`.
        """
        check_hooks(plugin)
        staged: list[tuple[Shelf[Any], str, Any]] = []
        manager = pluggy.PluginManager(GROUP)
        manager.add_hookspecs(HookSpecs)
        manager.register(plugin, name)
        hooks = manager.hook
        for items, cls, shelf in (
            (hooks.sdesamplers_samplers(), Sampler, self.samplers),
            (hooks.sdesamplers_spacings(), Spacing, self.spacings),
            (hooks.sdesamplers_noises(), NoiseSource, self.noises),
        ):
            for item in flattened(items):
                if not isinstance(item, cls):
                    decorator = shelf.kind.replace(" ", "_")
                    raise PluginError(f"a hook returned {item!r}, not a {shelf.kind}; is @{decorator} missing?")
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

    def adopt(self, items: Iterable[Sampler | Spacing | NoiseSource]) -> None:
        """Register a program's own plugins, in place of its earlier ones of the same names."""
        self._presets.clear()  # recipes may have been built with the earlier ones
        shelves: dict[type, Shelf[Any]] = {Sampler: self.samplers, Spacing: self.spacings, NoiseSource: self.noises}
        for item in items:
            item.plugin = item.plugin or "local"
            shelves[type(item)].put(item.name, item, "local")

    def load_model(self, source: str, options: dict[str, Any]) -> Any:
        """The first plugin's answer to `sdesamplers_load_model`, or None.

        Raises:
            PluginError: a plugin failed, with its file and line.
        """
        try:
            return self._manager.hook.sdesamplers_load_model(source=source, options=options)
        except SdesamplersError:
            raise
        except Exception as error:
            raise PluginError(
                f"a plugin failed to load {source!r}: {type(error).__name__}: {error}{last_place(error)}"
            ) from error

    def resolve(self, name: str) -> Preset:
        """Resolve a name to a sampler and what it is to be run with.

        Tried in this order: a registered sampler; a recipe, or a recipe named `head{option}` with the option's value
        in place of the braces; an alias; a peer's name, in the order of `peers` in the registry file, or `peer:name`
        for one peer's; and such a name followed by a space and a grid's name ("DPM++ 2M Karras").

        Raises:
            UnknownNameError: none of these; the nearest names are offered.
            UsageError: a peer's name that stands for nothing here, with the reason.
        """
        aliases = self.catalogue.aliases
        chain: list[str] = []
        while name in aliases and name not in self.samplers and name not in self.catalogue.recipes:
            if name in chain:
                where = self.catalogue.where("aliases", name)
                raise UsageError(f"{where}: the alias leads back to itself ({' -> '.join([*chain, name])})")
            chain.append(name)
            name = self._meant("aliases", name, aliases[name])
        found = self._own(name) or self._peers_sampler(name) or self._on_grid(name)
        if found is not None:
            return found
        kind = f"sampler of {self.catalogue.where('aliases', chain[-1])}:" if chain else "sampler"
        raise UnknownNameError(kind, name, self.candidates(name), self.hint())

    def sampler_names(self) -> list[str]:
        """Every name that `resolve` knows, ours first; of a recipe `head{option}` one for each choice of the option."""
        recipes: list[str] = []
        for pattern in self.catalogue.recipes:
            head, brace, _ = pattern.partition("{")
            recipes += [head + str(choice) for choice in self._choices(pattern)] if brace else [pattern]
        return [*self.samplers, *recipes, *self.catalogue.aliases, *self._peer_names("samplers")]

    def candidates(self, name: str) -> list[str]:
        """What a mistyped sampler's name may have meant: the nearest sampler on the nearest grids, or every name."""
        return self.composites(name) or self._names_beside(name)

    def composites(self, name: str) -> list[str]:
        """`SAMPLER GRID` labels near a mistyped one, each grid in the spelling that goes with its sampler."""
        words, peers = name.split(" "), self.catalogue.peers
        own = self._peer(name.partition(":")[0])
        names = self._names_beside(name)
        for cut in range(len(words) - 1, 0, -1):
            for label in nearest(" ".join(words[:cut]), names, 1):
                homes = [kinds for peer, kinds in peers.items() if peer == own or label in kinds.get("samplers", {})]
                grids = [grid for kinds in homes for grid in kinds.get("spacings", {})]
                found = nearest(" ".join(words[cut:]), [*grids, *self.grid_names()])
                if found:
                    return [f"{label} {grid}" for grid in found]
        return []

    def _names_beside(self, name: str) -> list[str]:
        """Every sampler's name, or of `peer:name` those of the peer."""
        peer, colon, _ = name.partition(":")
        own = self._peer(peer) if colon else None
        samplers = {} if own is None else self.catalogue.peers[own].get("samplers", {})
        return self.sampler_names() if own is None else [f"{own}:{known}" for known in samplers]

    def _choices(self, pattern: str) -> tuple[Any, ...]:
        """The values that may stand in place of the braces of a recipe's name, where they can be listed."""
        option = self._option(pattern)
        return typing.get_args(option.type) if option is not None and typing.get_origin(option.type) is Literal else ()

    def _option(self, pattern: str) -> Option | None:
        """The option in the braces of a recipe's name."""
        wanted = self._meant("recipes", pattern, self.catalogue.recipes[pattern]["sampler"])
        word = pattern.partition("{")[2].rstrip("}")
        return self.samplers[wanted].options.get(word) if wanted in self.samplers else None

    def _meant(self, section: str, name: str, target: str) -> str:
        """The sampler that an entry of the catalogue names; a shipped one means ours, whatever else has the name."""
        ours = f"{GROUP}:{target}"
        return ours if self.catalogue.origins.get((section, name)) == SHIPPED and ours in self.samplers else target

    def hint(self) -> str:
        """Where to look further when a name is not found."""
        broken = [p for p in self.plugins if p.error]
        return (
            f" ({len(broken)} plugin(s) are broken: see `sdesamplers doctor`)" if broken else "; see `sdesamplers list`"
        )

    def _own(self, name: str) -> Preset | None:
        """A registered sampler or a recipe, plain or with its option in its name."""
        if name in self.samplers:
            return Preset(self.samplers[name])
        recipes = self.catalogue.recipes
        if name in recipes:
            return self._built("recipes", name, recipes[name])
        for pattern, entry in recipes.items():
            head, brace, rest = pattern.partition("{")
            if brace and name.startswith(head) and len(name) > len(head):
                text, word, owner = name.removeprefix(head), rest.rstrip("}"), head.rstrip(":")
                option, choices = self._option(pattern), [str(choice) for choice in self._choices(pattern)]
                if choices and text not in choices:
                    listing = f" (known: {', '.join(choices)})"
                    raise UnknownNameError(word, text, choices, listing, opening=f"unknown {word} {text!r} of {owner}")
                value = text if option is None else option.parse(text, owner)
                filled = {**entry.get("options", {}), word: value}
                return self._built("recipes", pattern, {**entry, "options": filled}, key=name)
        return None

    def _peers_sampler(self, name: str) -> Preset | None:
        """What a peer's sampler is here; the first peer that has the name answers."""
        for peer, own, entry in self._peers_entries("samplers", name):
            names = self.catalogue.peers[peer]["samplers"]
            if isinstance(entry, str) and isinstance(names.get(entry), Mapping):  # another name of the same peer
                own, entry = entry, names[entry]
            if isinstance(entry, str):
                found = self._own(self._meant(f"peers.{peer}.samplers", own, self.catalogue.aliases.get(entry, entry)))
                if found is None:
                    raise UnknownNameError(f"sampler of {self._place(peer, 'samplers', own)}:", entry, self.samplers)
                return found
            return self._built(f"peers.{peer}.samplers", own, entry)
        return None

    def _peers_entries(self, kind: str, name: str) -> Iterator[tuple[str, str, str | dict[str, Any]]]:
        """(peer, its name, entry) of all peers with a name, or of the one in `peer:name`.

        Raises:
            UsageError: it stands for nothing here, with the reason.
        """
        head, _, bare = name.partition(":")
        peer = self._peer(head) if bare else None
        asked = dict.fromkeys(self.catalogue.peers, name) if peer is None else {peer: bare}
        refusal = None
        for peer, own in asked.items():
            entry = self.catalogue.peers[peer].get(kind, {}).get(own)
            if isinstance(entry, dict) and "reason" in entry:
                refusal = refusal or f"{own!r} of {peer} has nothing to stand for it here: {entry['reason']}"
            elif entry is not None:
                yield peer, own, entry
        if refusal is not None:
            raise UsageError(refusal)

    def _peer(self, name: str) -> str | None:
        """A peer by its name in upper or lower case."""
        return next((peer for peer in self.catalogue.peers if peer.casefold() == name.casefold()), None)

    def _peer_names(self, kind: str) -> list[str]:
        return [name for kinds in self.catalogue.peers.values() for name in kinds.get(kind, {})]

    def _place(self, peer: str, kind: str, name: str) -> str:
        return self.catalogue.where(f"peers.{peer}.{kind}", name)

    def _on_grid(self, name: str) -> Preset | None:
        """`SAMPLER GRID`, as A1111 labels them: the sampler on another grid; the longest sampler's name wins."""
        words = name.split(" ")
        for cut in range(len(words) - 1, 0, -1):
            label, tail = " ".join(words[:cut]), " ".join(words[cut:])
            head = self.catalogue.aliases.get(label, label)
            if tail not in self.grid_names():
                continue
            found = self._own(head) or self._peers_sampler(head)
            if found is not None:
                spacing, options = self.grid(tail)
                made = replace(found, spacing=spacing.name, spacing_options=options)
                return replace(made, description=self._regridded(label, tail, found, made))
        return None

    def _regridded(self, label: str, tail: str, before: Preset, after: Preset) -> str:
        """The description of `SAMPLER GRID`. A recipe's own tells of its grid, and is false on another."""
        moved = (before.spacing, before.spacing_options) != (after.spacing, after.spacing_options)
        of_recipes = {recipe.get("description") for recipe in self.catalogue.recipes.values()}
        note = "" if moved and before.description in of_recipes else before.description
        place = f", in place of {before.spacing}" if before.spacing not in (None, after.spacing) else ""
        return f"{label} on the grid {tail}{place}" + (f"; {note}" if note else "")

    def grid_names(self) -> list[str]:
        """Every name that `grid` knows, ours first."""
        return [*self.spacings, *self.catalogue.spacing_aliases, *self._peer_names("spacings")]

    def _built(self, section: str, name: str, entry: Mapping[str, Any], key: str | None = None) -> Preset:
        """The preset of a recipe, checked and built once."""
        place = section, key or name
        if place not in self._presets:
            meant = {**entry, "sampler": self._meant(section, name, entry["sampler"])}
            self._presets[place] = self._build(meant, self.catalogue.where(section, name))
        return self._presets[place]

    def _build(self, recipe: Mapping[str, Any], where: str) -> Preset:
        entry = dict(recipe)
        wanted, grid, noise = entry.pop("sampler"), entry.get("spacing"), entry.get("noise")
        if wanted not in self.samplers:
            raise UnknownNameError(f"sampler of {where}:", wanted, self.samplers)
        sampler = self.samplers[wanted]
        entry["options"] = check_options(entry.get("options", {}), sampler.options, where)
        if grid is not None:
            found = self._grid(grid)
            if found is None:
                raise UnknownNameError(f"spacing of {where}:", grid, self.spacings)
            options = {**found[1], **entry.get("spacing_options", {})}
            entry["spacing"] = found[0].name
            entry["spacing_options"] = check_options(options, found[0].options, where)
        if noise is not None:
            source = self._noise(noise)
            if source is None:
                raise UnknownNameError(f"noise source of {where}:", noise, self.noises)
            options = {**source[1], **entry.get("noise_options", {})}
            entry["noise"] = source[0].name
            entry["noise_options"] = check_options(options, source[0].options, where)
        return Preset(sampler, **entry)

    def spacing(self, name: str) -> Spacing:
        """A spacing by its name or another one."""
        return self.grid(name)[0]

    def grid(self, name: str) -> tuple[Spacing, dict[str, Any]]:
        """A spacing and the options that its name stands for: a registered spacing, an alias or a peer's name.

        Raises:
            UnknownNameError: none of these; the nearest names are offered.
            UsageError: a peer's name that stands for nothing here, with the reason.
        """
        found = self._grid(name)
        if found is None:
            raise UnknownNameError("spacing", name, self.grid_names())
        return found

    def _grid(self, name: str) -> tuple[Spacing, dict[str, Any]] | None:
        if name in self.spacings:
            return self.spacings[name], {}
        if name in self.catalogue.spacing_aliases:
            entry = self.catalogue.spacing_aliases[name]
            return chosen_entry(entry, "spacing", self.spacings, self.catalogue.where("spacing_aliases", name))
        for peer, own, entry in self._peers_entries("spacings", name):
            return chosen_entry(entry, "spacing", self.spacings, self._place(peer, "spacings", own))
        return None

    def noise(self, name: str) -> tuple[NoiseSource, dict[str, Any]]:
        """A noise source and the options that its name stands for: a registered one or an alias.

        Raises:
            UnknownNameError: neither; the nearest names are offered.
        """
        found = self._noise(name)
        if found is None:
            known = [*self.noises, *self.catalogue.noise_aliases]
            there = ", ".join(repr(source) for source in self.noises)
            raise UnknownNameError("noise source", name, known, f" (there are {there})")
        return found

    def _noise(self, name: str) -> tuple[NoiseSource, dict[str, Any]] | None:
        if name in self.noises:
            return self.noises[name], {}
        if name in self.catalogue.noise_aliases:
            entry = self.catalogue.noise_aliases[name]
            return chosen_entry(entry, "noise", self.noises, self.catalogue.where("noise_aliases", name))
        return None


_lock = threading.RLock()  # a plugin that is being imported may call `register`
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


@public
def use_registry(file: str | Path | None, *, plugins: Sequence[str | Path] = ()) -> Registry:
    """Rebuild the process-wide registry with a registry file and plugins on top; None alone brings the plain one back.

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

    A name that this program has registered before is replaced, as a notebook needs; a name of another distribution
    then has to be picked as `dist:name`.
    """

    if not all(isinstance(item, Sampler | Spacing | NoiseSource) for item in items):
        raise PluginError("register takes objects made by @sampler, @spacing or @noise_source")
    names = [(type(item).__name__, item.name) for item in items]
    if len(set(names)) < len(names):
        raise PluginError("register was given two items of the same name")
    catalogue = default_registry().catalogue
    for item in items:
        if isinstance(item, Sampler) and (item.name in catalogue.recipes or item.name in catalogue.aliases):
            raise PluginError(f"{item.name!r} is a recipe or an alias already, which a sampler of this name would hide")
    for item in items:
        _local[type(item).__name__, item.name] = item
    default_registry().adopt(items)


# Pickles


def _shelf(kind: str) -> Mapping[str, Registered]:
    """What is registered of a kind."""
    registry = default_registry()
    shelves: dict[str, Mapping[str, Registered]]
    shelves = {"sampler": registry.samplers, "spacing": registry.spacings, "noise source": registry.noises}
    return shelves[kind]


def _reduced(item: Registered) -> str | tuple[Any, ...]:
    """A pickled object is its place in its module, as a function is, or in the registry; so results can be pickled.

    Raises:
        UsageError: it has neither.
    """
    module = sys.modules.get(item.__module__)
    place = next((word for word, value in vars(module).items() if value is item), None) if module else None
    if place is not None:
        return place
    name = next((name for name, other in _shelf(item.kind).items() if other is item), None)
    if name is None:
        raise UsageError(
            f"{item.kind} {item.name!r} cannot be pickled: it has no name at the top level of its module, and it "
            "is not registered"
        )
    return _registered, (item.kind, name)


def _registered(kind: str, name: str) -> Registered:
    """What a pickle of a registered object without a place in its module stands for.

    Raises:
        UnknownNameError: the process that reads the pickle has not registered it.
    """
    shelf = _shelf(kind)
    if name not in shelf:
        raise UnknownNameError(kind, name, shelf, "; the pickle is of a process that had registered it")
    return shelf[name]


for _kind in (Sampler, Spacing, NoiseSource):
    copyreg.pickle(_kind, _reduced)
