"""Whole diffusers pipelines as models: prompts or labels as conditions, latents as states, images from `decode`."""

from .base import Conditioning, PipelineModel
from .kinds import from_pipeline

__all__ = ["Conditioning", "PipelineModel", "from_pipeline"]
