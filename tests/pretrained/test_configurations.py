"""Scheduler configurations as published models have them: what is read of them, and that nothing is passed over."""

from __future__ import annotations

import copy
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from diffusers.utils import logging as diffusers_logging
from lanes import mostly_slow

import sdesamplers as sds
from sdesamplers.pretrained.configuration import GridSettings, completed, grid_of
from sdesamplers.pretrained.conventions import convention_of


def test_a_configuration_is_completed_with_its_classs_defaults():
    words = completed({"_class_name": "PNDMScheduler", "beta_end": 0.012})
    defaults = diffusers.PNDMScheduler(beta_end=0.012).config
    assert {word: words[word] for word in defaults if word != "_use_default_values"} == {
        word: value for word, value in defaults.items() if word != "_use_default_values"
    }
    assert "beta_end" not in words["_use_default_values"]
    assert set(words["_use_default_values"]) == set(defaults["_use_default_values"])


@pytest.mark.parametrize(
    ("config", "grid"),
    [
        ({"_class_name": "DDIMScheduler"}, GridSettings("DDIMScheduler", spacing="leading", set_alpha_to_one=True)),
        (
            {"_class_name": "PNDMScheduler", "steps_offset": 1, "num_train_timesteps": 500},
            GridSettings("PNDMScheduler", 500, "leading", 1, set_alpha_to_one=False),
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, "lambda_min_clipped": -5.1},
            GridSettings("DPMSolverMultistepScheduler", spacing="linspace", sigmas="karras", lambda_min=-5.1),
        ),
        (
            {"_class_name": "EDMEulerScheduler", "sigma_schedule": "exponential", "final_sigmas_type": "sigma_min"},
            GridSettings("EDMEulerScheduler", 1000, None, 0, "exponential", 7.0, 0.002, 80.0, "sigma_min"),
        ),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift_terminal": 0.1},
            GridSettings("FlowMatchEulerDiscreteScheduler", shift_terminal=0.1),
        ),
        # words that another class has left behind
        (
            {"_class_name": "PNDMScheduler", "use_karras_sigmas": True},
            GridSettings("PNDMScheduler", 1000, "leading", 0, set_alpha_to_one=False),
        ),
    ],
)
def test_what_a_configuration_says_of_its_grid(config, grid):
    assert grid_of(config) == grid
    assert convention_of(config).grid == grid


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "one kind of sigmas|[Oo]nly one"),
        ({"timestep_spacing": "trailling"}, "timestep_spacing must be one of 'linspace', 'leading', 'trailing'"),
        ({"final_sigmas_type": "one"}, "final_sigmas_type must be one of 'zero', 'sigma_min'"),
    ],
)
def test_a_grid_that_means_nothing_is_refused(words, message):
    with pytest.raises(sds.ModelError, match=message):
        convention_of({"_class_name": "EulerDiscreteScheduler", **words})


SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
OLD = {**SD, "num_train_timesteps": 1000, "set_alpha_to_one": False, "steps_offset": 1, "trained_betas": None}
LEFT = {**OLD, "clip_sample": False, "skip_prk_steps": True}
FLOW = "FlowMatchEulerDiscreteScheduler"
DPM = "DPMSolverMultistepScheduler"

PUBLISHED: dict[str, dict[str, Any]] = {
    "old PNDM": {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", **LEFT},
    "DDIM with leftovers": {"_class_name": "DDIMScheduler", **LEFT, "prediction_type": "v_prediction"},
    "DDIM, zero SNR": {"_class_name": "DDIMScheduler", **LEFT, "rescale_betas_zero_snr": True},
    "DDPM": {"_class_name": "DDPMScheduler", **SD, "variance_type": "fixed_small", "clip_sample": True},
    "DDPM, few timesteps": {"_class_name": "DDPMScheduler", "num_train_timesteps": 24, "prediction_type": "sample"},
    "DDPM, laplace": {"_class_name": "DDPMScheduler", "beta_schedule": "laplace"},
    "DDPM, sigmoid": {"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"},
    "DDPM, trained betas": {"_class_name": "DDPMScheduler", "trained_betas": np.linspace(1e-4, 0.05, 60).tolist()},
    "DDPM, misspelt words": {"_class_name": "DDPMScheduler", " trained_betas": None, "scheduler_name": "x", **SD},
    "DDPM, learned variance": {"_class_name": "DDPMScheduler", "variance_type": "learned_range", **SD},
    "Euler ancestral": {"_class_name": "EulerAncestralDiscreteScheduler", **LEFT, "timestep_spacing": "trailing"},
    "Euler": {"_class_name": "EulerDiscreteScheduler", **LEFT, "use_karras_sigmas": True},
    "DEIS": {"_class_name": "DEISMultistepScheduler", **LEFT, "solver_type": "logrho"},
    "UniPC": {"_class_name": "UniPCMultistepScheduler", **LEFT, "solver_p": None, "disable_corrector": []},
    "DPM-Solver, Karras": {"_class_name": DPM, **SD, "use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"},
    "DPM-Solver, cosine": {"_class_name": DPM, "beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
    "Heun": {"_class_name": "HeunDiscreteScheduler", **SD, "timestep_spacing": "leading", "steps_offset": 1},
    "LMS": {"_class_name": "LMSDiscreteScheduler", "_diffusers_version": "0.11.0", **SD},
    "LCM": {"_class_name": "LCMScheduler", **LEFT, "original_inference_steps": 50, "timestep_scaling": 10.0},
    "TCD": {"_class_name": "TCDScheduler", **LEFT},
    "CogVideoX": {
        "_class_name": "CogVideoXDDIMScheduler",
        **LEFT,
        "snr_shift_scale": 1.0,
        "rescale_betas_zero_snr": True,
    },
    "unCLIP": {"_class_name": "UnCLIPScheduler", "clip_sample_range": 5.0, "variance_type": "learned_range"},
}
"""Configurations with a table, by what is special about them."""

OTHERS: dict[str, dict[str, Any]] = {
    "EDM": {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_min": 0.01, "sigma_data": 0.5, "rho": 7.0},
    "Stable Audio": {"_class_name": "CosineDPMSolverMultistepScheduler", "sigma_max": 500, "sigma_min": 0.3},
    "SVD": {"_class_name": "EulerDiscreteScheduler", **LEFT, "timestep_type": "continuous", "sigma_min": 0.002}
    | {"prediction_type": "v_prediction", "sigma_max": 700.0, "use_karras_sigmas": True},
    "consistency": {"_class_name": "CMStochasticIterativeScheduler", "sigma_max": 80.0, "num_train_timesteps": 40},
    "score-SDE": {"_class_name": "ScoreSdeVeScheduler", "sigma_max": 348.0, "num_train_timesteps": 1000},
    "Sana-Sprint": {"_class_name": "SCMScheduler", "sigma_data": 0.5, "prediction_type": "trigflow"},
    "flow": {"_class_name": FLOW, "shift": 3.0, "use_dynamic_shifting": False},
    "flow, dynamic": {"_class_name": FLOW, "use_dynamic_shifting": True, "shift_terminal": 0.1, "base_shift": 0.95},
    "flow from 0 to 1": {"_class_name": FLOW, "invert_sigmas": True, "num_train_timesteps": 1},
    "flow, unknown words": {"_class_name": FLOW, "sigma_min": 0.0, "use_reference_discrete_timesteps": True},
    "Sana": {"_class_name": DPM, "use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
    "Wan": {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 8.0}
    | {"prediction_type": "flow_prediction", "shift_terminal": None},
}
"""Configurations without a table."""

IMPOSSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "tokens": ({"_class_name": "AmusedScheduler", "masking_schedule": "cosine"}, "unmasks tokens"),
    "VQ diffusion": ({"_class_name": "VQDiffusionScheduler", "num_vec_classes": 4097}, "no score"),
    "Wuerstchen": ({"_class_name": "DDPMWuerstchenScheduler", "s": 0.008, "scaler": 1.0}, "its pipeline scales"),
    "flow map": ({"_class_name": "FlowMapEulerDiscreteScheduler", "shift": 5.0}, "receives two times"),
    "MiniMax": ({"_class_name": "MiniMaxH3Scheduler", "shift": 3.0}, "its process is unknown"),
    "a copy of a class": ({"_class_name": DPM, "beta_schedule": "cosine"}, "cosine is not implemented"),
    "several resolutions": ({"_class_name": "FlowMatchLCMScheduler", "scale_factors": [1, 2]}, "several resolutions"),
    "a misspelt prediction": ({"_class_name": "DDIMScheduler", "prediction_type": "noisy"}, "prediction type"),
}


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=list(PUBLISHED))
def test_tables_are_those_of_the_class(config):
    made = sds.Scheduler.from_config(copy.deepcopy(config), "dpmpp-2m")
    theirs = getattr(diffusers, config["_class_name"]).from_config(copy.deepcopy(config))
    assert (made.alphas_cumprod - theirs.alphas_cumprod).abs().max() < 1e-6
    assert made.config.prediction_type == theirs.config.get("prediction_type", "epsilon")
    assert len(made) == theirs.config.num_train_timesteps == made.config.num_train_timesteps or config.get(
        "trained_betas"
    )
    made.set_timesteps(4)
    assert len(made.timesteps) == 4


@pytest.mark.parametrize("config", OTHERS.values(), ids=list(OTHERS))
def test_configurations_without_a_table_construct(config):
    made = sds.Scheduler.from_config(copy.deepcopy(config), "dpmpp-2m")
    made.set_timesteps(4, mu=0.8)
    assert len(made.timesteps) == 4
    for word, value in config.items():
        if not word.startswith("_"):
            assert made.config[word] == value


@pytest.mark.parametrize(("config", "reason"), IMPOSSIBLE.values(), ids=list(IMPOSSIBLE))
def test_configurations_that_cannot_be_run_are_refused_in_a_sentence(config, reason):
    with pytest.raises(sds.ModelError, match=f"(?s){config['_class_name']}.*{reason}|{reason}") as caught:
        sds.Scheduler.from_config(config, "dpmpp-2m")
    assert "\n" not in str(caught.value)


# Words as arguments.


def test_the_models_words_are_arguments_of_from_config():
    made = sds.Scheduler.from_config(
        diffusers.DDIMScheduler(**SD), "dpmpp-2m", prediction_type="v_prediction", timestep_spacing="trailing"
    )
    assert (made.config.prediction_type, made.config.timestep_spacing) == ("v_prediction", "trailing")
    assert (made.convention.prediction, made.convention.grid.spacing) == ("v", "trailing")
    assert diffusers.PNDMScheduler.from_config(made.config).config.timestep_spacing == "trailing"
    flow = sds.Scheduler.from_config({"_class_name": FLOW}, "euler", shift=3.0)
    assert flow.convention.process.shift == 3.0
    karras = sds.Scheduler.from_config({"_class_name": DPM}, "dpmpp-2m", use_karras_sigmas=True)
    assert karras.convention.grid.sigmas == "karras"
    assert sds.Scheduler.from_config({"_class_name": "DDIMScheduler"}, "ddim", clip_sample=False).clip is None
    # a sampler's own options come first
    assert sds.Scheduler.from_config({"_class_name": "DDIMScheduler"}, "ddim", eta=0.5).config.options == {"eta": 0.5}


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        (DPM, {"algorithm_type": "sde-dpmsolver++"}, "write the sampler's name: .*'dpmpp-2m-sde' for sde-dpmsolver"),
        (DPM, {"solver_order": 3}, "write the sampler's name, such as 'dpmpp-3m'"),
        (
            "DDIMScheduler",
            {"use_karras_sigmas": True},
            "DDIMScheduler.* has no parameter use_karras_sigmas; write spacing='karras'",
        ),
        ("DDIMScheduler", {"shift": 3.0}, "has no parameter shift; write spacing='flow-shift'"),
        ("EulerDiscreteScheduler", {"clip_sample": True}, "has no parameter clip_sample; write clip=True"),
        ("DDIMScheduler", {"sloppiness": 3.0}, "sloppiness"),
    ],
)
def test_words_that_are_written_otherwise_here_say_how(kind, words, message):
    with pytest.raises(sds.UsageError, match=message):
        sds.Scheduler.from_config({"_class_name": kind}, "dpmpp-2m", **words)


# Words that change later.


def v_and_x0(made: sds.Scheduler, steps: int = 10) -> float:
    """How far x0 is from sqrt(a) x - sqrt(1 - a) v (Salimans & Ho 2022) at a run's first timestep."""
    x, v = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    a = made.alphas_cumprod[int(made.timesteps[0])]
    return float(
        (made.step(v, made.timesteps[0], x).pred_original_sample - (a.sqrt() * x - (1 - a).sqrt() * v)).abs().max()
    )


@pytest.mark.parametrize("how", ["register_to_config", "pipelines"])
def test_words_that_are_registered_later_hold(how):
    made = sds.Scheduler.from_config(
        {"_class_name": "DDIMScheduler", **LEFT}, "ddim", spacing="trailing", round_timesteps=True
    )
    if how == "register_to_config":
        made.register_to_config(prediction_type="v_prediction")
    else:  # as StableDiffusionPipeline corrects steps_offset and clip_sample
        made._internal_dict = diffusers.configuration_utils.FrozenDict(
            {**made.config, "prediction_type": "v_prediction"}
        )
    made.set_timesteps(10)
    assert made.config.prediction_type == "v_prediction"
    assert v_and_x0(made) < 1e-3
    again = made.clone()
    again.set_timesteps(10)
    assert v_and_x0(again) < 1e-3
    assert json.loads(made.to_json_string())["prediction_type"] == "v_prediction"


def test_another_table_lays_the_run_out_anew():
    made = sds.Scheduler.from_config({"_class_name": "DDIMScheduler", **LEFT}, "ddim")
    made.set_timesteps(10)
    made.register_to_config(prediction_type="v_prediction")
    assert made.num_inference_steps == 10
    made.register_to_config(num_train_timesteps=500)
    assert len(made.alphas_cumprod) == len(made) == 500
    with pytest.raises(sds.UsageError, match="call set_timesteps"):
        made.step(torch.zeros(1, 4), 499, torch.zeros(1, 4))


# There and back.


@pytest.fixture
def warnings_of_diffusers() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    diffusers_logging.add_handler(handler)
    yield stream
    diffusers_logging.remove_handler(handler)


KARRAS = [kind.name for kind in KarrasDiffusionSchedulers if kind.name != "DPMSolverSDEScheduler"]


QUICK = ("DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")


@pytest.mark.slow
@pytest.mark.parametrize("source", KARRAS)
def test_going_back_to_a_class_is_going_there_straight(source, warnings_of_diffusers):
    """All ordered pairs: configuration, grid and table, with no warning that the straight way does not give."""
    goes_back(source, KARRAS, warnings_of_diffusers)


@pytest.mark.parametrize("source", ["DDIMScheduler", "PNDMScheduler"])
def test_going_back_to_a_common_class_is_going_there_straight(source, warnings_of_diffusers):
    goes_back(source, QUICK, warnings_of_diffusers)


def goes_back(source, targets, warnings_of_diffusers):
    first = getattr(diffusers, source)()
    named = {"_class_name": source, **({} if source == "EDMEulerScheduler" else SD)}
    for target in targets:
        cls = getattr(diffusers, target)
        for config in (first.config, named) if target.startswith("D") else (first.config,):
            straight = cls.from_config(config)
            before = warnings_of_diffusers.tell()
            ours = sds.Scheduler.from_config(config, "dpmpp-2m-sde", spacing="karras", eta=0.5)
            back = cls.from_config(ours.config)
            if config is first.config:  # its words are no surprise to the straight way either
                assert warnings_of_diffusers.tell() == before
            assert "dpmpp" not in warnings_of_diffusers.getvalue()
            wanted, found = ({k: v for k, v in c.config.items() if k[0] != "_"} for c in (straight, back))
            assert found == wanted
            straight.set_timesteps(6)
            back.set_timesteps(6)
            assert torch.equal(back.timesteps, straight.timesteps)
            again = sds.Scheduler.from_config(back.config)
            assert (again.config.sampler, again.config.options["eta"], again.config.spacing) == (
                "dpmpp-2m-sde",
                0.5,
                "karras",
            )
            assert again.trained == ours.trained


def test_a_saved_configuration_holds_no_words_that_nobody_wrote(tmp_path):
    """diffusers writes its defaults too; ours are left out, so that another class's own hold when it reads the file."""
    made = sds.Scheduler.from_config({"_class_name": "PNDMScheduler", **OLD}, "unipc")
    made.save_pretrained(tmp_path)
    assert diffusers.DPMSolverMultistepScheduler.from_pretrained(tmp_path).config.timestep_spacing == "linspace"
    assert sds.Scheduler.from_pretrained(tmp_path).config.timestep_spacing == "leading"
    assert diffusers.PNDMScheduler.from_pretrained(tmp_path).config.timestep_spacing == "leading"


def test_configurations_of_earlier_versions_are_read():
    old = {
        "_class_name": "Scheduler",
        **OLD,
        "sampler": "ddim",
        "options": {"eta": 0.5},
        "trained_class": "PNDMScheduler",
    }
    made = sds.Scheduler.from_config(old)
    assert (made.spec.name, made.config.options, made.config.trained_class) == ("ddim", {"eta": 0.5}, "PNDMScheduler")


# Zero terminal SNR.

ZERO = {**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "clip_sample": False}


@pytest.mark.parametrize("name", ["DPM++ 2M Karras", "DPM++ 2M SDE Karras", "Euler", "Euler a", "ddim", "exponential"])
@pytest.mark.parametrize(
    "kind", mostly_slow(["DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"], keep=["DDIMScheduler"])
)
def test_zero_snr_tables_run_under_every_class_and_name(kind, name):
    """Data N(0.3, 0.3^2) come out whichever class the configuration names.

    Methods of order 1 need more steps: at 30, diffusers' DDIM and Euler have standard deviations of 0.255 and 0.254,
    too. 250 divides 1,000, so that the `leading` grid of DDIM's class begins next to the last timestep.
    """
    steps = 250 if name in ("Euler", "Euler a", "ddim") else 30
    words = {word: value for word, value in ZERO.items() if kind == "DDIMScheduler" or word != "clip_sample"}
    sampler, spacing = ("dpmpp-2m", "exponential") if name == "exponential" else (name, None)
    made = sds.Scheduler.from_config({"_class_name": kind, **words}, sampler, spacing=spacing, seed=0)
    made.set_timesteps(steps)
    process = made.convention.process
    # few long samples, as noise is drawn faster for them than for many short ones
    x = torch.randn(40, 100, generator=torch.Generator().manual_seed(0))
    for t in made.timesteps:
        alpha, sigma = float(process.alpha(float(t))), float(process.sigma(float(t)))
        gain = alpha * 0.09 / (alpha**2 * 0.09 + sigma**2)
        x0 = 0.3 + gain * (x - alpha * 0.3)
        eps = (x - alpha * x0) / sigma
        x = made.step(alpha * eps - sigma * x0, t, x).prev_sample
    # standard errors of 4,000 samples: 0.0047 and 0.0034; the methods' own error is up to 0.02 in these steps
    assert x.mean().item() == pytest.approx(0.3, abs=0.025)
    assert x.std().item() == pytest.approx(0.3, abs=0.03)


def test_zero_snr_tables_run_from_sample_too():
    table = diffusers.DDIMScheduler(**ZERO).alphas_cumprod.double().numpy()
    model = sds.GaussianModel([0.3], [0.3**2], sds.DiscreteVP(table), prediction="v")
    draw = lambda **words: sds.sample(model, "dpmpp-2m", steps=40, num_samples=4000, **words).samples  # noqa: E731
    for words in ({"spacing": "karras"}, {"spacing": "logsnr", "coordinates": "ve"}):
        samples = draw(**words)
        assert samples.mean().item() == pytest.approx(0.3, abs=0.025)
        assert samples.std().item() == pytest.approx(0.3, abs=0.03)
    # Where the last step is long the method's own error is larger; it is the same in every coordinates.
    torch.testing.assert_close(draw(coordinates="ve"), draw(), rtol=0, atol=1e-3)
