"""Conditions: a tensor, or a dictionary or tuple of tensors; the first dimension of each is the sample."""

from __future__ import annotations

from collections.abc import Callable
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


def join_conditions(a: Any, b: Any) -> Any:
    """Join the conditions of two batches.

    Args:
        a, b: tensors (N, ...) and (M, ...), dictionaries or tuples of them, objects of one class that has a class
            method `cat(list)`, or both None.

    Raises:
        UsageError: unsupported types, or conditions that do not match.
    """
    if a is None and b is None:
        return None
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape[1:] != b.shape[1:]:
            shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
            raise UsageError(f"conditions of shapes {shapes} cannot be joined into one batch")
        return torch.cat([a, b])
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return type(a)((key, join_conditions(a[key], b[key])) for key in a)
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        parts = [join_conditions(x, y) for x, y in zip(a, b, strict=True)]
        return type(a)(*parts) if hasattr(a, "_fields") else tuple(parts)
    if type(a) is type(b) and hasattr(a, "cat"):
        return type(a).cat([a, b])
    raise UsageError(
        f"conditions of types {type(a).__name__} and {type(b).__name__} cannot be joined into one batch: they must be "
        "tensors, dictionaries or tuples of tensors with the same entries, or objects of one class with a class method "
        "cat(list); batched=False evaluates the model twice instead"
    )
