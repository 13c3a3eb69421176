"""Calls of foreign code: it receives copies of tensors, and its output is copied before it is used.

So samples do not change if a network modifies its input, overwrites its output later (a buffer that the next call
reuses, as CUDA graphs do) or changes torch's modes. The cost is one copy of the state and one of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ..errors import ModelError, SdesamplersError
from ..processes.scalars import Scalar, is_per_sample
from .conditions import cloned, take_rows
from .output import Output
from .running import evaluating, networks_in

LARGE = 32
"""If the first call has more samples than this, the shape of times is determined on a few of them."""

TRIED = (RuntimeError, TypeError, ValueError, IndexError, AssertionError, ModelError)
"""Exceptions that a network may raise because it does not accept times of a shape."""


class WrongShape(ModelError):
    """A network's output does not have the shape of its input."""


def call(network: Callable[..., Any], x: Tensor, *given: Any, name: str, **kwargs: Any) -> Any:
    """Return network(x, *given, **kwargs) as a tensor or `Output` that shares no memory with the network's output.

    The caller passes copies as arguments: the network may modify them.

    Args:
        network: foreign code.
        x: its input (N, ...); its output has this shape, or contains a tensor of it.
        name: the network's name in error messages.

    Raises:
        ModelError: the output is not one floating-point tensor of x's shape on its device.
    """
    shape = x.shape
    output = in_modes(network, x, *given, **kwargs)
    if isinstance(output, Output):
        value, unguided, density = output
        unguided = None if unguided is None else read(unguided, shape, x.device, name)
        return Output(read(value, shape, x.device, name), unguided, None if density is None else copied(density))
    return read(output, shape, x.device, name)


def in_modes(network: Callable[..., Any], *given: Any, **kwargs: Any) -> Any:
    """Call a function and restore torch's autograd mode and default dtype afterwards."""
    grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    output = network(*given, **kwargs)
    if torch.is_grad_enabled() is not grad:
        torch.set_grad_enabled(grad)
    if torch.get_default_dtype() is not dtype:
        torch.set_default_dtype(dtype)
    return output


def read(output: Any, shape: torch.Size, device: torch.device, name: str) -> Tensor:
    """Return a copy of the one tensor in a network's output.

    Raises:
        ModelError: there is no such tensor, or it is not floating-point, of this shape and on this device.
    """
    value = tensor_in(output)
    if value is None:
        raise ModelError(
            f"{name}: the network returned {described(output)}; it must return a tensor of its input's shape "
            f"{tuple(shape)}: directly, alone in a tuple, or as `sample` of an object or dictionary"
        )
    if not value.is_floating_point() or value.layout is not torch.strided:
        kind = value.dtype if value.layout is torch.strided else value.layout
        advice = "; complex states are not supported: return real and imaginary parts as channels"
        raise ModelError(
            f"{name}: the network returned a tensor of {kind}; it must return floating-point numbers"
            f"{advice if value.is_complex() else ''}"
        )
    if value.device != device:
        raise ModelError(f"{name}: the network returned a tensor on {value.device} for an input on {device}")
    if value.shape != shape:
        found = f"shape {tuple(value.shape)} for a state of {tuple(shape)}"
        raise WrongShape(f"{name}: the network returned {found}{hint(value, shape)}")
    return copied(value)


def copied(value: Tensor) -> Tensor:
    """Return a copy, with its autograd graph only if autograd is on."""
    return (value if torch.is_grad_enabled() or not value.requires_grad else value.detach()).clone()


def tensor_in(output: Any) -> Tensor | None:
    """The tensor in a network's output: itself, its `sample` as in diffusers, or the only entry of a tuple or list."""
    if isinstance(output, Tensor):
        return output
    held = output.get("sample") if isinstance(output, Mapping) else getattr(output, "sample", None)
    if held is None and isinstance(output, tuple | list):
        entries = [entry for entry in output if entry is not None]
        held = entries[0] if len(entries) == 1 else None
    return held if isinstance(held, Tensor) else None


def described(output: Any) -> str:
    """Describe an unsupported network output, for messages."""
    if output is None:
        return "None (is a `return` missing?)"
    if isinstance(output, np.ndarray):
        return "a NumPy array (convert it with torch.from_numpy)"
    if isinstance(output, Mapping):
        return f"a dictionary with keys {', '.join(map(str, output))}" if output else "an empty dictionary"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {len(output)} ({', '.join(type(entry).__name__ for entry in output)})"
    return f"an object of class {type(output).__name__}"


def hint(value: Tensor, shape: torch.Size) -> str:
    """The likely reason of a wrong shape, or ""."""
    doubled = len(shape) > 1 and value.shape == (shape[0], 2 * shape[1], *shape[2:])
    if not doubled:
        return ""
    return f"; if the second half of its channels is a learned variance, return only the first {shape[1]}"


def isolated(model: Any) -> Any:
    """A model's `predict`, wrapped so that it does not modify its arguments and returns a tensor that is not shared."""
    if getattr(model, "pure", False):
        return model.predict

    def predict(x: Tensor, t: Scalar, condition: Any = None) -> Any:
        return call(model.predict, x.clone(), copied_time(t), cloned(condition), name=model.name)

    return predict


def isolated_to(model: Any, end: Scalar) -> Any:
    """The same for `predict_to`, for a step that ends at `end`."""

    def predict(x: Tensor, t: Scalar, condition: Any = None) -> Any:
        if getattr(model, "pure", False):
            return model.predict_to(x, t, condition, end=end)
        given = x.clone(), copied_time(t), cloned(condition)
        return call(model.predict_to, *given, name=model.name, end=copied_time(end))

    return predict


def copied_time(t: Scalar) -> Scalar:
    """A copy of an array of times; a number is returned unchanged."""
    return t.copy() if isinstance(t, np.ndarray) else t


class TimedNetwork:
    """A network of state and time, called with times of the shape that it accepts.

    This is a column (N, 1, ..., 1), or (N,) if the network raises an error for a column or returns a shape other than
    the state's. It is determined at the network's first call with several samples, in a loss or a sampler alike.
    """

    def __init__(self, network: Callable[..., Any], name: str) -> None:
        self.network, self.name = network, name
        self.flat: bool | None = None

    def __call__(self, x: Tensor, times: tuple[Scalar, ...], *given: Any) -> Any:
        """Return the network's output for a copy of the state (N, *shape), at one or several times."""
        if self.flat is None:
            self.flat = remembered(self.network)
        if self.flat is None and x.shape[0] > LARGE and x.dim() > 1:
            self._try_a_few(x, times, given)
        shapes = (False, True) if self.flat is None and x.dim() > 1 else (bool(self.flat),)
        failure: Exception | None = None
        for flat in shapes:
            shaped = (as_flat(t, x) if flat else as_column(t, x) for t in times)
            try:
                output = call(self.network, x.clone(), *shaped, *(cloned(each) for each in given), name=self.name)
            except TRIED as error:
                if flat is shapes[-1] or is_final(error):
                    raise error from failure
                failure = error
                continue
            if len(shapes) > 1 and len(x) > 1:
                self.flat = flat
                remember(self.network, flat)
            return output
        raise AssertionError

    def _try_a_few(self, x: Tensor, times: tuple[Scalar, ...], given: tuple[Any, ...]) -> None:
        """Determine the shape on a few samples: with the wrong shape, broadcasting could create N^2 outputs."""
        few = slice(0, next(n for n in range(2, LARGE) if n not in x.shape))
        part = tuple(t[few] if is_per_sample(t) else t for t in times)
        with evaluating(networks_in(self.network)), torch.no_grad():
            self(x[few], part, *(take_rows(each, few) for each in given))


def is_final(error: Exception) -> bool:
    """True if an error cannot be caused by the shape of times."""
    if isinstance(error, SdesamplersError):
        return not isinstance(error, WrongShape)
    return isinstance(error, torch.OutOfMemoryError)


_FLAT: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""Network, already called with several samples -> True if it takes times as (N,), False for columns."""


def remembered(network: Any) -> bool | None:
    """True if a network takes times as (N,), False for columns, None if this is not known yet."""
    try:
        return _FLAT.get(network)
    except TypeError:  # not hashable, or not weakly referenceable
        return None


def remember(network: Any, flat: bool) -> None:
    """Store the result of `remembered` for the lifetime of the network."""
    try:
        _FLAT[network] = flat
    except TypeError:
        return


def as_column(t: Scalar, x: Tensor) -> Tensor:
    """Convert a time, or one for each sample of x (N, ...), to a tensor (N, 1, ..., 1) on x's device, float32 at least.

    In half precision neighbouring timesteps of a table would become equal, and the last would be rounded to a timestep
    outside the table.
    """
    return as_flat(t, x).view(x.shape[0], *(1,) * (x.dim() - 1))


def as_flat(t: Scalar, x: Tensor) -> Tensor:
    """The same, as a tensor (N,)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if np.ndim(t):
        return torch.tensor(t, dtype=torch.float64).to(x.device, dtype, non_blocking=True)
    return torch.full((x.shape[0],), float(t), dtype=dtype, device=x.device)
