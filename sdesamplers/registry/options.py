"""Options: the keyword-only parameters of a sampler, spacing or noise source, read from its signature."""

from __future__ import annotations

import inspect
import json
import math
import operator
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import PluginError, UnknownNameError, UsageError, nearest
from .foreign import LOADED, equivalent_here

other_owners: list[Callable[[str, str], list[str]]] = []
"""Functions of a kind ("sampler", "spacing", "noise") and an option's name that return the registered items with this
option. `registry.py`, which imports this module, adds one."""
MOST_LISTED = 6
"""The largest number of samplers that a message lists."""


@dataclass(frozen=True)
class Option:
    """One option: its name, type and default, all taken from the function's signature."""

    name: str
    type: Any
    default: Any

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types of a union, or the one type."""
        origin = typing.get_origin(self.type)
        return typing.get_args(self.type) if origin in (typing.Union, types.UnionType) else (self.type,)

    @property
    def type_name(self) -> str:
        """The type as users write it: `float`, `"posterior" | "beta"`."""
        return " | ".join(_named(kind) for kind in self.kinds)

    def check(self, value: Any, owner: str) -> Any:
        """Return `value` as the option's type. An int is converted to float if needed, a range or array to a list.

        Raises:
            UsageError: the value has another type.
        """
        if any(map(_is_numbers, self.kinds)):
            value = _as_list(value)
        for kind in self.kinds:
            if typing.get_origin(kind) is Literal:
                if any(type(value) is type(choice) and value == choice for choice in typing.get_args(kind)):
                    return value
            elif kind in (None, type(None)):
                if value is None:
                    return value
            elif kind is float:
                if isinstance(value, int | float) and not isinstance(value, bool):
                    return self._as_float(value, owner)
            elif _is_numbers(kind):
                if _holds_numbers(value, kind):
                    return value
            elif type(value) is kind:
                return value
        raise UsageError(f"{owner}: option {self.name!r} must be {self.type_name}, not {value!r}")

    def _as_float(self, value: float, owner: str) -> float:
        """Return a number as a float. It must be finite, unless the default is infinite."""
        if value != value:
            raise UsageError(f"{owner}: option {self.name!r} must be a number, not NaN")
        if math.isinf(value) and not (isinstance(self.default, float) and math.isinf(self.default)):
            raise UsageError(f"{owner}: option {self.name!r} must be finite, not {value}")
        return float(value)

    def parse(self, text: str, owner: str) -> Any:
        """Parse the option from the command line: numbers are decimal, flags are true or false, None is none or null.

        Raises:
            UsageError: the text is not a value of the option's type.
        """
        refusal: UsageError | None = None
        for value in _candidate_values(text):
            try:
                return self.check(value, owner)
            except UsageError as error:
                refusal = refusal or error
        assert refusal is not None
        raise refusal


KEYWORDS: dict[str, bool | None] = {"true": True, "false": False, "none": None, "null": None}
NUMBER = re.compile(r"[-+]?(?:inf|nan|(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)", re.ASCII)
ITEM = re.compile(r"[^\[\],\s]+")
"""An item between the brackets and commas of a list."""


def _candidate_values(text: str) -> Iterator[Any]:
    """The possible values of a command line argument, in the order in which they are tried; the text itself is last."""
    lowered = text.strip().lower()
    if lowered in KEYWORDS:
        yield KEYWORDS[lowered]
    elif (number := as_number(lowered)) is not None:
        yield number
    elif "," in lowered or lowered.startswith("["):
        try:
            found = json.loads(ITEM.sub(_in_json, lowered if lowered.startswith("[") else f"[{lowered}]"))
        except (ValueError, RecursionError):
            found = None
        if found is not None:
            yield found
    yield text


def as_number(text: str) -> int | float | None:
    """Parse a decimal number: 010 is ten; 1:30, 0x10 and 1_000 give None."""
    if not NUMBER.fullmatch(text):
        return None
    try:
        return int(text)
    except ValueError:  # not whole, or more digits than Python converts
        return float(text)


def _in_json(match: re.Match[str]) -> str:
    """Rewrite an item of a list as JSON, which does not allow leading zeros, plus signs, or a point at either end.

    Raises:
        ValueError: not a number.
    """
    number = as_number(match[0])
    if number is None:
        raise ValueError(match[0])
    return json.dumps(number)


SEQUENCES = (Sequence, list, tuple)


def _is_numbers(kind: Any) -> bool:
    """True if a type is a sequence of numbers, or of such sequences."""
    if typing.get_origin(kind) not in SEQUENCES:
        return False
    inner = [part for part in typing.get_args(kind) if part is not ...]
    return bool(inner) and all(part in (int, float) or _is_numbers(part) for part in inner)


def _as_list(value: Any) -> Any:
    """A range or an array as a list, and the same for those in a list or tuple; anything else as it is."""
    if isinstance(value, list | tuple):
        plain = [_as_list(part) for part in value]
        return value if all(map(operator.is_, plain, value)) else plain
    if isinstance(value, range):
        return list(value)
    return value.tolist() if hasattr(value, "tolist") else value


def _holds_numbers(value: Any, kind: Any) -> bool:
    """True for a list or tuple of numbers, nested as `kind` is; registry files and the command line give lists."""
    inner = [part for part in typing.get_args(kind) if part is not ...]
    rows = [part for part in inner if _is_numbers(part)]
    return isinstance(value, list | tuple) and all(
        any(_holds_numbers(part, row) for row in rows)
        or (len(rows) < len(inner) and isinstance(part, int | float) and not isinstance(part, bool))
        for part in value
    )


def _is_known(kind: Any) -> bool:
    """True if values of a type can be written on the command line and in a registry file."""
    return kind in (int, float, bool, str, None, type(None)) or typing.get_origin(kind) is Literal or _is_numbers(kind)


def _named(kind: Any) -> str:
    """A type as users write it."""
    if typing.get_origin(kind) is Literal:
        return " | ".join(f'"{c}"' if isinstance(c, str) else str(c) for c in typing.get_args(kind))
    if kind in (None, type(None)):
        return "None"
    bare = str(kind).replace("collections.abc.", "").replace("typing.", "")
    return bare if typing.get_origin(kind) else getattr(kind, "__name__", bare)


def read_options(function: Callable[..., Any], positional: int, kind: str) -> dict[str, Option]:
    """Read the options of a plugin function: its keyword-only parameters, each with a type and a default.

    Raises:
        PluginError: the signature is not valid for a `kind`, or a default does not have its declared type.
    """
    name = function.__qualname__
    try:
        hints = typing.get_type_hints(function)
    except Exception as error:
        raise PluginError(f"the annotations of {name} cannot be read: {error}") from error
    options = {}
    parameters = list(inspect.signature(function).parameters.values())
    if sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters) != positional:
        raise PluginError(f"{name}: a {kind} takes {positional} positional parameters, and options after a bare *")
    for parameter in parameters[positional:]:
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.default is parameter.empty:
            raise PluginError(f"{name}: parameter {parameter.name!r} must be keyword-only with a default")
        inferred = type(parameter.default)
        option = Option(parameter.name, hints.get(parameter.name, inferred), parameter.default)
        if not all(_is_known(kind) for kind in option.kinds):
            raise PluginError(
                f"{name}: option {option.name!r} is {option.type_name}; options are int, float, bool, str, None, "
                "Literal, unions of these, and sequences of numbers such as Sequence[float]"
            )
        try:
            option.check(option.default, name)
        except UsageError as error:
            raise PluginError(f"the default of {error}") from None
        options[parameter.name] = option
    return options


def check_options(values: Mapping[str, Any], known: Mapping[str, Option], owner: str) -> dict[str, Any]:
    """Check every value against its option.

    Raises:
        UnknownNameError: an option that `owner` does not have.
        UsageError: a value of the wrong type.
    """
    for name in values:
        if name not in known:
            raise unknown_option(str(name), known, owner)
    return {name: known[name].check(value, owner) for name, value in values.items()}


def check_written(
    values: Mapping[str, Any], known: Mapping[str, Option], owner: str, place: Callable[[str], str]
) -> dict[str, Any]:
    """Check the options in a file; `place` returns the file, the line and the key of an option, for messages.

    Raises:
        UnknownNameError: an option that `owner` does not have; with its place.
        UsageError: a value of the wrong type; with its place.
    """
    checked: dict[str, Any] = {}
    for name, value in values.items():
        try:
            checked |= check_options({name: value}, known, owner)
        except UsageError as error:
            error.put_before(place(str(name)))
            raise
    return checked


def parse_option(key: str, text: str, known: Mapping[str, Option], owner: str) -> tuple[str, Any]:
    """The name and the value of an option that is given as two texts; the name may have hyphens.

    Raises:
        UnknownNameError: `owner` does not have the option.
        UsageError: the text is not a value of its type.
    """
    name = key.strip().replace("-", "_")
    if name not in known:
        raise unknown_option(name, known, owner)
    return name, known[name].parse(text, owner)


def unknown_option(name: str, known: Mapping[str, Option], owner: str) -> UnknownNameError:
    """The error for an unknown option of `owner`, with the equivalent of a diffusers option or similar names."""
    listing = f" (its options: {', '.join(known)})" if known else " (it has no options)"
    here = None if name.lower() in known else equivalent_here(name)
    opening = f"{owner} has no option {name!r}"
    kind = owner.partition(" ")[0]
    others = [] if nearest(name, known) else [each for find in other_owners for each in find(kind, name)]
    if others:
        more = f" and {len(others) - MOST_LISTED} more" if len(others) > MOST_LISTED else ""
        listed = f"{kind}s that have it: {', '.join(others[:MOST_LISTED])}{more}"
        if here is None:
            return UnknownNameError("option", name, (), f"{listing}; {listed}", opening=opening)
        here = f"{here}; {listed}"
    if here is None:
        return UnknownNameError("option", name, known, listing, opening=opening)
    if name in LOADED:
        return UnknownNameError("option of load", name, (), f"{listing}; it belongs to load: {here}", opening=opening)
    hint = f"{listing}; the equivalent of diffusers' {name} is {here}"
    return UnknownNameError("option of diffusers", name, (), hint, opening=opening)
