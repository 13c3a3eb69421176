"""Public names belong to the package, whatever file they stand in, and are imported when they are first used."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T", bound=Any)


def public(item: T) -> T:
    """A class or function of the public interface: pickles, saved pipelines and reprs call it `sdesamplers.NAME`."""
    item.__module__ = "sdesamplers"
    return item


def lazily(package: str, homes: dict[str, list[str]]) -> Callable[[str], Any]:
    """A package's `__getattr__`: names of its modules, each imported when it is first used.

    Args:
        package: its `__name__`.
        homes: the names of each module.
    """
    home = {name: module for module, names in homes.items() for name in names}

    def find(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{home[name]}"), name)

    return find
