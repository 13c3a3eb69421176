"""`generate`: a job of many samples, cut by index over processes, that can be stopped and taken up at any moment."""

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

from ..checks import sample_range, warn, whole
from ..errors import Cancelled, ClaimError, PluginError, SdesamplersError, UsageError
from ..io.files import make_lasting_folder, telling
from ..io.images import to_bytes
from ..models.base import Model
from ..public import public
from ..registry.plugin import Sampler
from ..sampling.prepared import PreparedRun, prepare
from ..sampling.recipe import Recipe
from ..sampling.request import split_arguments
from . import memory, streaming
from .batches import Batches
from .claims import Claim, acquire, refuse_if_busy
from .conditions import Conditions
from .facts import discard, stored_facts, take
from .formats import SHOWN, Format, Labels, formats_for, makes_pictures
from .identity import Facts, facts_of, scorer_facts
from .job import JobFolder, written_by
from .progress import Log
from .ranks import Ranks, check_part
from .shards import cut
from .streaming import fitting
from .words import WORDS
from .work import Work

if TYPE_CHECKING:
    from ..metrics import FeatureScorer

ELSEWHERE = {**streaming.ELSEWHERE, **dict.fromkeys(("trajectory", "log_probs", "callback"), "stream")}
"""Words of `sample` that `generate` does not take, and where they are at home: what they make is not stored, and what
a callback does is in no record."""
SHARDS = 256
"""About how many shards a large job has by default: enough to share out evenly."""
SHARD_BYTES = 2**28
"""A shard's samples are in memory together; by default they take no more than this."""


@public
@dataclass(frozen=True)
class Generated:
    """What `generate` did.

    Attributes:
        folder: of the job.
        made: samples that this process made.
        manifest: what `manifest.json` says; None where other processes or parts are still at work.
    """

    folder: Path
    made: int
    manifest: Facts | None

    @property
    def files(self) -> list[Path]:
        """The files of a finished job."""
        if self.manifest is None:
            return []
        shards = cut(self.manifest["num_samples"], self.manifest["shard_size"])
        return list(written_by(self.folder, self.manifest, shards))


@public
def generate(
    model: Model | str,
    sampler: str | Sampler | Recipe | Mapping[str, Any] = "quality",
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
    **words: Any,
) -> Generated:
    """Write many samples to a folder, alone or as one of several processes.

    The work is cut into shards of consecutive samples, and shards into batches, by index alone, so that the files are
    the same bytes however many processes make them and however often they were stopped. Finished batches are kept as
    soon as they are written. The processes of an accelerate or torchrun launch share the shards; they meet once at the
    start and never wait for each other again.

    Args:
        model, sampler: as in `sample`.
        out: the folder; `manifest.json` is written there when all is done, and not before.
        num_samples: how many in all.
        formats: any of "safetensors" (samples as the model gives them), "png", "webdataset" and "grid".
        batch_size: how many at once; by default as many as fit (see `memory_limit`). Other sizes give the same samples
            to rounding, not to the bit. Where memory runs out, batches are halved.
        shard_size: samples a shard, a multiple of `batch_size`; by default about 256 shards, none over 256 MiB.
        memory_limit: bytes for a batch, beside the weights, where `batch_size` is not given; half of the free ones by
            default.
        first_index: sample j of the job depends on (seed, first_index + j) alone.
        condition: one for all, or one a sample.
        resume: go on with the same job in `out`, after a check of what is there, or begin it.
        overwrite: discard an earlier job in `out`.
        part: (k, n): make only the k-th of n parts, counted from 0, for processes without a launcher; with `resume`,
            for the parts share the folder.
        scorer: compare all pictures' features with its reference, in `scores.json`.
        progress: show a progress bar for all processes.
        json_log: file for a log of events as lines of JSON.
        cancel: when set, the job stops as by a signal.
        **words: the other words of `sample`, the sampler's options among them. Not `trajectory`, `log_probs` and
            `callback`: `stream` takes these.

    Raises:
        UsageError: words that do not fit, a folder that holds another job, or files that no job made and this one would
            replace.
        ClaimError: another run is at work on the same part of the job, or has taken it over.
        Cancelled: stopped by SIGINT, SIGTERM or `cancel`; what is finished is kept.
        SdesamplersError: a file could not be written; what is finished is kept.
    """
    stop = cancel or threading.Event()
    num_samples, first_index = sample_range(num_samples, first_index)
    for word, value in (("memory_limit", memory_limit), ("batch_size", batch_size), ("shard_size", shard_size)):
        if value is not None:
            whole(word, value)
    part = check_part(part)
    if resume and overwrite:
        raise UsageError("resume goes on with a job and overwrite discards it; give one of them")
    formats = [formats] if isinstance(formats, str) else formats
    run = prepare(model, *split_arguments(sampler, {**fitting(words, "generate", ELSEWHERE), "cancel": stop}))
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
                return take(folder, facts, claim, resume=resume, adopted=adopted)

        job = ranks.from_first(begin)
        check_shared(job, ranks)
        labels = Labels(first_index, run.seed, json.dumps(job.facts), conditions.words)
        with joined(job, ranks.rank) as job:
            work = work_on(job, styles, labels, run, conditions, log)
            try:
                made = work.run(ranks, part, progress, stop)
                manifest = work.finish(scorer)
            except Cancelled:
                log("stopped", by=signals)
                by = f" by {signals[0]}" if signals else ""
                raise Cancelled(f"stopped{by}: {work.standing}; {GO_ON}", arguments=WORDS) from None
            except Exception as error:
                log("failed", error=str(error))
                if isinstance(error, SdesamplersError) and not isinstance(error, ClaimError | PluginError):
                    refuse_if_lost(job)  # whoever takes a job over removes what is half-written, and much else may fail
                    error.add(f". {work.standing}; {GO_ON}", WORDS)
                raise
        log("end", made=made, complete=manifest is not None)
    return Generated(folder, made, manifest)


def peek(folder: Path, part: tuple[int, int], overwrite: bool) -> Facts | None:
    """The facts of the job that is there, if it is to be taken up; before work is spent on one that is not free."""
    refuse_if_busy(folder, part, overwrite)
    return None if overwrite else stored_facts(folder)


@contextmanager
def claimed(folder: Path, part: tuple[int, int], overwrite: bool) -> Iterator[Claim]:
    """A claim on a part of the job in a folder, to be kept; given back if the job cannot be taken."""
    make_lasting_folder(folder / ".job")
    claim = None
    try:
        claim = acquire(folder, part, overwrite=overwrite)
        yield claim
    except BaseException:
        if claim is not None:
            claim.release()
        with suppress(OSError):  # a folder that holds something stays
            (folder / ".job").rmdir()
        raise


def check_shared(job: JobFolder, ranks: Ranks) -> None:
    """Raise unless the job's folder is here; the first process gives its claim back then."""
    try:
        with telling(job.inside, "could not be looked up"):
            shared = job.inside.is_dir()
        if not shared:
            raise UsageError(f"{job.path} is not here what it is to the first process; all need one shared folder")
    except BaseException:
        if job.claim is not None and ranks.is_first:
            job.claim.release()
        raise


@contextmanager
def joined(job: JobFolder, rank: int) -> Iterator[JobFolder]:
    """The job as it is to this process, which holds its claim for so long."""
    if job.claim is None:
        yield job
        return
    with job.claim.joined(rank) as claim:
        yield replace(job, claim=claim)


def refuse_if_lost(job: JobFolder) -> None:
    """Raise ClaimError if the claim is known to be lost."""
    try:
        job.allowed()
    except ClaimError:
        raise
    except SdesamplersError:
        return


GO_ON = "the same call with {resume} goes on from there"


def work_on(
    job: JobFolder, styles: dict[str, Format], labels: Labels, run: PreparedRun, conditions: Conditions, log: Log
) -> Work:
    """The work that a job's facts describe."""
    model, size = run.model, job.facts["batch_size"]
    pictures = makes_pictures(model) and set(styles) != {"safetensors"}

    def halved(now: int) -> None:
        log("out of memory", batch_size=now)
        warn(f"memory ran out: {now} samples at once from here on, which changes rounding")

    def look(samples: Tensor) -> Any:
        return to_bytes(model.decode(samples), model.decoded_range) if pictures else None

    return Work(
        job=job,
        shards=cut(job.facts["num_samples"], job.facts["shard_size"]),
        formats=styles,
        labels=labels,
        batches=Batches(run, conditions, labels.first_index, size, halved, look),
        size=size,
        pictures=pictures,
        log=log,
    )


def checked_shard(size: int | None, batch_size: int, count: int, model: Model, formats: Collection[str]) -> int:
    """A shard's size that fits, or the one taken by default."""
    whole("batch_size", batch_size)
    if size is None and "grid" in formats and count <= SHOWN:
        return count  # one picture
    if size is None:
        sample = 4 * math.prod(model.shape)
        most = max(SHARD_BYTES // (sample * batch_size), 1)
        return batch_size * min(-(-count // (SHARDS * batch_size)), most)
    if size % batch_size and size < count:
        raise UsageError(f"shard_size must be a multiple of batch_size, {batch_size}, not {size}")
    return size


INSISTING = 1.0
"""Seconds after which another SIGINT is taken to be meant; terminals and launchers may both send one at once."""


@contextmanager
def stopped_by_signals(stop: threading.Event) -> Iterator[list[str]]:
    """SIGINT and SIGTERM set `stop`; their names are added to what is yielded. A later SIGINT interrupts at once."""
    names: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield names  # only the main thread may ask for signals
        return
    first = math.inf

    def handle(number: int, frame: Any) -> None:
        nonlocal first
        now = time.monotonic()
        if now - first > INSISTING and number == signal.SIGINT:
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
