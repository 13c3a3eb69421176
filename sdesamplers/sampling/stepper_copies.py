"""Copies of a `Stepper` in the middle of its run: branches, other samples, stored runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..checks import whole, whole_numbers
from ..errors import UsageError
from ..path.noise import branch_seed, check_seed
from ..processes.pickling import Pickled
from ..registry.plugin import Sampler
from .recorded import RecordedRun
from .records import Setup
from .stepper_state import dump, load
from .waiting import Waiting

if TYPE_CHECKING:
    from typing_extensions import Self


class Copied(Pickled):
    """The methods of `Stepper` that make copies of its run."""

    indices: list[int]
    spec: Sampler
    _setup: Setup
    _run: RecordedRun
    _first: Tensor | None  # the initial state, recorded with the log-probabilities
    _single: np.ndarray | None = None  # (N,) the evaluations of each sample, if they differ
    _now: Waiting | None = None  # the present evaluation, once its states have been read
    _edited: Tensor | None = None  # states that a copy has to evaluate in place of those that the sampler requests

    @property
    def _waiting(self) -> Waiting:
        """The evaluation that the run waits for; UsageError if it is over."""
        now = self._now
        if now is None:
            self._open()
            self._now = now = Waiting(self._run.request, self._edited)
            self._edited = None
        return now

    def _open(self) -> None:
        if self._run.is_over:
            raise UsageError(f"this run of {self.spec.name} has ended")

    @property
    def _edit(self) -> Tensor | None:
        """The edited states of the present evaluation, if the caller has edited them."""
        return self._edited if self._now is None else self._now.edit

    def _with(self, run: RecordedRun) -> Self:
        """A stepper like this one with another run."""
        made = object.__new__(type(self))
        vars(made).update(vars(self))
        made._run, made.indices, made._now = run, list(self.indices), None
        made._single = None if self._single is None else self._single.copy()
        made._edited = None if self._edit is None else self._edit.detach().clone()
        return made

    def __deepcopy__(self, memo: Any) -> Self:
        return self._with(self._run.copy())

    def __copy__(self) -> Self:
        return self._with(self._run.copy())

    def branch(self, key: int) -> Self:
        """A copy whose noise is another from here on: it depends on each sample's seed and index, and on the key.

            ahead = [stepper.branch(k) for k in range(4)]

        Branches with different keys are independent; one with the same key is the same again. Branches can branch.

        Args:
            key: a whole number from 0 to 2^64 - 1.

        Raises:
            UsageError: another key, or the run has ended.
        """
        self._open()
        key = whole("key", key, 0)
        check_seed(key)
        return self._with(self._run.rekeyed([(branch_seed(*each, key), each[1]) for each in self._run.keys]))

    def take(self, rows: Sequence[int]) -> Self:
        """A stepper of some of the samples, in this order; each continues with its own noise, as it does here.

            first, last = stepper.take([0]), stepper.take([3])

        Args:
            rows: their positions, from 0 to N - 1; they may repeat.

        Raises:
            UsageError: no sample, or one that does not exist; the run has ended, or each sample takes its own steps.
        """
        picked = self._positions("rows", rows)
        if not picked:
            raise UsageError("rows is empty; a run has at least one sample")
        made = self._of_rows(picked, [self._run.keys[row] for row in picked])
        made.indices = [self.indices[row] for row in picked]
        return made

    def resample(self, ancestors: Sequence[int]) -> Self:
        """A stepper in which sample j continues from the state of sample ancestors[j], with the noise of place j.

            stepper = stepper.resample([0, 0, 2, 2])

        This is the resampling step of a particle filter. Descendants of one sample separate, since each draws the noise
        of its own place, and no place draws the same noise twice.

        Args:
            ancestors: N positions, from 0 to N - 1.

        Raises:
            UsageError: another number of positions, no such sample, the run has ended, or each sample takes its own
                steps.
        """
        picked = self._positions("ancestors", ancestors)
        if len(picked) != len(self.indices):
            raise UsageError(f"pass one ancestor for each of the {len(self.indices)} samples, not {len(picked)}")
        return self._of_rows(picked, self._run.keys)

    def _positions(self, argument: str, rows: Sequence[int]) -> list[int]:
        self._open()
        count = len(self.indices)
        picked = whole_numbers(argument, rows)
        if any(row >= count for row in picked):
            raise UsageError(f"{argument} are positions among {count} samples, from 0 to {count - 1}, not {picked}")
        if self._run.memory is None and (self._single is not None or not self._waiting.is_shared):
            raise UsageError(
                f"{self.spec.name} gives each sample its own steps here, so the samples of a run cannot be separated; "
                "make a Stepper for each sample"
            )
        return picked

    def _of_rows(self, rows: list[int], keys: list[tuple[int, int]]) -> Self:
        made, pick = self._with(self._run.taken(rows, keys)), torch.tensor(rows, dtype=torch.int64)
        made._edited = None if made._edited is None else made._edited[pick]
        made._first = None if self._first is None else self._first[pick]
        return made

    def state_dict(self) -> dict[str, Any]:
        """The run as plain data and tensors, for `torch.save` and `load_state_dict`: no code, and no process.

        torch.save(stepper.state_dict(), "run.pt")
        """
        return dump(self)  # type: ignore[arg-type]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a stored run, in a stepper of the same process, sampler, grid, prediction type, clip and shape.

            stepper.load_state_dict(torch.load("run.pt"))

        Raises:
            UsageError: it is the state of another run; the message names the first difference.
        """
        load(self, state)  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_setup", "_reader", "_run", "_now", "_edited")
        kept = {name: value for name, value in vars(self).items() if name not in left_out}
        return {**kept, "run": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        run = state.pop("run")
        vars(self).update(state)
        self._prepare()
        self.load_state_dict(run)

    def _prepare(self) -> None:
        """Make what the copies of a run share, from its recipe."""
        raise NotImplementedError
