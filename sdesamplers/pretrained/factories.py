"""`FILE.py:NAME`: a user's own object, given by its Python file and its name in that file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelError, UnknownNameError, UsageError, raised_at
from ..io.paths import expanded
from ..registry.discovery import import_file


def is_factory(name: str) -> bool:
    """Return True if a name has the form FILE.py:NAME."""
    file, colon, name = name.rpartition(":")
    return bool(colon) and file.endswith(".py") and name.isidentifier()


def from_file(name: str, kind: type | tuple[type, ...], options: Mapping[str, Any] | None = None) -> Any:
    """Return the object that FILE.py:NAME refers to: NAME itself if it is a `kind`, else what calling NAME returns.

    The file is imported, which runs its code. Only names that the user typed reach this function.

    Args:
        name: FILE.py:NAME.
        kind: the required class of the object, or several that are allowed.
        options: keyword arguments of the call, all of which NAME must accept.

    Raises:
        UsageError: the file or the name in it does not exist, the options do not match the function's parameters, or
            NAME is not a function and options are given.
        ModelError: the file or the function raises (the message has the line), or the function returns an object of
            another class.
    """
    path, _, attribute = name.rpartition(":")
    file = expanded(path).resolve()
    if not file.is_file():
        raise UsageError(f"{name}: there is no file {path}")
    module = _run(name, file, lambda: import_file(file))
    found = vars(module).get(attribute)
    if found is None:
        public = [key for key in vars(module) if not key.startswith("_")]
        raise UnknownNameError("name", attribute, public, opening=f"{path} defines no {attribute!r}")
    if not isinstance(found, kind):
        found = _called(name, file, found, dict(options or {}))
    elif options:
        raise UsageError(f"{name} is an object and takes no {next(iter(options))}; name a function that creates it")
    if not isinstance(found, kind):
        returned = type(found).__name__
        advice = "; wrap a network with sds.wrap(network, ...)" if hasattr(found, "forward") else ""
        wanted = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise ModelError(f"{name} returned {returned}, but must return a {wanted}{advice}")
    return found


def _called(name: str, file: Path, function: Any, options: dict[str, Any]) -> Any:
    if not callable(function):
        raise UsageError(f"{name} is {type(function).__name__}; it must be a function that creates the object")
    try:
        inspect.signature(function).bind(**options)
    except TypeError as error:
        given = f"the options {', '.join(options)}" if options else "no arguments"
        raise UsageError(f"{name} cannot be called with {given}: {error}") from None
    return _run(name, file, lambda: function(**options))


def _run(name: str, file: Path, call: Any) -> Any:
    try:
        return call()
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # a user's file may raise anything, including SystemExit
        place = "" if isinstance(error, SyntaxError) else raised_at(error, str(file))
        raise ModelError(f"{name}: {type(error).__name__}: {error}{place}") from error
