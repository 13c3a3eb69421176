"""Conversion of tensors to pictures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image


def to_bytes(samples: Tensor, data_range: tuple[float, float] | None) -> np.ndarray:
    """Convert samples (N, C, H, W) in `data_range`, by default (-1, 1), to uint8 (N, H, W, C), rounded and clipped."""
    if samples.dim() != 4 or samples.shape[1] not in (1, 3, 4):
        raise UsageError(f"samples of shape {tuple(samples.shape[1:])} are not images of 1, 3 or 4 channels")
    low, high = data_range or (-1.0, 1.0)
    scaled = (samples.float() - low) * (255.0 / (high - low))
    pixels: np.ndarray = scaled.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return pixels


def to_images(samples: Tensor, data_range: tuple[float, float] | None) -> list[Image]:
    """Convert samples (N, C, H, W) in `data_range`, by default (-1, 1), to PIL images."""
    from PIL import Image  # only pictures need it

    return [Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in to_bytes(samples, data_range)]


def grid(images: list[Image], columns: int | None = None, scale: int | None = None, gap: int = 2) -> Image:
    """Tile images of one size; by default in a square, magnified to about 96 pixels if they are smaller."""
    from PIL import Image  # only pictures need it

    columns = columns or math.ceil(math.sqrt(len(images)))
    width, height = images[0].size
    scale = scale or max(1, round(96 / max(width, height)))
    rows = math.ceil(len(images) / columns)
    cell = (width * scale + gap, height * scale + gap)
    sheet = Image.new("RGB", (columns * cell[0] + gap, rows * cell[1] + gap), "white")
    for k, image in enumerate(images):
        big = image.convert("RGB").resize((width * scale, height * scale), Image.Resampling.NEAREST)
        sheet.paste(big, (gap + k % columns * cell[0], gap + k // columns * cell[1]))
    return sheet
