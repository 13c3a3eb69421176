"""`Scheduler` as a component of diffusers' modular pipelines: the numbers of diffusers' schedulers, guiders, files."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import tiny_pipelines
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from lanes import mostly_slow

import sdesamplers as sds

modular = pytest.importorskip("diffusers.modular_pipelines", reason="this version of diffusers has none")
guiders = pytest.importorskip("diffusers.guiders", reason="this version of diffusers has none")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def assembled(blocks: str, parts: dict[str, Any], **components: Any) -> Any:
    """A modular pipeline of tiny networks."""
    if not hasattr(modular, blocks):
        pytest.skip(f"diffusers {diffusers.__version__} has no {blocks}")
    pipe = getattr(modular, blocks)().init_pipeline()
    known = {name: part for name, part in parts.items() if name in inspect.getattr_static(pipe, "_component_specs")}
    pipe.update_components(**{**known, **components})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sdxl(scheduler: Any, guider: Any = None) -> Any:
    guider = guider or guiders.ClassifierFreeGuidance(guidance_scale=3.0)
    return assembled("StableDiffusionXLAutoBlocks", tiny_pipelines.sdxl_parts(), scheduler=scheduler, guider=guider)


def latents(pipe: Any, steps: int = 4, seed: int = 0, **arguments: Any) -> torch.Tensor:
    call = {"prompt": "a red cat", "num_inference_steps": steps, "height": 16, "width": 16, "output": "latents"}
    return pipe(**call, generator=torch.Generator().manual_seed(seed), **arguments)


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def config() -> Any:
    """The tiny model's configuration, without clipping."""
    return DDIMScheduler.from_config(tiny_pipelines.sdxl_parts()["scheduler"].config, clip_sample=False).config


WHOLE = {"timestep_spacing": "trailing"}
CASES = {
    "ddim": (DDIMScheduler, {"timestep_spacing": "leading"}, {"sampler": "ddim"}),
    "dpmpp-2m": (DPMSolverMultistepScheduler, {**WHOLE, "final_sigmas_type": "zero"}, {"sampler": "dpmpp-2m"}),
    "euler": (EulerDiscreteScheduler, {"timestep_spacing": "leading"}, {"sampler": "euler", "coordinates": "ve"}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_sampler_is_diffusers_scheduler(case):
    kind, changes, ours = CASES[case]
    theirs = kind.from_config(config(), **changes)
    expected = latents(sdxl(theirs))
    found = latents(sdxl(sds.Scheduler.from_config(theirs.config, **ours)))
    assert apart(found, expected) < 1e-4


@pytest.mark.parametrize(
    "name", mostly_slow(["dpmpp-2m-sde", "unipc", "er-sde", "euler-ancestral"], keep=["dpmpp-2m-sde"])
)
def test_a_modular_pipeline_is_the_pipeline(name):
    """Noise of a generator included: the two make the same calls."""
    scheduler = sds.Scheduler.from_config(config(), sampler=name)
    pipe = tiny_pipelines.sdxl()
    pipe.scheduler = sds.Scheduler.from_config(config(), sampler=name)
    found = latents(sdxl(scheduler))
    assert apart(found, plain_latents(pipe, guidance_scale=3.0)) < 1e-4
    assert not torch.equal(latents(sdxl(scheduler), seed=1), found)
    assert torch.equal(latents(sdxl(scheduler)), found)  # a second run begins anew


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_several_evaluations_a_step(scale):
    """diffusers' guiders count evaluations as steps, and end guidance after `num_inference_steps` of them.

    With a guider, heun is therefore guided in its first evaluations alone, with every scheduler; without, it is the
    pipeline's heun.
    """
    scheduler = sds.Scheduler.from_config(config(), sampler="heun")
    found = latents(sdxl(scheduler, guiders.ClassifierFreeGuidance(guidance_scale=scale)))
    pipe = tiny_pipelines.sdxl()
    pipe.scheduler = sds.Scheduler.from_config(config(), sampler="heun")
    if scale == 1.0:
        assert apart(found, plain_latents(pipe, guidance_scale=1.0)) < 1e-4
        return
    changes = {"callback_on_step_end": end_guidance_after(4), "callback_on_step_end_tensor_inputs": CHANGED}
    assert apart(found, plain_latents(pipe, guidance_scale=scale, **changes)) < 1e-4


CHANGED = ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"]


def end_guidance_after(evaluations: int) -> Any:
    """A callback of a pipeline that continues without guidance."""

    def change(pipe: Any, number: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if number != evaluations - 1:
            return tensors
        pipe._guidance_scale = 1.0
        halves = {name: tensors[name].chunk(2)[1] for name in CHANGED if name != "latents"}
        return {**tensors, **halves}

    return change


def plain_latents(pipe: Any, **arguments: Any) -> torch.Tensor:
    """The latents of an ordinary pipeline, called as `latents` calls a modular one."""
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 4, "height": 16, "width": 16, "output_type": "latent"}
    return pipe("a red cat", generator=torch.Generator().manual_seed(0), **call, **arguments).images


@pytest.mark.parametrize("blocks", ["FluxAutoBlocks", "StableDiffusion3AutoBlocks"])
def test_flow_models(blocks):
    parts = tiny_pipelines.flux_parts() if blocks.startswith("Flux") else tiny_pipelines.sd3_parts()
    theirs = parts["scheduler"]
    ours = sds.Scheduler.from_config(theirs.config, sampler="euler")
    arguments = {"sigmas": [1.0, 0.7, 0.3]}
    expected = latents(assembled(blocks, parts), steps=3, **arguments)
    found = latents(assembled(blocks, {**parts, "scheduler": ours}), steps=3, **arguments)
    assert apart(found, expected) < 1e-4


def test_an_image_to_image_run_begins_in_the_middle():
    theirs = DDIMScheduler.from_config(config(), timestep_spacing="leading")
    image = tiny_pipelines.picture()
    expected = latents(sdxl(theirs), steps=6, image=image, strength=0.5)
    ours = sds.Scheduler.from_config(theirs.config, sampler="ddim")
    found = latents(sdxl(ours), steps=6, image=image, strength=0.5)
    assert apart(found, expected) < 1e-4


GUIDERS = {
    "AdaptiveProjectedGuidance": {"adaptive_projected_guidance_momentum": -0.5},
    "ClassifierFreeZeroStarGuidance": {},
    "AdaptiveProjectedMixGuidance": {"adaptive_projected_guidance_start_step": 1},
}


@pytest.mark.parametrize("name", GUIDERS)
def test_every_guider_steps_as_with_diffusers_scheduler(name):
    options = GUIDERS[name]
    theirs = DDIMScheduler.from_config(config(), timestep_spacing="leading")
    made = [theirs, sds.Scheduler.from_config(theirs.config, sampler="ddim")]
    found = [latents(sdxl(each, getattr(guiders, name)(guidance_scale=3.0, **options))) for each in made]
    assert apart(found[1], found[0]) < 1e-4


def test_a_saved_modular_pipeline_brings_the_scheduler_back(tmp_path):
    scheduler = sds.Scheduler.from_config(config(), sampler="er-sde", spacing="karras", order=2)
    pipe = sdxl(scheduler)
    pipe.save_pretrained(str(tmp_path), overwrite_modular_index=True)
    again = modular.ModularPipeline.from_pretrained(str(tmp_path))
    again.load_components(names=["scheduler"])
    assert type(again.scheduler) is sds.Scheduler
    assert dict(again.scheduler.config) == dict(scheduler.config)
    pipe.update_components(scheduler=again.scheduler)
    assert torch.equal(latents(pipe), latents(sdxl(scheduler)))
