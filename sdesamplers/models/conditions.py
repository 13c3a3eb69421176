"""Conditions: a tensor, or a dictionary or tuple of tensors; the first dimension of each is the sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import UsageError


def is_structure(condition: Any) -> bool:
    """True for a dictionary or a tuple of tensors; False for a single object, for example a sequence of prompts."""
    if isinstance(condition, dict):
        return True
    if not isinstance(condition, tuple):
        return False
    given = [entry for entry in condition if entry is not None]
    return bool(given) and all(isinstance(entry, Tensor | np.ndarray | dict | tuple) for entry in given)


def map_tensors(condition: Any, change: Callable[[Any], Any]) -> Any:
    """Apply `change` to every tensor of a structure, or to the condition itself if it is not a structure; keep None."""
    if condition is None:
        return None
    if is_structure(condition):
        return tree_map(lambda leaf: None if leaf is None else change(leaf), condition)
    return change(condition)


def take_rows(condition: Any, rows: Any) -> Any:
    """Return the rows of a condition for some samples; `rows` is a slice or an array of their positions."""
    return map_tensors(condition, lambda leaf: leaf[rows])


def cloned(condition: Any) -> Any:
    """Return a copy of a condition with cloned tensors; objects of other classes are not copied."""
    if hasattr(condition, "cloned"):
        return condition.cloned()
    return map_tensors(condition, lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)


def lengths(condition: Any) -> set[int]:
    """The numbers of samples of a structure's tensors: a set of one element if they agree."""
    return {len(leaf) if np.ndim(leaf) else 1 for leaf in tree_leaves(condition) if leaf is not None}


def as_plain_data(condition: Any) -> Any:
    """Return a condition as lists and plain values, for records."""
    return map_tensors(condition, lambda leaf: leaf.tolist() if hasattr(leaf, "tolist") else leaf)


def join_conditions(*conditions: Any) -> Any:
    """Join the conditions of several batches, one or more.

    Args:
        *conditions: tensors (N, ...), (M, ...), ..., dictionaries or tuples of them, objects of one class that has a
            class method `cat(list)`, or all None.

    Raises:
        UsageError: unsupported types, or conditions that do not match.
    """
    first = conditions[0]
    if all(each is None for each in conditions):
        return None
    if all(isinstance(each, Tensor) for each in conditions):
        if any(each.shape[1:] != first.shape[1:] for each in conditions):
            shapes = list(dict.fromkeys(tuple(each.shape) for each in conditions))
            raise UsageError(f"conditions of shapes {_listed(shapes)} cannot be joined into one batch")
        return torch.cat(conditions)
    if all(isinstance(each, dict) and each.keys() == first.keys() for each in conditions):
        return type(first)((key, join_conditions(*(each[key] for each in conditions))) for key in first)
    if all(isinstance(each, tuple) and len(each) == len(first) for each in conditions):
        parts = [join_conditions(*each) for each in zip(*conditions, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    if all(type(each) is type(first) for each in conditions) and hasattr(first, "cat"):
        return type(first).cat(list(conditions))
    kinds = list(dict.fromkeys(type(each).__name__ for each in conditions))
    raise UsageError(
        f"conditions of types {_listed(kinds if len(kinds) > 1 else kinds * 2)} cannot be joined into one batch: they "
        "must be tensors, dictionaries or tuples of tensors with the same entries, or objects of one class with a "
        "class method cat(list); batched=False evaluates the model twice instead"
    )


def _listed(parts: list[Any]) -> str:
    return " and ".join(str(part) for part in parts)


@dataclass(frozen=True)
class GuidedCondition:
    """The condition of a guided model: a condition and the one to guide away from, for the same samples."""

    condition: Any
    unconditional: Any

    def __getitem__(self, rows: Any) -> GuidedCondition:
        return GuidedCondition(take_rows(self.condition, rows), take_rows(self.unconditional, rows))

    @classmethod
    def cat(cls, conditions: list[GuidedCondition]) -> GuidedCondition:
        """The condition of several batches together."""
        return cls(
            join_conditions(*(each.condition for each in conditions)),
            join_conditions(*(each.unconditional for each in conditions)),
        )

    def tolist(self) -> Any:
        """The condition itself, for records."""
        return as_plain_data(self.condition)
