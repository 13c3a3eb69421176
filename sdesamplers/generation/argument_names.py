"""How errors of jobs name the arguments that a caller would change."""

ARGUMENT_NAMES = {"out": "out=", "resume": "resume=True", "overwrite": "overwrite=True"}
"""An argument, and how it is written in Python; see `SdesamplersError`."""
