"""Every parameter of every diffusers scheduler: honoured, refused, or listed with the reason why it does not matter."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import sdesamplers as sds
from sdesamplers.pretrained.configuration import WITHOUT_TORCHSDE, defaults_of
from sdesamplers.pretrained.conventions import REFUSED, convention_of, with_shift
from sdesamplers.pretrained.pipelines.base import mu_for
from sdesamplers.pretrained.scheduler_keys import IN_CLASS, KEYS, key_of

NO_TABLE = ("MiniMaxH3Scheduler", "PiflowScheduler", "RFD4ProteinaScheduler")
"""Refused by name, since they have neither a table nor a convention."""


def supported() -> list[str]:
    """The scheduler classes that diffusers has and that are not refused."""
    names = [name for name in dir(diffusers) if name.endswith("Scheduler") and name not in (*REFUSED, *NO_TABLE)]
    return sorted(
        {*WITHOUT_TORCHSDE, *(n for n in names if issubclass(getattr(diffusers, n), diffusers.SchedulerMixin))}
    )


def parameters(kind: str) -> set[str]:
    """Parameters of a class's constructor, by diffusers itself."""
    if kind in WITHOUT_TORCHSDE:
        return set(in_source(kind))
    return set(inspect.signature(getattr(diffusers, kind).__init__).parameters) - {"self"}


def in_source(kind: str) -> dict[str, Any]:
    """A constructor's parameters and defaults, read without importing what the class needs."""
    for file in (Path(diffusers.__file__).parent / "schedulers").glob("scheduling_*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name == kind:
                init = next(f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__")
                values = [ast.literal_eval(value) for value in init.args.defaults]
                return dict(zip([a.arg for a in init.args.args[1:]], values, strict=True))
    raise AssertionError(kind)


PAIRS = [(kind, word) for kind in supported() for word in sorted(parameters(kind))]


def test_every_parameter_has_a_row():
    """A parameter that diffusers adds fails here, until somebody says what becomes of it."""
    assert len(PAIRS) > 350
    assert [pair for pair in PAIRS if key_of(*pair) is None] == []
    assert {key_of(*pair).role for pair in PAIRS} == {"model", "clip", "grid", "solver", "unused", "refused"}


def test_rows_that_nothing_needs_any_more_are_taken_out():
    assert set(KEYS) - {word for _, word in PAIRS} == set()
    assert set(IN_CLASS) - set(PAIRS) == set()


@pytest.mark.parametrize("kind", sorted(WITHOUT_TORCHSDE))
def test_the_defaults_of_classes_that_diffusers_hides_are_its_own(kind):
    assert WITHOUT_TORCHSDE[kind] == in_source(kind)


OTHER: dict[str, Any] = {
    "num_train_timesteps": 500,
    "beta_start": 3e-4,
    "beta_end": 0.017,
    "beta_schedule": "squaredcos_cap_v2",
    "trained_betas": np.linspace(1e-3, 0.03, 40).tolist(),
    "prediction_type": "v_prediction",
    "shift": 2.5,
    "timestep_type": "continuous",
    "sigma_data": 0.8,
    "sigma_min": 0.07,
    "sigma_max": 31.0,
    "flow_shift": 2.5,
    "time_shift_type": "linear",
    "snr_shift_scale": 2.0,
    "base_shift": 0.7,
    "max_shift": 2.0,
    "base_image_seq_len": 512,
    "max_image_seq_len": 8192,
    "clip_sample_range": 2.0,
    "sample_max_value": 3.0,
    "dynamic_thresholding_ratio": 0.9,
    "timestep_spacing": "trailing",
    "steps_offset": 3,
    "rho": 5.0,
    "final_sigmas_type": "sigma_min",
    "sigma_schedule": "exponential",
    "lambda_min_clipped": -4.0,
    "shift_terminal": 0.2,
    "algorithm_type": "sde-dpmsolver++",
    "solver_order": 3,
    "solver_type": "heun",
    "disable_corrector": [1],
    "predictor_order": 3,
    "corrector_order": 1,
    "eta": 0.25,
    "s_noise": 1.1,
    "snr": 0.2,
    "correct_steps": 2,
    "noise_sampler_seed": 3,
    "original_inference_steps": 20,
    "variance_type": "learned_range",
    "interpolation_type": "log_linear",
    "timestep_scaling": 5.0,
    "sampling_eps": 1e-4,
    "upscale_mode": "nearest",
    "scale_factors": [1.0, 2.0],
}
"""Values beside the defaults; flags are turned over."""

BESIDE: dict[str, dict[str, Any]] = {
    "clip_sample_range": {"clip_sample": True},
    "dynamic_thresholding_ratio": {"thresholding": True},
    "sample_max_value": {"thresholding": True},
    "flow_shift": {"use_flow_sigmas": True},
    "shift_terminal": {"use_flow_sigmas": True},
    "timestep_type": {"prediction_type": "v_prediction"},
    **{word: {"use_dynamic_shifting": True} for word in ("base_shift", "max_shift")},
    **{word: {"use_dynamic_shifting": True} for word in ("base_image_seq_len", "max_image_seq_len")},
    "time_shift_type": {"use_dynamic_shifting": True, "use_flow_sigmas": True},
    "use_dynamic_shifting": {"use_flow_sigmas": True},
}
"""What a word needs to matter."""


def other(kind: str, word: str) -> Any:
    """A value that is not the class's default."""
    default = defaults_of(kind).get(word)
    if kind == "UnCLIPScheduler" and word == "beta_schedule":
        return "linear"
    if kind == "SASolverScheduler" and word == "algorithm_type":
        return "noise_prediction"
    value = (not default) if isinstance(default, bool) else OTHER.get(word, 0.5)
    return {"v_prediction": "epsilon", "exponential": "karras"}[value] if value == default else value


def meaning(config: dict[str, Any]) -> list[Any]:
    """All that a configuration decides: process, what the network is told and given, what it answers, x0, grid."""
    convention = convention_of(config)
    process = convention.process
    shifted = with_shift(convention, config, 0.7).process
    times = np.linspace(process.t_min, process.t_max, 7)
    x, out = torch.linspace(-1, 1, 8).view(2, 4), torch.linspace(2, 0, 8).view(2, 4)
    inner = float(times[3])
    assert convention.grid is not None
    grid = dataclasses.replace(convention.grid, train_steps=0)  # which the table or the network's times show
    facts: list[Any] = [type(process).__name__, convention.prediction, convention.clip, grid]
    facts += [np.round(f(times), 9).tolist() for f in (process.ratio, shifted.grid_process.ratio, convention.timestep)]
    facts += [f.tolist() for f in (convention.scale_input(x, inner), convention.read(out, x, inner))]
    return [*facts, mu_for(config, 1000) if config.get("use_dynamic_shifting") else None]


QUICK = ("DDIMScheduler", "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "DPMSolverMultistepScheduler")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in QUICK else [pytest.mark.slow]) for kind in supported()]
)
def test_words_change_what_their_rows_say(kind):
    """Words of the model, of x0 and of the grid change what a configuration means, and all others nothing."""
    for word in sorted(parameters(kind) - {"kwargs"}):
        beside = {k: v for k, v in BESIDE.get(word, {}).items() if k in parameters(kind)}
        plain = {"_class_name": kind, **beside}
        value, role = other(kind, word), key_of(kind, word).role
        if role == "refused":
            with pytest.raises(sds.ModelError, match=f"{kind}: {word}=.* is not supported: "):
                convention_of({**plain, word: value})
            continue
        try:
            changes = meaning({**plain, word: value}) != meaning(plain)
        except sds.ModelError as error:
            assert role in ("model", "solver"), (word, error)  # noqa: PT017
            continue
        assert changes == (role in ("model", "clip", "grid")), (word, value, role)
