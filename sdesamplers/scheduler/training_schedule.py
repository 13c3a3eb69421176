"""The schedule on which a model was trained, as training scripts index it before calling `set_timesteps`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..path.grid import spaced_points
from ..path.points import path_process
from ..pretrained.conventions import Convention, Flow
from ..processes.schedules import RectifiedFlow
from ..processes.table import DiscreteVP
from ..registry.registry import default_registry


def training_schedule(convention: Convention, trained: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(timesteps, sigmas) from noise to data, with the lengths that the model's own scheduler class gives them.

    The timesteps of a DDPM table are N - 1, ..., 0 (no sigmas). The sigmas of a flow are N/N, ..., 1/N with the model's
    shift. For other models the values come from the scheduler class; if it has none, from N steps of the process's
    preferred spacing.
    """
    process = convention.process
    if isinstance(process, DiscreteVP):
        return torch.arange(int(process.t_max), -1, -1, device="cpu"), torch.zeros(0, device="cpu")
    if isinstance(convention, Flow) and isinstance(process, RectifiedFlow):
        count = int(convention.train_steps)
        even = np.linspace(1.0, count, count)[::-1] / count
        sigmas = process.shift * even / (1 + (process.shift - 1) * even)
        return _single(convention.timestep(sigmas)), _single(sigmas)
    own = _of_class(trained)
    return own if own is not None else _even(convention, int(trained.get("num_train_timesteps") or 1000))


def _of_class(trained: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    """(timesteps, sigmas) of a new instance of the model's scheduler class; None if it does not have both."""
    import diffusers  # diffusers takes seconds to import

    cls = getattr(diffusers, str(trained.get("_class_name")), None)
    if cls is None:
        return None
    try:
        made = cls.from_config({key: value for key, value in trained.items() if not key.startswith("_")})
    except ImportError:  # an optional dependency of the class's noise, which is not needed here
        return None
    timesteps, sigmas = (getattr(made, name, None) for name in ("timesteps", "sigmas"))
    if not isinstance(timesteps, Tensor) or not isinstance(sigmas, Tensor):
        return None
    return timesteps.float().cpu(), sigmas.float().cpu()


def _even(convention: Convention, count: int) -> tuple[Tensor, Tensor]:
    process = convention.process
    grid = default_registry().spacing(process.preferred_spacing)
    points = spaced_points(path_process(process, "native"), grid, {}, count, None, "zero")[:-1]
    times = np.array([point.t for point in points])
    return _single(convention.timestep(times)), _single(process.sigma(times))


def _single(values: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
