"""From a call to a result.

recipe.py     `Recipe`: the record of how a run is made
recipe_file.py  its file; recipe_card.py, the card of recipes on the Hub
table.py      `SolverTable`, its files, and the choice of one from several
table_facts.py  what its facts say about its model and errors
sampler_files.py  recipes and tables by the path of a file or folder or an address on the Hub
table_plots.py  `plot_tables`
loop.py       the evaluator, and the loop that drives a sampler
forking.py    thread settings for processes that sample and then fork
runs.py       from a recipe to a path and a started run; dry runs
recent.py     the grids of recent calls, kept
request.py    the arguments of a call, as passed
setting.py    a sampler with its grid and options as one line of text
arguments.py  a request, checked and completed to a recipe
result.py     samples, and the record of how they were made
result_html.py  the same in notebooks
parts.py      the batches of a run, recorded and joined
prepared.py   a checked call, with everything that its batches share; the loop over batches
row_limit.py  the rows of a batch, fewer if memory runs out
start_check.py a check of the noise level of initial states
diagnosis.py  at which step a sampler failed, and the likely cause
calls.py      `sample`; typed.py and typed.pyi, its types for editors
replay.py     log-probabilities of a stored run under other weights
memory.py     what a sampler still depends on in the middle of a run, found by dry runs on the tensors of sources.py
observed.py   one step of a run as a `Transition`
records.py    the data of a run that can be copied; recorded.py, such a run; record_state.py, as plain data
stepper.py    `Stepper`, a run advanced by hand; waiting.py, the evaluation that it waits for; stepper_arguments.py,
              stepper_outputs.py, stepper_scored.py, stepper_copies.py and stepper_state.py, its arguments, outputs,
              densities, copies and stored form
pool.py       `Pool`, many steppers in one batch; pool_rows.py, the rows of its batches; pool_requests.py, its requests
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..public import lazily

if TYPE_CHECKING:
    from .calls import sample
    from .prepared import prepare
    from .replay import replay_log_probs

__all__ = ["prepare", "replay_log_probs", "sample"]
__getattr__ = lazily(__name__, {"prepare": "prepared", "replay_log_probs": "replay", "sample": "calls"})
