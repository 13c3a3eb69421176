"""Writing files whole or not at all, and so that a power cut does not undo it; reading what may not be a file."""

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
"""Of a file: itself, or what writes it to the path that it is given."""
SYNC_THREADS = 16
"""Files synced at once: file systems with a journal then write it once for all of them."""
SYNC_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system says that cannot sync this; there is nothing more to be done there."""
READ_LIMIT = 2**28
"""Bytes that are read of a file at most, where nothing says how large it should be."""


@contextmanager
def file_errors(path: str | Path, what: str = "could not be written") -> Iterator[None]:
    """Raise an OSError inside as a SdesamplersError of one sentence that names the path."""
    try:
        yield
    except OSError as error:
        raise SdesamplersError(f"{path} {what}: {error.strerror or error}") from None


def make_folder(folder: str | Path) -> Path:
    """Create an output folder, or say why it cannot be."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{{out}} {folder}: {error.strerror}", arguments={"out": "out"}) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{{out}} {folder}: not writable", arguments={"out": "out"})
    return folder


def make_lasting_folder(folder: Path) -> Path:
    """`make_folder`, with every folder made on the way synced into the one that it lies in."""
    with file_errors(folder):
        made = [place for place in (folder, *folder.parents) if not place.exists()]
    make_folder(folder)
    for place in made:
        sync_folder(place.parent)
    return folder


@contextmanager
def output_folder(folder: str | Path) -> Iterator[Path]:
    """An output folder for a piece of work; if the work fails, the empty folders made for it are removed again."""
    folder = Path(folder)
    with file_errors(folder, "cannot be looked up"):
        made = [place for place in (folder, *folder.parents) if not place.exists()]
    make_folder(folder)
    try:
        yield folder
    except BaseException:
        with suppress(OSError):  # a folder that holds something stays
            for place in made:
                place.rmdir()
        raise


@dataclass(frozen=True)
class Draft:
    """A whole file that does not have its name yet.

    Attributes:
        path: its name, once it is committed.
        temporary: where it is until then.
        bytes, sha256: of the content that was meant, whatever a disk made of it; of a content that wrote itself, of
            what is there.
    """

    path: Path
    temporary: Path
    bytes: int
    sha256: str

    def commit(self) -> None:
        """Give it its name, in place of what has it. The folder is not synced."""
        with file_errors(self.path):
            os.replace(self.temporary, self.path)

    def drop(self) -> None:
        """Remove it, unless it was committed."""
        with suppress(OSError):
            os.unlink(self.temporary)


def draft(path: Path, content: Content) -> Draft:
    """Write `content` beside `path`; see `sync`, then `Draft.commit`."""
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
    """Wait until the drafts' contents are on the disk."""
    if len(drafts) == 1:
        _sync_draft(drafts[0])
        return
    with ThreadPoolExecutor(SYNC_THREADS) as pool:
        list(pool.map(_sync_draft, drafts))


def _sync_draft(each: Draft) -> None:
    with file_errors(each.path):
        _sync(each.temporary, os.O_RDWR)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    if os.name == "nt":  # where folders cannot be opened, and names are synced with their files
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
    """Write `content` beside `path`, sync it, move it into place and sync the folder.

    Args:
        path: of the file.
        content: bytes, text, or a function that writes to the path that it is given.
        allowed: called just before the file is moved; what it raises leaves `path` as it was.

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
    """A regular file open for reading, and its size; never waits for a pipe.

    Raises:
        OSError: it cannot be opened, or is no regular file.
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
        OSError: it cannot be read, is no regular file, or is larger than `most` bytes.
    """
    with regular_file(path) as (file, size):
        if size > max_bytes:
            raise OSError(errno.EFBIG, f"larger than {max_bytes} bytes", str(path))
        return file.read(size)


def names_in(folder: Path) -> list[str]:
    """The names in a folder, sorted; none if there is no such folder.

    Raises:
        SdesamplersError: it cannot be read.
    """
    with file_errors(folder, "could not be read"):
        try:
            return sorted(os.listdir(folder))
        except FileNotFoundError:
            return []


def remove(path: Path) -> None:
    """Remove a file that may be gone already.

    Raises:
        SdesamplersError: it cannot be removed.
    """
    with file_errors(path, "could not be removed"):
        path.unlink(missing_ok=True)


def checksum(path: Path, size: int) -> str | None:
    """SHA-256 of a regular file, read piece by piece; None if it cannot be read or is not of `size` bytes."""
    whole = hashlib.sha256()
    try:
        with regular_file(path) as (file, found):
            while found == size and (piece := file.read(2**20)):
                whole.update(piece)
    except OSError:
        return None
    return whole.hexdigest() if found == size else None
