"""Samplers side by side.

result.py      what it finds: tables, files and a picture
comparison.py  `compare`
pictures.py    its picture
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..public import lazily

if TYPE_CHECKING:
    from .comparison import compare
    from .result import Cell, Comparison

__all__ = ["Cell", "Comparison", "compare"]
__getattr__ = lazily(__name__, {"comparison": ["compare"], "result": ["Cell", "Comparison"]})
