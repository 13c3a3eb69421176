"""The rank of this process among those of an accelerate or torchrun launch."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TypeVar

from ..checks import whole
from ..errors import SdesamplersError, UsageError

T = TypeVar("T")

START_TIMEOUT = timedelta(hours=6)
"""Timeout of collectives at the start, while one process may download a model or check a finished job."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that the launcher started; they synchronize only at the start of a job.

    Attributes:
        rank: rank of this process, from 0.
        count: number of processes.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> Ranks:
        """Read the launcher's environment; a single process without a launcher.

        Raises:
            UsageError: the launcher started several processes that cannot find each other.
        """
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if launched < 2:
            return cls()
        from accelerate import PartialState  # accelerate takes a second to import
        from accelerate.utils import parse_flag_from_env  # accelerate takes a second to import

        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=START_TIMEOUT)
        if state.num_processes == 1:  # without cpu=True accelerate treats CPU processes as unrelated
            PartialState._reset_state()
            state = PartialState(cpu=True, timeout=START_TIMEOUT)
        _close_group_at_exit()
        if state.num_processes != launched:
            raise UsageError(
                f"WORLD_SIZE is {launched}, but accelerate finds {state.num_processes} process(es); start with "
                "accelerate launch or torchrun, or unset WORLD_SIZE and give each process its own part"
            )
        return cls(state.process_index, state.num_processes)

    @property
    def is_first(self) -> bool:
        """True for the process that acts for all: it starts the job, shows progress and prints results."""
        return self.rank == 0

    def gather(self, item: T) -> list[T]:
        """The items of all processes, in the order of ranks; blocks until all have called it."""
        if self.count == 1:
            return [item]
        from accelerate.utils import gather_object  # accelerate takes a second to import

        gathered: list[T] = gather_object([item])
        return gathered

    def from_first(self, work: Callable[[], T]) -> T:
        """Call `work` in the first process; all processes return its result or raise its SdesamplersError."""
        if self.count == 1:
            return work()
        results: list[T] = []
        error = None
        if self.is_first:
            try:
                results.append(work())
            except SdesamplersError as caught:
                error = caught
        results, error = self.gather((results, error))[0]
        if error is not None:
            raise error
        return results[0]

    @contextmanager
    def one_after_first(self) -> Iterator[None]:
        """Run the body (a download, say) in the first process of each machine, then in the others."""
        if self.count == 1:
            yield
            return
        import accelerate  # accelerate takes a second to import

        with accelerate.PartialState().local_main_process_first():
            yield


@cache
def _close_group_at_exit() -> None:
    """Let the process group be closed before the interpreter goes down, if the program does not close it.

    A thread of gloo can hold a finished collective's tensors; if it frees them during finalization, the process aborts
    after its work is done (torch's pull request 179291 has the details).
    """
    from torch import distributed  # a build of torch without it does not start several processes

    def close() -> None:
        if distributed.is_initialized():
            distributed.destroy_process_group()

    atexit.register(close)


def parse_part(text: str) -> tuple[int, int]:
    """Parse a part: "3/8", the third of eight parts, is (2, 8).

    Raises:
        UsageError: not of the form K/N with 1 <= K <= N.
    """
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(f"a part must be given as K/N, with K from 1 to N, such as 3/8, not {text!r}")
    return int(number) - 1, int(count)


def check_part(part: tuple[int, int]) -> tuple[int, int]:
    """Return a part (k, n) as a tuple of int.

    Raises:
        UsageError: not (k, n) with 0 <= k < n.
    """
    if not (isinstance(part, tuple | list) and len(part) == 2):
        raise UsageError(f"part must be (k, n), the k-th of n parts counted from 0, not {part!r}")
    whole("part[1]", part[1])
    whole("part[0]", part[0], 0)
    if part[0] >= part[1]:
        raise UsageError(f"part must be (k, n) with k from 0 to n - 1, not {tuple(part)}")
    return int(part[0]), int(part[1])
