"""`Scheduler` as vLLM-Omni uses a scheduler class of its entry point `vllm_omni.schedulers`.

The contract is that of its guide on scheduler injection: how the class is found and constructed, and what its loops
call. vLLM-Omni itself is not run here; these tests make the same calls.
"""

from __future__ import annotations

import copy
import inspect
import re
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

import sdesamplers as sds

GROUP = "vllm_omni.schedulers"
SHIFT = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256}


def injected_class() -> Any:
    """The class that vLLM-Omni finds under the name `sdesamplers`."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    table = re.search(rf'^\[project\.entry-points\."{GROUP}"\]\n(.*?)\n\n', text, re.M | re.S)
    assert table is not None
    declared = dict(re.findall(r'^(\w+) = "([\w.:]+)"$', table[1], re.M))
    return EntryPoint("sdesamplers", declared["sdesamplers"], GROUP).load()


def construct(folder: Path, **kwargs: Any) -> Any:
    """As vLLM-Omni constructs it, with `diffusion_scheduler_kwargs`."""
    return injected_class().from_pretrained(str(folder), subfolder="scheduler", local_files_only=True, **kwargs)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder, of which vLLM-Omni passes the path."""
    FlowMatchEulerDiscreteScheduler(**SHIFT).save_pretrained(tmp_path / "scheduler")
    return tmp_path


def velocity(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x) * (1 + t / 1000)


def denoise(scheduler: Any, x: Tensor, steps: int = 6, **kwargs: Any) -> Tensor:
    """The denoising loop of a flow pipeline: Qwen-Image, Flux and Stable Diffusion 3 pass their sigmas and mu."""
    scheduler.set_begin_index(0)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device="cpu", mu=0.8)
    for t in scheduler.timesteps:
        x = scheduler.step(velocity(x, t), t, x, return_dict=False, **kwargs)[0]
    return x


def test_the_class_and_its_named_parameters(folder: Path) -> None:
    scheduler_class = injected_class()
    assert isinstance(scheduler_class, type)
    assert scheduler_class is sds.Scheduler
    parameters = inspect.signature(scheduler_class.set_timesteps).parameters
    assert {"num_inference_steps", "device", "timesteps", "sigmas", "mu"} <= parameters.keys()
    assert {"return_dict", "generator"} <= inspect.signature(scheduler_class.step).parameters.keys()
    scheduler = construct(folder, sampler="euler", revision="main")
    assert scheduler.config.num_train_timesteps == 1000
    assert scheduler.config.base_image_seq_len == 256  # from which the pipelines compute mu


def test_euler_has_the_numbers_of_the_stock_scheduler(folder: Path) -> None:
    x = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0))
    stock = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    found, expected = denoise(construct(folder, sampler="euler"), x), denoise(stock, x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_unipc_has_the_numbers_of_diffusers(tmp_path: Path) -> None:
    """On flow sigmas with a shift (Wan 2.2). diffusers cuts its timesteps down to integers, 1e-3 of the time apart."""
    settings = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0}
    stock = UniPCMultistepScheduler(**settings)
    stock.save_pretrained(tmp_path / "scheduler")
    x = torch.randn(1, 4, 2, 4, generator=torch.Generator().manual_seed(0))
    results = []
    for scheduler in (stock, construct(tmp_path, sampler="unipc")):
        scheduler.set_timesteps(8, device="cpu")
        state = x
        for t in scheduler.timesteps:
            state = scheduler.step(velocity(state, t), t, state, return_dict=False)[0]
        results.append(state)
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("sampler", ["dpmpp-2m-sde", "unipc", "heun"])
def test_copies_for_each_request_run_in_turns(folder: Path, sampler: str) -> None:
    """Step-wise execution copies the scheduler for each request, and advances the requests in turn."""
    template = construct(folder, sampler=sampler)
    template.set_timesteps(6, mu=0.8)
    starts = [torch.randn(1, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    expected = []
    for start, seed in zip(starts, range(3), strict=True):
        alone, x = construct(folder, sampler=sampler), start
        alone.set_timesteps(6, mu=0.8)
        for t in alone.timesteps:
            generator = torch.Generator().manual_seed(seed)
            x = alone.step(velocity(x, t), t, x, return_dict=False, generator=generator)[0]
        expected.append(x)
    schedulers, states = [copy.deepcopy(template) for _ in starts], list(starts)
    for k, t in enumerate(template.timesteps):
        for j, x in enumerate(states):
            if k == 3:
                schedulers[j] = copy.deepcopy(schedulers[j])
            arguments = {"return_dict": False, "generator": generators[j]}
            states[j] = schedulers[j].step(velocity(x, t), t, x, **arguments)[0]
    for found, alone in zip(states, expected, strict=True):
        assert torch.equal(found, alone)
    assert template.step_index is None


def test_a_slice_of_the_timesteps(folder: Path) -> None:
    """Pipeline-parallel execution begins in the middle: `set_begin_index`."""
    x = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    stock = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    results = []
    for scheduler in (construct(folder, sampler="euler"), stock):
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 6, 6), mu=0.8)
        scheduler.set_begin_index(2)
        state = x
        for t in scheduler.timesteps[2:]:
            state = scheduler.step(velocity(state, t), t, state, return_dict=False)[0]
        results.append(state)
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)
