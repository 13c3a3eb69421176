"""Errors of huggingface_hub, each as one line."""

from __future__ import annotations

from typing import Any


def message_of(error: Exception, repo: str, revision: str, interrupted: str, after: str) -> str | None:
    """Return the message for an error of a download from a repository, or of an upload to it; None for other errors.

    Args:
        error: the error that huggingface_hub raised.
        repo, revision: the repository, and the branch, tag or commit.
        interrupted: what the loss of the connection did.
        after: what is so after it, for the advice to run the call again.
    """
    from huggingface_hub import errors  # needed only for the Hub

    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repo}: the repository is gated; accept its terms on the Hub, then pass token=... or run `hf auth login`"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{repo}: no such repository on the Hub, or it is private (then pass token=... or run `hf auth login`)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo}: no revision {revision!r}; pass a branch, a tag or a commit hash"
    if isinstance(error, errors.HfHubHTTPError):
        return f"{repo}@{revision}: {status_text(error)}"
    # huggingface_hub has changed its HTTP library twice; errors are recognised by their package.
    if type(error).__module__.split(".")[0].rstrip("2") in ("httpx", "httpcore", "requests", "urllib3"):
        return f"{repo}@{revision}: {interrupted} ({type(error).__name__}); run it again: {after}"
    if isinstance(error, OSError):
        text = " ".join(str(error.strerror or error).split())
        return f"{repo}@{revision}: {text}"
    return None


def status_of(error: Any) -> int | None:
    """Return the HTTP status of an error, if it has one."""
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status


def status_text(error: Any) -> str:
    """Return an HTTP status in terms of what to do about it."""
    if status_of(error) == 401:
        return "the Hub does not accept the token (HTTP status 401); run `hf auth login` again or pass another token"
    return f"the Hub returned HTTP status {status_of(error) or '?'}"
