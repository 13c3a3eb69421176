"""Checks of a model's files before they are opened: no code of it is run, no file outside its folder is read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ModelError

CODE_KEYS = ("auto_map", "custom_pipelines", "custom_generate", "trust_remote_code")
"""Configuration keys that name Python code, in the same or another repository."""

LARGEST = 64 * 2**20
"""Maximum size of a configuration in bytes; the largest index of published weights is a tenth of that."""

POINTERS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")


def read_json(file: Path) -> dict[str, Any]:
    """Read a configuration file.

    Raises:
        ModelError: the file is missing, not a regular file, too large, a Git LFS pointer, or not a JSON object.
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
    """Return the error message for a Git LFS pointer."""
    return f"{file} is a Git LFS pointer, not the file itself; run `git lfs pull` in the repository, or download it"


def refuse_pointer(file: Path) -> None:
    """Raise ModelError if a file is a Git LFS pointer instead of the actual content."""
    try:
        with file.open("rb") as opened:
            found = opened.read(100).startswith(POINTERS)
    except OSError as error:
        raise ModelError(f"{file}: {error.strerror}") from None
    if found:
        raise ModelError(pointer_message(file))


def refuse_pickles(folder: Path, pickled: Sequence[Path], *, allowed: bool) -> None:
    """Raise ModelError if pickles, the only weights in a folder, are Git LFS pointers or not allowed."""
    for file in pickled:
        refuse_pointer(file)
    if pickled and not allowed:
        raise ModelError(
            f"{folder} has only pickled weights ({pickled[0].name}), which can run code when opened; if you trust "
            "their author, pass allow_pickle=True"
        )


def refuse_code(folder: Path) -> None:
    """Raise ModelError if a component's folder refers to code or to files outside it, or has irregular files."""
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not (file.is_file() or file.is_dir()) and os.path.lexists(file):
            raise ModelError(f"{file}: not a regular file" + (" (a broken link)" if file.is_symlink() else ""))
        if file.name == "adapter_config.json":
            raise ModelError(f"{file}: adapters need weights of another repository; merge them into the model first")
        if file.name.endswith(".index.json") or ".index." in file.name:
            refuse_index(file)
        elif file.name.endswith("config.json"):
            refuse_code_in(read_json(file), file)
        elif file.is_file() and file.suffix in (".json", ".model", ".txt"):
            refuse_pointer(file)


def refuse_code_in(config: Any, file: Path) -> None:
    """Raise ModelError if a configuration refers, at any depth, to code or to files outside its folder."""
    for key, value in _entries(config):
        if key in CODE_KEYS and value:
            raise ModelError(f"{file}: {key} names code, and code that comes with a model is not run")
        if not isinstance(value, str):
            continue
        if key.endswith("_implementation") and "/" in value:
            raise ModelError(f"{file}: {key} names code in {value!r}, and code from a repository is not run")
        if key == "transformers_weights" and not _is_inside(value):
            raise ModelError(f"{file}: {key} names {value!r}, which is not a safetensors file in its folder")


def _entries(config: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key and value of nested mappings and lists; iterative, since a file may nest arbitrarily deep."""
    waiting = [config]
    while waiting:
        found = waiting.pop()
        if isinstance(found, Mapping):
            yield from found.items()
            waiting.extend(found.values())
        elif isinstance(found, list):
            waiting.extend(found)


def refuse_index(file: Path, ending: str | None = None) -> list[str]:
    """Return the files listed in an index of sharded weights.

    Raises:
        ModelError: not an index, or it lists files outside its folder or with another ending.
    """
    files = read_json(file).get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise ModelError(f"{file}: not an index of weights (a weight_map of names to files was expected)")
    ending = ending or (".bin" if ".bin.index" in file.name else ".safetensors")
    for name in dict.fromkeys(files.values()):
        if not _is_inside(name, ending):
            raise ModelError(f"{file} names {name!r}, which is not a {ending.lstrip('.')} file in its folder")
    return list(dict.fromkeys(files.values()))


def _is_inside(name: str, ending: str = ".safetensors") -> bool:
    """Return True if a name is a plain file name with this ending, without any path."""
    return name.endswith(ending) and PurePosixPath(name).name == name and not set(name) & set("\\:\0")


@contextmanager
def closed_prompt() -> Iterator[None]:
    """Suppress transformers' terminal prompt for running a repository's code; it is then treated as declined."""
    try:
        from transformers import dynamic_module_utils  # transformers takes seconds to import
    except ImportError:
        yield
        return
    before = getattr(dynamic_module_utils, "TIME_OUT_REMOTE_CODE", None)
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        if before is not None:
            dynamic_module_utils.TIME_OUT_REMOTE_CODE = before
