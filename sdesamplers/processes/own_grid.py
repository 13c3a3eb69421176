"""The grid that a model's authors sample on, known for models loaded from a configuration."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class OwnGrid(Protocol):
    """The grid that a model's authors sample on: the default for samplers without a grid of their own.

    Attributes:
        kind: the name of the scheduler class in the configuration.
        final: "zero" or "min": where the last step ends, as in `sample(final=...)`.
        teacher_steps: the number of timesteps that a distilled model was distilled on; None for other models.
        spacing: the timestep spacing in the configuration, such as "leading"; None if its class has none.
        is_distilled: True if this is the grid of a distilled model, for samplers of distilled models to run on.
    """

    kind: str
    final: str
    teacher_steps: int | None
    is_distilled: bool

    @property
    def spacing(self) -> str | None: ...

    def times(self, steps: int) -> np.ndarray | None:
        """The times at which a run of `steps` evaluations evaluates the model, decreasing, on its process's clock.

        None if the authors' scheduler has no grid with this number of steps.
        """
        ...
