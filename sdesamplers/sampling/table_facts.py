"""What a solver table's facts say about its model and errors: checked when a file is read, compared with a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from ..models.base import Model
    from ..pretrained.conventions import Convention
    from ..processes.sde import SDE

OF_MODEL = ("model", "revision", "signature", "process", "prediction", "convention")
"""The facts about the model that a table was computed for."""
ERRORS = ("rms", "median", "distance", "frechet")
"""The facts about the errors of a table."""


def check_facts(facts: Any) -> None:
    """Raise a UsageError unless the facts that the library reads have their types; a file may contain anything."""
    if not isinstance(facts, Mapping):
        raise UsageError("a solver table's facts must be a mapping")
    for name in ("teacher", "errors", "versions"):
        if not isinstance(facts.get(name) or {}, Mapping):
            raise UsageError(f"{name} of a solver table's facts must be a mapping")
    scale, own = facts.get("guidance_scale"), facts.get("signature") or []
    if scale is not None and not is_finite(scale):
        raise UsageError("guidance_scale of a solver table's facts must be a finite number")
    pairs = isinstance(own, Sequence) and all(isinstance(each, Sequence) and len(each) == 2 for each in own)
    if not pairs or not all(is_finite(value) for each in own for value in each):
        raise UsageError("signature of a solver table's facts must be pairs of finite numbers")
    for name in ("process", "convention"):
        rows = facts.get(name) or []
        are_rows = isinstance(rows, Sequence) and all(isinstance(row, Sequence) for row in rows)
        if not are_rows or not all(is_finite(value) for row in rows for value in row):
            raise UsageError(f"{name} of a solver table's facts must be rows of finite numbers")
    probe = facts.get("probe") or []
    if not isinstance(probe, Sequence) or not all(value is None or is_finite(value) for value in probe):
        raise UsageError("probe of a solver table's facts must be a list of finite numbers")
    interval = facts.get("guidance_interval")
    if interval is not None and not is_interval(interval):
        raise UsageError("guidance_interval of a solver table's facts must be two numbers")
    check_errors("errors", facts.get("errors") or {})
    check_errors("errors.fixed", (facts.get("errors") or {}).get("fixed") or {})
    check_errors("teacher.errors", (facts.get("teacher") or {}).get("errors") or {})


def check_errors(name: str, errors: Any) -> None:
    """Raise a UsageError unless the errors of a table's facts are finite numbers, or None if samples diverged."""
    if not isinstance(errors, Mapping):
        raise UsageError(f"{name} of a solver table's facts must be a mapping")
    for key in ERRORS:
        if errors.get(key) is not None and not is_finite(errors[key]):
            raise UsageError(f"{name}.{key} of a solver table's facts must be a finite number, not {errors[key]!r}")


def is_interval(value: Any) -> bool:
    """True for two numbers, which may be infinite, or their texts."""
    try:
        low, high = map(float, value)
    except (TypeError, ValueError, OverflowError):
        return False
    return not isinstance(value, str) and not (math.isnan(low) or math.isnan(high))


RATIOS = (0.3, 1.0, 3.0)
"""The sigma/alpha at which processes and conventions are compared."""


def clock(process: SDE) -> list[list[float]]:
    """The network's time, alpha and sigma of a process at `RATIOS`, to six digits; empty for a process without them."""
    from ..processes.sde import GaussianProcess

    if not isinstance(process, GaussianProcess):
        return []
    times = [process.time_at_ratio(ratio) for ratio in RATIOS]
    rows = [(process.network_time(t), process.alpha(t), process.clock_sign * process.sigma(t)) for t in times]
    return in_six_digits(rows)


def conversions(convention: Convention | None) -> list[list[float]] | None:
    """What a convention does at `RATIOS`: the timestep, the input's factor, and p and q of the target p x0 + q eps."""
    if convention is None:
        return None
    import numpy as np
    import torch  # tables are listed without both

    times, one = [convention.process.time_at_ratio(ratio) for ratio in RATIOS], torch.ones(1, 1, dtype=torch.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        rows = [(convention.timestep(t), float(convention.scale_input(one, t)), *convention.target(t)) for t in times]
    return in_six_digits(rows)


def convention_of(model: Model) -> Convention | None:
    """The convention of a model that was loaded with a scheduler's configuration; None for functions."""
    from ..pretrained.conventions import Convention  # imports torch, which listings of tables do without

    found = getattr(model, "convention", None)
    return found if isinstance(found, Convention) else None


def in_six_digits(rows: Sequence[Sequence[Any]]) -> list[list[float]]:
    """Rows of numbers as floats, rounded, without rows that have infinite ones, as at the boundary of a flow map."""
    found = [[float(f"{float(value):.6g}") for value in row] for row in rows]
    return [row for row in found if all(map(math.isfinite, row))]


def are_close(rows: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> bool:
    """True if rows of numbers are equal up to the rounding of a table of timesteps."""
    flat, other = [value for row in rows for value in row], [value for row in others for value in row]
    return len(flat) == len(other) and all(
        math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-6) for a, b in zip(flat, other, strict=True)
    )


def is_finite(value: Any) -> bool:
    """True for a finite number that a float can hold."""
    try:
        return not isinstance(value, bool | str) and math.isfinite(value)
    except (TypeError, OverflowError):
        return False


SIGNED = 16
"""Number of parameters in a signature."""


def signature(model: Model) -> list[list[float]]:
    """Size and mean absolute value of up to 16 parameters of a model's networks, evenly chosen; empty without networks.

    A fingerprint that survives a change of precision, of names and of file format.
    """
    import torch  # tables are listed without it

    found = (value for network in model.networks() for value in network.parameters() if value.is_floating_point())
    parameters = [*{id(value): value for value in found}.values()]  # a network may be in several attributes
    count = min(SIGNED, len(parameters))
    some = [parameters[round(k * (len(parameters) - 1) / max(count - 1, 1))] for k in range(count)]
    return [
        [float(value.numel()), float(f"{float(value.detach().abs().mean(dtype=torch.float64)):.6g}")] for value in some
    ]


def same_size(own: Sequence[float], found: Sequence[float]) -> bool:
    """True if two entries of signatures are equal up to the rounding of a lower precision."""
    return own[0] == found[0] and math.isclose(own[1], found[1], rel_tol=0.02, abs_tol=1e-8)
