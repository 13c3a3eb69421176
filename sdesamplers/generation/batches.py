"""Batches of a prepared run, halved where memory runs out; and `stream`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import check_indices, whole
from ..errors import SdesamplersError, UsageError
from ..loop import Callback
from ..models.base import Model
from ..models.conditions import each, is_structure, lengths
from ..plugin import Sampler
from ..recipe import Recipe
from ..result import Part, Result
from ..sampling import PreparedRun, prepare
from .ranks import Ranks, check_part

ELSEWHERE = {"start": "sample", "start_time": "sample", "gradients": "sample", "progress": "your own loop"}
"""Words of `sample` that `stream` does not take, and where they are at home."""


class Conditions:
    """A user's condition, given to the model batch by batch: fifty thousand samples' would not fit.

    Args:
        model: the model.
        condition: one for all samples or one a sample; None for none.
        count: how many samples.

    Attributes:
        given: the condition, in plain words where it was an array of them; the model's own where none was given.
        words: of each sample, or one for all, for records; none where they are no words.

    Raises:
        UsageError: neither one nor one a sample, or the model does not take it.
    """

    def __init__(self, model: Model, condition: Any, count: int) -> None:
        self.model, self.given = model, in_words(condition)
        self._count = count
        if wrong := sorted(lengths_of(self.given) - {1, count}):
            raise UsageError(f"condition must be one for all or {count}, one a sample, not {wrong[0]}")
        if isinstance(self.given, list):
            labels = list(dict.fromkeys(word for word in self.given if isinstance(word, int)))
            if labels:  # one out of range is told before the first sample is made; prompts are in no range
                model.condition_for(labels, len(labels))
        spread = self.of(range(1))
        self.words = words_of(spread if condition is None else self.given)

    def of(self, rows: range) -> Any:
        """These samples' conditions, as the model takes them."""
        mine = each(self.given, lambda entry: self._part(entry, rows))
        return self.model.condition_for(mine, len(rows))

    def _part(self, given: Any, rows: range) -> Any:
        """These samples' part of a condition, or all of one that is for all samples."""
        return given[rows.start : rows.stop] if lengths_of(given) == {self._count} else given


def lengths_of(condition: Any) -> set[int]:
    """Of how many samples a user's condition is, each entry of a dictionary or tuple by itself; none of a word."""
    if is_structure(condition):
        return lengths(condition)
    axes: int = getattr(condition, "ndim", 1)
    sized = hasattr(condition, "__len__") and hasattr(condition, "__getitem__") and axes > 0
    sized = sized and not isinstance(condition, str)
    return {len(condition)} if sized else set()


def first_of(condition: Any, count: int) -> Any:
    """A user's condition for the first `count` samples alone."""
    return each(condition, lambda entry: entry[:count] if lengths_of(entry) - {1} else entry)


def in_words(condition: Any) -> Any:
    """Arrays of labels and other sequences of words as lists; all else (a word, embeddings) as it is."""
    if isinstance(condition, Tensor | np.ndarray | np.generic):
        kind = condition.cpu().numpy() if isinstance(condition, Tensor) else np.asarray(condition)
        return kind.tolist() if kind.ndim <= 1 and not np.issubdtype(kind.dtype, np.floating) else condition
    plain = isinstance(condition, tuple | range) and not is_structure(condition)
    return list(condition) if plain else condition


def words_of(condition: Any) -> list[Any]:
    """A condition's words; none where it has none."""
    listed = condition.tolist() if hasattr(condition, "tolist") else condition
    words = listed if isinstance(listed, list) else [listed]
    return words if all(isinstance(word, int | str) for word in words) else []


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
        told: Callable[[int], None] = lambda size: None,
        look: Callable[[Tensor], Any] = lambda samples: None,
    ) -> None:
        self.run, self.conditions, self.first_index = run, conditions, first_index
        self.size, self.told, self.look = size, told, look

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
                made.append((part, self.look(part.samples)))
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
            self.told(self.size)
        return made

    def indices(self, rows: range) -> range:
        """The numbers of these samples."""
        return range(self.first_index + rows.start, self.first_index + rows.stop)


def ran_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch might help, by accelerate's list of devices' messages."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(error)


def clear_cache() -> None:
    """Give back what the device's allocator keeps."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


def stream(
    model: Model | str,
    sampler: str | Sampler | Recipe | Mapping[str, Any] = "quality",
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
        part: (k, n): only every n-th batch, from the k-th on, counted from 0; it needs a `batch_size`, which all parts
            must share. By default each process of an accelerate or torchrun launch has its own part, and a process
            alone has all.
        **words: the other words of `sample`, the sampler's options among them.

    Yields:
        Results of `batch_size` samples each (the last may have fewer), as `sample` returns them.

    Raises:
        UsageError: words that do not fit, before the first batch is made.
        SdesamplersError: there is not enough memory for one sample at a time.
    """
    whole("num_samples", num_samples)
    first_index = whole("first_index", first_index, 0)
    check_indices(first_index, num_samples)
    if memory_limit is not None:
        whole("memory_limit", memory_limit)
    if batch_size is not None:
        whole("batch_size", batch_size)
    if part is not None and batch_size is None:
        raise UsageError("part needs batch_size, which all parts must share")
    ranks = Ranks.here()
    part = (ranks.rank, ranks.count) if part is None else check_part(part)
    run = prepare(model, sampler, **fitting(words, "stream", ELSEWHERE))
    conditions = Conditions(run.model, condition, num_samples)
    if batch_size is None:
        from .memory import batch_size_for

        batch_size = min(ranks.gather(batch_size_for(run, conditions, memory_limit, num_samples)))
    return results(Batches(run, conditions, first_index, batch_size), num_samples, batch_size, part)


def results(batches: Batches, count: int, size: int, part: tuple[int, int]) -> Iterator[Result]:
    """The batches of `stream`."""
    for first in range(0, count, size)[part[0] :: part[1]]:
        rows = range(first, min(first + size, count))
        parts = [each for each, _ in batches.make(rows)]
        with warnings.catch_warnings():
            if first:  # once, where a batch a warning would be hundreds
                warnings.filterwarnings("ignore", ".* lie far outside the data range")
            result = batches.run.result(parts, batches.indices(rows), batches.conditions.of(rows))
        yield result


def fitting(words: dict[str, Any], owner: str, elsewhere: dict[str, str]) -> dict[str, Any]:
    """The words, where none is one that is at home elsewhere."""
    for word in words:
        if word in elsewhere:
            raise UsageError(f"{owner} does not take {word}; use {elsewhere[word]}")
    return words
