"""Every argument that diffusers' pipelines pass to `step` and `set_timesteps`.

An argument is used, ignored for the reason given here, or refused with this reason.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ..errors import UsageError

STEP_USED = (
    *("model_output", "timestep", "sample", "generator", "return_dict", "eta", "prev_timestep"),
    *("log_prob", "prev_sample", "reduction", "unguided"),
)
STEP_IGNORED = {
    "use_clipped_model_output": "epsilon always follows from x0 here, which is clipped if the model clips it",
}
TOKENS = "it belongs to schedulers over tokens, which have no score"
RESOLUTIONS = "it belongs to pipelines that move through several resolutions in one run"
STEP_REFUSED = {
    "variance_noise": "the noise of a step comes from the run's generator or seed; pass generator=",
    "per_token_timesteps": "a run has one timestep for all tokens; use the pipeline's own scheduler",
    "pred_original_sample": "x0 follows from the network's output here; use the pipeline's own scheduler",
    "old_pred_original_sample": "a run keeps its earlier predictions itself",
    "timestep_back": "a run keeps its earlier timesteps itself",
    "r_timestep": "a flow map is evaluated with two times; wrap its network in an sds.FlowMapModel and sample that",
    **dict.fromkeys(("s_churn", "s_tmin", "s_tmax", "s_noise"), "use the sampler 'churn' with its own options"),
    **dict.fromkeys(
        ("all_timesteps", "cur_sampling_step", "dmd_noisy_tensor", "dmd_sigmas", "dmd_timesteps"), RESOLUTIONS
    ),
    **dict.fromkeys(
        (
            *("editing_threshold", "mask_token_id", "minimal_topk", "prompt_mask", "sampling_method"),
            *("starting_mask_ratio", "temperature", "threshold", "top_k", "top_p"),
        ),
        TOKENS,
    ),
}
GRID_USED = (
    *("num_inference_steps", "device", "timesteps", "sigmas", "mu", "strength", "original_inference_steps"),
    *("max_timesteps", "intermediate_timesteps"),
)
GRID_IGNORED: dict[str, str] = {}
GRID_REFUSED = {
    "block_length": TOKENS,
    "is_amplify_first_chunk": RESOLUTIONS,
    "start_time": "start in the middle with scheduler.timesteps[begin:], or pass timesteps=",
    "jump_length": "resampling is the sampler 'repaint' of sds.sample, not a grid",
    "jump_n_sample": "resampling is the sampler 'repaint' of sds.sample, not a grid",
}
NOISE_REFUSED = {"generator": TOKENS}
"""Arguments of `add_noise` that only pipelines over tokens pass."""


def check_step_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of `step` that are neither used nor ignored; None and False count as not passed.

    Raises:
        UsageError: an argument that is refused, with the reason, or unknown, with the nearest valid name.
    """
    _check("step", arguments, STEP_USED, STEP_IGNORED, STEP_REFUSED)


def check_grid_arguments(arguments: Mapping[str, Any]) -> None:
    """The same for `set_timesteps`."""
    _check("set_timesteps", arguments, GRID_USED, GRID_IGNORED, GRID_REFUSED)


def _check(
    method: str,
    arguments: Mapping[str, Any],
    used: tuple[str, ...],
    ignored: Mapping[str, str],
    refused: Mapping[str, str],
) -> None:
    for name, value in arguments.items():
        if name in ignored:
            continue
        if name in refused:
            if value is not None and value is not False:
                raise UsageError(f"{method} does not take {name}: {refused[name]}")
            continue
        near = difflib.get_close_matches(name, used, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f" (it has {', '.join(used)})"
        raise UsageError(f"{method} has no argument {name!r}{hint}")
