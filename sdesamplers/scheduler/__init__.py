"""Any sampler inside a pipeline of diffusers.

configuration.py      our words beside the model's
seeding.py            noise from a pipeline's generators
layout.py             a run laid out beforehand, by a dry run
choice.py             the sampler chosen, its options and its words of grid and noise
grids.py              the grid that a pipeline asks for
step_words.py         every keyword that pipelines pass to `step`
table.py              what pipelines look up of a DDPM table
noising.py            noise as the model's process adds it
training_schedule.py  what training scripts read before a run is laid out
timesteps.py          the timesteps that a pipeline loops over
timeline.py           those of a grid, and how far the run in progress has come along them
pending.py            the evaluation that a run waits for, and what `step` returns
run.py                a run that a pipeline's loop pushes
scheduler.py          `Scheduler`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..public import lazily

if TYPE_CHECKING:
    from .scheduler import Scheduler

__all__ = ["Scheduler"]
# diffusers looks for its own base class beside a component's, to know how that is loaded; pickles of early 0.1 look
# for `_unpickled`.
__getattr__ = lazily(__name__, {"scheduler": ["Scheduler", "SchedulerMixin", "_unpickled"]})
