"""What is registered: `sdesamplers.samplers()`, `spacings()`, `noises()` and `sdes()`."""

from __future__ import annotations

from typing import Any, TypeVar

from ..html import rows_table
from ..public import public
from .plugin import NoiseSource, Sampler, Spacing
from .registry import default_registry

T = TypeVar("T")


class Listing(dict[str, T]):
    """A dictionary of registered items that notebooks show as a table."""

    def _repr_html_(self) -> str:
        """A row for each item, with the first line of its documentation."""
        names = ("order", "evaluations", "stochastic", "adaptive", "limits")
        shown = [name for name in names if any(getattr(item, name, None) for item in self.values())]
        rows = [[n, *(getattr(item, k, None) for k in shown), _summary(item)] for n, item in self.items()]
        flags = {True: "yes", False: ""}
        plain = [[flags[value] if isinstance(value, bool) else value for value in row] for row in rows]
        return rows_table(f"{len(self)} registered", ("name", *shown, "description"), plain)


def _summary(item: Any) -> str:
    """The first line of an item's documentation."""
    return str(getattr(item, "summary", None) or (item.__doc__ or "").strip().partition("\n")[0])


@public
def samplers() -> dict[str, Sampler]:
    """Every registered sampler by name, with its order, options, plugin and reference."""
    return Listing(default_registry().samplers)


@public
def spacings() -> dict[str, Spacing]:
    """Every registered spacing by name."""
    return Listing(default_registry().spacings)


@public
def noises() -> dict[str, NoiseSource]:
    """Every registered noise source by name; `limits` describes how it changes the sampled distribution, if it does."""
    return Listing(default_registry().noises)


@public
def sdes() -> dict[str, Any]:
    """Every process that a plugin has registered, by name: `SDE` classes or factories."""
    return Listing(default_registry().sdes)
