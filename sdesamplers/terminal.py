"""What the terminal shows: progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def counting_bar(label: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error; what it yields is called with how many units more are done."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def evaluation_bar(label: str, total: int | None) -> Iterator[Callable[[Any], None]]:
    """A progress bar that advances by one for every model evaluation."""
    with counting_bar(label, total, "evaluations") as advance:
        yield lambda event: advance(1)
