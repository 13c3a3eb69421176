"""The work of one process on a job: its shards one after the other, written while the next are made."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from ..errors import Cancelled
from ..files import write
from ..images import to_bytes
from ..loop import Event
from .batches import Batches
from .formats import SCORES, Format, Labels
from .job import Facts, JobFolder, environment
from .progress import EVERY, Log, Progress
from .ranks import Ranks
from .shards import Batch, Shard, describe
from .writer import Writer

if TYPE_CHECKING:
    from ..metrics import Scorer


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
        pictures: whether samples are decoded to pixels.
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
        checked = [shard.number for shard in mine[ranks.rank :: ranks.count] if self._is_whole(shard)]
        whole = {number for numbers in ranks.gather(checked) for number in numbers}
        todo = [shard for shard in mine if shard.number not in whole]
        own = todo[ranks.rank :: ranks.count]
        there, total = (sum(len(shard.rows) for shard in some) for some in ([s for s in mine if s not in todo], mine))
        self.log("begin", shards=len(own), of=len(self.shards), samples=sum(len(shard.rows) for shard in own))
        label = f"{self.batches.run.spec.name} on {self.batches.run.model.name}"
        name = f"part{part[0]}-rank{ranks.rank}"
        folder = self.job.inside / f"progress-{part[0]}"
        made = 0
        with Progress(folder, name, label, total, there, shown and ranks.is_first) as bar, Writer() as writer:
            for shard in own:
                made += self._make(shard, writer, bar)
            writer.close()
            if ranks.is_first:
                self._await(todo, bar, stop)
        return made

    @property
    def standing(self) -> str:
        """How much is finished."""
        done = sum(self.job.read_record(shard) is not None for shard in self.shards)
        return f"{done} of {len(self.shards)} shards in {self.job.path} are finished"

    def finish(self, scorer: Scorer | None) -> Facts | None:
        """Score and sum up, where every shard is finished."""
        if any(self.job.read_record(shard) is None for shard in self.shards):
            return None
        if scorer is not None:
            write(self.job.path / SCORES, json.dumps(self._score(scorer), indent=1) + "\n")
        return self.job.write_manifest(self.shards)

    def _is_whole(self, shard: Shard) -> bool:
        return self.job.is_whole(shard, self.formats, self.labels)

    def _make(self, shard: Shard, writer: Writer, bar: Progress) -> int:
        """Make a shard's samples and have them written; returns how many were not kept from an earlier run."""
        parts, made = [], 0
        for rows in shard.batches(self.size):
            kept = self.job.batch_file(shard, rows)
            batch = Batch.load(kept, rows)
            if batch is None:
                batch = self._sample(rows, bar)
                made += len(rows)
                if rows.stop < shard.rows.stop:
                    writer.put(partial(batch.save, kept))
            else:
                bar.advance(len(rows))
            parts.append(batch)
        writer.put(partial(self._store, shard, parts))
        return made

    def _sample(self, rows: range, bar: Progress) -> Batch:
        begun, planned, run = time.perf_counter(), self.batches.run.evaluations, self.batches.run
        told = 0.0

        def advance(event: Event) -> None:
            nonlocal told
            if planned:
                told += len(rows) / planned
                bar.advance(len(rows) / planned)

        parts = self.batches.make(rows, advance)
        bar.advance(len(rows) - told)
        result = run.result(parts, rows)
        pixels = to_bytes(result.decoded, run.model.decoded_range) if self.pictures else None
        seconds = time.perf_counter() - begun
        self.log("batch", first=self.labels.index(rows.start), count=len(rows), nfe=result.nfe, seconds=seconds)
        return Batch(rows, result.samples, result.nfe_per_sample, pixels, max(len(part.samples) for part in parts))

    def _store(self, shard: Shard, parts: list[Batch]) -> None:
        """Write a shard, note that it is finished, and drop what was kept of it; in the writer's thread."""
        whole = Batch.join(parts)
        files = {name: each.files(self.job.path, shard, self.labels) for name, each in self.formats.items()}
        for name, each in self.formats.items():
            each.write(files[name], whole, self.labels)
        record: Facts = {
            "shard": shard.number,
            "first_index": self.labels.index(shard.rows.start),
            "count": len(shard.rows),
            "nfe": {"total": int(whole.nfe.sum()), "largest": int(whole.nfe.max())},
            "files": {name: describe(those) for name, those in files.items()},
        }
        if halved := [batch.size for batch in parts if batch.size < len(batch.rows)]:
            record["batch_size"] = min(halved)
        if (here := environment(self.batches.run.model)) != self.job.facts["environment"]:
            record["environment"] = here
        self.job.finish(shard, record)
        for batch in parts[:-1]:
            self.job.batch_file(shard, batch.rows).unlink(missing_ok=True)
        self.log("shard", shard=shard.number, count=len(shard.rows))

    def _await(self, todo: Sequence[Shard], bar: Progress, stop: threading.Event) -> None:
        """Stay until the others are done or gone, to show their progress; no work of this process depends on it."""
        while bar.others_at_work() and any(self.job.read_record(shard) is None for shard in todo):
            bar.tell()
            if stop.wait(EVERY):
                raise Cancelled("stopped while the other processes were at work")

    def _score(self, scorer: Scorer) -> Facts:
        """The whole job's features against the reference; they are joined in the samples' order, whoever made them."""
        from safetensors.torch import load_file

        files = [self.formats["features"].files(self.job.path, shard, self.labels)[0] for shard in self.shards]
        score = scorer.score_features(torch.cat([load_file(file)["features"] for file in files]).numpy())
        numbers = {"frechet": score.frechet, "sliced_wasserstein": score.sliced_wasserstein}
        # Six digits: the last ones depend on how many threads there are.
        return {"count": score.count, "scorer": scorer.description} | {k: float(f"{v:.6g}") for k, v in numbers.items()}
