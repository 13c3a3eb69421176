"""Reading data for a model: pictures, arrays and tensors from files, in the model's range."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import UnknownNameError, UsageError
from .models.base import Model

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
EMBEDDED = {"fashion-mnist-test": (Path(__file__).parent / "assets" / "fashion-mnist-test" / "images.png", 28)}
"""Sets that ship with the library: a sheet of pictures, and the side of each."""
SHOWN = f"a folder or file of pictures ({', '.join(PICTURES)}), .npy, .safetensors, or {', '.join(EMBEDDED)}"


def read_data(source: str | Path, model: Model, *, limit: int | None = None) -> tuple[Tensor, list[str]]:
    """Data (N, *shape) for a model, float32 in its range, and a name for each.

    Pictures and whole numbers from 0 to 255 are scaled to the model's range; floating-point arrays are taken as they
    are. Pictures must have the model's size; they are read in its number of channels.

    Args:
        source: a folder or file of pictures, an .npy or .safetensors file (its only tensor, or "samples"), or the name
            of an embedded set.
        model: which the data are for.
        limit: read no more than the first so many.

    Raises:
        UsageError: nothing there, or data of another shape.
    """
    path = Path(source).expanduser()
    if str(source) in EMBEDDED:
        return _sheet(*EMBEDDED[str(source)], model, limit)
    if not path.exists():
        raise UnknownNameError("data set", str(source), EMBEDDED, f"; nor is it {SHOWN}")
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)[:limit]
        if not files:
            raise UsageError(f"{path} holds no pictures ({', '.join(PICTURES)})")
        return _pictures(files, model), [file.name for file in files]
    if path.suffix.lower() in PICTURES:
        return _pictures([path], model), [path.name]
    values = _array(path)[:limit]
    if tuple(values.shape[1:]) != model.shape:
        raise UsageError(f"{path} holds {tuple(values.shape)}, and this model takes (N, {_listed(model.shape)})")
    data = scaled_to(values, model) if not values.is_floating_point() else values.float()
    return data, [str(k) for k in range(len(values))]


def _array(path: Path) -> Tensor:
    if path.suffix == ".npy":
        try:
            return torch.from_numpy(np.load(path, allow_pickle=False))
        except (ValueError, OSError) as error:
            raise UsageError(f"{path} is not a readable .npy file ({error})") from None
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{path} is not a readable .safetensors file ({error})") from None
        if len(tensors) != 1 and "samples" not in tensors:
            raise UsageError(f"{path} holds {', '.join(sorted(tensors))}; one tensor, or one named samples, is needed")
        return tensors.get("samples", next(iter(tensors.values())))
    raise UsageError(f"{path} is not {SHOWN}")


def _pictures(files: list[Path], model: Model) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(model.shape[0]) if len(model.shape) == 3 else None
    if mode is None:
        raise UsageError(f"this model's samples {model.shape} are no pictures; give an .npy or .safetensors file")
    found = []
    for file in files:
        try:
            pixels = np.asarray(Image.open(file).convert(mode))
        except (UnidentifiedImageError, OSError) as error:
            raise UsageError(f"{file} is not a readable picture ({error})") from None
        if pixels.shape[:2] != model.shape[1:]:
            size = f"{pixels.shape[1]}x{pixels.shape[0]}"
            raise UsageError(f"{file} is {size}, and this model takes {model.shape[2]}x{model.shape[1]}")
        found.append(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1))
    return scaled_to(torch.from_numpy(np.stack(found)), model)


def _sheet(file: Path, side: int, model: Model, limit: int | None) -> tuple[Tensor, list[str]]:
    from PIL import Image

    sheet = np.asarray(Image.open(file))
    rows, columns = sheet.shape[0] // side, sheet.shape[1] // side
    cut = sheet.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, 1, side, side)[:limit]
    if tuple(cut.shape[1:]) != model.shape:
        raise UsageError(
            f"{file.parent.name} holds pictures {tuple(cut.shape[1:])}, and this model takes {model.shape}"
        )
    return scaled_to(torch.from_numpy(cut.copy()), model), [str(k) for k in range(len(cut))]


def scaled_to(pixels: Tensor, model: Model) -> Tensor:
    """Whole numbers 0 to 255 in a model's range, as float32.

    Raises:
        UsageError: the model has no range.
    """
    if model.data_range is None:
        raise UsageError(
            "this model has no data range, so whole numbers cannot be scaled to it; give floating-point data"
        )
    low, high = model.data_range
    return pixels.float() * ((high - low) / 255) + low


def _listed(shape: Any) -> str:
    return ", ".join(map(str, shape))
