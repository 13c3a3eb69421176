"""Comparison of samplers.

comparison.py  `compare`
result.py      its result: tables, files and an image
card.py        its card, with the numbers in the Hub's model-index form
sharing.py     its files on the Hub
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..public import lazily

if TYPE_CHECKING:
    from .comparison import compare
    from .result import Cell, Comparison

__all__ = ["Cell", "Comparison", "compare"]
__getattr__ = lazily(__name__, {"Cell": "result", "Comparison": "result", "compare": "comparison"})
