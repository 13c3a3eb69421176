"""Comparison of samplers.

settings.py        what is compared: samplers with their own grids and options, as objects or as text
scoring.py         scorers and metrics, tested before anything is run
trajectories.py    the states of a few samples on their way
cache.py           finished runs by their identity
runs.py            one run: sampled, measured, kept
statistics.py      intervals by resampling
cell.py            `Cell`: the values of a setting at a budget
recommendation.py  the best setting; pairs that cannot be distinguished
rules.py           rules for continuous integration, JUnit
reading.py         compare.json and its schema, schema.json
picture.py         compare.png
html.py            a comparison in notebooks and as text
card.py            its card, with the numbers in the Hub's model-index form
sharing.py         a folder of its files on the Hub, with its card
document.py        a comparison as plain data, to and from compare.json, and as CSV
files.py           its files in a folder and on the Hub
result.py          `Comparison`: everything that can be done with the cells
comparison.py      `compare`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..public import lazily

if TYPE_CHECKING:
    from .cell import Cell
    from .comparison import compare
    from .recommendation import Recommendation
    from .result import Comparison
    from .rules import Check

__all__ = ["Cell", "Check", "Comparison", "Recommendation", "compare"]
__getattr__ = lazily(
    __name__,
    {
        "Cell": "cell",
        "Check": "rules",
        "Comparison": "result",
        "Recommendation": "recommendation",
        "compare": "comparison",
    },
)
