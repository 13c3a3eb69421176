"""Searches that are stopped and continued: what one begins from, how far it came, and what the next need not repeat."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..categories import AccuracyWarning
from ..checks import warn
from ..sampling.table import SolverTable
from ..sampling.table_facts import is_finite
from .search import Candidate, Judged


@dataclass(frozen=True)
class Beginning:
    """What a search begins from.

    Attributes:
        warm: a table that the caller passed.
        former: the table of an earlier call with the same arguments, which was stopped.
        continues: True if its trials and iterations are not repeated, False if the search begins anew.
    """

    warm: SolverTable | None = None
    former: SolverTable | None = None
    continues: bool = False

    @property
    def before(self) -> int:
        """The trials and iterations that are not repeated."""
        return (trials_done(self.former) or 0) if self.continues else 0


@dataclass(frozen=True)
class Start:
    """The same as the search takes it.

    Attributes:
        firsts: candidates that come first.
        known: the best table so far.
        former: the table of the earlier call, with its errors on the fitting starts.
        before: the trials and iterations that are not repeated.
    """

    firsts: list[Candidate]
    known: Judged | None
    former: Judged | None
    before: int = 0


def trials_done(table: SolverTable | None) -> int | None:
    """The trials and iterations of a table whose search was stopped early; 0 if unknown; None if it was completed."""
    if table is None or not table.facts.get("interrupted"):
        return None
    done: Any = table.facts.get("trials_done")
    return max(int(done), 0) if is_finite(done) else 0


def resumable(done: float, asked: Mapping[str, Any]) -> int:
    """The trials and iterations that need not be repeated: whole steps of "joint", and none of "gradient".

    Adam's steps depend on those before them.
    """
    return min(int(done), asked["trials"]) if asked["method"] == "gradient" else int(done)


def stopped_facts(done: float, asked: Mapping[str, Any], former: SolverTable | None) -> dict[str, Any]:
    """The facts of a table whose search was stopped; `former` is the earlier table, if it is the result again."""
    return {"interrupted": True, "trials_done": max(resumable(done, asked), trials_done(former) or 0)}


def progress(done: float, asked: Mapping[str, Any]) -> str:
    """The trial or iteration, for a person."""
    trials = asked["trials"]
    if done <= trials:
        return f"trial {done:.0f}/{trials}"
    return f"iteration {math.ceil(done - trials)}/{asked['iterations']}"


def warn_of_hurry(done: float, before: int, asked: Mapping[str, Any]) -> None:
    """Warn if calls of this length would not complete the search, however many there are."""
    if resumable(done, asked) > before:
        return
    what = "the iterations" if asked["method"] == "gradient" else "one iteration"
    warn(
        f"minutes was too short for {what} of method={asked['method']!r} with {asked['nfe']} evaluations, which the "
        "next call will begin anew; pass more minutes, or none",
        AccuracyWarning,
    )
