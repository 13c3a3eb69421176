"""The files of a repository of the Hub that can be used as a sampler, without the imports that a model needs."""

from __future__ import annotations

import glob
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..hub.address import Address
from ..hub.download import fetch_file, snapshot

TABLES = "sdesamplers"
"""The folder of a model's solver tables, inside of the model's."""
RECIPE = "recipe.yaml"
"""The recipe of a folder or a repository that is used as a sampler."""
SAMPLERS = ("nfe-*.json", RECIPE)
"""The files of a folder or a repository that can be used as a sampler."""


@dataclass(frozen=True)
class HubAccess:
    """The options of `load` with which its model's tables are downloaded later, when they are first needed.

    The token is neither shown nor pickled: in another process, the token is that of the login. False, which means no
    token at all, is kept.
    """

    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | Path | None = None
    local_files_only: bool = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "token": self.token if isinstance(self.token, bool) else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def __deepcopy__(self, memo: Any) -> HubAccess:
        return self  # a copy stays in this process


def fetch_samplers(
    address: Address,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> tuple[Path, Address]:
    """Download the solver tables of a Hub repository, and its recipe.yaml, or find them in the cache.

    Args:
        address: the repository, or a folder or file in it. The tables of a repository are in its folder `sdesamplers`
            or its root.
        token: of the Hub; that of the login by default.
        cache_dir: of the downloads; that of huggingface_hub by default.
        local_files_only: do not connect to the Hub.

    Returns:
        The local folder or file, and its address with the commit that it is from.

    Raises:
        ModelError: no connection, no such repository, revision or file, neither tables nor a recipe, or no permission;
            in one line.
    """
    access: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    if address.path.lower().endswith((".json", ".yaml", ".yml")):
        return fetch_file(address, **access)
    places = [address.path] if address.path else [TABLES, ""]
    patterns = [f"{glob.escape(place)}/{name}".lstrip("/") for place in places for name in SAMPLERS]
    folder = snapshot(address.repo, patterns, revision=address.revision, **access)
    for place in places:
        if any(file for name in SAMPLERS for file in (folder / place).glob(name)):
            return folder / place, address.at(folder.name).inside(place)
    where = f"in {address.path}" if address.path else f"in its root or in a folder {TABLES!r}"
    raise ModelError(f"{address} has no solver tables (files nfe-*.json, {where}) and no {RECIPE}")


def tables_may_be_cached(address: Address) -> bool:
    """False if a repository's tables are not in the cache, found without an import of the downloader."""
    from huggingface_hub import constants  # a small module

    home = Path(constants.HF_HUB_CACHE) / f"models--{address.repo.replace('/', '--')}"
    return any(any((home / "snapshots").glob(f"*/{place}nfe-*.json")) for place in ("", f"{TABLES}/"))
