"""The logger of the library, "sdesamplers", and its verbosity."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

from ..checks import choice
from ..errors import UsageError
from ..public import public
from ..text import one_line

logger = logging.getLogger("sdesamplers")
"""Runs, models and jobs are logged as INFO, plugins as DEBUG; what needs attention is a warning (`categories.py`)."""
LEVELS = {name: getattr(logging, name.upper()) for name in ("debug", "info", "warning", "error", "critical")}


class OneLine(logging.Formatter):
    """Formatter that escapes control characters, since names and paths come from files and from the Hub."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the name in the base class
        return one_line(super().formatMessage(record))


class Stderr(logging.StreamHandler[TextIO]):
    """Handler that writes to the standard error of the moment: a progress bar then keeps its place below the lines.

    It is silent if the application has its own handlers at the root, which receive the records too.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if not (logging.getLogger().handlers and logger.propagate):
            self.stream = sys.stderr
            super().emit(record)


@public
def set_verbosity(verbosity: int | str) -> None:
    """Set which messages of the logger "sdesamplers" are shown.

    They are written to standard error, above a progress bar, unless the program has configured `logging` itself: then
    its handlers receive them.

    Args:
        verbosity: "debug", "info", "warning" (the default), "error" or "critical", or a level of `logging`.

    Raises:
        UsageError: no such level.

    Example:
        >>> sds.set_verbosity("info")
    """
    if isinstance(verbosity, bool) or not isinstance(verbosity, int | str):
        raise UsageError(f"verbosity must be a level of logging or its name, not {verbosity!r}")
    level = verbosity if isinstance(verbosity, int) else LEVELS[choice("verbosity", verbosity.lower(), LEVELS)]
    logger.setLevel(level)
    if not any(isinstance(handler, Stderr) for handler in logger.handlers):
        handler = Stderr()
        handler.setFormatter(OneLine("%(name)s: %(levelname)s: %(message)s"))
        logger.addHandler(handler)


@public
def get_verbosity() -> int:
    """The level of the logger "sdesamplers", as a number of `logging`: 30 is `logging.WARNING`."""
    return logger.getEffectiveLevel()
