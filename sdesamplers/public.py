"""Public names: defined in any module, presented as the package's own, and imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T", bound=Any)


def public(item: T) -> T:
    """Mark a class or function as public: pickles, saved pipelines and reprs refer to it as `sdesamplers.NAME`."""
    item.__module__ = "sdesamplers"
    return item


def lazily(package: str, homes: dict[str, list[str]]) -> Callable[[str], Any]:
    """Return a package's `__getattr__`, which imports each name's module on first use.

    Args:
        package: the package's `__name__`.
        homes: module -> the names that it defines.
    """
    home = {name: module for module, names in homes.items() for name in names}

    def find(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{home[name]}"), name)

    return find
