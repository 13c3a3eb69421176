"""Upload small files to a repository of the Hugging Face Hub, in one commit; each error is one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import shown
from ..errors import ModelError, UsageError
from ..text import one_line
from .address import COMMIT, REPO, Address
from .errors import message_of, status_of


@dataclass(frozen=True)
class Destination:
    """A model repository of the Hub that files are uploaded to.

    Attributes:
        repo: its id, "owner/name".
        revision: the branch; None for "main".
        token: of the Hub; that of the login by default.

    Raises:
        UsageError: `repo` is not an id, or `revision` is a commit.
    """

    repo: str
    revision: str | None = None
    token: str | bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.repo, str) or not REPO.fullmatch(self.repo):
            raise UsageError(f"repo must be the id of a Hub repository, owner/name, not {shown(self.repo)}")
        if self.revision is not None and (not isinstance(self.revision, str) or COMMIT.fullmatch(self.revision)):
            raise UsageError(f"revision must be a branch to push to, not {shown(self.revision)}")

    @property
    def source(self) -> str:
        """The repository as a source, hf://owner/name or hf://owner/name@branch."""
        return str(self.address)

    @property
    def address(self) -> Address:
        """The repository and the branch as an address."""
        return Address(self.repo, self.revision)

    def create(self, private: bool | None = None) -> None:
        """Create the repository and the branch, if they do not exist.

        Args:
            private: make a new repository private, or public; the owner's default if None.

        Raises:
            ModelError: no connection or no permission.
        """
        with self._errors() as api:
            api.create_repo(self.repo, private=private, exist_ok=True)
            if self.revision is not None and not self.revision.startswith("refs/"):  # such as a pull request
                api.create_branch(self.repo, branch=self.revision, exist_ok=True)

    def names(self) -> list[str]:
        """Return the paths of the files of the branch.

        Raises:
            ModelError: no connection, no permission, or no such repository or branch.
        """
        with self._errors() as api:
            return list(api.list_repo_files(self.repo, revision=self.revision))

    def text(self, path: str) -> str:
        """Return the text of a file of the branch as it is on the Hub now.

        Raises:
            ModelError: no connection, no permission, or no such file.
        """
        with self._errors() as api:
            file = api.hf_hub_download(self.repo, path, revision=self.revision, force_download=True)
            return Path(file).read_text(encoding="utf-8", errors="replace")

    def commit(self, files: Mapping[str, bytes], message: str, *, create_pr: bool = False) -> str:
        """Upload files in one commit; return the address of the commit or of the pull request.

        Args:
            files: path in the repository -> content.
            message: of the commit.
            create_pr: open a pull request instead of changing the branch.

        Raises:
            ModelError: no connection or no permission.
        """
        from huggingface_hub import CommitOperationAdd  # needed only for the Hub

        added = [CommitOperationAdd(path, content) for path, content in files.items()]
        with self._errors() as api:
            made = api.create_commit(
                self.repo, added, commit_message=message, revision=self.revision, create_pr=create_pr
            )
            return str(made.pr_url or made.commit_url)

    @contextmanager
    def _errors(self) -> Iterator[Any]:
        from huggingface_hub import HfApi  # needed only for the Hub

        try:
            yield HfApi(token=self.token)
        except Exception as error:
            cause = error.__cause__ if isinstance(error, RuntimeError) else error  # of an upload in a thread
            message = self._message(cause if isinstance(cause, Exception) else error)
            if message is None:
                raise
            raise ModelError(message) from None

    def _message(self, error: Exception) -> str | None:
        from huggingface_hub import errors  # needed only for the Hub

        if isinstance(error, errors.LocalEntryNotFoundError):
            return f"{self.repo}: the Hub cannot be reached"
        status = status_of(error)
        if status == 401:
            return (
                f"{self.repo}: the Hub takes uploads only with a valid token that may write (HTTP status 401); "
                "pass token=... or run `hf auth login`"
            )
        if status == 403:
            return (
                f"{self.repo}: your token may not write to this repository, or create it (HTTP status 403); "
                "with create_pr=True the files are proposed to its owner"
            )
        message = message_of(
            error, self.repo, self.revision or "main", "the upload was interrupted", "a commit is complete or not made"
        )
        reason = one_line(getattr(error, "server_message", None) or "")
        return f"{message}: {reason}" if message and reason and status not in (None, 404) else message
