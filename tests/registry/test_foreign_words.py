"""Diffusers' own arguments: the error says how the same is written here, and what it says is taken."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch
from click.testing import CliRunner

import sdesamplers as sds
from sdesamplers.cli import cli
from sdesamplers.registry.foreign import HERE

IN_SPACE = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta"}
IN_SPACE |= {"use_lu_lambdas": "logsnr"}
WORDS: dict[str, Any] = {"algorithm_type": "sde-dpmsolver++", "rho": 7.0, "solver_order": 2, "num_inference_steps": 20}
WORDS |= {"eta": 0.5, "timestep_spacing": "trailing", "clip_sample": True, "generator": None}


@pytest.fixture(scope="module")
def mixture() -> sds.MixtureModel:
    return sds.grid_mixture(sds.VP())


@pytest.mark.parametrize("word", [*IN_SPACE, *WORDS])
def test_sample_says_how_it_is_written_here(mixture: sds.MixtureModel, word: str) -> None:
    value = WORDS.get(word, True)
    for call in (
        lambda: sds.sample(mixture, "euler", steps=3, **{word: value}),
        lambda: sds.sample(mixture, "euler", **{word: value}),
        lambda: sds.log_likelihood(mixture, torch.zeros(1, 2), "heun", steps=3, **{word: value}),
    ):
        with pytest.raises(
            sds.UnknownNameError, match=f"has no option '{word}' .*; the equivalent of diffusers' {word} is "
        ) as caught:
            call()
        assert HERE[word] in str(caught.value)


@pytest.mark.parametrize(("word", "name"), IN_SPACE.items())
def test_what_it_says_runs(mixture: sds.MixtureModel, word: str, name: str) -> None:
    assert HERE[word] == f'spacing="{name}"'
    assert sds.sample(mixture, "euler", steps=3, spacing=name).recipe.spacing == name


def test_what_a_sampler_has_it_takes(mixture: sds.MixtureModel) -> None:
    assert sds.sample(mixture, "ddim", steps=3, eta=0.5).recipe.options["eta"] == 0.5


def test_the_words_of_the_common_schedulers_are_known() -> None:
    """From diffusers' signatures, so that a new argument is seen."""
    kinds = ("DDIM", "DDPM", "PNDM", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "DPMSolverMultistep")
    for kind in (*kinds, "LMSDiscrete", "FlowMatchEulerDiscrete"):
        for word in inspect.signature(getattr(diffusers, f"{kind}Scheduler").__init__).parameters:
            assert word in HERE or word in OTHERS, (kind, word)


OTHERS = {"self", "timestep_type", "skip_prk_steps", "lambda_min_clipped", "base_image_seq_len", "max_image_seq_len"}
"""Of no use to anybody who samples with a model that is loaded: what they say is read from its configuration."""
OTHERS |= {"use_karras_sigmas"}


def test_the_command_line_says_it_too() -> None:
    run = CliRunner().invoke(cli, ["sample", "fashion-mnist", "--steps", "3", "-o", "use_karras_sigmas=True"])
    assert """the equivalent of diffusers' use_karras_sigmas is spacing="karras\"""" in str(run.exception)


def test_the_help_names_a_module_that_runs() -> None:
    import importlib.util

    text = " ".join(CliRunner().invoke(cli, ["sample", "--help"]).output.split())
    module = text.split("accelerate launch -m ")[1].split()[0]
    assert importlib.util.find_spec(f"{module}.__main__") is not None


def test_a_likelihood_of_too_few_steps_warns() -> None:
    model = sds.load("fashion-mnist")
    from sdesamplers.io.datasets import read_data

    x, _ = read_data("fashion-mnist-test", model, limit=2)
    with pytest.warns(UserWarning, match=r"does not solve the ODE here.*(bits per dimension|not finite)"):
        found = sds.log_likelihood(model, x, "euler", steps=2, dequantize="uniform")
    assert not found.bits_per_dim.mean() > 0


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("heun", r"the equivalent of diffusers' S_churn is the sampler \"churn\""),
        ("churn", r"did you mean 's_churn'"),
    ],
)
def test_the_capitals_of_karras_et_al_are_understood(mixture, sampler, message):
    with pytest.raises(sds.UnknownNameError, match=message):
        sds.sample(mixture, sampler, steps=3, S_churn=40)
