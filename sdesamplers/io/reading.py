"""Pictures and arrays from files that nobody vouches for: right, or refused in a line, in bounded time and memory."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import SdesamplersError, UsageError
from .text import one_line, printable

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
"""What a file may hold, whatever it is called: formats that run no other program and hold no script."""

UNSUPPORTED = {
    "F": "floating-point numbers, whose range it does not say; give an .npy file in the model's range",
    "I": "32-bit whole numbers, whose range it does not say; give an .npy file in the model's range",
    "CMYK": "amounts of ink (CMYK), whose colours depend on the printer; convert it to RGB first",
    "LAB": "CIELAB colours; convert it to RGB first",
}
TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
WHITE_16_BIT = 65535
"""White in pictures of 16 bits."""

ORIENTATION = 0x0112
"""The Exif tag."""

SIDEWAYS = (5, 6, 7, 8)
"""Orientations in which rows and columns change places."""


def regular_path(file: Path, what: str = "") -> Path:
    """The file, where it is one: FIFOs and devices could be read for ever.

    Raises:
        UsageError: it is not a regular file, or not there.
    """
    try:
        good = file.is_file()
    except OSError:  # a name too long, or a folder that may not be searched
        good = False
    if not good:
        raise UsageError(f"{what}{printable(file)} is not a regular file")
    return file


def read_picture(file: Path, mode: str, size: tuple[int, int] | None) -> np.ndarray:
    """The pixels of a picture file; see `pixels`. A file of another size is refused before it is decoded."""
    from PIL import Image, UnidentifiedImageError  # only pictures need it

    try:
        with warnings.catch_warnings():
            # Where a size is wanted it is looked at before anything is decoded.
            warnings.simplefilter("error" if size is None else "ignore", Image.DecompressionBombWarning)
            with Image.open(regular_path(file), formats=FORMATS) as picture:
                return pixels(picture, mode, size, str(printable(file)))
    except SdesamplersError:
        raise
    except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
        if isinstance(error, UnidentifiedImageError):
            raise UsageError(f"{printable(file)} is not a readable picture ({', '.join(FORMATS)})") from None
        raise UsageError(f"{printable(file)} is not a readable picture ({one_line(error)[:200]})") from None


def pixels(picture: Image, mode: str, size: tuple[int, int] | None, name: str) -> np.ndarray:
    """The pixels of a picture as it is to be looked at: float32 (H, W, channels), black at 0 and white at 255.

    Args:
        picture: any; 16 bits a pixel keep all their values, and Exif's orientation is followed.
        mode: "L", "RGB" or "RGBA".
        size: width and height that it must have; None for any up to Pillow's limit.
        name: for messages.

    Raises:
        UsageError: another size, more than one frame, transparent places that the mode has no channel for, or numbers
            whose meaning is not known.
    """
    from PIL import ImageOps  # only pictures need it

    if size is not None and picture.size not in (size, size[::-1]):
        raise UsageError(wrong_size_message(name, picture.size, size))
    if getattr(picture, "is_animated", False):
        raise UsageError(f"{name} has several frames; give them as files of their own")
    orientation = picture.getexif().get(ORIENTATION, 1)
    if orientation in SIDEWAYS and picture.format == "TIFF":  # Pillow 13 scrambles those that are not compressed
        raise UsageError(f"{name} is a TIFF file that lies on its side; turn it upright and save it anew")
    turned = ImageOps.exif_transpose(picture) if orientation != 1 else picture
    if size is not None and turned.size != size:
        raise UsageError(wrong_size_message(name, turned.size, size))
    if has_16_bits(picture):
        levels = np.asarray(turned)
        if mode != "RGBA" and np.any(levels == turned.info.get("transparency", -1)):
            raise UsageError(transparency_message(name))
        values = levels.astype(np.float32) * np.float32(255 / WHITE_16_BIT)
        return np.repeat(values[..., None], 1 if mode == "L" else 3, axis=-1) if mode != "RGBA" else opaque(values)
    if reason := UNSUPPORTED.get(turned.mode):
        raise UsageError(f"{name} holds {reason}")
    if mode != "RGBA" and (turned.mode in TRANSPARENT or "transparency" in turned.info):
        if turned.convert("RGBA").getchannel("A").getextrema()[0] != 255:
            raise UsageError(transparency_message(name))
        turned = turned.convert("RGBA").convert("RGB")
    found = np.asarray(turned.convert(mode)).astype(np.float32)
    return found.reshape(*found.shape[:2], -1)


def transparency_message(name: str) -> str:
    """What a picture is told whose transparency would be lost."""
    return f"{name} has transparent places; put it on a background first"


def opaque(values: np.ndarray) -> np.ndarray:
    """Grey values (H, W) as RGBA."""
    return np.stack([values, values, values, np.full_like(values, 255)], axis=-1)


def has_16_bits(picture: Image) -> bool:
    """Whether a grey picture has 16 bits a pixel; Pillow before 11 calls those of PNG files "I"."""
    return picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG")


def wrong_size_message(name: str, found: tuple[int, int], wanted: tuple[int, int]) -> str:
    """What a picture of another size is told."""
    return f"{name} is {found[0]}x{found[1]}, and this model takes {wanted[0]}x{wanted[1]}"


def read_array(file: Path) -> np.ndarray:
    """An .npy file, mapped into memory, so that its header cannot claim more than there is.

    Raises:
        UsageError: not one, or one that holds anything but real numbers.
    """
    try:
        found: Any = np.load(regular_path(file), mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy takes a file for a zip archive or a pickle by its first bytes
        raise UsageError(f"{printable(file)} is not a readable .npy file ({one_line(error)[:200]})") from None
    if not isinstance(found, np.ndarray):
        raise UsageError(f"{printable(file)} holds several arrays; give one as an .npy file")
    if found.dtype.kind not in "iuf" or found.dtype.itemsize > 8:
        raise UsageError(f"{printable(file)} holds {found.dtype}, and real numbers are needed")
    return found


def check_levels(values: Any, name: str) -> None:
    """Raise UsageError where whole numbers are not levels from 0 to 255."""
    least, most = int(values.min()), int(values.max())
    if least < 0 or most > 255:
        raise UsageError(
            f"{name} holds whole numbers from {least} to {most}, and levels from 0 to 255 are needed; give "
            "floating-point numbers in the model's range"
        )
