"""One progress bar for all processes of a job, and its log as lines of JSON."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack, suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import UsageError

EVERY = 0.5
"""Seconds between what a process tells the others."""


class Progress:
    """How many samples this process has made; the first process shows them all.

    The processes tell each other by small files in the job's folder, which machines without any other link share too.

    Args:
        folder: for these files.
        name: of this process among those that share the folder.
        label, total, done: of the bar, in samples; `done` were there before.
        shown: whether this process shows the bar.
    """

    def __init__(self, folder: Path, name: str, label: str, total: int, done: int, shown: bool) -> None:
        self.folder, self.own, self.shown = folder, folder / name, shown
        self.label, self.total, self.before = label, total, done
        self.made, self._told, self._stack = 0.0, 0.0, ExitStack()

    def __enter__(self) -> Progress:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.own.write_text("0")
        if self.shown:
            from ..terminal import samples_bar

            self._move = self._stack.enter_context(samples_bar(self.label, self.total, self.before))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self.own.unlink(missing_ok=True)
        with suppress(OSError):  # others are still at work
            self.folder.rmdir()

    def advance(self, samples: float) -> None:
        """So many more are made; fractions of a sample count."""
        self.made += samples
        now = time.monotonic()
        if now - self._told >= EVERY:
            self._told = now
            self.tell()

    def tell(self) -> None:
        """Tell the others, and show what they told."""
        with suppress(OSError):  # a full disk is for the writer to report
            self.own.write_text(f"{self.made:.3f}")
        if self.shown:
            others = sum(read_number(file) for file in self.folder.iterdir() if file != self.own)
            self._move(min(self.before + self.made + others, self.total))

    def others_at_work(self) -> bool:
        """Whether another process has not finished yet."""
        return any(file != self.own for file in self.folder.iterdir())


def read_number(file: Path) -> float:
    """What a process last told; 0 where it is just writing it or has gone."""
    try:
        return float(file.read_text())
    except (OSError, ValueError):
        return 0.0


class Log:
    """Lines of JSON, one an event: time (UTC), rank, event, facts.

    Args:
        file: what to write to, added to where it exists; None for no log. Of several processes, those after the first
            write to a file of their own beside it.
        rank: of this process.
    """

    def __init__(self, file: str | Path | None, rank: int = 0) -> None:
        self.rank = rank
        self.file = None if file is None else Path(file)
        if self.file is not None and rank:
            self.file = self.file.with_name(f"{self.file.stem}-rank{rank}{self.file.suffix}")
        try:
            self._out = None if self.file is None else self.file.open("a", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--json-log {file}: {error.strerror}") from None

    def __call__(self, event: str, **facts: Any) -> None:
        """Write a line."""
        if self._out is None:
            return
        line = {"time": datetime.now(timezone.utc).isoformat(), "rank": self.rank, "event": event, **facts}
        with suppress(OSError):  # the log may lie on the disk that is full
            self._out.write(json.dumps(line) + "\n")
            self._out.flush()

    def close(self) -> None:
        """Close the file."""
        if self._out is not None:
            with suppress(OSError):
                self._out.close()
