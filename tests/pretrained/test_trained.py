"""How a network was trained, where its folder does not say it or the caller knows better."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from diffusers import DDPMPipeline, DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import EMAModel
from tiny_models import save_pipeline, tiny_unet

import sdesamplers as sds

COSINE = {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"}
MIDDLE = float(DDPMScheduler(**COSINE).alphas_cumprod[500])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pipeline's folder as training scripts leave it: with checkpoints below."""
    save_pipeline(tmp_path, DDPMScheduler(**COSINE))
    unet = tiny_unet(1)
    unet.save_pretrained(tmp_path / "checkpoint-500" / "unet")
    EMAModel(unet.parameters(), model_cls=type(unet), model_config=unet.config).save_pretrained(
        tmp_path / "checkpoint-500" / "unet_ema"
    )
    return tmp_path


def is_cosine(model: Any) -> bool:
    return model.prediction == "v" and model.process.alphas_cumprod[500] == pytest.approx(MIDDLE, rel=1e-6)


def test_a_checkpoint_has_the_pipelines_scheduler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("unet", "unet_ema"):
            assert is_cosine(sds.load(folder, subfolder=f"checkpoint-500/{name}"))
            assert is_cosine(sds.load(folder / "checkpoint-500" / name))
        assert is_cosine(sds.load(folder / "unet"))
    monkeypatch.chdir(folder / "checkpoint-500")
    assert is_cosine(sds.load("unet_ema"))


def test_a_scheduler_of_its_own_comes_first_and_folders_that_are_no_pipelines_are_not_searched(folder: Path) -> None:
    place = folder / "checkpoint-500" / "unet"
    DDPMScheduler(prediction_type="sample").save_pretrained(folder / "checkpoint-500" / "scheduler")
    assert sds.load(place).prediction == "sample"
    DDPMScheduler(prediction_type="epsilon").save_pretrained(place)
    assert sds.load(place).prediction == "epsilon"
    shutil.rmtree(folder / "checkpoint-500" / "scheduler")
    (folder / "model_index.json").unlink()
    with pytest.warns(UserWarning, match="bare UNet"):
        assert sds.load(folder / "checkpoint-500" / "unet_ema").prediction == "epsilon"


def test_a_folder_of_checkpoints_says_which_networks_it_holds(folder: Path) -> None:
    with pytest.raises(sds.ModelError, match="its folders unet and unet_ema contain networks; load one of them"):
        sds.load(folder / "checkpoint-500")


def test_scheduler_in_every_form(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "elsewhere" / "deep" / "net"
    tiny_unet().save_pretrained(bare)
    scheduler = DDPMScheduler(**COSINE)
    file = folder / "scheduler" / "scheduler_config.json"
    forms = [scheduler, sds.Scheduler.from_config(scheduler.config), file, str(file.parent), folder]
    forms += [json.loads(file.read_text(encoding="utf-8"))]
    for form in forms:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert is_cosine(sds.load(bare, scheduler=form))
        piped = sds.from_pipeline(DDPMPipeline(tiny_unet(), DDPMScheduler()), scheduler=form)
        assert is_cosine(piped)
    flow = sds.load(folder, scheduler=FlowMatchEulerDiscreteScheduler())
    assert (flow.prediction, type(flow.process)) == ("flow", sds.RectifiedFlow)
    for wrong in ({"beta_start": 1.0}, 3, DDPMScheduler, tmp_path / "nothing"):
        with pytest.raises(sds.UsageError, match="scheduler"):
            sds.load(bare, scheduler=wrong)


def test_prediction_is_what_the_network_is_taken_to_predict(folder: Path) -> None:
    """As diffusers' own scheduler of that prediction type: x0 of the same output at the same state."""
    for word, theirs in (("epsilon", "epsilon"), ("x0", "sample"), ("v", "v_prediction")):
        model = sds.load(folder, prediction=word)
        scheduler = DDPMScheduler(**{**COSINE, "prediction_type": theirs, "clip_sample": False})
        x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            output = model.network(x, torch.tensor([500.0])).sample
            wanted = scheduler.step(output, 500, x).pred_original_sample
            said = model.predict(x, 500.0)
        assert isinstance(said, torch.Tensor)
        found = sds.convert(said, model.prediction, "sample", x, model.process, 500.0)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(sds.UsageError, match="prediction"):
        sds.load(folder, prediction="score")
    with pytest.raises(sds.UsageError, match="predicts flow, so prediction='epsilon' does not fit"):
        sds.load(folder, scheduler=FlowMatchEulerDiscreteScheduler(), prediction="epsilon")
    preconditioned = [sds.load(folder, scheduler=EDMEulerScheduler(), prediction=word) for word in ("epsilon", "v")]
    first, second = (model.convention.sign for model in preconditioned)
    assert first == -second


def test_pipelines_in_latent_space_too() -> None:
    pipe = tiny.BUILDERS["stable-diffusion"]()
    plain = sds.from_pipeline(pipe)
    other = sds.from_pipeline(pipe, prediction="v")
    assert (plain.prediction, other.prediction) == ("epsilon", "v")
    cosine = sds.from_pipeline(pipe, scheduler=DDPMScheduler(**COSINE))
    assert is_cosine(cosine)
    np.testing.assert_array_equal(plain.process.alphas_cumprod, other.process.alphas_cumprod)
