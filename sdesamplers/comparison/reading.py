"""Comparisons stored as JSON: their schema, which ships with the package, and former versions."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..hub.address import Address, is_address
from ..hub.download import fetch_file
from ..io.files import read
from ..io.paths import expanded

FOLDER, FILE = "compare", "compare.json"
"""The folder of a comparison in a Hub repository, and its file."""
SCHEMA_VERSION = 2
"""Version of `Comparison.as_dict` and `as_csv`; it increases if a field is removed or changes its meaning."""
LEVELS = ("model_name", "reference_count", "reference_nfe", "metrics", "floor", "model", "scorer", "guidance_scale")
"""Keys of version 1 that belong to a model and guidance scale, and since version 2 to an entry of `groups`."""


@functools.cache
def schema() -> dict[str, Any]:
    """The JSON Schema of the file, as `sdesamplers/comparison/schema.json`."""
    text = resources.files("sdesamplers").joinpath("comparison/schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def read_comparison(
    source: str | Path, *, token: str | bool | None = None, local_files_only: bool = False
) -> dict[str, Any]:
    """The content of a compare.json, or of the one in a folder, in the present version of the schema.

    Args:
        source: the file or the folder, or its address on the Hub; without a path that of `Comparison.push_to_hub`.
        token: of the Hub; that of the login by default.
        local_files_only: do not connect to the Hub.

    Raises:
        ModelError: the repository cannot be read.
        UsageError: no such file, not JSON, not a comparison, or a newer version.
    """
    shown: Path | Address
    if is_address(source):
        address = Address.parse(str(source))
        if not address.path.endswith(".json"):
            address = address.inside(f"{address.path or FOLDER}/{FILE}")
        file, shown = fetch_file(address, token=token, local_files_only=local_files_only)
    else:
        file = expanded(source)
        shown = file = file / FILE if file.is_dir() else file
    try:
        data = json.loads(read(file))
    except OSError as error:
        raise UsageError(f"{shown}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{shown}: not a JSON file: {error}") from None
    version = data.get("schema_version") if isinstance(data, Mapping) else None
    if type(version) is not int or not isinstance(data, dict):
        raise UsageError(f"{shown}: not a comparison (it has no schema_version); `sdesamplers compare` writes {FILE}")
    if version > SCHEMA_VERSION:
        raise UsageError(
            f"{shown}: schema version {version}; this release of sdesamplers reads versions 1 to {SCHEMA_VERSION}"
        )
    try:
        data = from_version_1(data) if version == 1 else data
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"{shown}: not a comparison: {type(error).__name__}: {error}") from None
    validate(data, shown)
    return data


def validate(data: Any, file: object) -> None:
    """Raise a UsageError with the place of the first error against the schema."""
    from jsonschema import Draft202012Validator  # only stored comparisons need it
    from jsonschema.exceptions import best_match  # only stored comparisons need it

    error = best_match(Draft202012Validator(schema()).iter_errors(data))
    if error is not None:
        place = ".".join(str(key) for key in error.absolute_path) or "top level"
        raise UsageError(f"{file}: not a comparison: {place}: {error.message[:200]}")


def from_version_1(data: Mapping[str, Any]) -> dict[str, Any]:
    """A comparison of schema version 1, which had one model, one guidance scale and no repeats, in version 2."""
    group = {key: data[key] for key in LEVELS if key in data}
    group.setdefault("guidance_scale", 1.0)
    known = {"schema_version", "num_samples", "seed", "environment", "cells", *LEVELS}
    arguments = {key: value for key, value in data.items() if key not in known}
    shared = {"model": data["model_name"], "guidance_scale": float(group["guidance_scale"])}
    return {
        "schema_version": SCHEMA_VERSION,
        "num_samples": data["num_samples"],
        "seed": data["seed"],
        "repeats": 1,
        "environment": data.get("environment", {}),
        "arguments": arguments,
        "groups": [{"scorer": None, **group, "data_range": None}],
        "cells": [{**shared, **cell} for cell in data["cells"]],
    }
