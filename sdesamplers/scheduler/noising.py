"""Forward noising by a model's process, for image-to-image, inpainting and training; needs no grid and no run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..pretrained.conventions import Convention
from ..processes.scalars import as_scalar, expand
from ..processes.table import DiscreteVP
from .timesteps import read_timestep


class Noising:
    """The methods of a scheduler that depend only on its model's convention."""

    convention: Convention

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """alpha x0 + sigma noise at `timesteps`, one for all samples or one each; if empty, the samples unchanged.

        Integer timesteps of a table are looked up on their device, and elements of `timesteps` carry their values on
        the host; other timesteps are copied to the host.
        """
        levels = _levels(self.convention, timesteps, original_samples)
        return original_samples if levels is None else levels[0] * original_samples + levels[1] * noise

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        """`add_noise` with the name and argument order that flow pipelines use."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """The training target at `timesteps` for the state that `add_noise` returns.

        On a DDPM table it is alpha noise - sigma x0 (Salimans & Ho 2022), whatever the network predicts, as in
        diffusers' DDPM schedulers. For other models it is the network's own target: noise - x0 for flow models, F of
        Karras et al. (2022), eq. 7, for EDM's preconditioning, cos(t) noise - sin(t) x0 for TrigFlow, the score for VE.
        """
        levels = _levels(self.convention, timesteps, sample, target=True)
        return sample if levels is None else levels[1] * noise + levels[0] * sample


def _levels(convention: Convention, timesteps: Any, like: Tensor, *, target: bool = False) -> tuple[Any, Any] | None:
    """Coefficients (of x0, of noise) of the state or of the target; None if `timesteps` is empty."""
    process = convention.process
    if _whole_on_device(timesteps) and isinstance(process, DiscreteVP):
        table = _table_levels(process, like)[:, timesteps.to(like.device).long().flatten()].to(like.dtype)
        if not table.shape[1]:
            return None
        alpha, sigma = table.view(2, -1, *(1,) * (like.dim() - 1))
        return (-sigma, alpha) if target else (alpha, sigma)
    place = getattr(timesteps, "sdesamplers_place", None)
    values: Any = as_scalar(timesteps) if place is None else read_timestep(timesteps).value
    times: Any = convention.time(values)
    if not np.size(times):
        return None
    times = np.clip(times, 0.0, process.t_max)
    row = convention.target(times) if target else (process.alpha(times), process.sigma(times))
    first, second = (as_scalar(value) for value in row)
    return expand(first, like), expand(second, like)


def _table_levels(process: DiscreteVP, like: Tensor) -> Tensor:
    """alpha and sigma of a table, (2, T), in the dtype of `like` (at least float32) and on its device."""
    table = process.alphas_cumprod
    levels = torch.from_numpy(np.sqrt(np.stack([table, 1 - table])))
    # Some devices have no float64: change the dtype before the device.
    return levels.to(torch.promote_types(like.dtype, torch.float32)).to(like.device)


def _whole_on_device(timesteps: Any) -> bool:
    """True if timesteps are a tensor of integers, which can be looked up on their own device."""
    return isinstance(timesteps, Tensor) and not timesteps.is_floating_point()
