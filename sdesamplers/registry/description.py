"""Registered items as plain data for JSON, and back: a listing then needs no import of the plugins."""

from __future__ import annotations

import collections.abc
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, NoReturn

from ..errors import PluginError
from .options import Option
from .plugin import NoiseSource, Registered, Sampler, Spacing

KINDS: dict[str, type[Registered]] = {cls.kind: cls for cls in (Sampler, Spacing, NoiseSource)}
LITERAL: Any = Literal
UNION: Any = typing.Union
TYPES: dict[str, Any] = {t.__name__: t for t in (int, float, bool, str)} | {"None": type(None), "...": ...}
GENERICS: dict[str, Any] = {"Sequence[]": collections.abc.Sequence, "list[]": list, "tuple[]": tuple}


def describe(item: Registered) -> dict[str, Any]:
    """An item's attributes, without its function, as data that JSON can hold.

    Raises:
        TypeError: an attribute, or the default of an option, is of a type that `rebuild` could not return unchanged.
    """
    return {"kind": item.kind, **{k: _encoded(v) for k, v in vars(item).items() if k != "function"}}


def rebuild(data: Mapping[str, Any]) -> Registered:
    """An item with the attributes that `describe` has returned. It can be described but not run.

    Raises:
        KeyError, TypeError, ValueError: not the data of an item.
    """
    cls = KINDS[data["kind"]]
    item = cls.__new__(cls)
    vars(item).update({key: _decoded(value) for key, value in data.items() if key != "kind"}, function=absent)
    return item


def absent(*args: Any, **kwargs: Any) -> NoReturn:
    """Stands in for the function of an item, which is in a plugin that was not imported."""
    raise PluginError("this item was read from the cache of descriptions, and cannot be run")


def _encoded(value: Any) -> Any:
    """Plain values as they are; anything else as a mapping of one key, which names what it is."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [_encoded(part) for part in value]
    if type(value) is tuple:
        return {"tuple": [_encoded(part) for part in value]}
    if type(value) is dict:
        return {"dict": [[_encoded(key), _encoded(part)] for key, part in value.items()]}
    if type(value) is Option:
        return {"option": [value.name, _encoded(value.type), _encoded(value.default)]}
    return _encoded_type(value)


def _encoded_type(kind: Any) -> Any:
    """The type of an option."""
    for name, known in TYPES.items():
        if kind is known:
            return {"type": name}
    origin, parts = typing.get_origin(kind), [_encoded(part) for part in typing.get_args(kind)]
    if origin is LITERAL:
        return {"literal": parts}
    if origin in (UNION, types.UnionType):
        return {"union": parts}
    for name, known in GENERICS.items():
        if origin is known:
            return {name: parts}
    raise TypeError(f"{kind!r} cannot be described")


def _decoded(value: Any) -> Any:
    """The value that `_encoded` has returned as data."""
    if isinstance(value, list):
        return [_decoded(part) for part in value]
    if not isinstance(value, dict):
        return value
    ((form, content),) = value.items()
    if form == "type":
        return TYPES[content]
    if form == "dict":
        return {_decoded(key): _decoded(part) for key, part in content}
    parts = tuple(_decoded(part) for part in content)
    if form == "option":
        return Option(*parts)
    if form == "literal":
        return LITERAL[parts]
    if form == "union":
        return UNION[parts]
    return parts if form == "tuple" else GENERICS[form][parts]
