"""Arguments checked by type, each in one line: what was expected, and what was given instead."""

from __future__ import annotations

import math
import operator
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping, Set
from typing import TYPE_CHECKING, Any

from .errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def shown(value: Any, limit: int = 60) -> str:
    """A value in few words, whatever its class makes of `repr`."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def warn(message: str) -> None:
    """Warn at the line that called this package, however deep inside of it the reason was found."""
    level, frame = 2, sys._getframe(1)
    while (outer := frame.f_back) and frame.f_globals.get("__name__", "").split(".")[0] in OURS:
        level, frame = level + 1, outer
    warnings.warn(message, stacklevel=level)


OURS = ("sdesamplers", "sdesamplers_plugins", "contextlib")
"""Packages whose lines are nobody's call."""


def is_plain(value: Any) -> bool:
    """Whether a value is one number of Python's or NumPy's, and no truth value, text or tensor."""
    single = getattr(value, "shape", ()) == () and type(value).__name__ not in ("Tensor", "Parameter", *TRUTHS)
    return single and not isinstance(value, str | bytes) and hasattr(value, "__float__")


TRUTHS = ("bool", "bool_")
"""Names of the types of truth values, Python's and NumPy's."""


MOST = {
    **dict.fromkeys(("steps", "nfe", "nodes"), 10**5),
    **dict.fromkeys(("first_index", "memory_limit"), 2**63 - 1),
    **dict.fromkeys(("seed", "each of indices"), 2**64 - 1),
    "probes": 10**6,
    "levels": 2**16,
    "num_train_timesteps": 10**6,
    "dimension": 10_000,
}
"""The largest counts that have a meaning; of what is not named here 10^9. A grid has a point a step in memory."""


def whole(word: str, value: Any, least: int = 1) -> int:
    """A whole number of `least` or more, also one of NumPy's, up to what MOST says.

    Raises:
        UsageError: it is none.
    """
    try:
        found = operator.index(value) if is_plain(value) else None
    except TypeError:
        found = None
    if found is None or found < least:
        raise UsageError(f"{word} must be a whole number of {least} or more, not {shown(value)}")
    most = MOST.get(word, 10**9)
    if found > most:
        raise UsageError(f"{word} must be a whole number from {least} to {most}, not {shown(value)}")
    return found


def sample_range(num_samples: Any, first_index: Any) -> tuple[int, int]:
    """A number of samples and the index of the first, all of whose indices lie below 2^63.

    Raises:
        UsageError: they are none.
    """
    count, first = whole("num_samples", num_samples), whole("first_index", first_index, 0)
    if first + count > 2**63:
        raise UsageError(f"first_index must lie below 2^63 - num_samples, not at {first}")
    return count, first


def number(word: str, value: Any) -> float:
    """A finite number, also one of NumPy's.

    Raises:
        UsageError: it is none.
    """
    try:
        found = float(value) if is_plain(value) else math.nan
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise UsageError(f"{word} must be a number, not {shown(value)}")
    return found


def numbers(word: str, values: Any, *shapes: str, dims: tuple[int, ...]) -> Tensor:
    """Numbers as a float64 tensor of one of the numbers of dimensions `dims`; `shapes` are these in words.

    Raises:
        UsageError: they are none.
    """
    import torch  # torch takes seconds to import, and most checks do without

    complexes = (torch.complex64, torch.complex128)
    try:
        found = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        found = None
    if found is None or found.dim() not in dims or getattr(values, "dtype", None) in complexes:
        raise UsageError(f"{word} must be numbers of shape {' or '.join(shapes)}, not {shown(values)}")
    return found


def range_of(word: str, value: Any) -> tuple[float, float]:
    """Two numbers, (low, high).

    Raises:
        UsageError: they are not, or do not rise.
    """
    unordered = isinstance(value, str | bytes | Mapping | Set) or not isinstance(value, Iterable)
    if unordered or getattr(value, "ndim", 1) != 1 or len(ends := list(value)) != 2:
        raise UsageError(f"{word} must be (low, high), not {shown(value)}")
    low, high = (number(f"each of {word}", end) for end in ends)
    if not low < high:
        raise UsageError(f"{word} must be (low, high), not {shown(value)}")
    return low, high


def shape_of(word: str, value: Any) -> tuple[int, ...]:
    """A shape: a sequence of whole numbers of 1 or more.

    Raises:
        UsageError: it is none.
    """
    unordered = isinstance(value, str | bytes | Mapping | Set) or not isinstance(value, Iterable)
    if unordered or getattr(value, "ndim", 1) != 1:
        raise UsageError(f"{word} must be a sequence of whole numbers, such as (3, 32, 32), not {shown(value)}")
    return tuple(whole(f"each of {word}", side) for side in value)


def device_of(word: str, value: Any) -> torch.device:
    """A device of torch's.

    Raises:
        UsageError: there is none of this name.
    """
    import torch  # torch takes seconds to import, and most checks do without

    try:
        return torch.device(value)
    except (TypeError, RuntimeError, ValueError):
        raise UsageError(f"{word} must be a device, such as 'cpu' or 'cuda:0', not {shown(value)}") from None


def one_of_types(word: str, value: Any, kinds: type | tuple[type, ...], expected: str) -> Any:
    """A value of a class; `expected` says which, in words.

    Raises:
        UsageError: it is of another.
    """
    if not isinstance(value, kinds):
        raise UsageError(f"{word} must be {expected}, not {shown(value)}")
    return value


def flag(word: str, value: Any) -> bool:
    """True or False, also NumPy's.

    Raises:
        UsageError: it is neither.
    """
    if type(value).__name__ not in TRUTHS:
        raise UsageError(f"{word} must be True or False, not {shown(value)}")
    return bool(value)


def name_of(word: str, value: Any, otherwise: str = "") -> str:
    """A name; `otherwise` is what may stand in place of one.

    Raises:
        UsageError: it is no text.
    """
    if not isinstance(value, str):
        raise UsageError(f"{word} must be a name{f' or {otherwise}' if otherwise else ''}, not {shown(value)}")
    return value


def choice(word: str, value: Any, known: Collection[Any]) -> Any:
    """One of a few values.

    Raises:
        UsageError: it is another; the nearest name is offered.
    """
    if any(type(value) is type(each) and value == each for each in known):
        return value
    listing = " or ".join(repr(each) for each in known)
    if isinstance(value, str):
        names = [each for each in known if isinstance(each, str)]
        raise UnknownNameError(word, value, names, opening=f"{word} must be {listing}, not {value!r}")
    raise UsageError(f"{word} must be {listing}, not {shown(value)}")


def function(word: str, value: Any, of: str = "") -> Any:
    """Something that can be called, or None.

    Raises:
        UsageError: it is neither.
    """
    if value is not None and not callable(value):
        raise UsageError(f"{word} must be a function{f' of {of}' if of else ''}, not {shown(value)}")
    return value
