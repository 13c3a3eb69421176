"""Atomic file writes that survive a power cut, and reads that refuse anything but regular files."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import SdesamplersError, UsageError

Content = bytes | str | Callable[[Path], Any]
"""Content of a file: bytes, text, or a function that writes it to the path that it receives."""
SYNC_THREADS = 16
"""Files synced at once; a journaling file system then commits its journal once for all of them."""
SYNC_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Error numbers of file systems that do not support syncing; they are ignored."""
EMPTY = "{out} must be the path of a folder, not empty; for the present one pass '.'"
READ_LIMIT = 2**28
"""Default maximum size of a file that is read, in bytes."""


@contextmanager
def file_errors(path: str | Path, what: str = "could not be written") -> Iterator[None]:
    """Convert an OSError in the context to a SdesamplersError with the message "PATH WHAT: reason"."""
    try:
        yield
    except OSError as error:
        raise SdesamplersError(f"{path} {what}: {error.strerror or error}") from None


def make_folder(folder: str | Path) -> Path:
    """Create an output folder.

    Raises:
        UsageError: the folder cannot be created or is not writable.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{{out}} {folder}: {error.strerror}", arguments={"out": "out"}) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{{out}} {folder}: not writable", arguments={"out": "out"})
    return folder


def make_lasting_folder(folder: Path) -> Path:
    """`make_folder`, which also syncs the parent of every folder that it creates."""
    with file_errors(folder):
        made = [place for place in (folder, *folder.parents) if not place.exists()]
    make_folder(folder)
    for place in made:
        sync_folder(place.parent)
    return folder


@contextmanager
def output_folder(folder: str | Path) -> Iterator[Path]:
    """Create an output folder for the body; if the body fails, remove the folders created for it that are empty.

    Raises:
        UsageError: the path is empty, or the folder cannot be created or is not writable.
    """
    if not str(folder):
        raise UsageError(EMPTY, arguments={"out": "out"})
    folder = Path(folder)
    with file_errors(folder, "cannot be accessed"):
        made = [place for place in (folder, *folder.parents) if not place.exists()]
    make_folder(folder)
    try:
        yield folder
    except BaseException:
        with suppress(OSError):  # the folder is not empty
            for place in made:
                place.rmdir()
        raise


@dataclass(frozen=True)
class Draft:
    """A complete file under a temporary name.

    Attributes:
        path: its final path, once it is committed.
        temporary: its path until then.
        bytes: size of the content.
        sha256: checksum of the content. For bytes and text, both are those of the intended content, even if the disk
            corrupts it; for content written by a function, those of the file.
    """

    path: Path
    temporary: Path
    bytes: int
    sha256: str

    def commit(self) -> None:
        """Move it to its final path, replacing any file there. The folder is not synced."""
        with file_errors(self.path):
            os.replace(self.temporary, self.path)

    def drop(self) -> None:
        """Remove the temporary file, unless it was committed."""
        with suppress(OSError):
            os.unlink(self.temporary)


def draft(path: Path, content: Content) -> Draft:
    """Write `content` to a temporary file beside `path`; then call `sync` and `Draft.commit`."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{path.suffix}")
    try:
        with file_errors(path):
            size, sha256 = _fill(temporary, content)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return Draft(path, temporary, size, sha256)


def _fill(temporary: Path, content: Content) -> tuple[int, str]:
    data = content.encode() if isinstance(content, str) else b"" if callable(content) else content
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest) :]
    finally:
        os.close(handle)
    if callable(content):
        content(temporary)
        data = temporary.read_bytes()
    return len(data), hashlib.sha256(data).hexdigest()


def sync(drafts: Sequence[Draft]) -> None:
    """Flush the contents of the drafts to disk."""
    if len(drafts) == 1:
        _sync_draft(drafts[0])
        return
    with ThreadPoolExecutor(SYNC_THREADS) as pool:
        list(pool.map(_sync_draft, drafts))


def _sync_draft(each: Draft) -> None:
    with file_errors(each.path):
        _sync(each.temporary, os.O_RDWR)


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to disk."""
    if os.name == "nt":  # Windows cannot open folders, and syncs names with their files
        return
    with file_errors(folder):
        _sync(folder, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in SYNC_UNSUPPORTED:
            raise
    finally:
        os.close(handle)


def write(path: Path, content: Content, before_commit: Callable[[], Any] = lambda: None) -> Path:
    """Write a file atomically: to a temporary file, which is synced and moved to `path`; then sync the folder.

    Args:
        path: the file's path.
        content: bytes, text, or a function that writes to the path that it receives.
        before_commit: called just before the file is moved; if it raises, `path` is left unchanged.

    Raises:
        SdesamplersError: the file could not be written.
    """
    made = draft(path, content)
    try:
        sync([made])
        before_commit()
        made.commit()
    finally:
        made.drop()
    sync_folder(path.parent)
    return path


@contextmanager
def regular_file(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file for reading; yield it and its size. Never blocks on a pipe.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        with os.fdopen(handle, "rb", closefd=False) as file:
            yield file, facts.st_size
    finally:
        os.close(handle)


def read(path: Path, max_bytes: int = READ_LIMIT) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is larger than `max_bytes`.
    """
    with regular_file(path) as (file, size):
        if size > max_bytes:
            raise OSError(errno.EFBIG, f"larger than {max_bytes} bytes", str(path))
        return file.read(size)


def names_in(folder: Path) -> list[str]:
    """The sorted names in a folder; empty if the folder does not exist.

    Raises:
        SdesamplersError: the folder cannot be read.
    """
    with file_errors(folder, "could not be read"):
        try:
            return sorted(os.listdir(folder))
        except FileNotFoundError:
            return []


def remove(path: Path) -> None:
    """Remove a file if it exists.

    Raises:
        SdesamplersError: the file cannot be removed.
    """
    with file_errors(path, "could not be removed"):
        path.unlink(missing_ok=True)


def checksum(path: Path, size: int) -> str | None:
    """SHA-256 of a regular file, read in chunks; None if it cannot be read or its size is not `size` bytes."""
    whole = hashlib.sha256()
    try:
        with regular_file(path) as (file, found):
            while found == size and (piece := file.read(2**20)):
                whole.update(piece)
    except OSError:
        return None
    return whole.hexdigest() if found == size else None
