"""Any sampler inside a pipeline of diffusers.

seeding.py            noise from a pipeline's generators
layout.py             a run laid out beforehand, by a dry run
configuration.py      our words beside the model's
echo.py               which states are those that `step` returned
step_words.py         every keyword that pipelines pass to `step`
table.py              alphas_cumprod as pipelines look it up
training_schedule.py  what training scripts read before a run is laid out
timesteps.py          the timesteps that a pipeline loops over
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
