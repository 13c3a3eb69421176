"""diffusers: its schedulers, called as its pipelines do, with their own grids and options."""

from __future__ import annotations

import functools
import inspect
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import diffusers
from torch import Tensor

from . import Problem, Setting

LIBRARY = "diffusers"
VERSION = diffusers.__version__

SPACINGS: tuple[dict[str, Any], ...] = (
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "leading"},
    {"timestep_spacing": "trailing"},
)
SIGMAS: tuple[dict[str, Any], ...] = (
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
)
LAMBDAS: tuple[dict[str, Any], ...] = ({"use_lu_lambdas": True},)
GRIDS = SPACINGS + SIGMAS
ENDS: tuple[dict[str, Any], ...] = ({}, {"final_sigmas_type": "sigma_min"})
FINAL_ORDER: tuple[dict[str, Any], ...] = ({"lower_order_final": True}, {"lower_order_final": False})


def grid(**axes: Any) -> Iterator[dict[str, Any]]:
    """Every combination of options; an axis is a tuple of values, or of dicts of options."""
    names = list(axes)
    for values in itertools.product(*axes.values()):
        merged: dict[str, Any] = {}
        for name, value in zip(names, values, strict=True):
            merged.update(value if isinstance(value, dict) else {name: value})
        yield merged


def configurations() -> Iterator[tuple[str, dict[str, Any]]]:
    """The scheduler classes and options to run."""
    for options in grid(spacing=SPACINGS, set_alpha_to_one=(True, False)):
        yield "DDIMScheduler", {**options, "clip_sample": False}
    for options in grid(spacing=SPACINGS, skip_prk_steps=(True, False), set_alpha_to_one=(True, False)):
        yield "PNDMScheduler", options
    for options in grid(
        algorithm_type=("dpmsolver++", "dpmsolver"),
        solver=({"solver_order": 2}, {"solver_order": 2, "solver_type": "heun"}, {"solver_order": 3}),
        spacing=GRIDS + LAMBDAS,
        final=({}, {"euler_at_final": True}, {"lower_order_final": False}),
        end=ENDS,
    ):
        yield "DPMSolverMultistepScheduler", options
    for options in grid(
        algorithm_type=("dpmsolver++", "dpmsolver"),
        solver=({"solver_order": 2}, {"solver_order": 2, "solver_type": "heun"}, {"solver_order": 3}),
        spacing=({}, *SIGMAS),
        final=FINAL_ORDER,
        end=ENDS,
    ):
        yield "DPMSolverSinglestepScheduler", options
    for options in grid(
        solver_order=(1, 2, 3, 4),
        solver_type=("bh1", "bh2"),
        predict_x0=(True, False),
        spacing=GRIDS,
        final=FINAL_ORDER,
        end=ENDS,
    ):
        yield "UniPCMultistepScheduler", options
    for options in grid(solver_order=(2, 3), spacing=GRIDS, final=FINAL_ORDER):
        yield "DEISMultistepScheduler", options
    for options in grid(
        predictor_order=(2, 3),
        corrector_order=(2, 3, 4),
        algorithm_type=("data_prediction", "noise_prediction"),
        spacing=GRIDS,
        final=FINAL_ORDER,
    ):
        yield "SASolverScheduler", {**options, "tau_func": no_noise}
    for options in grid(spacing=GRIDS):
        yield "HeunDiscreteScheduler", options
        yield "KDPM2DiscreteScheduler", options
        yield "LMSDiscreteScheduler", options
    for options in grid(spacing=GRIDS, end=({}, {"timestep_type": "continuous"}), last=ENDS):
        yield "EulerDiscreteScheduler", options


def no_noise(t: Any) -> float:
    """tau = 0, with which SA-Solver solves the ODE."""
    return 0.0


def label(name: str, options: dict[str, Any]) -> str:
    """The class and the options that differ from its defaults."""
    defaults = inspect.signature(getattr(diffusers, name)).parameters
    parts = [name.removesuffix("Scheduler")]
    for key, value in options.items():
        if key == "tau_func":
            parts.append("tau=0")
        elif key in ("clip_sample",) or (key != "timestep_spacing" and defaults[key].default == value):
            continue
        elif key == "timestep_spacing":
            parts.append(str(value))
        elif value is True:
            parts.append(key.removeprefix("use_"))
        else:
            parts.append(f"{key}={value}")
    return " ".join(parts)


def run(name: str, options: dict[str, Any], problem: Problem, steps: int) -> Tensor:
    """Run the loop of a pipeline: scale_model_input, model, step."""
    table = problem.process.alphas_cumprod
    config = {"num_train_timesteps": len(table), "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    scheduler = getattr(diffusers, name)(**config, **options)
    scheduler.set_timesteps(steps)
    x = problem.start
    # An initial sigma well above 1 means that the scheduler's state is x / alpha.
    if float(scheduler.init_noise_sigma) > 2:
        x = x * (1 + float(scheduler.sigmas.max()) ** 2) ** 0.5
    for t in scheduler.timesteps:
        output = problem.eps(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x).prev_sample
    return x


def settings() -> list[Setting]:
    """Settings for every configuration."""
    warnings.filterwarnings("ignore", module="diffusers.*")
    diffusers.utils.logging.set_verbosity_error()
    made: dict[str, Setting] = {}
    for name, options in configurations():
        title = label(name, options)
        call = functools.partial(run, name, options)
        made.setdefault(title, Setting(LIBRARY, title, call, name.removesuffix("Scheduler")))
    return list(made.values())
