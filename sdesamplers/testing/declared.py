"""What every registered function declares: its reference and its options, with values to try for each option."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any, Literal

from ..registry.options import Option
from ..registry.plugin import Registered
from .report import Outcome


def declaration_of(spec: Registered) -> Outcome:
    """A registered item has a reference, and a docstring that names every option."""
    text = spec.__doc__ or ""
    missing = [name for name in spec.options if name not in text] + ([] if spec.reference else ["reference"])
    measured = f"missing: {', '.join(missing)}" if missing else "complete"
    return measured, "reference and every option explained", not missing


def candidates(option: Option) -> Iterator[Any]:
    """Values other than the default that an option might take."""
    default = option.default
    for kind in option.kinds:
        if typing.get_origin(kind) is Literal:
            yield from (choice for choice in typing.get_args(kind) if choice != default)
        elif kind is bool:
            yield not default
        elif kind is int:
            whole = default if isinstance(default, int) else 0
            yield from (whole + 1, max(whole - 1, 0), whole + 2, max(whole // 2, 1), 1)
        elif kind is float:
            base = default if isinstance(default, float) else 1.0
            yield from (0.5 * base, 1.5 * base, base + 0.5, 0.1 * base, base + 5.0, base / 50, 0.0)
        elif isinstance(default, tuple | list):
            listed = (default[:0], default[:-1], default * 2) if default else ((0.5,), *((0.5,) * n for n in LENGTHS))
            yield from (values for values in listed if values != default)
        elif kind is str:
            yield from (name for name in ("euler", "heun", "ddim") if name != default)


LENGTHS = (8, 16)
"""Lengths of lists of numbers that are tried for an option that is empty by default: the steps of `GRIDS`."""
