"""Argument names of diffusers, and the equivalents in this library."""

from __future__ import annotations

MODELS = "a property of the model: Scheduler.from_config(config) reads it, and load(), wrap() or a process take it"
GRIDS = {
    "use_karras_sigmas": 'spacing="karras"',
    "use_exponential_sigmas": 'spacing="exponential"',
    "use_beta_sigmas": 'spacing="beta"',
    "use_lu_lambdas": 'spacing="logsnr"',
    "timestep_spacing": 'spacing="leading", "trailing" or "linspace"',
    "rho": 'spacing="karras", spacing_options={"rho": 7.0}',
    "final_sigmas_type": 'final="zero" or final="min"',
    "interpolation_type": "spacing=",
    "sigma_schedule": 'spacing="karras" or "exponential"',
}
CALLS = {
    "num_inference_steps": "steps=",
    "timesteps": "times=",
    "generator": "seed=",
    "num_images_per_prompt": "num_samples=",
    "prompt": "condition=",
    "negative_prompt": "load(..., negative_prompt=), or Guided(model, scale, negative=)",
    "latents": "start= and start_time=",
    "strength": "start= and start_time=, as noised(model, x, time) returns them",
    "device": "load(..., device=)",
    "output_type": "result.images or result.samples",
    "callback_on_step_end": "callback=",
    "guidance_rescale": "Guided(model, scale, rescale=)",
    "cfg_scale": "guidance_scale=",
}
SOLVERS = {
    "algorithm_type": 'the sampler: "dpmpp-2m" (dpmsolver++), "dpm-solver-2m" (dpmsolver), "dpmpp-2m-sde" (sde-...)',
    "solver_order": 'the sampler, such as "dpmpp-2m" or "dpmpp-3m", or the order= of "unipc" and "deis"',
    "solver_type": 'the sampler: "dpmpp-2m" is midpoint, "dpmpp-2s" and "dpm-solver-2" are single-step',
    "eta": "an option of samplers that draw noise",
    "s_churn": 'the sampler "churn"',
    "s_noise": 'the sampler "churn"',
    **dict.fromkeys(("s_min", "s_tmin"), 'the option s_tmin of the sampler "churn"'),
    **dict.fromkeys(("s_max", "s_tmax"), 'the option s_tmax of the sampler "churn"'),
    "lower_order_final": "an option of multistep samplers",
    "stochastic_sampling": 'a stochastic sampler, such as "euler-ancestral"',
    "predict_x0": 'the sampler "unipc", or "dpm-solver-2m" for noise prediction',
    "euler_at_final": "not needed: samplers use the order that the end of the grid allows",
}
OF_LOAD = ("size", "revision", "subfolder", "variant", "null_condition", "zero_snr", "mixed_precision", "allow_pickle")
"""Arguments of `load`, for calls that do not have them."""
OTHER_NAMES = {
    **dict.fromkeys(("height", "width", "image_size", "sample_size", "resolution"), "size"),
    "torch_dtype": "dtype",
    "device_map": "device",
}
"""Names of other libraries for arguments of `load`."""
OF_MODELS = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type"),
    *("clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
    *("rescale_betas_zero_snr", "set_alpha_to_one", "steps_offset", "sigma_min", "sigma_max", "sigma_data", "shift"),
    *("use_dynamic_shifting", "base_shift", "max_shift", "shift_terminal", "flow_shift", "use_flow_sigmas"),
    *("invert_sigmas", "time_shift_type", "variance_type"),
)
LOADED = {name: f"load(..., {OTHER_NAMES.get(name, name)}=)" for name in (*OF_LOAD, *OTHER_NAMES)}
HERE = {**LOADED, **GRIDS, **CALLS, **SOLVERS, **dict.fromkeys(OF_MODELS, MODELS)}


def equivalent_here(name: str) -> str | None:
    """The equivalent of an argument of diffusers, or of Karras et al.'s code (S_churn); None for other names."""
    key = name.replace("-", "_")
    return HERE.get(key, HERE.get(key.lower()))
