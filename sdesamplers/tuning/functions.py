"""What identifies a caller's function in the facts of a table: its code, and the values and networks that it uses."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..generation.code import instructions, is_own, is_plain, relevant, text_of, used_by
from ..generation.identity import fingerprint, plain, weights_hash
from ..models.running import DEPTH, networks_at

ADDRESS = re.compile(r" at 0x[0-9a-f]+", re.IGNORECASE)
"""Of an object, in the text that Python gives to those of classes without one of their own."""
NO_PACKAGE = ""
"""Of the installed ones none counts as the caller's code."""
UNUSED = ("__dict__", "__weakref__", "__annotations__", "__annotate__", "__annotations_cache__", "__slots__")
"""Attributes of classes that say nothing about what they compute."""


class UnknownContentError(Exception):
    """A function uses an object whose content cannot be determined."""


def function_facts(functions: Mapping[str, Callable[..., Any] | None]) -> dict[str, Any]:
    """The facts about functions: their names, and "functions", a fingerprint of each; None if it cannot be identified.

    Tables for a function that cannot be identified are computed anew in every call.
    """
    given = {name: function for name, function in functions.items() if function is not None}
    facts: dict[str, Any] = {name: name_of(function) for name, function in given.items()}
    codes = {name: code_of(function) for name, function in given.items()}
    return {**facts, "functions": codes} if codes else {}


def name_of(function: Callable[..., Any]) -> str:
    """A function's name for a person; <...> of an object that is none."""
    owner = getattr(function, "__self__", None)
    if owner is not None and not isinstance(owner, type | ModuleType):
        of = "" if ADDRESS.search(repr(owner)) else f" of {owner!r}"
        return f"{type(owner).__qualname__}.{function.__name__}{of}"
    name: str | None = getattr(function, "__qualname__", None)
    return f"<{type(function).__qualname__}>" if name is None else name


def code_of(function: Callable[..., Any]) -> str | None:
    """A fingerprint of what a function computes; None if it uses an object whose content cannot be determined.

    It has the source, the default arguments, and what the source names: functions and classes of the caller, numbers
    and texts, tensors, and networks with their weights. Installed libraries count by the names of their functions.
    """
    try:
        found = Identity().of(function)
        return fingerprint(json.dumps(found, sort_keys=True).encode())
    except (UnknownContentError, RecursionError, TypeError, ValueError):
        return None


class Identity:
    """The identity of a function's parts as plain data."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[int, Any]] = {}  # with the objects themselves, so that their ids are not used again

    def of(self, value: Any) -> Any:
        """The identity of a value.

        Raises:
            UnknownContentError: it has a part whose content cannot be determined.
        """
        if is_plain(value) or isinstance(value, torch.dtype | torch.device):
            return repr(value)
        if isinstance(value, Tensor | np.ndarray | np.generic):
            return plain(torch.as_tensor(value))
        if isinstance(value, ModuleType | BuiltinFunctionType | np.ufunc):
            return self.named(value)
        if id(value) in self.seen:
            return f"part {self.seen[id(value)][0]}"
        self.seen[id(value)] = len(self.seen), value
        return self.of_object(value)

    def of_object(self, value: Any) -> Any:
        """The same of an object that may refer to itself."""
        if isinstance(value, FunctionType):
            return self.of_function(value)
        if isinstance(value, MethodType):
            return self.all_of([value.__func__, value.__self__])
        if isinstance(value, functools.partial):
            return self.all_of([value.func, value.args, value.keywords])
        if isinstance(value, torch.nn.Module):
            kept = {name: each for name, each in vars(value).items() if not name.startswith("_") and is_plain(each)}
            return [self.of(type(value)), self.weights(value), repr(sorted(kept.items()))]
        if isinstance(value, type):
            return self.of_class(value)
        if isinstance(value, Mapping):
            return [[self.of(key), self.of(each)] for key, each in value.items()]
        if isinstance(value, list | tuple):
            return self.all_of(value)
        if isinstance(value, set | frozenset) and is_plain(list(value)):
            return sorted(map(repr, value))
        if isinstance(value, staticmethod | classmethod | property):
            return self.of(value.fget if isinstance(value, property) else value.__func__)
        if not ADDRESS.search(repr(value)):  # the object's own text, with the weights of its networks
            return [self.named(type(value)), repr(value), [*map(self.weights, networks_at(value, DEPTH))]]
        if not hasattr(value, "__dict__"):
            raise UnknownContentError(type(value).__qualname__)
        return self.all_of([type(value), vars(value)])

    def all_of(self, values: Iterable[Any]) -> list[Any]:
        """The identities of values."""
        return [self.of(each) for each in values]

    def of_function(self, function: FunctionType) -> Any:
        """The source of the caller's functions, decorators included, with all that they use; the names of others."""
        is_current = function.__globals__.get("__name__") == function.__module__  # not made by exec
        if is_current and not is_own(function, NO_PACKAGE):
            return self.named(function)
        used = [[name, self.of(value)] for name, value in used_by(function, NO_PACKAGE)]
        defaults = self.of([list(function.__defaults__ or ()), function.__kwdefaults__ or {}])
        # The source of a lambda has the statement around it, and that of a wrapper is the wrapped function's.
        without_source = function.__name__ == "<lambda>" or hasattr(function, "__wrapped__")
        text = repr(list(instructions(function.__code__))) if without_source else text_of(function)
        return [function.__qualname__, text, defaults, used]

    def of_class(self, kind: type) -> Any:
        """The attributes of the caller's classes; the names of others."""
        if not is_own(kind, NO_PACKAGE):
            return self.named(kind)
        own = {name: value for name, value in vars(kind).items() if relevant(name) and name not in UNUSED}
        return [self.named(kind), [[name, self.of(value)] for name, value in own.items()], self.all_of(kind.__bases__)]

    @staticmethod
    def weights(network: torch.nn.Module) -> str:
        """The hash of a network's weights."""
        found = weights_hash(network)
        if found is None:
            raise UnknownContentError("weights that are offloaded")
        return found

    @staticmethod
    def named(value: Any) -> str:
        """A module, or the name of a function or class of a library."""
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', None) or value.__name__}"
