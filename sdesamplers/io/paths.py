"""Paths as users type them."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """The path with `~` and `~user` replaced by home folders; an unknown user's is kept, as shells do.

    `Path.expanduser` raises a RuntimeError for it.
    """
    return Path(os.path.expanduser(path))
