"""A thread that writes files while the next samples are generated."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

Task = Callable[[], None]


class Writer:
    """Runs tasks in order in a thread; the error of a task is raised by the next `put` or `close`.

    Args:
        waiting: maximum number of queued tasks, each with its samples in memory; beyond it `put` blocks.
    """

    def __init__(self, waiting: int = 2) -> None:
        self._tasks: queue.Queue[Task | None] = queue.Queue(waiting)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="sdesamplers-writer", daemon=True)
        self._thread.start()

    def put(self, task: Task) -> None:
        """Queue a task."""
        self._raise()
        self._tasks.put(task)

    def close(self) -> None:
        """Wait until all tasks are done."""
        if self._thread.is_alive():
            self._tasks.put(None)
            self._thread.join()
        self._raise()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        with suppress(Exception):  # finished samples are still written; the error that ended the run wins
            self.close()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if self._error is None:
                try:
                    task()
                except BaseException as error:
                    self._error = error

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
