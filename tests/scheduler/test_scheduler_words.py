"""Every argument that a pipeline of diffusers passes to its scheduler is used, ignored for a reason or refused in a
sentence; which there are is read from the pipelines' source."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from lanes import mostly_slow

import sdesamplers as sds
from sdesamplers.scheduler import step_arguments

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
METHODS = ("step", "set_timesteps", "scale_model_input", "add_noise", "scale_noise", "get_velocity")
RETRIEVED = {"scheduler", "num_inference_steps", "device", "timesteps", "sigmas"}
"""What `retrieve_timesteps` takes itself; it hands the rest on to `set_timesteps`."""


CALL = re.compile(rf"scheduler\w*\.({'|'.join(METHODS)})\(|(?<!def )\bretrieve_timesteps\(")
KEPT = re.compile(r"""([\w.]+)\["(\w+)"\] = """)


def call_at(text: str, begin: int) -> ast.Call:
    """The call whose opening bracket is at `begin`: up to the first closing one with which it can be read."""
    end = begin
    while True:
        end = text.index(")", end) + 1
        try:
            call = ast.parse(f"f{text[begin:end]}", mode="eval").body
        except SyntaxError:
            continue
        assert isinstance(call, ast.Call)
        return call


@functools.cache
def passed_by_pipelines() -> dict[str, dict[str, set[str]]]:
    """method -> argument -> files that pass it, by name or in a dictionary (`words["eta"] = eta`, `**words`)."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    root = Path(diffusers.__file__).parent
    for file in [*root.glob("pipelines/**/*.py"), *root.glob("modular_pipelines/**/*.py")]:
        text = file.read_text(encoding="utf-8")
        kept = KEPT.findall(text)
        for match in CALL.finditer(text):
            method = match[1] or "set_timesteps"
            for keyword in call_at(text, match.end() - 1).keywords:
                spread = ast.unparse(keyword.value)
                names = [keyword.arg] if keyword.arg else [word for name, word in kept if name == spread]
                for name in set(names) - (set() if match[1] else RETRIEVED):
                    found[method][name].add(file.name)
    return found


@pytest.mark.slow
def test_the_pipelines_pass_what_is_known_of_them():
    """So that a search that finds nothing does not pass for one."""
    found = passed_by_pipelines()
    assert {"eta", "generator", "return_dict", "prev_timestep", "use_clipped_model_output"} <= set(found["step"])
    assert {"device", "sigmas", "timesteps", "mu", "max_timesteps"} <= set(found["set_timesteps"])
    assert len(found["step"]["eta"]) > 50
    assert "pipeline_ddim.py" in found["step"]["use_clipped_model_output"]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_argument_of_a_pipeline_is_known(method):
    signature = inspect.signature(getattr(sds.Scheduler, method)).parameters
    taken = {name for name, parameter in signature.items() if parameter.kind is not parameter.VAR_KEYWORD} - {"self"}
    reasons = {
        "step": {**step_arguments.STEP_IGNORED, **step_arguments.STEP_REFUSED},
        "set_timesteps": {**step_arguments.GRID_IGNORED, **step_arguments.GRID_REFUSED},
        "add_noise": step_arguments.NOISE_REFUSED,
    }.get(method, {})
    assert not taken & set(reasons)
    for word, files in passed_by_pipelines()[method].items():
        assert word in taken or word in reasons, f"{method}({word}=) of {sorted(files)[:3]}"


def test_the_lists_of_arguments_are_those_of_the_signatures():
    for method, listed in (("step", step_arguments.STEP_USED), ("set_timesteps", step_arguments.GRID_USED)):
        signature = inspect.signature(getattr(sds.Scheduler, method)).parameters
        assert set(listed) == {*signature} - {"self", "others"}


def started(sampler: str = "ddim", **words: Any) -> tuple[Any, torch.Tensor, torch.Tensor]:
    scheduler = sds.Scheduler.from_config(diffusers.DDIMScheduler(**SD).config, sampler, **words)
    scheduler.set_timesteps(6)
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    return scheduler, scheduler.timesteps[0], x


@pytest.mark.parametrize("word", step_arguments.STEP_REFUSED)
def test_arguments_of_step_are_refused_with_a_reason(word):
    scheduler, t, x = started()
    with pytest.raises(sds.UsageError, match=f"step does not take {word}: .{{15,}}"):
        scheduler.step(x, t, x, **{word: 1.0})
    scheduler.step(x, t, x, **{word: None})  # nothing is said by it


@pytest.mark.parametrize("word", step_arguments.GRID_REFUSED)
def test_arguments_of_set_timesteps_are_refused_with_a_reason(word):
    scheduler, _, _ = started()
    with pytest.raises(sds.UsageError, match=f"set_timesteps does not take {word}: .{{15,}}"):
        scheduler.set_timesteps(4, **{word: 3})


def test_a_misspelt_argument_is_named_with_the_nearest():
    scheduler, t, x = started()
    with pytest.raises(sds.UsageError, match="step has no argument 'generater'; did you mean 'generator'"):
        scheduler.step(x, t, x, generater=None)
    with pytest.raises(sds.UsageError, match="set_timesteps has no argument 'timestep'; did you mean 'timesteps'"):
        scheduler.set_timesteps(timestep=[1])


# --- eta --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", mostly_slow([0.5, 1.0], keep=[0.5]))
def test_eta_is_ddims(eta):
    """Mean and standard deviation of a step's state over many numbers, against eq. 12 and 16 of Song et al. (2021)."""
    count, a = 40000, diffusers.DDIMScheduler(**SD).alphas_cumprod.double()
    x, out = torch.full((40, 1, 10, 100), 0.3), torch.full((40, 1, 10, 100), -0.4)
    for call in ("fourth", "word"):
        scheduler = sds.Scheduler.from_config(diffusers.DDIMScheduler(**SD).config, "ddim", seed=1)
        scheduler.set_timesteps(timesteps=[800, 500, 100])
        made = scheduler.step(out, 800, x, eta) if call == "fourth" else scheduler.step(out, 800, x, eta=eta)
        step = made.prev_sample.flatten()
        now, then = float(a[800]), float(a[500])
        std = eta * ((1 - then) / (1 - now)) ** 0.5 * (1 - now / then) ** 0.5
        x0 = (0.3 + (1 - now) ** 0.5 * 0.4) / now**0.5
        mean = then**0.5 * x0 - (1 - then - std**2) ** 0.5 * 0.4
        assert float(step.mean()) == pytest.approx(mean, abs=4 * std / count**0.5)
        assert float(step.std()) == pytest.approx(std, rel=4 / (2 * count) ** 0.5)


def test_eta_0_of_a_pipeline_leaves_the_samplers_own():
    """It is what stock pipelines pass to every scheduler whose `step` has it, if their caller passes nothing."""
    ends = []
    for words in ({}, {"eta": 0.0}, {"eta": None}):
        scheduler, _, x = started("dpmpp-2m-sde", seed=3)
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x), t, x, **words).prev_sample
        ends.append(x)
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_eta_is_refused_where_it_means_nothing_or_changes():
    scheduler, t, x = started("dpmpp-2m")
    with pytest.raises(sds.UsageError, match=r"dpmpp-2m has no option eta, so eta=0\.5 does not apply"):
        scheduler.step(x, t, x, 0.5)
    scheduler, _, x = started("ddim", seed=1)
    scheduler.step(x, scheduler.timesteps[0], x, eta=1.0)
    with pytest.raises(sds.UsageError, match=r"eta cannot change from 1 to 0\.25 in the middle of a run"):
        scheduler.step(x, scheduler.timesteps[1], x, eta=0.25)
    scheduler, t, x = started("ddim", seed=1)
    with pytest.raises(sds.UsageError, match=r"generator must be a torch\.Generator"):
        started("ddpm")[0].step(x, t, x, "seed")


# --- pipelines with words of their own --------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_ddim_pipeline(eta):
    """`eta=` and `use_clipped_model_output=`; where nothing is random, diffusers' own scheduler gives the same."""
    theirs = diffusers.DDIMScheduler(**SD, timestep_spacing="trailing", set_alpha_to_one=True)
    pipe = diffusers.DDIMPipeline(unet=tiny.plain_unet(), scheduler=theirs)
    pipe.set_progress_bar_config(disable=True)

    def image(eta: float, seed: int = 0) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        return pipe(num_inference_steps=4, eta=eta, generator=generator, output_type="np").images

    expected = image(0.0)
    pipe.scheduler = sds.Scheduler.from_config(theirs.config, "ddim", spacing="trailing")
    found = image(eta)
    if eta:
        assert np.abs(found - expected).max() > 0.01
        np.testing.assert_array_equal(found, image(eta))
    else:
        np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp-2m"])
def test_the_prior_of_unclip_says_where_it_goes_on(sampler):
    config = diffusers.UnCLIPScheduler(
        variance_type="fixed_small_log", prediction_type="sample", num_train_timesteps=1000, clip_sample_range=5.0
    ).config
    scheduler = sds.Scheduler.from_config({**config, "_class_name": "UnCLIPScheduler"}, sampler, seed=1)
    scheduler.set_timesteps(5)
    x, steps = torch.randn(2, 16, generator=torch.Generator().manual_seed(1)), scheduler.timesteps
    for i, t in enumerate(steps):
        following = None if i + 1 == steps.shape[0] else steps[i + 1]
        x = scheduler.step(torch.tanh(x), timestep=t, sample=x, generator=None, prev_timestep=following).prev_sample
    assert torch.isfinite(x).all()
    scheduler.set_timesteps(5)
    with pytest.raises(sds.UsageError, match=r"prev_timestep is .* but this run of .* continues at"):
        scheduler.step(torch.tanh(x), scheduler.timesteps[0], x, prev_timestep=scheduler.timesteps[3])


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_sana_sprints_grid_is_its_schedulers(steps):
    """The pipeline drops the last timestep, the clean end."""
    between = 1.3 if steps == 2 else None
    theirs = diffusers.SCMScheduler()
    theirs.set_timesteps(steps, max_timesteps=1.5708, intermediate_timesteps=between)
    for sampler in ("consistency", "dpmpp-2m"):
        scheduler = sds.Scheduler.from_config({"_class_name": "SCMScheduler", **theirs.config}, sampler, seed=1)
        for call in (
            {"num_inference_steps": steps, "max_timesteps": 1.5708, "intermediate_timesteps": between},
            {"timesteps": theirs.timesteps.tolist(), "max_timesteps": None, "intermediate_timesteps": None},
        ):
            scheduler.set_timesteps(**call)
            torch.testing.assert_close(scheduler.timesteps + 0, theirs.timesteps, rtol=0, atol=1e-5)
            x = 0.5 * torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
            for t in scheduler.timesteps[:-1]:
                x, x0 = scheduler.step(torch.tanh(x), t.expand(2), x, return_dict=False)
            torch.testing.assert_close(x, x0, rtol=1e-5, atol=1e-5)  # finished: the last state is the last x0
            with pytest.raises(sds.UsageError, match=f"ended after {steps} evaluations"):
                scheduler.step(x, scheduler.timesteps[-1], x)
    with pytest.raises(sds.UsageError, match="intermediate_timesteps is only for 2 steps, and there are 3"):
        scheduler.set_timesteps(3, max_timesteps=1.57, intermediate_timesteps=1.3)
    with pytest.raises(sds.UsageError, match="max_timesteps: only for TrigFlow models"):
        started()[0].set_timesteps(3, max_timesteps=1.57)


@pytest.mark.parametrize("own", [[22, 0], [17], [30, 12, 0]])
def test_whole_timesteps_of_a_consistency_model_are_indices_of_its_training_grid(own):
    theirs = diffusers.CMStochasticIterativeScheduler()
    theirs.set_timesteps(timesteps=own)
    config = {"_class_name": "CMStochasticIterativeScheduler", **theirs.config}
    for given in (own, np.array(own)):
        scheduler = sds.Scheduler.from_config(config, "consistency", seed=1)
        scheduler.set_timesteps(timesteps=given)
        torch.testing.assert_close(scheduler.timesteps + 0, theirs.timesteps.float(), rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(scheduler.sigmas[:-1], theirs.sigmas[:-1], rtol=1e-5, atol=1e-5)
    for wrong in ([0, 22], [40, 0], [5, 5], [3, -1]):
        with pytest.raises(
            sds.UsageError, match="must be strictly decreasing indices of the training grid, from 0 to 39"
        ):
            scheduler.set_timesteps(timesteps=wrong)


def test_a_tables_alphas_can_be_looked_up_between_its_timesteps():
    """Kandinsky 2.1 image-to-image indexes it with what it tells its network."""
    theirs = diffusers.DDIMScheduler(**SD)
    scheduler = sds.Scheduler.from_config(theirs.config, "dpmpp-2m")
    scheduler.set_timesteps(5)
    table = scheduler.alphas_cumprod
    whole = torch.tensor([0, 17, 999])
    torch.testing.assert_close(table[whole], theirs.alphas_cumprod[whole], rtol=1e-6, atol=0)
    torch.testing.assert_close(table[whole.float()], theirs.alphas_cumprod[whole], rtol=1e-5, atol=0)
    assert theirs.alphas_cumprod[499] > table[torch.tensor(499.5)] > theirs.alphas_cumprod[500]
    assert table[scheduler.timesteps[2:3].repeat(3)].shape == (3,)
    assert table.to(torch.float64)[torch.tensor([1.5])].shape == (1,)
    torch.testing.assert_close(scheduler.betas, theirs.betas, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(scheduler.alphas, theirs.alphas, rtol=1e-6, atol=0)
    assert not hasattr(sds.Scheduler("euler", trained={"_class_name": "EDMEulerScheduler"}), "betas")
