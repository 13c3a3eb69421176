"""The numbers of evaluations and guidance scales for which a model has solver tables, as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def budgets_text(by_scale: Iterable[Mapping[str, Any]]) -> str:
    """The numbers of evaluations and guidance scales of tables in a line; scales with the same numbers together.

    Example:
        >>> budgets_text([{"guidance_scale": 1.0, "nfe": [5, 8]}, {"guidance_scale": 2.0, "nfe": [5, 8]}])
        '5, 8 (unguided, guidance 2)'
        >>> budgets_text([{"guidance_scale": 1.0, "nfe": [5, 8]}])
        '5, 8'
    """
    scales: dict[str, list[float]] = {}
    for each in by_scale:
        scales.setdefault(", ".join(map(str, each["nfe"])), []).append(float(each["guidance_scale"]))
    if list(scales.values()) == [[1.0]]:
        return next(iter(scales))
    names = {
        budgets: ", ".join([*(["unguided"] if 1.0 in own else []), *_guided([scale for scale in own if scale != 1.0])])
        for budgets, own in scales.items()
    }
    return "; ".join(f"{budgets} ({name})" for budgets, name in names.items())


def _guided(scales: Sequence[float]) -> list[str]:
    return [f"guidance {', '.join(f'{scale:g}' for scale in scales)}"] if scales else []
