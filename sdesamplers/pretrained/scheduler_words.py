"""What becomes of every parameter of every diffusers scheduler that is supported: one table.

Its rows are by word, since diffusers' classes give a word one meaning; `IN_CLASS` has the exceptions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Word:
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


WORDS: dict[str, Word] = {
    # the model
    "num_train_timesteps": Word("model", "the length of the table; for flows, what the network is told at t = 1"),
    "beta_start": Word("model", "the table, as its class computes it"),
    "beta_end": Word("model", "the table, as its class computes it"),
    "beta_schedule": Word("model", "the table, as its class computes it"),
    "trained_betas": Word("model", "the table itself"),
    "rescale_betas_zero_snr": Word("model", "the table, as its class computes it", "load(..., zero_snr=True)"),
    "snr_shift_scale": Word("model", "the table, as CogVideoX's classes compute it"),
    "prediction_type": Word("model", "what the network's answer means"),
    "timestep_type": Word("model", "'continuous' with v prediction is an EDM-preconditioned network"),
    "sigma_data": Word("model", "of the preconditioning, or of TrigFlow"),
    "sigma_min": Word("model", "the smallest sigma of EDM and VE processes", "spacing_options={'sigma_min': ...}"),
    "sigma_max": Word("model", "the largest sigma of EDM and VE processes", "start_time or sigmas of your own"),
    "shift": Word("model", "of a flow's time", "spacing='flow-shift', spacing_options={'shift': ...}"),
    "flow_shift": Word("model", "of a flow's time", "spacing='flow-shift', spacing_options={'shift': ...}"),
    "use_flow_sigmas": Word("model", "the process is a rectified flow"),
    "use_dynamic_shifting": Word("model", "the flow's shift follows from the resolution (mu)"),
    "time_shift_type": Word("model", "whether the shift is e^mu or mu"),
    "invert_sigmas": Word("model", "the network's time runs from noise at 0 to data"),
    "base_shift": Word("model", "of the law from resolution to mu: from_pipeline, and pipelines, read it"),
    "max_shift": Word("model", "of the law from resolution to mu: from_pipeline, and pipelines, read it"),
    "base_image_seq_len": Word("model", "of the law from resolution to mu: from_pipeline, and pipelines, read it"),
    "max_image_seq_len": Word("model", "of the law from resolution to mu: from_pipeline, and pipelines, read it"),
    # x0
    "clip_sample": Word("clip", "x0 is clipped", "clip=True"),
    "clip_sample_range": Word("clip", "to plus and minus this", "clip=..., the bound"),
    "clip_denoised": Word("clip", "x0 is clipped to [-1, 1]", "clip=True"),
    "thresholding": Word("clip", "dynamic thresholding of x0", "clip=sds.Clip(percentile=0.995)"),
    "dynamic_thresholding_ratio": Word("clip", "its percentile", "clip=sds.Clip(percentile=...)"),
    "sample_max_value": Word("clip", "its greatest s", "clip=sds.Clip(percentile=..., most=...)"),
    # the grid
    "timestep_spacing": Word("grid", "linspace, leading or trailing", "spacing=..., with the same name"),
    "steps_offset": Word("grid", "added to leading timesteps", "spacing='leading', spacing_options={'offset': ...}"),
    "set_alpha_to_one": Word("grid", "whether the last step arrives at alpha = 1", "final='zero' or final='min'"),
    "final_sigmas_type": Word("grid", "where the last step arrives", "final='zero' or final='min'"),
    "use_karras_sigmas": Word("grid", "the Karras grid", "spacing='karras'"),
    "use_exponential_sigmas": Word("grid", "even steps of log sigma", "spacing='exponential'"),
    "use_beta_sigmas": Word("grid", "quantiles of a beta distribution", "spacing='beta'"),
    "use_lu_lambdas": Word("grid", "even steps of log(alpha/sigma)", "spacing='logsnr'"),
    "sigma_schedule": Word("grid", "karras or exponential", "spacing=..., with the same name"),
    "rho": Word("grid", "of the Karras grid", "spacing='karras', spacing_options={'rho': ...}"),
    "lambda_min_clipped": Word("grid", "where the grid may begin", "start_time or sigmas of your own"),
    "shift_terminal": Word("grid", "where a flow's grid ends before the clean end", "sigmas of your own"),
    # which solver: the sampler that is named runs in its place
    "algorithm_type": Word(
        "solver",
        "which member of a family of solvers",
        "the sampler's name: 'dpmpp-2m' for dpmsolver++, 'dpmpp-2m-sde' for sde-dpmsolver++, 'dpm-solver-2m' for "
        "dpmsolver, 'deis' for deis, 'sa-solver' for SA-Solver's",
    ),
    "solver_order": Word("solver", "the method's order", "the sampler's name, such as 'dpmpp-3m', or its order"),
    "solver_type": Word("solver", "a variant of the method", "the sampler's name, such as 'dpmpp-2m'"),
    "solver_p": Word("solver", "another class's solver as UniPC's predictor", "the sampler's name, such as 'unic'"),
    "predict_x0": Word("solver", "whether UniPC runs on x0 or on noise", "an option of 'unipc'"),
    "disable_corrector": Word("solver", "steps at which UniPC does not correct", "sampler 'unip', which never does"),
    "predictor_order": Word("solver", "SA-Solver's", "sampler 'sa-solver' with predictor_order=..."),
    "corrector_order": Word("solver", "SA-Solver's", "sampler 'sa-solver' with corrector_order=..."),
    "tau_func": Word("solver", "SA-Solver's noise", "sampler 'sa-solver' with tau=..."),
    "skip_prk_steps": Word("solver", "whether PNDM starts by Runge-Kutta", "sampler 'plms', or 'pndm', which does"),
    "lower_order_final": Word("solver", "a lower order at the end", "the sampler's option lower_order_final"),
    "euler_at_final": Word("solver", "first order at the end; ours step into sigma = 0 as their method can"),
    "eta": Word("solver", "the share of noise", "the sampler's option eta"),
    "s_noise": Word("solver", "a factor on the noise", "the sampler's option s_noise, where it has one"),
    "snr": Word("solver", "of the Langevin corrector", "sampler 'predictor-corrector' with snr=..."),
    "correct_steps": Word("solver", "Langevin steps a level", "sampler 'predictor-corrector' with corrector_steps=..."),
    "stochastic_sampling": Word("solver", "whether flow Euler draws new noise at each step", "sampler 'lcm'"),
    "noise_sampler_seed": Word("solver", "the seed of its noise", "seed=..."),
    "original_inference_steps": Word("solver", "of the teacher's grid, which LCM and TCD take theirs out of"),
    # nothing here
    "variance_type": Word(
        "unused", "the variance of DDPM's step follows from the grid; learned ones are cut off the network's answer"
    ),
    "interpolation_type": Word(
        "unused", "how sigma is read between timesteps; ours is one smooth continuation of the table for all samplers"
    ),
    "timestep_scaling": Word(
        "unused", "of LCM's boundary condition c_skip = 1/4 / ((10 t)^2 + 1/4), under 1e-5 from timestep 16 on"
    ),
    "sampling_eps": Word("unused", "where score-SDE's times end; its network is told sigma, down to sigma_min"),
    "upscale_mode": Word("unused", "of `scale_factors`, which are refused"),
    "kwargs": Word("unused", "deprecated words of diffusers"),
    # supported at their defaults
    "scale_factors": Word("refused", "it moves through several resolutions in one run"),
}  # fmt: skip

IN_CLASS: dict[tuple[str, str], Word] = {
    **{
        (kind, word): Word("unused", "its step never clips, whatever this says")
        for kind in ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "TCDScheduler")
        for word in ("clip_sample", "clip_sample_range")
    },
    **{
        ("TCDScheduler", word): Word("unused", "its step never clips, whatever this says")
        for word in ("thresholding", "dynamic_thresholding_ratio", "sample_max_value")
    },
    **{
        (kind, "sample_max_value"): Word("unused", "it belongs to `thresholding`, which this class does not have")
        for kind in ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
    },
    ("UniPCMultistepScheduler", "sigma_min"): Word("grid", "the last sigma of a Karras grid and kin"),
    ("UniPCMultistepScheduler", "sigma_max"): Word("grid", "the first sigma of a Karras grid and kin"),
    ("EulerDiscreteScheduler", "sigma_min"): Word("grid", "the last sigma of a Karras grid, or of continuous times"),
    ("EulerDiscreteScheduler", "sigma_max"): Word("grid", "the first sigma of a Karras grid, or of continuous times"),
    ("IPNDMScheduler", "trained_betas"): Word("refused", "its pipeline tells its network the angle of alpha and sigma"),
    ("IPNDMScheduler", "num_train_timesteps"): Word("unused", "the network is told an angle, whatever their number"),
    ("SCMScheduler", "num_train_timesteps"): Word("unused", "the network is told an angle, whatever their number"),
    ("SCMScheduler", "prediction_type"): Word("refused", "its networks predict v on the circle, 'trigflow'"),
    ("ScoreSdeVeScheduler", "num_train_timesteps"): Word("unused", "the network is told sigma, whatever their number"),
    **{
        (kind, "num_train_timesteps"): Word("unused", "the network is told log sigma, whatever their number")
        for kind in (
            "CMStochasticIterativeScheduler",
            "CosineDPMSolverMultistepScheduler",
            "EDMDPMSolverMultistepScheduler",
            "EDMEulerScheduler",
        )
    },
}
"""Where a class gives a word another role."""


def word_of(kind: str, word: str) -> Word | None:
    """A parameter's row; None where there is none."""
    return IN_CLASS.get((kind, word), WORDS.get(word))


def refused_words(kind: str, words: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """Why words that are set to more than their defaults are refused, a sentence each."""
    found = []
    for word, value in words.items():
        row = word_of(kind, word) if word in defaults else None
        if row is not None and row.role == "refused" and value != defaults[word] and value is not None:
            found.append(f"{word}={value!r} is not supported: {row.why}")
    return found
