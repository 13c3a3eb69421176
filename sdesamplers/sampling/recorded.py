"""A sampler's run that can be copied: it keeps the predictions from which its generator can be made again."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import PluginError, SolverError, UsageError
from ..path.path import Ledger, Path
from ..path.points import Point
from ..path.prediction import Prediction, ScorePrediction
from ..processes.sde import GaussianProcess
from .forking import prepare_for_forks
from .loop import Run, well_formed
from .memory import Memory, draw_bit, memory_of
from .records import Keys, Record, RunNoise, Sent, Setup, detached, forgotten
from .runs import start_run


class RecordedRun:
    """A sampler's generator with the record from which it can be made again, bit for bit.

    The record has the predictions on which the sampler still depends (`memory_of`), or all of them. A copy makes its
    generator when it is first needed: it runs the sampler from the start, without the network, up to the present
    evaluation. Each state that the record has is written into the tensor that the replay requests.

    Args:
        setup: of the run.
        start: (N, ...) the initial state, in the path's coordinates.
        keys: (seed, index) of each sample's noise.
        earlier: the steps of draws that were made before, if the run continues the noise of another one.
        log_probs: record the log-probabilities of transitions.

    Attributes:
        record: as described.
        end: (N, ...) the final state, in the path's coordinates; None as long as the run waits for a prediction.
        reached: the state and the point to which the last prediction has led, of a step that is observed.
    """

    def __init__(
        self,
        setup: Setup,
        start: Tensor,
        keys: Keys,
        earlier: Sequence[tuple[float, float]] = (),
        *,
        log_probs: bool = False,
    ) -> None:
        self.setup, self.end, self.is_kept, self._size = setup, None, True, 0
        self.record = Record(start, start.shape, start.dtype, start.device, [(0, list(keys))], list(earlier))
        self.record.log_probs = [] if log_probs else None
        self._clear()
        self._begin(start, records=True)

    def _record_draws(self) -> None:
        """Have the ledger add to the record."""
        ledger, record = self._path.ledger, self.record
        ledger.log_probs, ledger.draws, ledger.times = record.log_probs, record.draws, record.times
        ledger.visited = record.visited

    def _clear(self) -> None:
        """Forget the generator, which belongs to this object alone."""
        self._run: Run | None = None
        self._noise: RunNoise | None = None
        self._request: Any = None
        self._memory: Memory | None = None
        self._knows_memory = False
        self.reached: tuple[Tensor, Point[Any]] | None = None

    end: Tensor | None
    _path: Path

    def _begin(self, start: Tensor, *, records: bool) -> None:
        """Make the generator and run it to its first request; `records` is False in a replay, which has its records."""
        setup, record = self.setup, self.record
        self._path = setup.new_path()
        self._make = Prediction if isinstance(self._path.process, GaussianProcess) else ScorePrediction
        self._noise = RunNoise(setup, record.keys[0][1], record.shape[1:], record.earlier)
        self._path.ledger.noise, self._path.ledger.given = self._noise, record.given
        if records:
            self._record_draws()
        prepare_for_forks()
        self._run = start_run(setup.spec, start, self._path, setup.options)
        try:
            self._request = next(self._run)
        except StopIteration as stop:  # a sampler that evaluates nowhere
            self.end = stop.value
            self._finish()

    @property
    def path(self) -> Path:
        """The path of the run."""
        self._ensure()
        return self._path

    @property
    def ledger(self) -> Ledger:
        """What the run has recorded of its transitions so far."""
        return self._path.ledger

    @property
    def steps(self) -> list[tuple[float, float]]:
        """The ends, on `Path.clock`, of the steps of all draws of the run's noise so far."""
        return self.record.steps if self._noise is None else self._noise.steps

    @property
    def request(self) -> Any:
        """The sampler's request: (state, point), or a list of such pairs."""
        if self._request is None:
            self._ensure()
        return self._request

    def send(self, reply: Any) -> None:
        """Pass the sampler the prediction that it has requested, or a list of predictions.

        If the sampler raises an error, the run is over.
        """
        if self._run is None:
            self._ensure()
        assert self._run is not None
        self._remember(reply)
        record = self.record
        record.count += 1
        if record.log_probs is not None:
            several = isinstance(reply, list)
            pairs = zip(reply, self._request, strict=True) if several else [(reply, self._request)]
            for prediction, (x, _) in pairs:
                if prediction.x is not x:
                    record.edited.append(len(record.visited))
                record.visited.append(prediction.x.detach())
        try:
            self._request = request = self._run.send(reply)
            if self._path.ledger.watched is not None and isinstance(request, tuple):
                self.reached = request
        except StopIteration as stop:
            self.end = stop.value
            self.reached = stop.value, self._path.points[-1]
            self._finish()
        except SystemExit as stop:  # it would end the program as if it had succeeded
            self._finish()
            raise SolverError(f"{self.setup.label}: the sampler called exit({stop.code})") from None
        except BaseException:
            self._finish()
            raise

    def _finish(self) -> None:
        self._run = self._request = None
        record = self.record
        record.sent, record.start, record.states = {}, None, []
        record.given.clear()

    @property
    def is_over(self) -> bool:
        """True if the sampler waits for no further prediction."""
        return self._run is None and not self.record.states

    @property
    def memory(self) -> Memory | None:
        """What the run depends on; None if its record has to be complete."""
        if not self._knows_memory:
            record, setup = self.record, self.setup
            like = torch.empty(record.shape, dtype=record.dtype, device="meta")
            self._memory = memory_of(setup.spec, self._path, setup.options, like)
            self._knows_memory = True
        return self._memory

    def _remember(self, reply: Any) -> None:
        """Record a prediction, and drop those on which nothing depends any more."""
        record, memory = self.record, self._memory if self._knows_memory else self.memory
        k = record.count
        if memory is None:
            if not self.is_kept:
                return
            if isinstance(reply, list):
                pairs = zip(reply, self._request, strict=True)
                record.sent[k] = [Sent.of(each, x, False) for each, (x, _) in pairs]
            else:
                record.sent[k] = [Sent.of(reply, self._request[0], False)]
            self._size += sum(each.bytes for each in record.sent[k])
            if self.setup.limit is not None and self._size > self.setup.limit:
                self.is_kept, record.sent, record.start = False, {}, None
            return
        if k >= len(memory.dropped):
            return  # the run is longer than the dry run: `_replay` refuses it
        dropped = memory.dropped[k]
        if k not in dropped:
            requested = self._request[0]
            keeps_state = reply.x is requested or memory.needs_requested(k)
            record.sent[k] = [Sent.of(reply, requested, keeps_state)]
        for j in dropped:
            record.sent.pop(j, None)
        if record.given:
            for d in [d for d in record.given if not memory.needed[k + 1] & draw_bit(d)]:
                del record.given[d]
        if record.start is not None and not memory.needs_start(k + 1):
            record.start = None

    # Copies.

    def paused(self) -> Record:
        """The record of a run that waits for a prediction; its tensors are shared and must not be modified.

        Raises:
            UsageError: it is incomplete, because it was larger than the limit.
        """
        if not self.is_kept and not self.is_over:
            assert self.setup.limit is not None
            raise UsageError(
                f"{self.setup.label}: this run can no longer be copied or stored: the sampler depends on all outputs "
                f"so far, and they take more than {self.setup.limit / 2**20:.0f} MiB; an sds.Stepper keeps them, and "
                "most other samplers depend on a few"
            )
        record = copy.copy(self.record)
        record.sent, record.keys, record.given = dict(record.sent), list(record.keys), dict(record.given)
        record.times, record.visited, record.edited = list(record.times), list(record.visited), list(record.edited)
        record.start = None if record.start is None else detached(record.start)
        record.draws = [detached(x) for x in record.draws]
        record.steps = list(self.steps)
        record.log_probs = None if record.log_probs is None else [detached(x) for x in record.log_probs]
        if self._request is not None:
            requests = self._request if isinstance(self._request, list) else [self._request]
            record.states = [x.detach().clone() for x, _ in requests]
        return record

    @classmethod
    def resumed(cls, setup: Setup, record: Record, end: Tensor | None = None) -> RecordedRun:
        """A run that continues from a record."""
        made = cls.__new__(cls)
        made.setup, made.record, made.end, made.is_kept = setup, record, end, True
        made._size = sum(each.bytes for sent in record.sent.values() for each in sent)
        made._path = setup.new_path()
        made._clear()
        if not record.states:  # it is over, and its ledger has only what was recorded
            made._record_draws()
        return made

    def copy(self) -> RecordedRun:
        """A run that continues as this one does."""
        end = None if self.end is None else detached(self.end)
        made, ours = self.resumed(self.setup, self.paused(), end), self.ledger
        ledger = made.ledger
        ledger.drew_noise, ledger.accepted, ledger.rejected = ours.drew_noise, ours.accepted, ours.rejected
        return made

    def _ensure(self) -> None:
        """Make the generator of a copy."""
        if self._run is None and self.record.states:
            try:
                with torch.inference_mode(False), torch.no_grad():
                    self._replay()
            except BaseException:
                self._run = None  # the copy is still waiting
                raise

    def _replay(self) -> None:
        record = self.record
        blank = torch.zeros(record.shape, dtype=record.dtype, device=record.device)
        self._begin(blank if record.start is None else record.start.clone(), records=False)
        memory, noise, run, changes = self.memory, self._noise, self._run, dict(record.keys[1:])
        if memory is not None and record.count >= len(memory.needed):
            raise PluginError(
                f"{self.setup.label}: this run cannot be copied, because it has made more evaluations than the "
                "same run on tensors without values (torch's meta device); do its operations depend on the device?"
            )
        assert noise is not None
        assert run is not None
        noise.needed = None if memory is None else memory.needed[record.count]
        for k in range(record.count):
            if k in changes:
                noise.rekey(changes[k])
            self._request = run.send(self._again(k))
        if record.count in changes:
            noise.rekey(changes[record.count])
        noise.needed = None
        requests = self._request if isinstance(self._request, list) else [self._request]
        for (x, _), state in zip(requests, record.states, strict=True):
            x.copy_(state)
        self._record_draws()

    def _again(self, k: int) -> Any:
        """Prediction k, as it was sent."""
        request, sent = self._request, self.record.sent.get(k)
        if sent is None:
            return forgotten(*well_formed(request), self._make)
        if isinstance(request, list):
            return [each.again(x, point, self._make) for each, (x, point) in zip(sent, request, strict=True)]
        x, point = request
        return sent[0].again(x, point, self._make)

    # Other samples, other noise.

    @property
    def keys(self) -> Keys:
        """The present keys of the noise."""
        return self.record.keys[-1][1]

    def rekeyed(self, keys: Keys) -> RecordedRun:
        """A run that continues from the same state with other keys of the noise."""
        made = self.copy()
        made._rekey(keys)
        return made

    def _rekey(self, keys: Keys) -> None:
        """Change the keys of a run whose generator has not been made yet."""
        at, changes = self.record.count, self.record.keys
        if len(changes) > 1 and changes[-1][0] == at:
            changes.pop()  # nothing was drawn in between
        changes.append((at, keys))

    def taken(self, rows: Sequence[int], keys: Keys) -> RecordedRun:
        """A run of some of its samples, which may repeat, with these keys of the noise from now on."""
        made = self.copy()
        record, pick = made.record, torch.tensor(list(rows), dtype=torch.int64, device=self.record.device)

        def take(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, pick.to(tensor.device))

        record.shape = torch.Size([len(rows), *record.shape[1:]])
        record.start = None if record.start is None else take(record.start)
        record.sent = {k: [each.map(take) for each in sent] for k, sent in record.sent.items()}
        record.states, record.draws = [take(x) for x in record.states], [take(x) for x in record.draws]
        record.given, record.visited = {d: take(x) for d, x in record.given.items()}, [take(x) for x in record.visited]
        record.log_probs = None if record.log_probs is None else [take(x) for x in record.log_probs]
        record.keys = [(at, [known[row] for row in rows]) for at, known in record.keys]
        made._rekey(keys)
        return made
