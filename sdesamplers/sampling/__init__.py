"""From a call to a result.

recipe.py     how a run is made: its record
loop.py       the evaluator, and the loop that drives a sampler
forking.py    processes that have sampled and then fork
runs.py       from a recipe to a path and a started run; dry runs
request.py    a call's arguments as they were given: what is run, and how
arguments.py  a request, checked, and completed to a recipe
result.py     samples, with how they were made
parts.py      the batches of a run, recorded and joined
prepared.py   a call that is checked, with all that its batches share: the loop over batches
calls.py      `sample`
replay.py     a run again, from its stored draws
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..public import lazily

if TYPE_CHECKING:
    from .calls import sample
    from .prepared import prepare
    from .replay import replay_log_probs

__all__ = ["prepare", "replay_log_probs", "sample"]
__getattr__ = lazily(__name__, {"calls": ["sample"], "prepared": ["prepare"], "replay": ["replay_log_probs"]})
