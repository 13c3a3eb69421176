"""Times and schedule values: a number for a whole batch, or a float64 array with one for each sample."""

from __future__ import annotations

from typing import Any, TypeAlias, TypeGuard

import numpy as np
import torch
from torch import Tensor

Scalar: TypeAlias = float | np.ndarray
"""A number for the batch, or a float64 array (N,) with one number for each sample. Values computed from a `Scalar` have
the same form, which NumPy's types do not express; `is_per_sample` and `Point[np.ndarray]` narrow the type."""


def is_per_sample(value: Scalar) -> TypeGuard[np.ndarray]:
    """True if there is a number for each sample, False for a single number for the batch."""
    return np.ndim(value) > 0


def expand(value: Scalar, like: Tensor) -> Any:
    """Make `value` broadcast over `like` (N, ...): numbers become floats, arrays become tensors (N, 1, ..., 1)."""
    if isinstance(value, np.ndarray) and value.ndim:
        tensor = torch.from_numpy(value).to(device=like.device, dtype=like.dtype, non_blocking=True)
        return tensor.view(-1, *(1,) * (like.dim() - 1))
    return float(value)


_ZERO = torch.zeros((), device="cpu")


def scaled(x: Tensor, factor: float) -> Tensor:
    """Return factor * x. `x * float` first wraps the float in a tensor; `add` does not and is twice as fast."""
    return torch.add(_ZERO, x, alpha=factor)


def any_zero(value: Scalar) -> bool:
    """True if a number, or any entry of an array, is 0."""
    return value == 0.0 if isinstance(value, float) else bool(np.any(value == 0.0))


def as_scalar(t: Any) -> Scalar:
    """Convert a time: a number, or an array or tensor (N,) or (N, 1, ..., 1). Tensors are copied to the host."""
    if isinstance(t, Tensor):
        t = t.detach().cpu().double().numpy()  # cast on the CPU, since Apple's GPUs have no float64
    array = np.asarray(t, dtype=np.float64)
    return array.reshape(-1) if array.ndim else float(array)
