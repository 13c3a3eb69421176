"""Options: the keyword-only parameters of a sampler or spacing, read from its signature and checked against it."""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .errors import PluginError, UnknownNameError, UsageError


@dataclass(frozen=True)
class Option:
    """One option: its name, type and default, all taken from the function's signature."""

    name: str
    type: Any
    default: Any

    @property
    def type_name(self) -> str:
        """The type as a user would write it: `float`, `"posterior" | "beta"`."""
        return " | ".join(
            f'"{c}"' if isinstance(c, str) else ("None" if c in (None, type(None)) else getattr(c, "__name__", str(c)))
            for c in self._choices()
        )

    def _choices(self) -> tuple[Any, ...]:
        origin = typing.get_origin(self.type)
        if origin is Literal or origin in (typing.Union, types.UnionType):
            return typing.get_args(self.type)
        return (self.type,)

    def check(self, value: Any, owner: str) -> Any:
        """Return `value` in the option's type; whole numbers pass as floats, nothing else is converted.

        Raises:
            UsageError: the value has another type.
        """
        for choice in self._choices():
            if typing.get_origin(self.type) is Literal:
                if type(value) is type(choice) and value == choice:
                    return value
            elif choice in (None, type(None)):
                if value is None:
                    return value
            elif choice is float:
                if isinstance(value, int | float) and not isinstance(value, bool):
                    if value != value:
                        raise UsageError(f"{owner}: option {self.name!r} is not a number")
                    if math.isinf(value) and not (isinstance(self.default, float) and math.isinf(self.default)):
                        raise UsageError(f"{owner}: option {self.name!r} must be finite, not {value}")
                    return float(value)
            elif choice is int or choice is bool or choice is str:
                if type(value) is choice:
                    return value
            elif isinstance(value, typing.get_origin(choice) or choice):
                return value
        raise UsageError(f"{owner}: option {self.name!r} must be {self.type_name}, not {value!r}")

    def parse(self, text: str, owner: str) -> Any:
        """Read the option from the command line."""
        import yaml

        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
            try:
                value = float(value)
            except ValueError:
                pass
        try:
            return self.check(value, owner)
        except UsageError as refusal:
            try:
                return self.check(text, owner)
            except UsageError:
                raise refusal from None


def read_options(function: Callable[..., Any], positional: int, kind: str) -> dict[str, Option]:
    """The options of a plugin function: its keyword-only parameters, each with a type and a default.

    Raises:
        PluginError: the signature is not that of a `kind`.
    """
    name = function.__qualname__
    try:
        hints = typing.get_type_hints(function)
    except Exception as error:
        raise PluginError(f"the annotations of {name} cannot be read: {error}") from error
    options = {}
    parameters = list(inspect.signature(function).parameters.values())
    if sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters) != positional:
        raise PluginError(f"{name}: a {kind} takes {positional} positional parameters, options behind a bare *")
    for parameter in parameters[positional:]:
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.default is parameter.empty:
            raise PluginError(f"{name}: parameter {parameter.name!r} must be keyword-only with a default")
        inferred = type(parameter.default)
        options[parameter.name] = Option(parameter.name, hints.get(parameter.name, inferred), parameter.default)
    return options


def check_options(values: Mapping[str, Any], known: Mapping[str, Option], owner: str) -> dict[str, Any]:
    """Check every value against its option.

    Raises:
        UnknownNameError: an option that `owner` does not have.
        UsageError: a value of the wrong type.
    """
    for name in values:
        if name not in known:
            listing = f" (it takes {', '.join(known)})" if known else " (it takes none)"
            raise UnknownNameError(f"option of {owner}", name, known, listing)
    return {name: known[name].check(value, owner) for name, value in values.items()}
