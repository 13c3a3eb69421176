"""Fingerprints of code and files that a job's arguments refer to by name only."""

from __future__ import annotations

import ast
import hashlib
import inspect
import linecache
import os
import sys
import sysconfig
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from ..errors import UsageError
from ..registry.options import Option
from ..registry.plugin import Registered

PLAIN = (bool, int, float, complex, str, bytes, type(None))


def code_of(item: Registered) -> str:
    """A fingerprint of a plugin's code: its function and, transitively, everything it uses from its own code.

    Comments, docstrings and layout do not count, nor do installed libraries, except the plugin's own package.
    """
    texts = dict(uses(item.function))
    return hashlib.sha256("\n".join(f"{name}: {texts[name]}" for name in sorted(texts)).encode()).hexdigest()[:16]


def uses(function: Any) -> Iterator[tuple[str, str]]:
    """Names and texts of a function and of the functions, classes and constants that it uses from its own code."""
    package, seen = top_package(function.__module__), set[int]()
    waiting: list[tuple[str, Any]] = [(function.__qualname__, function)]
    while waiting:
        name, value = waiting.pop()
        value = inspect.unwrap(value) if callable(value) else value
        value = getattr(value, "function", value) if isinstance(value, Registered) else value
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, FunctionType) and is_own(value, package):
            yield name, text_of(value)
            waiting += used_by(value, package)
        elif isinstance(value, type) and is_own(value, package):
            waiting += [(f"{name}.{key}", part) for key, part in sorted(vars(value).items()) if relevant(key)]
        elif isinstance(value, staticmethod | classmethod):
            waiting.append((name, value.__func__))
        elif isinstance(value, property) and value.fget is not None:
            waiting.append((name, value.fget))
        elif is_plain(value):
            yield name, repr(value)


def relevant(name: str) -> bool:
    """True if a class attribute was written by the author of the class, not added by Python."""
    return name not in ("__module__", "__doc__", "__qualname__", "__firstlineno__", "__static_attributes__")


def used_by(function: FunctionType, package: str) -> list[tuple[str, Any]]:
    """The objects that a function's code names: globals, attributes of its own modules, and closure variables."""
    names = {name for code in codes(function.__code__) for name in code.co_names}
    places = [function.__globals__]
    found = [(name, place[name]) for place in places for name in sorted(names) if name in place]
    for name, value in list(found):
        if isinstance(value, ModuleType) and is_own_module(value, package):
            found += [(f"{name}.{part}", vars(value)[part]) for part in sorted(names) if part in vars(value)]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found.append((f"{function.__qualname__}.{name}", cell.cell_contents))
        except ValueError:  # an empty cell
            continue
    return found


def is_plain(value: Any) -> bool:
    """True if a value's repr determines it."""
    if isinstance(value, tuple | list):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(is_plain(part) for pair in value.items() for part in pair)
    return type(value) in PLAIN


def is_own(thing: Any, package: str) -> bool:
    """True if a function or class belongs to the plugin's package or to no installed library."""
    module = sys.modules.get(thing.__module__) if isinstance(thing.__module__, str) else None
    return thing.__module__ == "__main__" or module is None or is_own_module(module, package)


def is_own_module(module: ModuleType, package: str) -> bool:
    """True if a module belongs to the plugin's package or to no installed library."""
    if top_package(module.__name__) == "sdesamplers":
        return False  # the environment records its version
    file = getattr(module, "__file__", None)
    if module.__name__ == "__main__" or top_package(module.__name__) == package:
        return True
    return file is not None and not any(Path(file).is_relative_to(place) for place in library_folders())


def top_package(name: str) -> str:
    """The top-level package of a module name."""
    return name.partition(".")[0]


@cache
def library_folders() -> list[str]:
    """The folders of Python's standard library and of installed libraries."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    listed = [*(sysconfig.get_paths()[name] for name in names), *(place for place in sys.path if "-packages" in place)]
    return list(dict.fromkeys(place for each in listed for place in (each, os.path.realpath(each))))


def text_of(function: FunctionType) -> str:
    """A function's source without decorators, comments, docstrings and layout; its bytecode if there is no source."""
    try:
        if not is_current(function):
            raise OSError("edited since it was imported")
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError, RecursionError):
        return repr(list(instructions(function.__code__)))
    if function.__name__ == "<lambda>" and sum(isinstance(node, ast.Lambda) for node in ast.walk(tree)) > 1:
        return repr(list(instructions(function.__code__)))  # the lines of several functions
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            node.decorator_list = []
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def is_current(function: FunctionType) -> bool:
    """True if a function matches the present content of its file."""
    file = function.__code__.co_filename
    linecache.checkcache(file)
    lines = linecache.getlines(file, function.__globals__)
    return bool(lines) and function.__code__ in compiled("".join(lines), file)


@cache
def compiled(text: str, file: str) -> frozenset[CodeType]:
    """All code objects of a source text."""
    return frozenset(codes(compile(text, file, "exec", dont_inherit=True)))


def codes(code: CodeType) -> Iterator[CodeType]:
    """A code object and all code objects nested in it."""
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from codes(value)


def instructions(code: CodeType) -> Iterator[Any]:
    """What distinguishes functions without source: bytecode, names and constants."""
    for each in codes(code):
        yield each.co_code
        yield each.co_names
        yield [
            sorted(map(repr, v)) if isinstance(v, frozenset) else v
            for v in each.co_consts
            if is_plain(v) or isinstance(v, frozenset)
        ]


def files_in(values: Mapping[str, Any], options: Mapping[str, Option]) -> dict[str, str]:
    """SHA-256 of each file that a free-text option names, by option name.

    Raises:
        UsageError: a file cannot be read.
    """
    found = {}
    for name, value in values.items():
        free = name in options and str in options[name].kinds
        try:
            if free and isinstance(value, str) and value and Path(value).is_file():
                found[name] = hashlib.sha256(Path(value).read_bytes()).hexdigest()
        except (OSError, ValueError) as error:
            raise UsageError(f"option {name}: {value} cannot be read: {error}") from None
    return found
