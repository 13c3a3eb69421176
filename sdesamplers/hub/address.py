"""Addresses of files on the Hugging Face Hub: `hf://owner/name@revision/path`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

from ..checks import shown
from ..errors import UsageError

HUB_PREFIX = "hf://"
"""The beginning of a Hub repository's name, where a file or a folder may be named too."""
NAME = r"\w(?:[\w.-]{0,94}\w)?"
REPO = re.compile(rf"(?!.*(?:--|\.\.)){NAME}/{NAME}(?<!\.git)", re.ASCII)
"""An id as the Hub allows it, owner/name."""
COMMIT = re.compile(r"[0-9a-f]{40}")
ADDRESS = re.compile(r"(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<path>.*))?")
SYNTAX = f"{HUB_PREFIX}owner/name, {HUB_PREFIX}owner/name@revision or {HUB_PREFIX}owner/name@revision/path/in/repo"


@dataclass(frozen=True)
class Address:
    """A repository of the Hub, or a file or folder in it.

    Attributes:
        repo: the repository's id, "owner/name".
        revision: a branch, tag or commit hash; None for the newest commit of the default branch.
        path: of the file or folder in the repository; "" for the repository itself.
    """

    repo: str
    revision: str | None = None
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `hf://owner/name[@revision][/path]`. A slash in a branch's name is %2F, as in huggingface_hub.

        Raises:
            UsageError: not an address, or a path that leaves the repository.
        """
        found = ADDRESS.fullmatch(text.removeprefix(HUB_PREFIX).rstrip("/"))
        if not is_address(text) or found is None or not REPO.fullmatch(found["repo"]):
            raise UsageError(f"{shown(text)} is not an address on the Hub; write {SYNTAX}")
        path, revision = found["path"] or "", found["revision"]
        if any(part in ("", ".", "..") for part in path.split("/") if path) or "\\" in path or "\0" in path:
            raise UsageError(f"{shown(text)}: the path must name a file or folder inside of the repository")
        return cls(found["repo"], None if revision is None else unquote(revision), path)

    def at(self, commit: str) -> Address:
        """The same place at a commit."""
        return replace(self, revision=commit)

    def inside(self, path: str) -> Address:
        """A file at this path of the repository."""
        return replace(self, path=path)

    @property
    def is_pinned(self) -> bool:
        """True if the revision is a commit, whose files never change."""
        return self.revision is not None and COMMIT.fullmatch(self.revision) is not None

    @property
    def label(self) -> str:
        """The repository and the revision in messages, `owner/name@main`."""
        return f"{self.repo}@{self.revision or 'main'}"

    def __str__(self) -> str:
        revision = self.revision or ""
        written = revision if revision.startswith(("refs/pr/", "refs/convert/")) else quote(revision, safe="")
        return f"{HUB_PREFIX}{self.repo}{'@' if revision else ''}{written}{'/' if self.path else ''}{self.path}"


def is_address(source: object) -> bool:
    """True if a source is a place on the Hub."""
    return isinstance(source, str) and source.startswith(HUB_PREFIX)
