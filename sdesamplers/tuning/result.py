"""`Tuning`: the solver tables of a call of `tune`, in a folder or on the Hub, with a page that describes them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..categories import OutputWarning
from ..checks import one_of_types, warn
from ..errors import UsageError
from ..html import rows_table
from ..hub.cards import README, may_replace, place_of_card
from ..hub.upload import Destination
from ..io.files import make_folder, write
from ..io.paths import expanded
from ..pretrained.hub_files import TABLES, fetch_samplers
from ..public import public
from ..report.inline import inline
from ..sampling.table import SolverTable, TableSet, read_table, read_tables
from ..sampling.table_plots import plot_tables
from ..text import aligned
from .card import TITLE, make_card
from .stored import refuse_overwriting
from .tuner import in_digits

PICTURE = "tables.png"

COLUMNS = {"rms": "RMS error", "median": "median error", "distance": "distance", "frechet": "Fréchet"}
"""Names of errors in a table's facts, and their titles."""


@public
@dataclass(eq=False)
class Tuning(TableSet):
    """The result of `tune`, which `sample`, `compare` and `Scheduler` accept as a sampler.

    Attributes:
        tables: number of evaluations -> `SolverTable`; the table's `facts` have its errors and those of the best fixed
            setting on the starts for the report.
        interrupted: True if a search was stopped early, by Ctrl-C or `minutes`, or a table is missing.

    Example:
        >>> tuning = sds.tune("fashion-mnist", nfe=[5, 8])
        >>> sds.sample("fashion-mnist", tuning, nfe=8, num_samples=16)
    """

    tables: dict[int, SolverTable] = field(default_factory=dict)
    interrupted: bool = False

    def save(self, folder: str | Path, *, card: bool = True) -> list[Path]:
        """Write each table to `nfe-N.json` in a folder, and a card, README.md with tables.png; returns the files.

        The card describes all tables in the folder: their errors beside those of the best fixed settings, a picture,
        how they were made and how they are used. A README.md with other text is left as it is. The picture requires
        matplotlib.

        Args:
            folder: created if it does not exist.
            card: False for the tables alone.

        Raises:
            SdesamplersError: a file could not be written.
            UsageError: the folder has a file `nfe-*.json` that is not a table, or that is one of another model and
                would be overwritten.
        """
        place = make_folder(expanded(one_of_types("folder", folder, (str, Path), "a path")))
        for table in self.tables.values():
            file = place / table.file_name
            refuse_overwriting(str(file), read_table(file) if file.exists() else None, table)
        files = [table.save(place) for table in self.tables.values()]
        readme = place / README
        if not card or not files or not may_replace(_text_of(readme), TITLE):
            return files
        tables = read_tables(place)
        picture = _picture(tables)
        name = place.resolve().name
        source = None if name == TABLES else f"./{name}"
        files.append(write(readme, make_card(tables, source, picture=None if picture is None else PICTURE)))
        return files if picture is None else [*files, write(place / PICTURE, picture)]

    def push_to_hub(
        self,
        repo: str,
        *,
        revision: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the tables to the folder `sdesamplers` of a Hub repository, with a card, in one commit.

        Anyone can then use them as `sampler="hf://owner/name"`; in the repository of the model itself, also as
        "tuned". The card, README.md, describes all tables in that folder. A README.md with other text is left as it is,
        and the card is then `sdesamplers/README.md`. It names no licence: that line is left to you.

        Args:
            repo: "owner/name"; created if it does not exist.
            revision: the branch, "main" by default; created if it does not exist.
            private: make a new repository private, or public; the owner's default if None.
            token: of the Hub; that of the login by default.
            commit_message: of the commit.
            create_pr: propose the files in a pull request, for a repository that you may not write to.

        Returns:
            The address of the commit, or of the pull request.

        Raises:
            ModelError: no connection or no permission; in one line.
            UsageError: there are no tables, `repo` is not an id, or the folder on the Hub has a file `nfe-*.json` that
                is not a table, or that is one of another model and would be overwritten.

        Example:
            >>> sds.tune("owner/model", nfe=[5, 8]).push_to_hub("owner/model-tables")
            >>> sds.sample("owner/model", "hf://owner/model-tables", nfe=8)
        """
        if not self.tables:
            raise UsageError("there are no solver tables to push")
        to = Destination(repo, revision, token)
        if not create_pr:
            to.create(private)
        files = {f"{TABLES}/{table.file_name}": table for table in self.tables.values()}
        listed = ", ".join(str(table.nfe) for table in self.tables.values())
        names = to.names()
        there = _tables_on(to, names)
        for path, table in files.items():
            refuse_overwriting(f"{path} of {to.source}", there.get(path), table, "repository, or another revision")
        tables = list({**there, **files}.values())
        card, picture = place_of_card(to, names, TITLE, TABLES), _picture(tables)
        place = f"{TABLES}/{PICTURE}" if card == README else PICTURE
        text = make_card(tables, to.source, picture=None if picture is None else place)
        contents = {path: table.as_json().encode() for path, table in files.items()} | {card: text.encode()}
        if picture is not None:
            contents[f"{TABLES}/{PICTURE}"] = picture
        message = commit_message or f"Add solver tables for {listed} evaluations"
        return to.commit(contents, message, create_pr=create_pr)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each table: its evaluations and errors, those of the best fixed setting and of the teacher."""
        rows = []
        for nfe, table in self.tables.items():
            found = {"rms": None, "median": None, **(table.facts.get("errors") or {})}
            fixed = {"rms": None, "median": None, "setting": "-", **(found.get("fixed") or {})}
            returned, teacher = table.facts.get("returned", "-"), dict(table.facts.get("teacher") or {})
            rows.append({"nfe": nfe, "returned": returned, **found, "fixed": fixed, "teacher": teacher})
        return rows

    def report(self) -> tuple[list[str], list[list[str]]]:
        """The titles and rows of a table of errors, as texts.

        Each number of evaluations has a row for its table and one for the best fixed setting on the same starts; one
        row if that setting was better than all that the search found. There is a column for the mean of another
        distance, and for the Fréchet distance of features, if one of the tables was tuned by it. Below them are the
        teacher's own errors.
        """
        found = {nfe: table.facts.get("errors") or {} for nfe, table in self.tables.items()}
        names = [name for name in COLUMNS if name in ("rms", "median") or any(name in each for each in found.values())]
        lines, teachers = [], []
        for nfe, table in self.tables.items():
            fixed, returned = found[nfe].get("fixed") or {}, str(table.facts.get("returned", "tuned"))
            lines.append([str(nfe), returned, *_cells(found[nfe], names)])
            if "setting" in fixed and not returned.startswith("fixed"):
                lines.append(["", f"best fixed: {fixed['setting']}", *_cells(fixed, names)])
            teacher = table.facts.get("teacher") or {}
            if "errors" in teacher:
                label = f"teacher: {teacher.get('sampler')} at {teacher.get('nfe')}"
                teachers.append(["", label, *_cells(teacher["errors"] or {}, names)])
        lines += [row for i, row in enumerate(teachers) if row not in teachers[:i]]
        return ["evaluations", "sampler", *(COLUMNS[name] for name in names)], lines

    def _repr_html_(self) -> str:
        """For notebooks: the errors by number of evaluations, and the grids and weights of the tables."""
        count = len(self.tables)
        stopped = ", stopped early" if self.interrupted else ""
        title = f"Solver tables for {count} number{'s' * (count != 1)} of evaluations{stopped}"
        return rows_table(title, *self.report()) + (inline(lambda: plot_tables(self.tables)) if count else "")

    def __str__(self) -> str:
        columns, rows = self.report()
        return aligned([columns, *rows])


def _cells(errors: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [in_digits(errors[name]) if name in errors else "-" for name in names]


def _tables_on(to: Destination, names: Sequence[str]) -> Mapping[str, SolverTable]:
    """The tables in the folder `sdesamplers` of a repository, which has files of these names; by path."""
    if not any(fnmatch(name, f"{TABLES}/nfe-*.json") for name in names):
        return {}
    place, _ = fetch_samplers(to.address.inside(TABLES), token=to.token)
    return {f"{TABLES}/{table.file_name}": table for table in read_tables(place)}


def _text_of(file: Path) -> str | None:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None


def _picture(tables: Sequence[SolverTable]) -> bytes | None:
    """The PNG of `plot_tables`; None, with a warning, without matplotlib."""
    try:
        figure = plot_tables(tables)
    except UsageError as reason:
        warn(f"{PICTURE} is not made: {reason}", OutputWarning)
        return None
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
