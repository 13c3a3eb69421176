"""CFG++ samplers in modular pipelines: a connected guider of diffusers gives the scheduler the unguided prediction."""

from __future__ import annotations

import contextlib
import copy
import inspect
import pickle
from typing import Any

import pytest
import tiny_pipelines
import torch
from cfgpp_loops import SAMPLERS, SCALE, START, network, outputs, sampled, scheduled
from diffusers import DDIMScheduler
from torch import Tensor

import sdesamplers as sds

guiders = pytest.importorskip("diffusers.guiders", reason="this version of diffusers has none")
modular = pytest.importorskip("diffusers.modular_pipelines", reason="this version of diffusers has none")


def evaluated(guider: Any, conditional: Tensor, unconditional: Tensor, step: int = 0, steps: int = 6) -> Tensor:
    """The guided prediction of a guider, called as the blocks of modular pipelines call it."""
    guider.set_state(step=step, num_inference_steps=steps, timestep=torch.tensor(0))
    batches = guider.prepare_inputs({"c": (conditional, unconditional)})
    for batch in batches:
        batch.noise_pred = batch.c
    return guider(batches)[0]


def guided_run(scheduler: Any, guider: Any, cast: Any = lambda output: output) -> Tensor:
    """A modular pipeline's loop."""
    x = START
    for k, t in enumerate(scheduler.timesteps):
        output = evaluated(guider, network(x, t, 1.5), network(x, t, 0.0), k)
        x = scheduler.step(cast(output), t, x, return_dict=False)[0]
    return x


def cfg(scale: float = SCALE, **options: Any) -> Any:
    return guiders.ClassifierFreeGuidance(guidance_scale=scale, **options)


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_connected_guider_is_sample(name, original):
    scheduler = scheduled(name)
    guider = scheduler.connect(cfg(SCALE - original, use_original_formulation=original))
    found = guided_run(scheduler, guider)
    torch.testing.assert_close(found, sampled(name, guidance_scale=SCALE), rtol=1e-6, atol=1e-6)


def test_a_pipeline_may_cast_the_prediction_but_not_change_it():
    scheduler = scheduled("euler-cfgpp")
    guider = scheduler.connect(cfg())
    found = guided_run(scheduler, guider, lambda output: output.float())
    scheduler.set_timesteps(6)
    torch.testing.assert_close(found, guided_run(scheduler, guider), rtol=1e-5, atol=1e-5)
    for change in (lambda output: -output, lambda output: output[:, :1], lambda output: 1.01 * output):
        scheduler.set_timesteps(6)
        with pytest.raises(sds.UsageError, match="the pipeline changes the guided prediction"):
            guided_run(scheduler, guider, change)


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.inference_mode])
def test_a_prediction_that_the_pipeline_changes_in_place_is_refused(mode):
    with mode():
        scheduler = scheduled("euler-cfgpp")
        guider = scheduler.connect(cfg())
        expected = guided_run(scheduler, guider)
        for change in (lambda output: output.mul_(1.3), lambda output: output.mul_(1.3).float()):
            scheduler.set_timesteps(6)
            with pytest.raises(sds.UsageError, match="the pipeline changes the guided prediction"):
                guided_run(scheduler, guider, change)
        scheduler.set_timesteps(6)
        assert torch.equal(guided_run(scheduler, guider), expected)


def test_each_prediction_is_used_once():
    scheduler = scheduled("euler-cfgpp")
    guider = scheduler.connect(cfg())
    t = scheduler.timesteps[0]
    output = evaluated(guider, *outputs(START, t))
    x = scheduler.step(output, t, START).prev_sample
    with pytest.raises(sds.UsageError, match="needs the unguided prediction"):
        scheduler.step(output, scheduler.timesteps[1], x)
    evaluated(guider, *outputs(START, t))
    scheduler.set_timesteps(6)  # a new run
    with pytest.raises(sds.UsageError, match="needs the unguided prediction"):
        scheduler.step(output, t, START)


def test_a_copy_may_run_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guider serves both, and tensors of a GPU cannot be compared with those of the CPU or of another GPU."""
    equal = torch.equal

    def strict(one: Tensor, other: Tensor) -> bool:
        if one.device != other.device:
            raise RuntimeError("Expected all tensors to be on the same device")
        return equal(one, other)

    monkeypatch.setattr(torch, "equal", strict)
    scheduler = scheduled("euler-cfgpp")
    guider = scheduler.connect(cfg())
    t = scheduler.timesteps[0]
    expected = scheduled("euler-cfgpp").step(
        evaluated(guider, *outputs(START, t)), t, START, unguided=network(START, t, 0.0)
    )
    output = evaluated(guider, *outputs(START, t)).clone()
    evaluated(guider, *(each.to("meta") for each in outputs(START, t)))  # of the pipeline on the other device
    assert torch.equal(scheduler.step(output, t, START).prev_sample, expected.prev_sample)


def test_a_step_with_an_unguided_prediction_of_its_own_leaves_those_of_copies() -> None:
    scheduler = scheduled("euler-cfgpp")
    guider = scheduler.connect(cfg())
    other, t = copy.deepcopy(scheduler), scheduler.timesteps[0]
    output = evaluated(guider, *outputs(START, t))
    other.step(network(START, t, 1.5), t, START, unguided=network(START, t, 0.0))
    scheduler.step(output, t, START)


COPIES = {
    "deepcopy of the scheduler": lambda scheduler, guider: (copy.deepcopy(scheduler), guider),
    "deepcopy of the guider": lambda scheduler, guider: (scheduler, copy.deepcopy(guider)),
    "deepcopy of both": lambda scheduler, guider: copy.deepcopy((scheduler, guider)),
    "deepcopy of both, guider first": lambda scheduler, guider: copy.deepcopy((guider, scheduler))[::-1],
    "copy of the scheduler": lambda scheduler, guider: (copy.copy(scheduler), guider),
    "pickle of both": lambda scheduler, guider: pickle.loads(pickle.dumps((scheduler, guider))),
    "pickle of both, guider first": lambda scheduler, guider: pickle.loads(pickle.dumps((guider, scheduler)))[::-1],
    "pickle of a copy": lambda scheduler, guider: pickle.loads(pickle.dumps((copy.deepcopy(scheduler), guider))),
}


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("at", [0, 2])
def test_scheduler_and_guider_stay_connected_in_copies(name: str, at: int) -> None:
    """Also in the middle of a run, from where the copies and the originals continue alike."""
    scheduler = scheduled("dpmpp-2m-cfgpp")
    guider = scheduler.connect(cfg())
    expected = guided_run(scheduler, guider)
    scheduler.set_timesteps(6)
    x = START
    for k, t in enumerate(scheduler.timesteps):
        if k == at:
            copied, copied_guider = COPIES[name](scheduler, guider)
            y = x.clone()
        x = scheduler.step(evaluated(guider, network(x, t, 1.5), network(x, t, 0.0), k), t, x).prev_sample
        if k >= at and copied is not scheduler:
            s = copied.timesteps[k]
            y = copied.step(evaluated(copied_guider, network(y, s, 1.5), network(y, s, 0.0), k), s, y).prev_sample
    assert torch.equal(x, expected)
    if copied is not scheduler:
        assert torch.equal(y, expected)
    else:
        copied.set_timesteps(6)
        assert torch.equal(guided_run(copied, copied_guider), expected)


def test_copies_in_turns_each_use_their_own_prediction() -> None:
    scheduler = scheduled("euler-cfgpp")
    guider = scheduler.connect(cfg())
    expected = guided_run(scheduler, guider)
    scheduler.set_timesteps(6)
    copied, x, y = copy.deepcopy(scheduler), START, 2 * START
    for k, t in enumerate(scheduler.timesteps):
        first = evaluated(guider, network(x, t, 1.5), network(x, t, 0.0), k)
        second = evaluated(guider, network(y, t, 1.5), network(y, t, 0.0), k)
        x, y = scheduler.step(first, t, x).prev_sample, copied.step(second, t, y).prev_sample
    assert torch.equal(x, expected)
    assert not torch.equal(y, expected)


def test_a_scheduler_that_is_pickled_alone_refuses_with_the_cure() -> None:
    scheduler = scheduled("euler-cfgpp")
    guider = scheduler.connect(cfg())
    alone = pickle.loads(pickle.dumps(scheduler))
    with pytest.raises(sds.UsageError, match=r"scheduler\.connect\(guider\)"):
        guided_run(alone, guider)
    assert torch.equal(guided_run(alone, alone.connect(guider)), guided_run(scheduler, guider))


@pytest.mark.parametrize("name", ["euler-cfgpp", "dpmpp-2m-cfgpp"])
def test_a_step_that_fails_can_be_repeated(name: str) -> None:
    """Wrong arguments, another timestep, another shape or a changed prediction, at every step of a run."""
    scheduler = scheduled(name)
    guider = scheduler.connect(cfg())
    expected = guided_run(scheduler, guider)
    scheduler.set_timesteps(6)
    x = START
    for k, t in enumerate(scheduler.timesteps):
        output = evaluated(guider, network(x, t, 1.5), network(x, t, 0.0), k)
        for arguments, options in (
            ((output, t + 0.5, x), {}),
            ((output, t, x), {"s_churn": 1.0}),
            ((output, t, x), {"reduction": "max", "log_prob": True}),
            ((1.01 * output, t, x), {}),
            ((output[:, :1], t, x), {}),
            ((output[:, :1], t, x), {"unguided": output}),
            ((output, t, x), {"unguided": output[:, :1]}),
        ):
            with pytest.raises(sds.UsageError):
                scheduler.step(*arguments, **options)
        x = scheduler.step(output, t, x).prev_sample
    assert torch.equal(x, expected)


def test_without_guidance_it_is_the_plain_sampler():
    """Chung et al. 2024: with equal predictions CFG++ is DDIM. A disabled guider returns the conditional one alone."""
    scheduler = scheduled("euler-cfgpp")
    guider = scheduler.connect(cfg(enabled=False))
    torch.testing.assert_close(guided_run(scheduler, guider), sampled("ddim"), rtol=1e-6, atol=1e-6)


def test_outside_of_its_interval_nothing_is_guided():
    """The first half of the steps is guided, and the second is that of the plain sampler, by hand."""
    scheduler = scheduled("euler-cfgpp")
    found = guided_run(scheduler, scheduler.connect(cfg(stop=0.5)))
    by_hand, x = scheduled("euler-cfgpp"), START
    for k, t in enumerate(by_hand.timesteps):
        guided, unguided = outputs(x, t)
        if k >= 3:
            guided = unguided = network(x, t, 1.5)
        x = by_hand.step(guided, t, x, unguided=unguided).prev_sample
    assert torch.equal(found, x)


def test_the_scale_at_which_a_guider_skips_the_unconditional_prediction_is_refused():
    """With lambda = 1 CFG++ still adds the unconditional noise, so that skipping it would give other samples."""
    scheduler = scheduled("euler-cfgpp")
    with pytest.raises(sds.UsageError, match=r"guidance_scale=0\.999"):
        guided_run(scheduler, scheduler.connect(cfg(1.0)))
    with pytest.raises(sds.UsageError, match=r"guidance_scale=0\.999"):
        guided_run(scheduler, scheduler.connect(cfg(0.0, use_original_formulation=True)))


def test_a_connected_guider_is_a_copy_with_its_settings():
    guider = cfg()
    guider.guidance_scale = 0.3  # changed after its construction
    scheduler = scheduled("euler-cfgpp")
    made = scheduler.connect(guider)
    assert isinstance(made, guiders.ClassifierFreeGuidance)
    assert (made.guidance_scale, type(guider)) == (0.3, guiders.ClassifierFreeGuidance)
    assert (type(made).__name__, type(made).__module__) == (type(guider).__name__, type(guider).__module__)
    assert len(type(scheduled("euler-cfgpp").connect(made)).__mro__) == len(type(made).__mro__)  # connected anew
    for again in (copy.deepcopy(made), made.new(guidance_scale=0.3)):
        scheduler.set_timesteps(6)
        torch.testing.assert_close(guided_run(scheduler, again), guided_run(scheduled_like(made), made))


def scheduled_like(guider: Any) -> Any:
    """A scheduler of its own for a guider connected to another one: the guider is connected to it too."""
    scheduler = scheduled("euler-cfgpp")
    guider.__class__ = type(scheduler.connect(guider))
    return scheduler


@pytest.mark.parametrize("value", [None, 3.0, "cfg", torch.nn.Linear(1, 1)])
def test_what_is_no_guider_is_refused(value):
    with pytest.raises(sds.UsageError, match="guider must be one of diffusers' guiders"):
        scheduled("euler-cfgpp").connect(value)


@pytest.mark.parametrize("name", [*SAMPLERS, "apg"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_modular_pipeline_is_sample_on_its_model(name):
    """Stable Diffusion XL; "apg" is another guider, with the same formula in `Guided`."""
    sampler = "euler-cfgpp" if name == "apg" else name
    guider, combine = cfg(), {}
    if name == "apg":
        options = {"eta": 0.5, "adaptive_projected_guidance_rescale": 15.0, "use_original_formulation": True}
        guider = guiders.AdaptiveProjectedGuidance(guidance_scale=SCALE - 1, **options)
        combine = {"combine": "apg", "eta": 0.5, "norm": 15.0}
    parts = tiny_pipelines.sdxl_parts()
    scheduler = sds.Scheduler.from_config(
        DDIMScheduler.from_config(parts["scheduler"].config, clip_sample=False).config, sampler, seed=7
    )
    found, start = modular_latents("StableDiffusionXLAutoBlocks", parts, scheduler, guider)
    plain = tiny_pipelines.sdxl()
    plain.scheduler = scheduler
    same(found, sds.from_pipeline(plain, height=16, width=16), sampler, start, **combine)


def modular_latents(
    blocks: str, parts: dict[str, Any], scheduler: Any, guider: Any, **arguments: Any
) -> tuple[Tensor, Tensor]:
    """The latents of a modular pipeline with a connected guider, and its start."""
    pipe = getattr(modular, blocks)().init_pipeline()
    known = {name: part for name, part in parts.items() if name in inspect.getattr_static(pipe, "_component_specs")}
    pipe.update_components(**{**known, "scheduler": scheduler, "guider": scheduler.connect(guider)})
    pipe.set_progress_bar_config(disable=True)
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    call = {"prompt": "a red cat", "num_inference_steps": 4, "height": 16, "width": 16, "output": "latents"}
    return pipe(**call, **arguments, latents=start), start


def same(found: Tensor, model: sds.Model, sampler: str, start: Tensor, **options: Any) -> None:
    guided = sds.Guided(model, SCALE, **options)
    expected = sds.sample(guided, sampler, steps=4, seed=7, start=start, condition="a red cat", final="zero").samples
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    unguided = sds.sample(model, sampler, steps=4, seed=7, start=start, condition="a red cat", final="zero").samples
    assert (found - unguided).abs().max() > 1e-2 * expected.abs().max()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_modular_flow_pipeline_is_sample_on_its_model():
    """Stable Diffusion 3."""
    if not hasattr(modular, "StableDiffusion3AutoBlocks"):
        pytest.skip("this version of diffusers has no modular Stable Diffusion 3")
    parts = tiny_pipelines.sd3_parts()
    scheduler = sds.Scheduler.from_config(parts["scheduler"].config, "dpmpp-2m-cfgpp", seed=7)
    # Without a negative prompt, these blocks give the guider the prompt twice.
    found, start = modular_latents("StableDiffusion3AutoBlocks", parts, scheduler, cfg(), negative_prompt="")
    plain = tiny_pipelines.sd3()
    plain.scheduler = scheduler
    model = sds.from_pipeline(plain, height=16, width=16, encode_options={"max_sequence_length": 256})
    same(found, model, "dpmpp-2m-cfgpp", start)
