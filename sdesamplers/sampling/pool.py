"""`Pool`: many runs, each with its own sampler, steps, seed, guidance and time, in one network batch."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from ..checks import shown, whole
from ..errors import UsageError
from ..models.output import Output
from ..processes.fingerprint import fingerprint, is_same_process
from ..processes.predictions import prediction_type
from ..processes.sde import SDE, not_a_process
from ..public import public
from .pool_requests import PoolRequest, PoolResult
from .pool_rows import Half, PoolBatch, Share, joined
from .row_limit import RowLimit
from .stepper import Stepper
from .stepper_arguments import Clock, checked_clock
from .waiting import floating


@public
class Pool:
    """Many runs in progress whose states share the network's batches, for servers.

        pool = sds.Pool(model.process, prediction=model.prediction, max_rows=16)
        first = pool.add(stepper, condition=model.condition_for(7, 1))
        while (batch := pool.batch()) is not None:
            pool.send(model.predict(batch.x, batch.times, batch.condition))
            for finished in pool.pop_finished():
                samples = finished.result.samples

    Every request is a `Stepper`, with its own sampler, grid, seed and number of samples. Its samples are those of its
    run alone: bit for bit if a row of the network's output does not depend on the other rows or on the size of the
    batch, and otherwise to the rounding of the network's kernels, which choose their order of summation by the size.

    Requests take turns, one evaluation each. A batch holds the rows of the requests that have waited longest, and only
    rows that fit together: states of one shape, dtype and device, and conditions that can be joined. The request at the
    head of the queue is in the next batch, so that none waits for ever. Its evaluation may be spread over several
    batches.

    If a sampler or an output is at fault, only its own request ends; see `PoolResult.error`.

    One thread calls `batch`, `send`, `pop_finished` and `evict`; others may `add`, `restore`, `remove` and `wait`.

    Args:
        process: the process that the network was trained on.
        prediction: the type of the network's output, one of `PREDICTIONS`.
        clock: the network's time for a time of the process, as in `Stepper`.
        max_rows: the largest number of rows of a batch. A guided sample needs two.

    Raises:
        UsageError: invalid arguments.
    """

    def __init__(self, process: SDE, *, prediction: str, clock: Clock = 1.0, max_rows: int = 64) -> None:
        if not isinstance(process, SDE):
            raise not_a_process("process must be a process, such as VP() or model.process", process)
        self.process, self.prediction, self.clock = process, prediction_type(prediction), checked_clock(clock)
        self.max_rows = whole("max_rows", max_rows)
        self._fingerprint = fingerprint(process)
        self._queue: dict[int, PoolRequest] = {}  # by id, in the order of their turns
        self._finished: list[PoolResult] = []
        self._shares: list[tuple[PoolRequest, Share]] | None = None  # of the batch that waits for outputs
        self._batch: PoolBatch | None = None
        self._count, self._limit = 0, RowLimit()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """The number of requests that are not finished."""
        return len(self._queue)

    def __repr__(self) -> str:
        return f"<Pool of {len(self)} requests on {type(self.process).__name__}, at most {self.max_rows} rows a batch>"

    # Requests.

    def add(
        self, stepper: Stepper, *, condition: Any = None, unconditional: Any = None, guidance_scale: float = 1.0
    ) -> int:
        """Add a run, at the end of the queue.

            condition, unconditional = model.condition_for(7, 1), model.unconditional(1)
            pool.add(stepper, condition=condition, unconditional=unconditional, guidance_scale=3.0)

        Args:
            stepper: the run, in any state; from now on the pool alone advances it.
            condition: the network's condition, with a row for each sample: a tensor (N, ...), a dictionary or tuple of
                tensors, or an object with the class method `cat(list)`. `Model.condition_for` makes it. Tensors
                are copied.
            unconditional: the condition to guide away from, in the same form. `Model.unconditional` makes it.
            guidance_scale: the weight of classifier-free guidance, as in `sample`: the output is unconditional + scale
                (conditional - unconditional). If it is not 1, every sample needs two rows.

        Returns:
            The request's id.

        Raises:
            UsageError: a run that has ended, keeps gradients or is of another network, or invalid conditions.
        """
        self._check(stepper)
        return self._enter(PoolRequest(stepper, condition, unconditional, guidance_scale))

    def _check(self, stepper: Any) -> None:
        if not isinstance(stepper, Stepper):
            raise UsageError(f"a request is an sds.Stepper, not {shown(stepper)}")
        if stepper.is_done:
            raise UsageError(f"this run of {stepper.spec.name} has ended")
        if not stepper.indices:
            raise UsageError("this run has no samples")
        if stepper.gradients:
            raise UsageError("a pool keeps no gradients; make the stepper with gradients=False")
        for name, ours, theirs in (
            ("prediction", self.prediction, stepper.prediction),
            ("clock", self.clock, stepper.clock),
        ):
            if ours != theirs:
                raise UsageError(f"this stepper has {name}={theirs!r}, and the pool's network {ours!r}")
        if stepper.process is not self.process and not is_same_process(self._fingerprint, fingerprint(stepper.process)):
            raise UsageError(
                f"this stepper's process, {type(stepper.process).__name__}, is not that of the pool's network, "
                f"{type(self.process).__name__}, or has another schedule"
            )

    def _enter(self, request: PoolRequest) -> int:
        with self._changed:
            if any(other.stepper is request.stepper for other in self._queue.values()):
                raise UsageError("this stepper is in the pool already; copy.deepcopy(stepper) makes another run")
            request.id, self._count = self._count, self._count + 1
            self._queue[request.id] = request
            self._changed.notify_all()
        return request.id

    def remove(self, id: int) -> bool:
        """Remove a request, also one that has finished; outputs of a batch that is under way are dropped.

        Returns:
            True if it was in the pool; False if it has been removed, evicted or returned by `pop_finished`.
        """
        with self._changed:
            finished = [each for each in self._finished if each.id != id]
            was_finished = len(finished) < len(self._finished)
            self._finished = finished
            return self._queue.pop(id, None) is not None or was_finished

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there is a request to evaluate, at most this number of seconds; True if there is one."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._queue), timeout)

    # Batches.

    def batch(self) -> PoolBatch | None:
        """The next batch; None if no request is waiting.

        If the last batch has not been sent, for example because the network ran out of memory, its rows are requested
        again, in a batch that follows the present `max_rows` and queue.
        """
        while chosen := self._choose():
            for shares in (chosen, chosen[:1]):  # objects of a condition's own class may refuse to be joined
                try:
                    self._batch = joined([share for _, share in shares])
                except Exception as error:
                    failure = error
                else:
                    self._shares = shares
                    return self._batch
            self._finish(chosen[0][0], failure)
        self._shares = self._batch = None
        return None

    def shrink(self) -> bool:
        """After an error of the network, such as too little memory: request half of the rows of the last batch.

            try:
                output = network(batch.x, batch.t)
            except torch.OutOfMemoryError:
                if not pool.shrink():
                    pool.remove(batch.rows[0].id)

        Once 32 batches have succeeded the number is doubled again, up to `max_rows`. If a larger batch then fails,
        twice as many batches have to succeed before the next attempt.

        Returns:
            False if the last batch had one row: then its request is at fault, and `max_rows` holds again.

        Raises:
            UsageError: there is no batch that waits for outputs.
        """
        if self._batch is None:
            raise UsageError("there is no batch that waits for outputs; call batch() first")
        return self._limit.failed(len(self._batch))

    def _choose(self) -> list[tuple[PoolRequest, Share]]:
        """The rows of the next batch: those of the first request in the queue, and rows of their kind of the others."""
        with self._changed:
            waiting = list(self._queue.values())
        chosen: list[tuple[PoolRequest, Share]] = []
        space = self.max_rows if self._limit.rows is None else min(self.max_rows, self._limit.rows)
        for request in waiting:
            for half in self._halves(request):
                fits = not chosen or half.kind == chosen[0][1].half.kind
                if fits and half.remaining and space:
                    chosen.append((request, Share(half, min(half.remaining, space))))
                    space -= chosen[-1][1].size
            if not space:
                break
        return chosen

    def _halves(self, request: PoolRequest) -> list[Half]:
        """The rows of a request's evaluation; none if its condition has too few, or a copied sampler fails."""
        try:
            return request.halves
        except Exception as error:
            self._finish(request, error)
            return []

    def send(self, outputs: Tensor, *, unguided: Tensor | None = None, log_density: Tensor | None = None) -> None:
        """Pass the network's outputs for the last batch, and advance the requests whose evaluations are complete.

        Args:
            outputs: (R, *shape).
            unguided: (R, *shape) the outputs without guidance, of a network that guides itself (`Guided`), for samplers
                that need them (CFG++). By default those of `unconditional`, or else `outputs`.
            log_density: (R,) the log-densities in nats, for samplers that need them (MALA).

        Raises:
            UsageError: there is no batch, or an output has another shape.
        """
        if self._shares is None or self._batch is None:
            raise UsageError("there is no batch that waits for outputs; call batch() first")
        shape = self._batch.x.shape
        value = floating("outputs", outputs, shape)
        plain = None if unguided is None else floating("unguided", unguided, shape)
        density = None if log_density is None else floating("log_density", log_density, shape[:1])
        shares, self._shares, self._batch = self._shares, None, None
        self._limit.succeeded(self.max_rows)
        begin = 0
        for _, (half, size) in shares:
            part = slice(begin, begin := begin + size)
            rest = (None if each is None else each[part] for each in (plain, density))
            half.receive(Output(value[part], *rest))
        for request in {request.id: request for request, _ in shares}.values():
            self._advance(request)

    def _advance(self, request: PoolRequest) -> None:
        is_removed = self._queue.get(request.id) is not request
        if is_removed or any(half.remaining for half in request.halves):
            return  # if rows remain, it stays at the head of the queue
        try:
            request.advance()
        except Exception as error:  # of a plugin's sampler, for example; the other requests continue
            self._finish(request, error)
            return
        if request.stepper.is_done:
            self._finish(request)
            return
        with self._changed:
            if self._queue.pop(request.id, None) is not None:
                self._queue[request.id] = request

    def _finish(self, request: PoolRequest, error: Exception | None = None) -> None:
        with self._changed:
            if self._queue.pop(request.id, None) is not None:  # else it has been removed
                self._finished.append(PoolResult(request.id, request.stepper, error))

    def pop_finished(self) -> list[PoolResult]:
        """The requests that have finished since the last call, in the order in which they finished."""
        with self._changed:
            finished, self._finished = self._finished, []
        return finished

    # Requests as bytes.

    def evict(self, id: int) -> bytes:
        """Remove a request and return it as bytes, for `restore` in this or another pool of the same network.

        The bytes contain numbers, text and tensors, and no code. The run continues bit for bit. An evaluation that is
        under way is made again.

        Raises:
            UsageError: there is no such request, it has finished, or its condition is not made of tensors.
        """
        with self._changed:
            request = self._queue.get(id)
        if request is None:
            raise UsageError(f"there is no running request with id {id!r}: it has finished, or was removed")
        data = request.dump()
        with self._changed:
            self._queue.pop(id, None)
        return data

    def restore(self, data: bytes, *, device: torch.device | str | None = None) -> int:
        """Continue a request from `evict`, at the end of the queue.

        Args:
            data: the bytes.
            device: of its states and conditions; by default the device that it was on.

        Returns:
            Its id in this pool, a new one.

        Raises:
            UsageError: other bytes, or the request of another network.
        """
        return self._enter(PoolRequest.load(data, self.process, self.prediction, self.clock, device))
