"""Reading data for a model: pictures, arrays and tensors from files, in the model's range."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .errors import UnknownNameError, UsageError
from .models.base import Model

if TYPE_CHECKING:
    from PIL.Image import Image

Data: TypeAlias = "Tensor | np.ndarray | Image | Sequence[Image]"
"""What functions of data take: floating-point numbers (N, *shape) in the model's range, or pictures."""

FAR = 16.0
"""Distance from the middle of the data range, in its half widths, beyond which data cannot be meant: pixels from 0 to
255 go there, noise of the range's own width never does."""

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
EMBEDDED = {"fashion-mnist-test": (Path(__file__).parent / "assets" / "fashion-mnist-test" / "images.png", 28)}
"""Sets that ship with the library: a sheet of pictures, and the side of each."""
SHOWN = f"a folder or file of pictures ({', '.join(PICTURES)}), .npy, .safetensors, or {', '.join(EMBEDDED)}"


def as_states(model: Model, x: Any, what: Literal["data", "latents"]) -> Tensor:
    """x as floating-point states (N, *shape) of a model, or a UsageError that says what it should have been.

    Data may also be PIL images of the model's size, and must not lie far outside the model's range.
    """
    pictures = pictures_in(x) if what == "data" else None
    if pictures is not None:
        return from_pictures(pictures, model)
    wanted = f"floating-point numbers of shape ({', '.join(map(str, ('N', *model.shape)))}), N at least 1"
    try:
        x = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(f"{what} must be {wanted}, not {type(x).__name__}") from None
    if tuple(x.shape[1:]) != model.shape or not x.is_floating_point() or not len(x):
        raise UsageError(f"{what} must be {wanted}, not {x.dtype} of shape {tuple(x.shape)}{advice(model, x, what)}")
    if what == "data" and model.data_range is not None:
        check_range(x, model.data_range)
    return x


def advice(model: Model, x: Tensor, what: str) -> str:
    """What would make states of these numbers; "" where nothing is known."""
    if what == "data" and not x.is_floating_point() and model.data_range is not None:
        low, high = model.data_range
        return (
            f"; whole numbers from 0 to 255 come into the model's range [{low:g}, {high:g}] by "
            f"{scaling(model.data_range)}, and PIL images are taken as they are"
        )
    return "; give a single sample as x[None]" if tuple(x.shape) == model.shape else ""


def check_range(x: Tensor, data_range: tuple[float, float]) -> None:
    """Raise where data reach so far out of the range that they must be in other units."""
    low, high = data_range
    least, most = (float(v) for v in x.detach().aminmax())
    if max(most - (low + high) / 2, (low + high) / 2 - least) > FAR * (high - low) / 2:
        raise UsageError(
            f"data reach from {least:g} to {most:g}, far outside the model's range [{low:g}, {high:g}]; pixels from 0 "
            f"to 255 come into it by {scaling(data_range)}"
        )


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

    mode = _mode(model, "give an .npy or .safetensors file")
    found = []
    for file in files:
        try:
            found.append(_pixels(Image.open(file), mode, model, str(file)))
        except (UnidentifiedImageError, OSError) as error:
            raise UsageError(f"{file} is not a readable picture ({error})") from None
    return scaled_to(torch.from_numpy(np.stack(found)), model)


def pictures_in(x: Any) -> list[Image] | None:
    """x as a list, where it is a PIL image or a sequence of them; None where it is anything else."""
    if isinstance(x, Tensor | np.ndarray):
        return None
    from PIL.Image import Image

    found = list(x) if isinstance(x, list | tuple) else [x]
    return found if found and all(isinstance(each, Image) for each in found) else None


def from_pictures(pictures: Sequence[Image], model: Model) -> Tensor:
    """PIL images as data (N, *shape) for a model, float32 in its range, read in its number of channels.

    Raises:
        UsageError: pictures of another size than the model's, or a model that is not one of pictures.
    """
    mode = _mode(model, "give floating-point numbers of that shape")
    found = [_pixels(picture, mode, model, f"picture {k}") for k, picture in enumerate(pictures)]
    return scaled_to(torch.from_numpy(np.stack(found)), model)


def _mode(model: Model, advice: str) -> str:
    """PIL's name for pictures with a model's number of channels."""
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(model.shape[0]) if len(model.shape) == 3 else None
    if mode is None:
        raise UsageError(f"this model's samples {model.shape} are no pictures; {advice}")
    return mode


def _pixels(picture: Image, mode: str, model: Model, name: str) -> np.ndarray:
    """One picture as uint8 (C, H, W) of the model's size."""
    pixels = np.asarray(picture.convert(mode))
    if pixels.shape[:2] != model.shape[1:]:
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise UsageError(f"{name} is {size}, and this model takes {model.shape[2]}x{model.shape[1]}")
    return pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)


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


def scaling(data_range: tuple[float, float]) -> str:
    """What `scaled_to` does, for messages: "x * 2 / 255 - 1"."""
    low, high = data_range
    return f"x * {high - low:g} / 255" + (f" {'-' if low < 0 else '+'} {abs(low):g}" if low else "")


def _listed(shape: Any) -> str:
    return ", ".join(map(str, shape))
