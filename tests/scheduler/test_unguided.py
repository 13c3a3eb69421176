"""CFG++ samplers in a loop whose caller passes the unguided prediction to `step`, against `sample`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny_pipelines
import torch
from cfgpp_loops import SAMPLERS, SCALE, START, outputs, sampled, scheduled
from torch import Tensor

import sdesamplers as sds


@pytest.mark.parametrize("clip", [False, 0.8])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_loop_of_steps_is_sample(name, clip):
    """Bounds of x0 apply to both predictions, as in `sample`."""
    scheduler, x = scheduled(name, clip=clip), START
    for t in scheduler.timesteps:
        guided, unguided = outputs(x, t)
        x = scheduler.step(guided, t, x, unguided=unguided, return_dict=False)[0]
    found = sampled(name, clip, guidance_scale=SCALE)
    torch.testing.assert_close(x, found, rtol=1e-6, atol=1e-6)
    assert (found - sampled(name, clip)).abs().max() > 1e-2


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_copy_and_a_stored_state_continue_the_run(name):
    scheduler, x = scheduled(name), START
    results = []
    for k, t in enumerate(scheduler.timesteps):
        if k == 3:
            stored = scheduled(name)
            stored.load_state_dict(scheduler.state_dict())
            others = [copy.deepcopy(scheduler), stored]
            results = [finished(other, x, k) for other in others]
        guided, unguided = outputs(x, t)
        x = scheduler.step(guided, t, x, unguided=unguided).prev_sample
    assert all(torch.equal(x, result) for result in results)


def finished(scheduler: Any, x: Tensor, begin: int) -> Tensor:
    for t in scheduler.timesteps[begin:].tolist():
        guided, unguided = outputs(x, t)
        x = scheduler.step(guided, t, x, unguided=unguided).prev_sample
    return x


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_without_it_is_refused_and_changes_nothing(name):
    scheduler = scheduled(name)
    t = scheduler.timesteps[0]
    guided, unguided = outputs(START, t)
    with pytest.raises(sds.UsageError, match=rf"^{name} needs the unguided prediction .*scheduler\.connect\(guider\)"):
        scheduler.step(guided, t, START)
    assert scheduler.step_index is None
    expected = scheduled(name).step(guided, t, START, unguided=unguided).prev_sample
    assert torch.equal(scheduler.step(guided, t, START, unguided=unguided).prev_sample, expected)


def test_its_shape_is_that_of_the_state():
    scheduler = scheduled("euler-cfgpp")
    with pytest.raises(sds.UsageError, match=r"returned shape \(3, 1\) for a state of shape \(3, 2\)"):
        scheduler.step(START, scheduler.timesteps[0], START, unguided=START[:, :1])


def test_an_ordinary_pipeline_is_refused_with_the_reason():
    pipe = tiny_pipelines.sdxl()
    pipe.scheduler = sds.Scheduler.from_config(pipe.scheduler.config, "euler-cfgpp")
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(sds.UsageError, match="this pipeline passes only the guided one"):
        pipe("a red cat", num_inference_steps=2, height=16, width=16)
