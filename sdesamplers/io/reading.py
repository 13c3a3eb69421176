"""Pictures and arrays from untrusted files: read correctly or refused with a message, in bounded time and memory."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import SdesamplersError, UsageError
from ..text import one_line, printable

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
"""Accepted picture formats, whatever the file name: formats that run no other program and contain no scripts."""

UNSUPPORTED = {
    "F": "floating-point numbers of unknown range; pass an .npy file in the model's range",
    "I": "32-bit whole numbers of unknown range; pass an .npy file in the model's range",
    "CMYK": "CMYK inks, whose colours depend on the printer; convert it to RGB first",
    "LAB": "CIELAB colours; convert it to RGB first",
}
TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
WHITE_16_BIT = 65535
"""The value of white in 16-bit pictures."""

ORIENTATION = 0x0112
"""Exif tag of the orientation."""

SIDEWAYS = (5, 6, 7, 8)
"""Exif orientations that swap rows and columns."""


def regular_path(file: Path, what: str = "") -> Path:
    """Return the path of a regular file; reading a FIFO or a device may never end.

    Raises:
        UsageError: not a regular file, or no such file.
    """
    try:
        good = file.is_file()
    except OSError:  # a name that is too long, or a folder without search permission
        good = False
    if not good:
        raise UsageError(f"{what}{printable(file)} is not a regular file")
    return file


def read_picture(file: Path, mode: str, size: tuple[int, int] | None) -> np.ndarray:
    """Read the pixels of a picture file; see `pixels`. A picture of another size is refused before it is decoded."""
    from PIL import Image, UnidentifiedImageError  # only pictures need it

    try:
        with warnings.catch_warnings():
            # If a size is required, it is checked before anything is decoded.
            warnings.simplefilter("error" if size is None else "ignore", Image.DecompressionBombWarning)
            with Image.open(regular_path(file), formats=FORMATS) as picture:
                return pixels(picture, mode, size, str(printable(file)))
    except SdesamplersError:
        raise
    except Exception as error:  # Pillow's readers raise errors of any class for a broken file
        if isinstance(error, UnidentifiedImageError):
            raise UsageError(f"{printable(file)} is not a readable picture ({', '.join(FORMATS)})") from None
        raise UsageError(f"{printable(file)} is not a readable picture ({one_line(error)[:200]})") from None


def pixels(picture: Image, mode: str, size: tuple[int, int] | None, name: str) -> np.ndarray:
    """The pixels of a picture as displayed: float32 (H, W, channels), 0 for black and 255 for white.

    Args:
        picture: a picture; 16-bit values keep their full precision, and the Exif orientation is applied.
        mode: "L", "RGB" or "RGBA".
        size: required (width, height); None for any size up to Pillow's limit.
        name: the picture's name in messages.

    Raises:
        UsageError: another size, several frames, transparency that the mode has no channel for, or pixel values whose
            meaning is unknown.
    """
    from PIL import ImageOps  # only pictures need it

    if size is not None and picture.size not in (size, size[::-1]):
        raise UsageError(wrong_size_message(name, picture.size, size))
    if getattr(picture, "is_animated", False):
        raise UsageError(f"{name} has several frames; pass them as separate files")
    orientation = picture.getexif().get(ORIENTATION, 1)
    if orientation in SIDEWAYS and picture.format == "TIFF":  # Pillow 13 scrambles the uncompressed ones
        raise UsageError(f"{name} is a TIFF file rotated by its Exif orientation; save it upright")
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
    """The message for a picture whose transparency would be lost."""
    return f"{name} has transparent pixels; put it on an opaque background first"


def opaque(values: np.ndarray) -> np.ndarray:
    """Grey values (H, W) as opaque RGBA (H, W, 4)."""
    return np.stack([values, values, values, np.full_like(values, 255)], axis=-1)


def has_16_bits(picture: Image) -> bool:
    """True for a grey picture with 16 bits per pixel; before Pillow 11 the mode of such PNG files is "I"."""
    return picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG")


def wrong_size_message(name: str, found: tuple[int, int], wanted: tuple[int, int]) -> str:
    """The message for a picture of another size."""
    return f"{name} is {found[0]}x{found[1]} pixels; this model requires {wanted[0]}x{wanted[1]}"


def read_array(file: Path) -> np.ndarray:
    """Memory-map an .npy file, so that a forged header cannot allocate more than the file's size.

    Raises:
        UsageError: not an .npy file, or not an array of real numbers.
    """
    try:
        found: Any = np.load(regular_path(file), mmap_mode="r", allow_pickle=False)
    except Exception as error:  # by its first bytes NumPy may treat the file as a zip archive or a pickle
        raise UsageError(f"{printable(file)} is not a readable .npy file ({one_line(error)[:200]})") from None
    if not isinstance(found, np.ndarray):
        raise UsageError(f"{printable(file)} holds several arrays; save one of them as an .npy file")
    if found.dtype.kind not in "iuf" or found.dtype.itemsize > 8:
        raise UsageError(f"{printable(file)} holds {found.dtype} values; real numbers are required")
    return found


def check_levels(values: Any, name: str) -> None:
    """Raise UsageError if whole numbers are not levels from 0 to 255."""
    least, most = int(values.min()), int(values.max())
    if least < 0 or most > 255:
        raise UsageError(
            f"{name} holds whole numbers from {least} to {most}; pass levels from 0 to 255, or floating-point numbers "
            "in the model's range"
        )
