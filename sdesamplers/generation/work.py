"""The work of one process on a job: its shards in sequence, each written while the next is generated."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load

from ..errors import Cancelled, SdesamplersError
from ..io.files import Draft, file_errors, read
from ..sampling.loop import Event
from ..sampling.prepared import warn_if_far
from .batches import Batches
from .formats import SCORES, Format, Labels
from .identity import Facts, environment
from .job import JobFolder
from .progress import INTERVAL, Log, Progress
from .ranks import Ranks
from .shards import Batch, Shard, describe_drafts, sha256
from .writer import Writer

if TYPE_CHECKING:
    from ..metrics import FeatureScorer


@dataclass(eq=False)
class Work:
    """A job, and how its samples are generated and stored.

    Attributes:
        job: the job's folder.
        shards: all shards of the job.
        formats: output formats by name.
        labels: metadata that is stored with the samples.
        batches: generates the samples.
        size: the job's batch size, by which shards are divided.
        pictures: True if `batches` also returns the pixels of samples.
        log: the event log.
    """

    job: JobFolder
    shards: Sequence[Shard]
    formats: dict[str, Format]
    labels: Labels
    batches: Batches
    size: int
    pictures: bool
    log: Log

    def run(self, ranks: Ranks, part: tuple[int, int], shown: bool, stop: threading.Event) -> int:
        """Generate this process's share of the missing samples; return the number that it generated.

        Raises:
            Cancelled: `stop` was set.
        """
        mine = self.shards[part[0] :: part[1]]
        progress = Progress(self.job.inside / "progress", f"{part[0] + 1}-of-{part[1]}", ranks.rank)
        if ranks.is_first:
            progress.clear(alone=part[1] == 1)
        ranks.gather(None)
        with progress, Writer() as writer:
            whole = self._check(mine[ranks.rank :: ranks.count], stop)
            there = {number for numbers in ranks.gather(whole) for number in numbers}
            todo = [shard for shard in mine if shard.number not in there]
            own = todo[ranks.rank :: ranks.count]
            self.log("begin", shards=len(own), of=len(self.shards), samples=count(own))
            if shown and ranks.is_first:
                label = f"{self.batches.run.spec.name} on {self.batches.run.model.name}"
                progress.show(label, count(mine), count(mine) - count(todo))
            made = sum(self._make(shard, writer, progress) for shard in own)
            writer.close()
            if ranks.is_first:
                self._await(todo, progress, stop)
        return made

    def _check(self, shards: Sequence[Shard], stop: threading.Event) -> list[int]:
        """Return the numbers of the intact shards; reopen all others, and remove the remains of killed runs."""
        whole = []
        for shard in shards:
            if stop.is_set():
                raise Cancelled("stopped while files were being checked")
            if self.job.is_whole(shard, self.formats, self.labels):
                whole.append(shard.number)
            else:
                self.job.reopen(shard)
        self.job.tidy(shards, whole, self.labels)
        return whole

    @property
    def progress_summary(self) -> str:
        """The number of finished shards, for messages."""
        done = sum(self.job.read_record(shard) is not None for shard in self.shards)
        return f"{done} of {len(self.shards)} shards in {self.job.path} are finished"

    def finish(self, scorer: FeatureScorer | None) -> Facts | None:
        """Write the scores and the manifest if every shard is finished; None otherwise."""
        if any(self.job.read_record(shard, strict=True) is None for shard in self.shards):
            return None
        if scorer is not None:
            self.job.publish(SCORES, self._score(scorer))
        return self.job.write_manifest(self.shards)

    def _make(self, shard: Shard, writer: Writer, bar: Progress) -> int:
        """Generate a shard and queue its writing; return the number of samples not kept from an earlier run."""
        parts, made = [], 0
        for rows in shard.batches(self.size):
            batch = self.job.kept(shard, rows)
            if batch is None:
                batch = self._sample(rows, bar)
                made += len(rows)
                if rows.stop < shard.rows.stop:
                    writer.put(partial(self.job.keep, shard, batch))
            else:
                bar.advance(len(rows))
            parts.append(batch)
        writer.put(partial(self._store, shard, parts))
        return made

    def _sample(self, rows: range, bar: Progress) -> Batch:
        begun, planned, run = time.perf_counter(), self._planned, self.batches.run
        reported = 0.0

        def advance(event: Event) -> None:
            nonlocal reported
            step = len(event.x) / planned if planned else 0.0
            step = min(step, len(rows) - reported)  # count repeated batches once after memory ran out
            reported += step
            bar.advance(step)

        made = self.batches.make(rows, advance)
        bar.advance(len(rows) - reported)
        samples, nfe = torch.cat([part.samples for part, _ in made]), np.concatenate([part.nfe for part, _ in made])
        pixels = np.concatenate([each for _, each in made]) if self.pictures else None
        if rows.start == 0:  # warn once, not for every batch
            warn_if_far(samples, run.model, run.recipe)
        facts = {"first": self.labels.index(rows.start), "count": len(rows), "nfe": int(nfe.sum())}
        self.log("batch", **facts, seconds=time.perf_counter() - begun)
        return Batch(rows, samples, nfe, pixels, max(len(part.samples) for part, _ in made))

    @cached_property
    def _planned(self) -> int | None:
        return self.batches.run.evaluations

    @cached_property
    def _environment(self) -> Facts:
        return environment(self.batches.run.model)

    def _store(self, shard: Shard, parts: list[Batch]) -> None:
        """Write a shard and its record, and remove its kept batches; runs in the writer's thread."""
        whole = Batch.join(parts)
        drafts: dict[str, list[Draft]] = {name: [] for name in self.formats}
        try:
            for name, each in self.formats.items():
                for made in each.drafts(each.files(self.job.path, shard, self.labels), whole, self.labels):
                    drafts[name].append(made)
            self.job.store(shard, [made for several in drafts.values() for made in several])
        finally:
            for made in (made for several in drafts.values() for made in several):
                made.drop()
        record: Facts = {
            "shard": shard.number,
            "first_index": self.labels.index(shard.rows.start),
            "count": len(shard.rows),
            "nfe": {"total": int(whole.nfe.sum()), "largest": int(whole.nfe.max())},
            "files": {name: describe_drafts(written) for name, written in drafts.items()},
        }
        if halved := [batch.size for batch in parts if batch.size < len(batch.rows)]:
            record["batch_size"] = min(halved)
        if self._environment != self.job.facts["environment"]:
            record["environment"] = self._environment
        self.job.finish(shard, record)
        self.job.drop(shard, [batch.rows for batch in parts[:-1]])
        self.log("shard", shard=shard.number, count=len(shard.rows))

    def _await(self, todo: Sequence[Shard], bar: Progress, stop: threading.Event) -> None:
        """Wait until the other processes have finished or died, only to show their progress."""
        while bar.others_at_work() and any(self.job.read_record(shard) is None for shard in todo):
            bar.update()
            if stop.wait(INTERVAL):
                raise Cancelled("stopped while the other processes were working")

    def _score(self, scorer: FeatureScorer) -> Facts:
        """Score the features of the whole job, joined in the order of samples."""
        score = scorer.score_features(torch.cat([self._features(shard) for shard in self.shards]).numpy())
        numbers = {"frechet": score.frechet, "sliced_wasserstein": score.sliced_wasserstein}
        # Six digits: the last ones depend on the number of threads.
        return {"count": score.count, "scorer": scorer.description} | {
            k: float(f"{v:.6g}") for k, v in numbers.items() if v is not None
        }

    def _features(self, shard: Shard) -> torch.Tensor:
        (file,) = self.formats["features"].files(self.job.path, shard, self.labels)
        with file_errors(file, "could not be read"):
            content = read(file, 2**40)
        record = self.job.read_record(shard, strict=True)
        if record is None or sha256(content) != record["files"]["features"]["sha256"]:
            raise SdesamplersError(f"{file} has changed since it was written")
        return load(content)["features"]


def count(shards: Sequence[Shard]) -> int:
    """The number of samples in these shards."""
    return sum(len(shard.rows) for shard in shards)
