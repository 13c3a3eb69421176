"""Relative paths in a YAML file of options: what a file names is beside it, what a run writes is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..hub.address import is_address
from ..io.paths import expanded
from ..sampling.table import TUNED

INPUTS = ("recipe", "metrics", "reference", "inception_weights", "prompts", "baseline")
"""Parameters that are paths of files to read."""
NAMES = ("source", "sources", "data", "sampler", "samplers", "teacher", "warm_start", "condition")
"""Parameters that may be a name, a number or a path: a path if there is such a file."""


def from_folder(folder: Path, name: str, text: str) -> str:
    """The text of a parameter as it would be typed in the present folder.

    Args:
        folder: of the YAML file.
        name: of the parameter.
        text: its value in the YAML file, in which paths are relative to `folder`.
    """
    if folder == Path():  # keeps texts such as ./tables, in which the point says that it is a path
        return text
    if name in INPUTS:
        return text if is_elsewhere(text) else str(folder / text)
    if name == "warm_start":
        return _existing(folder, text, lambda path: path != TUNED)
    if name in ("sampler", "samplers", "teacher"):
        return ",".join(_existing(folder, part, _is_path) for part in text.split(","))
    if name in NAMES:
        return _existing(folder, text, _is_unregistered)
    return text


def option_from_folder(folder: Path, text: str) -> str:
    """The value of a sampler's option as it would be typed in the present folder: a file's path, or itself."""
    return text if folder == Path() else _existing(folder, text, _is_path)


def is_elsewhere(text: str) -> bool:
    """True for a path or address that is not relative to a folder."""
    return is_address(text) or expanded(text).is_absolute()


def _existing(folder: Path, text: str, may_be_path: Callable[[str], bool]) -> str:
    """A path below the folder, if there is such a file or folder; any other text unchanged."""
    stripped = text.strip()
    file, colon, attribute = stripped.rpartition(":")
    path = file if file.endswith(".py") else stripped  # FILE.py:NAME is a model
    if not path or is_elsewhere(path) or not may_be_path(path):
        return text
    try:
        there = (folder / path).exists()
    except (OSError, ValueError):  # a name that is too long
        there = False
    if not there:
        return text
    return str(folder / path) + (f"{colon}{attribute}" if path == file else "")


def _is_path(text: str) -> bool:
    from ..sampling.table import is_path

    return is_path(text) or Path(text).suffix in (".safetensors", ".npy")


def _is_unregistered(text: str) -> bool:
    from ..io.datasets import EMBEDDED
    from ..registry.registry import default_registry

    return text not in default_registry().catalogue.models and text not in EMBEDDED
