"""Terminal output with rich: a console for untrusted text, and progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..text import printable
from .notebook import in_notebook, notebook_bar

if TYPE_CHECKING:
    from rich.console import Console


def console(**options: Any) -> Console:
    """A rich console that prints text literally: no markup, no emoji codes, no control sequences."""
    from rich.console import Console  # only a terminal needs it
    from rich.text import Text  # only a terminal needs it

    class Plain(Console):
        """Console that makes every string printable first."""

        def render_str(self, text: str, **kwargs: Any) -> Text:
            """Render text literally, without control characters."""
            return super().render_str(printable(text), **{**kwargs, "markup": False, "emoji": False})

    return Plain(markup=False, emoji=False, highlight=False, **options)


@contextmanager
def counting_bar(label: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error; call the yielded function with the number of units done since the last call."""
    if in_notebook():
        done = 0
        with notebook_bar(label, total, unit) as show:

            def advance(count: int) -> None:
                nonlocal done
                done += count
                show(done, "")

            yield advance
        return
    # only a terminal needs it
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        task = progress.add_task(printable(label), total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def message_line(label: str) -> Iterator[Callable[[str], None]]:
    """A line on standard error with a spinner and the time; call the yielded function to replace its message."""
    if in_notebook():
        with notebook_bar(label, None, "") as show:
            yield lambda message: show(0, message)
        return
    # only a terminal needs it
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = [SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()]
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        task = progress.add_task(printable(label), total=None)
        yield lambda message: progress.update(task, description=printable(f"{label}: {message}"))


@contextmanager
def evaluation_bar(label: str, total: int | None) -> Iterator[Callable[[Any], None]]:
    """A progress bar that advances by one for every model evaluation."""
    with counting_bar(label, total, "evaluations") as advance:
        yield lambda event: advance(1)


@contextmanager
def samples_bar(label: str, total: int, done: int) -> Iterator[Callable[[float], None]]:
    """A progress bar over samples, with their rate; call the yielded function with the number done so far."""
    if in_notebook():
        with notebook_bar(label, total, "samples", done) as show:
            yield lambda count: show(count, "")
        return
    # only a terminal needs it
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
    from rich.text import Text  # only a terminal needs it

    class Rate(ProgressColumn):
        """Samples per second, and the time left at that rate."""

        def render(self, task: Task) -> Text:
            if not task.speed:
                return Text("-- samples/s")
            left = (task.total - task.completed) / task.speed if task.total is not None else 0.0
            minutes, seconds = divmod(round(left), 60)
            return Text(f"{task.speed:.3g} samples/s, {minutes // 60}:{minutes % 60:02d}:{seconds:02d} left")

    counter = TextColumn("{task.completed:.0f}/{task.total:.0f}")
    columns = [TextColumn("{task.description}", markup=False), BarColumn(), counter, TimeElapsedColumn(), Rate()]
    with Progress(*columns, console=console(stderr=True), transient=True, speed_estimate_period=120.0) as progress:
        task = progress.add_task(printable(label), total=total, completed=done)
        yield lambda count: progress.update(task, completed=count)
