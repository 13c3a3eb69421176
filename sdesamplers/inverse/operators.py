"""Linear measurements y = A x, with the operations that the methods need: A, its adjoint, and (v A A^T + s^2 I)^-1."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from ..checks import numbers, shape_of, whole
from ..errors import UsageError
from ..processes.scalars import Scalar, expand
from ..public import public


@public
class LinearOperator(ABC):
    """A linear map from samples (N, *shape) to measurements (N, *measured), the same for every sample of a batch.

    A subclass defines `apply` and `adjoint`, and either `gain`, if A A^T = gain I, or its own `solve`.
    """

    gain: float | None = None
    """The number with A A^T = gain I, as for measurements that do not overlap; None if A A^T is not a multiple of I."""

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """Return A x, (N, *measured), for x (N, *shape)."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y, (N, *shape), for y (N, *measured)."""

    def solve(self, y: Tensor, variance: Scalar, noise_variance: float) -> Tensor:
        """Return (variance A A^T + noise_variance I)^-1 y, (N, *measured).

        Args:
            variance: one number for all samples, or a float64 array with one for each sample.
        """
        if self.gain is None:
            raise UsageError(f"{type(self).__name__} must define gain, with A A^T = gain I, or its own solve()")
        return y / expand(self.gain * variance + noise_variance, y)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Return A^T (A A^T)^-1 y, the solution of A x = y with the smallest norm, (N, *shape)."""
        return self.adjoint(self.solve(y, 1.0, 0.0))


@public
class Mask(LinearOperator):
    """Keep some entries of a sample and drop the others (inpainting). Measurements are (N, K), the K entries kept.

    Args:
        keep: True (or non-zero) for entries that are measured; of the shape of a sample or of its last dimensions, such
            as (H, W) for all channels.
        shape: the shape of one sample, if `keep` has another shape.

    Raises:
        UsageError: nothing is kept, or the shape of `keep` cannot be expanded to `shape`.
    """

    gain = 1.0

    def __init__(self, keep: Any, shape: Sequence[int] | None = None) -> None:
        kept = numbers("keep", keep, "(*shape), that of a sample or its last dimensions", dims=tuple(range(1, 9))) != 0
        self.shape = tuple(kept.shape) if shape is None else shape_of("shape", shape)
        try:
            kept = kept.expand(self.shape)
        except RuntimeError:
            raise UsageError(
                f"a mask of shape {tuple(kept.shape)} does not match samples of shape {self.shape}; it must have their "
                "shape or that of their last dimensions"
            ) from None
        self.keep = kept
        self._index = kept.flatten().nonzero().flatten()
        if not len(self._index):
            raise UsageError("the mask keeps nothing: at least one entry must be True")

    def _entries(self, like: Tensor) -> Tensor:
        if self._index.device != like.device:
            with torch.inference_mode(False):  # autograd could not use it later otherwise
                self._index = self._index.to(like.device, non_blocking=True)
        return self._index

    def apply(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise UsageError(f"this mask is for samples of shape {self.shape}, not {tuple(x.shape[1:])}")
        return x.flatten(1).index_select(1, self._entries(x))

    def adjoint(self, y: Tensor) -> Tensor:
        whole = y.new_zeros(len(y), self.keep.numel())
        return whole.index_copy(1, self._entries(y), y).view(-1, *self.shape)


@public
class Downsample(LinearOperator):
    """The mean of every `factor` x `factor` block of pixels (super-resolution): (N, C, H, W) to (N, C, H/f, W/f).

    Args:
        factor: a whole number that divides both height and width.
    """

    def __init__(self, factor: int) -> None:
        factor = whole("factor", factor)
        self.factor, self.gain = factor, 1.0 / factor**2

    def apply(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[2] % self.factor or x.shape[3] % self.factor:
            shape = tuple(x.shape[1:])
            raise UsageError(
                f"Downsample({self.factor}) takes images (C, H, W) with H and W divisible by {self.factor}, not "
                f"samples of shape {shape}"
            )
        return avg_pool2d(x, self.factor)

    def adjoint(self, y: Tensor) -> Tensor:
        return interpolate(y, scale_factor=self.factor, mode="nearest") / self.factor**2


@public
class Grey(LinearOperator):
    """The mean over channels (colourisation): (N, C, *size) to (N, 1, *size).

    Args:
        channels: C.
    """

    def __init__(self, channels: int = 3) -> None:
        channels = whole("channels", channels)
        self.channels, self.gain = channels, 1.0 / channels

    def apply(self, x: Tensor) -> Tensor:
        if x.dim() < 2 or x.shape[1] != self.channels:
            raise UsageError(f"Grey({self.channels}) takes samples of {self.channels} channels, not {tuple(x.shape)}")
        return x.mean(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return (y / self.channels).expand(-1, self.channels, *y.shape[2:])


@public
class Matrix(LinearOperator):
    """Any linear map of vectors, (N, D) to (N, M), given by its matrix.

    Args:
        matrix: (M, D). Its singular value decomposition is computed and stored, so M and D should be thousands at most.
    """

    def __init__(self, matrix: Any) -> None:
        a = numbers("matrix", matrix, "(measurements, dimensions)", dims=(0, 1, 2, 3))
        if a.dim() != 2:
            raise UsageError(f"matrix must have shape (measurements, dimensions), not {tuple(a.shape)}")
        self.matrix = a
        left, values, _ = torch.linalg.svd(a)
        squares = a.new_zeros(len(a))
        squares[: len(values)] = values.square()
        # Singular values that are 0 up to rounding do not contribute to the measurement.
        self._null = squares <= squares.max() * (max(a.shape) * torch.finfo(a.dtype).eps) ** 2
        self._left, self._squares = left, squares.masked_fill(self._null, 0.0)

    def apply(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.shape[1] != self.matrix.shape[1]:
            raise UsageError(f"this matrix takes samples of shape ({self.matrix.shape[1]},), not {tuple(x.shape[1:])}")
        return x @ self.matrix.to(x).mT

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix.to(y)

    def solve(self, y: Tensor, variance: Scalar, noise_variance: float) -> Tensor:
        left, squares = self._left.to(y), self._squares.to(y)
        divisor = expand(variance, y) * squares + noise_variance
        if noise_variance == 0:  # in the null space of A^T, without noise, y has no information: use 0
            divisor = divisor.masked_fill(self._null.to(y.device), torch.inf)
        return (y @ left / divisor) @ left.mT
