"""Samplers from files, folders and Hub repositories: recipes and solver tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..hub.address import Address, is_address
from ..io.files import read
from ..io.paths import expanded
from ..pretrained.hub_files import RECIPE, fetch_samplers
from ..registry.recipe_data import NESTED
from .recipe import Recipe, read_recipe
from .recipe_file import YAML
from .table import LARGEST_FILE, SolverTable, is_path, tables_in


def read_sampler(
    source: str | Path, *, token: str | bool | None = None, local_files_only: bool = False
) -> Recipe | list[SolverTable]:
    """Read the recipe or the solver tables of a file, a folder or a Hub repository.

    A folder is one of tables if it has files nfe-*.json, and otherwise its recipe.yaml is meant.

    Args:
        source: a path, or hf://owner/name[@revision][/path].
        token: of the Hub; that of the login by default.
        local_files_only: do not connect to the Hub.

    Raises:
        ModelError: the repository cannot be read.
        UsageError: no such file, or neither a recipe nor tables.
    """
    place, address = expanded(source), None
    if is_address(source):
        place, address = fetch_samplers(Address.parse(str(source)), token=token, local_files_only=local_files_only)
    if place.is_dir() and not any(place.glob("nfe-*.json")) and (place / RECIPE).is_file():
        place = place / RECIPE
        address = None if address is None else address.inside(f"{address.path}/{RECIPE}".lstrip("/"))
    if is_recipe(place):
        return read_recipe(place, address)
    if place.is_file() and "format" not in keys_in(place):
        raise UsageError(
            f"{address or source}: neither a recipe nor a solver table: not JSON with the key 'sampler' or 'format'"
        )
    return tables_in(place, str(source), address)


def is_recipe(file: Path) -> bool:
    """True if a file holds a recipe and not a solver table, by its ending or its keys."""
    return file.suffix.lower() in YAML or not keys_in(file).isdisjoint(("sampler", NESTED))


def keys_in(file: Path) -> frozenset[str]:
    """The keys of a JSON file; none if it cannot be read, or has no keys."""
    try:
        data = json.loads(read(file, LARGEST_FILE))
    except (OSError, ValueError, RecursionError):
        return frozenset()
    return frozenset(data) if isinstance(data, dict) else frozenset()


def recipe_or_name(sampler: Any) -> Any:
    """The recipe whose path or address a sampler is; any other sampler, and tables, unchanged."""
    if not isinstance(sampler, str) or not is_path(sampler):
        return sampler
    found = read_sampler(sampler)
    return found if isinstance(found, Recipe) else sampler
