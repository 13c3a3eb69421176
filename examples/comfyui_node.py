"""A custom node for ComfyUI: any sampler of the library as a SAMPLER. Copy this file into ComfyUI/custom_nodes.

The output goes into the node "SamplerCustom" or "SamplerCustomAdvanced". Options are written as JSON: {"eta": 0.5}.
"""

import json

import comfy.samplers  # ComfyUI's own module

import sdesamplers as sds


class SdesamplersSampler:
    """The node "SAMPLER by sdesamplers"."""

    CATEGORY = "sampling/custom_sampling/samplers"
    FUNCTION = "get_sampler"
    RETURN_TYPES = ("SAMPLER",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 (ComfyUI's name)
        names = [name for name, spec in sds.samplers().items() if not {"log_density", "stationary"} & {*spec.needs}]
        return {"required": {"sampler": (names, {"default": "er-sde"}), "options": ("STRING", {"default": "{}"})}}

    def get_sampler(self, sampler, options):
        return (comfy.samplers.KSAMPLER(sds.as_k_sampler(sampler, **json.loads(options))),)


NODE_CLASS_MAPPINGS = {"SdesamplersSampler": SdesamplersSampler}
NODE_DISPLAY_NAME_MAPPINGS = {"SdesamplersSampler": "SAMPLER by sdesamplers"}
