"""What distinguishes the processes of networks, to compare them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .sde import SDE, GaussianProcess


def fingerprint(process: SDE) -> list[Any]:
    """What distinguishes the processes of networks, as plain data: the class, and alpha and sigma at five times."""
    times = np.linspace(float(process.t_min), float(process.t_max), 5)
    if not isinstance(process, GaussianProcess):
        return [type(process).__name__, *times.tolist()]
    alpha, sigma = (np.broadcast_to(np.asarray(part), 5) for part in process.schedule(times)[:2])
    return [type(process).__name__, *alpha.tolist(), *sigma.tolist()]


def is_same_process(ours: list[Any], theirs: list[Any]) -> bool:
    """True if the fingerprints are those of the same process, but for rounding."""
    if ours[0] != theirs[0] or len(ours) != len(theirs):
        return False
    return np.allclose(ours[1:], theirs[1:], rtol=1e-6, atol=1e-12, equal_nan=True)
