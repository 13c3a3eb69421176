"""The registered items of one kind, by name, from all distributions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Generic, TypeVar

from ..errors import UsageError
from .catalogue import SHIPPED, Catalogue
from .hooks import GROUP

T = TypeVar("T")


class Shelf(Mapping[str, T], Generic[T]):
    """Mapping name -> item. A name that two distributions have registered is ambiguous and must be written `dist:name`.

    Args:
        kind: the kind of the items ("sampler", "spacing", ...), for messages.
        reserved: names that the library uses for something else: recipes and names in other libraries.

    Attributes:
        installed: distributions that were found by entry point, not named by the user. Their items with a built-in or
            reserved name are available only as `dist:name`, so that installing a package never changes the meaning of
            a name.
    """

    def __init__(self, kind: str, reserved: Collection[str] = ()) -> None:
        self.kind, self.reserved = kind, reserved
        self.installed: set[str] = set()
        self._items: dict[str, dict[str, T]] = {}

    def put(self, name: str, item: T, dist: str) -> None:
        """Register `item`, replacing an earlier item of `dist` with this name."""
        self._items.setdefault(name, {})[dist] = item

    def has(self, name: str, dist: str) -> bool:
        """True if the distribution has registered this name."""
        return dist in self._items.get(name, {})

    def entries(self) -> Iterator[tuple[str, str, T]]:
        """(name, distribution, item) of everything that was registered, in the order in which it was."""
        for name, owners in self._items.items():
            for dist, item in owners.items():
                yield name, dist, item

    def __getitem__(self, name: str) -> T:
        dist, _, bare = name.rpartition(":")
        everyone = self._items.get(bare)
        if everyone is None:
            raise KeyError(name)
        if dist and dist in everyone:
            return everyone[dist]
        owners = self._owners(bare)
        if dist or not owners:
            raise KeyError(name)
        if _disagree(owners):
            picks = " or ".join(repr(f"{d}:{bare}") for d in sorted(owners))
            raise UsageError(f"{self.kind} {bare!r} is registered by {' and by '.join(sorted(owners))}; use {picks}")
        return next(iter(owners.values()))

    def name_of(self, item: T) -> str | None:
        """The name that refers to an item: its own, or `dist:name` if needed; None if the item is not registered."""
        name = str(getattr(item, "name", ""))
        owners = self._owners(name)
        if owners and all(owned is item for owned in owners.values()):  # the usual case
            return name
        return next((name for name, found in self.items() if found is item), None)

    def __iter__(self) -> Iterator[str]:
        for name in sorted(self._items):
            owners = self._owners(name)
            if _disagree(owners):
                yield from (f"{dist}:{name}" for dist in sorted(owners))
            elif owners:
                yield name
            yield from (f"{dist}:{name}" for dist in self.renamed(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _owners(self, name: str) -> dict[str, T]:
        """The distributions whose item the name without a prefix may refer to."""
        owners = self._items.get(name) or {}
        if GROUP not in owners and name not in self.reserved:
            return owners
        return {dist: item for dist, item in owners.items() if dist == GROUP or dist not in self.installed}

    def renamed(self, name: str) -> list[str]:
        """The distributions whose item is available only as `dist:name`, since the name is built in or reserved."""
        owners = self._owners(name)
        return sorted(dist for dist in self._items.get(name, ()) if dist not in owners)

    def renamed_of(self, dist: str) -> list[str]:
        """The names of a distribution's items that are available only as `dist:name`."""
        return sorted(name for name, owners in self._items.items() if dist in owners and dist in self.renamed(name))


def _disagree(owners: Mapping[str, Any]) -> bool:
    """True if distributions have registered different items under one name."""
    return len({id(item) for item in owners.values()}) > 1


def shipped_names(catalogue: Catalogue, sections: Collection[str], kind: str) -> set[str]:
    """The names that the shipped registry file defines in `sections`, and in `kind` of all peers."""
    return {
        name
        for (section, name), file in catalogue.origins.items()
        if file == SHIPPED and (section in sections or (section.startswith("peers.") and section.endswith(f".{kind}")))
    }
