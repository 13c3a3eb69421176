"""Times and schedule values: a number for a whole batch, or a float64 array with one for each sample."""

from __future__ import annotations

from typing import Any, TypeAlias, TypeGuard

import numpy as np
import torch
from torch import Tensor

Scalar: TypeAlias = float | np.ndarray
"""A number for the batch, or a float64 array (N,) with one for each sample. What is computed of one is of its form,
which NumPy's types do not say: where a checker must know which it is, `is_per_sample` or a `Point[np.ndarray]` tells it."""


def is_per_sample(value: Scalar) -> TypeGuard[np.ndarray]:
    """Whether there is a number for each sample, and not one for the batch."""
    return np.ndim(value) > 0


def expand(value: Scalar, like: Tensor) -> Any:
    """Make `value` multiply `like` (N, ...) sample by sample: floats pass, arrays become (N, 1, ..., 1)."""
    if isinstance(value, np.ndarray) and value.ndim:
        tensor = torch.from_numpy(value).to(device=like.device, dtype=like.dtype, non_blocking=True)
        return tensor.view(-1, *(1,) * (like.dim() - 1))
    return float(value)


_ZERO = torch.zeros((), device="cpu")


def scaled(x: Tensor, factor: float) -> Tensor:
    """factor * x. `x * float` first wraps its float in a tensor; `add` takes it as it is and is twice as fast."""
    return torch.add(_ZERO, x, alpha=factor)


def any_zero(value: Scalar) -> bool:
    """Whether a number, or any entry of an array, is 0."""
    return value == 0.0 if isinstance(value, float) else bool(np.any(value == 0.0))


def as_scalar(t: Any) -> Scalar:
    """Accept a time as number, or array or tensor (N,) or (N, 1, ..., 1); tensors are read back to the host."""
    if isinstance(t, Tensor):
        t = t.detach().cpu().double().numpy()  # the cast on the CPU: Apple's GPUs have no float64
    array = np.asarray(t, dtype=np.float64)
    return array.reshape(-1) if array.ndim else float(array)
