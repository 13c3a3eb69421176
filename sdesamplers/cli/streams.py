"""Standard output and error as they may be: closed, full, or without a way to write every character."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from ..errors import SdesamplersError
from ..io.text import printable


def prepare() -> None:
    """Let both streams take anything: what an ASCII locale lacks is spelt out, and a closed one leads nowhere.

    A closed descriptor is taken up here, since the next file that is opened would get its number, and what libraries
    print would go into that file.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  it stays open
        elif hasattr(stream, "reconfigure"):
            with suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")


@contextmanager
def writing() -> Iterator[None]:
    """Write to standard output, now.

    Raises:
        SdesamplersError: it cannot be written. A reader that has gone is a BrokenPipeError.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        silence(sys.stdout)
        raise SdesamplersError(f"standard output could not be written: {error.strerror or error}") from None


def say(text: Any = "", *, err: bool = False) -> None:
    """Print text of files, plugins and models, in which nothing is an order for the terminal."""
    if err:
        with suppress(OSError):  # there is nobody to tell
            click.echo(printable(text), err=True)
        return
    with writing():
        click.echo(printable(text))


def silence(stream: Any) -> None:
    """Let what a stream still holds go nowhere, so that the interpreter does not fail to write it when it ends."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def flushed() -> bool:
    """Whether standard output took all that was written to it."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        silence(sys.stdout)
        return False
    return True
