"""Any sampler inside a diffusers pipeline.

configuration.py      the model's configuration and ours, in one file
seeding.py            noise seeds from a pipeline's generators
layout.py             the evaluations of a run, found beforehand by a dry run
choice.py             the chosen sampler with its options, grid and noise
grids.py              the grid that a pipeline requests
step_arguments.py     every keyword argument that pipelines pass to `step` and `set_timesteps`
table.py              attributes of a DDPM table that pipelines read
noising.py            the noise that the model's process adds
training_schedule.py  the schedule that training scripts read before `set_timesteps`
timesteps.py          the timesteps that a pipeline loops over
timeline.py           the timesteps of a grid, and the progress of the current run along them
pending.py            the evaluation that a run waits for, and the output of `step`
unguided.py           the unguided predictions of a pipeline's guider, for CFG++ samplers
run.py                a run that a pipeline's loop drives; run_state.py, as plain data
scored.py             steps with their densities, for policy gradients
stored.py             copies of a scheduler, its pickles and its run as plain data
scheduler.py          `Scheduler`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..public import lazily

if TYPE_CHECKING:
    from .scheduler import Scheduler

__all__ = ["Scheduler"]
# diffusers looks for its own base class next to a component's class to find out how to load it; pickles of early 0.1
# refer to `_unpickled`.
__getattr__ = lazily(__name__, dict.fromkeys(("Scheduler", "SchedulerMixin", "_unpickled"), "scheduler"))
