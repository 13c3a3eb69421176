"""The table of a comparison: as it grows, on a terminal or line by line, and at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..text import printable
from .streams import say
from .tables import status_line, table

if TYPE_CHECKING:
    from rich.table import Table

    from ..comparison import Cell, Comparison

VALUES = {"error": "ODE error", "frechet": "Fréchet", "sliced_wasserstein": "sliced W2"}
RESERVED = 8
"""Lines of a terminal that the growing table leaves free."""


@dataclass(frozen=True)
class Columns:
    """The columns of the table: names and widths in characters.

    Args:
        labels: the settings.
        models, scales: of the comparison; a column for each if there are several.
    """

    labels: Sequence[str]
    models: Sequence[str]
    scales: Sequence[float]

    @property
    def names(self) -> list[str]:
        """The headers; those that end in ">" are of right-aligned columns."""
        first = [*(["model"] if len(self.models) > 1 else []), *(["guidance>"] if len(self.scales) > 1 else [])]
        return [*first, "sampler", "NFE>", "steps>", "seconds>", *(f"{name}>" for name in VALUES.values())]

    @property
    def widths(self) -> list[int]:
        """The width of each column in lines of plain text."""
        fixed = {"model": max(map(len, self.models)), "sampler": max(8, *map(len, self.labels)), "seconds>": 16}
        return [fixed.get(name, 18 if name.rstrip(">") in VALUES.values() else 8) for name in self.names]

    def row(self, cell: Cell) -> list[str]:
        """The texts of a cell; without values if it could not be run."""
        first = [*([cell.model] if len(self.models) > 1 else [])]
        first += [f"{cell.guidance_scale:g}"] if len(self.scales) > 1 else []
        if cell.problem:
            return [*first, cell.sampler, f"({cell.budget})", *("" for _ in range(2 + len(VALUES)))]
        values = [number(cell, name) for name in VALUES]
        return [*first, cell.sampler, str(cell.nfe), str(cell.steps), number(cell, "seconds", ".1f"), *values]

    def line(self, texts: Sequence[str]) -> str:
        """Texts as a line of aligned columns."""
        groups = []
        for name, width, text in zip(self.names, self.widths, texts, strict=True):
            text = printable(text.rstrip(">"))
            groups.append(text.rjust(width) if name.endswith(">") else text.ljust(width))
        return "  ".join(groups).rstrip()


def number(cell: Cell, name: str, form: str = ".3g") -> str:
    """A value with half of the width of its interval, if it is known."""
    value = cell.value(name)
    if value is None:
        return "-"
    ends = cell.intervals.get(name)
    return format(value, form) if ends is None else f"{value:{form}} ±{(ends[1] - ends[0]) / 2:.2g}"


def comparison_table(result: Comparison) -> Table:
    """The cells of a comparison as a table, with the scores of real images and notes on the columns below it."""
    columns = columns_of(result)
    runs = f"{result.num_samples} samples, seed {result.seed}" + (
        f", {result.repeats} repeats" if result.repeats > 1 else ""
    )
    made = table(f"{result.model_name}: {runs}", *columns.names)
    before: list[str] = []
    repeated = columns.names.index("sampler") + 1
    for cell in result.cells:
        row = columns.row(cell)
        same = 0
        while same < repeated and before[same : same + 1] == [row[same]]:
            same += 1
        before = row
        made.add_row(*[""] * same, *row[same:], style="dim" if cell.problem else "")
    for group in result.all_groups:
        if group.floor is not None:
            made.add_section()
            scores = (
                f"{group.floor.frechet:.3g}",
                "-" if (w := group.floor.sliced_wasserstein) is None else f"{w:.3g}",
            )
            empty = [""] * (len(columns.names) - 3)
            made.add_row(f"{group.floor.count} real images", *empty, *scores, style="bold")
    made.caption = "\n".join(notes(result))
    made.caption_justify = "left"
    return made


def columns_of(result: Comparison) -> Columns:
    """The columns of a finished comparison."""
    cells = result.cells
    models, scales = dict.fromkeys(cell.model for cell in cells), dict.fromkeys(cell.guidance_scale for cell in cells)
    return Columns([cell.sampler for cell in cells], [*models], [*scales])


def notes(result: Comparison) -> list[str]:
    """What the columns mean, and why values are missing."""
    found = []
    groups = {group.model_name: group for group in result.all_groups}
    for group in groups.values():
        if group.metrics:
            found.append(f"Fréchet and sliced W2: {group.metrics}")
        if group.reference_count:
            of = f"{group.model_name}: " if len(groups) > 1 else ""
            found.append(
                f"ODE error: {of}RMS difference from rk45 at tolerance 1e-5 ({group.reference_nfe} NFE), first "
                f"{group.reference_count} samples, deterministic samplers"
            )
    if any(cell.intervals for cell in result.cells):
        found.append("±: half of the 95 % interval, for other samples (error) or seeds")
    found += [cell.problem for cell in result.cells if cell.problem]
    found += [f"no score: {cell.scoring_problem}" for cell in result.cells if cell.scoring_problem]
    return list(dict.fromkeys(found))


Streams = tuple["Callable[[Cell], None]", Callable[[str], None]]
"""The functions that receive each finished cell, and a line before each run."""


@contextmanager
def streamed(columns: Columns, *, silent: bool) -> Iterator[Streams]:
    """Show cells as they finish: a growing table on a terminal, otherwise lines; nothing if `silent`."""
    if silent:
        yield lambda cell: None, lambda line: None
    elif sys.stdout.isatty():
        with _live(columns) as found:
            yield found
    else:
        say(columns.line(columns.names))
        status = status_line() if sys.stderr.isatty() else lambda line: None
        try:
            yield lambda cell: say(columns.line(columns.row(cell))), status
        finally:
            status("")


@contextmanager
def _live(columns: Columns) -> Iterator[Streams]:
    """A table that grows on the terminal, of which the last rows are visible; it is removed at the end."""
    from rich.live import Live  # only a terminal needs it

    from ..io.terminal import console

    screen, cells, running = console(), list["Cell"](), [""]
    with Live(console=screen, transient=True, refresh_per_second=4, redirect_stdout=False) as live:

        def draw() -> None:
            made = table("", *columns.names)
            for cell in cells[-max(screen.height - RESERVED, 1) :]:
                made.add_row(*columns.row(cell), style="dim" if cell.problem else "")
            made.caption, made.caption_justify = printable(running[0]), "left"
            live.update(made)

        def add(cell: Cell) -> None:
            cells.append(cell)
            draw()

        def status(line: str) -> None:
            running[0] = line
            draw()

        yield add, status
