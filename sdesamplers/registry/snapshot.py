"""The cache of what the installed plugins register, so that listings import neither the plugins nor torch.

A snapshot is valid for one interpreter and search path, as long as nothing has changed from which it was made: the file
of every module that was loaded, the folders of packages, the distributions on the search path, and their entry points.
In any doubt there is no snapshot, and the plugins are imported. It is data; nothing in it is executed.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..version import __version__

FORMAT = 2
SETTING = "SDESAMPLERS_NO_CACHE"
"""Environment variable that turns the cache off."""
MOST = 16
"""Number of snapshots kept: of the interpreters and search paths that were used last."""
LOADED = time.time_ns()
MARGIN = 10 * 10**9
"""Nanoseconds. A file that was changed at or after LOADED, up to this margin for the time that the imports before took
and for coarse clocks of file systems, may have another content than the module that was loaded from it."""

Stamp = list[int]
"""Times of the last changes of a file's content and of its entry (ns), and its size."""


def cache_folder() -> Path:
    """The folder of the snapshots, in the user's cache folder."""
    named = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if os.name == "nt" else None)
    return Path(named or Path.home() / ".cache") / "sdesamplers"


def read_snapshot() -> dict[str, Any] | None:
    """The content of the snapshot for this interpreter and search path; None if there is none that is valid."""
    if os.environ.get(SETTING):
        return None
    try:
        check, _, text = _file().read_text(encoding="utf-8").partition("\n")
        if check != _checksum(text):
            return None
        data = json.loads(text)
        if data["identity"] != _identity() or data["places"] != _places(data["roots"]):
            return None
        if any(_stamp(file) != stamp for file, stamp in data["files"].items()):
            return None
        content: dict[str, Any] = data["content"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError):
        return None  # RuntimeError: there is no home folder
    return content


def write_snapshot(content: Mapping[str, Any]) -> None:
    """Write a snapshot, atomically; without a message if the cache folder cannot be written.

    Nothing is written if a loaded module has no file, or a file that was changed too recently.
    """
    from ..errors import SdesamplersError
    from ..io.files import make_folder, write  # needed only to write

    files = _files()
    if os.environ.get(SETTING) or files is None:
        return
    roots = sorted({name.partition(".")[0] for name in sys.modules})
    identity, places = _identity(), _places(roots)
    data = {"identity": identity, "places": places, "roots": roots, "files": files, "content": content}
    text = json.dumps(data)
    with suppress(OSError, RuntimeError, SdesamplersError):
        write(make_folder(cache_folder()) / _file().name, f"{_checksum(text)}\n{text}")
        made = sorted(cache_folder().glob("registry-*.json"), key=lambda file: file.stat().st_mtime_ns)
        for file in made[:-MOST]:
            file.unlink(missing_ok=True)


def _file() -> Path:
    return cache_folder() / f"registry-{_checksum(json.dumps(_identity()))}.json"


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _identity() -> list[Any]:
    """What a snapshot belongs to: the format, the library, the interpreter and its search path."""
    return [FORMAT, __version__, sys.version, sys.executable, sys.prefix, [os.path.abspath(p) for p in sys.path]]


def _stamp(file: str | os.PathLike[str]) -> Stamp | None:
    """The stamp of a file; None if there is no such file."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return [found.st_mtime_ns, found.st_ctime_ns, found.st_size]


def _places(roots: list[str]) -> list[Any]:
    """For each entry of the search path: what could be imported as one of `roots`, and the distributions.

    A distribution has the stamp of its entry points.
    """
    known = set(roots)
    places: list[Any] = []
    for place in sys.path:
        try:
            names = sorted(os.listdir(place or "."))
        except OSError:  # an archive, or nothing
            places.append(_stamp(place))
            continue
        importable = [name for name in names if name.partition(".")[0] in known]
        dists = [name for name in names if name.endswith((".dist-info", ".egg-info"))]
        stamps = [_stamp(os.path.join(place, name, "entry_points.txt")) for name in dists]
        places.append([importable, dists, stamps])
    return places


def _files() -> dict[str, Stamp] | None:
    """The files of all loaded modules and the folders of packages, which a plugin may search for its modules.

    The standard library's are left out. None if one is missing or is too new.
    """
    import sysconfig  # needed only to write

    library = sysconfig.get_path("stdlib") + os.sep
    packages = tuple(os.path.join(library, name) for name in ("site-packages", "dist-packages"))
    found = {}
    for module in list(sys.modules.values()):
        spec = getattr(module, "__spec__", None)
        if spec is None or not spec.has_location:  # as torch.ops, which has a `__file__`
            continue
        file = spec.origin
        if file is None or (file.startswith(library) and not file.startswith(packages)):
            continue
        for path in (file, *(spec.submodule_search_locations or ())):
            stamp = _stamp(path)
            if stamp is None or max(stamp[:2]) > LOADED - MARGIN:
                return None
            found[os.path.abspath(path)] = stamp
    return found
