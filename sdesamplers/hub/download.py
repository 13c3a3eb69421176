"""Download files of a Hub repository at one revision; each error is one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelError, advice, nearest
from ..io.paths import expanded
from .address import Address, is_address
from .errors import message_of, status_text


def snapshot(repo: str, patterns: Sequence[str], **options: Any) -> Path:
    """Download the files of a repository whose paths match patterns, or find them in the cache.

    huggingface_hub resumes broken downloads; with a complete cache of a commit no connection is needed.

    Args:
        repo: the repository's id.
        patterns: of paths in the repository.
        options: `revision` and other options of huggingface_hub's `snapshot_download`.

    Returns:
        The local folder, whose name is the commit hash.

    Raises:
        ModelError: no connection, no such repository or revision, or no permission; in one line.
    """
    from huggingface_hub import errors, snapshot_download  # needed only for the Hub

    revision = options["revision"] or "main"
    try:
        return Path(snapshot_download(repo, allow_patterns=list(patterns), **options))
    except errors.HFValidationError:
        raise ModelError(f"{repo!r} is neither a registered model, a local folder nor a Hub id (owner/name)") from None
    except Exception as error:
        raise refusal(error, repo, revision, bool(options.get("local_files_only"))) from None


def fetch_file(
    address: Address,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> tuple[Path, Address]:
    """Download one file, or find it in the cache.

    Args:
        address: with the file's path.
        token: of the Hub; that of the login by default.
        cache_dir: of the downloads; that of huggingface_hub by default.
        local_files_only: do not connect to the Hub.

    Returns:
        The local file, and its address with the commit that it is from.

    Raises:
        ModelError: no connection, no such repository, revision or file, or no permission; in one line.
    """
    from huggingface_hub import errors, hf_hub_download  # needed only for the Hub

    try:
        found = hf_hub_download(
            address.repo,
            address.path,
            revision=address.revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
    except errors.LocalEntryNotFoundError as error:
        raise refusal(error, address.repo, address.revision or "main", local_files_only) from None
    except errors.EntryNotFoundError:
        raise ModelError(_missing(address, token)) from None
    except Exception as error:
        raise refusal(error, address.repo, address.revision or "main", local_files_only) from None
    file = Path(found)
    return file, address.at(file.parents[address.path.count("/")].name)


def find_file(
    source: str | Path, name: str, *, token: str | bool | None = None, local_files_only: bool = False
) -> tuple[Path, Address | None]:
    """The local file of a path or of an address on the Hub, and its address with the commit if it is from there.

    Args:
        source: a path, or `hf://owner/name[@revision][/path]`.
        name: the path in the repository of an address without one.
        token, local_files_only: as of `fetch_file`.

    Raises:
        ModelError: the repository cannot be read.
        UsageError: not an address.
    """
    if not is_address(source):
        return expanded(source), None
    address = Address.parse(str(source))
    if not address.path:
        address = address.inside(name)
    return fetch_file(address, token=token, local_files_only=local_files_only)


def refusal(error: Exception, repo: str, revision: str, local_files_only: bool = False) -> Exception:
    """The ModelError, of one line, for an error of a download; other errors unchanged."""
    from huggingface_hub import errors  # needed only for the Hub

    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        why = "the Hub cannot be reached"
        if local_files_only or is_offline():
            why = "offline mode is on"
        elif isinstance(error.__cause__, errors.HfHubHTTPError):
            why = status_text(error.__cause__)
        return ModelError(f"{repo}@{revision}: not complete in the local cache, and {why}")
    message = message_of(error, repo, revision, "the download was interrupted", "completed files are kept")
    return error if message is None else ModelError(message)


def is_offline() -> bool:
    """True if huggingface_hub is in its offline mode."""
    from huggingface_hub import constants  # needed only for the Hub

    return bool(constants.HF_HUB_OFFLINE)


def _missing(address: Address, token: str | bool | None) -> str:
    """The message about a file that a repository does not have, with the nearest paths that it has."""
    from huggingface_hub import HfApi  # needed only for the Hub

    try:
        names = HfApi().list_repo_files(address.repo, revision=address.revision, token=token)
    except Exception:  # the list is advice only
        names = []
    return f"{address.label}: no file {address.path!r} in the repository{advice(nearest(address.path, names))}"
