"""The error classes of the library, and helpers for their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .public import public


@public
class SdesamplersError(Exception):
    """Base class of all errors of the library. The command line prints only the message and exits with `exit_code`.

    Args:
        message: one sentence, in which `{out}` stands for the argument `out`.
        arguments: for each argument named in the message, how it is written in Python (`out=`). The command line
            writes it as an option (`--out`).

    Example:
        >>> str(UsageError("choose another {out}", arguments={"out": "out="}))
        'choose another out='
    """

    exit_code = 1
    arguments: Mapping[str, str] = MappingProxyType({})

    def __init__(self, message: str = "", *, arguments: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        if arguments:
            self.arguments = dict(arguments)

    def __str__(self) -> str:
        return self.naming(self.arguments)

    def add(self, text: str, arguments: Mapping[str, str]) -> None:
        """Append `text` to the message; `arguments` are the placeholders that it contains."""
        self.args = (f"{super().__str__()}{text}",)
        self.arguments = {**self.arguments, **arguments}

    def naming(self, names: Mapping[str, str]) -> str:
        """The message with its placeholders replaced by the values in `names`."""
        text = super().__str__()
        for name in self.arguments:
            text = text.replace(f"{{{name}}}", names[name])
        return text

    def put_before(self, text: str) -> None:
        """Put `text`, such as a file and a line, before the message."""
        self.args = (f"{text}: {super().__str__()}",)

    @property
    def in_options(self) -> str:
        """The message with its arguments written as command line options, `--json-log` for `json_log`."""
        return self.naming({name: "--" + name.replace("_", "-") for name in self.arguments})

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by message and attributes, whatever the constructor's signature, so that errors cross processes."""
        return _error_again, (type(self), self.args, dict(vars(self)))


def _error_again(kind: type[SdesamplersError], arguments: tuple[Any, ...], attributes: dict[str, Any]) -> Any:
    """Rebuild a pickled or copied error."""
    error = kind.__new__(kind)
    error.args = arguments
    vars(error).update(attributes)
    return error


@public
class UsageError(SdesamplersError, ValueError):
    """Invalid or conflicting arguments: an unknown name, a bad option, arguments that contradict each other."""

    exit_code = 2


@public
class UnknownNameError(UsageError, LookupError):
    """A name that is not registered; the message suggests similar names.

    `opening` replaces the start of the message, "unknown KIND NAME"; `near` are the names suggested.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "", *, opening: str = "") -> None:
        self.kind, self.name, self.near = kind, name, nearest(name, known)
        super().__init__(f"{opening or f'unknown {kind} {name!r}'}{advice(self.near)}{hint}")


@public
class ModelError(SdesamplersError):
    """A model could not be found or read, or it is not supported or returns something invalid."""


@public
class PluginError(SdesamplersError):
    """A plugin failed to import or registered something invalid."""


class UnknownHookError(PluginError):
    """A plugin implements a hook that does not exist; the message suggests similar names."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        super().__init__(f"unknown {kind} {name!r}{advice(nearest(name, known))}{hint}")


@public
class NonFiniteError(SdesamplersError, ArithmeticError):
    """The model or the solver produced NaN or infinity."""


@public
class Cancelled(SdesamplersError):
    """The run was cancelled. Raise it in a callback to stop a run."""


class ClaimError(SdesamplersError):
    """Another process is working on the same job, or has taken it over."""


@public
class ConversionError(SdesamplersError, ZeroDivisionError):
    """A prediction is undefined at this point (for example epsilon at sigma = 0)."""


def advice(near: Iterable[str]) -> str:
    """Return "; did you mean 'euler'?", or "" if there is no similar name."""
    return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def nearest(name: str, known: Iterable[str], count: int = 2) -> list[str]:
    """Return up to `count` known names closest to `name`, ignoring case, spaces and punctuation.

    A known name without any other difference is returned on its own.
    """

    def plain(text: str) -> str:
        return "".join(c for c in text.lower() if c.isalnum())

    by_plain = {plain(k): k for k in reversed(list(known))}  # the first of several names with the same plain form
    if plain(name) and plain(name) in by_plain:
        return [by_plain[plain(name)]]
    return [by_plain[m] for m in difflib.get_close_matches(plain(name), by_plain, count, 0.6)]


def summary(error: BaseException) -> str:
    """Return an exception's class and message; only the message for an error of this library.

    The message about a misspelt attribute also has similar names.
    """
    if isinstance(error, SdesamplersError):
        return str(error)
    near: list[str] = []
    if isinstance(error, AttributeError) and error.name and error.obj is not None:
        near = nearest(error.name, [name for name in dir(error.obj) if not name.startswith("_")])
    return f"{type(error).__name__}: {error}{advice(near)}"


def add_note(error: BaseException, note: str) -> None:
    """Add a line that tracebacks show below the exception's message; Python 3.10 stores it and does not show it."""
    error.__dict__.setdefault("__notes__", []).append(note)


def notes_of(error: BaseException) -> str:
    """The lines that were added to an exception, as text that follows its message."""
    return "".join(getattr(error, "__notes__", ()))


def with_article(name: str) -> str:
    """Return a class's name with "a" or "an"; "U" is read as in "UNet"."""
    return f"{'an' if name[:1].upper() in set('AEIO') or name == 'ndarray' else 'a'} {name}"


def raised_at(error: BaseException, file: str) -> str:
    """Return " (file.py, line 12)", the last line of `file` in the exception's traceback or its causes', or ""."""
    source: BaseException | None = error
    while source is not None:
        lines, trace = list[int](), source.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == file:
                lines.append(trace.tb_lineno)
            trace = trace.tb_next
        if lines:
            return f" ({Path(file).name}, line {lines[-1]})"
        source = source.__cause__ or source.__context__
    return ""


def last_place(error: BaseException) -> str:
    """Return " (file.py, line 12)", the last line of the traceback outside this library, pluggy and importlib.

    Returns "" if there is no such line, or for a SyntaxError, whose message has its own file and line.
    """
    if isinstance(error, SyntaxError):
        return ""
    found, trace = "", error.__traceback__
    while trace is not None:
        file, line, trace = trace.tb_frame.f_code.co_filename, trace.tb_lineno, trace.tb_next
        if not file.startswith(("<frozen", str(Path(__file__).parent))) and Path(file).parent.name not in INSIDE:
            found = f" ({Path(file).name}, line {line})"
    return found


INSIDE = ("pluggy", "importlib")
"""Folders whose files `last_place` skips, besides this package."""


@public
class SolverError(SdesamplersError):
    """A solver gave up: its budget is used up, or its step size became too small."""
