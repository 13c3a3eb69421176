"""One progress bar for all processes of a job, and its log as lines of JSON."""

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

INTERVAL = 0.5
"""Seconds between what a process tells the others."""
TIMEOUT = 300.0
"""Seconds after which a process that has told nothing new is taken to be lost."""


class Progress:
    """How many samples this process has made; the first process shows them all.

    The processes tell each other by small files in the job's folder, which machines without any other link share too.
    Nothing of the work depends on them, and a disk that is too full for them is for the writer to report.

    Args:
        folder: for these files.
        group: of the processes that work together.
        rank: of this one among them.
    """

    def __init__(self, folder: Path, group: str, rank: int) -> None:
        self.folder, self.group, self.own = folder, group, folder / f"{group}-rank{rank}"
        self.made, self._updated = 0.0, 0.0
        self._total, self._before = 0, 0
        self._move: Any = None
        self._stack = ExitStack()
        self._seen: dict[str, tuple[str | None, float]] = {}

    def clear(self, *, alone: bool) -> None:
        """Remove what killed runs left, other groups' too where this one is `alone`; before anybody tells anything."""
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
        with suppress(OSError):  # others are still at work
            self.own.unlink(missing_ok=True)
            self.folder.rmdir()

    def show(self, label: str, total: int, before: int) -> None:
        """Show a bar of `total` samples, of which so many were there before; nothing where there is no terminal."""
        from rich.console import Console  # only a terminal needs it

        console = Console(stderr=True)
        if console.is_terminal or console.is_jupyter:
            from ..io.terminal import samples_bar  # and rich, which only a terminal needs

            self._total, self._before = total, before
            self._move = self._stack.enter_context(samples_bar(label, total, before))

    def advance(self, samples: float) -> None:
        """So many more are made; fractions of a sample count."""
        self.made += samples
        now = time.monotonic()
        if now - self._updated >= INTERVAL:
            self._updated = now
            self.update()

    def update(self) -> None:
        """Tell the others, and show what they told."""
        with suppress(OSError):
            self.own.write_text(f"{self.made:.3f}")
        if self._move is not None:
            self._move(min(self._before + self.made + sum(self._others().values()), self._total))

    def others_at_work(self) -> bool:
        """Whether another process has not finished yet and has told something new not long ago."""
        now, names = time.monotonic(), self._others()
        return any(now - self._seen[name][1] < TIMEOUT for name in names)

    def _others(self) -> dict[str, float]:
        """What each other process last told; 0 where it is just writing it."""
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
    """What a process told; nothing where it has just ended."""
    try:
        return file.read_text()
    except OSError:
        return ""


class Log:
    """Lines of JSON, one an event: time (UTC), rank, event, facts.

    Args:
        file: what to write to, added to where it exists; None for no log. Of several processes, those after the first
            write to a file of their own beside it.
        rank: of this process.
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
        """Write a line."""
        if self._out is None:
            return
        line = {"time": datetime.now(timezone.utc).isoformat(), "rank": self.rank, "event": event, **facts}
        with self._lock, suppress(OSError):  # the log may lie on the disk that is full
            self._out.write(json.dumps(line) + "\n")
            self._out.flush()

    def close(self) -> None:
        """Close the file."""
        if self._out is not None:
            with suppress(OSError):
                self._out.close()
