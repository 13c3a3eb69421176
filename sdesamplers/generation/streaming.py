"""`stream`: generate samples batch by batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from ..checks import sample_range, suggest_keywords, whole
from ..errors import UsageError
from ..models.base import Model
from ..public import public
from ..registry.plugin import Sampler
from ..sampling.prepared import prepare
from ..sampling.recipe import Recipe
from ..sampling.request import CONDUCT_FIELDS, REQUEST_FIELDS, split_arguments
from ..sampling.result import Result
from ..sampling.table import SolverTable, TableSet
from . import memory
from .batches import Batches
from .conditions import Conditions
from .ranks import Ranks, check_part

ALTERNATIVES = {"start": "sample", "start_time": "sample", "gradients": "sample", "progress": "your own loop"}
"""Arguments of `sample` that `stream` does not accept, and what to use instead."""


@public
@suggest_keywords(*REQUEST_FIELDS, *CONDUCT_FIELDS)
def stream(
    model: Model | str,
    sampler: str | Sampler | Recipe | SolverTable | TableSet | Mapping[str, Any] = "quality",
    *,
    num_samples: int,
    batch_size: int | None = None,
    memory_limit: int | None = None,
    first_index: int = 0,
    condition: Any = None,
    part: tuple[int, int] | None = None,
    **kwargs: Any,
) -> Iterator[Result]:
    """Generate samples batch by batch, with only one batch in memory at a time.

    Args:
        model, sampler: as in `sample`.
        num_samples: total number of samples.
        batch_size: samples per batch; by default as many as fit (see `memory_limit`). If memory runs out, this and all
            later batches are halved.
        memory_limit: bytes for a batch, in addition to the weights, if `batch_size` is not given; by default half of
            the free memory.
        first_index: sample j of the stream depends only on (seed, first_index + j).
        condition: one for all samples, or one per sample.
        part: (k, n): generate only every n-th batch, starting with the k-th, counted from 0; requires a `batch_size`,
            the same for all parts. By default each process of an accelerate or torchrun launch has its own part, and a
            single process generates all batches.
        **kwargs: the other arguments of `sample`, including the sampler's options.

    Yields:
        Results of `batch_size` samples each (the last may have fewer), as `sample` returns them.

    Raises:
        UsageError: invalid or conflicting arguments; raised before the first batch is generated.
        SdesamplersError: out of memory at batch size 1.
    """
    num_samples, first_index = sample_range(num_samples, first_index)
    if memory_limit is not None:
        whole("memory_limit", memory_limit)
    if batch_size is not None:
        whole("batch_size", batch_size)
    if part is not None and batch_size is None:
        raise UsageError("part requires batch_size, the same for all parts")
    ranks = Ranks.here()
    part = (ranks.rank, ranks.count) if part is None else check_part(part)
    run = prepare(model, *split_arguments(sampler, accepted(kwargs, "stream", ALTERNATIVES)))
    conditions = Conditions(run.model, condition, num_samples)
    if batch_size is None:
        batch_size = min(ranks.gather(memory.batch_size_for(run, conditions, memory_limit, num_samples)))
    return results(Batches(run, conditions, first_index, batch_size), num_samples, batch_size, part)


def results(batches: Batches, count: int, size: int, part: tuple[int, int]) -> Iterator[Result]:
    """Generate the results of `stream`."""
    for first in range(0, count, size)[part[0] :: part[1]]:
        rows = range(first, min(first + size, count))
        parts = [each for each, _ in batches.make(rows)]
        with warnings.catch_warnings():
            if first:  # warn once, not for every batch
                warnings.filterwarnings("ignore", ".* lie far outside the data range")
            result = batches.run.result(parts, batches.indices(rows), batches.conditions.of(rows))
        yield result


def accepted(kwargs: dict[str, Any], owner: str, alternatives: dict[str, str]) -> dict[str, Any]:
    """Return the keyword arguments, or raise UsageError for the first one in `alternatives`."""
    for name in kwargs:
        if name in alternatives:
            raise UsageError(f"{owner} does not take {name}; use {alternatives[name]}")
    return kwargs
