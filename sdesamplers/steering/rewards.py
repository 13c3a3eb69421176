"""A reward function, called with estimates of x0 and checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import shown
from ..errors import NonFiniteError, UsageError
from ..models.base import Model

RewardFunction = Callable[..., Any]
"""Called with (M, *shape) estimates of x0, or the pictures that they decode to; returns M numbers."""


@dataclass(frozen=True)
class Reward:
    """A reward function with what it receives.

    Attributes:
        function: the caller's function.
        model: decodes the estimates.
        decode: True to call it with decoded pictures.
        conditional: True to pass it the rows of the condition too.
    """

    function: RewardFunction
    model: Model
    decode: bool
    conditional: bool

    def __call__(self, x0: Tensor, condition: Any, place: str) -> Tensor:
        """The rewards (M,), float64, of estimates (M, *shape).

        Args:
            x0: the estimates, in the model's coordinates.
            condition: the condition of these rows.
            place: where they come from, for messages.

        Raises:
            UsageError: the function does not return M real numbers.
            NonFiniteError: a reward is not finite.
        """
        seen = self.model.decode(x0) if self.decode else x0.clone()  # the function may edit its argument
        given = self.function(seen, condition) if self.conditional else self.function(seen)
        try:
            rewards = torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError):
            raise UsageError(f"reward must return a tensor of {len(x0)} numbers, not {shown(given)}") from None
        if tuple(rewards.shape) != (len(x0),) or rewards.is_complex():
            raise UsageError(
                f"reward must return one number for each of {len(x0)} rows, a tensor of shape ({len(x0)},), not "
                f"{rewards.dtype} of shape {tuple(rewards.shape)}"
            )
        rewards = rewards.double()
        if not bool(rewards.isfinite().all()):
            raise NonFiniteError(
                f"reward returned {shown(rewards[~rewards.isfinite()][0].item())} {place}; rewards must be finite (a "
                "large negative number excludes a sample)"
            )
        return rewards
