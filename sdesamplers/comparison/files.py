"""The files of a comparison, in a folder or on the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..categories import OutputWarning
from ..checks import warn
from ..errors import UsageError
from ..hub.upload import Destination
from ..io.files import make_folder, write
from ..text import without_nan
from .reading import FILE
from .sharing import push_folder

if TYPE_CHECKING:
    from .result import Comparison


def save_files(comparison: Comparison, folder: str | Path) -> dict[str, Path]:
    """Write compare.json, compare.csv and compare.png: see `Comparison.save`."""
    out = make_folder(folder)
    document = json.dumps(without_nan(comparison.as_dict()), indent=2, default=str, allow_nan=False) + "\n"
    files = {"json": write(out / FILE, document), "csv": write(out / "compare.csv", comparison.as_csv())}
    try:
        picture = comparison.picture()
    except UsageError as reason:
        warn(f"compare.png is not written: {reason}", OutputWarning)
        return files
    return {"png": write(out / "compare.png", lambda path: picture.save(path, format="PNG")), **files}


def push_comparison(comparison: Comparison, to: Destination, path: str, about: Mapping[str, Any], **how: Any) -> str:
    """Upload the files, the page and the card of a comparison in one commit: see `Comparison.push_to_hub`.

    Args:
        comparison: what is uploaded.
        to: the repository.
        path: the folder in it.
        about: the card's task and dataset.
        **how: `private`, `commit_message` and `create_pr`.
    """
    with TemporaryDirectory() as folder:
        comparison.save(folder)
        if comparison.samples and not comparison.groups:
            try:
                comparison.report(folder)
            except UsageError as reason:
                warn(f"compare.html is not made: {reason}", OutputWarning)
        return push_folder(Path(folder), to, path, about=about, **how)
