"""What identifies a caller's function in the facts of a table: its name, its code and the networks of its object."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

from ..generation.identity import fingerprint
from ..models.running import DEPTH, networks_at
from ..sampling.table_facts import sizes


def function_facts(functions: Mapping[str, Callable[..., Any] | None]) -> dict[str, Any]:
    """The facts about functions: their names, and "functions", fingerprints of those that are written in Python."""
    given = {name: function for name, function in functions.items() if function is not None}
    facts: dict[str, Any] = {name: name_of(function) for name, function in given.items()}
    codes = {name: code for name, function in given.items() if (code := code_of(function)) is not None}
    return {**facts, "functions": codes} if codes else facts


def name_of(function: Callable[..., Any]) -> str:
    """A function's name for the facts of a table; "<...>" if the name does not determine what it computes."""
    owner = getattr(function, "__self__", None)
    if owner is not None and not isinstance(owner, type | ModuleType):  # a method: its object determines it, too
        return f"{type(owner).__qualname__}.{function.__name__} of {owner!r}"
    name: str | None = getattr(function, "__qualname__", None)
    return f"<{type(function).__qualname__}>" if name is None else name


def code_of(function: Callable[..., Any]) -> str | None:
    """A fingerprint of a function's code, of its default arguments and, of a method, of its object's networks.

    It changes if the function of a notebook is defined again, and with Python's minor version. None for functions that
    are not written in Python.
    """
    inner = inspect.unwrap(function)
    code = getattr(inner, "__code__", None)
    if not isinstance(code, CodeType):
        return None
    defaults = repr((inner.__defaults__, inner.__kwdefaults__)) if isinstance(inner, FunctionType) else ""
    networks = sizes(networks_at(getattr(function, "__self__", None), DEPTH))
    return fingerprint(json.dumps([parts_of(code), defaults, networks]).encode())


def parts_of(constant: Any) -> Any:
    """A constant of compiled code as plain data, the same in every process: a set has no order."""
    if isinstance(constant, CodeType):
        return [constant.co_code.hex(), constant.co_names, [*map(parts_of, constant.co_consts)]]
    return sorted(map(repr, constant)) if isinstance(constant, frozenset) else repr(constant)
