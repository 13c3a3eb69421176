"""From a call to a result.

recipe.py     how a run is made: its record, and from a call's words to it
loop.py       the evaluator, and the loop that drives a sampler
forking.py    processes that have sampled and then fork
result.py     samples, with how they were made
sample.py     `sample`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..public import lazily

if TYPE_CHECKING:
    from ..pretrained.loading import as_model
    from .calls import sample
    from .prepared import prepare
    from .replay import replay_log_probs

__all__ = ["as_model", "prepare", "replay_log_probs", "sample"]
__getattr__ = lazily(__name__, {"sample": __all__})
