"""azula's denoisers as models, and models as azula's denoisers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import known_keywords, shown
from ..errors import UsageError
from ..models.base import Model, Output
from ..models.calling import as_flat, call, isolated
from ..processes.predictions import convert
from ..processes.scalars import Scalar, is_per_sample
from ..public import public
from .keyword_denoiser import KeywordDenoiser, keywords_of
from .schedule_process import ScheduleProcess


class AzulaModel(KeywordDenoiser):
    """One of azula's denoisers as a model that predicts x0; a dictionary as its condition is passed as keywords."""

    pure = True

    def _called(self, x: Tensor, times: tuple[Scalar, ...], *given: Any) -> Tensor | Output:
        (t,) = times
        kwargs = keywords_of(given)
        shaped = as_flat(t, x) if is_per_sample(t) else as_flat(t, x[:1])[0]  # some denoisers take one time only
        output: Tensor | Output = call(self._mean, x.clone(), shaped, name=self.name, **kwargs)
        return output

    def _mean(self, x: Tensor, t: Tensor, **kwargs: Any) -> Any:
        return self.function(x, t, **kwargs).mean


@public
@known_keywords("data_range", "name", "clip", "dtype", "device", "conditional", "null_condition")
def from_azula(denoiser: Any, shape: Sequence[int], **options: Any) -> Model:
    """A model from one of azula's denoisers, on the process of its schedule.

    Args:
        denoiser: an `azula.denoise.Denoiser`: called as `denoiser(x, t, **condition)`, it returns a posterior with the
            mean (N, *shape), and its `schedule` maps t in [0, 1] to (alpha, sigma).
        shape: the shape of one sample.
        **options: further arguments of `FunctionModel`; a condition is a dictionary of keyword arguments.

    Raises:
        UsageError: not a denoiser, or an invalid option.

    Example:
        >>> denoiser = azula.denoise.KarrasDenoiser(backbone, azula.noise.VPSchedule())
        >>> sds.sample(sds.from_azula(denoiser, (3, 32, 32)), "dpmpp-2m", steps=20, num_samples=4)
    """
    if not callable(denoiser) or not callable(getattr(denoiser, "schedule", None)):
        raise UsageError(f"denoiser must be one of azula's, with a schedule, not {shown(denoiser)}")
    process = ScheduleProcess(denoiser.schedule)
    return AzulaModel(denoiser, process, "sample", shape, **{"name": type(denoiser).__name__, **options})


@public
def as_azula(model: Model) -> Any:
    """A model as one of azula's denoisers, for its samplers and its guidance.

    Its time runs from 0 (`t_min` of the model's process) to 1 (`t_max`), and its mean is the model's x0. Keyword
    arguments: `condition`, as in `sample`.

    Args:
        model: a `Model` with alpha and sigma.

    Returns:
        An `azula.denoise.Denoiser`.

    Raises:
        UsageError: not a model, or its process has no alpha and sigma.
        ModuleNotFoundError: azula is not installed.

    Example:
        >>> sampler = azula.sample.HeunSampler(sds.as_azula(model), steps=20)
        >>> sampler(sampler.init((4, *model.shape)))
    """
    if not isinstance(model, Model):
        raise UsageError(f"model must be a Model, not {shown(model)}")
    process = model.gaussian  # raises if there are no alpha and sigma
    from azula.denoise import Denoiser, DiracPosterior  # an optional package
    from azula.noise import Schedule

    class ProcessSchedule(Schedule):
        """The alpha and sigma of the model's process."""

        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            times = native(t)
            return as_tensor(process.alpha(times), t), as_tensor(process.sigma(times), t)

    class ModelDenoiser(Denoiser):
        """The x0 of the model."""

        def __init__(self) -> None:
            super().__init__()
            self.schedule = ProcessSchedule()
            self.network = model.network if isinstance(model.network, torch.nn.Module) else None

        def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Any:
            times, given = native(t), model.condition_for(condition, len(x_t))
            output = isolated(model)(x_t.to(model.device, model.dtype), times, given)
            value = output.value if isinstance(output, Output) else output
            return DiracPosterior(convert(value.to(x_t), model.prediction, "sample", x_t, process, times))

    def native(t: Tensor) -> Scalar:
        times = t.detach().double().cpu().numpy()
        times = process.t_min + times * (process.t_max - process.t_min)
        return times if times.ndim else float(times)

    def as_tensor(values: Scalar, t: Tensor) -> Tensor:
        return torch.as_tensor(np.broadcast_to(np.asarray(values), t.shape).copy()).to(t)

    return ModelDenoiser()
