"""What a network's answer means: x0 by diffusers' own scheduler and by ours, for every scheduler class of diffusers."""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from sdesamplers.errors import ModelError
from sdesamplers.pretrained.conventions import REFUSED, Convention, convention_of
from sdesamplers.processes.predictions import convert
from sdesamplers.processes.table import DiscreteVP

SHAPE = (2, 3, 4, 4)
STEPS = 6
Clean = Callable[[Any, int, torch.Tensor, torch.Tensor], torch.Tensor]
"""(scheduler, index, network's output, sample) -> x0."""


def estimated(scheduler: Any, index: int, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """What the scheduler's step says of x0."""
    return scheduler.step(output, scheduler.timesteps[index], sample).pred_original_sample  # type: ignore[no-any-return]


def denoised(scheduler: Any, index: int, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """The second of a step's answers."""
    return scheduler.step(output, scheduler.timesteps[index], sample, return_dict=False)[1]  # type: ignore[no-any-return]


def of_video(scheduler: Any, index: int, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """CogVideoX's DPM solver, which is told its last estimate."""
    t = scheduler.timesteps[index]
    return scheduler.step(output, None, t, None, sample, return_dict=False)[1]  # type: ignore[no-any-return]


def converted(scheduler: Any, index: int, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """The data prediction of a DPM-Solver."""
    scheduler._init_step_index(scheduler.timesteps[index])
    return scheduler.convert_model_output(output, sample=sample)  # type: ignore[no-any-return]


def from_noise(scheduler: Any, index: int, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """x0 of a noise prediction."""
    noise = converted(scheduler, index, output, sample)
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[index])
    return (sample - sigma * noise) / alpha  # type: ignore[no-any-return]


def last_step(scheduler: Any, index: int, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """Where a step of first order to the clean end arrives."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(len(scheduler.timesteps) - 1)
    return scheduler.step(output, scheduler.timesteps[-1], sample).prev_sample  # type: ignore[no-any-return]


def pndm(scheduler: Any, index: int, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """PNDM's transfer to before the first timestep."""
    return scheduler._get_prev_sample(sample, scheduler.timesteps[index], -1, output)  # type: ignore[no-any-return]


def tcd(scheduler: Any, index: int, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """x0 from the state at timestep 0 that TCD predicts, which lies on the same ray of x0 and noise."""
    t = scheduler.timesteps[index]
    ahead = scheduler.step(output, t, sample, eta=1.0, return_dict=False)[1]
    alpha, alpha_0 = scheduler.alphas_cumprod[t] ** 0.5, scheduler.alphas_cumprod[0] ** 0.5
    sigma, sigma_0 = (1 - alpha**2) ** 0.5, (1 - alpha_0**2) ** 0.5
    return (ahead * sigma - sample * sigma_0) / (alpha_0 * sigma - alpha * sigma_0)  # type: ignore[no-any-return]


def repaint(scheduler: Any, index: int, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """RePaint, with nothing that is known."""
    nothing = torch.zeros_like(sample)
    t = scheduler.timesteps[index]
    return scheduler.step(output, t, sample, nothing, nothing).pred_original_sample  # type: ignore[no-any-return]


def score_ve(scheduler: Any, index: int, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """The mean of a step from the smallest sigma to 0."""
    scheduler.set_sigmas(STEPS)
    return scheduler.step_pred(output, scheduler.timesteps[-1], sample).prev_sample_mean  # type: ignore[no-any-return]


WAYS: dict[str, Clean] = {
    "CMStochasticIterativeScheduler": last_step,
    "CogVideoXDDIMScheduler": estimated,
    "CogVideoXDPMScheduler": of_video,
    "DDIMParallelScheduler": estimated,
    "DDIMScheduler": estimated,
    "DDPMParallelScheduler": estimated,
    "DDPMScheduler": estimated,
    "DEISMultistepScheduler": from_noise,
    "DPMSolverMultistepInverseScheduler": converted,
    "DPMSolverMultistepScheduler": converted,
    "DPMSolverSinglestepScheduler": converted,
    "EDMDPMSolverMultistepScheduler": converted,
    "EDMEulerScheduler": estimated,
    "EulerAncestralDiscreteScheduler": estimated,
    "EulerDiscreteScheduler": estimated,
    "FlowMatchEulerDiscreteScheduler": last_step,
    "FlowMatchHeunDiscreteScheduler": last_step,
    "FlowMatchLCMScheduler": last_step,
    "HeunDiscreteScheduler": estimated,
    "IPNDMScheduler": last_step,
    "KDPM2AncestralDiscreteScheduler": estimated,
    "KDPM2DiscreteScheduler": estimated,
    "LCMScheduler": denoised,
    "LMSDiscreteScheduler": estimated,
    "LTXEulerAncestralRFScheduler": last_step,
    "PNDMScheduler": pndm,
    "RePaintScheduler": repaint,
    "SASolverScheduler": converted,
    "SCMScheduler": denoised,
    "ScoreSdeVeScheduler": score_ve,
    "TCDScheduler": tcd,
    "UnCLIPScheduler": estimated,
    "UniPCMultistepScheduler": converted,
}

TABLE_ALONE = {"DDIMInverseScheduler"}
"""It reads x0 at another timestep than the network is told, so only its table can be compared."""

LARGE: dict[str, Any] = {
    "clip_sample": False,
    "clip_denoised": False,
    "thresholding": False,
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "set_alpha_to_one": True,
    "sampling_eps": 1e-9,
}
"""Options that keep x0 as the network gives it, and timesteps whole."""

FLOWS = (
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
)
SHIFTED = "FlowMatchEulerDiscreteScheduler"
NO_SAMPLE = {
    "EDMDPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
}
"""Schedulers that name the prediction type "sample" and do not have it."""


def classes() -> list[str]:
    """Every scheduler class of diffusers that can be imported here."""
    found = []
    for name in [each for each in dir(diffusers) if "Scheduler" in each]:  # others are pipelines, which take long
        try:
            value = getattr(diffusers, name)
        except (ImportError, RuntimeError, ModuleNotFoundError):
            continue
        if isinstance(value, type) and issubclass(value, diffusers.SchedulerMixin) and name != "SchedulerMixin":
            found.append(name)
    return sorted(found)


def accepted() -> list[str]:
    """Those that have a convention."""
    names = []
    for name in classes():
        try:
            convention_of({"_class_name": name})
        except ModelError:
            continue
        names.append(name)
    return names


def cases() -> list[Any]:
    """Classes with each of the prediction types that they know, and what else changes a convention."""
    out = []
    for name in sorted(WAYS):
        source = inspect.getsource(getattr(diffusers, name))
        kinds = [kind for kind in ("epsilon", "v_prediction", "sample") if f'"{kind}"' in source]
        if "prediction_type" not in inspect.signature(getattr(diffusers, name).__init__).parameters:
            kinds = []
        if name in NO_SAMPLE:
            kinds.remove("sample")
        for kind in kinds:
            long = name.startswith("KDPM2") and kind != "epsilon"  # which lay out all training steps, one by one
            marks = [pytest.mark.slow] if long else []
            out.append(pytest.param(name, {"prediction_type": kind}, id=f"{name}-{kind}", marks=marks))
        if not kinds:
            out.append(pytest.param(name, {}, id=name))
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    out += [pytest.param(name, flow, id=f"{name}-flow") for name in FLOWS]
    out += [
        pytest.param(SHIFTED, {"shift": 3.0}, id="shifted"),
        pytest.param(SHIFTED, {"invert_sigmas": True}, id="reversed"),
        pytest.param(
            "EulerDiscreteScheduler",
            {"prediction_type": "v_prediction", "timestep_type": "continuous", "sigma_min": 0.002, "sigma_max": 700.0},
            id="continuous",
        ),
        pytest.param(
            "DDIMScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, id="zero-snr"
        ),
        pytest.param("EDMEulerScheduler", {"sigma_data": 1.3, "prediction_type": "epsilon"}, id="sigma-data"),
    ]
    return out


def configured(name: str, options: dict[str, Any]) -> Any:
    """A scheduler that keeps x0 as the network gives it."""
    cls = getattr(diffusers, name)
    known = inspect.signature(cls.__init__).parameters
    kept = {key: value for key, value in LARGE.items() if key in known}
    if "sigma_min" in options or name == "CMStochasticIterativeScheduler":
        kept["sigma_min"] = options.get("sigma_min", 0.5)
    if name == "ScoreSdeVeScheduler":
        kept["sigma_min"] = 0.7
    scheduler = cls(**{**kept, **options})
    scheduler.set_timesteps(STEPS, **({"intermediate_timesteps": None} if name == "SCMScheduler" else {}))
    return scheduler


def time_of(convention: Convention, scheduler: Any, index: int) -> float:
    """The process's time of a step."""
    if getattr(scheduler.config, "use_flow_sigmas", False):  # their timesteps are cut to whole numbers
        t = float(scheduler.sigmas[index])
        assert 0 <= float(convention.timestep(t)) - float(scheduler.timesteps[index]) < 1
        return t
    told = scheduler.sigmas[index] if type(scheduler).__name__ == "ScoreSdeVeScheduler" else scheduler.timesteps[index]
    return float(convention.time(float(told)))


@pytest.mark.parametrize(("name", "options"), cases())
def test_x0_is_the_schedulers(name: str, options: dict[str, Any]) -> None:
    scheduler = configured(name, options)
    unasked = copy.deepcopy(scheduler)
    way = WAYS[name]
    index = -1 if way in (last_step, score_ve) else 2
    convention = convention_of({**scheduler.config, "_class_name": name})
    t = time_of(convention, scheduler, index)
    generator = torch.Generator().manual_seed(0)
    output, noise, clean = torch.randn(3, *SHAPE, generator=generator)
    sample = clean + 2 * noise
    state = sample
    if name != "ScoreSdeVeScheduler" and hasattr(scheduler, "scale_model_input"):
        given = scheduler.scale_model_input(sample, scheduler.timesteps[index])
        state = given if isinstance(convention.process, DiscreteVP) else sample
        torch.testing.assert_close(convention.scale_input(state, t), given, rtol=1e-5, atol=1e-6)
        scheduler = unasked
    expected = way(scheduler, index, output, sample)
    raw = convention.read(output, state, t)
    found = convert(raw, convention.prediction, "sample", state, convention.process, t)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    times = np.full(len(state), t)
    torch.testing.assert_close(convention.read(output, state, times), raw, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        convention.scale_input(state, times), convention.scale_input(state, t), rtol=1e-5, atol=0
    )


def test_every_scheduler_of_diffusers_is_compared_or_refused() -> None:
    assert set(accepted()) == set(WAYS) | TABLE_ALONE
    assert set(REFUSED) & set(classes())


@pytest.mark.parametrize("name", [*TABLE_ALONE, "DDIMScheduler", "UniPCMultistepScheduler"])
def test_tables_are_the_schedulers(name: str) -> None:
    scheduler = getattr(diffusers, name)(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    convention = convention_of({**scheduler.config, "_class_name": name})
    steps = np.arange(1000.0)
    np.testing.assert_allclose(convention.process.alpha(steps), scheduler.alphas_cumprod.double().sqrt(), rtol=1e-6)


@pytest.fixture
def needs_torchsde(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Import a scheduler class that draws its noise with torchsde, which is not installed, without the drawing."""
    monkeypatch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))
    for module in ("scheduling_dpmsolver_sde", "scheduling_cosine_dpmsolver_multistep"):
        # Taken out again afterwards, with its parent's attribute, which an import sets.
        monkeypatch.delitem(sys.modules, f"diffusers.schedulers.{module}", raising=False)

    def find(module: str) -> Any:
        return importlib.import_module(f"diffusers.schedulers.{module}")

    return find


def test_stable_audios_scheduler(needs_torchsde: Callable[[str], Any]) -> None:
    module = needs_torchsde("scheduling_cosine_dpmsolver_multistep")
    scheduler = module.CosineDPMSolverMultistepScheduler()
    scheduler.set_timesteps(STEPS)
    convention = convention_of({**scheduler.config, "_class_name": "CosineDPMSolverMultistepScheduler"})
    output, sample = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    for index in range(STEPS):
        t = float(convention.time(float(scheduler.timesteps[index])))
        assert t == pytest.approx(float(scheduler.sigmas[index]), rel=1e-4)
        torch.testing.assert_close(convention.read(output, sample, t), converted(scheduler, index, output, sample))
        given = scheduler.precondition_inputs(sample, t)
        torch.testing.assert_close(convention.scale_input(sample, t), given)
        scheduler.set_timesteps(STEPS)


def test_a_scheduler_that_needs_torchsde_for_its_noise_alone(needs_torchsde: Callable[[str], Any]) -> None:
    module = needs_torchsde("scheduling_dpmsolver_sde")
    scheduler = module.DPMSolverSDEScheduler(beta_start=0.001, beta_end=0.01, prediction_type="v_prediction")
    convention = convention_of({**scheduler.config, "_class_name": "DPMSolverSDEScheduler"})
    assert convention.prediction == "v"
    alphas = convention.process.alpha(np.arange(1000.0))
    np.testing.assert_allclose(alphas, scheduler.alphas_cumprod.double().sqrt(), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refusals_say_why(name: str) -> None:
    with pytest.raises(ModelError, match="are not supported"):
        convention_of({"_class_name": name})
