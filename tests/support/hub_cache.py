"""A cache of downloads of each test's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_server import HubServer
from huggingface_hub import constants


@pytest.fixture
def hub_cache(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder, empty at first."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def head(hub: HubServer, repo: str, branch: str = "main") -> dict[str, bytes]:
    """The files at the end of a branch."""
    return hub.repos[repo].commits[hub.repos[repo].refs[branch]]
