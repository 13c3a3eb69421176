"""Partial noising of data, as the start of a run (SDEdit)."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from ..checks import number, shown, whole
from ..errors import UsageError
from ..models.base import Model
from ..path.noise import START, NormalSource
from ..pretrained.loading import as_model
from ..processes.sde import GaussianProcess
from ..public import public


class Start(TypedDict):
    """The keyword arguments of `sample` that start a run at an intermediate time."""

    start: Tensor
    start_time: float


@public
def noised(model: Model | str, x: Tensor, time: float, *, seed: int = 0, first_index: int = 0) -> Start:
    """Noise data partially: x_t = alpha(t) x + sigma(t) z (SDEdit; Meng et al. 2022, section 3).

    Pass the result to `sample` as keyword arguments, which denoises from there. The larger the time, the less of x
    remains.

        sample(model, "dpmpp-2m-sde", steps=20, **noised(model, x, 0.5))

    Args:
        model: a `Model` on a Gaussian process, or anything that `load` takes.
        x: data (N, *shape) in the model's range.
        time: on the model's clock, from its t_min to t_max.
        seed, first_index: the noise of sample j depends only on (seed, first_index + j). It is the noise that `sample`
            with this seed starts from, and is independent of the noise of its steps.

    Returns:
        {"start": x_t (N, *shape), float32 at least, on the model's device, "start_time": time}.

    Raises:
        UsageError: x or time is not valid for the model, or its process has no alpha and sigma.
    """
    model = as_model(model)
    process: GaussianProcess = model.gaussian
    time, first_index = number("time", time), whole("first_index", first_index, 0)
    try:
        x = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(f"x must be a tensor (N, ...), not {shown(x)}") from None
    if not x.dim() or tuple(x.shape[1:]) != model.shape or not x.is_floating_point():
        raise UsageError(f"x must be floating-point numbers of shape (N, {', '.join(map(str, model.shape))})")
    if not process.t_min <= time <= process.t_max:
        raise UsageError(f"time must lie from t_min = {process.t_min:g} to t_max = {process.t_max:g}, not {time}")
    x = x.to(model.device, torch.promote_types(x.dtype, torch.float32))
    z = NormalSource(seed, range(first_index, first_index + len(x)), model.shape).draw(START).to(x)
    return {"start": process.perturb(x, time, z), "start_time": float(time)}
