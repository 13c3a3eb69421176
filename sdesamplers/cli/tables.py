"""Output of commands: tables, lists and JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ..text import printable, without_nan
from .streams import say, writing

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def show(table: Table) -> None:
    """Print a table at the width of the terminal or $COLUMNS, otherwise 160 columns wide."""
    from ..io.terminal import console

    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    with writing():
        console(width=None if known else 160).print(table)


def table(title: str, *columns: str) -> Table:
    """An empty table; columns that end in ">" are right-aligned."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for column in columns:
        made.add_column(column.rstrip(">"), justify="right" if column.endswith(">") else "left", overflow="fold")
    return made


def emit(data: Any) -> None:
    """Print data as JSON, with null for NaN and infinity, which JSON lacks."""
    with writing():
        click.echo(json.dumps(without_nan(data), indent=2, default=str, allow_nan=False))


def listing(title: str, *columns: str) -> Table:
    """A compact table with one line per entry; the last column gets the remaining width."""
    made = table(title, *columns)
    made.columns[0].no_wrap = True
    made.pad_edge, made.show_edge, made.padding = False, False, (0, 1, 0, 0)
    return made


def one_line(text: str) -> Text:
    """Text of a cell that is cut off if the table is too narrow for it."""
    from rich.text import Text

    return Text(printable(text), no_wrap=True, overflow="ellipsis")


def styled(text: str, style: str = "") -> Text:
    """Text in a style; markup in the text itself is printed literally."""
    from rich.text import Text

    return Text(printable(text), style)


def status_line() -> Callable[[str], None]:
    """A function that overwrites a status line on standard error, or prints lines if that is not a terminal."""
    if not sys.stderr.isatty():
        return lambda line: say(line, err=True) if line else None
    return lambda line: click.echo(f"\r\x1b[2K{printable(line)}", err=True, nl=False)
