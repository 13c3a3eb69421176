"""How every parameter of every supported diffusers scheduler is treated, in one table.

Rows are keyed by parameter name, since a name has the same meaning in all classes; `IN_CLASS` has the exceptions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..checks import shown


@dataclass(frozen=True)
class Key:
    """The row of a parameter.

    Attributes:
        role: "model" (part of the process, the prediction or the network's inputs), "clip" (bounds x0), "grid" (the
            default grid), "solver" (selects diffusers' sampler, which one of ours replaces), "unused" (no effect here)
            or "refused" (supported only at its default).
        why: its effect here, or why it has none, or why it is refused.
        write: the equivalent here, for solver parameters and for parameters that a model's own class does not have.
    """

    role: str
    why: str
    write: str = ""


KEYS: dict[str, Key] = {
    # the model
    "num_train_timesteps": Key("model", "the length of the noise schedule; for flows, the network time at t = 1"),
    "beta_start": Key("model", "the noise schedule, as its class computes it"),
    "beta_end": Key("model", "the noise schedule, as its class computes it"),
    "beta_schedule": Key("model", "the noise schedule, as its class computes it"),
    "trained_betas": Key("model", "the noise schedule itself"),
    "rescale_betas_zero_snr": Key("model", "the noise schedule, as its class computes it", "load(..., zero_snr=True)"),
    "snr_shift_scale": Key("model", "the noise schedule, as CogVideoX's classes compute it"),
    "prediction_type": Key("model", "what the network predicts"),
    "timestep_type": Key("model", "'continuous' with v prediction means an EDM-preconditioned network"),
    "sigma_data": Key("model", "sigma_data of the preconditioning, or of TrigFlow"),
    "sigma_min": Key("model", "the smallest sigma of EDM and VE processes", "spacing_options={'sigma_min': ...}"),
    "sigma_max": Key("model", "the largest sigma of EDM and VE processes", "start_time=... or sigmas=[...]"),
    "shift": Key("model", "the shift of a flow's time", "spacing='flow-shift', spacing_options={'shift': ...}"),
    "flow_shift": Key("model", "the shift of a flow's time", "spacing='flow-shift', spacing_options={'shift': ...}"),
    "use_flow_sigmas": Key("model", "the process is a rectified flow"),
    "use_dynamic_shifting": Key("model", "the flow's shift depends on the resolution (mu)"),
    "time_shift_type": Key("model", "the shift is e^mu or mu"),
    "invert_sigmas": Key("model", "the network time runs from noise, at 0, to data"),
    "base_shift": Key("model", "a coefficient of mu(resolution); read by from_pipeline and by pipelines"),
    "max_shift": Key("model", "a coefficient of mu(resolution); read by from_pipeline and by pipelines"),
    "base_image_seq_len": Key("model", "a coefficient of mu(resolution); read by from_pipeline and by pipelines"),
    "max_image_seq_len": Key("model", "a coefficient of mu(resolution); read by from_pipeline and by pipelines"),
    # x0
    "clip_sample": Key("clip", "x0 is clipped", "clip=True"),
    "clip_sample_range": Key("clip", "the bound b: x0 is clipped to [-b, b]", "clip=..., the bound"),
    "clip_denoised": Key("clip", "x0 is clipped to [-1, 1]", "clip=True"),
    "thresholding": Key("clip", "dynamic thresholding of x0", "clip=sds.Clip(percentile=0.995)"),
    "dynamic_thresholding_ratio": Key(
        "clip", "the percentile of dynamic thresholding", "clip=sds.Clip(percentile=...)"
    ),
    "sample_max_value": Key("clip", "the upper limit of the threshold s", "clip=sds.Clip(percentile=..., most=...)"),
    # the grid
    "timestep_spacing": Key("grid", "the spacing: linspace, leading or trailing", "spacing=..., with the same name"),
    "steps_offset": Key(
        "grid", "an offset added to leading timesteps", "spacing='leading', spacing_options={'offset': ...}"
    ),
    "set_alpha_to_one": Key("grid", "True if the last step ends at alpha = 1", "final='zero' or final='min'"),
    "final_sigmas_type": Key("grid", "the noise level after the last step", "final='zero' or final='min'"),
    "use_karras_sigmas": Key("grid", "the Karras grid", "spacing='karras'"),
    "use_exponential_sigmas": Key("grid", "a grid uniform in log sigma", "spacing='exponential'"),
    "use_beta_sigmas": Key("grid", "a grid at quantiles of a beta distribution", "spacing='beta'"),
    "use_lu_lambdas": Key("grid", "a grid uniform in log(alpha/sigma)", "spacing='logsnr'"),
    "sigma_schedule": Key("grid", "the sigma grid, karras or exponential", "spacing=..., with the same name"),
    "rho": Key("grid", "the exponent of the Karras grid", "spacing='karras', spacing_options={'rho': ...}"),
    "lambda_min_clipped": Key("grid", "a limit on the start of the grid", "start_time=... or sigmas=[...]"),
    "shift_terminal": Key("grid", "the time, above 0, at which a flow's grid ends", "sigmas=[...]"),
    # the solver, in place of which the chosen sampler of this library runs
    "algorithm_type": Key(
        "solver",
        "selects a member of a family of solvers",
        "the sampler's name: 'dpmpp-2m' for dpmsolver++, 'dpmpp-2m-sde' for sde-dpmsolver++, 'dpm-solver-2m' for "
        "dpmsolver, 'deis' for deis, 'sa-solver' for SA-Solver's",
    ),
    "solver_order": Key("solver", "the method's order", "the sampler's name, such as 'dpmpp-3m', or its order"),
    "solver_type": Key("solver", "a variant of the method", "the sampler's name, such as 'dpmpp-2m'"),
    "solver_p": Key("solver", "a solver of another class as UniPC's predictor", "the sampler's name, such as 'unic'"),
    "predict_x0": Key(
        "solver", "True if UniPC runs on x0, False if it runs on epsilon", "sampler 'unipc' with prediction=..."
    ),
    "disable_corrector": Key("solver", "the steps that UniPC does not correct", "sampler 'unip', which never corrects"),
    "predictor_order": Key(
        "solver", "the order of SA-Solver's predictor", "sampler 'sa-solver' with predictor_order=..."
    ),
    "corrector_order": Key(
        "solver", "the order of SA-Solver's corrector", "sampler 'sa-solver' with corrector_order=..."
    ),
    "tau_func": Key("solver", "the amount of noise of SA-Solver", "sampler 'sa-solver' with tau=..."),
    "skip_prk_steps": Key(
        "solver", "False if PNDM starts with Runge-Kutta steps", "sampler 'plms' (skips them) or 'pndm'"
    ),
    "lower_order_final": Key("solver", "a lower order in the last steps", "the sampler's option lower_order_final"),
    "euler_at_final": Key(
        "solver", "first order in the last step; here each sampler steps to sigma = 0 as its method allows"
    ),
    "eta": Key("solver", "the share of noise", "the sampler's option eta"),
    "s_noise": Key("solver", "a factor on the noise", "the sampler's option s_noise, if it has one"),
    "snr": Key(
        "solver", "the signal-to-noise ratio of the Langevin corrector", "sampler 'predictor-corrector' with snr=..."
    ),
    "correct_steps": Key(
        "solver",
        "the number of Langevin steps per noise level",
        "sampler 'predictor-corrector' with corrector_steps=...",
    ),
    "stochastic_sampling": Key("solver", "True if flow Euler draws new noise at each step", "sampler 'lcm'"),
    "noise_sampler_seed": Key("solver", "the seed of the solver's noise", "seed=..."),
    "original_inference_steps": Key("solver", "the length of the teacher's grid, of which LCM and TCD use a subset"),
    # no effect here
    "variance_type": Key(
        "unused", "the variance of a DDPM step follows from the grid; learned variances are removed from the output"
    ),
    "interpolation_type": Key(
        "unused", "sigma between timesteps; here the noise schedule has one smooth interpolation for all samplers"
    ),
    "timestep_scaling": Key(
        "unused", "of LCM's boundary condition c_skip = 1/4 / ((10 t)^2 + 1/4), which is below 1e-5 from timestep 16 on"
    ),
    "sampling_eps": Key("unused", "the end of score-SDE's times; its network receives sigma, down to sigma_min"),
    "upscale_mode": Key("unused", "applies to `scale_factors`, which are refused"),
    "kwargs": Key("unused", "deprecated parameters of diffusers"),
    # supported only at their defaults
    "scale_factors": Key("refused", "one run passes through several resolutions"),
}

IN_CLASS: dict[tuple[str, str], Key] = {
    **{
        (kind, key): Key("unused", "the step of this class never clips")
        for kind in ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "TCDScheduler")
        for key in ("clip_sample", "clip_sample_range")
    },
    **{
        ("TCDScheduler", key): Key("unused", "the step of this class never clips")
        for key in ("thresholding", "dynamic_thresholding_ratio", "sample_max_value")
    },
    **{
        (kind, "sample_max_value"): Key("unused", "a parameter of `thresholding`, which this class does not have")
        for kind in ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
    },
    ("UniPCMultistepScheduler", "sigma_min"): Key("grid", "the last sigma of a Karras or other sigma grid"),
    ("UniPCMultistepScheduler", "sigma_max"): Key("grid", "the first sigma of a Karras or other sigma grid"),
    ("EulerDiscreteScheduler", "sigma_min"): Key("grid", "the last sigma of a Karras grid or of continuous times"),
    ("EulerDiscreteScheduler", "sigma_max"): Key("grid", "the first sigma of a Karras grid or of continuous times"),
    ("IPNDMScheduler", "trained_betas"): Key("refused", "its network receives the angle of alpha and sigma"),
    ("IPNDMScheduler", "num_train_timesteps"): Key("unused", "the network receives an angle, not a timestep"),
    ("SCMScheduler", "num_train_timesteps"): Key("unused", "the network receives an angle, not a timestep"),
    ("SCMScheduler", "prediction_type"): Key("refused", "its networks predict TrigFlow's v ('trigflow')"),
    ("ScoreSdeVeScheduler", "num_train_timesteps"): Key("unused", "the network receives sigma, not a timestep"),
    **{
        (kind, "num_train_timesteps"): Key("unused", "the network receives log sigma or an angle, no timestep")
        for kind in (
            "CMStochasticIterativeScheduler",
            "CosineDPMSolverMultistepScheduler",
            "EDMDPMSolverMultistepScheduler",
            "EDMEulerScheduler",
        )
    },
}
"""Parameters with a different role in one class."""


def key_of(kind: str, name: str) -> Key | None:
    """Return the row of a parameter of a scheduler class; None if there is none."""
    return IN_CLASS.get((kind, name), KEYS.get(name))


def refused_keys(kind: str, config: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """Return a message for each "refused" parameter that a configuration sets to a value other than its default."""
    found = []
    for name, value in config.items():
        row = key_of(kind, name) if name in defaults else None
        if row is not None and row.role == "refused" and value != defaults[name] and value is not None:
            found.append(f"{name}={shown(value)} is not supported: {row.why}")
    return found
