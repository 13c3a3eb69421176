"""What cannot be run is refused in one plain sentence; and what a run returns can be kept in a pickle."""

from __future__ import annotations

import json
import math
import pickle
import warnings

import pytest
import torch
from process_cases import TABLE as DDPM_TABLE

import sdesamplers as sds
from sdesamplers.cli.tables import without_nan
from sdesamplers.errors import PluginError

TABLE = sds.DiscreteVP(DDPM_TABLE)
NAN = torch.tensor([[math.nan, 1.0]])


@pytest.fixture(scope="module")
def mixture():
    return sds.grid_mixture(sds.VP())


def test_a_sampler_that_loses_samples_is_not_believed(mixture):
    @sds.sampler("short-request", order=1)
    def short_request(x, path):
        """Asks for the first sample alone."""
        for now, then in path.steps:
            out = yield x[:1], now
            x = out.step_to(then)
        return x

    @sds.sampler("short-answer", order=1)
    def short_answer(x, path):
        """Returns the first sample alone."""
        for now, then in path.steps:
            out = yield x, now
            x = out.step_to(then)
        return x[:1]

    @sds.sampler("short-list", order=1)
    def short_list(x, path):
        """Asks for the first sample alone, at two points at once."""
        for now, then in path.steps:
            outs = yield [(x, now), (x[:1], now)]
            x = outs[0].step_to(then)
        return x

    for sampler, message in (
        (short_request, "evaluated 1 samples at a point for 3"),
        (short_list, "evaluated 1 samples at a point for 3"),
        (short_answer, "returned 1 samples of 3"),
    ):
        with pytest.raises(PluginError, match=message):
            sds.sample(mixture, sampler, steps=2, num_samples=3)


def test_a_sampler_that_asks_at_the_clean_end_is_told_so(mixture):
    @sds.sampler("too-far", order=1)
    def too_far(x, path):
        """Asks where its steps end."""
        for _, then in path.steps:
            out = yield x, then
            x = out.step_to(then)
        return x

    with pytest.raises(PluginError, match="evaluated the model at sigma = 0, where its prediction is undefined"):
        sds.sample(mixture, too_far, steps=2)


def test_a_sampler_does_not_hide_a_recipe():
    @sds.sampler("quality", order=1)
    def quality(x, path):
        """Never run."""
        yield x, path.points[0]

    with pytest.raises(PluginError, match="'quality' is a recipe"):
        sds.register(quality)


def halve(event):
    event.x = event.x.half()


def drop(event):
    event.x = None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"sigmas": [5, 1, 0], "final": "min"}, "final='min' contradicts sigmas, whose last value is 0"),
        ({"sigmas": [5, 1], "final": "zero"}, "final='zero' contradicts sigmas, whose last value is 1"),
        ({"sampler": "rk45", "spacing": "karras"}, "rk45 is adaptive: spacing= applies only"),
        ({"steps": 2, "spacing_options": [1]}, "spacing_options must be a dictionary"),
        ({"steps": 2, "noise_options": "x"}, "noise_options must be a dictionary"),
        ({"steps": 2, "start": "x"}, "start must be a tensor"),
        ({"steps": 2, "start": torch.tensor(1.0)}, r"floating-point tensor \(N, ...\)"),
        ({"steps": 2, "start": NAN}, "start contains NaN"),
        ({"steps": 2, "callback": 3}, "callback must be a function"),
        ({"steps": 2, "callback": halve}, "torch.float16 of shape .* must keep both"),
        ({"steps": 2, "callback": drop}, "by None"),
        ({"steps": 2, "guidance_scale": "3"}, "guidance_scale must be a number"),
        ({"steps": 2, "guidance_scale": math.nan}, "guidance_scale must be a number"),
        ({"steps": 2, "first_index": 2**64}, "first_index must be a whole number from 0 to"),
    ],
)
def test_words_that_cannot_be_run_together(mixture, words, message):
    with pytest.raises(sds.UsageError, match=message):
        sds.sample(mixture, **{"sampler": "heun", **words})


@pytest.mark.parametrize(
    ("process", "t"), [(TABLE, torch.tensor([0, 1000])), (TABLE, -1), (sds.RectifiedFlow(), 2.0), (sds.VP(), math.nan)]
)
def test_losses_are_of_times_that_the_process_has(process, t):
    with pytest.raises(sds.UsageError, match="t must lie from 0 to"):
        sds.losses.denoising_loss(lambda x, t: x, process, torch.zeros(2, 3), t=t)


def test_losses_of_a_network_of_diffusers_are_those_of_its_tensor():
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        8, 1, 1, block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
    )
    words = {"t": torch.tensor([10, 900]), "noise": torch.randn(2, 1, 8, 8)}
    x0 = torch.zeros(2, 1, 8, 8)
    got = sds.losses.denoising_loss(unet, TABLE, x0, **words)
    torch.testing.assert_close(got, sds.losses.denoising_loss(lambda x, t: unet(x, t).sample, TABLE, x0, **words))
    with pytest.raises(sds.ModelError, match="the network returned None"):
        sds.losses.denoising_loss(lambda x, t: None, TABLE, x0, **words)


def test_a_replay_is_of_the_process_that_was_sampled(mixture):
    result = sds.sample(mixture, "ddpm", steps=3, log_probs=True)
    with pytest.raises(sds.UsageError, match="which has another process than"):
        sds.replay_log_probs(sds.grid_mixture(sds.EDM()), result)
    with pytest.raises(sds.UsageError, match=r"shape \(3,\), but this result has shape \(2,\)"):
        sds.replay_log_probs(sds.grid_mixture(sds.VP(), dimension=3), result)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sds.FunctionModel(torch.relu, "vp", "epsilon", (2,)), "process must be a process"),
        (lambda: sds.FunctionModel(torch.relu, sds.VP(), "epsilon", (2,), data_range=(1, -1)), "low, high"),
        (lambda: sds.ShiftedFlow(-1.0), "shift must be positive"),
        (lambda: sds.interpolate(torch.ones(2), torch.ones(2), [math.nan]), "list of numbers"),
        (lambda: sds.interpolate([1.0], torch.ones(1), [0.5]), "two tensors"),
        (lambda: sds.sample(torch.nn.Linear(1, 1), "euler", steps=1), "DDPMPipeline"),
    ],
)
def test_definitions_are_checked_where_they_are_made(make, message):
    with pytest.raises(sds.UsageError, match=message):
        make()


def test_one_name_and_one_number_are_lists_of_one(mixture):
    words = {"num_samples": 4, "reference_samples": 0}
    one, listed = sds.compare(mixture, "euler", 5, **words), sds.compare(mixture, ["euler"], [5], **words)
    assert [(c.sampler, c.budget) for c in one.cells] == [(c.sampler, c.budget) for c in listed.cells] == [("euler", 5)]


def test_decoding_warns_of_samples_far_outside_the_data():
    model = sds.FunctionModel(lambda x, t: -9 * x, sds.VP(), "v", (2,), data_range=(-1.0, 1.0))
    with pytest.warns(UserWarning, match="far outside the data range"):
        sds.decode(model, torch.ones(2, 2), "euler", steps=3)


def test_json_has_null_for_what_is_not_a_number():
    text = json.dumps(without_nan({"a": [math.nan, 1.5], "b": (math.inf, {"c": -math.inf})}), allow_nan=False)
    assert json.loads(text) == {"a": [None, 1.5], "b": [None, {"c": None}]}


def test_results_can_be_pickled(mixture):
    result = sds.sample(mixture, "ddpm", steps=3, num_samples=2, log_probs=True)
    kept = pickle.loads(pickle.dumps(result))
    assert kept.sampler is result.sampler
    torch.testing.assert_close(sds.replay_log_probs(mixture, kept), sds.replay_log_probs(mixture, result))
    code = sds.encode(mixture, result.samples, "heun", steps=3)
    back = sds.decode(mixture, pickle.loads(pickle.dumps(code)))
    torch.testing.assert_close(back.samples, sds.decode(mixture, code).samples, rtol=0, atol=0)
    for shelf in (sds.samplers(), sds.spacings()):
        for item in shelf.values():
            assert pickle.loads(pickle.dumps(item)) is item


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: sds.sample(m, "heun", step=3), "sample has no argument 'step'; did you mean steps="),
        (lambda m, x: sds.encode(m, x, "heun", step=3), "encode has no argument 'step'; did you mean steps="),
        (lambda m, x: sds.decode(m, x, "heun", step=3), "decode has no argument 'step'; did you mean steps="),
        (
            lambda m, x: sds.log_likelihood(m, x, "heun", steps=3, prob=2),
            "log_likelihood has no argument 'prob'; .*probes=",
        ),
        (lambda m, x: sds.consistency_error(m, "heun", step=3), "consistency_error has no argument 'step'; .* steps="),
        (
            lambda m, x: sds.stream(m, "heun", num_samples=1, step=3),
            "stream has no argument 'step'; did you mean steps=",
        ),
        (
            lambda m, x: sds.sample(m, "dpmpp-2m", steps=3, ordr=2),
            "'dpmpp-2m' has no option 'ordr'; did you mean 'order'",
        ),
        (
            lambda m, x: sds.sample(m, "dpmpp-2m", steps=3, zzz=2),
            r"'dpmpp-2m' has no option 'zzz' \(its options: order,",
        ),
        (lambda m, x: sds.sample(m, "heun", steps=3, device="cpu"), r"equivalent .* is load\(\.\.\., device=\)"),
    ],
)
def test_a_misspelt_keyword_is_looked_for_among_the_calls_arguments_too(call, message):
    model = sds.grid_mixture(sds.VP())
    with pytest.raises(sds.UnknownNameError, match=message):
        call(model, torch.zeros(1, 2))


@pytest.mark.parametrize("name", ["height", "width", "image_size", "resolution"])
def test_names_of_other_libraries_for_the_size(name: str) -> None:
    with pytest.raises(sds.UsageError, match=rf"load has no argument '{name}'; did you mean size="):
        sds.load("fashion-mnist", **{name: 32})
    with pytest.raises(sds.UsageError, match=rf"has no option '{name}' .* belongs to load: load\(..., size=\)"):
        sds.sample("fashion-mnist", "euler", steps=2, **{name: 32})


def test_an_option_that_other_samplers_have_names_them() -> None:
    with pytest.raises(sds.UsageError, match=r"sampler 'euler' has no option 'eta' .*samplers that have it: .*ddim"):
        sds.sample("fashion-mnist", "euler", steps=2, eta=0.5)
    with pytest.raises(sds.UsageError, match=r"has no option 's_churn' .*samplers that have it: churn"):
        sds.sample("fashion-mnist", "heun", steps=2, s_churn=0.5)


@pytest.mark.parametrize(
    ("config", "process"),
    [
        ({}, "DiscreteVP"),
        ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, "DiscreteVP"),
        ({"shift": 3.0}, "RectifiedFlow"),
        ({"shift": 1.0, "use_dynamic_shifting": False}, "RectifiedFlow"),
        ({"sigma_max": 80.0, "sigma_min": 0.002}, "EDM"),
        ({"sigma_data": 0.5, "solver_order": 2}, "EDM"),  # of EDMDPMSolverMultistepScheduler
        ({"shift": 3.0, "upscale_mode": "bicubic"}, "RectifiedFlow"),  # of FlowMatchLCMScheduler
        ({"use_karras_sigmas": True}, "DiscreteVP"),  # flows, and samplers of Stable Diffusion
        ({"final_sigmas_type": "zero", "prediction_type": "v_prediction"}, "DiscreteVP"),  # EDM, and these samplers
        ({"num_train_timesteps": 3, "trained_betas": [0.1, 0.2, 0.9]}, "DiscreteVP"),
    ],
)
def test_a_configuration_without_its_class_is_of_the_kind_that_has_its_keys(config: dict, process: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = sds.Scheduler.from_config(config)
    assert type(scheduler.convention.process).__name__ == process
