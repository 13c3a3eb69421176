"""The tables of earlier calls in the output folder of `tune`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..categories import OutputWarning
from ..checks import warn
from ..errors import UsageError
from ..io.files import file_errors, make_folder
from ..sampling.table import SolverTable, read_table
from ..sampling.table_facts import is_finite, same_size
from ..text import one_line

FORMER = "former"
"""Folder, inside the output folder, of tables that others have replaced."""
OPTIONAL = ("condition_fingerprint", "distance", "features", "guidance_interval", "warm_start")
"""Facts that a table has only if they differ from the usual."""
UNTOLD = ("model", "revision", "signature", "probe", "condition_fingerprint", "warm_start")
"""Facts that mean nothing to a person, or are the same."""


class Stored:
    """The tables in the output folder, which is created; none without a folder."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = None if folder is None else make_folder(folder)
        files = [] if self.folder is None else sorted(self.folder.glob("nfe-*.json"))
        self.tables = {file: read_table(file) for file in files}

    def find(self, asked: dict[str, Any]) -> SolverTable | None:
        """The table that was computed for these arguments, whole or interrupted.

        Raises:
            UsageError: there is a table of another model, which would be overwritten.
        """
        for file, table in self.tables.items():
            name = table.facts.get("model")
            if table.nfe == asked["nfe"] and not is_of(table, asked):
                weights = " with other weights" if name == asked["model"] else ""
                raise UsageError(f"{file} is a solver table of {name!r}{weights}; choose another folder")
            if not differences(table, asked):
                return table
        return None

    def save(self, table: SolverTable, asked: dict[str, Any]) -> None:
        """Write a table. One for other arguments, which it replaces, is moved to the folder `former`, with a warning.

        A table from which the search began is not kept: the new one is as good or better.
        """
        if self.folder is None:
            return
        file = self.folder / table.file_name
        former = self.tables.get(file)
        if former is not None and former.sha256 not in (table.sha256, asked.get("warm_start")):
            self.keep(file, former, asked)
        table.save(self.folder)

    def keep(self, file: Path, former: SolverTable, asked: dict[str, Any]) -> None:
        """Move a table to the folder `former` if it is for other arguments."""
        changed = differences(former, asked)
        if not changed:
            return
        kept = make_folder(file.parent / FORMER) / f"{file.stem}-{former.sha256[:8]}{file.suffix}"
        with file_errors(kept):
            file.replace(kept)
        facts = former.facts
        pairs = {name: (plainly(facts.get(name)), plainly(asked.get(name))) for name in changed if name not in UNTOLD}
        told = ", ".join(f"{name} {before} (now {now})" for name, (before, now) in pairs.items() if before != now)
        how = f"with other arguments, {told}" if told else "for another network, guidance, condition or function"
        warn(f"{file} was made {how}; it is now {kept}", OutputWarning)


def is_of(table: SolverTable, asked: dict[str, Any]) -> bool:
    """True if a table is of the model with these facts, up to rounding; by its name if it has no network."""
    own, found = table.facts.get("signature") or [], asked["signature"]
    if own and found:
        return len(own) == len(found) and all(map(same_size, own, found))
    return not own and not found and bool(table.facts.get("model") == asked["model"])


def differences(table: SolverTable, asked: dict[str, Any]) -> list[str]:
    """The names of arguments that differ from those that a table was computed for."""
    facts = dict(table.facts)
    if asked["signature"] and facts.get("signature") == asked["signature"]:
        facts["model"] = asked["model"]  # a folder that was moved, or whose path is spelled differently
    if "warm_start" in facts and table.sha256 == asked.get("warm_start"):  # written to where its beginning was
        facts["warm_start"] = table.sha256
    return [key for key in dict.fromkeys((*asked, *OPTIONAL)) if not _is_same(key, facts.get(key), asked.get(key))]


def plainly(value: Any) -> str:
    """A fact for a person; the teacher's is a dictionary."""
    if isinstance(value, Mapping):
        value = f"{value.get('sampler')} at {value.get('nfe')}"
    return "-" if value is None else one_line(value)


def _is_same(key: str, found: Any, asked: Any) -> bool:
    """True if a fact is what is asked for."""
    if key == "teacher":
        return isinstance(found, Mapping) and {k: v for k, v in found.items() if k != "errors"} == asked
    if key in ("process", "prediction") and found is None:  # of an earlier release; the probe tells them apart
        return True
    if key == "probe":  # up to rounding, which other devices and memory formats change
        return (
            isinstance(found, list)
            and len(found) == len(asked)
            and bool(np.allclose(found, asked, rtol=1e-3, atol=1e-3))
        )
    nameless = key in ("distance", "features") and asked is not None and "<" in asked  # a lambda, or a local function
    return bool(found == asked) and not nameless


def trials_done(table: SolverTable | None) -> float | None:
    """The trials and iterations of a table whose search was stopped early; 0 if unknown; None if it was completed."""
    if table is None or not table.facts.get("interrupted"):
        return None
    done: Any = table.facts.get("trials_done")
    return float(done) if is_finite(done) else 0.0


def better(one: SolverTable, other: SolverTable) -> SolverTable:
    """The table with the smaller product of RMS and median error on the starts for the report."""

    def size(table: SolverTable) -> float:
        errors = table.facts.get("errors") or {}
        rms, median = errors.get("rms"), errors.get("median")
        return math.inf if rms is None or median is None else float(rms * median)

    return one if size(one) <= size(other) else other
