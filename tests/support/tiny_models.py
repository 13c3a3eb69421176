"""Tiny diffusers pipelines for the tests of loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel

WEIGHTS = "diffusion_pytorch_model.safetensors"


def tiny_unet(seed: int = 0, **config: Any) -> UNet2DModel:
    """A random UNet2DModel of 8x8 grey pictures."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {"in_channels": 1, "out_channels": 1, "sample_size": 8, "layers_per_block": 1}
    blocks: dict[str, Any] = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(**{**shape, **blocks, "block_out_channels": (8, 16), "norm_num_groups": 4, **config}).eval()


def save_pipeline(
    folder: Path, scheduler: Any = None, unet: Any = None, pipeline: type[DiffusionPipeline] = DDPMPipeline
) -> Path:
    """Save a tiny pipeline in diffusers' layout and return its folder."""
    pipe = pipeline(unet=tiny_unet() if unet is None else unet, scheduler=scheduler or DDPMScheduler())
    pipe.save_pretrained(folder)
    return folder
