"""Public names: defined in any module, presented as the package's own, and imported on first use."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T", bound=Any)
SITE = "https://sdesamplers.github.io/sdesamplers/"
"""The documentation site."""


def public(item: T) -> T:
    """Mark a class or function as public: pickles, saved pipelines and reprs refer to it as `sdesamplers.NAME`."""
    item.__module__ = "sdesamplers"
    return item


def read_stub(file: str) -> dict[str, str]:
    """Return the module of each name that the stub beside `file` imports by `from .module import name as name`.

    The module of a name that is a module itself is "".
    """
    stub = Path(file).with_suffix(".pyi").read_text(encoding="utf-8")
    return {name: module for module, name in re.findall(r"^from \.(\S*) import (\w+) as \2$", stub, re.MULTILINE)}


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a package's `__getattr__`, which imports each name's module on first use.

    Args:
        package: the package's `__name__`.
        homes: the module of the package that defines each name; "" if the name is itself a module.
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if not homes[name]:
            return importlib.import_module(f"{package}.{name}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return find
