"""Which of several processes this is, on accelerate's launcher or alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from ..errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that the launcher started; they meet at the start of a job and not again.

    Attributes:
        rank, count: this process, and how many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> Ranks:
        """As the launcher's environment says; alone where there is none."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        import accelerate

        state = accelerate.PartialState()
        return cls(state.process_index, state.num_processes)

    @property
    def is_first(self) -> bool:
        """Whether this one speaks for all."""
        return self.rank == 0

    def gather(self, item: T) -> list[T]:
        """Everyone's item, in the order of ranks; waits for all."""
        if self.count == 1:
            return [item]
        from accelerate.utils import gather_object

        gathered: list[T] = gather_object([item])
        return gathered

    @contextmanager
    def one_after_first(self) -> Iterator[None]:
        """The first process of each machine does a piece of work (a download) before the others do it."""
        if self.count == 1:
            yield
            return
        import accelerate

        with accelerate.PartialState().local_main_process_first():
            yield


def parse_part(text: str) -> tuple[int, int]:
    """ "3/8", the third of eight parts, as (2, 8).

    Raises:
        UsageError: it is not a part.
    """
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(f"a part is given as K/N, with K from 1 to N, such as 3/8, not {text!r}")
    return int(number) - 1, int(count)
