"""`load` and `from_pipeline` follow the scheduler that a pipeline has, not the class that its folder was saved with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny_pipelines as tiny
import torch

import sdesamplers as sds
from sdesamplers.pretrained.pipelines.base import scheduler_config


def saved(folder: Path, scheduler: Any) -> Path:
    diffusers.DDPMPipeline(unet=tiny.plain_unet(), scheduler=scheduler).save_pretrained(folder)
    return folder


def renamed(folder: Path, name: str) -> None:
    """The scheduler's file says another class than the pipeline's index."""
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "_class_name": name}))


@pytest.mark.parametrize("stale", ["EulerDiscreteScheduler", "ScoreSdeVeScheduler", "AmusedScheduler", "MyScheduler"])
def test_a_folder_is_of_the_class_in_its_index(stale, tmp_path):
    theirs = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.001)
    folder = saved(tmp_path, theirs)
    renamed(folder, stale)
    built = diffusers.DiffusionPipeline.from_pretrained(folder).scheduler
    assert type(built) is diffusers.DDPMScheduler  # as diffusers has it
    process = sds.load(folder).process
    torch.testing.assert_close(
        torch.from_numpy(process.alphas_cumprod).float(), theirs.alphas_cumprod, rtol=1e-6, atol=0
    )


def test_a_scheduler_that_was_put_in_is_followed(tmp_path):
    pipe = diffusers.DiffusionPipeline.from_pretrained(saved(tmp_path, diffusers.DDPMScheduler()))
    assert scheduler_config(pipe.scheduler)["_class_name"] == "DDPMScheduler"
    pipe.scheduler = diffusers.ScoreSdeVeScheduler(sigma_max=20.0)
    assert scheduler_config(pipe.scheduler)["_class_name"] == "ScoreSdeVeScheduler"

    class Own(diffusers.DDIMScheduler):
        """Somebody's own, made from one of diffusers."""

    assert scheduler_config(Own.from_config(diffusers.DDPMScheduler().config))["_class_name"] == "DDIMScheduler"
    pipe.scheduler = sds.Scheduler.from_config(diffusers.EDMEulerScheduler(), "heun")
    assert scheduler_config(pipe.scheduler)["_class_name"] == "EDMEulerScheduler"
