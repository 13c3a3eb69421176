"""The registry for commands that only describe what is registered, from a snapshot if there is a valid one."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from . import registry
from .catalogue import Catalogue, load_catalogue
from .description import absent, describe, rebuild
from .discovery import Plugin
from .registry import Registry
from .shelf import Shelf
from .snapshot import read_snapshot, write_snapshot


class DescribedRegistry(Registry):
    """A registry whose plugins are not imported: its items have all attributes except their functions.

    Args:
        content: what `content_of` has returned.
        catalogue: the registry files, which list no plugins.

    Raises:
        KeyError, TypeError, ValueError: not such a content.
    """

    def __init__(self, content: Mapping[str, Any], catalogue: Catalogue) -> None:
        self._content = content
        super().__init__(catalogue=catalogue)

    def _add_installed(self) -> None:
        for shelf in _shelves(self):
            shelf.installed.update(self._content["dists"])
            made: dict[int, Any] = {}
            for name, dist, number, data in self._content[shelf.kind]:
                if number not in made:
                    made[number] = partial(absent) if data is None else rebuild(data)
                shelf.put(name, made[number], dist)
        self.plugins.extend(Plugin(name, dist) for name, dist in self._content["plugins"])


def content_of(full: Registry) -> dict[str, Any] | None:
    """The content of a snapshot of a registry; None if one of its plugins is broken or cannot be described.

    Items are numbered, since a name is ambiguous only if two distributions have different items under it.
    """
    if full.catalogue.plugins or any(plugin.error for plugin in full.plugins):
        return None
    content: dict[str, Any] = {"dists": sorted(full.samplers.installed)}
    content["plugins"] = [[plugin.name, plugin.dist] for plugin in full.plugins]
    try:
        for shelf in _shelves(full):
            with_data = shelf is not full.sdes
            numbers: dict[int, int] = {}
            content[shelf.kind] = [
                [name, dist, numbers.setdefault(id(item), len(numbers)), describe(item) if with_data else None]
                for name, dist, item in shelf.entries()
            ]
    except TypeError:
        return None
    return content


def _shelves(full: Registry) -> tuple[Shelf[Any], ...]:
    return full.samplers, full.spacings, full.noises, full.sdes


def registry_to_describe(file: str | Path | None = None, plugins: Sequence[str | Path] = ()) -> Registry:
    """The process-wide registry or, if it has not been built yet, one that may lack the items' functions.

    Args:
        file, plugins: as in `use_registry`; plugins that the user names are imported.
    """
    if plugins or registry.in_use():
        named = file is not None or plugins
        return registry.use_registry(file, plugins=plugins) if named else registry.default_registry()
    catalogue = load_catalogue(file)
    content = None if catalogue.plugins else read_snapshot()
    if content is not None:
        try:
            return DescribedRegistry(content, catalogue)
        except (LookupError, TypeError, ValueError, AttributeError):  # written by another release of the same version
            pass
    fresh = "torch" not in sys.modules  # a process with torch may be old, and its modules older than their files
    full = Registry(catalogue=catalogue)
    unchanged = not registry.in_use()  # a plugin may register items when it is imported
    full.adopt(registry.local_items())
    if fresh and unchanged and (content := content_of(full)) is not None:
        write_snapshot(content)
    return full
