"""A model's output with more than one tensor."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..public import public


@public
class Output(NamedTuple):
    """A prediction with additional values.

    Attributes:
        value: the prediction (N, *shape).
        unguided: the prediction without guidance.
        log_density: (N,), in nats.
    """

    value: Tensor
    unguided: Tensor | None = None
    log_density: Tensor | None = None
