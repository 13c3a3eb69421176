"""Addresses on the Hub: what is one, and what it refers to."""

from __future__ import annotations

import pytest

import sdesamplers as sds
from sdesamplers.hub.address import Address

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RIGHT = {
    "hf://me/thing": ("me/thing", None, ""),
    "hf://me/thing/": ("me/thing", None, ""),
    "hf://me/thing@v1": ("me/thing", "v1", ""),
    "hf://me/thing/a.yaml": ("me/thing", None, "a.yaml"),
    "hf://me/my.thing-2_x@v1.0/a/b c.yaml": ("me/my.thing-2_x", "v1.0", "a/b c.yaml"),
    "hf://me/thing/a@b.yaml": ("me/thing", None, "a@b.yaml"),
    f"hf://me/thing@{COMMIT}/a.yaml": ("me/thing", COMMIT, "a.yaml"),
    "hf://me/thing@feature%2Fx/a.yaml": ("me/thing", "feature/x", "a.yaml"),
    "hf://me/thing@refs/pr/12/a.yaml": ("me/thing", "refs/pr/12", "a.yaml"),
}
WRONG = [
    "me/thing",
    "hf://",
    "hf://thing",
    "hf://me/",
    "hf://me/thing@",
    "hf://me/th ing",
    "hf://me/a..b",
    "hf://me/thing/../other",
    "hf://me/thing//a.yaml",
    "hf://me/thing/./a.yaml",
    "hf://me/thing/a\\b.yaml",
    "hf://me/thing/a\0.yaml",
    "hf://../thing/a.yaml",
]


@pytest.mark.parametrize("text", RIGHT)
def test_an_address_is_read_and_written(text: str) -> None:
    found = Address.parse(text)
    assert (found.repo, found.revision, found.path) == RIGHT[text]
    assert str(found) == text.rstrip("/")
    assert Address.parse(str(found)) == found
    assert found.is_pinned is (COMMIT in text)


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_address_is_refused_in_a_line(text: str) -> None:
    with pytest.raises(sds.UsageError) as refused:
        Address.parse(text)
    message = str(refused.value)
    assert "\n" not in message
    assert "is not an address on the Hub; write hf://owner/name" in message or "inside of the repository" in message
