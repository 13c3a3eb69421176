"""Argument checks. Each raises a UsageError of one line: what was expected, and what was given instead."""

from __future__ import annotations

import inspect
import math
import operator
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from functools import wraps
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .categories import SdesamplersWarning
from .errors import UnknownNameError, UsageError, nearest, with_article

P = ParamSpec("P")
R = TypeVar("R")

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def shown(value: Any, limit: int = 60) -> str:
    """A short description of a value for messages, even if its `repr` is long or fails."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{with_article(type(value).__name__)} of shape {tuple(value.shape)}"
    try:
        text = repr(value)
    except Exception:
        text = with_article(type(value).__name__)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def warn(message: str, category: type[SdesamplersWarning] = SdesamplersWarning) -> None:
    """Warn with the stack level of the line that called this package, however deep the call stack is."""
    level, frame = 2, sys._getframe(1)
    while (outer := frame.f_back) and frame.f_globals.get("__name__", "").split(".")[0] in OWN_PACKAGES:
        level, frame = level + 1, outer
    warnings.warn(message, category, stacklevel=level)


OWN_PACKAGES = ("sdesamplers", "sdesamplers_plugins", "contextlib")
"""Packages whose frames `warn` skips."""


def is_plain(value: Any) -> bool:
    """True if a value is a single Python or NumPy number; False for bools, strings and tensors."""
    single = getattr(value, "shape", ()) == () and type(value).__name__ not in ("Tensor", "Parameter", *BOOL_TYPES)
    return single and not isinstance(value, str | bytes) and hasattr(value, "__float__")


BOOL_TYPES = ("bool", "bool_")
"""Names of the bool types of Python and NumPy."""


MAXIMA = {
    **dict.fromkeys(("steps", "nfe", "nodes"), 10**5),
    **dict.fromkeys(("first_index", "memory_limit"), 2**63 - 1),
    **dict.fromkeys(("seed", "each of indices"), 2**64 - 1),
    "probes": 10**6,
    "levels": 2**16,
    "num_train_timesteps": 10**6,
    "dimension": 10_000,
}
"""The largest allowed values; 10^9 for arguments that are not listed. A grid keeps one point per step in memory, so the
limit of `steps` is smaller."""


def whole(name: str, value: Any, least: int = 1) -> int:
    """Return a Python or NumPy integer as an int, checked to lie between `least` and its limit in MAXIMA.

    Raises:
        UsageError: not a whole number, or out of range.
    """
    try:
        found = operator.index(value) if is_plain(value) else None
    except TypeError:
        found = None
    if found is None or found < least:
        raise UsageError(f"{name} must be a whole number of {least} or more, not {shown(value)}")
    most = MAXIMA.get(name, 10**9)
    if found > most:
        raise UsageError(f"{name} must be a whole number from {least} to {most}, not {shown(value)}")
    return found


def whole_numbers(name: str, values: Any, expected: str = "a sequence of whole numbers") -> list[int]:
    """Return a sequence or array (N,) of whole numbers of 0 or more as a list.

    Raises:
        UsageError: no sequence, with what was `expected`; or another entry.
    """
    listed = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(listed, Sequence) or isinstance(listed, str | bytes):  # an array may be a single number
        raise UsageError(f"{name} must be {expected}, not {shown(values)}")
    return [whole(f"each of {name}", value, 0) for value in listed]


def sample_range(num_samples: Any, first_index: Any) -> tuple[int, int]:
    """Return (num_samples, first_index), checked so that all sample indices lie below 2^63.

    Raises:
        UsageError: not whole numbers, or an index of 2^63 or more.
    """
    count, first = whole("num_samples", num_samples), whole("first_index", first_index, 0)
    if first + count > 2**63:
        raise UsageError(f"first_index + num_samples must not exceed 2^63, not {first} + {count}")
    return count, first


def number(name: str, value: Any) -> float:
    """Return a finite Python or NumPy number as a float.

    Raises:
        UsageError: not a number, or not finite.
    """
    try:
        found = float(value) if is_plain(value) else math.nan
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise UsageError(f"{name} must be a number, not {shown(value)}")
    return found


def numbers(name: str, values: Any, *shapes: str, dims: tuple[int, ...]) -> Tensor:
    """Return real numbers as a float64 tensor.

    Args:
        shapes: the allowed shapes, as text for the message.
        dims: the allowed numbers of dimensions.

    Raises:
        UsageError: not real numbers, or another number of dimensions.
    """
    import torch  # torch takes seconds to import, and most checks do without

    complexes = (torch.complex64, torch.complex128)
    try:
        found = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        found = None
    if found is None or found.dim() not in dims or getattr(values, "dtype", None) in complexes:
        raise UsageError(f"{name} must be numbers of shape {' or '.join(shapes)}, not {shown(values)}")
    return found


def range_of(name: str, value: Any) -> tuple[float, float]:
    """Return a range (low, high) of two numbers.

    Raises:
        UsageError: not two numbers, or low is not below high.
    """
    unordered = isinstance(value, str | bytes | Mapping | Set) or not isinstance(value, Iterable)
    if unordered or getattr(value, "ndim", 1) != 1 or len(ends := list(value)) != 2:
        raise UsageError(f"{name} must be (low, high), not {shown(value)}")
    low, high = (number(f"each of {name}", end) for end in ends)
    if not low < high:
        raise UsageError(f"{name} must be (low, high), with low below high, not {shown(value)}")
    return low, high


def shape_of(name: str, value: Any) -> tuple[int, ...]:
    """Return a shape: a sequence of whole numbers of 1 or more.

    Raises:
        UsageError: not a shape.
    """
    unordered = isinstance(value, str | bytes | Mapping | Set) or not isinstance(value, Iterable)
    if unordered or getattr(value, "ndim", 1) != 1:
        raise UsageError(f"{name} must be a sequence of whole numbers, such as (3, 32, 32), not {shown(value)}")
    return tuple(whole(f"each of {name}", side) for side in value)


def device_of(name: str, value: Any) -> torch.device:
    """Return a torch device.

    Raises:
        UsageError: torch does not know this device.
    """
    import torch  # torch takes seconds to import, and most checks do without

    try:
        return torch.device(value)
    except (TypeError, RuntimeError, ValueError):
        raise UsageError(f"{name} must be a device, such as 'cpu' or 'cuda:0', not {shown(value)}") from None


def one_of_types(name: str, value: Any, kinds: type | tuple[type, ...], expected: str) -> Any:
    """Return a value that must be an instance of `kinds`; `expected` describes these for the message.

    Raises:
        UsageError: an instance of another class.
    """
    if not isinstance(value, kinds):
        raise UsageError(f"{name} must be {expected}, not {shown(value)}")
    return value


def flag(name: str, value: Any) -> bool:
    """Return a Python or NumPy bool as a bool.

    Raises:
        UsageError: not a bool.
    """
    if type(value).__name__ not in BOOL_TYPES:
        raise UsageError(f"{name} must be True or False, not {shown(value)}")
    return bool(value)


def name_of(name: str, value: Any, otherwise: str = "") -> str:
    """Return a value that must be a string; `otherwise` describes the alternatives, for the message.

    Raises:
        UsageError: not a string.
    """
    if not isinstance(value, str):
        raise UsageError(f"{name} must be a name{f' or {otherwise}' if otherwise else ''}, not {shown(value)}")
    return value


def choice(name: str, value: Any, known: Collection[Any]) -> Any:
    """Return a value that must be one of `known`, of the same type.

    Raises:
        UsageError: another value; the message suggests similar names.
    """
    if any(type(value) is type(each) and value == each for each in known):
        return value
    listing = " or ".join(repr(each) for each in known)
    if isinstance(value, str):
        names = [each for each in known if isinstance(each, str)]
        raise UnknownNameError(name, value, names, opening=f"{name} must be {listing}, not {value!r}")
    raise UsageError(f"{name} must be {listing}, not {shown(value)}")


def function(name: str, value: Any, of: str = "") -> Any:
    """Return a value that must be callable or None; `of` describes the arguments it takes, for the message.

    Raises:
        UsageError: neither callable nor None.
    """
    if value is not None and not callable(value):
        raise UsageError(f"{name} must be a function{f' of {of}' if of else ''}, not {shown(value)}")
    return value


def known_keywords(
    *others: str, synonyms: Mapping[str, str] = MappingProxyType({})
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function: an unknown keyword argument raises UnknownNameError instead of TypeError.

    Args:
        others: the arguments that the function accepts as `**options`.
        synonyms: names of other libraries -> the argument that is meant.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        known = [*_keywords(function), *others]

        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in kwargs:
                if name not in known:
                    meant = synonyms.get(name)
                    raise unknown_keyword(function.__name__, name, known, meant if meant in known else None)
            return function(*args, **kwargs)

        return checked

    return decorate


def suggest_keywords(*others: str, owner: str = "") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function that passes `**options` on: for an unknown option, it suggests a similar argument of its own.

    Args:
        others: the arguments of the call that the function accepts as `**options`.
        owner: the function in messages, by default its name.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        known = [*_keywords(function), *others]

        @wraps(function)
        def suggesting(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except UnknownNameError as error:
                if error.kind == "option" and error.name in kwargs and not error.near and nearest(error.name, known):
                    raise unknown_keyword(owner or function.__name__, error.name, known) from None
                raise

        return suggesting

    return decorate


def _keywords(function: Callable[..., Any]) -> list[str]:
    """The names of a function's parameters, without self and variable ones."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind not in variable and p.name != "self"]


def unknown_keyword(owner: str, name: str, known: Collection[str], meant: str | None = None) -> UnknownNameError:
    """The error for an unknown keyword argument: it suggests similar arguments, or lists all if there are none.

    `meant` is the argument that the name refers to in other libraries.
    """
    near = " or ".join(f"{each}=" for each in ([meant] if meant else nearest(name, known)))
    hint = f"; did you mean {near}?" if near else f" (its arguments: {', '.join(known)})"
    return UnknownNameError("argument", name, (), hint, opening=f"{owner} has no argument {name!r}")
