"""Solver tables in a scheduler: one, several of a folder or a repository, saved with a pipeline; and every refusal."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import constants
from solver_tables import table_for
from tiny_models import save_pipeline

import sdesamplers as sds


def test_a_solver_table_is_saved_and_loaded_with_its_pipeline(tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path / "tiny")
    table = table_for(sds.load(folder).process)
    pipe = diffusers.DDPMPipeline.from_pretrained(folder)
    pipe.scheduler = sds.Scheduler.from_config(pipe.scheduler.config, recipe=table)
    pipe.save_pretrained(tmp_path / "saved")
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path / "saved")
    assert isinstance(again.scheduler, sds.Scheduler)
    call: dict[str, Any] = {"num_inference_steps": 5, "output_type": "np"}
    made, loaded = (each(**call, generator=torch.Generator().manual_seed(1)).images for each in (pipe, again))
    assert np.array_equal(made, loaded)
    ddim = diffusers.DDPMPipeline(unet=pipe.unet, scheduler=sds.Scheduler.from_config(pipe.scheduler.config, "ddim"))
    assert not np.allclose(made, ddim(**call, generator=torch.Generator().manual_seed(1)).images, atol=1e-3)
    with pytest.raises(sds.UsageError, match="the table has 5 steps, not 6"):
        again(num_inference_steps=6)
    with pytest.raises(sds.UsageError, match="its own grid, so spacing="):
        sds.Scheduler.from_config(pipe.scheduler.config, table, spacing="karras")


def test_a_folder_of_solver_tables_is_saved_and_loaded_with_its_pipeline(tmp_path: Path) -> None:
    folder, places = save_pipeline(tmp_path / "tiny"), [tmp_path / "tables", tmp_path / "one"]
    process = sds.load(folder).process
    tables = [table_for(process), table_for(process, (0.8, 0.3))]
    for table in tables:
        table.save(places[0])
    pipe = diffusers.DDPMPipeline.from_pretrained(folder)
    config = pipe.scheduler.config
    pipe.scheduler = sds.Scheduler.from_config(config, recipe=str(places[0]))
    pipe.save_pretrained(tmp_path / "saved")
    for file in places[0].iterdir():
        file.unlink()  # the numbers are with the pipeline
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path / "saved")
    copied = pickle.loads(pickle.dumps(pipe.scheduler))
    for table in tables:
        single = sds.Scheduler.from_config(config, table)
        schedulers = (pipe.scheduler, again.scheduler, pipe.scheduler.clone(), copied, copy.deepcopy(copied), single)
        images = [
            diffusers.DDPMPipeline(pipe.unet, scheduler)(
                num_inference_steps=table.nfe, output_type="np", generator=torch.Generator().manual_seed(1)
            ).images
            for scheduler in schedulers
        ]
        assert all(np.array_equal(images[0], image) for image in images[1:])
    with pytest.raises(sds.UsageError, match=r"no solver table for 6 evaluations, only for 3, 5$"):
        again(num_inference_steps=6)


WRONG_TABLES: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "no table for this number": (
        lambda config, tables: sds.Scheduler.from_config(config, tables).set_timesteps(4),
        "this scheduler has no solver table for 4 evaluations, only for 3, 5",
    ),
    "no number": (
        lambda config, tables: sds.Scheduler.from_config(config, tables).set_timesteps(),
        "this scheduler has solver tables for 3, 5 evaluations; pass num_inference_steps",
    ),
    "timesteps": (
        lambda config, tables: sds.Scheduler.from_config(config, tables[0]).set_timesteps(timesteps=[9, 8, 7, 6, 5]),
        "a solver table has its own grid, so timesteps= does not apply",
    ),
    "timesteps for one of several": (
        lambda config, tables: sds.Scheduler.from_config(config, tables).set_timesteps(timesteps=[900, 500, 100]),
        "a solver table has its own grid, so timesteps= does not apply",
    ),
    "sigmas": (
        lambda config, tables: sds.Scheduler.from_config(config, tables).set_timesteps(sigmas=[9.0, 3.0, 1.0, 0.0]),
        "a solver table has its own grid, so sigmas= does not apply",
    ),
    "a grid": (
        lambda config, tables: sds.Scheduler.from_config(config, tables, spacing="karras"),
        "a solver table has its own grid, so spacing= does not apply",
    ),
    "adaptive steps": (
        lambda config, tables: sds.Scheduler.from_config(config, tables, adaptive=True),
        "table does not choose its own steps",
    ),
    "none": (lambda config, tables: sds.Scheduler.from_config(config, []), "must have at least one"),
    "one twice": (
        lambda config, tables: sds.Scheduler.from_config(config, [tables[0], tables[0]]),
        "this scheduler has several solver tables for 5 evaluations; pass one of them",
    ),
    "a number": (lambda config, tables: sds.Scheduler.from_config(config, [tables[0], 3]), "not a solver table"),
    "several scales": (
        lambda config, tables: sds.Scheduler.from_config(
            config, [tables[0], dataclasses.replace(tables[1], facts={"guidance_scale": 7.5})]
        ),
        "solver tables for guidance scales 1, 7.5, and a pipeline does not pass its scale to its scheduler",
    ),
    "the model's own": (
        lambda config, tables: sds.Scheduler.from_config(config, "tuned"),
        "come with a loaded model, and a scheduler has no model",
    ),
}


@pytest.mark.parametrize("case", WRONG_TABLES)
def test_solver_tables_that_a_scheduler_cannot_use_are_refused_in_a_line(case: str) -> None:
    config = diffusers.DDPMScheduler().config
    process = sds.Scheduler.from_config(config).convention.process
    call, reason = WRONG_TABLES[case]
    with pytest.raises(sds.UsageError, match=re.escape(reason)) as error:
        call(config, [table_for(process), table_for(process, (0.8, 0.3))])
    assert "\n" not in str(error.value)


def test_a_run_that_starts_in_the_middle_is_refused() -> None:
    config = diffusers.DDPMScheduler().config
    table = table_for(sds.Scheduler.from_config(config).convention.process)
    scheduler = sds.Scheduler.from_config(config, table)
    scheduler.set_timesteps(5)
    state = torch.zeros(1, 1, 2, 2)
    with pytest.raises(sds.UsageError, match=r"3 steps .* starts in the middle, as image-to-image does"):
        scheduler.step(state, scheduler.timesteps[2], state)


def test_a_hub_repository_of_solver_tables_in_a_scheduler(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    config = diffusers.DDPMScheduler().config
    process = sds.Scheduler.from_config(config).convention.process
    tables = [table_for(process, guidance_scale=7.5), table_for(process, (0.8, 0.3), guidance_scale=7.5)]
    for table in tables:
        table.save(tmp_path / "tables")
    hub.repo("me/tables").commit_folder(tmp_path / "tables")
    scheduler = sds.Scheduler.from_config(config, "hf://me/tables")
    for table in tables:
        scheduler.set_timesteps(table.nfe)
        expected = [math.atan(float(process.ratio(float(t)))) for t in scheduler.timesteps]
        assert expected == pytest.approx(table.network_angles, abs=1e-5)
