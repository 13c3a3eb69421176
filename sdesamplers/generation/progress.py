"""One progress bar for all processes of a job, and its event log as JSON lines."""

from __future__ import annotations

import json
import threading
import time
from contextlib import ExitStack, suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import UsageError
from ..io.log import logger

INTERVAL = 0.5
"""Seconds between the updates that a process publishes."""
TIMEOUT = 300.0
"""Seconds without an update after which a process is assumed lost."""


class Progress:
    """The number of samples that this process has generated; the first process shows the total of all.

    Processes share their counts in small files in the job's folder, which also works between machines that share
    nothing else. The work does not depend on these files, so errors in writing them (a full disk) are ignored here; the
    writer reports them.

    Args:
        folder: the folder for these files.
        group: name of the group of processes that work together.
        rank: rank of this process in the group.
    """

    def __init__(self, folder: Path, group: str, rank: int) -> None:
        self.folder, self.group, self.own = folder, group, folder / f"{group}-rank{rank}"
        self.made, self._updated = 0.0, 0.0
        self._total, self._before = 0, 0
        self._move: Any = None
        self._stack = ExitStack()
        self._seen: dict[str, tuple[str | None, float]] = {}

    def clear(self, *, alone: bool) -> None:
        """Remove files of killed runs, with `alone` also of other groups; to be called before any process publishes."""
        with suppress(OSError):
            for file in self.folder.glob("*" if alone else f"{self.group}-*"):
                file.unlink(missing_ok=True)

    def __enter__(self) -> Progress:
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.own.write_text("0")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        with suppress(OSError):  # other processes are still working
            self.own.unlink(missing_ok=True)
            self.folder.rmdir()

    def show(self, label: str, total: int, before: int) -> None:
        """Show a bar of `total` samples, `before` of them from earlier runs; does nothing without a terminal."""
        from rich.console import Console  # only a terminal needs it

        console = Console(stderr=True)
        if console.is_terminal or console.is_jupyter:
            from ..io.terminal import samples_bar  # imports rich, which only a terminal needs

            self._total, self._before = total, before
            self._move = self._stack.enter_context(samples_bar(label, total, before))

    def advance(self, samples: float) -> None:
        """Add `samples` to the count; fractions of a sample are allowed."""
        self.made += samples
        now = time.monotonic()
        if now - self._updated >= INTERVAL:
            self._updated = now
            self.update()

    def update(self) -> None:
        """Publish the count, and show the total of all processes."""
        with suppress(OSError):
            self.own.write_text(f"{self.made:.3f}")
        if self._move is not None:
            self._move(min(self._before + self.made + sum(self._others().values()), self._total))

    def others_at_work(self) -> bool:
        """True if another process is unfinished and has published an update within `TIMEOUT`."""
        now, names = time.monotonic(), self._others()
        return any(now - self._seen[name][1] < TIMEOUT for name in names)

    def _others(self) -> dict[str, float]:
        """The latest count of each other process, by file name; 0 while a file is being written."""
        numbers = {}
        with suppress(OSError):
            for file in self.folder.glob(f"{self.group}-*"):
                if file != self.own:
                    text = read(file)
                    if self._seen.get(file.name, (None, 0.0))[0] != text:
                        self._seen[file.name] = text, time.monotonic()
                    numbers[file.name] = float(text or 0)
        return numbers


def read(file: Path) -> str:
    """The count that a process published, as text; empty if the process has just ended."""
    try:
        return file.read_text()
    except OSError:
        return ""


class Log:
    """An event log of JSON lines: time (UTC), rank, event and details.

    Args:
        file: the file, which is appended to if it exists; None for no log. Of several processes, each except the first
            writes to a separate file beside it, NAME-rankK.
        rank: rank of this process.
    """

    def __init__(self, file: str | Path | None, rank: int = 0) -> None:
        self.rank, self._lock = rank, threading.Lock()
        self.file = None if file is None else Path(file)
        if self.file is not None and rank:
            self.file = self.file.with_name(f"{self.file.stem}-rank{rank}{self.file.suffix}")
        try:
            self._out = None if self.file is None else self.file.open("a", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{{json_log}} {file}: {error.strerror}", arguments={"json_log": "json_log"}) from None

    def __call__(self, event: str, **facts: Any) -> None:
        """Log an event, and write its line."""
        logger.info("generate: %s %s", event, " ".join(f"{name}={value}" for name, value in facts.items()))
        if self._out is None:
            return
        line = {"time": datetime.now(timezone.utc).isoformat(), "rank": self.rank, "event": event, **facts}
        with self._lock, suppress(OSError):  # the log may be on the full disk
            self._out.write(json.dumps(line) + "\n")
            self._out.flush()

    def close(self) -> None:
        """Close the file."""
        if self._out is not None:
            with suppress(OSError):
                self._out.close()
