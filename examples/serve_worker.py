"""The worker of serve.py: one thread owns the pool and the network; the others only add, cancel and read requests."""

import functools
import logging
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

import sdesamplers as sds

State = Literal["waiting", "running", "done", "failed", "cancelled"]
ENDS = ("done", "failed", "cancelled")

log = logging.getLogger("serve")


@dataclass(frozen=True)
class Limits:
    """What a server accepts and keeps.

    Attributes:
        queue: requests that are not finished.
        rows: rows of a batch of the network.
        evaluations: evaluations of the network that one request may need, for all of its samples together.
        kept: finished requests that are kept, of which the oldest are deleted first.
        keep_seconds: how long they are kept.
        streams: open streams of events.
        connections: open connections.
        body: bytes of a request's body.
    """

    queue: int = 64
    rows: int = 16
    evaluations: int = 4000
    kept: int = 256
    keep_seconds: float = 600.0
    streams: int = 64
    connections: int = 256
    body: int = 4096


class Refused(Exception):
    """A request that is not accepted now, and may be later."""


@dataclass(frozen=True)
class Status:
    """A request as its client sees it.

    Attributes:
        id: a name that others cannot guess, so that a client reads and cancels only its own requests.
        evaluations, planned: evaluations of the network so far, and in all.
        message: why it failed or was cancelled; else "".
    """

    id: str
    sampler: str
    steps: int
    seed: int
    num_samples: int
    state: State
    evaluations: int
    planned: int
    message: str


@dataclass(eq=False)
class Job:
    """A request, from its acceptance until it is deleted.

    Attributes:
        stepper: its run; None when it has ended.
        end: the state in which it has ended.
        unread: the samples that the client has not fetched.
        began, ended: on `time.monotonic`.
    """

    sampler: str
    steps: int
    seed: int
    num_samples: int
    planned: int
    stepper: sds.Stepper | None
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    number: int = -1
    end: State | None = None
    evaluations: int = 0
    message: str = ""
    result: sds.Result | None = None
    unread: set[int] = field(default_factory=set)
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0

    @property
    def status(self) -> Status:
        """The present state."""
        stepper = self.stepper  # read once: the worker's thread may set it to None
        evaluations = self.evaluations if stepper is None else stepper.evaluations
        state = self.end or ("running" if evaluations else "waiting")
        about = (self.id, self.sampler, self.steps, self.seed, self.num_samples)
        return Status(*about, state, evaluations, self.planned, self.message)


class Metrics:
    """What Prometheus reads."""

    def __init__(self, worker: "Worker") -> None:
        self.registry = own = CollectorRegistry()
        ProcessCollector(registry=own)
        self.ended = Counter("sdesamplers_requests", "Requests that have ended", ["state"], registry=own)
        self.refused = Counter("sdesamplers_refused", "Requests that were not accepted", ["reason"], registry=own)
        self.images = Counter("sdesamplers_images", "Finished samples", registry=own)
        self.seconds = Histogram(
            "sdesamplers_request_seconds",
            "From acceptance to the end",
            registry=own,
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100),
        )
        self.rows = Histogram(
            "sdesamplers_batch_rows", "Rows of a batch", registry=own, buckets=(1, 2, 4, 8, 16, 32, 64)
        )
        self.network = Counter("sdesamplers_network_seconds", "Time in the network", registry=own)
        self.streams = Gauge("sdesamplers_streams", "Open streams of events", registry=own)
        waiting = Gauge("sdesamplers_unfinished_requests", "Requests that are not finished", registry=own)
        waiting.set_function(lambda: worker.unfinished)
        for state in ENDS:  # so that they are 0 rather than missing before the first
            self.ended.labels(state)


class Worker:
    """A queue of requests that share the network's batches.

        worker = Worker(sds.load("fashion-mnist"))
        job = worker.add("dpmpp-2m", steps=20, seed=0, num_samples=2)
        worker.close(grace=30)

    Requests take turns in an `sds.Pool`, one evaluation each, so that a long one does not hold up a short one.

    Attributes:
        samplers: name -> `sds.Sampler`, those offered: they run on this model, and their cost is known beforehand.
        is_closing: True when new requests are refused.
    """

    def __init__(self, model: sds.Model, limits: Limits | None = None) -> None:
        self.model, self.limits = model, limits or Limits()
        self.pool = sds.Pool(model.process, prediction=model.prediction, max_rows=self.limits.rows)
        self.samplers = {name: spec for name, spec in sds.samplers().items() if self._is_offered(spec)}
        self.metrics, self.is_closing = Metrics(self), False
        self.planned = functools.lru_cache(maxsize=128)(self._planned)
        self._jobs: dict[str, Job] = {}  # by id, in the order of arrival
        self._running: dict[int, Job] = {}  # by their numbers in the pool
        self._ended: deque[Job] = deque()  # in the order of their ends
        self._arriving = 0
        self._lock, self._stopped, self._hurry = threading.Lock(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)
        self._thread.start()

    # From any thread.

    @property
    def is_alive(self) -> bool:
        """True if requests are being worked on."""
        return self._thread.is_alive() and not self._stopped.is_set()

    @property
    def unfinished(self) -> int:
        """The number of requests that are not finished."""
        return len(self._running) + self._arriving

    def add(self, sampler: str, *, steps: int, seed: int, num_samples: int) -> Job:
        """Accept a request.

        Raises:
            Refused: the queue is full, or the server is closing.
            sds.UsageError: this sampler does not run with these arguments, or needs too many evaluations.
        """
        with self._lock:  # the place is taken before the run is prepared, which takes time
            self._check_place()
            self._arriving += 1
        try:
            job, stepper = self._new_job(sampler, steps, seed, num_samples)
            with self._lock:
                if self.is_closing or not self.is_alive:
                    raise Refused("the server is shutting down")
                job.number = self.pool.add(stepper, condition=self.model.condition_for(None, num_samples))
                self._running[job.number] = self._jobs[job.id] = job
        finally:
            with self._lock:
                self._arriving -= 1
        return job

    def _check_place(self) -> None:
        if self.is_closing or not self.is_alive:
            self.metrics.refused.labels("closing").inc()
            raise Refused("the server is shutting down")
        if self.unfinished >= self.limits.queue:
            self.metrics.refused.labels("full").inc()
            raise Refused(f"the queue is full (limit {self.limits.queue}); try again later")

    def _new_job(self, sampler: str, steps: int, seed: int, num_samples: int) -> tuple[Job, sds.Stepper]:
        spec = self.samplers.get(sampler)  # an `sds.Stepper` would also accept the path of a file
        if spec is None:
            raise sds.UnknownNameError("sampler", sampler, self.samplers)
        planned = self.planned(spec, steps, num_samples)
        if planned * num_samples > self.limits.evaluations:
            raise sds.UsageError(
                f"{num_samples} x {planned} evaluations are more than the {self.limits.evaluations} that a request may "
                "have; choose fewer steps or samples"
            )
        stepper = self._stepper(spec, steps, seed, num_samples)
        return Job(sampler, steps, seed, num_samples, planned, stepper, unread=set(range(num_samples))), stepper

    def find(self, id: str) -> Job | None:
        """The request with this id; None if it never existed or has been deleted."""
        return self._jobs.get(id)

    def cancel(self, job: Job, message: str = "by the client") -> None:
        """Cancel a request; one that has ended stays as it is."""
        with self._lock:
            # False if the worker has just taken it out of the pool: then it ends by itself in a moment.
            if job.end is None and self.pool.remove(job.number):
                self._end(job, "cancelled", message)

    def close(self, grace: float) -> str:
        """Refuse new requests, give the others `grace` seconds, cancel the rest, and stop; return what was done.

        A request is given time to finish, and its client time to fetch the samples. A call while another one waits
        ends its patience.
        """
        with self._lock:
            again, self.is_closing = self.is_closing, True
            accepted = list(self._running.values())
        if again:
            self._hurry.set()
            return "no more time is given"
        deadline = time.monotonic() + grace
        while any(job.end is None or (job.result and job.unread) for job in accepted):
            if self._hurry.wait(0.02) or time.monotonic() > deadline:
                break
        for job in accepted:
            self.cancel(job, "the server has shut down")
        self._stopped.set()
        self._thread.join()
        counts = {state: sum(job.end == state for job in accepted) for state in ENDS}
        unread = sum(bool(job.result and job.unread) for job in accepted)
        return ", ".join(f"{count} {state}" for state, count in counts.items()) + f"; {unread} not fetched"

    # In the worker's thread.

    def _work(self) -> None:
        try:
            with torch.no_grad():
                while not self._stopped.is_set():
                    if self.pool.wait(timeout=0.1):
                        self._advance()
                    self._collect()
                    self._delete()
        except Exception:
            log.exception("the worker has stopped")
        finally:
            self._stopped.set()
            with self._lock:
                for job in list(self._running.values()):
                    self._end(job, "failed", "the server has stopped because of an error; its log has the details")

    def _advance(self) -> None:
        """Evaluate one batch."""
        batch = self.pool.batch()
        if batch is None:
            return
        began = time.perf_counter()
        try:
            output = self.model.predict(batch.x, batch.times, batch.condition)
        except Exception as error:
            self._try_with_less(batch, error)
            return
        self.metrics.network.inc(time.perf_counter() - began)
        self.metrics.rows.observe(len(batch))
        self.pool.send(output if isinstance(output, torch.Tensor) else output.value)

    def _try_with_less(self, batch: sds.PoolBatch, error: Exception) -> None:
        """After an error of the network, evaluate fewer rows for a while; if it was one row, its request ends."""
        if self.pool.shrink():
            log.warning("the network failed on %d rows: %s", len(batch), error)
            return
        with self._lock:
            job = self._running.get(batch.rows[0].id)
            if job is not None and self.pool.remove(job.number):
                self._end(job, "failed", message_of(error))

    def _collect(self) -> None:
        """Record what has finished."""
        for done in self.pool.pop_finished():
            with self._lock:
                job = self._running[done.id]
                if done.error is not None:
                    self._end(job, "failed", message_of(done.error))
                else:
                    job.result = done.result
                    self._end(job, "done")

    def _end(self, job: Job, state: State, message: str = "") -> None:
        del self._running[job.number]
        job.evaluations, job.stepper = job.status.evaluations, None  # its memory is for others
        job.ended, job.message, job.end = time.monotonic(), message, state
        self._ended.append(job)
        self.metrics.ended.labels(state).inc()
        self.metrics.seconds.observe(job.ended - job.began)
        if state == "done":
            self.metrics.images.inc(job.num_samples)

    def _delete(self) -> None:
        """Delete the oldest of the requests that have ended, if they are too many or too old."""
        now = time.monotonic()
        with self._lock:
            while self._ended and (
                len(self._ended) > self.limits.kept or now - self._ended[0].ended > self.limits.keep_seconds
            ):
                del self._jobs[self._ended.popleft().id]

    # Runs.

    def _stepper(self, spec: sds.Sampler, steps: int, seed: int = 0, num_samples: int = 1) -> sds.Stepper:
        model = self.model
        return sds.Stepper(
            model.process, spec, prediction=model.prediction, shape=model.shape, clip=model.clip, dtype=model.dtype,
            device=model.device, steps=steps, seed=seed, num_samples=num_samples,
        )  # fmt: skip

    def _planned(self, spec: sds.Sampler, steps: int, num_samples: int = 1) -> int:
        """The evaluations of a run, counted with zeros in place of the network's outputs.

        A stepper learns at its first output what it has to keep for copies, a fraction of a second for a new kind of
        run. Here that happens in the client's thread, and the worker's has the result.
        """
        run = self._stepper(spec, steps, 0, num_samples)
        while not run.is_done:
            zeros = torch.zeros_like(run.x)
            run.send(zeros, unguided=zeros)
        return run.evaluations

    def _is_offered(self, spec: sds.Sampler) -> bool:
        try:
            self._stepper(spec, steps=2)
        except sds.SdesamplersError:
            return False
        return spec.evaluations is not None


def message_of(error: Exception) -> str:
    """What a client reads of an error: the library's own messages; of others, which may contain paths, the type."""
    if isinstance(error, sds.SdesamplersError) and not isinstance(error, sds.PluginError):
        return str(error)
    log.error("a request failed", exc_info=error)
    return f"the run failed with {type(error).__name__}; the server's log has the details"
