"""Discovery of plugins: finding, importing, checking and registering them."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pluggy

from ..errors import PluginError, SdesamplersError, UnknownHookError, UsageError, last_place, summary
from ..io.log import logger
from .catalogue import Catalogue
from .hooks import GROUP, HookSpecs
from .plugin import NoiseSource, Registered, Sampler, Spacing
from .shelf import Shelf, T


@dataclass(frozen=True)
class Plugin:
    """A plugin that was found: its name, its distribution and, if it is broken, the error."""

    name: str
    dist: str
    error: str | None = None


def check_hooks(plugin: Any) -> None:
    """Raise PluginError if a plugin has a hook that would never be called: misspelt, or without `@hookimpl`."""
    known = [name for name in vars(HookSpecs) if name.startswith(f"{GROUP}_")]
    for name in dir(plugin):
        if name.startswith("__") or not callable(function := getattr(plugin, name, None)):
            continue
        marks = getattr(function, f"{GROUP}_impl", None)
        if isinstance(marks, dict) and not marks["optionalhook"]:
            meant = marks["specname"] or name
            if meant not in known:
                raise UnknownHookError("hook", meant, known, f" (known: {', '.join(known)})")
        elif name in known and marks is None and isinstance(function, FunctionType):
            raise PluginError(f"{name} lacks @hookimpl, so it would never be called")


def returned(hook: Any, kind: type, wanted: str) -> list[Any]:
    """Call a plugin's hook, if it has one, and return the result in a list.

    Raises:
        PluginError: the hook returned None, for example without a `return`, or neither a `kind` nor, for lists, another
            collection.
    """
    if not hook.get_hookimpls():
        return []
    found = hook()
    if not found:  # pluggy leaves out None
        raise PluginError(f"{hook.name} returned None; is `return` missing? It must return {wanted}")
    for result in found:
        if not isinstance(result, dict if kind is dict else Iterable) or isinstance(result, str):
            shown = repr(result) if isinstance(result, Registered) else type(result).__name__
            raise PluginError(f"{hook.name} returned {shown}; it must return {wanted}")
    return list(found)


def _not_registered(item: Any, kind: str) -> str:
    """The message about an item of a hook that is not of its kind."""
    decorator = kind.replace(" ", "_")
    article = "an" if kind[0] in "aeiou" else "a"
    if isinstance(item, Registered):
        hooks = {"sampler": "samplers", "spacing": "spacings", "noise source": "noises"}
        return f"a hook for {kind}s returned {item!r}; return it from sdesamplers_{hooks[item.kind]}"
    found = f"the function {item.__name__}" if isinstance(item, FunctionType) else repr(item)
    return f"a hook returned {found}, not {article} {kind}; is @{decorator} missing?"


def flattened(results: Iterable[Iterable[T]]) -> Iterator[T]:
    """The items that all of a hook's implementations returned, one after the other."""
    for result in results:
        yield from result


@contextmanager
def _importable_from(folder: Path | None) -> Iterator[None]:
    """Context in which modules in a folder can be imported, like those in the folder of a script."""
    if folder is None:
        yield
        return
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def import_named(module: str, folder: Path | None) -> ModuleType:
    """Import a module by name, also from `folder`."""
    with _importable_from(folder):
        return importlib.import_module(module)


def import_file(file: Path) -> ModuleType:
    """Import a Python file, once, under its own name unless another module has this name."""
    name = re.sub(r"\W", "_", file.stem)
    if (there := sys.modules.get(name)) is not None:
        own = getattr(there, "__file__", None) == str(file)
    else:
        found = importlib.util.find_spec(name)
        own = found is None or found.origin == str(file)
    if not own:
        name = f"sdesamplers_file_{name}"
        there = sys.modules.get(name)
    if there is not None and getattr(there, "__file__", None) == str(file):
        return there
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with _importable_from(file.parent):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


class Discovery:
    """Finds plugins, imports them and registers their items on the shelves.

    Args:
        samplers, spacings, noises, sdes: the shelves to fill.

    Attributes:
        plugins: the plugins that were found, including broken ones with their errors.
    """

    def __init__(
        self,
        samplers: Shelf[Sampler],
        spacings: Shelf[Spacing],
        noises: Shelf[NoiseSource],
        sdes: Shelf[Callable[..., Any]],
    ) -> None:
        self.samplers, self.spacings, self.noises, self.sdes = samplers, spacings, noises, sdes
        self.plugins: list[Plugin] = []
        self._manager = _manager()

    def add_installed(self) -> None:
        """Register the plugins of installed distributions, by entry point; a broken one is listed with its error."""
        for entry in sorted(entry_points(group=GROUP), key=lambda e: (e.name, e.value)):
            dist = entry.dist.name if entry.dist is not None else entry.value
            for shelf in (self.samplers, self.spacings, self.noises, self.sdes):
                shelf.installed.add(dist)
            self._try(entry.name, dist, entry.load)

    def add_listed(self, catalogue: Catalogue) -> None:
        """Register the modules that registry files list; a broken one is listed with its error."""
        for module in catalogue.plugins:
            origin = catalogue.origins.get(("plugins", module))
            folder = None if origin is None else origin.resolve().parent
            self._try(module, module, partial(import_named, module, folder))

    def _try(self, name: str, dist: str, load: Callable[[], Any]) -> None:
        try:
            self.register(load(), name, dist)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # a plugin that exits or fails in any way must not take the others down
            self.plugins.append(Plugin(name, dist, f"{summary(error)}{last_place(error)}"))
            logger.info("plugin %s of %s is broken: %s", name, dist, self.plugins[-1].error)
        else:
            self.plugins.append(Plugin(name, dist))
            logger.debug("plugin %s of %s is registered", name, dist)

    def add_named(self, plugin: str, own: Collection[Registered]) -> None:
        """Import and register a module or file that the user named; unlike for other plugins, errors are raised.

        Args:
            own: items registered with `register`, which the module may call when it is imported.

        Raises:
            UsageError: the file does not exist.
            PluginError: the plugin cannot be imported, or registers nothing.
        """
        file = Path(plugin).resolve() if plugin.endswith(".py") else None
        if file is not None and not file.is_file():
            raise UsageError(f"plugin {plugin}: no such file")
        name = plugin if file is None else file.stem
        try:
            module = import_named(plugin, None) if file is None else import_file(file)
            if self._manager.is_registered(module):
                return
            self.register(module, name, name)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            raise PluginError(f"plugin {plugin}: {summary(error)}{last_place(error)}") from error
        self.plugins.append(Plugin(name, name))
        registered_itself = any(item.function.__module__ == module.__name__ for item in own)
        if not self._manager.get_hookcallers(module) and not registered_itself:
            raise PluginError(
                f"plugin {plugin} registers nothing: it needs a hook such as @hookimpl def sdesamplers_samplers()"
            )

    def register(self, plugin: Any, name: str, dist: str) -> None:
        """Register a plugin object (a module or anything with hook implementations) atomically: all its items or none.

        Raises:
            PluginError: a hook returned an object of the wrong type, or a name twice; or a function is not a valid
                hook, because its name is misspelt or it lacks `@hookimpl`.
        """
        check_hooks(plugin)
        staged = self._offered(plugin, name, dist)
        seen: set[tuple[str, str]] = set()
        for shelf, key, _ in staged:
            if (shelf.kind, key) in seen or shelf.has(key, dist):
                raise PluginError(f"{dist} registers {shelf.kind} {key!r} twice")
            seen.add((shelf.kind, key))
        self._manager.register(plugin, f"{dist}:{name}")
        for shelf, key, item in staged:
            shelf.put(key, item, dist)

    def _offered(self, plugin: Any, name: str, dist: str) -> list[tuple[Shelf[Any], str, Any]]:
        """(shelf, name, item) of all items that a plugin's hooks return; sets their `plugin` attribute."""
        manager = _manager()
        manager.register(plugin, name)
        hooks = manager.hook
        offered: list[tuple[Shelf[Any], str, Any]] = []
        for hook, cls, shelf in (
            (hooks.sdesamplers_samplers, Sampler, self.samplers),
            (hooks.sdesamplers_spacings, Spacing, self.spacings),
            (hooks.sdesamplers_noises, NoiseSource, self.noises),
        ):
            for item in flattened(returned(hook, list, "a list of items, such as [my_item]")):
                if not isinstance(item, cls):
                    raise PluginError(_not_registered(item, shelf.kind))
                item.plugin = f"{dist}:{name}" if dist != name else name
                offered.append((shelf, item.name, item))
        for processes in returned(hooks.sdesamplers_sdes, dict, 'a dictionary, such as {"my-process": MyProcess}'):
            offered.extend((self.sdes, key, process) for key, process in processes.items())
        return offered

    def load_model(self, source: str, options: dict[str, Any]) -> Any:
        """Return the model from the first plugin whose `sdesamplers_load_model` returns one, or None.

        Raises:
            PluginError: a plugin failed; the message has its file and line.
        """
        try:
            return self._manager.hook.sdesamplers_load_model(source=source, options=options)
        except SdesamplersError:
            raise
        except Exception as error:
            raise PluginError(
                f"a plugin failed to load {source!r}: {type(error).__name__}: {error}{last_place(error)}"
            ) from error


def _manager() -> pluggy.PluginManager:
    """An empty plugin manager with our hook specifications."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(HookSpecs)
    return manager
