"""The files of a repository of the Hub, and its solver tables, without the imports that a model needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..registry.catalogue import HUB_PREFIX
from .hub_errors import message_of, status_text

TABLES = "sdesamplers"
"""The folder of a model's solver tables, inside of the model's."""


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


def fetch_tables(
    source: str,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Download the solver tables of a Hub repository, from its folder `sdesamplers` or its root, or find them cached.

    Args:
        source: "hf://owner/name", or "hf://owner/name@revision" for a branch, tag or commit.
        token: of the Hub; that of the login by default.
        cache_dir: of the downloads; that of huggingface_hub by default.
        local_files_only: do not connect to the Hub.

    Raises:
        ModelError: no connection, no such repository, revision or table, or no permission; in one line.
    """
    repo, _, revision = source.removeprefix(HUB_PREFIX).partition("@")
    patterns = [f"{TABLES}/nfe-*.json", "nfe-*.json"]
    access = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    folder = snapshot(repo, patterns, revision=revision or None, **access)
    place = folder / TABLES if (folder / TABLES).is_dir() else folder
    if not any(place.glob("nfe-*.json")):
        raise ModelError(f"{source} has no solver tables (files nfe-*.json, in its root or in a folder {TABLES!r})")
    return place


def tables_may_be_cached(source: str) -> bool:
    """False if `fetch_tables(source, local_files_only=True)` would raise; found without an import of its downloader."""
    from huggingface_hub import constants  # a small module

    repo = source.removeprefix(HUB_PREFIX).partition("@")[0]
    home = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    return any(any((home / "snapshots").glob(f"*/{place}nfe-*.json")) for place in ("", f"{TABLES}/"))


def snapshot(repo: str, patterns: Sequence[str], **options: Any) -> Path:
    """Download the files of a repository that match `patterns`, or find them in the cache; return their folder.

    Args:
        options: of huggingface_hub's `snapshot_download`, with `revision` and `local_files_only`.

    Raises:
        ModelError: as `fetch`.
    """
    from huggingface_hub import errors, snapshot_download  # needed only for models from the Hub

    revision = options["revision"] or "main"
    try:
        return Path(snapshot_download(repo, allow_patterns=list(patterns), **options))
    except errors.HFValidationError:
        raise ModelError(f"{repo!r} is neither a registered model, a local folder nor a Hub id (owner/name)") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        why = "the Hub cannot be reached"
        if options["local_files_only"] or offline():
            why = "offline mode is on"
        elif isinstance(error.__cause__, errors.HfHubHTTPError):
            why = status_text(error.__cause__)
        raise ModelError(f"{repo}@{revision}: not complete in the local cache, and {why}") from None
    except Exception as error:
        message = message_of(error, repo, revision, "the download was interrupted", "completed files are kept")
        if message is None:
            raise
        raise ModelError(message) from None


def offline() -> bool:
    """True if huggingface_hub is set to make no requests."""
    from huggingface_hub import constants  # needed only for models from the Hub

    return bool(constants.HF_HUB_OFFLINE)
