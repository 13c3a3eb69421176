"""Data for a model: pictures, arrays and tensors from files, converted to the model's range."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..checks import whole
from ..errors import UnknownNameError, UsageError
from ..models.base import Model
from ..text import one_line, printable
from .paths import expanded
from .reading import check_levels, pixels, read_array, read_picture, regular_path

if TYPE_CHECKING:
    from PIL.Image import Image

Data: TypeAlias = "Tensor | np.ndarray | Image | Sequence[Image]"
"""Data arguments: floating-point numbers (N, *shape) in the model's range, or PIL images."""

FAR = 16.0
"""Distance from the middle of the data range, in half widths of the range, beyond which data are refused as being in
other units: pixels from 0 to 255 reach it, noise as wide as the range never does."""

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
EMBEDDED = {"fashion-mnist-test": (Path(__file__).parent.parent / "assets" / "fashion-mnist-test" / "images.png", 28)}
"""Data sets that ship with the library: a sheet of pictures, and the side of each picture in pixels."""
MANIFEST = "manifest.json"
"""The file that `generate` and the command `sample` write last into a folder of samples."""
ACCEPTED = f"a folder or file of pictures ({', '.join(PICTURES)}), .npy, .safetensors, or {', '.join(EMBEDDED)}"


def as_states(model: Model, x: Any, what: Literal["data", "latents"]) -> Tensor:
    """Return x as floating-point states (N, *shape) of a model.

    Data may also be PIL images of the model's size.

    Raises:
        UsageError: another type or shape, NaN or infinity, or data far outside the model's range.
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
    if not bool(x.detach().isfinite().all()):
        raise UsageError(f"{what} contain NaN or infinity")
    if what == "data" and model.data_range is not None:
        check_range(x, model.data_range)
    return x


def advice(model: Model, x: Tensor, what: str) -> str:
    """Advice on converting x to states, for messages; "" if there is none."""
    if what == "data" and not x.is_floating_point() and model.data_range is not None:
        low, high = model.data_range
        return (
            f"; scale whole numbers from 0 to 255 to the model's range [{low:g}, {high:g}] by "
            f"{scaling(model.data_range)}, or pass PIL images"
        )
    return "; pass a single sample as x[None]" if tuple(x.shape) == model.shape else ""


def check_range(x: Tensor, data_range: tuple[float, float]) -> None:
    """Raise UsageError if data lie so far outside the range that they must be in other units."""
    low, high = data_range
    least, most = (float(v) for v in x.detach().aminmax())
    if max(most - (low + high) / 2, (low + high) / 2 - least) > FAR * (high - low) / 2:
        raise UsageError(
            f"data lie between {least:g} and {most:g}, far outside the model's range [{low:g}, {high:g}]; scale pixels "
            f"from 0 to 255 by {scaling(data_range)}"
        )


def read_data(source: str | Path, model: Model, *, limit: int | None = None) -> tuple[Tensor, list[str]]:
    """Read data (N, *shape) for a model, float32 in its range, and a name for each sample.

    Pictures and whole numbers from 0 to 255 are scaled to the model's range; floating-point arrays are used unchanged.
    Pictures must have the model's size; they have 8 or 16 bits, are converted to the model's number of channels and
    rotated according to their Exif orientation. Bytes of file names that are not UTF-8 are escaped.

    Args:
        source: a folder or file of pictures, a folder that `generate` or the command `sample` has written, an .npy or
            .safetensors file (its only tensor, or "samples"), or the name of an embedded data set.
        model: the model that the data are for.
        limit: maximum number of samples; the first ones are read.

    Raises:
        UsageError: no such data, an unreadable file, or data of another shape or type.
    """
    path = expanded(source)
    if str(source) in EMBEDDED:
        return _sheet(*EMBEDDED[str(source)], model, limit)
    if not _exists(path):
        raise UnknownNameError("data set", printable(source), EMBEDDED, f"; nor is it {ACCEPTED}")
    if path.is_dir():
        if (path / MANIFEST).is_file() and not _is_of_another_program(path):
            return _samples(path, model, limit)
        files = _listed_pictures(path)[:limit]
        return _pictures(files, model), [printable(file.name) for file in files]
    if path.suffix.lower() in PICTURES:
        return _pictures([path], model), [printable(path.name)]
    data = _array(regular_path(path), model, limit)
    return data, [str(k) for k in range(len(data))]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or a folder without search permission
        return False


def _listed_pictures(folder: Path) -> list[Path]:
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURES)
    except OSError as error:
        raise UsageError(f"{printable(folder)} cannot be read: {error.strerror}") from None
    if not files:
        raise UsageError(f"{printable(folder)} holds no pictures ({', '.join(PICTURES)})")
    return files


def _is_of_another_program(folder: Path) -> bool:
    """True for a folder with pictures whose manifest.json has another purpose: that of a web page, for example."""
    try:
        facts = json.loads(regular_path(folder / MANIFEST).read_bytes())
        has_pictures = any(file.suffix.lower() in PICTURES for file in folder.iterdir())
    except (OSError, ValueError, RecursionError):
        return False
    return has_pictures and (not isinstance(facts, dict) or "shards" not in facts)


def _samples(folder: Path, model: Model, limit: int | None) -> tuple[Tensor, list[str]]:
    """The samples in the folder of a job: those in its .safetensors files, which are exact, or else its pictures."""
    name = printable(folder)
    try:
        facts = json.loads(regular_path(folder / MANIFEST).read_bytes())
        written = {kind: _files_of(facts, kind) for kind in ("safetensors", "png")}
        total = sum(whole("count", shard["count"]) for shard in facts["shards"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{name}/{MANIFEST} is not the manifest of samples ({one_line(error)[:200]})") from None
    if written["safetensors"]:
        parts: list[Tensor] = []
        for file in written["safetensors"]:
            left = None if limit is None else limit - sum(map(len, parts))
            if left == 0:
                break
            parts.append(_array(regular_path(folder / file), model, left))
        data = torch.cat(parts)
        return data, [str(k) for k in range(len(data))]
    if not written["png"]:
        kinds = ", ".join(map(printable, facts.get("formats") or ["nothing"]))
        raise UsageError(
            f"{name} holds its samples as {kinds}, from which they cannot be read back; sample with --format "
            "safetensors or --format png (in Python, formats=)"
        )
    files = [file for file in _listed_pictures(folder) if SAMPLE.fullmatch(file.name)]
    if len(files) != total:
        raise UsageError(f"{name} holds {len(files)} pictures, and its {MANIFEST} lists {total}")
    return _pictures(files[:limit], model), [file.name for file in files[:limit]]


SAMPLE = re.compile(r"sample-\d+\.png", re.ASCII)
"""The name of a picture that a job has written."""


def _files_of(manifest: Any, kind: str) -> list[str]:
    """The first file of each shard in one format, in the order of the samples; [] if the job has not that format."""
    listed = [shard["files"][kind]["name"] for shard in manifest["shards"] if kind in shard["files"]]
    if any(Path(file).name != file for file in listed):
        raise ValueError("a file outside of the folder")
    return [str(file) for file in listed]


def _array(path: Path, model: Model, limit: int | None) -> Tensor:
    """The data in an .npy or .safetensors file, float32 in the model's range."""
    name = printable(path)
    if path.suffix == ".npy":
        found = read_array(path)
        _check_shape(found.shape, model, name)
        part = found[:limit]
        if found.dtype.kind != "f" and part.size:
            check_levels(part, name)
        values = torch.from_numpy(np.array(part, dtype=np.float32))
        whole = found.dtype.kind != "f"
    elif path.suffix == ".safetensors":
        tensor = _only_tensor(path, name)
        _check_shape(tensor.shape, model, name)
        tensor = tensor[:limit]
        whole = not tensor.is_floating_point()
        if whole and (tensor.dtype == torch.bool or tensor.is_complex()):
            raise UsageError(f"{name} holds {tensor.dtype} values; real numbers are required")
        if whole and len(tensor):
            check_levels(tensor, name)
        values = tensor.float()
    else:
        raise UsageError(f"{name} is not {ACCEPTED}")
    return scaled_to(values, model) if whole else values


def _check_shape(shape: Sequence[int], model: Model, name: str) -> None:
    if tuple(shape[1:]) != model.shape or not shape[0]:
        found = tuple(shape) if len(shape) < 10 else f"an array of {len(shape)} dimensions"
        raise UsageError(f"{name} holds {found}; this model requires (N, {_joined(model.shape)}), N at least 1")


def _only_tensor(path: Path, name: str) -> Tensor:
    """The only tensor of a .safetensors file, or its "samples"."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise UsageError(f"{name} is not a readable .safetensors file ({one_line(error)[:200]})") from None
    if len(tensors) != 1 and "samples" not in tensors:
        held = printable(", ".join(sorted(tensors)[:6])) or "nothing"
        raise UsageError(f"{name} holds {held}; it must hold a single tensor, or one named samples")
    return tensors["samples"] if "samples" in tensors else next(iter(tensors.values()))


def _pictures(files: list[Path], model: Model) -> Tensor:
    mode, size = _mode(model, "pass an .npy or .safetensors file")
    found = [read_picture(file, mode, size) for file in files]
    return _data(found, model)


def _data(pictures: list[np.ndarray], model: Model) -> Tensor:
    """Pixels (H, W, C) of each picture as data (N, C, H, W) in the model's range."""
    return scaled_to(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), model)


def pictures_in(x: Any) -> list[Image] | None:
    """Return a PIL image or a sequence of them as a list; None for anything else."""
    if isinstance(x, Tensor | np.ndarray):
        return None
    from PIL.Image import Image  # only pictures need it

    found = list(x) if isinstance(x, list | tuple) else [x]
    return found if found and all(isinstance(each, Image) for each in found) else None


def from_pictures(pictures: Sequence[Image], model: Model) -> Tensor:
    """Convert PIL images to data (N, *shape) for a model, float32 in its range, with its number of channels.

    Raises:
        UsageError: a picture of another size than the model's, or a model whose samples are not pictures.
    """
    mode, size = _mode(model, "pass floating-point numbers of that shape")
    return _data([pixels(picture, mode, size, f"picture {k}") for k, picture in enumerate(pictures)], model)


def _mode(model: Model, advice: str) -> tuple[str, tuple[int, int]]:
    """PIL's mode for a model's number of channels, and the model's (width, height)."""
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(model.shape[0]) if len(model.shape) == 3 else None
    if mode is None:
        raise UsageError(f"this model's samples, of shape {model.shape}, are not pictures; {advice}")
    return mode, (model.shape[2], model.shape[1])


def _sheet(file: Path, side: int, model: Model, limit: int | None) -> tuple[Tensor, list[str]]:
    from PIL import Image  # only pictures need it

    sheet = np.asarray(Image.open(file))
    rows, columns = sheet.shape[0] // side, sheet.shape[1] // side
    cut = sheet.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, 1, side, side)[:limit]
    if tuple(cut.shape[1:]) != model.shape:
        raise UsageError(f"{file.parent.name} holds pictures {tuple(cut.shape[1:])}; this model requires {model.shape}")
    return scaled_to(torch.from_numpy(cut.copy()), model), [str(k) for k in range(len(cut))]


def scaled_to(pixels: Tensor, model: Model) -> Tensor:
    """Scale whole numbers from 0 to 255 to a model's data range, as float32.

    Raises:
        UsageError: the model has no data range.
    """
    if model.data_range is None:
        raise UsageError(
            "this model has no data range, so whole numbers cannot be scaled to it; pass floating-point data"
        )
    low, high = model.data_range
    return pixels.float() * ((high - low) / 255) + low


def scaling(data_range: tuple[float, float]) -> str:
    """The formula of `scaled_to`, for messages: "x * 2 / 255 - 1"."""
    low, high = data_range
    return f"x * {high - low:g} / 255" + (f" {'-' if low < 0 else '+'} {abs(low):g}" if low else "")


def _joined(shape: Any) -> str:
    return ", ".join(map(str, shape))
