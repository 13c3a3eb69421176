"""The states of a few samples on their way, for figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..generation.conditions import first_of
from ..models.base import Model
from ..processes.sde import GaussianProcess
from ..sampling.calls import sample
from ..sampling.result import Trajectory

TRAJECTORY_NUMBERS = 2**17
"""Numbers of one sample's trajectory that are kept, though at least 8 states."""


def first_samples(options: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The arguments of a call for its first `count` samples alone."""
    kept = dict(options)
    if "condition" in kept:
        kept["condition"] = first_of(kept["condition"], count)
    if kept.get("start") is not None:
        kept["start"] = kept["start"][:count]
    return kept


def trajectory(model: Model, sampler: Any, budget: int, count: int, common: Mapping[str, Any]) -> Trajectory:
    """The states of a run's first `count` samples on the way, of which large ones are thinned out evenly.

    They are divided by sqrt(alpha^2 + sigma^2), so that a process whose noise is large has states of the data's scale.
    """
    options = {**first_samples(common, count), "num_samples": count, "trajectory": True}
    found = sample(model, sampler, nfe=budget, **options).trajectory
    assert found is not None
    most = max(TRAJECTORY_NUMBERS // max(int(np.prod(model.shape)), 1), 8)
    kept = np.unique(np.linspace(0, len(found.states) - 1, most).round().astype(int))
    times, states = found.times[kept], found.states[torch.from_numpy(kept)].float()
    return Trajectory(times, states / state_scales(model, times).reshape(len(times), -1, *(1 for _ in model.shape)))


def state_scales(model: Model, times: np.ndarray) -> Tensor:
    """sqrt(alpha^2 + sigma^2) at the times of a trajectory, (K,) or (K, N); 1 for the sample, whose time is NaN."""
    if not isinstance(model.process, GaussianProcess):
        return torch.ones(times.shape)
    known = np.where(np.isnan(times), model.process.t_max, times)
    scales = np.hypot(model.process.alpha(known), model.process.sigma(known))
    return torch.from_numpy(np.where(np.isnan(times), 1.0, scales)).float()
