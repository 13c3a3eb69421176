"""What a model that was loaded from a configuration brings with it: the grid that its makers sample on."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class OwnGrid(Protocol):
    """The grid of a model's makers, which is the default of samplers that have none of their own.

    Attributes:
        kind: the name of the scheduler class that the configuration is of.
        final: "zero" or "min": where the last step ends, as `sample(final=...)` has it.
        teacher_steps: of a distilled model, the number of timesteps that it was distilled on; else None.
        is_distilled: whether the grid is one of a distilled model, that distilled samplers are to run on.
    """

    kind: str
    final: str
    teacher_steps: int | None
    is_distilled: bool

    def times(self, steps: int) -> np.ndarray | None:
        """Where a run of `steps` evaluations asks the model, falling, on its process's own clock.

        None where the makers have no grid of so many steps.
        """
        ...
