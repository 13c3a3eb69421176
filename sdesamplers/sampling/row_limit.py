"""The number of rows of a batch, reduced when the network runs out of memory and raised again later."""

from __future__ import annotations

PATIENCE = 32
"""Number of batches that have to succeed before twice as many rows are tried again."""
LONGEST = 1024
"""Largest number of batches; it doubles each time the larger batch fails again, so that failures become rare."""


class RowLimit:
    """The largest number of rows that works at present.

    Attributes:
        rows: the number; None for no limit.
    """

    def __init__(self) -> None:
        self.rows: int | None = None
        self._patience, self._succeeded, self._was_raised = PATIENCE, 0, False

    def failed(self, rows: int) -> bool:
        """Halve the number after a batch of `rows` has failed; False, and no limit, if that was a single row."""
        if self._was_raised:
            self._patience, self._was_raised = min(2 * self._patience, LONGEST), False
        self._succeeded, self.rows = 0, rows // 2 or None
        return self.rows is not None

    def succeeded(self, most: int) -> None:
        """Count a batch that succeeded; after enough of them double the number, until `most` is reached."""
        if self.rows is None:
            return
        self._succeeded += 1
        if self._succeeded < self._patience:
            return
        self._succeeded, self._was_raised = 0, True
        self.rows = None if 2 * self.rows >= most else 2 * self.rows
