"""Batches of a prepared run, halved where memory runs out; and `stream`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..errors import SdesamplersError
from ..sampling.loop import Callback
from ..sampling.parts import Part
from ..sampling.prepared import PreparedRun
from .conditions import Conditions
from .memory import clear_cache, ran_out_of_memory


class Batches:
    """Runs batches, and smaller ones once memory has run out.

    Args:
        run: what each batch does.
        conditions: the samples'.
        first_index: of the first sample.
        size: samples at once, at most.
        told: called with the new size where it was halved.
        look: what is done with finished samples (N, *shape) besides, such as decoding, as part of the batch.
    """

    def __init__(
        self,
        run: PreparedRun,
        conditions: Conditions,
        first_index: int,
        size: int,
        on_resize: Callable[[int], None] = lambda size: None,
        postprocess: Callable[[Tensor], Any] = lambda samples: None,
    ) -> None:
        self.run, self.conditions, self.first_index = run, conditions, first_index
        self.size, self.on_resize, self.postprocess = size, on_resize, postprocess

    def make(self, rows: range, advance: Callback | None = None) -> list[tuple[Part, Any]]:
        """Samples `rows`, in as many parts as memory asks for, each with what `look` made of it.

        Raises:
            SdesamplersError: there is not enough memory for one sample at a time.
        """
        made: list[tuple[Part, Any]] = []
        at = rows.start
        while at < rows.stop:
            now = range(at, min(at + self.size, rows.stop))
            try:
                part = self.run.run(self.indices(now), self.conditions.of(now), advance=advance)
                made.append((part, self.postprocess(part.samples)))
            except Exception as error:
                if not ran_out_of_memory(error):
                    raise
                if len(now) == 1:
                    reason = " ".join(str(error).split())
                    raise SdesamplersError(f"memory does not hold even one sample at a time: {reason}") from error
                self.size = len(now) // 2
            else:
                at = now.stop
                continue
            clear_cache()  # outside of the handler, which would keep what the failed batch held alive
            self.on_resize(self.size)
        return made

    def indices(self, rows: range) -> range:
        """The numbers of these samples."""
        return range(self.first_index + rows.start, self.first_index + rows.stop)
