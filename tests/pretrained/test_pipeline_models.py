"""Pipelines as models: what the network is asked and answers is what the pipeline gives its scheduler."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from hub_server import HubServer
from PIL import Image

import sdesamplers as sds
from sdesamplers.errors import ModelError, UsageError
from sdesamplers.models.guidance import Guided
from sdesamplers.pretrained.conventions import convention_of
from sdesamplers.pretrained.pipelines.base import Conditioning, scheduler_config

SHORT = {"max_sequence_length": tiny.TOKENS}
SMALL = {"height": 16, "width": 16}
BIG = {"height": 64, "width": 64}
ASKED: dict[str, dict[str, Any]] = {
    "stable-diffusion": SMALL,
    "stable-diffusion-v": SMALL,
    "stable-diffusion-img2img": {},
    "stable-diffusion-inpaint": SMALL,
    "latent-consistency": {**SMALL, "embedded_guidance": 5.0},
    "sdxl": SMALL,
    "sdxl-edm": SMALL,
    "sd3": {**SMALL, "encode_options": SHORT},
    "flux": {**SMALL, "encode_options": SHORT, "embedded_guidance": 2.0},
    "flux-schnell": {**SMALL, "encode_options": SHORT},
    "pixart-alpha": {**SMALL, "encode_options": SHORT},
    "pixart-sigma": {**SMALL, "encode_options": SHORT},
    "dit": {},
    "ldm": {},
    "ldm-text": BIG,
    "kandinsky": {},
    "consistency-model": {},
    "aura-flow": {**SMALL, "encode_options": SHORT},
    "sana": {"height": 32, "width": 32, "encode_options": {**SHORT, "complex_human_instruction": None}},
    "lumina": BIG,
    "lumina2": {**BIG, "encode_options": {"max_sequence_length": 48, "system_prompt": ""}},
    "stable-audio": {},
}
"""Arguments of `from_pipeline` with which a model sees what `tiny.CALL` makes its pipeline see."""

UNCONDITIONAL = {"ldm"}
UNGUIDED = {"latent-consistency", "ldm", "consistency-model"}
EXTRA: dict[str, dict[str, Any]] = {
    "flux": {"true_cfg_scale": 3.0, "negative_prompt": "", "guidance_scale": 2.0},
    "flux-schnell": {"true_cfg_scale": 3.0, "negative_prompt": ""},
    "latent-consistency": {"guidance_scale": 5.0},
    "lumina2": {"guidance_scale": 3.0, "cfg_normalization": False},
    "ldm": {},
    "consistency-model": {},
}
NEGATED = ["stable-diffusion", "sdxl", "sd3", "flux", "pixart-alpha", "stable-audio"]


def model_of(name: str, pipe: Any = None, **changes: Any) -> Any:
    """The model of a tiny pipeline."""
    return sds.from_pipeline(tiny.BUILDERS[name]() if pipe is None else pipe, **{**ASKED[name], **changes})


def condition_of(name: str, other: bool = False) -> Any:
    """What `tiny.CALL` asks for, or something else."""
    call = {**tiny.CALL[name], **(tiny.OTHER.get(name, {}) if other else {})}
    if name in UNCONDITIONAL:
        return None
    if "image_embeds" in call:
        return call["image_embeds"]
    return call["class_labels"][0] if "class_labels" in call else tiny.OTHER_PROMPT if other else call["prompt"]


def guided(name: str, model: Any, **options: Any) -> Any:
    """A model under guidance of scale 3, where its kind has guidance."""
    if name in UNGUIDED:
        return model
    negative = tiny.CALL[name].get("negative_image_embeds")
    return Guided(model, 3.0, **({} if negative is None else {"negative": negative}), **options)


class Stopped(Exception):
    """Ends a pipeline's run at a step that was recorded."""


def recorded(pipe: Any, at: int = 1, **call: Any) -> tuple[torch.Tensor, float, torch.Tensor]:
    """(network's guided output, timestep, state) as a pipeline hands them to its scheduler in step `at`."""
    seen: list[Any] = []
    step = pipe.scheduler.step

    def recording(output: torch.Tensor, t: Any, sample: torch.Tensor, *args: Any, **options: Any) -> Any:
        seen.append((output.clone(), float(t), sample.clone()))
        if len(seen) > at:
            raise Stopped
        return step(output, t, sample, *args, **options)

    pipe.scheduler.step = recording
    try:
        pipe(generator=torch.Generator().manual_seed(3), **call)
    except Stopped:
        pass
    return seen[-1]  # type: ignore[no-any-return]


def in_model_states(name: str) -> Any:
    """A tiny pipeline whose scheduler takes the model's own states: Euler's are divided by alpha."""
    pipe = tiny.BUILDERS[name]()
    if isinstance(pipe.scheduler, diffusers.EulerDiscreteScheduler):
        pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    else:  # it is shared with other tests, and `recorded` changes it
        pipe.scheduler = copy.deepcopy(pipe.scheduler)
    return pipe


def agree(name: str, negative: str | None = None) -> None:
    """Compare a model's guided prediction with what its pipeline hands to its scheduler."""
    pipe = in_model_states(name)
    call = {**tiny.CALL[name], **EXTRA.get(name, {"guidance_scale": 3.0})}
    if negative is not None:
        call["negative_prompt"] = negative
    output, timestep, sample = recorded(pipe, **call)
    model = model_of(name, pipe, **({} if negative is None else {"negative_prompt": negative}))
    if name.startswith("flux"):
        output, sample = model.unpack(output), model.unpack(sample)
    output, sample = output[:1, : model.shape[0]], sample[:1]
    convention = convention_of(scheduler_config(pipe.scheduler))
    t = float(convention.time(timestep))
    expected = convention.read(output, sample, t)
    asked = guided(name, model)
    with torch.no_grad():
        found = asked.predict(sample, t, asked.condition_for(condition_of(name), 1))
    found = found.value if isinstance(found, sds.Output) else found
    if name == "lumina":  # its pipeline guides three channels of the four
        found, expected = found[:, :3], expected[:, :3]
    error = (found - expected).abs().max() / expected.abs().max()
    assert float(error) < 2e-5
    assert float(expected.std()) > 1e-3  # there is something to compare


@pytest.mark.parametrize("name", ASKED)
def test_a_guided_prediction_is_what_the_pipeline_gives_its_scheduler(name: str) -> None:
    agree(name)


@pytest.mark.parametrize("name", NEGATED)
def test_so_is_one_with_a_negative_prompt(name: str) -> None:
    agree(name, "dull dogs")


@pytest.mark.parametrize("name", [name for name in ASKED if name not in UNCONDITIONAL])
def test_two_conditions_in_one_batch_are_the_two_alone(name: str) -> None:
    model = model_of(name)
    x = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    times = np.array([0.8, 0.3]) * model.process.t_max
    first, second = (condition_of(name, other) for other in (False, True))
    both = torch.cat([first, second]) if isinstance(first, torch.Tensor) else [first, second]
    with torch.no_grad():
        together = model.predict(x, times, model.condition_for(both, 2))
        for row, alone in enumerate((first, second)):
            single = model.predict(x[row : row + 1], float(times[row]), model.condition_for(alone, 1))
            far = (together[row] - single[0]).abs().max() / single.abs().max()
            assert float(far) < 1e-4
        turned = torch.flip(both, [0]) if isinstance(both, torch.Tensor) else both[::-1]
        swapped = model.predict(x, times, model.condition_for(turned, 2))
    assert float((swapped - together).abs().max()) > 1e-6  # the condition does something


@pytest.mark.parametrize("name", [name for name in ASKED if name not in UNGUIDED])
def test_guidance_in_one_call_is_guidance_in_two(name: str) -> None:
    model = model_of(name)
    x = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    t = 0.6 * model.process.t_max
    with torch.no_grad():
        values = []
        for batched in (True, False):
            asked = guided(name, model, batched=batched)
            values.append(asked.predict(x, t, asked.condition_for(condition_of(name), 2)).value)
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-4 * float(values[1].abs().max()))


# Pictures


@pytest.mark.parametrize(
    "name", ["stable-diffusion", "sdxl", "sd3", "flux", "pixart-alpha", "aura-flow", "sana", "lumina2"]
)
def test_decoding_is_the_pipelines(name: str) -> None:
    pipe, model = tiny.BUILDERS[name](), model_of(name)
    words = {**tiny.CALL[name], "num_inference_steps": 2}
    latents = tiny.run(name, pipe, **words)
    pictures = tiny.run(name, pipe, **{**words, "output_type": "pt"})
    latents = model.unpack(latents) if name == "flux" else latents
    decoded = model.decode(latents)
    torch.testing.assert_close((decoded / 2 + 0.5).clamp(0, 1), pictures, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["dit", "ldm", "ldm-text"])
def test_decoding_is_the_pipelines_where_it_returns_pictures_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, model = copy.copy(tiny.BUILDERS[name]()), model_of(name)
    coder = model._coder().module
    given: list[torch.Tensor] = []
    decode = coder.decode
    monkeypatch.setattr(coder, "decode", lambda z, **options: given.append(z) or decode(z, **options))
    pictures = tiny.run(name, pipe).permute(0, 3, 1, 2)
    scale = coder.config.scaling_factor
    decoded = model.decode(given[0] * scale)
    torch.testing.assert_close((decoded / 2 + 0.5).clamp(0, 1)[: len(pictures)], pictures, rtol=0, atol=1e-5)


def test_kandinskys_latents_are_not_quantised() -> None:
    pipe, model = tiny.BUILDERS["kandinsky"](), model_of("kandinsky")
    latents, pictures = (tiny.run("kandinsky", pipe, output_type=kind) for kind in ("latent", "pt"))
    torch.testing.assert_close(model.decode(latents), pictures, rtol=0, atol=1e-5)


def test_sound() -> None:
    pipe, model = tiny.BUILDERS["stable-audio"](), model_of("stable-audio")
    latents, waves = (tiny.run("stable-audio", pipe, output_type=kind) for kind in ("latent", "pt"))
    torch.testing.assert_close(model.decode(latents), waves, rtol=0, atol=1e-5)
    result = sds.sample(model, "heun", steps=2, condition="a", seed=1)
    assert result.decoded.shape == (1, 2, 64)
    with pytest.raises(UsageError, match="not images"):
        _ = result.images
    with pytest.raises(UsageError, match="no height"):
        model_of("stable-audio", height=16)


def test_latents_with_a_mean_and_a_deviation_for_each_channel() -> None:
    pipe = tiny.own("sdxl")
    pipe.vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 2.0, 0.5, 1.5])
    latents = tiny.run("sdxl", pipe)
    pictures = tiny.run("sdxl", pipe, output_type="pt")
    model = model_of("sdxl", pipe)
    torch.testing.assert_close((model.decode(latents) / 2 + 0.5).clamp(0, 1), pictures, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["stable-diffusion", "sdxl", "sd3", "flux", "sana", "kandinsky", "ldm"])
def test_encoding_undoes_the_decoders_scaling(name: str) -> None:
    model = model_of(name)
    pictures = 2 * torch.rand(2, 3, *model.sizes, generator=torch.Generator().manual_seed(0)) - 1
    latents = model.encode(pictures, batch_size=1)
    assert latents.shape == (2, *model.shape)
    module = model._coder().module
    raw = module.encode(pictures, return_dict=False)[0]
    raw = raw.mode() if hasattr(raw, "latent_dist") or not torch.is_tensor(raw) else raw
    torch.testing.assert_close(model._coder().from_network(latents), raw, rtol=1e-5, atol=1e-5)


def test_encoding_is_image_to_images_without_its_noise() -> None:
    model, pipe = model_of("stable-diffusion-img2img"), tiny.BUILDERS["stable-diffusion-img2img"]()
    seen: list[torch.Tensor] = []
    pipe.scheduler = copy.deepcopy(pipe.scheduler)
    pipe.scheduler.add_noise = lambda clean, noise, t: seen.append(clean) or clean  # type: ignore[func-returns-value]
    pictures = tiny.CALL["stable-diffusion-img2img"]["image"]
    with torch.no_grad():
        spread = pipe.vae.encode(2 * pictures - 1).latent_dist.std
    tiny.run("stable-diffusion-img2img", pipe)
    away = (seen[0] - model.encode(2 * pictures - 1)) / pipe.vae.config.scaling_factor / spread
    assert 0.8 < float(away.std()) < 1.2  # the pipeline's is a draw around ours


def test_results_show_pictures_and_not_latents(tmp_path: Path) -> None:
    model = model_of("stable-diffusion")
    result = sds.sample(model, "ddim", steps=3, condition=["a cat", "a dog"], guidance_scale=2.0, num_samples=2)
    assert result.samples.shape == (2, 4, 8, 8)
    assert result.data_range is None
    expected = (model.decode(result.samples).clamp(-1, 1) / 2 + 0.5) * 255
    for image, pixels in zip(result.images, expected, strict=True):
        assert image.size == (16, 16)
        assert np.abs(np.asarray(image).transpose(2, 0, 1) - pixels.numpy()).max() <= 0.51
    assert result.condition.tolist() == ["a cat", "a dog"]
    words = {"steps": 3, "condition": ["a cat", "a dog"], "guidance_scale": 2.0, "num_samples": 2}
    sds.generate(model, "ddim", **words, out=tmp_path / "out", formats=["png", "safetensors"])
    for image, index in zip(result.images, range(2), strict=True):
        assert np.array_equal(Image.open(tmp_path / "out" / f"sample-{index:06d}.png"), image)
    from safetensors import safe_open

    with safe_open(tmp_path / "out" / "samples.safetensors", "pt") as file:
        assert json.loads(file.metadata()["sdesamplers"])["condition"] == ["a cat", "a dog"]
        torch.testing.assert_close(file.get_tensor("samples"), result.samples, rtol=1e-5, atol=1e-5)


def test_a_stored_result_does_not_hold_the_model() -> None:
    result = sds.sample(model_of("ldm"), "ddim", steps=2)
    result.sampler = None
    stored = pickle.dumps(result)
    assert len(stored) < 20_000
    again = pickle.loads(stored)
    torch.testing.assert_close(again.samples, result.samples, rtol=0, atol=0)
    with pytest.raises(UsageError, match=r"model\.decode"):
        _ = again.images


def test_a_pipeline_without_a_decoder_samples_and_says_so_when_asked_for_pictures() -> None:
    pipe = tiny.own("sd3")
    pipe.vae = None
    result = sds.sample(model_of("sd3", pipe), "euler", steps=2, condition="a")
    assert bool(result.samples.isfinite().all())
    with pytest.raises(ModelError, match="no vae"):
        _ = result.images


def test_a_half_precision_decoder_that_overflows_works_in_float32_and_is_put_back() -> None:
    pipe = tiny.own("sdxl", torch.float16)
    pipe.vae.register_to_config(force_upcast=True)
    model = model_of("sdxl", pipe)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = model.decode(latents)
    assert pipe.vae.dtype == torch.float16
    exact = copy.deepcopy(pipe.vae).float()
    expected = exact.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# Running


@pytest.mark.slow
def test_every_sample_may_have_its_own_times() -> None:
    model = model_of("stable-diffusion-v")
    times: list[float] = []
    words: dict[str, Any] = {
        "rtol": 1e-4,
        "atol": 1e-4,
        "seed": 2,
        "callback": lambda event: times.append(float(np.ptp(event.point.t))),
    }
    result = sds.sample(model, "rk45", condition=["a cat", "a dog", "b"], num_samples=3, **words)
    assert max(times) > 1.0
    single = sds.sample(model, "rk45", condition="b", first_index=2, **words)
    torch.testing.assert_close(result.samples[2:], single.samples, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["stable-diffusion", "sdxl-edm", "flux", "dit", "lumina", "stable-audio"])
def test_gradients_flow_to_the_state(name: str) -> None:
    model = model_of(name, tiny.own(name, torch.float64))
    condition = model.condition_for(condition_of(name), 1)
    x, direction, step = torch.randn(
        3, 1, *model.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    x.requires_grad_()
    step = 1e-5 * step
    t = float(model.process.time_at_ratio(1.0))
    (gradient,) = torch.autograd.grad((model.predict(x, t, condition) * direction).sum(), x)
    with torch.no_grad():
        ahead, behind = ((model.predict(x + s * step, t, condition) * direction).sum() for s in (1, -1))
    change = float((gradient * step).sum())
    assert float(ahead - behind) / 2 == pytest.approx(change, rel=1e-2)  # rotary angles are float32 there
    assert change != 0


def test_prompts_encoded_inside_a_run_may_be_used_with_gradients_later() -> None:
    model = model_of("stable-diffusion")
    with torch.inference_mode():
        condition = model.unconditional(1)
    x = torch.zeros(1, *model.shape, requires_grad=True)
    model.predict(x, 10.0, condition).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["stable-diffusion", "sd3"])
def test_half_precision_networks_keep_a_float32_state(name: str, dtype: torch.dtype) -> None:
    pipe = tiny.own(name, dtype)
    model = model_of(name, pipe)
    assert model.dtype == dtype
    states: list[torch.Tensor] = []
    words: dict[str, Any] = {"steps": 3, "condition": "a cat", "guidance_scale": 3.0}
    result = sds.sample(model, "euler", callback=lambda event: states.append(event.x), **words)
    assert {x.dtype for x in states} == {torch.float32}
    # The same rounded weights in float32 say how far the network's own rounding leads.
    exact = sds.sample(model_of(name, copy.deepcopy(pipe).to(torch.float32)), "euler", **words).samples
    away = float((result.samples - exact).norm() / exact.norm())
    assert away < (0.05 if dtype == torch.float16 else 0.2)
    assert result.decoded.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_preconditioning_is_in_float32_around_a_network_in_half_precision(dtype: torch.dtype) -> None:
    """Karras et al. 2022, eq. 7, with sigma_data = 0.5: only the network's input and output are rounded."""
    model = model_of("sdxl-edm", tiny.own("sdxl-edm", dtype))
    assert (model.dtype, model.network_dtype) == (torch.float32, dtype)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    model.network.register_forward_hook(lambda _, args, output: seen.append((args[0], output[0])))
    condition = model.condition_for("a cat", 1)
    x = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))
    for sigma in (0.05, 0.5, 5.0):
        total = 0.25 + sigma**2
        found = model.predict(x, sigma, condition)
        inside, output = seen[-1]
        assert inside.dtype is output.dtype is dtype
        torch.testing.assert_close(inside.float(), x / total**0.5, rtol=2 * torch.finfo(dtype).eps, atol=0)
        expected = 0.25 / total * x + 0.5 * sigma / total**0.5 * output.float()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_an_encoder_is_asked_once_for_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny.BUILDERS["stable-diffusion"]()
    encode, asked = pipe.encode_prompt, []

    def counting(
        prompt: str, device: Any, num_images_per_prompt: int, do_classifier_free_guidance: bool, **o: Any
    ) -> Any:
        asked.append((prompt, do_classifier_free_guidance))
        return encode(prompt, device, num_images_per_prompt, do_classifier_free_guidance, **o)

    monkeypatch.setattr(pipe, "encode_prompt", counting)
    model = model_of("stable-diffusion", pipe)
    for _ in range(2):
        sds.sample(model, "euler", steps=2, condition=["a", "b", "a"], num_samples=3, batch_size=2, guidance_scale=2.0)
    assert asked == [("a", False), ("b", False), ("", True)]


def test_batches_and_conditions_of_earlier_results() -> None:
    model = model_of("sdxl")
    words: dict[str, Any] = {"steps": 2, "num_samples": 3, "guidance_scale": 2.0}
    prompts = ["a", "b", "c"]
    first = sds.sample(model, "heun", condition=prompts, **words)
    again = sds.sample(model, "heun", condition=first.condition, batch_size=2, **words)
    torch.testing.assert_close(first.samples, again.samples, rtol=1e-4, atol=1e-3)
    default = sds.sample(model_of("sdxl", prompt=prompts), "heun", **words)
    torch.testing.assert_close(first.samples, default.samples, rtol=0, atol=0)
    with pytest.raises(UsageError, match="3 samples, but there are 2"):
        model.condition_for(first.condition, 2)


def test_dynamic_shifts_follow_the_resolution() -> None:
    shifts = [model_of("flux", height=side, width=side).process.shift for side in (16, 64)]
    pipe = tiny.BUILDERS["flux"]()
    pipe.scheduler = copy.deepcopy(pipe.scheduler)
    calls: list[float] = []
    setting = pipe.scheduler.set_timesteps

    def noting(num_inference_steps: Any = None, device: Any = None, sigmas: Any = None, mu: Any = None) -> None:
        calls.append(mu)
        setting(num_inference_steps, device=device, sigmas=sigmas, mu=mu)

    pipe.scheduler.set_timesteps = noting
    for side in (16, 64):
        tiny.run("flux", pipe, height=side, width=side, num_inference_steps=1)
    assert shifts == pytest.approx(np.exp(calls))
    assert shifts[0] < shifts[1]


def test_our_own_scheduler_says_how_the_network_was_trained() -> None:
    pipe = tiny.BUILDERS["stable-diffusion-v"]()
    pipe.scheduler = sds.Scheduler.from_config(pipe.scheduler.config, "heun")
    model = model_of("stable-diffusion", pipe)
    assert model.prediction == "v"
    reference = model_of("stable-diffusion-v")
    assert model.process.ratio(500.0) == reference.process.ratio(500.0)


def test_guidance_of_a_run_is_guidance_around_the_model() -> None:
    model = model_of("flux", embedded_guidance=2.0)
    words: dict[str, Any] = {"steps": 3, "condition": ["a", "b"], "num_samples": 2}
    inside = sds.sample(model, "euler", guidance_scale=3.0, **words)
    around = sds.sample(Guided(model, 3.0), "euler", **words)
    torch.testing.assert_close(inside.samples, around.samples, rtol=1e-4, atol=1e-4)
    assert around.images[0].size == (16, 16)


def test_pixart_alphas_large_network_is_told_the_size() -> None:
    pipe = tiny.BUILDERS["pixart-alpha"]()
    words: dict[str, Any] = {**tiny.DIT_SHAPE, "sample_size": 128, "num_attention_heads": 2, "attention_head_dim": 12}
    text: dict[str, Any] = {"caption_channels": tiny.WIDTH, "cross_attention_dim": 24}
    torch.manual_seed(0)
    pipe.transformer = tiny.alive(diffusers.PixArtTransformer2DModel(**words, **text, use_additional_conditions=True))
    call = {**tiny.CALL["pixart-alpha"], "height": 16, "width": 32, "guidance_scale": 1.0}
    output, timestep, sample = recorded(pipe, **call)
    for size, same in (((16, 32), True), ((32, 16), False)):
        model = model_of("pixart-alpha", pipe, height=size[0], width=size[1])
        found = model.predict(sample, timestep, model.condition_for(tiny.PROMPT, 1))
        assert (float((found - output).abs().max()) < 1e-4) is same


# Conditions


def test_parts_of_a_conditioning() -> None:
    model = model_of("sdxl")
    whole = model.condition_for(["a", "b", "c"], 3)
    assert len(whole) == 3
    for rows, words in ((slice(1, 3), ("b", "c")), (np.array([2, 0, 0]), ("c", "a", "a"))):
        cut = whole[rows]
        assert cut.labels == words
        for name, value in cut.tensors.items():
            torch.testing.assert_close(value, whole.tensors[name][rows], rtol=0, atol=0)
    joined = Conditioning.cat([whole[:1], whole[1:]])
    assert joined.labels == whole.labels
    for name, value in joined.tensors.items():
        torch.testing.assert_close(value, whole.tensors[name], rtol=0, atol=0)
    with pytest.raises(UsageError, match="different models"):
        Conditioning.cat([whole, model_of("dit").condition_for(3, 1)])
    with pytest.raises(UsageError, match="cannot be joined"):
        Conditioning.cat([Conditioning({"embeds": torch.zeros(1, n, 4)}, (None,)) for n in (2, 3)])


def test_prompts_of_different_lengths_are_padded_where_a_mask_says_so() -> None:
    model = model_of("lumina")
    lengths = [model.condition_for(p, 1).tensors["embeds"].shape[1] for p in ("a", "a very long prompt, all of it")]
    assert lengths[0] < lengths[1]
    both = model.condition_for(["a", "a very long prompt, all of it"], 2)
    assert both.tensors["embeds"].shape[1] == lengths[1]
    assert not bool(both.tensors["attention_mask"][0, lengths[0] :].any())


@pytest.mark.parametrize(
    ("name", "condition", "words"),
    [
        ("stable-diffusion", None, "conditioned on text"),
        ("stable-diffusion", 3, "conditioned on text"),
        ("stable-diffusion", ["a", 3], "conditioned on text"),
        ("stable-diffusion", ["a", "b", "c"], "one prompt or 2"),
        ("dit", None, "class-conditional"),
        ("dit", 1000, "labels from 0 to 999"),
        ("dit", "cat", "labels from 0 to 999"),
        ("dit", [1, 2, 3], "one label or 2"),
        ("ldm", "a cat", "takes no condition"),
        ("kandinsky", "a cat", "image embeddings"),
        ("kandinsky", torch.zeros(3, tiny.WIDTH), "one embedding or 2"),
    ],
)
def test_conditions_that_do_not_fit(name: str, condition: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        model_of(name).condition_for(condition, 2)


def test_guidance_that_a_kind_does_not_have() -> None:
    for name, words in (
        ("ldm", "no unconditional input"),
        ("latent-consistency", "distilled"),
        ("kandinsky", "Guided"),
    ):
        with pytest.raises(UsageError, match=words):
            sds.sample(model_of(name), "euler", steps=2, condition=condition_of(name), guidance_scale=2.0)


# What is refused


@pytest.mark.parametrize("name", ["mochi", "wan", "ltx", "qwen-image", "audio-ldm"])
def test_other_kinds_are_refused_with_a_list_of_what_is_supported(name: str) -> None:
    with pytest.raises(ModelError, match=r"supported are .*Stable Diffusion XL.*FLUX\.1"):
        sds.from_pipeline(tiny.BUILDERS[name]())


@pytest.mark.parametrize("name", ["stable-diffusion-inpaint-9", "instruct-pix2pix", "sdxl-inpaint-9"])
def test_networks_that_want_more_than_latents_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match="images besides them"):
        sds.from_pipeline(tiny.BUILDERS[name]())


def test_networks_that_are_told_more_than_text_are_refused() -> None:
    pipe = tiny.own("stable-diffusion")
    pipe.unet.register_to_config(class_embed_type="projection")
    with pytest.raises(ModelError, match="class_embed_type 'projection'"):
        sds.from_pipeline(pipe)
    refiner = tiny.sdxl_parts()
    refiner["unet"] = tiny.unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        cross_attention_dim=2 * tiny.WIDTH,
        projection_class_embeddings_input_dim=5 * 8 + tiny.WIDTH,
    )
    with pytest.raises(ModelError, match="refiner"):
        sds.from_pipeline(tiny.assemble("StableDiffusionXLPipeline", **refiner))


def test_a_control_net_is_left_out_and_said_to_be() -> None:
    with pytest.warns(UserWarning, match="the controlnet is not used"):
        model = sds.from_pipeline(tiny.BUILDERS["stable-diffusion-controlnet"](), **SMALL)
    x = torch.zeros(1, *model.shape)
    plain = model_of("stable-diffusion")
    found, expected = (m.predict(x, 10.0, m.condition_for("a", 1)) for m in (model, plain))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("stable-diffusion", {"height": 15}, "nearest: 16"),
        ("flux", {"width": 18}, "multiple of 4"),
        ("stable-diffusion", {"embedded_guidance": 3.0}, "embedded_guidance does not apply"),
        ("flux", {"embedded_guidance": float("nan")}, "finite"),
        ("stable-diffusion", {"prompt": "a", "condition": "b"}, "one of them"),
        ("dit", {"prompt": "a"}, "takes no prompt"),
        ("dit", {"negative_prompt": "a"}, "negative_prompt applies to text-conditioned kinds"),
        ("stable-diffusion", {"null_condition": 3}, "null_condition"),
        ("stable-diffusion", {"zero_snr": True}, "zero_snr needs"),
        ("stable-diffusion", {"prompt": "a", "encode_options": {"wave": 3}}, "takes no wave"),
    ],
)
def test_arguments_that_do_not_fit(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        model_of(name, **options)


def test_something_that_is_no_pipeline() -> None:
    with pytest.raises(UsageError, match="loaded diffusers pipeline"):
        sds.from_pipeline("a/b")


# Folders and the Hub


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny pipelines, saved."""
    base = tmp_path_factory.mktemp("saved")
    for name in ("stable-diffusion", "dit", "ldm", "sd3"):
        tiny.BUILDERS[name]().save_pretrained(base / name)
    return {folder.name: folder for folder in base.iterdir()}


@pytest.mark.parametrize("name", ["stable-diffusion", "dit", "ldm", "sd3"])
def test_loading_a_folder(saved: dict[str, Path], name: str) -> None:
    given = {"condition": condition_of(name)} if name == "dit" else {} if name == "ldm" else {"prompt": tiny.PROMPT}
    model = sds.load(saved[name], device="cpu", **given)
    reference = sds.from_pipeline(tiny.BUILDERS[name](), **given)
    found, expected = (sds.sample(m, "euler", steps=2).samples for m in (model, reference))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert model.shape == reference.shape


def test_options_of_load(saved: dict[str, Path]) -> None:
    model = sds.load(saved["sd3"], dtype="bf16", size=(16, 32), prompt="a", negative_prompt="b", device="cpu")
    assert (model.dtype, model.shape) == (torch.bfloat16, (4, 8, 16))
    assert model.unconditional(1).labels == ("b",)
    with pytest.raises(UsageError, match="multiple of 4"):
        sds.load(saved["sd3"], size=17)
    with pytest.raises(UsageError, match="negative_prompt applies"):
        sds.load(saved["dit"], negative_prompt="b")


def test_text_for_a_unet_of_pixels(tmp_path: Path) -> None:
    tiny.BUILDERS["consistency-model"]().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="takes no text"):
        sds.load(tmp_path, prompt="a")
    assert sds.load(tmp_path).num_classes == 10


def spoilt(saved: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the Stable Diffusion folder to spoil."""
    import shutil

    return Path(shutil.copytree(saved["stable-diffusion"], tmp_path / "copy"))


def test_broken_and_missing_weights(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = spoilt(saved, tmp_path)
    file = folder / "text_encoder" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:500])
    with pytest.raises(ModelError, match="truncated or corrupt"):
        sds.load(folder)
    file.unlink()
    with pytest.raises(ModelError, match="text_encoder has no weights in safetensors"):
        sds.load(folder)
    (folder / "text_encoder" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="allow_pickle=True"):
        sds.load(folder)
    with pytest.raises(ModelError, match="cannot be loaded"):
        sds.load(folder, allow_pickle=True)


def test_pickled_weights_that_are_allowed(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = spoilt(saved, tmp_path)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    tiny.unet().save_pretrained(folder / "unet", safe_serialization=False)
    model = sds.load(folder, allow_pickle=True, prompt="a")
    assert bool(sds.sample(model, "euler", steps=1).samples.isfinite().all())


def test_variants(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = spoilt(saved, tmp_path)
    other = copy.deepcopy(tiny.unet())
    torch.nn.init.zeros_(other.conv_out.weight)
    other.half().save_pretrained(folder / "unet", variant="fp16")
    assert not bool(sds.load(folder, variant="fp16").network.conv_out.weight.any())
    assert bool(sds.load(folder).network.conv_out.weight.any())
    with pytest.raises(ModelError, match="no weights of the variant 'ema'"):
        sds.load(folder, variant="ema")


@pytest.mark.parametrize("how", ["library", "file", "class"])
def test_code_that_comes_with_a_model_is_not_run(saved: dict[str, Path], tmp_path: Path, how: str) -> None:
    folder = spoilt(saved, tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    trap = "raise SystemExit('ran')"
    if how == "library":
        index["unet"] = ["trap", "UNet2DConditionModel"]
    elif how == "file":
        (folder / "unet" / "diffusers.py").write_text(trap)
    else:
        index["_class_name"] = ["trap", "Trap"]
        (folder / "trap.py").write_text(trap)
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="code that comes with a model is not run"):
        sds.load(folder)


def test_configurations_are_judged_before_weights(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = spoilt(saved, tmp_path)
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    for file, change, words in (
        (folder / "unet" / "config.json", {"in_channels": 9}, "images besides them"),
        (folder / "model_index.json", {"scheduler": ["diffusers", "VQDiffusionScheduler"]}, "tokens"),
    ):
        kept = file.read_text()
        file.write_text(json.dumps({**json.loads(kept), **change}))
        with pytest.raises(ModelError, match=words):
            sds.load(folder)
        file.write_text(kept)


def test_loading_from_the_hub(hub: HubServer, saved: dict[str, Path], tmp_path: Path) -> None:
    made = hub.repo("me/sd")
    files = {p.relative_to(saved["stable-diffusion"]): p for p in saved["stable-diffusion"].rglob("*") if p.is_file()}
    extra = {
        "README.md": b"x",
        "sd.safetensors": b"x",
        "unet/diffusion_pytorch_model.bin": b"x",
        "unet/diffusion_pytorch_model.fp16.safetensors": b"x",
        "safety_checker/model.safetensors": b"x",
    }
    commit = made.commit({**{k.as_posix(): v.read_bytes() for k, v in files.items()}, **extra})
    words: dict[str, Any] = {"cache_dir": tmp_path, "device": "cpu", "prompt": tiny.PROMPT}
    model = sds.load("me/sd", **words)
    assert (model.name, model.revision) == ("me/sd", commit)
    reference = sds.from_pipeline(tiny.BUILDERS["stable-diffusion"](), prompt=tiny.PROMPT)
    found, expected = (sds.sample(m, "heun", steps=2).samples for m in (model, reference))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    fetched = {r.path for r in hub.downloads()}
    assert not fetched & set(extra)
    assert {"vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"} <= fetched
    before = len(hub.downloads())
    sds.load("me/sd", local_files_only=True, **words)
    assert len(hub.downloads()) == before


def test_a_variant_from_the_hub(hub: HubServer, saved: dict[str, Path], tmp_path: Path) -> None:
    folder = spoilt(saved, tmp_path)
    other = copy.deepcopy(tiny.unet()).half()
    torch.nn.init.zeros_(other.conv_out.weight)
    other.save_pretrained(folder / "unet", variant="fp16", max_shard_size="20KB")
    pieces = {file.name for file in (folder / "unet").iterdir() if "fp16" in file.name}
    assert len(pieces) > 2  # an index and pieces
    hub.repo("me/sd").commit_folder(folder)
    model = sds.load("me/sd", variant="fp16", cache_dir=tmp_path / "cache", device="cpu")
    assert not bool(model.network.conv_out.weight.any())
    fetched = {Path(r.path).name for r in hub.downloads() if r.path.startswith("unet/")}
    assert fetched == {"config.json", *pieces}


def test_what_the_hub_does_not_have(hub: HubServer, saved: dict[str, Path], tmp_path: Path) -> None:
    files = {p.relative_to(saved["dit"]).as_posix(): p.read_bytes() for p in saved["dit"].rglob("*") if p.is_file()}
    del files["vae/diffusion_pytorch_model.safetensors"]
    files["vae/diffusion_pytorch_model.bin"] = b"x"
    hub.repo("me/dit").commit(files)
    with pytest.raises(ModelError, match=r"no weights in safetensors for vae; pickled ones.*allow_pickle=True"):
        sds.load("me/dit", cache_dir=tmp_path)
    assert not hub.downloads(".bin")


def test_a_kind_that_is_refused_costs_no_weights(hub: HubServer, tmp_path: Path) -> None:
    parts = {"transformer": ["diffusers", "WanTransformer3DModel"], "vae": ["diffusers", "AutoencoderKLWan"]}
    index = json.dumps({"_class_name": "WanPipeline", **parts}).encode()
    weights = "transformer/diffusion_pytorch_model.safetensors"
    hub.repo("me/wan").commit({"model_index.json": index, weights: b"x", "transformer/config.json": b"{}"})
    with pytest.raises(ModelError, match=r"WanPipeline.*supported are"):
        sds.load("me/wan", cache_dir=tmp_path)
    parts = {"transformer": ["diffusers", "FluxTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"]}
    index = json.dumps({"_class_name": "FluxFillPipeline", **parts}).encode()
    configs = {"transformer/config.json": b'{"in_channels": 384}', "vae/config.json": b'{"latent_channels": 16}'}
    hub.repo("me/fill").commit({"model_index.json": index, weights: b"x", **configs})
    with pytest.raises(ModelError, match="filling"):
        sds.load("me/fill", cache_dir=tmp_path)
    assert not hub.downloads(".safetensors")


def test_nothing_warns_where_nothing_is_wrong(saved: dict[str, Path]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        sds.sample(sds.load(saved["sd3"], prompt="a"), "euler", steps=2, guidance_scale=2.0)
