"""Scheduler configurations of every kind that published models have, written for the tests."""

from typing import Any

DDPM = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _of(kind: str, **words: Any) -> dict[str, Any]:
    return {"_class_name": f"{kind}Scheduler", **words}


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    # tables: spacing, offset, and where the last step ends
    "ddim leading": _of("DDIM", **SD, steps_offset=1, set_alpha_to_one=False, clip_sample=False),
    "ddim leading, no offset": _of("DDIM", **SD, set_alpha_to_one=False, clip_sample=False),
    "ddim leading to one": _of("DDIM", beta_schedule="linear", clip_sample=False),
    "ddim linspace": _of("DDIM", **SD, timestep_spacing="linspace", clip_sample=False),
    "ddim trailing": _of("DDIM", **SD, timestep_spacing="trailing", set_alpha_to_one=False, clip_sample=False),
    "ddim zero-SNR": _of(
        "DDIM",
        **SD,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
        clip_sample=False,
    ),
    "ddpm": _of("DDPM", beta_schedule="linear", clip_sample=False),
    "ddpm cosine": _of("DDPM", beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing", clip_sample=False),
    "ddpm laplace": _of("DDPM", beta_schedule="laplace", clip_sample=False),
    "ddpm sigmoid": _of("DDPM", beta_schedule="sigmoid", clip_sample=False),
    "ddpm of 100": _of("DDPM", num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", clip_sample=False),
    "ddpm of betas": _of("DDPM", trained_betas=[1e-4 + 2e-5 * k for k in range(800)], num_train_timesteps=800),
    "pndm, plms": _of("PNDM", **SD, steps_offset=1, skip_prk_steps=True),
    "pndm to one": _of("PNDM", **SD, steps_offset=1, skip_prk_steps=True, set_alpha_to_one=True),
    "unclip": _of("UnCLIP", clip_sample=False),
    "cogvideox": _of(
        "CogVideoXDDIM",
        **SD,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
        prediction_type="v_prediction",
    ),
    "euler leading": _of("EulerDiscrete", **SD, timestep_spacing="leading", steps_offset=1),
    "euler linspace": _of("EulerDiscrete", **SD, timestep_spacing="linspace"),
    "euler trailing": _of("EulerDiscrete", **SD, timestep_spacing="trailing"),
    "euler karras": _of("EulerDiscrete", **SD, timestep_spacing="trailing", use_karras_sigmas=True),
    "euler exponential": _of("EulerDiscrete", **SD, use_exponential_sigmas=True),
    "euler beta": _of("EulerDiscrete", **SD, use_beta_sigmas=True),
    "euler to sigma_min": _of("EulerDiscrete", **SD, timestep_spacing="trailing", final_sigmas_type="sigma_min"),
    "ancestral": _of("EulerAncestralDiscrete", **SD, timestep_spacing="trailing"),
    "heun": _of("HeunDiscrete", **SD, timestep_spacing="leading", steps_offset=1),
    "heun karras": _of("HeunDiscrete", **SD, use_karras_sigmas=True),
    "kdpm2": _of("KDPM2Discrete", **SD, timestep_spacing="trailing"),
    "lms": _of("LMSDiscrete", **SD),
    "deis": _of("DEISMultistep", **SD, timestep_spacing="leading", steps_offset=1),
    "dpm linspace": _of("DPMSolverMultistep", **SD),
    "dpm leading": _of("DPMSolverMultistep", **SD, timestep_spacing="leading", steps_offset=1),
    "dpm karras": _of("DPMSolverMultistep", **SD, use_karras_sigmas=True),
    "dpm lu": _of("DPMSolverMultistep", **SD, use_lu_lambdas=True),
    "dpm trailing to sigma_min": _of(
        "DPMSolverMultistep", **SD, timestep_spacing="trailing", final_sigmas_type="sigma_min"
    ),
    "dpm clipped lambda": _of("DPMSolverMultistep", beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1),
    "dpm flow": _of("DPMSolverMultistep", use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"),
    "singlestep": _of("DPMSolverSinglestep", **SD),
    "unipc": _of("UniPCMultistep", **SD),
    "unipc exponential": _of("UniPCMultistep", **SD, use_exponential_sigmas=True),
    "unipc flow": _of("UniPCMultistep", use_flow_sigmas=True, flow_shift=5.0, prediction_type="flow_prediction"),
    "sa-solver": _of("SASolver", **SD, timestep_spacing="trailing"),
    # distilled
    "lcm": _of("LCM", **SD, set_alpha_to_one=True),
    "lcm of 25": _of("LCM", **SD, original_inference_steps=25),
    "tcd": _of("TCD", **SD),
    "consistency": _of("CMStochasticIterative"),
    "scm": _of("SCM", prediction_type="trigflow"),
    "flow lcm": _of("FlowMatchLCM", shift=3.0),
    # EDM and VE
    "edm": _of("EDMEuler"),
    "edm wide": _of("EDMEuler", sigma_min=0.01, sigma_max=200.0, sigma_data=1.0, sigma_schedule="exponential"),
    "edm dpm": _of("EDMDPMSolverMultistep"),
    "edm dpm to sigma_min": _of("EDMDPMSolverMultistep", final_sigmas_type="sigma_min"),
    "svd": _of(
        "EulerDiscrete",
        **SD,
        timestep_type="continuous",
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_spacing="leading",
    ),
    "ve": _of("ScoreSdeVe", sigma_max=348.0),
    "ipndm": _of("IPNDM"),
    # flow matching
    "flow": _of("FlowMatchEulerDiscrete"),
    "flow shifted": _of("FlowMatchEulerDiscrete", shift=3.0),
    "flow inverted": _of("FlowMatchEulerDiscrete", invert_sigmas=True),
    "flow of 1": _of("FlowMatchEulerDiscrete", num_train_timesteps=1),
    "flow dynamic": _of("FlowMatchEulerDiscrete", use_dynamic_shifting=True),
    "flow dynamic, linear": _of("FlowMatchEulerDiscrete", use_dynamic_shifting=True, time_shift_type="linear"),
    "flow terminal": _of("FlowMatchEulerDiscrete", use_dynamic_shifting=True, shift_terminal=0.1),
    "flow terminal, fixed": _of("FlowMatchEulerDiscrete", shift=2.0, shift_terminal=0.02),
    "flow karras": _of("FlowMatchEulerDiscrete", use_karras_sigmas=True),
    "flow exponential": _of("FlowMatchEulerDiscrete", shift=2.0, use_exponential_sigmas=True),
    "flow beta": _of("FlowMatchEulerDiscrete", use_beta_sigmas=True),
    "flow heun": _of("FlowMatchHeunDiscrete", shift=3.0),
}
MU = 0.8
"""The shift of the resolution that is given to those with `use_dynamic_shifting`."""
