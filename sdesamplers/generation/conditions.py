"""The conditions of a job's samples, one for all or one per sample."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ..errors import UsageError
from ..models.base import Model
from ..models.conditions import is_structure, lengths, map_tensors


class Conditions:
    """A user's condition, prepared by the model batch by batch: the embeddings of all samples may not fit in memory.

    Args:
        model: the model.
        condition: one for all samples, or one per sample; None for the model's default.
        count: number of samples.

    Attributes:
        given: the condition as given, with arrays of labels as lists.
        recorded: prompts or class labels for records, one per sample or one for all; empty for other conditions, such
            as embeddings. Without a given condition, the model's default.

    Raises:
        UsageError: the number of conditions is neither 1 nor `count`, or the model rejects the condition.
    """

    def __init__(self, model: Model, condition: Any, count: int) -> None:
        self.model, self.given = model, as_lists(condition)
        self._count = count
        if wrong := sorted(lengths_of(self.given) - {1, count}):
            raise UsageError(f"condition must be one for all or {count}, one per sample, not {wrong[0]}")
        if isinstance(self.given, list):
            labels = list(dict.fromkeys(entry for entry in self.given if isinstance(entry, int)))
            if labels:  # a label out of range is refused before the first sample; prompts need no check
                model.condition_for(labels, len(labels))
        spread = self.of(range(1))
        self.recorded = recordable(spread if condition is None else self.given)

    def of(self, rows: range) -> Any:
        """The conditions of these samples, prepared by the model."""
        mine = map_tensors(self.given, lambda entry: self._part(entry, rows))
        return self.model.condition_for(mine, len(rows))

    def _part(self, given: Any, rows: range) -> Any:
        """The rows of these samples in a condition, or the condition itself if it is for all samples."""
        return given[rows.start : rows.stop] if lengths_of(given) == {self._count} else given


def lengths_of(condition: Any) -> set[int]:
    """Lengths of a user's condition, one for each entry of a dictionary or tuple; empty for a prompt or a number."""
    if is_structure(condition):
        return lengths(condition)
    axes: int = getattr(condition, "ndim", 1)
    sized = hasattr(condition, "__len__") and hasattr(condition, "__getitem__") and axes > 0
    sized = sized and not isinstance(condition, str)
    return {len(condition)} if sized else set()


def first_of(condition: Any, count: int) -> Any:
    """A user's condition for the first `count` samples."""
    return map_tensors(condition, lambda entry: entry[:count] if lengths_of(entry) - {1} else entry)


def as_lists(condition: Any) -> Any:
    """Arrays of labels and sequences of labels or prompts as lists; anything else (a prompt, embeddings) unchanged."""
    if isinstance(condition, Tensor | np.ndarray | np.generic):
        kind = condition.cpu().numpy() if isinstance(condition, Tensor) else np.asarray(condition)
        return kind.tolist() if kind.ndim <= 1 and not np.issubdtype(kind.dtype, np.floating) else condition
    plain = isinstance(condition, tuple | range) and not is_structure(condition)
    return list(condition) if plain else condition


def recordable(condition: Any) -> list[Any]:
    """A condition's labels or prompts as a list; empty for any other condition."""
    listed = condition.tolist() if hasattr(condition, "tolist") else condition
    recorded = listed if isinstance(listed, list) else [listed]
    return recorded if all(isinstance(entry, int | str) for entry in recorded) else []
