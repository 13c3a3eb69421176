"""Attributes of a DDPM table that pipelines read, also between its timesteps, and why other models lack them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..pretrained.conventions import Convention
from ..processes.scalars import as_scalar
from ..processes.sde import GaussianProcess
from ..processes.table import DiscreteVP

MISSING = {
    "sigmas": "an sdesamplers.Scheduler has no sigmas on a DDPM table: its latents are alpha x0 + sigma eps, and a "
    "pipeline that reads sigmas expects them divided by alpha",
    "alphas_cumprod": "this model was not trained on a table of alphas_cumprod",
    "betas": "this model was not trained on a table of alphas_cumprod, so it has no betas",
    "alphas": "this model was not trained on a table of alphas_cumprod, so it has no alphas of single steps",
    "final_alpha_cumprod": "an sdesamplers.Scheduler has no final_alpha_cumprod; its runs end at sigma = 0",
    "_get_variance": "an sdesamplers.Scheduler has no variance of single steps; "
    "for parallel sampling use sds.sample(..., 'paradigms')",
}
"""Attributes that the schedulers of some models lack, and the reason, as an error message."""


class Table(Tensor):
    """alphas_cumprod (T,). Pipelines index it with the timestep that they pass to the network; it may be fractional."""

    __torch_function__: Any = torch._C._disabled_torch_function_impl

    process: DiscreteVP

    def __getitem__(self, key: Any) -> Tensor:
        plain = self.as_subclass(Tensor)
        if isinstance(key, float | np.floating) or (isinstance(key, Tensor) and key.is_floating_point()):
            return self._between(key)
        return plain[key]

    def _between(self, timesteps: Any) -> Tensor:
        """alpha^2 at fractional timesteps, which are copied to the host."""
        times = np.clip(as_scalar(timesteps), 0.0, self.process.t_max)
        found = torch.as_tensor(np.square(self.process.alpha(times)), dtype=torch.float32)
        if not isinstance(timesteps, Tensor):
            return found
        return found.reshape(timesteps.shape).to(timesteps.device)

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """The table on another device or in another dtype; fractional timesteps remain available."""
        made = self.as_subclass(Tensor).to(*args, **kwargs).as_subclass(Table)
        made.process = self.process
        return made

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.as_subclass(Tensor).clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)


def alphas_cumprod(process: GaussianProcess) -> Table:
    """alpha^2 at a table's timesteps.

    Raises:
        AttributeError: the process is not a `DiscreteVP`.
    """
    table = _table(process, "alphas_cumprod")
    made = torch.from_numpy(table.alphas_cumprod).float().as_subclass(Table)
    made.process = table
    return made


def betas(process: GaussianProcess) -> Tensor:
    """The variance that each timestep of a table adds.

    Raises:
        AttributeError: the process is not a `DiscreteVP`.
    """
    whole = torch.from_numpy(_table(process, "betas").alphas_cumprod)
    return torch.cat([1 - whole[:1], 1 - whole[1:] / whole[:-1]]).float()


def _table(process: GaussianProcess, name: str) -> DiscreteVP:
    if not isinstance(process, DiscreteVP):
        raise AttributeError(MISSING[name])
    return process


class TableAttributes:
    """The attributes of a scheduler that describe its model's DDPM table."""

    convention: Convention

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha^2 at the timesteps of a DDPM table; it can also be indexed with fractional timesteps."""
        return alphas_cumprod(self.convention.process)

    @property
    def alphas(self) -> Tensor:
        """alpha^2 of single steps of a DDPM table: quotients of neighbouring `alphas_cumprod`."""
        return 1 - self.betas

    @property
    def betas(self) -> Tensor:
        """1 - `alphas`, the variance that each timestep adds."""
        return betas(self.convention.process)
