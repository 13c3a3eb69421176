"""Batches of a prepared run, halved where memory runs out; and `stream`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..errors import UsageError
from ..loop import Callback
from ..models.base import Model
from ..plugin import Sampler
from ..recipe import check_count
from ..result import Part, Result
from ..sampling import PreparedRun, prepare
from .ranks import Ranks

WITHOUT = {"start": "sample", "start_time": "sample", "gradients": "sample", "progress": "your own loop"}
"""Words of `sample` that make no sense here, and where they do."""


class Conditions:
    """A user's condition, given to the model batch by batch: fifty thousand samples' would not fit.

    Args:
        model: the model.
        condition: one for all samples or one a sample; None for none.
        count: how many samples.
    """

    def __init__(self, model: Model, condition: Any, count: int) -> None:
        self.model = model
        self.words: list[Any] = [] if condition is None else as_list(condition)
        if len(self.words) not in (0, 1, count):
            raise UsageError(f"condition must be one for all or {count}, one a sample, not {len(self.words)}")
        labels = list(dict.fromkeys(word for word in self.words if isinstance(word, int)))
        if labels:  # a label out of range is told before the first sample is made; prompts cannot be wrong
            model.condition_for(labels, len(labels))
        self.of(range(1))

    def of(self, rows: range) -> Any:
        """These samples' conditions, as the model takes them."""
        if not self.words:
            return self.model.condition_for(None, len(rows))
        mine = self.words if len(self.words) == 1 else self.words[rows.start : rows.stop]
        return self.model.condition_for(mine, len(rows))


def as_list(condition: Any) -> list[Any]:
    """A prompt, a label, or several of them as a list of plain ones."""
    if hasattr(condition, "tolist"):
        condition = condition.tolist()
    return list(condition) if isinstance(condition, list | tuple | range) else [condition]


class Batches:
    """Runs batches, and smaller ones once memory has run out.

    Args:
        run: what each batch does.
        conditions: the samples'.
        first_index: of the first sample.
        size: samples at once, at most.
        told: called with the new size where it was halved.
    """

    def __init__(
        self, run: PreparedRun, conditions: Conditions, first_index: int, size: int, told: Callable[[int], None]
    ) -> None:
        self.run, self.conditions, self.first_index = run, conditions, first_index
        self.size, self.told = size, told

    def make(self, rows: range, advance: Callback | None = None) -> list[Part]:
        """Samples `rows`, in as many parts as memory asks for."""
        parts: list[Part] = []
        at = rows.start
        while at < rows.stop:
            now = range(at, min(at + self.size, rows.stop))
            indices = range(self.first_index + now.start, self.first_index + now.stop)
            try:
                parts.append(self.run.run(indices, self.conditions.of(now), advance=advance))
            except Exception as error:
                if not (ran_out_of_memory(error) and len(now) > 1):
                    raise
                self.size = len(now) // 2
                self.told(self.size)
            else:
                at = now.stop
                continue
            clear_cache()  # outside of the handler, which would keep what the failed batch held alive
        return parts


def ran_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch might help, by accelerate's list of devices' messages."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, MemoryError) or should_reduce_batch_size(error)


def clear_cache() -> None:
    """Give back what the device's allocator keeps."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


def stream(
    model: Model | str,
    sampler: str | Sampler = "quality",
    *,
    num_samples: int,
    batch_size: int | None = None,
    memory_limit: int | None = None,
    first_index: int = 0,
    condition: Any = None,
    part: tuple[int, int] | None = None,
    **words: Any,
) -> Iterator[Result]:
    """Samples batch by batch, as many as are wanted, with no more than one batch in memory.

    Args:
        model, sampler: as in `sample`.
        num_samples: how many in all.
        batch_size: how many at once; by default as many as fit (see `memory_limit`). Where memory runs out, batches are
            halved from there on.
        memory_limit: bytes for a batch, beside the weights, where `batch_size` is not given; half of the free ones by
            default.
        first_index: sample j of the stream depends on (seed, first_index + j) alone.
        condition: one for all, or one a sample.
        part: (k, n): only every n-th batch, from the k-th on, counted from 0. By default each process of an
            accelerate or torchrun launch has its own part, and a process alone has all.
        **words: the other words of `sample`, the sampler's options among them.

    Yields:
        Results of `batch_size` samples each (the last may have fewer), as `sample` returns them.

    Raises:
        UsageError: words that do not fit, before the first batch is made.
    """
    check_count("num_samples", num_samples)
    check_count("first_index", first_index, 0)
    run = prepare(model, sampler, **fitting(words, "stream"))
    conditions = Conditions(run.model, condition, num_samples)
    if batch_size is None:
        from .memory import batch_size_for

        batch_size = batch_size_for(run, conditions, memory_limit, num_samples)
    check_count("batch_size", batch_size)
    if part is None:
        here = Ranks.here()
        part = (here.rank, here.count)
    batches = Batches(run, conditions, first_index, batch_size, lambda size: None)
    return results(batches, num_samples, batch_size, part)


def results(batches: Batches, count: int, size: int, part: tuple[int, int]) -> Iterator[Result]:
    """The batches of `stream`."""
    for first in list(range(0, count, size))[part[0] :: part[1]]:
        rows = range(first, min(first + size, count))
        parts = batches.make(rows)
        indices = range(batches.first_index + rows.start, batches.first_index + rows.stop)
        yield batches.run.result(parts, indices, batches.conditions.of(rows))


def fitting(words: dict[str, Any], owner: str) -> dict[str, Any]:
    """The words, where none is one that only `sample` takes."""
    for word in words:
        if word in WITHOUT:
            raise UsageError(f"{owner} does not take {word}; use {WITHOUT[word]}")
    return words
