"""Searches that are stopped and continued: what one begins from, how far it came, and what the next need not repeat."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import UsageError
from ..sampling.table import SolverTable
from ..sampling.table_facts import is_finite
from .search import BASES, Candidate, Judged, State


@dataclass(frozen=True)
class Beginning:
    """What a search begins from.

    Attributes:
        warm: a table that the caller passed.
        former: the table of an earlier call with the same arguments, which was stopped.
        continues: True if what that call did is not repeated, False if the search begins anew.
    """

    warm: SolverTable | None = None
    former: SolverTable | None = None
    continues: bool = False


@dataclass(frozen=True)
class Start:
    """The same as the search takes it.

    Attributes:
        firsts: candidates that come first.
        state: where the search stands.
        former: the table of the earlier call, with its errors on the fitting starts.
    """

    firsts: list[Candidate]
    state: State
    former: Judged | None


def trials_done(table: SolverTable | None) -> float | None:
    """The trials and iterations of a table whose search was stopped early; 0 if unknown; None if it was completed."""
    if table is None or not table.facts.get("interrupted"):
        return None
    done: Any = table.facts.get("trials_done")
    return max(float(done), 0.0) if is_finite(done) else 0.0


def stopped_facts(state: State, former: SolverTable | None) -> dict[str, Any]:
    """The facts of a table whose search was stopped; the earlier one's if that came farther."""
    before = trials_done(former)
    if former is not None and before is not None and before >= state.trials and "search" in former.facts:
        return {"interrupted": True, "trials_done": before, "search": former.facts["search"]}
    facts: dict[str, Any] = {"interrupted": True, "trials_done": round(state.trials, 6)}
    if state.best is None:
        return facts
    table, candidate = state.best.table, state.best.candidate
    return facts | {
        "search": {
            "angles": [*table.angles],
            "weights": [[*row] for row in table.weights],
            "network_angles": [*table.evaluated_angles],
            "candidate": {**vars(candidate), "sizes": [*candidate.sizes], "shifts": [*candidate.shifts]},
            "width": state.width,
            "damping": state.damping,
            "changes": state.changes,
        }
    }


def state_in(former: SolverTable, measure: Callable[[SolverTable, Candidate], Judged]) -> State:
    """Where the search of a stopped table stands; its beginning if the facts do not have it.

    `measure` evaluates a table that was found with a candidate.
    """
    kept: Any = former.facts.get("search")
    try:
        table = SolverTable(kept["angles"], kept["weights"], kept["network_angles"])
        candidate = Candidate(**kept["candidate"])
        candidate = replace(candidate, sizes=numbers(candidate.sizes), shifts=numbers(candidate.shifts))
        width, damping, *fitted = numbers([kept["width"], kept["damping"], candidate.ridge, candidate.robustness])
        counts = {table.nfe, len(candidate.sizes), len(candidate.shifts)}
        if counts != {former.nfe} or min(width, damping, *fitted) < 0 or candidate.base not in BASES:
            return State()
        best = measure(table, candidate)
        return State(trials_done(former) or 0.0, best, width, damping, changes=max(int(kept["changes"]), 0))
    except (KeyError, TypeError, ValueError, OverflowError, UsageError):  # a file that was edited
        return State()


def numbers(values: Any) -> tuple[float, ...]:
    """Finite numbers as floats; raises a ValueError for anything else."""
    if not all(map(is_finite, values)):
        raise ValueError("not finite numbers")
    return tuple(map(float, values))


def progress(done: float, asked: Mapping[str, Any]) -> str:
    """The trial or iteration, for a person."""
    trials = asked["trials"]
    if done <= trials:
        return f"trial {done:.0f}/{trials}"
    return f"iteration {math.ceil(done - trials)}/{asked['iterations']}"


def hurry(state: State, start: State, asked: Mapping[str, Any]) -> list[str]:
    """A note if calls of this length would not complete the search, however many there are."""
    if state.trials > start.trials:
        return []
    what = "the next step of the search"
    if state.trials >= asked["trials"]:
        what = "the iterations" if asked["method"] == "gradient" else "one iteration"
        what = f"{what} of method={asked['method']!r}"
    note = f"minutes was too short for {what} with {asked['nfe']} evaluations, which the next call will begin anew"
    return [f"{note}; pass more minutes, or none"]
