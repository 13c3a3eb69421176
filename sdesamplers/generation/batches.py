"""Batches of a prepared run, halved when memory runs out."""

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
    """Runs batches; halves the batch size each time memory runs out.

    Args:
        run: the prepared run that generates each batch.
        conditions: the conditions of all samples.
        first_index: index of the first sample.
        size: maximum batch size.
        on_resize: called with the new size after the batch size was halved.
        postprocess: called on each batch of finished samples (N, *shape), for example to decode them; if memory runs
            out here, the batch is halved too.
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
        """Generate the samples `rows`, in as many parts as memory requires, each with its `postprocess` result.

        Raises:
            SdesamplersError: out of memory at batch size 1.
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
                    raise SdesamplersError(f"out of memory at batch size 1: {reason}") from error
                self.size = len(now) // 2
            else:
                at = now.stop
                continue
            clear_cache()  # outside the handler, whose traceback keeps the failed batch's tensors alive
            self.on_resize(self.size)
        return made

    def indices(self, rows: range) -> range:
        """The sample indices of these rows."""
        return range(self.first_index + rows.start, self.first_index + rows.stop)
