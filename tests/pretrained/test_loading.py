"""Loading diffusers folders: what the process, the network and the labels become, and what is refused."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMPipeline,
    PNDMScheduler,
    ScoreSdeVeScheduler,
    UNet2DConditionModel,
)
from diffusers.pipelines.deprecated.score_sde_ve.pipeline_score_sde_ve import ScoreSdeVePipeline
from safetensors.torch import load_file, save_file
from tiny_models import WEIGHTS, save_pipeline, tiny_unet

import sdesamplers as sds
from sdesamplers.errors import ModelError, SdesamplersError, UnknownNameError, UsageError
from sdesamplers.pretrained.unets import DiffusersModel
from sdesamplers.processes.schedules import VE
from sdesamplers.processes.table import DiscreteVP

SCHEDULES = sorted(set(re.findall(r'beta_schedule == "(\w+)"', inspect.getsource(DDPMScheduler))))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved DDPM pipeline; tests that change it copy it first."""
    return save_pipeline(tmp_path_factory.mktemp("pipelines") / "ddpm")


@pytest.fixture
def copy(pipeline: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(pipeline, tmp_path / "copy"))


def states(count: int = 2, channels: int = 1, size: int = 8) -> torch.Tensor:
    """States to ask a network at."""
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(5))


def refusal(source: Any, kind: type[SdesamplersError] = ModelError, **options: Any) -> str:
    """The message with which `load` refuses, which must be one line."""
    with pytest.raises(kind) as caught:
        sds.load(source, **options)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def edit_json(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None takes a key out."""
    data = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))


# What a scheduler configuration means


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_beta_schedule_gives_the_schedulers_own_table(tmp_path: Path, schedule: str) -> None:
    scheduler = DDPMScheduler(beta_schedule=schedule, beta_start=0.0005, beta_end=0.03, num_train_timesteps=200)
    table = scheduler.alphas_cumprod.double().numpy()
    process = sds.load(save_pipeline(tmp_path, scheduler)).process
    assert isinstance(process, DiscreteVP)
    np.testing.assert_array_equal(process.alphas_cumprod, table)
    steps = np.arange(200.0)
    np.testing.assert_allclose(process.alpha(steps) ** 2, table, rtol=1e-12)
    np.testing.assert_allclose(process.sigma(steps) ** 2, 1 - table, rtol=1e-9)


def test_the_schedules_are_those_that_diffusers_knows() -> None:
    assert {"linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"} <= set(SCHEDULES)


def test_trained_betas(tmp_path: Path) -> None:
    betas = np.linspace(0.001, 0.2, 50).tolist()
    scheduler = DDPMScheduler(num_train_timesteps=50, trained_betas=betas)
    process = sds.load(save_pipeline(tmp_path, scheduler)).process
    np.testing.assert_array_equal(process.alphas_cumprod, scheduler.alphas_cumprod.double().numpy())
    assert process.t_max == 49


def test_rescaled_betas_end_at_zero_snr(tmp_path: Path) -> None:
    scheduler = DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    model = sds.load(save_pipeline(tmp_path, scheduler))
    np.testing.assert_array_equal(model.process.alphas_cumprod, scheduler.alphas_cumprod.double().numpy())
    assert model.process.zero_terminal_snr
    assert model.process.alpha(999.0) == 0
    assert torch.isfinite(sds.sample(model, "ddim", steps=3).samples).all()


@pytest.mark.parametrize(
    ("kind", "expected"), [("epsilon", "epsilon"), ("sample", "sample"), ("v_prediction", "v")], ids=str
)
def test_prediction_types(tmp_path: Path, kind: str, expected: str) -> None:
    model = sds.load(save_pipeline(tmp_path, DDPMScheduler(prediction_type=kind)))
    assert model.prediction == expected
    assert torch.isfinite(sds.sample(model, "heun", steps=2).samples).all()


@pytest.mark.parametrize(
    ("pipe", "scheduler"),
    [
        (DDPMPipeline, DDPMScheduler()),
        (DDIMPipeline, DDIMScheduler()),
        (PNDMPipeline, PNDMScheduler()),
        (DDPMPipeline, DPMSolverMultistepScheduler()),
        (DDPMPipeline, EulerDiscreteScheduler()),
    ],
    ids=lambda v: getattr(v, "__name__", type(v).__name__),
)
def test_pipelines_with_a_table(tmp_path: Path, pipe: Any, scheduler: Any) -> None:
    model = sds.load(save_pipeline(tmp_path, scheduler, pipeline=pipe))
    np.testing.assert_array_equal(model.process.alphas_cumprod, scheduler.alphas_cumprod.double().numpy())
    assert (model.shape, model.data_range, model.name) == ((1, 8, 8), (-1.0, 1.0), str(tmp_path))
    result = sds.sample(model, "ddim", steps=2, num_samples=2)
    assert result.samples.shape == (2, 1, 8, 8)
    assert result.images[0].size == (8, 8)


def test_a_score_sde_ve_pipeline_is_asked_at_sigma_and_has_pixels_from_0_to_1(tmp_path: Path) -> None:
    scheduler = ScoreSdeVeScheduler(sigma_min=0.02, sigma_max=90.0)
    unet = tiny_unet(time_embedding_type="fourier", freq_shift=0)
    model = sds.load(save_pipeline(tmp_path, scheduler, unet, ScoreSdeVePipeline))
    assert isinstance(model, DiffusersModel)
    assert isinstance(model.process, VE)
    assert (model.process.sigma_min, model.process.sigma_max) == (0.02, 90.0)
    assert model.prediction == "score"
    assert model.data_range == (0.0, 1.0)
    x, time = states(), 0.37
    sigma = float(model.process.sigma(time))
    with torch.no_grad():
        expected = unet(x, torch.full((2,), sigma)).sample
        torch.testing.assert_close(model.predict(x, time), expected)
    assert torch.isfinite(sds.sample(model, "euler", steps=3, spacing="exponential").samples).all()


# Layouts


def test_a_bare_unet_says_what_it_assumes(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="assumed"):
        model = sds.load(tmp_path)
    np.testing.assert_array_equal(model.process.alphas_cumprod, DDPMScheduler().alphas_cumprod.double().numpy())
    assert model.prediction == "epsilon"


@pytest.mark.parametrize("place", ["beside", "above"])
def test_a_bare_unet_takes_a_scheduler_that_lies_near(copy: Path, place: str) -> None:
    if place == "beside":
        shutil.move(copy / "scheduler" / "scheduler_config.json", copy / "unet")
        edit_json(copy / "unet" / "scheduler_config.json", num_train_timesteps=77)
    else:
        edit_json(copy / "scheduler" / "scheduler_config.json", num_train_timesteps=77)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert sds.load(copy / "unet").process.t_max == 76


def test_the_flat_layout_of_early_hub_repositories(copy: Path, pipeline: Path) -> None:
    for file in [*(copy / "unet").iterdir(), *(copy / "scheduler").iterdir()]:
        shutil.move(file, copy)
    (copy / "unet").rmdir()
    (copy / "scheduler").rmdir()
    flat, usual = (sds.sample(sds.load(f), "ddim", steps=2).samples for f in (copy, pipeline))
    torch.testing.assert_close(flat, usual, rtol=0, atol=0)


def test_subfolder(pipeline: Path) -> None:
    model = sds.load(pipeline.parent, subfolder=pipeline.name)
    assert model.shape == (1, 8, 8)
    assert "no such folder" in refusal(pipeline, subfolder="nowhere")


def test_variant_picks_its_own_file(copy: Path) -> None:
    tiny_unet(seed=9).half().save_pretrained(copy / "unet", variant="fp16")
    plain, half = sds.load(copy), sds.load(copy, variant="fp16")
    assert (plain.dtype, half.dtype) == (torch.float32, torch.float32)
    expected = tiny_unet(seed=9).half().float().state_dict()["conv_in.weight"]
    torch.testing.assert_close(half.unet.state_dict()["conv_in.weight"], expected, rtol=0, atol=0)
    assert not torch.equal(plain.unet.state_dict()["conv_in.weight"], expected)
    assert "fp32" in refusal(copy, variant="fp32")


def test_a_plugin_may_answer_for_a_source_that_nobody_knows(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer: Any = sds.load(pipeline)
    monkeypatch.setattr(sds.default_registry(), "load_model", lambda source, options: answer)
    assert sds.load("odd:thing") is answer
    answer = "not a model"
    assert "not a Model" in refusal("odd:thing")


# Types and devices


EDM = {"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
ANGLE = {"_class_name": "SCMScheduler", "sigma_data": 0.5}


@pytest.mark.parametrize("scheduler", [EDM, ANGLE], ids=["edm", "trigflow"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_preconditioning_is_in_float32_around_a_network_in_half_precision(
    pipeline: Path, scheduler: dict[str, Any], dtype: torch.dtype
) -> None:
    """x0 is a multiple of the state plus one of the output (Karras et al. 2022; Lu & Song 2025)."""
    model: Any = sds.load(pipeline, dtype=dtype, scheduler=scheduler)
    assert (model.dtype, model.network_dtype) == (torch.float32, dtype)
    assert next(model.unet.parameters()).dtype == dtype
    given: list[torch.Tensor] = []
    model.unet.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    outputs: list[torch.Tensor] = []
    model.unet.register_forward_hook(lambda _, args, output: outputs.append(output[0]))
    x = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    for t in (0.02, 0.5, 1.5):
        if scheduler is EDM:
            total = 0.25 + t**2
            inside, skip, out = x / total**0.5, 0.25 / total, t * 0.5 / total**0.5
        else:
            inside, skip, out = x, np.cos(t), -np.sin(t)
        found = model.predict(x, t)
        assert torch.equal(given[-1], inside.to(dtype))
        torch.testing.assert_close(found, skip * x + out * outputs[-1].float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "fp16", torch.bfloat16, "float64", None])
def test_dtype_is_the_networks_and_the_state_stays_float32_at_least(pipeline: Path, dtype: Any) -> None:
    model = sds.load(pipeline, dtype=dtype)
    expected = {"fp16": torch.float16, "float16": torch.float16, "float64": torch.float64, None: torch.float32}
    assert model.dtype == expected.get(dtype, dtype)
    assert next(model.unet.parameters()).dtype == model.dtype
    seen = []
    result = sds.sample(model, "euler", steps=4, callback=lambda event: seen.append(event.x.dtype))
    wanted = torch.float64 if dtype == "float64" else torch.float32
    assert set(seen) == {wanted}
    assert result.samples.dtype == wanted
    # Samples of size 1, clipped, from a network that is not trained: a few roundings of its numbers, on the whole.
    error = result.samples.float() - sds.sample(sds.load(pipeline), "euler", steps=4).samples
    unit = torch.finfo(torch.float32 if model.dtype == torch.float64 else model.dtype).eps
    assert float(error.square().mean().sqrt()) < 8 * unit


@pytest.mark.parametrize("dtype", ["int8", "floaty", torch.int64, 3, "nn", ""])
def test_dtypes_that_are_none(pipeline: Path, dtype: Any) -> None:
    assert "dtype" in refusal(pipeline, UsageError, dtype=dtype)


def test_mixed_precision_runs_the_network_in_bfloat16(pipeline: Path) -> None:
    model, plain = sds.load(pipeline, mixed_precision="bf16"), sds.load(pipeline, mixed_precision="no")
    assert model.dtype == torch.float32
    with torch.no_grad():
        out = model.predict(states(), 10.0)
        exact = plain.predict(states(), 10.0)
    assert isinstance(out, torch.Tensor)
    assert not torch.equal(out.float(), exact)
    torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.05)
    result = sds.sample(model, "ddim", steps=2)
    assert result.samples.dtype == torch.float32


def test_mixed_precision_that_cannot_be(pipeline: Path) -> None:
    assert "mixed_precision" in refusal(pipeline, UsageError, mixed_precision="int4")
    if not torch.cuda.is_available():
        assert "fp16" in refusal(pipeline, UsageError, mixed_precision="fp16")


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "warp", "cpu:x", ""])
def test_devices_that_are_not_there(pipeline: Path, device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "device" in refusal(pipeline, UsageError, device=device)


def test_device_given(pipeline: Path) -> None:
    assert sds.load(pipeline, device="cpu").device == torch.device("cpu")
    assert sds.load(pipeline, device=torch.device("cpu")).device == torch.device("cpu")


# The network's answer


@pytest.mark.parametrize("time", [0.0, 7.0, 412.25, 998.999, 999.0])
def test_predict_is_the_networks_answer_at_exactly_that_timestep(pipeline: Path, time: float) -> None:
    model, x = sds.load(pipeline), states(3)
    with torch.no_grad():
        expected = tiny_unet()(x, torch.full((3,), time)).sample
        torch.testing.assert_close(model.predict(x, time), expected, rtol=0, atol=0)
        torch.testing.assert_close(model.predict(x, np.full(3, time)), expected, rtol=0, atol=0)


def test_predict_takes_a_time_for_each_sample(pipeline: Path) -> None:
    model, x, times = sds.load(pipeline), states(3), np.array([0.5, 300.25, 999.0])
    with torch.no_grad():
        each = torch.cat([tiny_unet()(x[k : k + 1], torch.tensor([times[k]]).float()).sample for k in range(3)])
        torch.testing.assert_close(model.predict(x, times), each, rtol=1e-5, atol=1e-6)


def test_round_timesteps_asks_at_whole_ones(pipeline: Path) -> None:
    model, x = sds.load(pipeline, round_timesteps=True), states()
    with torch.no_grad():
        torch.testing.assert_close(model.predict(x, 412.4), model.predict(x, 412.0), rtol=0, atol=0)
        torch.testing.assert_close(model.predict(x, np.array([412.4, 7.6])), model.predict(x, np.array([412.0, 8.0])))
        assert not torch.equal(sds.load(pipeline).predict(x, 412.4), model.predict(x, 412.4))


def test_a_learned_variance_is_split_off(tmp_path: Path) -> None:
    unet = tiny_unet(in_channels=3, out_channels=6)
    model, x = sds.load(save_pipeline(tmp_path, DDPMScheduler(variance_type="learned_range"), unet)), states(channels=3)
    assert model.shape == (3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model.predict(x, 55.5), unet(x, torch.full((2,), 55.5)).sample[:, :3])
    assert sds.sample(model, "ddim", steps=2, num_samples=2).samples.shape == (2, 3, 8, 8)


def test_channels_that_are_neither_a_prediction_nor_a_variance(tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path, unet=tiny_unet(in_channels=4, out_channels=3))
    assert "3 output channels for 4 input channels" in refusal(folder)


# Sizes


@pytest.mark.parametrize(("size", "expected"), [(16, (1, 16, 16)), ((8, 12), (1, 8, 12)), ([2, 2], (1, 2, 2))])
def test_another_size(pipeline: Path, size: Any, expected: tuple[int, ...]) -> None:
    model = sds.load(pipeline, size=size)
    assert model.shape == expected
    assert sds.sample(model, "euler", steps=2, num_samples=1).samples.shape == (1, *expected)


@pytest.mark.parametrize("size", [7, 0, -8, 1, (8, 9), 8.0, True, "8", (8,), (8, 8, 8), (8, None)])
def test_sizes_that_the_network_cannot_take(pipeline: Path, size: Any) -> None:
    message = refusal(pipeline, UsageError, size=size)
    assert "size" in message or "multiples of 2" in message


def test_a_network_without_a_size_needs_one(copy: Path) -> None:
    edit_json(copy / "unet" / "config.json", sample_size=None)
    assert "size=" in refusal(copy, UsageError)
    assert sds.load(copy, size=8).shape == (1, 8, 8)


# Labels


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-conditional pipeline of 5 labels, the last of which means none."""
    return save_pipeline(tmp_path_factory.mktemp("labelled"), unet=tiny_unet(num_class_embeds=5))


def test_a_label_reaches_the_network(labelled: Path) -> None:
    model, unet, x = sds.load(labelled), tiny_unet(num_class_embeds=5), states()
    labels = model.condition_for([1, 3], 2)
    with torch.no_grad():
        expected = unet(x, torch.full((2,), 30.5), class_labels=torch.tensor([1, 3])).sample
        torch.testing.assert_close(model.predict(x, 30.5, labels), expected, rtol=0, atol=0)


def test_labels_for_each_sample_and_by_default(labelled: Path) -> None:
    def draw(model: Any, **words: Any) -> torch.Tensor:
        return sds.sample(model, "ddim", steps=2, num_samples=3, **words).samples

    plain = sds.load(labelled)
    mixed = draw(plain, condition=[0, 2, 3])
    for k, label in enumerate([0, 2, 3]):
        torch.testing.assert_close(mixed[k], draw(plain, condition=label)[k], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixed, draw(plain, condition=torch.tensor([0, 2, 3])), rtol=0, atol=0)
    torch.testing.assert_close(mixed, draw(plain, condition=[0, 2, 3], batch_size=2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(draw(plain, condition=2), draw(sds.load(labelled, condition=2)), rtol=0, atol=0)
    torch.testing.assert_close(draw(plain, condition=2), draw(plain, condition=np.int64(2)), rtol=0, atol=0)
    assert not torch.allclose(draw(plain, condition=1), draw(plain, condition=2))


@pytest.mark.parametrize("condition", [5, -1, [0, 5], 1.0, "cat", [0, 1], [], [[0], [1, 2]], True, [[1, 2, 3]]])
def test_labels_that_are_refused(labelled: Path, condition: Any) -> None:
    with pytest.raises(UsageError, match="condition must be"):
        sds.sample(sds.load(labelled), "ddim", steps=2, num_samples=3, condition=condition)
    if condition not in ([0, 1], [[1, 2, 3]]):
        assert "condition must be" in refusal(labelled, UsageError, condition=condition)


def test_a_label_is_asked_for_and_only_taken_where_it_means_something(labelled: Path, pipeline: Path) -> None:
    with pytest.raises(UsageError, match="from 0 to 4"):
        sds.sample(sds.load(labelled), "ddim", steps=2)
    with pytest.raises(UsageError, match="takes no condition"):
        sds.sample(sds.load(pipeline), "ddim", steps=2, condition=1)
    assert "takes no condition" in refusal(pipeline, UsageError, condition=1)


def test_guidance_is_the_combination_by_hand(labelled: Path) -> None:
    model, unet = sds.load(labelled, null_condition=4, clip=False), tiny_unet(num_class_embeds=5)
    alphas = DDPMScheduler().alphas_cumprod.double()
    seen: list[Any] = []
    result = sds.sample(
        model,
        "ddim",
        times=[999.0, 400.5],
        condition=[1, 2],
        guidance_scale=3.0,
        num_samples=2,
        callback=lambda event: seen.append(event.x.clone()),
    )
    x, time = seen[0], torch.full((2,), 999.0)
    with torch.no_grad():
        with_label = unet(x, time, class_labels=torch.tensor([1, 2])).sample
        without = unet(x, time, class_labels=torch.tensor([4, 4])).sample
    eps = without + 3.0 * (with_label - without)
    last = float(model.process.alpha(400.5))
    x0 = (x - (1 - alphas[999]).sqrt() * eps) / alphas[999].sqrt()
    # samples are given in the model's own coordinates at the grid's end
    expected = (last * x0 + float(model.process.sigma(400.5)) * eps).float()
    torch.testing.assert_close(result.samples, expected, rtol=1e-4, atol=1e-3)


def test_guidance_needs_a_null_label(labelled: Path, pipeline: Path) -> None:
    with pytest.raises(UsageError, match="null_condition"):
        sds.sample(sds.load(labelled), "ddim", steps=2, condition=1, guidance_scale=2.0)
    with pytest.raises(UsageError, match="guidance_scale"):
        sds.sample(sds.load(pipeline), "ddim", steps=2, guidance_scale=2.0)
    assert "condition must be" in refusal(labelled, UsageError, null_condition=9)
    assert "takes no condition" in refusal(pipeline, UsageError, null_condition=0)


# What is refused


def test_a_missing_folder() -> None:
    message = refusal("./no/such/folder", UnknownNameError)
    assert "unknown model './no/such/folder'" in message
    assert "'fashion-mnist'" in refusal("fashion-mnits", UnknownNameError)


def test_an_empty_folder(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert "contains nothing" in message
    assert "supported are" in message


def test_another_pipeline(tmp_path: Path) -> None:
    parts = {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.30.0", **parts}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    message = refusal(tmp_path)
    assert "StableDiffusionPipeline" in message
    assert "vae: AutoencoderKL" in message
    assert "supported are" in message


def test_another_network(tmp_path: Path) -> None:
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    UNet2DConditionModel(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, **blocks).save_pretrained(
        tmp_path
    )
    assert "UNet2DConditionModel" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "AutoencoderKL"}, "contains an AutoencoderKL; supported are"),
        ({"_class_name": "UNet1DModel"}, "contains a UNet1DModel; supported are"),
        ({"architectures": ["BertModel"], "model_type": "bert"}, "contains a BertModel of transformers; supported"),
        ({"model_type": "bert"}, "contains a configuration of model type 'bert' without a class name"),
        ({"architectures": [3]}, "contains a configuration without a class name"),
    ],
    ids=str,
)
def test_the_class_of_another_network_is_named(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert message in refusal(tmp_path)


def test_mistyped_arguments_get_the_nearest(pipeline: Path) -> None:
    call: Any = sds.load
    with pytest.raises(sds.UsageError, match=r"load has no argument 'devise'; did you mean device=\?"):
        call(pipeline, devise="cpu")
    with pytest.raises(sds.UsageError, match=r"load has no argument 'zzz' \(its arguments: source, revision, "):
        call(pipeline, zzz=1)
    call = sds.from_pipeline
    with pytest.raises(sds.UsageError, match=r"from_pipeline has no argument 'hieght'; did you mean height=\?"):
        call(None, hieght=8)
    assert "device" in inspect.signature(sds.load).parameters


@pytest.mark.parametrize("keep", [0, 4, 60, 5000, -10])
def test_truncated_weights(copy: Path, keep: int) -> None:
    file = copy / "unet" / WEIGHTS
    file.write_bytes(file.read_bytes()[:keep])
    assert "truncated or corrupt" in refusal(copy)


def test_corrupt_weights(copy: Path) -> None:
    (copy / "unet" / WEIGHTS).write_bytes(b"<html>not found</html>" * 50)
    assert "truncated or corrupt" in refusal(copy)


@pytest.mark.parametrize("text", ["{", "", "[]", "\xff\xfe", '"x"'])
@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_corrupt_configurations(copy: Path, file: str, text: str) -> None:
    (copy / file).write_bytes(text.encode("latin-1"))
    message = refusal(copy)
    assert file in message
    assert "not a" in message


@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_missing_configurations(copy: Path, file: str) -> None:
    (copy / file).unlink()
    assert file in refusal(copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"block_out_channels": 3},
        {"block_out_channels": []},
        {"block_out_channels": [8, 16, 32]},
        {"in_channels": "x"},
        {"down_block_types": ["NoSuchBlock", "DownBlock2D"]},
        {"sample_size": "x"},
        {"norm_num_groups": 5},
        {"num_class_embeds": "x"},
        {"class_embed_type": "identity"},
        {"layers_per_block": 2},
        {"block_out_channels": [4, 16]},
    ],
    ids=str,
)
def test_network_configurations_that_make_no_sense(copy: Path, changes: dict[str, Any]) -> None:
    edit_json(copy / "unet" / "config.json", **changes)
    assert refusal(copy, SdesamplersError)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"_class_name": "NoSuchScheduler"}, "NoSuchScheduler"),
        ({"_class_name": "UNet2DModel"}, "UNet2DModel"),
        ({"_class_name": 3}, "3"),
        ({"beta_schedule": "wavy"}, "wavy"),
        ({"prediction_type": "dream"}, "dream"),
        ({"num_train_timesteps": "many"}, "DDPMScheduler"),
        ({"num_train_timesteps": 0}, "DDPMScheduler"),
        ({"trained_betas": [0.1, -0.2, 0.3]}, "DDPMScheduler"),
        ({"_class_name": "ScoreSdeVeScheduler", "sigma_min": "x"}, "ScoreSdeVeScheduler"),
        ({"_class_name": "ScoreSdeVeScheduler", "sigma_min": 3.0, "sigma_max": 2.0}, "ScoreSdeVeScheduler"),
    ],
    ids=str,
)
def test_scheduler_configurations_that_make_no_sense(copy: Path, changes: dict[str, Any], word: str) -> None:
    edit_json(copy / "scheduler" / "scheduler_config.json", **changes)
    if "_class_name" in changes:  # which the index decides
        edit_json(copy / "model_index.json", scheduler=["diffusers", changes["_class_name"]])
    assert word in refusal(copy)


def test_a_scheduler_without_a_table(tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path, FlowMatchEulerDiscreteScheduler())
    for file in (folder / "scheduler" / "scheduler_config.json", folder / "model_index.json"):
        file.write_text(file.read_text().replace("FlowMatchEulerDiscreteScheduler", "PiflowScheduler"))
    message = refusal(folder)
    assert "PiflowScheduler" in message
    assert "no alphas_cumprod table" in message


def test_missing_weights(copy: Path) -> None:
    (copy / "unet" / WEIGHTS).unlink()
    assert WEIGHTS in refusal(copy)


def test_missing_keys(copy: Path) -> None:
    file = copy / "unet" / WEIGHTS
    tensors = load_file(file)
    for key in ("conv_in.weight", "conv_out.bias"):
        del tensors[key]
    save_file(tensors, file, {"format": "pt"})
    message = refusal(copy)
    assert "conv_in.weight" in message


def test_weights_of_another_network(copy: Path) -> None:
    shutil.copy(copy / "unet" / WEIGHTS, copy / "old")
    tiny_unet(block_out_channels=(16, 16)).save_pretrained(copy / "other")
    shutil.copy(copy / "other" / WEIGHTS, copy / "unet" / WEIGHTS)
    assert "cannot be loaded" in refusal(copy)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickled_weights_are_read_only_on_request(copy: Path) -> None:
    (copy / "unet" / WEIGHTS).unlink()
    tiny_unet().save_pretrained(copy / "unet", safe_serialization=False)
    assert "allow_pickle=True" in refusal(copy)
    model = sds.load(copy, allow_pickle=True)
    torch.testing.assert_close(model.unet.state_dict()["conv_in.weight"], tiny_unet().state_dict()["conv_in.weight"])
    (copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04garbage")
    assert "cannot be loaded" in refusal(copy, allow_pickle=True)


def test_a_revision_of_a_folder(pipeline: Path) -> None:
    assert "local folder" in refusal(pipeline, UsageError, revision="main")
    assert "local folder" in refusal("fashion-mnist", UsageError, revision="main")


def test_a_network_laid_out_channels_last_answers_the_same(pipeline: Path) -> None:
    plain, other = sds.load(pipeline), sds.load(pipeline, channels_last=True)
    assert other.tuning == ("channels_last",)
    assert other.network.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, *plain.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(other.predict(x, 400.0), plain.predict(x, 400.0), rtol=1e-4, atol=1e-4)


def test_a_compiled_network_is_asked_through_torch_compile(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def compile(function: Any, *_: Any, **__: Any) -> Any:
        def run(*arguments: Any, **words: Any) -> Any:
            asked.append(True)
            return function(*arguments, **words)

        return run

    monkeypatch.setattr(torch, "compile", compile)
    model = sds.load(pipeline, compile=True)
    assert model.tuning == ("compile",)
    sds.sample(model, "ddim", steps=2)
    assert len(asked) == 2


def test_only_networks_are_tuned() -> None:
    from sdesamplers.pretrained.loading import tuned
    from sdesamplers.pretrained.options import LoadOptions

    with pytest.raises(UsageError, match="compile and channels_last apply to networks, and 'mixture' has none"):
        tuned(sds.grid_mixture(sds.VP()), LoadOptions(compile=True))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


def test_pickles_that_were_not_downloaded(copy: Path) -> None:
    """Beside safetensors they are of no matter; alone they are called what they are, and nothing is asked for."""
    (copy / "unet" / "diffusion_pytorch_model.bin").write_text(POINTER)
    assert sds.load(copy).shape == (1, 8, 8)
    (copy / "unet" / WEIGHTS).unlink()
    message = refusal(copy)
    assert "Git LFS pointer" in message
    assert "allow_pickle" not in message


def test_a_file_of_weights_is_refused_with_the_way_to_use_it(tmp_path, monkeypatch):
    torch.save({"state_dict": {}}, tmp_path / "größe x.ckpt")
    monkeypatch.chdir(tmp_path)
    for name in ("größe x.ckpt", "./größe x.ckpt", tmp_path / "größe x.ckpt"):
        with pytest.raises(sds.ModelError, match=r"is a file.* load_state_dict .* sds\.wrap"):
            sds.load(name)
