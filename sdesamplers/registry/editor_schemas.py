"""The JSON Schemas with which editors check and complete recipes and registry files: names, options, descriptions.

They are `schema.SCHEMA` and `schema.RECIPE_SCHEMA` with the names that are registered. Those with the library's own
names are in the folder `schemas`, and the documentation site serves them; `sdesamplers schema` prints those of an
installation, with its plugins.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from .options import Option
from .plugin import Registered
from .registry import Registry
from .schema import ADDRESSES, RECIPE_SCHEMA, SCHEMA

Schema = dict[str, Any]

DIALECT = "http://json-schema.org/draft-07/schema#"
"""The newest dialect that the common language servers of YAML and JSON support."""
ARGUMENT = re.compile(r"^ {4}(?P<names>\w+(?:, \w+)*): (?P<text>.+(?:\n {8}.+)*)", re.MULTILINE)
PLAIN_TYPES = {float: "number", int: "integer", bool: "boolean", str: "string", None: "null", type(None): "null"}


def recipe_schema(registry: Registry, only_built_in: bool = False) -> Schema:
    """The schema of a recipe's file, with the registered names, or with the library's own."""
    kept = _kept(registry.samplers, only_built_in)
    names = [name for name in registry.sampler_names() if name in kept or name not in registry.samplers]
    schema = {**copy.deepcopy(RECIPE_SCHEMA), "not": {"anyOf": [{"required": pair} for pair in EXCLUSIVE]}}
    schema = _with_names(schema, registry, names, only_built_in)
    return _headed("recipe", "A recipe of sdesamplers", schema)


def registry_schema(registry: Registry, only_built_in: bool = False) -> Schema:
    """The schema of a registry file, with the registered names, or with the library's own."""
    schema = copy.deepcopy(SCHEMA)
    recipes = schema["properties"]["recipes"]
    names = _kept(registry.samplers, only_built_in)
    recipe = _with_names(recipes["additionalProperties"]["then"], registry, names, only_built_in)
    recipes["additionalProperties"]["then"] = {"$ref": "#/definitions/recipe"}
    peer = schema["properties"]["peers"]["additionalProperties"]["properties"]["samplers"]
    peer["additionalProperties"]["then"]["else"] = {"$ref": "#/definitions/recipe"}
    schema["definitions"] = {"recipe": recipe}
    return _headed("registry", "A registry file of sdesamplers", schema)


SCHEMAS: Mapping[str, Callable[..., Schema]] = {"recipe": recipe_schema, "registry": registry_schema}
EXCLUSIVE = (["steps", "times"], ["steps", "sigmas"], ["times", "sigmas"])
"""Pairs of keys that cannot be set together."""


def _headed(name: str, title: str, schema: Schema) -> Schema:
    return {"$schema": DIALECT, "$id": ADDRESSES[name], "title": title, **schema}


def _kept(shelf: Mapping[str, Any], only_built_in: bool) -> dict[str, Registered]:
    return {name: item for name, item in shelf.items() if item.is_built_in or not only_built_in}


def _with_names(schema: Schema, registry: Registry, samplers: Iterable[str], only_built_in: bool) -> Schema:
    """The schema of a recipe with names of samplers, spacings and noise sources to choose from, and their options.

    Names of plugins that are not installed are valid too.
    """
    properties, spacings = schema["properties"], _kept(registry.spacings, only_built_in)
    grids = [name for name in registry.grid_names() if name in spacings or name not in registry.spacings]
    noises = _kept(registry.noises, only_built_in)
    names = {"sampler": samplers, "spacing": grids, "noise": [*noises, *registry.catalogue.noise_aliases]}
    for key, known in names.items():
        text = properties[key].pop("description")
        listed = {"enum": list(dict.fromkeys(known))}
        properties[key] = {"description": text, "anyOf": [listed, {"type": "string"}]}
    shelves: Mapping[str, tuple[str, Mapping[str, Registered]]] = {
        "sampler": ("options", _kept(registry.samplers, only_built_in)),
        "spacing": ("spacing_options", spacings),
        "noise": ("noise_options", noises),
    }
    schema["allOf"] = [
        _options_of(key, name, item, options)
        for key, (options, shelf) in shelves.items()
        for name, item in shelf.items()
    ]
    return schema


def _options_of(key: str, name: str, item: Registered, options: str) -> Schema:
    """If `key` is `name`, the options are those of the item."""
    texts = described(item.__doc__ or "")
    known = {option.name: _option(option, texts.get(option.name, "")) for option in item.options.values()}
    return {
        "if": {"required": [key], "properties": {key: {"const": name}}},
        "then": {"properties": {options: {"properties": known, "additionalProperties": False}}},
    }


def described(docstring: str) -> dict[str, str]:
    """The descriptions of a docstring's Args section, by name."""
    _, _, section = inspect.cleandoc(docstring).partition("\nArgs:\n")
    texts: dict[str, str] = {}
    for found in ARGUMENT.finditer(section):
        texts |= dict.fromkeys(found["names"].split(", "), " ".join(found["text"].split()))
    return texts


def _option(option: Option, text: str) -> Schema:
    """The schema of an option's values."""
    kinds = [_values(kind) for kind in option.kinds]
    schema = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    if text:
        schema = {"description": text, **schema}
    default = list(option.default) if isinstance(option.default, tuple) else option.default
    if isinstance(default, float) and not math.isfinite(default):  # JSON has no infinity
        return schema
    return {**schema, "default": default}


def _values(kind: Any) -> Schema:
    """The schema of the values of a type."""
    if typing.get_origin(kind) is Literal:
        return {"enum": list(typing.get_args(kind))}
    if kind in PLAIN_TYPES:
        return {"type": PLAIN_TYPES[kind]}
    inner = [_values(part) for part in dict.fromkeys(typing.get_args(kind)) if part is not ...]
    return {"type": "array", "items": inner[0] if len(inner) == 1 else {"anyOf": inner}}
