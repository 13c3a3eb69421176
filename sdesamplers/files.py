"""Writing files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import SdesamplersError, UsageError


def make_folder(folder: str | Path) -> Path:
    """Create an output folder, or say why it cannot be."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"--out {folder}: not writable")
    return folder


@contextmanager
def output_folder(folder: str | Path) -> Iterator[Path]:
    """An output folder for a piece of work; where the work fails, the empty folders made for it go again."""
    folder = Path(folder)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    make_folder(folder)
    try:
        yield folder
    except BaseException:
        with suppress(OSError):  # a folder that holds something stays
            for place in made:
                place.rmdir()
        raise


def write(path: Path, content: bytes | str | Callable[[Path], Any]) -> Path:
    """Write `content` (or let it write to the path that it is given) beside `path`, then move it into place."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    except OSError as error:
        raise SdesamplersError(f"{path} could not be written: {error.strerror or error}") from None
    os.close(handle)
    temporary = Path(name)
    try:
        if callable(content):
            content(temporary)
        elif isinstance(content, str):
            temporary.write_text(content, encoding="utf-8")
        else:
            temporary.write_bytes(content)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise SdesamplersError(f"{path} could not be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
