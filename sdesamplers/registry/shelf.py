"""The registered things of one kind, by name, whoever registered them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Generic, TypeVar

from ..errors import UsageError
from .catalogue import SHIPPED, Catalogue
from .hooks import GROUP

T = TypeVar("T")


class Shelf(Mapping[str, T], Generic[T]):
    """Name -> item. A built-in name stays built in; a name claimed otherwise by two distributions needs `dist:name`.

    Args:
        kind: what the items are, in words.
        reserved: names that are shipped with the library for something else: recipes and other libraries' names.

    Attributes:
        installed: distributions that were found and not named by the user. What they register under a built-in or
            reserved name is had as `dist:name` alone, for nobody has asked them to change what a name means.
    """

    def __init__(self, kind: str, reserved: Collection[str] = ()) -> None:
        self.kind, self.reserved = kind, reserved
        self.installed: set[str] = set()
        self._items: dict[str, dict[str, T]] = {}

    def put(self, name: str, item: T, dist: str) -> None:
        """Register `item`, or replace what `dist` had under this name."""
        self._items.setdefault(name, {})[dist] = item

    def has(self, name: str, dist: str) -> bool:
        """Whether a distribution has registered this name."""
        return dist in self._items.get(name, {})

    def __getitem__(self, name: str) -> T:
        dist, _, bare = name.rpartition(":")
        everyone = self._items.get(bare) or {}
        if dist and dist in everyone:
            return everyone[dist]
        owners = self._owners(bare)
        if dist or not owners:
            raise KeyError(name)
        if _disagree(owners):
            picks = " or ".join(repr(f"{d}:{bare}") for d in sorted(owners))
            raise UsageError(f"{self.kind} {bare!r} is registered by {' and by '.join(sorted(owners))}; pick {picks}")
        return next(iter(owners.values()))

    def name_of(self, item: T) -> str | None:
        """The name that stands for an item: `dist:name` where its own is another's. None where none does."""
        name = str(getattr(item, "name", ""))
        owners = self._owners(name)
        if owners and all(owned is item for owned in owners.values()):  # as nearly always
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
        """The distributions that the bare name may mean."""
        owners = self._items.get(name) or {}
        if GROUP not in owners and name not in self.reserved:
            return owners
        return {dist: item for dist, item in owners.items() if dist == GROUP or dist not in self.installed}

    def renamed(self, name: str) -> list[str]:
        """The distributions whose item of this name is had as `dist:name` alone, for the name itself is built in."""
        owners = self._owners(name)
        return sorted(dist for dist in self._items.get(name, ()) if dist not in owners)

    def renamed_of(self, dist: str) -> list[str]:
        """The names of a distribution that are had as `dist:name` alone."""
        return sorted(name for name, owners in self._items.items() if dist in owners and dist in self.renamed(name))


def _disagree(owners: Mapping[str, Any]) -> bool:
    """Whether distributions mean different items by one name."""
    return len({id(item) for item in owners.values()}) > 1


def shipped_names(catalogue: Catalogue, sections: Collection[str], kind: str) -> set[str]:
    """Names that the library's own registry file gives a meaning: in `sections`, and of all peers' `kind`."""
    return {
        name
        for (section, name), file in catalogue.origins.items()
        if file == SHIPPED and (section in sections or (section.startswith("peers.") and section.endswith(f".{kind}")))
    }
