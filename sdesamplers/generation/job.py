"""The folder of a job: whose it is, which of its shards are finished, and what an interrupted run left behind."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import SdesamplersError, UsageError
from ..files import make_folder, write
from .formats import FORMATS, SCORES, Format, Labels
from .identity import Facts, fingerprint
from .shards import Shard, cut, describe, sha256

FREE = ("environment",)
"""Facts that may differ where a job is taken up again: they change no more than rounding."""
MANIFEST = "manifest.json"
TEMPORARY = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}(\.\w+)?")
"""Names that `files.write` gives a file until it is whole."""
NUMBER = re.compile(r"\.?(\d+)")
"""The shard that a record or a kept batch is of, whole or not."""


@dataclass(frozen=True)
class JobFolder:
    """A job's folder: samples, `manifest.json` once all is done, and in `.job` what is needed to go on.

    Attributes:
        path: the folder.
        facts: of the job.
    """

    path: Path
    facts: Facts

    @property
    def inside(self) -> Path:
        """Where the job keeps its own files."""
        return self.path / ".job"

    @cached_property
    def key(self) -> str:
        """What is hashed into records and kept batches, so that none counts that another job left."""
        return fingerprint(json.dumps({k: v for k, v in self.facts.items() if k not in FREE}).encode())

    def record_file(self, shard: Shard) -> Path:
        """Says that a shard is finished."""
        return self.inside / "records" / f"{shard.number:05d}.json"

    def batch_file(self, shard: Shard, rows: range) -> Path:
        """A finished batch of an unfinished shard."""
        return self.inside / "batches" / f"{shard.number:05d}-{rows.start:09d}.safetensors"

    def make(self) -> None:
        """Make what is not there."""
        for folder in (self.inside / "records", self.inside / "batches"):
            make_folder(folder)

    def read_record(self, shard: Shard) -> Facts | None:
        """A finished shard's record; None where it is not finished, or the record is damaged."""
        try:
            stored = json.loads(self.record_file(shard).read_text(encoding="utf-8"))
            record: Facts = stored["record"]
            return record if stored["sha256"] == self._sealed(record) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def is_whole(self, shard: Shard, formats: dict[str, Format], labels: Labels) -> bool:
        """Whether a shard was finished and its files are still what they were."""
        record = self.read_record(shard)
        if record is None:
            return False
        try:
            found = {name: describe(each.files(self.path, shard, labels)) for name, each in formats.items()}
        except OSError:
            return False
        return bool(found == record["files"])

    def finish(self, shard: Shard, record: Facts) -> None:
        """Note that a shard is finished."""
        stored = {"record": record, "sha256": self._sealed(record)}
        write(self.record_file(shard), json.dumps(stored, indent=1) + "\n")

    def reopen(self, shard: Shard) -> None:
        """A shard is not finished, whatever its record says, and so the job is not."""
        self.record_file(shard).unlink(missing_ok=True)
        (self.path / MANIFEST).unlink(missing_ok=True)

    def write_manifest(self, shards: Sequence[Shard]) -> Facts | None:
        """Write `manifest.json` if every shard is finished; whoever finishes last does, and two write the same."""
        kept = [record for shard in shards if (record := self.read_record(shard)) is not None]
        if len(kept) < len(shards):
            return None
        total = sum(record["nfe"]["total"] for record in kept)
        nfe = {
            "total": total,
            "mean": total / self.facts["num_samples"],
            "largest": max(record["nfe"]["largest"] for record in kept),
        }
        manifest = {**self.facts, "nfe": nfe, "shards": kept}
        self.publish(MANIFEST, manifest)
        return manifest

    def publish(self, name: str, facts: Facts) -> None:
        """Write one of the files that whoever finishes last writes, and remove what a killed one left of it."""
        text = json.dumps(facts, indent=1) + "\n"
        try:
            write(self.path / name, text)
        except SdesamplersError:  # another, which finished at the same moment, took ours for what a killed one left
            write(self.path / name, text)
        remove_half(self.path, {name})

    def tidy(self, shards: Collection[Shard], whole: Collection[Shard], labels: Labels) -> None:
        """Remove what a killed run left half-written, and kept batches that are not needed any more.

        Args:
            shards: those that nobody else is at work on now.
            whole: those of them that are finished.
            labels: for the names of files.
        """
        numbers, done = ({shard.number for shard in some} for some in (shards, whole))
        names = {path.name for shard in shards for path in shard_files(self.path, self.facts, shard, labels)}
        remove_half(self.path, names)
        for folder in (self.inside / "records", self.inside / "batches"):
            for file in folder.iterdir():
                half, number = file.name.startswith("."), int(NUMBER.match(file.name)[1])  # type: ignore[index]
                if number in numbers if half else folder.name == "batches" and number in done:
                    file.unlink(missing_ok=True)
        for file in self.inside.glob("job-*.json"):  # a claim's, which can do without it, now that there is a job
            file.unlink(missing_ok=True)

    def _sealed(self, record: Facts) -> str:
        return sha256(self.key.encode() + json.dumps(record).encode())


def remove_half(folder: Path, names: Collection[str]) -> None:
    """Remove files that are half-written and were to have these names."""
    for file in folder.iterdir():
        if (found := TEMPORARY.fullmatch(file.name)) and found["name"] in names:
            file.unlink(missing_ok=True)


def stored_facts(folder: Path) -> Facts | None:
    """The facts of the job that a folder holds; None where it holds none.

    Raises:
        SdesamplersError: they cannot be read.
    """
    file = folder / ".job" / "job.json"
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise ValueError("not a job's facts")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SdesamplersError(f"{file} cannot be read: {error}; choose another --out, or remove {folder}") from None
    return facts


def claim(folder: Path, facts: Facts, *, resume: bool, adopted: Collection[str] = ()) -> JobFolder:
    """Make a folder this job's, or take up the same job in it again.

    Args:
        folder: where.
        facts: the job's.
        resume: whether the same job may be there already.
        adopted: facts that are taken from the job that is there, for nobody asked for a value.

    Raises:
        UsageError: the folder holds another job, or the same one and `resume` was not asked for.
    """
    make_folder(folder / ".job")
    file = folder / ".job" / "job.json"
    if not resume and file.exists():
        raise UsageError(taken(folder, facts))
    if not file.exists():
        begin(file, facts)
    stored = stored_facts(folder) or {}
    wanted = {**facts, **{key: stored[key] for key in adopted if key in stored}}
    if changes := list(differences(stored, wanted)):
        raise UsageError(another(folder, changes))
    job = JobFolder(folder, stored)
    job.make()
    return job


def begin(file: Path, facts: Facts) -> None:
    """Make a job's file of facts; of several parts that begin at once, one makes it."""
    fresh = file.with_name(f"job-{os.getpid()}-{os.urandom(4).hex()}.json")
    try:
        fresh.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        with suppress(FileExistsError):
            os.link(fresh, file)
    except OSError as error:
        if not (fresh.exists() and error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)):
            if file.exists():  # another's, which has tidied
                return
            raise SdesamplersError(f"{file} could not be written: {error.strerror}") from None
        os.replace(fresh, file)  # a file system without links
    finally:
        fresh.unlink(missing_ok=True)


def taken(folder: Path, facts: Facts) -> str:
    """What to tell of a folder that holds a job already."""
    stored = stored_facts(folder) or {}
    if changes := list(differences(stored, facts)):
        return another(folder, changes)
    job = JobFolder(folder, stored)
    shards = cut(stored["num_samples"], stored["shard_size"])
    done = sum(job.read_record(shard) is not None for shard in shards)
    return (
        f"{folder} holds this job already, {done} of {len(shards)} shards done: --resume goes on, --overwrite begins "
        "anew"
    )


def another(folder: Path, changes: Sequence[str]) -> str:
    """What to tell of a folder that holds another job."""
    return f"{folder} holds another job: {'; '.join(changes)}. Choose another --out, or --overwrite it"


def differences(there: Facts, here: Facts, prefix: str = "") -> Iterator[str]:
    """How two jobs differ, a line each."""
    for key in dict.fromkeys((*there, *here)):
        if key in FREE or there.get(key) == here.get(key):
            continue
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key} is {shown(old)} there and {shown(new)} here"


def shown(value: Any) -> str:
    """A fact's value, not too long."""
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def discard(folder: Path) -> None:
    """Remove an earlier job's files, by the names that it gave them, and nothing else that lies in its folder.

    Raises:
        SdesamplersError: what the folder holds cannot be read, or removed.
    """
    facts = stored_facts(folder)
    if facts is None:
        return
    try:
        files, labels = list(written_by(folder, facts)), Labels(facts["first_index"], facts["seed"], "", ())
    except (KeyError, TypeError):
        raise SdesamplersError(f"{folder / '.job'} is damaged; choose another --out, or remove {folder}") from None
    job = JobFolder(folder, facts)
    try:
        job.make()
        job.tidy(cut(facts["num_samples"], facts["shard_size"]), (), labels)
        remove_half(folder, {MANIFEST, SCORES})
        for file in files:
            file.unlink(missing_ok=True)
        shutil.rmtree(job.inside)
    except OSError as error:
        raise SdesamplersError(f"{folder}: an earlier job's files could not be removed: {error.strerror}") from None


def written_by(folder: Path, facts: Facts) -> Iterator[Path]:
    """The files of a job, made or not."""
    labels = Labels(facts["first_index"], facts["seed"], "", ())
    for shard in cut(facts["num_samples"], facts["shard_size"]):
        yield from shard_files(folder, facts, shard, labels)
    if "scorer" in facts:
        yield folder / SCORES
    yield folder / MANIFEST


def shard_files(folder: Path, facts: Facts, shard: Shard, labels: Labels) -> Iterator[Path]:
    """A shard's files."""
    for name in facts["formats"]:
        yield from FORMATS[name].files(folder, shard, labels)
