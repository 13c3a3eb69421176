"""How foreign code is called: with tensors of its own, and what it returns is copied before anybody else sees it.

So nothing that a network does to its input, to its output afterwards (a buffer that the next call overwrites, as CUDA
graphs do) or to torch's modes reaches the samples. It costs a copy of the state and one of the output.
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
"""A first call with more samples than this is tried on a few of them."""

TRIED = (RuntimeError, TypeError, ValueError, IndexError, AssertionError, ModelError)
"""What a network raises that does not take times of a shape."""


class WrongShape(ModelError):
    """A network's output is not of its input's shape."""


def call(network: Callable[..., Any], x: Tensor, *given: Any, name: str, **words: Any) -> Any:
    """network(x, *given), for arguments that are the network's own, as a tensor or `Output` that is the library's own.

    Args:
        network: foreign code.
        x: its input (N, ...); its output has this shape, or holds a tensor of it.
        name: what it is called in errors.

    Raises:
        ModelError: the output is not one floating-point tensor of x's shape on its device.
    """
    shape = x.shape
    answer = in_modes(network, x, *given, **words)
    if isinstance(answer, Output):
        value, unguided, density = answer
        unguided = None if unguided is None else read(unguided, shape, x.device, name)
        return Output(read(value, shape, x.device, name), unguided, None if density is None else kept(density))
    return read(answer, shape, x.device, name)


def in_modes(network: Callable[..., Any], *given: Any, **words: Any) -> Any:
    """What a function returns, with torch's modes as they were before the call."""
    grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    answer = network(*given, **words)
    if torch.is_grad_enabled() is not grad:
        torch.set_grad_enabled(grad)
    if torch.get_default_dtype() is not dtype:
        torch.set_default_dtype(dtype)
    return answer


def read(answer: Any, shape: torch.Size, device: torch.device, name: str) -> Tensor:
    """A copy of the one tensor in a network's output.

    Raises:
        ModelError: there is none, or it is not of this shape, floating-point and on this device.
    """
    value = tensor_in(answer)
    if value is None:
        raise ModelError(
            f"{name}: the network returned {described(answer)}; it must return a tensor of its input's shape "
            f"{tuple(shape)}, or an object or dictionary that has it as `sample`, or a tuple of it alone"
        )
    if not value.is_floating_point() or value.layout is not torch.strided:
        kind = value.dtype if value.layout is torch.strided else value.layout
        advice = "; complex states are not supported, return real and imaginary parts as channels"
        raise ModelError(
            f"{name}: the network returned a tensor of {kind}; it must return floating-point numbers"
            f"{advice if value.is_complex() else ''}"
        )
    if value.device != device:
        raise ModelError(f"{name}: the network returned a tensor on {value.device} for an input on {device}")
    if value.shape != shape:
        found = f"shape {tuple(value.shape)} for a state of {tuple(shape)}"
        raise WrongShape(f"{name}: the network returned {found}{hint(value, shape)}")
    return kept(value)


def kept(value: Tensor) -> Tensor:
    """A copy, with its graph only where autograd is on."""
    return (value if torch.is_grad_enabled() or not value.requires_grad else value.detach()).clone()


def tensor_in(answer: Any) -> Tensor | None:
    """The tensor that a network's output is or holds: as `sample`, as diffusers' do, or alone in a tuple or list."""
    if isinstance(answer, Tensor):
        return answer
    held = answer.get("sample") if isinstance(answer, Mapping) else getattr(answer, "sample", None)
    if held is None and isinstance(answer, tuple | list):
        entries = [entry for entry in answer if entry is not None]
        held = entries[0] if len(entries) == 1 else None
    return held if isinstance(held, Tensor) else None


def described(answer: Any) -> str:
    """A network's output that is not understood, in words."""
    if answer is None:
        return "None (is a `return` missing?)"
    if isinstance(answer, np.ndarray):
        return "a NumPy array (torch.from_numpy makes a tensor of it)"
    if isinstance(answer, Mapping):
        return f"a dictionary of {', '.join(map(str, answer)) or 'nothing'}"
    if isinstance(answer, tuple | list):
        return f"a {type(answer).__name__} of {len(answer)} ({', '.join(type(entry).__name__ for entry in answer)})"
    return f"an object of class {type(answer).__name__}"


def hint(value: Tensor, shape: torch.Size) -> str:
    """What a wrong shape is likely to mean."""
    doubled = len(shape) > 1 and value.shape == (shape[0], 2 * shape[1], *shape[2:])
    if not doubled:
        return ""
    return f"; if the second half of its channels is a learned variance, return the first {shape[1]} alone"


def isolated(model: Any) -> Any:
    """A model's `predict` as one that leaves its arguments alone and returns a tensor that is nobody else's."""
    if getattr(model, "pure", False):
        return model.predict

    def predict(x: Tensor, t: Scalar, condition: Any = None) -> Any:
        return call(model.predict, x.clone(), copied_time(t), cloned(condition), name=model.name)

    return predict


def isolated_to(model: Any, end: Scalar) -> Any:
    """The same for `predict_to`, a step that ends at `end`."""

    def predict(x: Tensor, t: Scalar, condition: Any = None) -> Any:
        if getattr(model, "pure", False):
            return model.predict_to(x, t, condition, end=end)
        given = x.clone(), copied_time(t), cloned(condition)
        return call(model.predict_to, *given, name=model.name, end=copied_time(end))

    return predict


def copied_time(t: Scalar) -> Scalar:
    """A copy of the times of samples; a number as it is."""
    return t.copy() if isinstance(t, np.ndarray) else t


class TimedNetwork:
    """A network of state and time, called with times of the shape that it takes.

    That is a column (N, 1, ..., 1), or (N,) if the network raises an error for a column or returns another shape than
    the state's. Found at its first call with several samples, and the same for losses and samplers.
    """

    def __init__(self, network: Callable[..., Any], name: str) -> None:
        self.network, self.name = network, name
        self.flat: bool | None = None

    def __call__(self, x: Tensor, times: tuple[Scalar, ...], *given: Any) -> Any:
        """The network's output for a state (N, *shape), which is copied, at one or several times."""
        if self.flat is None:
            self.flat = remembered(self.network)
        if self.flat is None and len(x) > LARGE and x.dim() > 1:
            self._try_a_few(x, times, given)
        shapes = (False, True) if self.flat is None and x.dim() > 1 else (bool(self.flat),)
        failure: Exception | None = None
        for flat in shapes:
            told = (as_flat(t, x) if flat else as_column(t, x) for t in times)
            try:
                answer = call(self.network, x.clone(), *told, *(cloned(each) for each in given), name=self.name)
            except TRIED as error:
                if flat is shapes[-1] or is_final(error):
                    raise error from failure
                failure = error
                continue
            if len(shapes) > 1 and len(x) > 1:
                self.flat = flat
                remember(self.network, flat)
            return answer
        raise AssertionError

    def _try_a_few(self, x: Tensor, times: tuple[Scalar, ...], given: tuple[Any, ...]) -> None:
        """Find the shape on a few samples: many, given times of the other shape, may come out as many times as many."""
        few = slice(0, next(n for n in range(2, LARGE) if n not in x.shape))
        part = tuple(t[few] if is_per_sample(t) else t for t in times)
        with evaluating(networks_in(self.network)), torch.no_grad():
            self(x[few], part, *(take_rows(each, few) for each in given))


def is_final(error: Exception) -> bool:
    """Whether an error has nothing to do with the shape of times."""
    if isinstance(error, SdesamplersError):
        return not isinstance(error, WrongShape)
    return isinstance(error, torch.OutOfMemoryError)


_FLAT: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""Networks that were called with several samples, and whether they take times as (N,)."""


def remembered(network: Any) -> bool | None:
    """Whether a network is known to take times as (N,); None where it is not known yet."""
    try:
        return _FLAT.get(network)
    except TypeError:  # not hashable, or without weak references
        return None


def remember(network: Any, flat: bool) -> None:
    """Keep what was found for as long as the network lives."""
    try:
        _FLAT[network] = flat
    except TypeError:
        return


def as_column(t: Scalar, x: Tensor) -> Tensor:
    """A time, or one for each sample of x (N, ...), as a tensor (N, 1, ..., 1) on x's device, in float32 at least.

    In half precision whole timesteps of a table merge, and the last is rounded to one that the table does not have.
    """
    return as_flat(t, x).view(len(x), *(1,) * (x.dim() - 1))


def as_flat(t: Scalar, x: Tensor) -> Tensor:
    """The same, (N,)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if np.ndim(t):
        return torch.tensor(t, dtype=torch.float64).to(x.device, dtype, non_blocking=True)
    return torch.full((len(x),), float(t), dtype=dtype, device=x.device)
