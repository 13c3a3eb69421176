"""The second state of samplers that advance a pair of states, such as exactly invertible samplers.

Such a sampler maps pairs of states to pairs one-to-one, so inverting a run needs both final states. `sample` passes and
returns one state; `encode` and `decode` also carry the other state, the companion.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .path import Ledger, Path


@dataclass
class PairLedger(Ledger):
    """A run's ledger that also holds the companion.

    Attributes:
        companion: (N, ...) in the path's coordinates: the run's input until the sampler takes it, then the sampler's
            output.
    """

    companion: Tensor | None = None


def take_companion(path: Path) -> Tensor | None:
    """Remove and return the companion that a sampler starts with; None if the run starts from one state."""
    ledger = path.ledger
    if not isinstance(ledger, PairLedger):
        return None
    companion, ledger.companion = ledger.companion, None
    return companion


def leave_companion(path: Path, state: Tensor) -> None:
    """Store a sampler's second final state, if the run keeps it."""
    if isinstance(path.ledger, PairLedger):
        path.ledger.companion = state
