"""`module.py:factory`: an object of the user's own, named on the command line by its file and its name there."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelError, UnknownNameError, UsageError, raised_at
from ..registry.discovery import import_file


def is_factory(name: str) -> bool:
    """Whether a name is of the form FILE.py:NAME."""
    file, colon, name = name.rpartition(":")
    return bool(colon) and file.endswith(".py") and name.isidentifier()


def from_file(name: str, kind: type, options: Mapping[str, Any] | None = None) -> Any:
    """The object that FILE.py:NAME stands for: NAME itself, or what it returns if it can be called.

    The file is imported, which runs it; nothing but a name that the user typed leads here.

    Args:
        name: FILE.py:NAME.
        kind: the class that the object must be of.
        options: keyword arguments of the call, each of which NAME must take.

    Raises:
        UsageError: no such file or name in it, or a function that needs or lacks arguments.
        ModelError: the file or the function fails, or returns something else; with the line.
    """
    path, _, word = name.rpartition(":")
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise UsageError(f"{name}: there is no file {path}")
    module = _run(name, file, lambda: import_file(file))
    found = vars(module).get(word)
    if found is None:
        public = [key for key in vars(module) if not key.startswith("_")]
        raise UnknownNameError("name", word, public, opening=f"{path} defines no {word!r}")
    if not isinstance(found, kind):
        found = _called(name, file, found, dict(options or {}))
    elif options:
        raise UsageError(f"{name} is made already and takes no {next(iter(options))}; name a function that makes it")
    if not isinstance(found, kind):
        what = type(found).__name__
        advice = "; wrap a network by sds.wrap(network, ...)" if hasattr(found, "forward") else ""
        raise ModelError(f"{name} returned {what}, and must return a {kind.__name__}{advice}")
    return found


def _called(name: str, file: Path, function: Any, options: dict[str, Any]) -> Any:
    if not callable(function):
        raise UsageError(f"{name} is {type(function).__name__}; it must be a function that makes the object")
    try:
        inspect.signature(function).bind(**options)
    except TypeError as error:
        given = f"{', '.join(options)} (as asked for)" if options else "no arguments"
        raise UsageError(f"{name} is called with {given}: {error}") from None
    return _run(name, file, lambda: function(**options))


def _run(name: str, file: Path, call: Any) -> Any:
    try:
        return call()
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # whatever the user's file raises, a SystemExit too
        place = "" if isinstance(error, SyntaxError) else raised_at(error, str(file))
        raise ModelError(f"{name}: {type(error).__name__}: {error}{place}") from error
