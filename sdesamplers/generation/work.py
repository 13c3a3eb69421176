"""The work of one process on a job: its shards one after the other, written while the next are made."""

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
    """A job, and how its samples are made and stored.

    Attributes:
        job: its folder.
        shards: all of them.
        formats: by name.
        labels: what is written beside samples.
        batches: makes samples.
        size: of a batch, as the shards are cut.
        pictures: whether `batches` makes pixels of samples.
        log: of events.
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
        """Make this process's share of what is missing; returns how many samples it made.

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
        """The numbers of those shards that are whole; all others are open again, and what a killed run left is gone."""
        whole = []
        for shard in shards:
            if stop.is_set():
                raise Cancelled("stopped while the files were checked")
            if self.job.is_whole(shard, self.formats, self.labels):
                whole.append(shard.number)
            else:
                self.job.reopen(shard)
        self.job.tidy(shards, whole, self.labels)
        return whole

    @property
    def progress_summary(self) -> str:
        """How much is finished."""
        done = sum(self.job.read_record(shard) is not None for shard in self.shards)
        return f"{done} of {len(self.shards)} shards in {self.job.path} are finished"

    def finish(self, scorer: FeatureScorer | None) -> Facts | None:
        """Score and sum up, where every shard is finished."""
        if any(self.job.read_record(shard, strict=True) is None for shard in self.shards):
            return None
        if scorer is not None:
            self.job.publish(SCORES, self._score(scorer))
        return self.job.write_manifest(self.shards)

    def _make(self, shard: Shard, writer: Writer, bar: Progress) -> int:
        """Make a shard's samples and have them written; returns how many were not kept from an earlier run."""
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
            step = min(step, len(rows) - reported)  # batches that memory did not hold are counted once
            reported += step
            bar.advance(step)

        made = self.batches.make(rows, advance)
        bar.advance(len(rows) - reported)
        samples, nfe = torch.cat([part.samples for part, _ in made]), np.concatenate([part.nfe for part, _ in made])
        pixels = np.concatenate([each for _, each in made]) if self.pictures else None
        if rows.start == 0:  # once, where a batch a warning would be hundreds
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
        """Write a shard, note that it is finished, and drop what was kept of it; in the writer's thread."""
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
        """Stay until the others are done or gone, to show their progress; no work of this process depends on it."""
        while bar.others_at_work() and any(self.job.read_record(shard) is None for shard in todo):
            bar.update()
            if stop.wait(INTERVAL):
                raise Cancelled("stopped while the other processes were at work")

    def _score(self, scorer: FeatureScorer) -> Facts:
        """The whole job's features against the reference; they are joined in the samples' order, whoever made them."""
        score = scorer.score_features(torch.cat([self._features(shard) for shard in self.shards]).numpy())
        numbers = {"frechet": score.frechet, "sliced_wasserstein": score.sliced_wasserstein}
        # Six digits: the last ones depend on how many threads there are.
        return {"count": score.count, "scorer": scorer.description} | {
            k: float(f"{v:.6g}") for k, v in numbers.items() if v is not None
        }

    def _features(self, shard: Shard) -> torch.Tensor:
        (file,) = self.formats["features"].files(self.job.path, shard, self.labels)
        with file_errors(file, "could not be read"):
            content = read(file, 2**40)
        record = self.job.read_record(shard, strict=True)
        if record is None or sha256(content) != record["files"]["features"]["sha256"]:
            raise SdesamplersError(f"{file} is not what was written to it")
        return load(content)["features"]


def count(shards: Sequence[Shard]) -> int:
    """How many samples are in them."""
    return sum(len(shard.rows) for shard in shards)
