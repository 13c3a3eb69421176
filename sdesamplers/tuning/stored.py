"""The tables of earlier calls in the output folder of `tune`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..categories import OutputWarning
from ..checks import warn
from ..errors import UsageError
from ..io.files import make_folder
from ..sampling.table import SolverTable, file_name, read_table
from ..sampling.table_facts import are_close, same_size
from ..text import one_line

FORMER = "former"
"""Folder, inside the output folder, of tables that others have replaced."""
NEW = ("process", "prediction", "convention")
"""Facts that tables of earlier releases have not; the probe tells them apart."""
OPTIONAL = (
    "condition_fingerprint",
    "convention",
    "distance",
    "features",
    "functions",
    "guidance_interval",
    "warm_start",
)
"""Facts that a table has only if they differ from the usual."""
UNTOLD = (
    *("model", "revision", "signature", "process", "convention", "probe"),
    *("condition_fingerprint", "functions", "warm_start"),
)
"""Facts that mean nothing to a person, or are the same."""
OTHERWISE = "for another network, process, guidance, condition or function"


class Stored:
    """The tables in the output folder, which is created; none without a folder."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = None if folder is None else make_folder(folder)
        files = [] if self.folder is None else sorted(self.folder.glob("nfe-*.json"))
        self.tables = {file: read_table(file) for file in files}

    def find(self, asked: dict[str, Any]) -> SolverTable | None:
        """The table that was computed for these arguments, whole or interrupted.

        If a new one will take the place of another, the folder `former` is made, so that errors precede the search.

        Raises:
            UsageError: there is a table of another model, which would be overwritten, or no place for the former one.
        """
        replaced = file_name(asked["nfe"], asked["guidance_scale"])
        for file, table in self.tables.items():
            if is_of(table, asked):
                if not differences(table, asked):
                    return table
            elif file.name == replaced:
                refuse_other(str(file), table, asked)
            if file.name == replaced:
                make_folder(file.parent / FORMER)
        return None

    def save(self, table: SolverTable, asked: dict[str, Any]) -> None:
        """Write a table. One for other arguments, which it replaces, is kept in the folder `former`, with a warning."""
        if self.folder is None:
            return
        file = self.folder / table.file_name
        former = self.tables.get(file)
        changed = [] if former is None or former == table else differences(former, asked)
        if former is None or not changed:
            table.save(self.folder)
            with suppress(OSError):  # made for nothing, or not empty, or not there
                (self.folder / FORMER).rmdir()
            return
        kept = make_folder(file.parent / FORMER) / f"{file.stem}-{former.sha256[:8]}{file.suffix}"
        former.save(kept)
        table.save(self.folder)
        facts = former.facts
        pairs = {name: (plainly(facts.get(name)), plainly(asked.get(name))) for name in changed if name not in UNTOLD}
        told = ", ".join(f"{name} {before} (now {now})" for name, (before, now) in pairs.items() if before != now)
        how = f"with other arguments, {told}" if told else OTHERWISE
        if changed == ["warm_start"]:
            how = "from another beginning (warm_start)"
        warn(f"{file} was made {how}; it is now {kept}", OutputWarning)


def refuse_overwriting(place: str, former: SolverTable | None, table: SolverTable, other: str = "folder") -> None:
    """Raise a UsageError if the table in the place of this one's file is of another model."""
    if former is not None and not is_of(former, table.facts):
        refuse_other(place, former, table.facts, other)


def refuse_other(place: str, table: SolverTable, facts: Mapping[str, Any], other: str = "folder") -> NoReturn:
    """Refuse to overwrite the table of another model than that of the facts; `other` is what to choose instead."""
    name = table.facts.get("model")
    weights = " with other weights" if name == facts.get("model") else ""
    raise UsageError(f"{place} is a solver table of {name!r}{weights}; choose another {other}")


def is_of(table: SolverTable, facts: Mapping[str, Any]) -> bool:
    """True if a table is of the model with these facts, up to rounding; by its name if it has no network."""
    own, found = table.facts.get("signature") or [], facts.get("signature") or []
    if own and found:
        return len(own) == len(found) and all(map(same_size, own, found))
    return not own and not found and bool(table.facts.get("model") == facts.get("model"))


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
    if key in NEW and found is None:
        return True
    if key in ("process", "convention") and found and asked:
        return are_close(found, asked)
    if key == "probe":  # up to rounding, which other devices and memory formats change
        own, other = ([math.nan if value is None else value for value in each] for each in (found or [], asked))
        return len(own) == len(other) and bool(np.allclose(own, other, rtol=1e-3, atol=1e-3, equal_nan=True))
    if key == "functions" and isinstance(asked, Mapping) and None in asked.values():  # one that cannot be identified
        return False
    return bool(found == asked)
