"""Functions of time that return the type of their argument: a float, an array or a tensor."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

OF_TIME = (
    *("alpha", "sigma", "d_alpha", "d_sigma", "schedule", "diffusion", "ratio", "log_snr"),
    *("time_at_ratio", "time_at_log_snr", "at_ratio", "d_alpha_d_ratio"),
    *("beta", "integral", "time_at_integral"),
)
"""Methods of processes with one argument, such as a time or a ratio; subclasses may define any of them."""

FLOATS = (float, np.float64)


def keep_forms(cls: type) -> None:
    """Wrap the methods of `OF_TIME` that a class defines in `like_given`: they then return their argument's type."""
    for name in OF_TIME:
        method = vars(cls).get(name)
        if inspect.isfunction(method) and _needs_two(method):
            setattr(cls, name, like_given(method))


def _needs_two(method: Callable[..., Any]) -> bool:
    """True if a method has exactly two required parameters, self and one more."""
    parameters = inspect.signature(method).parameters.values()
    return sum(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in parameters) == 2


def like_given(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Wrap a one-argument method that computes in float64 NumPy, so that its results have the type of the argument.

    A float gives a float. An array gives a float64 array of its shape. A tensor gives a tensor of its shape, dtype
    (torch's default dtype for whole numbers) and device; the computation is in float64 on the CPU, so it synchronizes
    with the device and does not propagate gradients. If the method returns a tuple, this holds for each entry.
    """

    @wraps(method)
    def kept(self: Any, t: Any, /) -> Any:
        if t.__class__ in FLOATS:
            value = method(self, t)
            return value if value.__class__ in FLOATS else _each(value, _as_float)
        if isinstance(t, Tensor):
            return _each(method(self, _plain(t).reshape(-1)), lambda value: _as_tensor(value, t))
        array = np.asarray(t, dtype=np.float64)
        if array.ndim == 1:
            return _each(method(self, array), lambda value: _as_array(value, array.shape))
        if array.ndim:
            return _each(method(self, array.reshape(-1)), lambda value: _as_array(value, array.shape))
        value = method(self, array[()])
        return _each(value, np.asarray if isinstance(t, np.ndarray) else _as_float)

    return kept


def _each(value: Any, form: Callable[[Any], Any]) -> Any:
    return tuple(form(item) for item in value) if value.__class__ is tuple else form(value)


def _plain(value: Any) -> np.ndarray:
    """Convert numbers to a float64 array; the cast is on the CPU, since not every device has float64."""
    if isinstance(value, Tensor):
        return np.asarray(value.detach().cpu().double().numpy())
    return np.asarray(value, dtype=np.float64)


def _as_float(value: Any) -> Any:
    return value if value.__class__ in FLOATS else _plain(value).reshape(())[()]


def _as_array(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Convert to a float64 array of the given shape; a single number is broadcast."""
    array = value if value.__class__ is np.ndarray and value.dtype == np.float64 else _plain(value)
    if array.shape == shape:
        return array
    return array.reshape(shape) if array.size == np.prod(shape) else np.broadcast_to(array, shape).copy()


def _as_tensor(value: Any, like: Tensor) -> Tensor:
    numbers = torch.from_numpy(np.array(_as_array(value, (like.numel(),)))).reshape(like.shape)
    return numbers.to(like.dtype if like.is_floating_point() else torch.get_default_dtype()).to(like.device)
