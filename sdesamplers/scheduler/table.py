"""A DDPM table as a tensor that can be looked up between its timesteps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..processes.scalars import as_scalar
from ..processes.table import DiscreteVP


class Table(Tensor):
    """alphas_cumprod (T,). Pipelines index it with the timestep that they tell the network, which may be fractional."""

    __torch_function__: Any = torch._C._disabled_torch_function_impl

    process: DiscreteVP

    def __getitem__(self, key: Any) -> Tensor:
        plain = self.as_subclass(Tensor)
        if isinstance(key, float | np.floating) or (isinstance(key, Tensor) and key.is_floating_point()):
            return self._between(key)
        return plain[key]

    def _between(self, timesteps: Any) -> Tensor:
        """alpha^2 at fractional timesteps, which are read to the host."""
        times = np.clip(as_scalar(timesteps), 0.0, self.process.t_max)
        found = torch.as_tensor(np.square(self.process.alpha(times)), dtype=torch.float32)
        if not isinstance(timesteps, Tensor):
            return found
        return found.reshape(timesteps.shape).to(timesteps.device)

    def to(self, *args: Any, **words: Any) -> Tensor:
        """The table on another device or in another dtype, still with what lies between its timesteps."""
        made = self.as_subclass(Tensor).to(*args, **words).as_subclass(Table)
        made.process = self.process
        return made

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.as_subclass(Tensor).clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)
