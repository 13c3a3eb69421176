"""The state of the global random generators, which no plugin may use."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def global_state() -> tuple[Any, ...]:
    """The state of Python's, NumPy's and torch's global generators, for comparisons with a later state."""
    numpy: Any = np.random.get_state()  # a tuple; its annotation covers all of NumPy's formats
    return random.getstate(), numpy[1].tobytes(), numpy[2], torch.get_rng_state().numpy().tobytes()
