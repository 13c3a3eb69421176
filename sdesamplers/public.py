"""Public names belong to the package, whatever file they stand in."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T", bound=Any)


def public(item: T) -> T:
    """A class or function of the public interface: pickles, saved pipelines and reprs call it `sdesamplers.NAME`."""
    item.__module__ = "sdesamplers"
    return item
