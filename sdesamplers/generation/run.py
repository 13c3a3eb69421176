"""`generate`: a large job, divided among processes by sample index, that can be stopped and resumed at any moment."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..categories import ReproducibilityWarning
from ..checks import sample_range, suggest_keywords, warn, whole
from ..errors import Cancelled, ClaimError, PluginError, SdesamplersError, UsageError
from ..io.files import file_errors, make_lasting_folder
from ..io.images import to_bytes
from ..models.base import Model
from ..public import public
from ..registry.plugin import Sampler
from ..sampling.prepared import PreparedRun, prepare
from ..sampling.recipe import Recipe
from ..sampling.request import CONDUCT_FIELDS, REQUEST_FIELDS, split_arguments
from ..sampling.table import SolverTable, TableSet
from . import memory, streaming
from .argument_names import ARGUMENT_NAMES
from .batches import Batches
from .claims import Claim, acquire, refuse_if_busy
from .conditions import Conditions
from .facts import discard, open_job, stored_facts
from .formats import GRID_LIMIT, Format, Labels, formats_for, makes_pictures
from .identity import Facts, facts_of, scorer_facts
from .job import JobFolder, written_by
from .progress import Log
from .ranks import Ranks, check_part
from .shards import split
from .streaming import accepted
from .work import Work

if TYPE_CHECKING:
    from ..metrics import FeatureScorer

ALTERNATIVES = {**streaming.ALTERNATIVES, **dict.fromkeys(("trajectory", "log_probs", "callback"), "stream")}
"""Arguments of `sample` that `generate` does not accept, and what to use instead: it stores no trajectories and
log-probabilities, and the facts of a job cannot describe a callback."""
SHARDS = 256
"""Approximate default number of shards of a large job: enough to divide it evenly among processes."""
SHARD_BYTES = 2**28
"""Maximum default size of a shard in bytes; all samples of a shard are in memory at once."""


@public
@dataclass(frozen=True)
class Generated:
    """The outcome of `generate`.

    Attributes:
        folder: the job's folder.
        made: number of samples that this process generated.
        manifest: the content of `manifest.json`; None if other processes or parts have not finished yet.
    """

    folder: Path
    made: int
    manifest: Facts | None

    @property
    def files(self) -> list[Path]:
        """The files of a finished job; empty if it is not finished."""
        if self.manifest is None:
            return []
        shards = split(self.manifest["num_samples"], self.manifest["shard_size"])
        return list(written_by(self.folder, self.manifest, shards))


@public
@suggest_keywords(*REQUEST_FIELDS, *CONDUCT_FIELDS)
def generate(
    model: Model | str,
    sampler: str | Sampler | Recipe | SolverTable | TableSet | Mapping[str, Any] = "quality",
    *,
    out: str | Path,
    num_samples: int,
    formats: Sequence[str] = ("safetensors",),
    batch_size: int | None = None,
    shard_size: int | None = None,
    memory_limit: int | None = None,
    first_index: int = 0,
    condition: Any = None,
    resume: bool = False,
    overwrite: bool = False,
    part: tuple[int, int] = (0, 1),
    scorer: FeatureScorer | None = None,
    progress: bool = False,
    json_log: str | Path | None = None,
    cancel: threading.Event | None = None,
    **kwargs: Any,
) -> Generated:
    """Write many samples to a folder, alone or as one of several processes.

    The job is divided into shards of consecutive samples, and shards into batches, by index alone. So the files are the
    same, byte for byte, whatever the number of processes and however often the job was interrupted. Each batch is saved
    as soon as it is finished. The processes of an accelerate or torchrun launch share the shards; they synchronize once
    at the start and never wait for each other again.

    Args:
        model, sampler: as in `sample`.
        out: the output folder; `manifest.json` is written there once the whole job is finished.
        num_samples: total number of samples.
        formats: any of "safetensors" (samples as the model produces them), "png", "webdataset" and "grid".
        batch_size: samples per batch; by default as many as fit (see `memory_limit`). Another batch size gives the same
            samples up to rounding, not bit for bit. If memory runs out, batches are halved.
        shard_size: samples per shard, a multiple of `batch_size`; by default about 256 shards of at most 256 MiB.
        memory_limit: bytes for a batch, in addition to the weights, if `batch_size` is not given; by default half of
            the free memory.
        first_index: sample j of the job depends only on (seed, first_index + j).
        condition: one for all samples, or one per sample.
        resume: continue the same job in `out`, after its files have been verified, or start it if there is none.
        overwrite: discard an earlier job in `out`.
        part: (k, n): generate only the k-th of n parts, counted from 0, for processes without a launcher; use it with
            `resume`, since the parts share the folder.
        scorer: compare the features of all pictures with its reference; the result is written to `scores.json`.
        progress: show one progress bar for all processes.
        json_log: append a log of events to this file, as JSON lines.
        cancel: an event that stops the job, like a signal, once it is set.
        **kwargs: the other arguments of `sample`, including the sampler's options, but not `trajectory`, `log_probs`
            and `callback`, which `stream` accepts.

    Raises:
        UsageError: invalid or conflicting arguments, a folder that holds another job, or files of unknown origin that
            this job would replace.
        ClaimError: another run is working on the same part of the job, or has taken it over.
        Cancelled: stopped by SIGINT, SIGTERM or `cancel`; finished batches are kept.
        SdesamplersError: out of memory at batch size 1, or a file could not be written; finished batches are kept.
    """
    stop = cancel or threading.Event()
    num_samples, first_index = sample_range(num_samples, first_index)
    for name, value in (("memory_limit", memory_limit), ("batch_size", batch_size), ("shard_size", shard_size)):
        if value is not None:
            whole(name, value)
    part = check_part(part)
    if resume and overwrite:
        raise UsageError("resume continues a job and overwrite discards it: pass one of them, not both")
    formats = [formats] if isinstance(formats, str) else formats
    run = prepare(model, *split_arguments(sampler, {**accepted(kwargs, "generate", ALTERNATIVES), "cancel": stop}))
    styles = formats_for(formats, run.model, scorer)
    conditions = Conditions(run.model, condition, num_samples)
    ranks, folder = Ranks.here(), Path(out)
    with closing(Log(json_log, ranks.rank)) as log, stopped_by_signals(stop) as signals:
        there = ranks.from_first(lambda: peek(folder, part, overwrite)) or {}
        adopted = [key for key, value in (("batch_size", batch_size), ("shard_size", shard_size)) if value is None]
        batch_size, shard_size = batch_size or there.get("batch_size"), shard_size or there.get("shard_size")
        if batch_size is None:
            batch_size = min(ranks.gather(memory.batch_size_for(run, conditions, memory_limit, num_samples)))
        shard_size = checked_shard(shard_size, batch_size, num_samples, run.model, styles)

        def begin() -> JobFolder:
            facts = facts_of(run, conditions, num_samples=num_samples, first_index=first_index)
            facts |= {"formats": list(styles), "batch_size": batch_size, "shard_size": shard_size}
            if scorer is not None:
                facts["scorer"] = scorer_facts(scorer)
            with claimed(folder, part, overwrite) as claim:
                if overwrite:
                    discard(folder, facts, claim)
                return open_job(folder, facts, claim, resume=resume, adopted=adopted)

        job = ranks.from_first(begin)
        check_shared(job, ranks)
        labels = Labels(first_index, run.seed, json.dumps(job.facts), conditions.recorded)
        with joined(job, ranks.rank) as job:
            work = work_on(job, styles, labels, run, conditions, log)
            try:
                made = work.run(ranks, part, progress, stop)
                manifest = work.finish(scorer)
            except Cancelled:
                log("stopped", by=signals)
                by = f" by {signals[0]}" if signals else ""
                raise Cancelled(
                    f"stopped{by}: {work.progress_summary}; {RESUME_HINT}", arguments=ARGUMENT_NAMES
                ) from None
            except Exception as error:
                log("failed", error=str(error))
                if isinstance(error, SdesamplersError) and not isinstance(error, ClaimError | PluginError):
                    refuse_if_lost(job)  # the run that took over removes our temporary files, which causes other errors
                    error.add(f". {work.progress_summary}; {RESUME_HINT}", ARGUMENT_NAMES)
                raise
        log("end", made=made, complete=manifest is not None)
    return Generated(folder, made, manifest)


def peek(folder: Path, part: tuple[int, int], overwrite: bool) -> Facts | None:
    """The facts of the job in the folder, if it is to be resumed; raises before expensive work if it is in use."""
    refuse_if_busy(folder, part, overwrite)
    return None if overwrite else stored_facts(folder)


@contextmanager
def claimed(folder: Path, part: tuple[int, int], overwrite: bool) -> Iterator[Claim]:
    """Claim a part of the job in a folder; the claim outlives the context, and is released only after an error."""
    make_lasting_folder(folder / ".job")
    claim = None
    try:
        claim = acquire(folder, part, overwrite=overwrite)
        yield claim
    except BaseException:
        if claim is not None:
            claim.release()
        with suppress(OSError):  # the folder is not empty
            (folder / ".job").rmdir()
        raise


def check_shared(job: JobFolder, ranks: Ranks) -> None:
    """Raise if this process does not see the job's folder; the first process then releases its claim."""
    try:
        with file_errors(job.inside, "could not be accessed"):
            shared = job.inside.is_dir()
        if not shared:
            raise UsageError(f"{job.path} is not the first process's folder; all processes need one shared folder")
    except BaseException:
        if job.claim is not None and ranks.is_first:
            job.claim.release()
        raise


@contextmanager
def joined(job: JobFolder, rank: int) -> Iterator[JobFolder]:
    """The job as seen by this process, which joins the claim inside the context."""
    if job.claim is None:
        yield job
        return
    with job.claim.joined(rank) as claim:
        yield replace(job, claim=claim)


def refuse_if_lost(job: JobFolder) -> None:
    """Raise ClaimError if the claim is known to be lost."""
    try:
        job.check_claim()
    except ClaimError:
        raise
    except SdesamplersError:
        return


RESUME_HINT = "repeat the call with {resume} to continue"


def work_on(
    job: JobFolder, styles: dict[str, Format], labels: Labels, run: PreparedRun, conditions: Conditions, log: Log
) -> Work:
    """Return the `Work` that a job's facts describe."""
    model, size = run.model, job.facts["batch_size"]
    pictures = makes_pictures(model) and set(styles) != {"safetensors"}

    def warn_halved(now: int) -> None:
        log("out of memory", batch_size=now)
        warn(f"memory ran out: the batch size is {now} from here on, which changes rounding", ReproducibilityWarning)

    def decode_pictures(samples: Tensor) -> Any:
        return to_bytes(model.decode(samples), model.decoded_range) if pictures else None

    return Work(
        job=job,
        shards=split(job.facts["num_samples"], job.facts["shard_size"]),
        formats=styles,
        labels=labels,
        batches=Batches(run, conditions, labels.first_index, size, warn_halved, decode_pictures),
        size=size,
        pictures=pictures,
        log=log,
    )


def checked_shard(size: int | None, batch_size: int, count: int, model: Model, formats: Collection[str]) -> int:
    """Return `size` if it is valid, or the default shard size."""
    whole("batch_size", batch_size)
    if size is None and "grid" in formats and count <= GRID_LIMIT:
        return count  # a single picture
    if size is None:
        sample = 4 * math.prod(model.shape)
        most = max(SHARD_BYTES // (sample * batch_size), 1)
        return batch_size * min(-(-count // (SHARDS * batch_size)), most)
    if size % batch_size and size < count:
        raise UsageError(f"shard_size must be a multiple of batch_size, {batch_size}, not {size}")
    return size


REPEAT_DELAY = 1.0
"""Seconds after which a second SIGINT counts as a new one; a terminal and a launcher may send one each at once."""


@contextmanager
def stopped_by_signals(stop: threading.Event) -> Iterator[list[str]]:
    """SIGINT and SIGTERM set `stop` and are listed by name in the yielded list; a later SIGINT interrupts at once."""
    names: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield names  # only the main thread may install signal handlers
        return
    first = math.inf

    def handle(number: int, frame: Any) -> None:
        nonlocal first
        now = time.monotonic()
        if now - first > REPEAT_DELAY and number == signal.SIGINT:
            raise KeyboardInterrupt
        first = min(first, now)
        names.append(signal.Signals(number).name)
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield names
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
