"""Whether a model's files may be opened: none of its code is run, and nothing outside its folder is read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ModelError

CODE_KEYS = ("auto_map", "custom_pipelines", "custom_generate", "trust_remote_code")
"""Keys of configurations that name Python code of the repository, or of another one."""

LARGEST = 64 * 2**20
"""Bytes of a configuration; the largest index of published weights has a tenth of that."""

POINTERS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")


def read_json(file: Path) -> dict[str, Any]:
    """A configuration file.

    Raises:
        ModelError: it is not there, not a regular file, a Git LFS pointer, or not a JSON object.
    """
    try:
        if not file.is_file() and file.exists():
            raise ModelError(f"{file}: not a regular file")
        if file.stat().st_size > LARGEST:
            raise ModelError(f"{file}: too large for a configuration ({file.stat().st_size} bytes)")
        text = file.read_bytes()
        if text.startswith(POINTERS):
            raise ModelError(pointer_message(file))
        data = json.loads(text.decode("utf-8"))
    except OSError as error:
        raise ModelError(f"{file}: {error.strerror}") from None
    except RecursionError:
        raise ModelError(f"{file}: not a valid JSON file (nested too deeply)") from None
    except ValueError as error:
        raise ModelError(f"{file}: not a valid JSON file ({error})") from None
    if not isinstance(data, dict):
        raise ModelError(f"{file}: not a configuration (a JSON object was expected)")
    return data


def pointer_message(file: Path) -> str:
    """What a Git LFS pointer is called."""
    return f"{file} is a Git LFS pointer, not the file itself; run `git lfs pull` in the repository, or download it"


def refuse_pointer(file: Path) -> None:
    """Raise ModelError where a file is a Git LFS pointer instead of what it should hold."""
    try:
        with file.open("rb") as opened:
            found = opened.read(100).startswith(POINTERS)
    except OSError as error:
        raise ModelError(f"{file}: {error.strerror}") from None
    if found:
        raise ModelError(pointer_message(file))


def refuse_pickles(folder: Path, pickled: Sequence[Path], *, allowed: bool) -> None:
    """Raise ModelError where pickles, the only weights in a folder, are Git LFS pointers, or may not be opened."""
    for file in pickled:
        refuse_pointer(file)
    if pickled and not allowed:
        raise ModelError(
            f"{folder} has only pickled weights ({pickled[0].name}), which can run code when opened; if you trust "
            "their author, pass allow_pickle=True"
        )


def refuse_code(folder: Path) -> None:
    """Raise ModelError where a component's folder names code, files outside of it, or is not made of plain files."""
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not (file.is_file() or file.is_dir()) and os.path.lexists(file):
            raise ModelError(f"{file}: not a regular file" + (" (a broken link)" if file.is_symlink() else ""))
        if file.name == "adapter_config.json":
            raise ModelError(f"{file}: adapters name weights of another repository; merge them into the model first")
        if file.name.endswith(".index.json") or ".index." in file.name:
            refuse_index(file)
        elif file.name.endswith("config.json"):
            refuse_code_in(read_json(file), file)
        elif file.is_file() and file.suffix in (".json", ".model", ".txt"):
            refuse_pointer(file)


def refuse_code_in(config: Any, file: Path) -> None:
    """Raise ModelError where a configuration names code or files elsewhere, at any depth."""
    for key, value in _entries(config):
        if key in CODE_KEYS and value:
            raise ModelError(f"{file}: {key} names code, and code that comes with a model is not run")
        if not isinstance(value, str):
            continue
        if key.endswith("_implementation") and "/" in value:
            raise ModelError(f"{file}: {key} names code of {value!r}, and code of a repository is not run")
        if key == "transformers_weights" and not _is_inside(value):
            raise ModelError(f"{file}: {key} names {value!r}, which is not a safetensors file of its folder")


def _entries(config: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of nested mappings and lists; not recursive, since depth is the file's choice."""
    waiting = [config]
    while waiting:
        found = waiting.pop()
        if isinstance(found, Mapping):
            yield from found.items()
            waiting.extend(found.values())
        elif isinstance(found, list):
            waiting.extend(found)


def refuse_index(file: Path, ending: str | None = None) -> list[str]:
    """The files that an index of weights in pieces names.

    Raises:
        ModelError: it names files elsewhere, or, for safetensors, files that are not safetensors.
    """
    files = read_json(file).get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise ModelError(f"{file}: not an index of weights (a weight_map of names to files was expected)")
    ending = ending or (".bin" if ".bin.index" in file.name else ".safetensors")
    for name in dict.fromkeys(files.values()):
        if not _is_inside(name, ending):
            raise ModelError(f"{file} names {name!r}, which is not a {ending.lstrip('.')} file of its folder")
    return list(dict.fromkeys(files.values()))


def _is_inside(name: str, ending: str = ".safetensors") -> bool:
    """Whether a name is that of a file in the folder, with this ending, and no path."""
    return name.endswith(ending) and PurePosixPath(name).name == name and not set(name) & set("\\:\0")


@contextmanager
def closed_prompt() -> Iterator[None]:
    """Without the question on the terminal whether a repository's code may be run: transformers takes it for a no."""
    try:
        from transformers import dynamic_module_utils as theirs  # transformers takes seconds to import
    except ImportError:
        yield
        return
    before = getattr(theirs, "TIME_OUT_REMOTE_CODE", None)
    theirs.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        if before is not None:
            theirs.TIME_OUT_REMOTE_CODE = before
