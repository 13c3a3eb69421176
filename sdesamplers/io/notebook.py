"""Progress bars in notebooks, which need no widgets: a displayed element that is replaced in place."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..text import printable

INTERVAL = 0.1
"""Seconds between two updates of a bar."""


def in_notebook() -> bool:
    """True in a kernel of Jupyter, Colab, VS Code or Databricks."""
    import sys

    if "IPython" not in sys.modules:
        return False
    from rich.console import _is_jupyter  # the rule by which rich decides

    return _is_jupyter()


@contextmanager
def notebook_bar(label: str, total: float | None, unit: str, done: float = 0) -> Iterator[Callable[[float, str], None]]:
    """A bar below the cell; call the yielded function with the number of units done so far and a message.

    The bar disappears at the end, so that a stored notebook has none.
    """
    from IPython.display import HTML, display  # there is one in a notebook

    begun, last = time.monotonic(), 0.0
    handle = display(HTML(bar_html(label, done, total, unit, 0.0)), display_id=True)

    def update(count: float, message: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= INTERVAL:
            last = now
            handle.update(HTML(bar_html(label, count, total, unit, now - begun, message)))

    try:
        yield update
    finally:
        handle.update(HTML(""))


def bar_html(label: str, count: float, total: float | None, unit: str, seconds: float, message: str = "") -> str:
    """The HTML of a bar; a bar without a total moves to and fro."""
    value = "" if total is None else f" value='{count:g}' max='{total:g}'"
    numbers = f"{count:.0f}" if total is None else f"{count:.0f}/{total:.0f}"
    text = " ".join(filter(None, (f"{numbers} {unit}" if unit else "", message, f"{seconds:.0f} s")))
    return f"<div>{html.escape(printable(label))} <progress{value}></progress> {html.escape(printable(text))}</div>"
