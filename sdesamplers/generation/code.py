"""Fingerprints of code and of files, for what a job's words name without saying what is in it."""

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
    """A fingerprint of a plugin's code: its function and all that it uses of its own, one through the other.

    Comments, docstrings and layout do not count, nor does what is installed, but for the plugin's own package.
    """
    texts = dict(uses(item.function))
    return hashlib.sha256("\n".join(f"{name}: {texts[name]}" for name in sorted(texts)).encode()).hexdigest()[:16]


def uses(function: Any) -> Iterator[tuple[str, str]]:
    """The name and text of a function and of the functions, classes and constants of its own kind that it uses."""
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
    """Whether a class's attribute is code or data of its author's."""
    return name not in ("__module__", "__doc__", "__qualname__", "__firstlineno__", "__static_attributes__")


def used_by(function: FunctionType, package: str) -> list[tuple[str, Any]]:
    """What a function's code names: globals, attributes of its own kind's modules, and what it encloses."""
    names = {name for code in codes(function.__code__) for name in code.co_names}
    places = [function.__globals__]
    found = [(name, place[name]) for place in places for name in sorted(names) if name in place]
    for name, value in list(found):
        if isinstance(value, ModuleType) and is_own_module(value, package):
            found += [(f"{name}.{part}", vars(value)[part]) for part in sorted(names) if part in vars(value)]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found.append((f"{function.__qualname__}.{name}", cell.cell_contents))
        except ValueError:  # not filled yet
            continue
    return found


def is_plain(value: Any) -> bool:
    """Whether a value's repr says all of it."""
    if isinstance(value, tuple | list):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(is_plain(part) for pair in value.items() for part in pair)
    return type(value) in PLAIN


def is_own(thing: Any, package: str) -> bool:
    """Whether a function or class is of the plugin's package, or of no installed one."""
    module = sys.modules.get(thing.__module__) if isinstance(thing.__module__, str) else None
    return thing.__module__ == "__main__" or module is None or is_own_module(module, package)


def is_own_module(module: ModuleType, package: str) -> bool:
    """Whether a module is of the plugin's package, or of no installed one."""
    if top_package(module.__name__) == "sdesamplers":
        return False  # the version tells
    file = getattr(module, "__file__", None)
    if module.__name__ == "__main__" or top_package(module.__name__) == package:
        return True
    return file is not None and not any(Path(file).is_relative_to(place) for place in library_folders())


def top_package(name: str) -> str:
    """The package that a module is in."""
    return name.partition(".")[0]


@cache
def library_folders() -> list[str]:
    """Where Python and installed libraries are."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    listed = [*(sysconfig.get_paths()[name] for name in names), *(place for place in sys.path if "-packages" in place)]
    return list(dict.fromkeys(place for each in listed for place in (each, os.path.realpath(each))))


def text_of(function: FunctionType) -> str:
    """A function's source without decorators, comments, docstrings and layout; its instructions if it has none."""
    try:
        if not is_current(function):
            raise OSError("edited since it was imported")
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError, RecursionError):
        return repr(list(instructions(function.__code__)))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            node.decorator_list = []
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def is_current(function: FunctionType) -> bool:
    """Whether a function is what its file says now."""
    file = function.__code__.co_filename
    linecache.checkcache(file)
    lines = linecache.getlines(file, function.__globals__)
    return bool(lines) and function.__code__ in compiled("".join(lines), file)


@cache
def compiled(text: str, file: str) -> frozenset[CodeType]:
    """All code in a file."""
    return frozenset(codes(compile(text, file, "exec", dont_inherit=True)))


def codes(code: CodeType) -> Iterator[CodeType]:
    """Code, and the functions in it."""
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from codes(value)


def instructions(code: CodeType) -> Iterator[Any]:
    """What tells a function from another whose source is not known: instructions, names and numbers."""
    for each in codes(code):
        yield each.co_code
        yield each.co_names
        yield [sorted(map(repr, v)) if isinstance(v, frozenset) else v for v in each.co_consts if is_plain(v)]


def files_in(values: Mapping[str, Any], options: Mapping[str, Option]) -> dict[str, str]:
    """SHA-256 of each file that an option of free text names, by option.

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
