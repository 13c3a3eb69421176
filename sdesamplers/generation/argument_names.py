"""Argument names in the error messages of jobs."""

ARGUMENT_NAMES = {"out": "out=", "resume": "resume=True", "overwrite": "overwrite=True"}
"""An argument, and how a message for Python callers spells it; see `SdesamplersError`."""
