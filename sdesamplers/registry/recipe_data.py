"""The data of a recipe in a file: found, checked key by key, and the plugins that it requires."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .schema import RECIPE_SCHEMA
from .validation import check_data, kind_of, line_of

if TYPE_CHECKING:
    from .discovery import Plugin

NESTED = "recipe"
"""The key of the recipe in the manifest of a job, and in the output of `sample --json`."""
GRIDS = ("steps", "times", "sigmas")
"""Keys of which a recipe has at most one."""
PINNED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.+!_-]*")
"""A package and its version. What a recipe of another person requires may be anything else, and a message that has a
command of it would be pasted into a shell."""
REASONS = {"required": "a recipe's file needs the key 'sampler'"}
RECORDED = {**RECIPE_SCHEMA, "properties": {**RECIPE_SCHEMA["properties"], "source": {"type": ["string", "null"]}}}
"""Of a recipe that a run has recorded, which may have the address of its file."""
MANIFEST = {"type": "object", "required": [NESTED], "properties": {NESTED: RECORDED}}


def recipe_in(data: Any, text: str, file: object) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The recipe in the data of a file, and the keys above it: none, or "recipe" in the manifest of a job.

    Args:
        data, text: the file's data, and the text that they were read from.
        file: its path or address, for messages.

    Raises:
        UnknownNameError: a key that recipes do not have; with file and line.
        UsageError: not a recipe; with file and line.
    """
    if not isinstance(data, dict):
        raise UsageError(f"{file}:1: a recipe's file is a mapping with the key 'sampler'; this one is {kind_of(data)}")
    above = (NESTED,) if isinstance(data.get(NESTED), dict) else ()
    check_data(data, text, file, MANIFEST if above else RECIPE_SCHEMA, REASONS)
    found: dict[str, Any] = data[NESTED] if above else data
    check_grids(found, text, file, above)
    return {key: value for key, value in found.items() if key != "$schema"}, above


def check_grids(recipe: Mapping[str, Any], text: str, file: object, above: tuple[str, ...]) -> None:
    """Raise a UsageError if a recipe has two grids, or has settings of a grid for a grid that it lists.

    `above` are the keys above it in the file.
    """
    first, *others = [key for key in GRIDS if recipe.get(key) is not None] or [""]
    if first in ("times", "sigmas"):
        others += [key for key in ("spacing", "start_time") if recipe.get(key) is not None]
    for key in others:
        lines = [line_of(text, [*above, each]) for each in (key, first)]
        raise UsageError(
            f"{file}:{lines[0]}: {'.'.join((*above, key))}: contradicts {first} in line {lines[1]}; keep one of them"
        )


def missing(needed: Mapping[str, str], plugins: Iterable[Plugin]) -> str:
    """Which of the plugins that a recipe requires are not there or broken, and how they are added; "" if none."""
    found, there = [], list(plugins)
    for package, wanted in needed.items():
        same = [plugin for plugin in there if plugin.dist == package]
        broken = next((plugin.error for plugin in same if plugin.error), None)
        if broken is not None:
            found.append(f"the recipe requires the plugin {package}, which is broken: {broken}")
        elif not same and wanted:
            pinned = f"{package}=={wanted}"
            cure = f": pip install {pinned}" if PINNED.fullmatch(pinned) else ""
            found.append(f"the recipe requires the plugin {package} {wanted}, which is not installed{cure}")
        elif not same:  # a file or module that was named in place of an installed package has no version
            found.append(
                f"the recipe requires the plugin {package}, which is not installed: pass --plugin "
                f"{shlex.quote(package + '.py')}, or in Python sds.use_registry(None, plugins=[{package + '.py'!r}])"
            )
    return " and ".join(found)
