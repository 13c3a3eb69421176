"""A guided network on a table, in a scheduler's loop and as a model, for tests of CFG++ samplers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import sdesamplers as sds

TABLE = {"_class_name": "DDIMScheduler", "beta_start": 1e-4, "beta_end": 0.02, "clip_sample": False}
TABLE |= {"prediction_type": "v_prediction"}
SAMPLERS = sorted(name for name, spec in sds.samplers().items() if "unguided" in spec.needs)
SCALE = 0.6


def network(x: Tensor, t: Any, condition: float) -> Tensor:
    """A network with a strong condition."""
    return torch.tanh(0.7 * x + condition) + 0.2 * torch.as_tensor(t).to(x) / 1000


def model(clip: Any = False) -> sds.Model:
    """The same network as a model of the table."""
    table = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    return sds.wrap(
        lambda x, t, c: network(x, t, c.view(-1, 1)),
        (2,), alphas_cumprod=table, prediction="v", timesteps="float", dtype=torch.float64, clip=clip,
        conditional=True, null_condition=0.0,
    )  # fmt: skip


def sampled(name: str, clip: Any = False, **options: Any) -> Tensor:
    """The run of `sample` on the scheduler's grid, with condition 1.5."""
    options = {"steps": 6, "spacing": "trailing", "seed": 3, "start": START, "condition": 1.5, **options}
    return sds.sample(model(clip), name, **options).samples


START = torch.tensor([[0.7, -1.2], [2.0, 0.1], [-0.4, 0.9]], dtype=torch.float64)


def outputs(x: Tensor, t: Any, scale: float = SCALE) -> tuple[Tensor, Tensor]:
    """The guided and the unguided output."""
    conditional, unguided = network(x, t, 1.5), network(x, t, 0.0)
    return unguided + scale * (conditional - unguided), unguided


def scheduled(name: str, **options: Any) -> Any:
    scheduler = sds.Scheduler(name, trained=TABLE, seed=3, spacing="trailing", **options)
    scheduler.set_timesteps(6)
    return scheduler
