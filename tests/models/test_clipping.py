"""Clipping and dynamic thresholding as a part of the model: the same at every sampler, and as diffusers has them."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

import sdesamplers as sds
from sdesamplers.models.clipping import Clip
from sdesamplers.pretrained.configuration import clip_of

COSINE = {"beta_schedule": "squaredcos_cap_v2"}
THRESHOLD = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5}
CLIPPED = {"use_clipped_model_output": True}
"""DDIM's noise as it follows from the clipped x0; by default diffusers keeps the network's."""
SHAPE = (4, 3, 4, 4)


def start(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(alphas_cumprod: Tensor, *, wrong: float = 0.3) -> Any:
    """A noise network for data of N(0.2, 0.8^2), too wide for [-1, 1] and wrong besides."""

    def noise(x: Tensor, t: Any) -> Tensor:
        a = float(alphas_cumprod[round(float(t))].double())
        alpha, sigma = a**0.5, (1 - a) ** 0.5
        return sigma * (x - alpha * 0.2) / (alpha**2 * 0.64 + sigma**2) + wrong * torch.sin(5 * x)

    return noise


def run(scheduler: Any, steps: int, **words: Any) -> Tensor:
    """The end of a plain loop."""
    scheduler.set_timesteps(steps)
    noise, x = network(scheduler.alphas_cumprod), start()
    for t in scheduler.timesteps:
        x = scheduler.step(noise(x, t), t, x, **words).prev_sample
    return x


@pytest.mark.parametrize(
    ("kind", "words", "name", "theirs"),
    [
        ("DDIMScheduler", {"clip_sample": True}, "ddim", CLIPPED),
        ("DDIMScheduler", {"clip_sample": True, "clip_sample_range": 0.7}, "ddim", CLIPPED),
        ("DDIMScheduler", {"clip_sample": False, **THRESHOLD}, "ddim", CLIPPED),
        ("DDIMScheduler", {"clip_sample": True, **THRESHOLD}, "ddim", CLIPPED),
        ("DPMSolverMultistepScheduler", {"solver_order": 1, **THRESHOLD}, "ddim", {}),
        ("DPMSolverMultistepScheduler", THRESHOLD, "dpmpp-2m", {}),
        ("UniPCMultistepScheduler", THRESHOLD, "unipc", {}),
    ],
)
def test_a_run_is_that_of_the_class_itself(kind, words, name, theirs):
    """Same configuration, same grid, same network; the clip is what makes these ends differ from the plain ones."""
    spacing = {"timestep_spacing": "trailing"}
    reference = getattr(diffusers, kind)(**COSINE, **spacing, **words)
    off = {word: False for word in words if word in ("clip_sample", "thresholding")}
    plain = getattr(diffusers, kind)(**COSINE, **spacing, **{**words, **off})
    wanted = run(reference, 10, **theirs)
    made = sds.Scheduler.from_config(reference, name, round_timesteps=True)
    timesteps = [int(t) for t in reference.timesteps]
    made.set_timesteps(timesteps=timesteps)
    noise, x = network(reference.alphas_cumprod), start()
    for t in made.timesteps:
        x = made.step(noise(x, t), t, x).prev_sample
    assert (x - wanted).abs().max() < 2e-3
    assert (run(plain, 10, **theirs) - wanted).abs().max() > 0.05


def test_ddpms_mean_is_of_the_clipped_x0():
    """One step of DDPM from timestep 600 to 400: the posterior's mean (Ho et al. 2020, eq. 7) with x0 in [-1, 1]."""
    theirs = diffusers.DDPMScheduler(**COSINE, clip_sample=True)
    ac = theirs.alphas_cumprod.double()
    a, b = ac[600], ac[400]
    x, eps = 2 * start(), start(1)
    x0 = ((x - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-1, 1)
    mean = b.sqrt() * (1 - a / b) / (1 - a) * x0 + (a / b).sqrt() * (1 - b) / (1 - a) * x
    std = ((1 - b) / (1 - a) * (1 - a / b)).sqrt()
    made = sds.Scheduler.from_config(theirs, "ddpm", seed=0, round_timesteps=True)
    made.set_timesteps(timesteps=[600, 400])
    out = made.step(eps.repeat(400, 1, 1, 1), made.timesteps[0], x.repeat(400, 1, 1, 1))
    assert torch.allclose(out.pred_original_sample.view(400, *SHAPE), x0, atol=1e-5)
    found = out.prev_sample.view(400, *SHAPE)
    assert (found.mean(0) - mean).abs().max() < 5 * float(std) / 20
    assert found.std(0).mean() == pytest.approx(float(std), rel=0.02)


@pytest.mark.parametrize(
    ("config", "clip"),
    [
        ({"_class_name": "DDPMScheduler"}, Clip()),
        ({"_class_name": "DDIMScheduler", "clip_sample_range": 2.0}, Clip(-2.0, 2.0)),
        ({"_class_name": "DDIMScheduler", "clip_sample": False}, None),
        ({"_class_name": "DDIMScheduler", **THRESHOLD}, Clip(percentile=0.9, most=1.5)),
        ({"_class_name": "UniPCMultistepScheduler", "thresholding": True}, Clip(percentile=0.995, most=1.0)),
        ({"_class_name": "HeunDiscreteScheduler"}, None),
        ({"_class_name": "HeunDiscreteScheduler", "clip_sample": True}, Clip()),
        ({"_class_name": "UnCLIPScheduler", "clip_sample_range": 10.0}, Clip(-10.0, 10.0)),
        ({"_class_name": "CMStochasticIterativeScheduler"}, Clip()),
        ({"_class_name": "RePaintScheduler"}, Clip()),
        # their steps never clip, though the word is on by default
        ({"_class_name": "CogVideoXDDIMScheduler"}, None),
        ({"_class_name": "TCDScheduler", "clip_sample": True}, None),
        # words that another class has left behind
        ({"_class_name": "EulerDiscreteScheduler", "clip_sample": True}, None),
        # no class is named, and DDPM's default would clip latents
        ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, None),
        ({"beta_schedule": "scaled_linear", "clip_sample": True}, Clip()),
    ],
)
def test_what_a_configuration_says_of_x0(config, clip):
    assert clip_of(config) == clip


@pytest.mark.parametrize(
    "config", [{"clip_sample_range": -1.0}, {"thresholding": True, "dynamic_thresholding_ratio": 1.2}]
)
def test_bounds_that_mean_nothing_are_refused(config):
    with pytest.raises(sds.ModelError, match="DDPMScheduler configuration is invalid"):
        sds.Scheduler.from_config({"_class_name": "DDPMScheduler", **config}, "ddim")


def exploding(clip: Any = None) -> sds.FunctionModel:
    """A noise network on the cosine table with an error of 2 %; data are N(0.3, 0.3^2)."""
    process = sds.DiscreteVP(diffusers.DDPMScheduler(**COSINE).alphas_cumprod.double().numpy())

    def noise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (torch.as_tensor(np.array(f(t.double().numpy()))).to(x) for f in (process.alpha, process.sigma))
        return sigma * (x - 0.3 * alpha) / (0.09 * alpha**2 + sigma**2) + 0.02 * torch.sin(3 * x.flip(-1))

    return sds.FunctionModel(noise, process, "epsilon", (1, 8, 8), data_range=(-1.0, 1.0), clip=clip)


@pytest.mark.parametrize("sampler", ["quality", "fast", "ddim", "dpmpp-2m", "unipc"])
def test_cosine_tables_do_not_explode_in_few_steps(sampler):
    words: dict[str, Any] = {"steps": 20, "num_samples": 32, "seed": 0}
    on = sds.sample(exploding(), sampler, **words).samples
    assert on.abs().max() < 1.6
    assert on.mean() == pytest.approx(0.3, abs=0.08)
    assert on.std() == pytest.approx(0.3, abs=0.08)
    off = sds.sample(exploding(clip=False), sampler, **words).samples
    assert off.std() > 2 * on.std()


def test_the_last_x0_is_inside_the_bounds_and_follows_guidance():
    """DDIM ends on x0. Conditional and unconditional network both answer inside, their guided combination does not."""
    function = lambda x, t, c: c.view(-1, 1).expand_as(x)  # noqa: E731
    given: dict[str, Any] = {"conditional": True, "null_condition": torch.zeros(1)}
    model = sds.FunctionModel(function, sds.VP(), "sample", (2,), data_range=(-1.0, 1.0), **given)
    words: dict[str, Any] = {"steps": 3, "num_samples": 2, "condition": torch.full((1,), 0.6)}
    for result in (
        sds.sample(model, "ddim", guidance_scale=7.0, **words),
        sds.sample(sds.Guided(model, 7.0), "ddim", **words),
    ):
        assert torch.equal(result.samples, torch.ones(2, 2))
    model.clip = None
    assert torch.allclose(sds.sample(model, "ddim", guidance_scale=7.0, **words).samples, torch.full((2, 2), 4.2))


def test_thresholding_takes_its_quantile_sample_by_sample():
    x0 = torch.tensor([[0.1, -0.2, 0.3, 4.0], [0.1, 0.2, 0.3, 0.4]])
    level = torch.quantile(x0[0].abs(), 0.9).item()  # linear interpolation, as in the paper's code
    clip = Clip(percentile=0.9)
    assert torch.allclose(clip.apply(x0), torch.stack([x0[0].clamp(-level, level) / level, x0[1]]))
    assert torch.allclose(Clip(percentile=0.9, most=1.5).apply(x0)[0], x0[0].clamp(-1.5, 1.5) / 1.5)
    assert torch.allclose(Clip(0.0, 1.0, percentile=0.9).apply((x0 + 1) / 2), (clip.apply(x0) + 1) / 2)


def test_half_precision_infinity_and_nan_are_still_seen():
    model = sds.FunctionModel(lambda x, t: x * float("inf"), sds.VP(), "epsilon", (2,), data_range=(-1.0, 1.0))
    with pytest.raises(sds.NonFiniteError, match="evaluation 1"):
        sds.sample(model, "ddim", steps=3)


@pytest.mark.parametrize(
    ("clip", "found"),
    [
        (None, Clip()),
        (True, Clip()),
        (False, None),
        (2, Clip(-2.0, 2.0)),
        ((-1, 3), Clip(-1.0, 3.0)),
        (Clip(0.0, 1.0), Clip(0.0, 1.0)),
    ],
)
def test_what_clip_may_be(clip, found):
    assert exploding(clip).clip == found
    assert sds.Scheduler("euler", trained={"_class_name": "DDPMScheduler"}, clip=clip).clip == found


@pytest.mark.parametrize("clip", ["yes", (1, -1), (0, float("inf")), 0, object(), {"percent": 3}])
def test_a_clip_that_means_nothing_is_refused(clip):
    for make in (exploding, lambda c: sds.Scheduler("euler", clip=c), lambda c: sds.load("fashion-mnist", clip=c)):
        with pytest.raises(sds.UsageError, match="clip"):
            make(clip)


def test_a_function_without_a_range_is_not_clipped():
    model = sds.FunctionModel(lambda x, t: x, sds.VP(), "epsilon", (2,))
    assert model.clip is None
    assert sds.FunctionModel(lambda x, t: x, sds.VP(), "epsilon", (2,), clip=True).clip == Clip()


def test_encodings_and_likelihoods_follow_the_networks_own_ode():
    """Clipping cannot be undone, and its derivative is 0 outside of the bounds."""
    x = torch.full((1, 1, 8, 8), 0.99)
    codes = [sds.encode(exploding(clip), x, "heun", steps=5).samples for clip in (None, False)]
    assert torch.equal(*codes)
    assert torch.equal(*[sds.decode(exploding(clip), codes[0], "heun", steps=5).samples for clip in (None, False)])


def test_a_schedulers_clip_comes_back_from_everything_it_is_stored_in(tmp_path):
    made = sds.Scheduler.from_config({"_class_name": "DDPMScheduler"}, "ddim", clip=Clip(percentile=0.9))
    made.save_pretrained(tmp_path)
    again = [sds.Scheduler.from_pretrained(tmp_path), made.clone(), pickle.loads(pickle.dumps(made))]
    again.append(sds.Scheduler.from_config(json.loads(made.to_json_string())))
    assert [one.clip for one in again] == [Clip(percentile=0.9)] * 4
    assert sds.Scheduler.from_config(made.config, clip=False).clip is None


def test_a_folders_words_reach_its_model_and_are_turned_off_by_one(tmp_path):
    folder = Path(sds.__file__).parent / "assets" / "fashion-mnist"
    assert sds.load(folder).clip is None
    copy = tmp_path / "clipped"
    shutil.copytree(folder, copy)
    file = copy / "scheduler" / "scheduler_config.json"
    words = {**json.loads(file.read_text()), **THRESHOLD}
    file.write_text(json.dumps(words))
    wanted = Clip(percentile=0.9, most=1.5)
    assert sds.load(copy).clip == wanted
    assert sds.load(copy, clip=False).clip is None
    pipe = diffusers.DDPMPipeline.from_pretrained(copy)
    assert sds.from_pipeline(pipe).clip == sds.Guided(sds.from_pipeline(pipe), 1.0).clip == wanted
    assert sds.from_pipeline(pipe, clip=(-1, 1)).clip == Clip()
    words: dict[str, Any] = {"steps": 2, "spacing": "linspace", "seed": 3}  # a grid that leaves the data's range
    on, off = (sds.sample(sds.load(copy, clip=clip), "ddim", **words).samples for clip in (None, False))
    assert on.abs().max() <= 1
    assert off.abs().max() > 1
