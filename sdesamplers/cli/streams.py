"""Robust use of standard output and error, which may be closed, full, or unable to encode every character."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from ..errors import SdesamplersError
from ..text import printable


def prepare() -> None:
    """Prepare both streams: characters that the encoding lacks are escaped, and a closed stream is sent to /dev/null.

    Otherwise the next file to be opened would get the closed descriptor's number, and the output of libraries would go
    into that file.
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
    """Flush standard output after the body.

    Raises:
        SdesamplersError: standard output cannot be written.
        BrokenPipeError: its reader has exited.
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
    """Print text that may come from files, plugins and models, with control characters escaped."""
    if err:
        with suppress(OSError):  # the error cannot be reported
            click.echo(printable(text), err=True)
        return
    with writing():
        click.echo(printable(text))


def silence(stream: Any) -> None:
    """Redirect a stream to /dev/null, so that the interpreter does not fail to flush it at exit."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def flushed() -> bool:
    """True if standard output could be flushed."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        silence(sys.stdout)
        return False
    return True
