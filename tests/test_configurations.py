"""Scheduler configurations as published models have them: what is read of them, and that nothing is passed over."""

from __future__ import annotations

import diffusers
import pytest

import sdesamplers as sds
from sdesamplers.models.configuration import MakersGrid, completed, grid_of
from sdesamplers.models.conventions import convention_of


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
        ({"_class_name": "DDIMScheduler"}, MakersGrid("DDIMScheduler", spacing="leading", set_alpha_to_one=True)),
        (
            {"_class_name": "PNDMScheduler", "steps_offset": 1, "num_train_timesteps": 500},
            MakersGrid("PNDMScheduler", 500, "leading", 1, set_alpha_to_one=False),
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, "lambda_min_clipped": -5.1},
            MakersGrid("DPMSolverMultistepScheduler", spacing="linspace", sigmas="karras", lambda_min=-5.1),
        ),
        (
            {"_class_name": "EDMEulerScheduler", "sigma_schedule": "exponential", "final_sigmas_type": "sigma_min"},
            MakersGrid("EDMEulerScheduler", 1000, None, 0, "exponential", 7.0, 0.002, 80.0, "sigma_min"),
        ),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift_terminal": 0.1},
            MakersGrid("FlowMatchEulerDiscreteScheduler", shift_terminal=0.1),
        ),
        # words that another class has left behind
        (
            {"_class_name": "PNDMScheduler", "use_karras_sigmas": True},
            MakersGrid("PNDMScheduler", 1000, "leading", 0, set_alpha_to_one=False),
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
        ({"timestep_spacing": "trailling"}, "timestep_spacing must be 'linspace', 'leading', 'trailing'"),
        ({"final_sigmas_type": "one"}, "final_sigmas_type must be 'zero', 'sigma_min'"),
    ],
)
def test_a_grid_that_means_nothing_is_refused(words, message):
    with pytest.raises(sds.ModelError, match=message):
        convention_of({"_class_name": "EulerDiscreteScheduler", **words})
