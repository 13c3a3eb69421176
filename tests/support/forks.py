"""Processes without a start: forked, they have imported what takes seconds to import."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path


def forked(function: Callable[[], str]) -> str:
    """What a function returns in a process of its own, whose imports and registrations end with it."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        child = os.fork()
        if not child:
            code = 1
            try:
                said.write_text(function())
                code = 0
            except BaseException:
                said.write_text(traceback.format_exc())
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        text = said.read_text() if said.exists() else ""
        assert code == 0, text or f"the process ended with {code}"
        return text
