"""The grids of recent calls, kept: servers, jobs and comparisons use the same grid on the same process many times."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from ..path.points import Point
from ..processes.check import is_user_defined
from ..processes.sde import SDE

MOST, LONGEST = 16, 200
"""Grids kept in all, and the points of the longest: the time for a longer grid is small beside its run's."""

Grid: TypeAlias = tuple[SDE, list[Point]]
"""The process in the coordinates of the path, and the points."""


class RecentGrids:
    """The last grids, by the process that they are on and the arguments that they were computed from.

    Only processes of this package are looked up, since they are functions of their attributes; a process that a user
    defines may depend on anything. A grid counts as long as its process, and each process inside of it, has the same
    attributes.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, Any], tuple[SDE, dict[str, Any], Grid]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, process: SDE, key: Any, compute: Callable[[], Grid]) -> Grid:
        """The result of `compute` for this process and key, from now or from an earlier call."""
        attributes = all_attributes(process)
        if attributes is None:
            return compute()
        place = id(process), key  # an entry holds its process, so that no other can get the same id
        with self._lock:
            kept = self._kept.get(place)
            if kept is not None and same_objects(kept[1], attributes):
                self._kept.move_to_end(place)
                return kept[2]
        grid = compute()  # outside of the lock, since a spacing may sample
        if len(grid[1]) <= LONGEST:
            with self._lock:
                self._kept[place] = process, attributes, grid
                self._kept.move_to_end(place)
                if len(self._kept) > MOST:
                    self._kept.popitem(last=False)
        return grid

    def clear(self) -> None:
        """Drop all grids."""
        with self._lock:
            self._kept.clear()


def all_attributes(process: SDE) -> dict[str, Any] | None:
    """The attributes of a process and of the processes inside of it; None if one is of a class from elsewhere.

    Without the views that `view` keeps with a process, which are computed from the others.
    """
    if is_user_defined(process):
        return None
    found = {name: value for name, value in vars(process).items() if name != "_views"}
    for name, value in vars(process).items():
        if isinstance(value, SDE):
            inner = all_attributes(value)
            if inner is None:
                return None
            found |= {f"{name}.{each}": held for each, held in inner.items()}
    return found


def same_objects(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """True if two mappings hold the same objects under the same names."""
    return first.keys() == second.keys() and all(second[name] is value for name, value in first.items())
