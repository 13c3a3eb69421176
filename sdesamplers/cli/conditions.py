"""Conditions on the command line: prompts, labels and other numbers, one for all samples or one a sample."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from ..errors import SdesamplersError, UsageError
from ..io.text import printable
from ..registry.options import as_number

LONGEST = 64 << 20
"""Bytes of a file of prompts."""


class Condition(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click alone
    """Comma-separated numbers, whole or not, or an .npy file with one row a sample."""

    name = "a,b,...|FILE.npy"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """A list of numbers or an array, or fail with what was wrong."""
        text = str(value)
        if text.endswith(".npy"):
            try:
                return read_rows(Path(text).expanduser())
            except SdesamplersError as error:
                self.fail(str(error), param, ctx)
        numbers = [as_number(part.strip()) for part in text.split(",")]
        if any(number is None or not math.isfinite(number) for number in numbers):
            self.fail(
                f"{text!r} is neither a comma-separated list of numbers nor an .npy file; text is given by --prompt",
                param,
                ctx,
            )
        return numbers


def read_rows(file: Path) -> Any:
    """An array with one row a sample; fractions in float32, as networks have their weights."""
    import numpy as np

    from ..io.reading import read_array

    found = read_array(file)
    if not found.ndim or not found.size:
        raise UsageError(f"{printable(file)} holds no rows; a condition has one for all samples or one a sample")
    return np.array(found, dtype=np.float32 if found.dtype.kind == "f" else np.int64)


def read_prompts(file: str) -> list[str]:
    """The prompts in a file, one a line.

    A blank line is refused: to leave it out would give every sample after it another prompt than its line says.

    Raises:
        UsageError: it cannot be read, is not UTF-8, or has a blank line or none at all.
    """
    from ..io.reading import regular_path

    path = regular_path(Path(file).expanduser(), "--prompts: ")
    try:
        if path.stat().st_size > LONGEST:
            raise UsageError(f"--prompts: {printable(path)} has more than {LONGEST >> 20} MiB")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"--prompts: {printable(path)}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"--prompts: {printable(path)} is not UTF-8 (byte {error.start})") from None
    lines = [line.removesuffix("\r").strip() for line in text.rstrip().split("\n")]
    if blank := [number for number, line in enumerate(lines, 1) if not line]:
        where = f"line {blank[0]} is blank" if text.strip() else "it is empty"
        raise UsageError(f"--prompts: {printable(path)}: {where}, and each line is a prompt")
    return lines


def once(ctx: Any, param: Any, values: tuple[Any, ...]) -> Any:
    """The value of an option that is given once."""
    if len(values) > 1:
        raise click.BadParameter(f"given {len(values)} times; there is one for all samples", ctx, param)
    return values[0] if values else None


def join(values: tuple[Any, ...]) -> Any:
    """What several --condition mean together; None without any."""
    if len(values) > 1 and not all(isinstance(value, list) for value in values):
        raise UsageError("--condition: a file is given alone, and holds one row a sample")
    return values[0] if len(values) == 1 else [number for value in values for number in value] or None


def resolve_conditions(kwargs: dict[str, Any]) -> None:
    """Make of --prompt, --prompts and --condition what `load_model` takes, and one sample of each of several.

    `words["prompt"]` becomes None, a prompt or a list of several, `words["condition"]` None, a list or an array.

    Raises:
        UsageError: they contradict each other, or are neither one nor one a sample.
    """
    prompts, file = list(kwargs["prompt"]), kwargs.pop("prompts")
    if prompts and file is not None:
        raise UsageError("--prompt and --prompts are two ways to give prompts; give one of them")
    prompts = prompts if file is None else read_prompts(file)
    condition = join(kwargs["condition"])
    if len(prompts) > 1 and condition is not None:
        raise UsageError("--condition and several prompts are both one a sample; give one of them")
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
            raise UsageError(f"{count} {what} for {number} samples: give one for all, or {number}, one a sample")
