"""The state that a network was asked at, from what a pipeline hands back of the one that it was given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..path.points import model_state
from ..processes.scalars import expand

if TYPE_CHECKING:
    from .scheduler import Asking


def is_own(asking: Asking, sample: Tensor) -> bool:
    """Whether `sample` is the very tensor that the run has returned, not written over since."""
    if sample is asking.given:
        return asking.version is None or sample._version == asking.version
    return False


def evaluated(asking: Asking, sample: Tensor) -> Tensor:
    """The state that the network was asked at, in the path's coordinates.

    It is the run's own, unrounded, wherever the pipeline hands back what it was given; where it has edited something
    the edited values are taken, number by number, so that nothing is read from the device to find out.

    Gradients are those of the tensor handed in: with respect to `sample` if it requires them, and none of the run's
    own past if it was detached.
    """
    if asking.given is None:
        return asking.x
    if sample.requires_grad and torch.is_grad_enabled():
        theirs = scaled_state(asking, sample)
        # theirs lies within a rounding of the values wherever these differ, so that the sum is exact.
        return theirs + (_values(asking, sample.detach()) - theirs).detach()
    values = _values(asking, sample)
    if values.requires_grad:
        return values.detach()
    if sample is asking.given and not asking.x.requires_grad and asking.x.is_inference() == values.is_inference():
        return asking.x.copy_(values)  # written over by the pipeline: then the sampler's own state is, too
    return values


def _values(asking: Asking, sample: Tensor) -> Tensor:
    x, given = asking.x, asking.given
    assert given is not None
    if sample.dtype is given.dtype is x.dtype and isinstance(asking.point.scale, float) and asking.point.scale == 1.0:
        return sample if sample is given else sample.clone()  # whose numbers are the run's own unless it was edited
    echo = model_state(x, asking.point).to(given.dtype)  # which the pipeline may have cast since
    return torch.where(sample == echo.to(sample.dtype), x, scaled_state(asking, sample))


def scaled_state(asking: Asking, sample: Tensor) -> Tensor:
    """A pipeline's state in the path's coordinates and the run's dtype."""
    theirs, scale = sample.to(asking.x.dtype), asking.point.scale
    return theirs if isinstance(scale, float) and scale == 1.0 else theirs * expand(scale, theirs)
