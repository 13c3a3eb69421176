"""`stream`: samples as they are made, batch by batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from ..checks import sample_range, whole
from ..errors import UsageError
from ..models.base import Model
from ..public import public
from ..registry.plugin import Sampler
from ..sampling.prepared import prepare
from ..sampling.recipe import Recipe
from ..sampling.request import split_arguments
from ..sampling.result import Result
from . import memory
from .batches import Batches
from .conditions import Conditions
from .ranks import Ranks, check_part

ELSEWHERE = {"start": "sample", "start_time": "sample", "gradients": "sample", "progress": "your own loop"}
"""Words of `sample` that `stream` does not take, and where they are at home."""


@public
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
    num_samples, first_index = sample_range(num_samples, first_index)
    if memory_limit is not None:
        whole("memory_limit", memory_limit)
    if batch_size is not None:
        whole("batch_size", batch_size)
    if part is not None and batch_size is None:
        raise UsageError("part needs batch_size, which all parts must share")
    ranks = Ranks.here()
    part = (ranks.rank, ranks.count) if part is None else check_part(part)
    run = prepare(model, *split_arguments(sampler, fitting(words, "stream", ELSEWHERE)))
    conditions = Conditions(run.model, condition, num_samples)
    if batch_size is None:
        batch_size = min(ranks.gather(memory.batch_size_for(run, conditions, memory_limit, num_samples)))
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
