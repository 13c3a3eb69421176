"""Small pictures as data URIs."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from torch import Tensor

from ..io.images import to_images

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 96
"""Pixels of the longer side of a thumbnail; smaller pictures are kept as they are, without loss."""


def data_uri(image: Image) -> str:
    """A picture as a data URI: PNG, or JPEG with at most `SIDE` pixels a side for larger pictures."""
    from PIL import Image as Pillow  # only pictures need it

    content = io.BytesIO()
    if max(image.size) <= SIDE:
        image.save(content, format="PNG", optimize=True)
        kind = "png"
    else:
        small = image.convert("RGB")
        small.thumbnail((SIDE, SIDE), Pillow.Resampling.LANCZOS)
        small.save(content, format="JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def thumbnails(samples: Tensor, data_range: tuple[float, float] | None) -> list[str]:
    """Samples (N, C, H, W) as data URIs."""
    return [data_uri(image) for image in to_images(samples, data_range)]


def is_reduced(shape: tuple[int, ...]) -> bool:
    """True if pictures of this shape (C, H, W) are shown smaller than they are."""
    return max(shape[-2:]) > SIDE
