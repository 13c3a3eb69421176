"""Every error that the library raises on purpose, each written for the person who meets it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .public import public


@public
class SdesamplersError(Exception):
    """Base class. The command line prints the message alone and exits with `exit_code`.

    Args:
        message: one sentence, in which `{out}` stands for the argument `out`.
        arguments: how each argument that it names so is written in Python; on the command line it is an option.

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
        """Let the message end with more, which names arguments too."""
        self.args = (f"{super().__str__()}{text}",)
        self.arguments = {**self.arguments, **arguments}

    def naming(self, names: Mapping[str, str]) -> str:
        """The message with the arguments that it names written as in `names`."""
        text = super().__str__()
        for word in self.arguments:
            text = text.replace(f"{{{word}}}", names[word])
        return text

    @property
    def in_options(self) -> str:
        """The message with its arguments as options of the command line, `--json-log` for `json_log`."""
        return self.naming({word: "--" + word.replace("_", "-") for word in self.arguments})

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by message and attributes, whatever its constructor takes: a worker's error must reach its parent."""
        return _error_again, (type(self), self.args, dict(vars(self)))


def _error_again(kind: type[SdesamplersError], arguments: tuple[Any, ...], attributes: dict[str, Any]) -> Any:
    """A pickled or copied error."""
    error = kind.__new__(kind)
    error.args = arguments
    vars(error).update(attributes)
    return error


@public
class UsageError(SdesamplersError, ValueError):
    """The call itself is wrong: an unknown name, a bad option, contradictory arguments."""

    exit_code = 2


@public
class UnknownNameError(UsageError, LookupError):
    """A name that is not registered; the message offers the nearest ones.

    `opening` is what the message says first, where that is not "unknown KIND NAME".
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "", *, opening: str = "") -> None:
        self.kind, self.name = kind, name
        super().__init__(f"{opening or f'unknown {kind} {name!r}'}{advice(name, known)}{hint}")


@public
class ModelError(SdesamplersError):
    """A model could not be found, read or understood."""


@public
class PluginError(SdesamplersError):
    """A plugin failed to import or registered something invalid."""


class UnknownHookError(PluginError):
    """A plugin implements a hook that there is not; the message offers the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        super().__init__(f"unknown {kind} {name!r}{advice(name, known)}{hint}")


@public
class NonFiniteError(SdesamplersError, ArithmeticError):
    """The model or the solver produced NaN or infinity."""


@public
class Cancelled(SdesamplersError):
    """The run was stopped from outside; raise it in a callback to stop a run yourself."""


class ClaimError(SdesamplersError):
    """Another run is at work on the same job, or has taken it over."""


@public
class ConversionError(SdesamplersError, ZeroDivisionError):
    """A prediction that does not exist at this point (for example epsilon at sigma = 0)."""


def advice(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'euler'?", or "" where nothing is near."""
    near = nearest(name, known)
    return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def nearest(name: str, known: Iterable[str], count: int = 2) -> list[str]:
    """The known names closest to `name`, compared without case, spaces and punctuation; one that is the same, alone."""

    def plain(text: str) -> str:
        return "".join(c for c in text.lower() if c.isalnum())

    by_plain = {plain(k): k for k in reversed(list(known))}  # of names that look the same, the first
    if plain(name) and plain(name) in by_plain:
        return [by_plain[plain(name)]]
    return [by_plain[m] for m in difflib.get_close_matches(plain(name), by_plain, count, 0.6)]


def raised_at(error: BaseException, file: str) -> str:
    """ " (file.py, line 12)": the last line of a file that an exception came through; "" where it came through none."""
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
    """ " (file.py, line 12)": the last line outside of this library, pluggy and Python's imports that an exception came
    through; "" where there is none, or the error says it itself."""
    if isinstance(error, SyntaxError):
        return ""
    found, trace = "", error.__traceback__
    while trace is not None:
        file, line, trace = trace.tb_frame.f_code.co_filename, trace.tb_lineno, trace.tb_next
        if not file.startswith(("<frozen", str(Path(__file__).parent))) and Path(file).parent.name not in INSIDE:
            found = f" ({Path(file).name}, line {line})"
    return found


INSIDE = ("pluggy", "importlib")
"""Folders of files that a plugin's errors come through on their way."""


@public
class SolverError(SdesamplersError):
    """A solver gave up: a budget used up, or a step size that shrank to nothing."""
