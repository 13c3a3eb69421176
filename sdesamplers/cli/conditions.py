"""Conditions on the command line: prompts, labels and other numbers, one for all samples or one per sample."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from ..errors import SdesamplersError, UsageError
from ..io.paths import expanded
from ..registry.options import as_number
from ..text import printable

LONGEST = 64 << 20
"""Maximum size of a file of prompts, in bytes."""


class Condition(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click alone
    """Comma-separated numbers, or an .npy file with one row per sample."""

    name = "a,b,...|FILE.npy"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return a list of numbers or an array; fail with the reason for any other text."""
        text = str(value)
        if text.endswith(".npy"):
            try:
                return read_rows(expanded(text))
            except SdesamplersError as error:
                self.fail(str(error), param, ctx)
        numbers = [as_number(part.strip()) for part in text.split(",")]
        if any(number is None or not math.isfinite(number) for number in numbers):
            self.fail(
                f"{text!r} is neither a comma-separated list of numbers nor an .npy file; pass text with --prompt",
                param,
                ctx,
            )
        return numbers


def read_rows(file: Path) -> Any:
    """Read an array with one row per sample: floating-point numbers as float32, whole numbers as int64."""
    import numpy as np

    from ..io.reading import read_array

    found = read_array(file)
    if not found.ndim or not found.size:
        raise UsageError(f"{printable(file)} holds no rows; it must have one for all samples or one per sample")
    return np.array(found, dtype=np.float32 if found.dtype.kind == "f" else np.int64)


def read_prompts(file: str) -> list[str]:
    """Read prompts from a file, one per line.

    A blank line is refused: skipping it would shift the prompts of all samples after it.

    Raises:
        UsageError: the file cannot be read, is too large, is not UTF-8, is empty, or has a blank line.
    """
    from ..io.reading import regular_path

    path = regular_path(expanded(file), "--prompts: ")
    try:
        if path.stat().st_size > LONGEST:
            raise UsageError(f"--prompts: {printable(path)} is larger than {LONGEST >> 20} MiB")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"--prompts: {printable(path)}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"--prompts: {printable(path)} is not UTF-8 (byte {error.start})") from None
    lines = [line.removesuffix("\r").strip() for line in text.rstrip().split("\n")]
    if blank := [number for number, line in enumerate(lines, 1) if not line]:
        problem = f"line {blank[0]} is blank" if text.strip() else "the file is empty"
        raise UsageError(f"--prompts: {printable(path)}: {problem}; each line must be a prompt")
    return lines


def once(ctx: Any, param: Any, values: tuple[Any, ...]) -> Any:
    """The value of an option that may be given only once; None if it is not given."""
    if len(values) > 1:
        raise click.BadParameter(f"given {len(values)} times; one value applies to all samples", ctx, param)
    return values[0] if values else None


def join(values: tuple[Any, ...]) -> Any:
    """Join the values of repeated --condition; None if there are none."""
    if len(values) > 1 and not all(isinstance(value, list) for value in values):
        raise UsageError("--condition: a file must be the only value, with one row per sample")
    return values[0] if len(values) == 1 else [number for value in values for number in value] or None


def resolve_conditions(kwargs: dict[str, Any]) -> None:
    """Convert --prompt, --prompts and --condition in place to the values that `load_model` takes.

    `kwargs["prompt"]` becomes None, a prompt or a list of several; `kwargs["condition"]` None, a list or an array. If
    there are several of them, num_samples defaults to their number.

    Raises:
        UsageError: conflicting options, or a number of conditions that is neither 1 nor the number of samples.
    """
    prompts, file = list(kwargs["prompt"]), kwargs.pop("prompts")
    if prompts and file is not None:
        raise UsageError("pass --prompt or --prompts, not both")
    prompts = prompts if file is None else read_prompts(file)
    condition = join(kwargs["condition"])
    if len(prompts) > 1 and condition is not None:
        raise UsageError("pass --condition or several prompts, not both: each gives one condition per sample")
    kwargs["prompt"] = prompts if len(prompts) > 1 else prompts[0] if prompts else None
    kwargs["condition"] = condition
    what, count = (
        ("prompts", len(prompts)) if len(prompts) > 1 else ("conditions", 0 if condition is None else len(condition))
    )
    if count > 1 and "num_samples" in kwargs:
        source = click.get_current_context().get_parameter_source("num_samples")
        if source is click.core.ParameterSource.DEFAULT:
            kwargs["num_samples"] = count
        elif kwargs["num_samples"] != count:
            number = kwargs["num_samples"]
            raise UsageError(f"{count} {what} for {number} samples: pass one for all, or {number}, one per sample")
