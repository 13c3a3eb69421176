"""Plugins as they are found: imported, checked, and what became of them."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from ..errors import PluginError, UnknownHookError
from .hooks import GROUP, HookSpecs
from .shelf import T


@dataclass(frozen=True)
class Plugin:
    """One plugin that was found: its name, distribution and, where it is broken, the error."""

    name: str
    dist: str
    error: str | None = None


def check_hooks(plugin: Any) -> None:
    """Raise PluginError where a plugin has a hook that nobody would call: misspelt, or without `@hookimpl`."""
    known = [name for name in vars(HookSpecs) if name.startswith(f"{GROUP}_")]
    for name in dir(plugin):
        if name.startswith("__") or not callable(function := getattr(plugin, name, None)):
            continue
        marks = getattr(function, f"{GROUP}_impl", None)
        if isinstance(marks, dict) and not marks["optionalhook"]:
            meant = marks["specname"] or name
            if meant not in known:
                raise UnknownHookError("hook", meant, known, f" (known: {', '.join(known)})")
        elif name in known and marks is None and isinstance(function, FunctionType):
            raise PluginError(f"{name} lacks @hookimpl, so that nobody calls it")


def flattened(answers: Iterable[Iterable[T]]) -> Iterator[T]:
    """What all of a hook's plugins returned, one after the other."""
    for answer in answers:
        yield from answer


@contextmanager
def _importable_from(folder: Path | None) -> Iterator[None]:
    """Let modules that lie in a folder be imported, as those beside a script are."""
    if folder is None:
        yield
        return
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def import_named(module: str, folder: Path | None) -> ModuleType:
    """Import a module by name, also from `folder`."""
    with _importable_from(folder):
        return importlib.import_module(module)


def import_file(file: Path) -> ModuleType:
    """Import a Python file, once, under its own name unless that is another module's."""
    name = re.sub(r"\W", "_", file.stem)
    if (there := sys.modules.get(name)) is not None:
        own = getattr(there, "__file__", None) == str(file)
    else:
        found = importlib.util.find_spec(name)
        own = found is None or found.origin == str(file)
    if not own:
        name = f"sdesamplers_file_{name}"
        there = sys.modules.get(name)
    if there is not None and getattr(there, "__file__", None) == str(file):
        return there
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with _importable_from(file.parent):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module
