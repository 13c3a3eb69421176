"""The conditions of a job's samples, one for all or one each."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ..errors import UsageError
from ..models.base import Model
from ..models.conditions import each, is_structure, lengths


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
        self.model, self.given = model, as_lists(condition)
        self._count = count
        if wrong := sorted(lengths_of(self.given) - {1, count}):
            raise UsageError(f"condition must be one for all or {count}, one a sample, not {wrong[0]}")
        if isinstance(self.given, list):
            labels = list(dict.fromkeys(entry for entry in self.given if isinstance(entry, int)))
            if labels:  # one out of range is told before the first sample is made; prompts are in no range
                model.condition_for(labels, len(labels))
        spread = self.of(range(1))
        self.recorded = recordable(spread if condition is None else self.given)

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


def as_lists(condition: Any) -> Any:
    """Arrays of labels and other sequences of words as lists; all else (a word, embeddings) as it is."""
    if isinstance(condition, Tensor | np.ndarray | np.generic):
        kind = condition.cpu().numpy() if isinstance(condition, Tensor) else np.asarray(condition)
        return kind.tolist() if kind.ndim <= 1 and not np.issubdtype(kind.dtype, np.floating) else condition
    plain = isinstance(condition, tuple | range) and not is_structure(condition)
    return list(condition) if plain else condition


def recordable(condition: Any) -> list[Any]:
    """A condition's words; none where it has none."""
    listed = condition.tolist() if hasattr(condition, "tolist") else condition
    recorded = listed if isinstance(listed, list) else [listed]
    return recorded if all(isinstance(entry, int | str) for entry in recorded) else []
