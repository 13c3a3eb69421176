"""A recipe's file: YAML or JSON data with the address of their schema, checked key by key; nothing in it is run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import UnknownNameError, UsageError
from ..hub.address import Address
from ..registry.hooks import GROUP
from ..registry.options import check_written
from ..registry.plain_yaml import dump, parse, read_text
from ..registry.plugin import Registered
from ..registry.recipe_data import missing, recipe_in
from ..registry.registry import default_registry
from ..registry.schema import ADDRESSES, RECIPE_SCHEMA
from ..registry.validation import line_of

YAML, JSON = (".yaml", ".yml"), (".json",)
KINDS = {"sampler": "sampler", "spacing": "spacing", "noise": "noise source"}
"""Keys that name a registered item, and what the item is called."""


def as_text(settings: Mapping[str, Any], items: Iterable[Registered], suffix: str = YAML[0]) -> str:
    """The content of a recipe's file.

    Args:
        settings: the recipe as plain data, of which null and empty values are omitted.
        items: its sampler, spacing and noise source, whose packages the file names.
        suffix: .yaml or .json.
    """
    order = {key: settings[key] for key in RECIPE_SCHEMA["properties"] if settings.get(key) not in (None, {}, (), "")}
    data = {"$schema": ADDRESSES["recipe"], **_plain(order)}
    if needed := required(items):
        data["requires"] = needed
    if suffix in JSON:
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    return f"# yaml-language-server: $schema={ADDRESSES['recipe']}\n{dump(data)}"


def check_suffix(path: Path) -> str:
    """The ending of a recipe's file.

    Raises:
        UsageError: neither .yaml, .yml nor .json.
    """
    if path.suffix.lower() not in (*YAML, *JSON):
        raise UsageError(f"a recipe's file ends in .yaml, .yml or .json, unlike {path.name!r}")
    return path.suffix.lower()


def from_file(file: Path, address: Address | None = None) -> dict[str, Any]:
    """Read and check a recipe's file, the manifest of a job or the output of `sample --json`; return plain data.

    Args:
        file: the file.
        address: of a file from the Hub, for messages.

    Raises:
        UnknownNameError: a key that recipes do not have, or a name of a plugin that is not installed; with the line.
        UsageError: unreadable, not YAML or JSON, or not a recipe; with file and line.
    """
    shown = file if address is None else address
    text = read_text(file)
    data, above = recipe_in(parse(text, shown), text, shown)
    check_names(data, shown, text, above)
    return {key: value for key, value in data.items() if key != "requires"}


def check_names(data: Mapping[str, Any], file: object, text: str, above: tuple[str, ...] = ()) -> None:
    """Raise, with the line, if a recipe names an item or an option that is not registered, or misses a plugin.

    A name may be registered by another plugin than the required one, so every required plugin must be there.
    """
    registry = default_registry()
    find: dict[str, Callable[[str], Any]] = {
        "sampler": lambda name: registry.resolve(name).sampler,
        "spacing": lambda name: registry.grid(name)[0],
        "noise": lambda name: registry.noise(name)[0],
    }

    def place(*keys: str) -> str:
        keys = (*above, *keys)
        return f"{file}:{line_of(text, [*keys])}: {'.'.join(keys)}"

    reason = missing(data.get("requires") or {}, registry.plugins)
    items: dict[str, Registered] = {}
    for key, kind in KINDS.items():
        name = str(data.get(key, ""))
        try:
            if name:
                items[key] = find[key](name)
        except UnknownNameError as unknown:
            if reason:
                raise UnknownNameError(
                    kind, name, (), f"; {reason}", opening=f"{place(key)}: unknown {kind} {name!r}"
                ) from None
            unknown.put_before(place(key))
            raise
    if reason:
        raise UsageError(f"{place('requires')}: {reason}")
    for key, item in items.items():
        options = "options" if key == "sampler" else f"{key}_options"
        check_written(data.get(options) or {}, item.options, f"{item.kind} {item.name!r}", partial(place, options))


def required(items: Iterable[Registered]) -> dict[str, str]:
    """The packages or modules whose plugins provide these items, with their versions ("" if unknown).

    This library and items that the running program has registered itself are omitted.
    """
    packages = {item.plugin.partition(":")[0] for item in items} - {GROUP, "local", ""}
    return {package: version_of(package) or "" for package in sorted(packages)}


def version_of(package: str) -> str | None:
    """The version of an installed package, if there is one."""
    try:
        return version(package)
    except (PackageNotFoundError, ValueError):
        return None


def _plain(value: Any) -> Any:
    """Lists and dictionaries in place of other sequences and mappings."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
