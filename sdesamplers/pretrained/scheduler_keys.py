"""What becomes of every parameter of every diffusers scheduler that is supported: one table.

Its rows are by word, since diffusers' classes give a word one meaning; `IN_CLASS` has the exceptions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Key:
    """A parameter's row.

    Attributes:
        role: "model" (part of the process, of the prediction or of how the network is asked), "clip" (bounds x0),
            "grid" (the default grid), "solver" (which sampler, in place of which ours runs), "unused" (changes nothing
            here) or "refused" (supported at its default alone).
        why: what it becomes, or why it does not matter, or why it is refused.
        write: how to ask for it here, for solvers' words and for words that a model's own class does not have.
    """

    role: str
    why: str
    write: str = ""


KEYS: dict[str, Key] = {
    # the model
    "num_train_timesteps": Key("model", "the length of the table; for flows, what the network is told at t = 1"),
    "beta_start": Key("model", "the table, as its class computes it"),
    "beta_end": Key("model", "the table, as its class computes it"),
    "beta_schedule": Key("model", "the table, as its class computes it"),
    "trained_betas": Key("model", "the table itself"),
    "rescale_betas_zero_snr": Key("model", "the table, as its class computes it", "load(..., zero_snr=True)"),
    "snr_shift_scale": Key("model", "the table, as CogVideoX's classes compute it"),
    "prediction_type": Key("model", "what the network's answer means"),
    "timestep_type": Key("model", "'continuous' with v prediction is an EDM-preconditioned network"),
    "sigma_data": Key("model", "of the preconditioning, or of TrigFlow"),
    "sigma_min": Key("model", "the smallest sigma of EDM and VE processes", "spacing_options={'sigma_min': ...}"),
    "sigma_max": Key("model", "the largest sigma of EDM and VE processes", "start_time or sigmas of your own"),
    "shift": Key("model", "of a flow's time", "spacing='flow-shift', spacing_options={'shift': ...}"),
    "flow_shift": Key("model", "of a flow's time", "spacing='flow-shift', spacing_options={'shift': ...}"),
    "use_flow_sigmas": Key("model", "the process is a rectified flow"),
    "use_dynamic_shifting": Key("model", "the flow's shift follows from the resolution (mu)"),
    "time_shift_type": Key("model", "whether the shift is e^mu or mu"),
    "invert_sigmas": Key("model", "the network's time runs from noise at 0 to data"),
    "base_shift": Key("model", "of the law from resolution to mu: from_pipeline, and pipelines, read it"),
    "max_shift": Key("model", "of the law from resolution to mu: from_pipeline, and pipelines, read it"),
    "base_image_seq_len": Key("model", "of the law from resolution to mu: from_pipeline, and pipelines, read it"),
    "max_image_seq_len": Key("model", "of the law from resolution to mu: from_pipeline, and pipelines, read it"),
    # x0
    "clip_sample": Key("clip", "x0 is clipped", "clip=True"),
    "clip_sample_range": Key("clip", "to plus and minus this", "clip=..., the bound"),
    "clip_denoised": Key("clip", "x0 is clipped to [-1, 1]", "clip=True"),
    "thresholding": Key("clip", "dynamic thresholding of x0", "clip=sds.Clip(percentile=0.995)"),
    "dynamic_thresholding_ratio": Key("clip", "its percentile", "clip=sds.Clip(percentile=...)"),
    "sample_max_value": Key("clip", "its greatest s", "clip=sds.Clip(percentile=..., most=...)"),
    # the grid
    "timestep_spacing": Key("grid", "linspace, leading or trailing", "spacing=..., with the same name"),
    "steps_offset": Key("grid", "added to leading timesteps", "spacing='leading', spacing_options={'offset': ...}"),
    "set_alpha_to_one": Key("grid", "whether the last step arrives at alpha = 1", "final='zero' or final='min'"),
    "final_sigmas_type": Key("grid", "where the last step arrives", "final='zero' or final='min'"),
    "use_karras_sigmas": Key("grid", "the Karras grid", "spacing='karras'"),
    "use_exponential_sigmas": Key("grid", "even steps of log sigma", "spacing='exponential'"),
    "use_beta_sigmas": Key("grid", "quantiles of a beta distribution", "spacing='beta'"),
    "use_lu_lambdas": Key("grid", "even steps of log(alpha/sigma)", "spacing='logsnr'"),
    "sigma_schedule": Key("grid", "karras or exponential", "spacing=..., with the same name"),
    "rho": Key("grid", "of the Karras grid", "spacing='karras', spacing_options={'rho': ...}"),
    "lambda_min_clipped": Key("grid", "where the grid may begin", "start_time or sigmas of your own"),
    "shift_terminal": Key("grid", "where a flow's grid ends before the clean end", "sigmas of your own"),
    # which solver: the sampler that is named runs in its place
    "algorithm_type": Key(
        "solver",
        "which member of a family of solvers",
        "the sampler's name: 'dpmpp-2m' for dpmsolver++, 'dpmpp-2m-sde' for sde-dpmsolver++, 'dpm-solver-2m' for "
        "dpmsolver, 'deis' for deis, 'sa-solver' for SA-Solver's",
    ),
    "solver_order": Key("solver", "the method's order", "the sampler's name, such as 'dpmpp-3m', or its order"),
    "solver_type": Key("solver", "a variant of the method", "the sampler's name, such as 'dpmpp-2m'"),
    "solver_p": Key("solver", "another class's solver as UniPC's predictor", "the sampler's name, such as 'unic'"),
    "predict_x0": Key("solver", "whether UniPC runs on x0 or on noise", "an option of 'unipc'"),
    "disable_corrector": Key("solver", "steps at which UniPC does not correct", "sampler 'unip', which never does"),
    "predictor_order": Key("solver", "SA-Solver's", "sampler 'sa-solver' with predictor_order=..."),
    "corrector_order": Key("solver", "SA-Solver's", "sampler 'sa-solver' with corrector_order=..."),
    "tau_func": Key("solver", "SA-Solver's noise", "sampler 'sa-solver' with tau=..."),
    "skip_prk_steps": Key("solver", "whether PNDM starts by Runge-Kutta", "sampler 'plms', or 'pndm', which does"),
    "lower_order_final": Key("solver", "a lower order at the end", "the sampler's option lower_order_final"),
    "euler_at_final": Key("solver", "first order at the end; ours step into sigma = 0 as their method can"),
    "eta": Key("solver", "the share of noise", "the sampler's option eta"),
    "s_noise": Key("solver", "a factor on the noise", "the sampler's option s_noise, where it has one"),
    "snr": Key("solver", "of the Langevin corrector", "sampler 'predictor-corrector' with snr=..."),
    "correct_steps": Key("solver", "Langevin steps a level", "sampler 'predictor-corrector' with corrector_steps=..."),
    "stochastic_sampling": Key("solver", "whether flow Euler draws new noise at each step", "sampler 'lcm'"),
    "noise_sampler_seed": Key("solver", "the seed of its noise", "seed=..."),
    "original_inference_steps": Key("solver", "of the teacher's grid, which LCM and TCD take theirs out of"),
    # nothing here
    "variance_type": Key(
        "unused", "the variance of DDPM's step follows from the grid; learned ones are cut off the network's answer"
    ),
    "interpolation_type": Key(
        "unused", "how sigma is read between timesteps; ours is one smooth continuation of the table for all samplers"
    ),
    "timestep_scaling": Key(
        "unused", "of LCM's boundary condition c_skip = 1/4 / ((10 t)^2 + 1/4), under 1e-5 from timestep 16 on"
    ),
    "sampling_eps": Key("unused", "where score-SDE's times end; its network is told sigma, down to sigma_min"),
    "upscale_mode": Key("unused", "of `scale_factors`, which are refused"),
    "kwargs": Key("unused", "deprecated words of diffusers"),
    # supported at their defaults
    "scale_factors": Key("refused", "it moves through several resolutions in one run"),
}  # fmt: skip

IN_CLASS: dict[tuple[str, str], Key] = {
    **{
        (kind, word): Key("unused", "its step never clips, whatever this says")
        for kind in ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "TCDScheduler")
        for word in ("clip_sample", "clip_sample_range")
    },
    **{
        ("TCDScheduler", word): Key("unused", "its step never clips, whatever this says")
        for word in ("thresholding", "dynamic_thresholding_ratio", "sample_max_value")
    },
    **{
        (kind, "sample_max_value"): Key("unused", "it belongs to `thresholding`, which this class does not have")
        for kind in ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
    },
    ("UniPCMultistepScheduler", "sigma_min"): Key("grid", "the last sigma of a Karras grid and kin"),
    ("UniPCMultistepScheduler", "sigma_max"): Key("grid", "the first sigma of a Karras grid and kin"),
    ("EulerDiscreteScheduler", "sigma_min"): Key("grid", "the last sigma of a Karras grid, or of continuous times"),
    ("EulerDiscreteScheduler", "sigma_max"): Key("grid", "the first sigma of a Karras grid, or of continuous times"),
    ("IPNDMScheduler", "trained_betas"): Key("refused", "its pipeline tells its network the angle of alpha and sigma"),
    ("IPNDMScheduler", "num_train_timesteps"): Key("unused", "the network is told an angle, whatever their number"),
    ("SCMScheduler", "num_train_timesteps"): Key("unused", "the network is told an angle, whatever their number"),
    ("SCMScheduler", "prediction_type"): Key("refused", "its networks predict v on the circle, 'trigflow'"),
    ("ScoreSdeVeScheduler", "num_train_timesteps"): Key("unused", "the network is told sigma, whatever their number"),
    **{
        (kind, "num_train_timesteps"): Key("unused", "the network is told log sigma, whatever their number")
        for kind in (
            "CMStochasticIterativeScheduler",
            "CosineDPMSolverMultistepScheduler",
            "EDMDPMSolverMultistepScheduler",
            "EDMEulerScheduler",
        )
    },
}
"""Where a class gives a word another role."""


def key_of(kind: str, word: str) -> Key | None:
    """A parameter's row; None where there is none."""
    return IN_CLASS.get((kind, word), KEYS.get(word))


def refused_keys(kind: str, words: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """Why words that are set to more than their defaults are refused, a sentence each."""
    found = []
    for word, value in words.items():
        row = key_of(kind, word) if word in defaults else None
        if row is not None and row.role == "refused" and value != defaults[word] and value is not None:
            found.append(f"{word}={value!r} is not supported: {row.why}")
    return found
