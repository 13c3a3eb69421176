"""The second state of samplers that walk a pair of states, as those do that can be walked back exactly.

Such a sampler's run is a bijection of pairs, so that only both states of its end lead back. `sample` hands over and
keeps one state; `encode` and `decode` carry the other one, the companion, beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .path import Ledger, Path


@dataclass
class PairLedger(Ledger):
    """A run's ledger with room for the companion.

    Attributes:
        companion: (N, ...) in the path's coordinates: what the run is given, until the sampler takes it, then what the
            sampler leaves.
    """

    companion: Tensor | None = None


def take_companion(path: Path) -> Tensor | None:
    """The companion that a run is given, for the sampler to begin with; None where it begins with one state."""
    ledger = path.ledger
    if not isinstance(ledger, PairLedger):
        return None
    companion, ledger.companion = ledger.companion, None
    return companion


def leave_companion(path: Path, state: Tensor) -> None:
    """Keep a sampler's second state at its end, where the run asks for it."""
    if isinstance(path.ledger, PairLedger):
        path.ledger.companion = state
