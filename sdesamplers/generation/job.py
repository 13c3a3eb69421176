"""The folder of a job: its finished shards, the remains of interrupted runs, and writing new files."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import SdesamplersError
from ..io.files import (
    Draft,
    checksum,
    file_errors,
    make_lasting_folder,
    names_in,
    read,
    remove,
    sync,
    sync_folder,
    write,
)
from .argument_names import ARGUMENT_NAMES
from .claims import Claim
from .formats import FORMATS, SCORES, Format, Labels
from .identity import Facts, fingerprint
from .shards import Batch, Shard, describe_files, read_batch, sha256

MAY_DIFFER = ("environment", "recipe_source")
"""Facts that may differ when a job is resumed: they affect rounding only."""
MANIFEST = "manifest.json"
TEMPORARY = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}(\.\w+)?")
"""Names of temporary files made by `files.draft`."""
RECORD = re.compile(r"(\d+)\.json")
BATCH = re.compile(r"(\d+)-\d+\.safetensors")
BEGUN = re.compile(r"(\d+)\.begun")
TEMPORARY_FACTS = re.compile(r"\.job\.json\.[a-z0-9_]{8}\.json|job-\d+-[0-9a-f]+\.json")
"""Temporary names of the job file, in this and earlier versions."""
PREFIX = 64
"""Leading bytes by which a file without a record, possibly damaged, is recognised as the job's."""


@dataclass(frozen=True)
class JobFolder:
    """A job's folder: samples, `manifest.json` once the job is finished, and in `.job` the state needed to resume.

    Attributes:
        path: the folder.
        facts: the job's facts.
        claim: this process's claim on its part; once it is lost, the folder is not changed any more.
    """

    path: Path
    facts: Facts
    claim: Claim | None = None

    @property
    def inside(self) -> Path:
        """The job's `.job` folder."""
        return self.path / ".job"

    @cached_property
    def key(self) -> str:
        """Job fingerprint; salts record and batch checksums so that another job's files are ignored."""
        return key_of(self.facts)

    def record_file(self, shard: Shard) -> Path:
        """The record that marks a shard as finished."""
        return self.inside / "records" / f"{shard.number:05d}.json"

    def batch_file(self, shard: Shard, rows: range) -> Path:
        """The file for a finished batch of an unfinished shard."""
        return self.inside / "batches" / f"{shard.number:05d}-{rows.start:09d}.safetensors"

    def begun_file(self, shard: Shard) -> Path:
        """An empty file that marks any files of an unfinished shard as the job's own."""
        return self.inside / "batches" / f"{shard.number:05d}.begun"

    def make(self) -> None:
        """Create the job's folders that do not exist yet."""
        for folder in (self.inside / "records", self.inside / "batches"):
            make_lasting_folder(folder)

    def check_claim(self) -> None:
        """Raise ClaimError if this run has lost its claim."""
        if self.claim is not None:
            self.claim.check()

    def read_record(self, shard: Shard, *, strict: bool = False) -> Facts | None:
        """A finished shard's record; None if the shard is not finished, or the record is damaged or another job's.

        Args:
            shard: the shard.
            strict: raise a SdesamplersError if the record exists but cannot be read.
        """
        file = self.record_file(shard)
        try:
            content = read(file)
        except FileNotFoundError:
            return None
        except OSError as error:
            if strict:
                raise SdesamplersError(f"{file} could not be read: {error.strerror or error}") from None
            return None
        found = unsealed(content)
        return None if found is None or key_of(found[1]) != self.key else found[0]

    def is_whole(self, shard: Shard, formats: dict[str, Format], labels: Labels) -> bool:
        """True if a shard was finished and its files still match their checksums."""
        record = self.read_record(shard)
        if record is None or list(record["files"]) != list(formats):
            return False
        return all(
            describe_files(each.files(self.path, shard, labels), record["files"][name]["bytes"])
            == record["files"][name]
            for name, each in formats.items()
        )

    def keep(self, shard: Shard, batch: Batch) -> None:
        """Store a finished batch of an unfinished shard."""
        write(self.batch_file(shard, batch.rows), batch.packed(self.key, self.facts), self.check_claim)

    def kept(self, shard: Shard, rows: range) -> Batch | None:
        """A batch stored by `keep`; None if it is missing, damaged, or another job's."""
        try:
            content = read_batch(self.batch_file(shard, rows))
        except OSError:
            return None
        return None if content is None else Batch.unpacked(content, rows, self.key)

    def store(self, shard: Shard, drafts: Sequence[Draft]) -> None:
        """Move a shard's files to their final names; `finish` then records the shard.

        Raises:
            SdesamplersError: a name is taken by a file that is not this job's.
            ClaimError: this run has lost its claim.
        """
        sync(drafts)
        self._claim_names(shard, drafts)
        self.check_claim()
        for each in drafts:
            each.commit()
        sync_folder(self.path)

    def finish(self, shard: Shard, record: Facts) -> None:
        """Write the record of a finished shard."""
        write(self.record_file(shard), sealed(record, self.facts), self.check_claim)

    def drop(self, shard: Shard, batches: Sequence[range]) -> None:
        """Remove the kept batches and the begun mark of a finished shard."""
        self.check_claim()
        for rows in batches:
            remove(self.batch_file(shard, rows))
        remove(self.begun_file(shard))

    def reopen(self, shard: Shard) -> None:
        """Mark a shard as unfinished: remove its record, and the manifest."""
        self.check_claim()
        self.remove_own(MANIFEST, self._manifest_text())
        if exists(self.record_file(shard)):
            self._mark_begun(shard)
            remove(self.record_file(shard))

    def write_manifest(self, shards: Sequence[Shard]) -> Facts | None:
        """Write `manifest.json` if every shard is finished; None otherwise.

        The process that finishes last writes it; two that finish at once write the same content.
        """
        kept = [record for shard in shards if (record := self.read_record(shard, strict=True)) is not None]
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
        """Write one of the final files of a finished job, and remove temporary files of killed runs."""
        text = json.dumps(facts, indent=1) + "\n"
        if exists(self.path / name) and not is_ours(self.path / name, text):
            raise SdesamplersError(foreign_file_message(self.path / name), arguments=ARGUMENT_NAMES)
        try:
            write(self.path / name, text, self.check_claim)
        except SdesamplersError:  # another process finished at the same moment and removed our temporary file
            self.check_claim()
            write(self.path / name, text, self.check_claim)
        remove_temporary(self.path, lambda target: target == name)

    def remove_own(self, name: str, text: str) -> None:
        """Remove one of the final files of a finished job.

        Raises:
            SdesamplersError: the file is not this job's.
        """
        file = self.path / name
        if exists(file):
            if not is_ours(file, text):
                raise SdesamplersError(foreign_file_message(file), arguments=ARGUMENT_NAMES)
            remove(file)

    def tidy(self, shards: Collection[Shard], whole: Collection[int], labels: Labels) -> None:
        """Remove temporary files of killed runs, and kept batches that are not needed any more.

        Args:
            shards: shards that no other process is working on.
            whole: numbers of the finished shards among them.
            labels: determine the names of files.
        """
        numbers, done = {shard.number for shard in shards}, set(whole)
        names = {path.name for shard in shards for path in shard_files(self.path, self.facts, shard, labels)}
        self.check_claim()
        remove_temporary(self.path, names.__contains__)
        for folder in (self.inside / "records", self.inside / "batches"):
            remove_temporary(folder, lambda name: number_of(name) in numbers)
        for name in names_in(self.inside / "batches"):
            if number_of(name) in done and RECORD.fullmatch(name) is None:
                remove_file(self.inside / "batches" / name)
        for name in names_in(self.inside):  # left by a run that was killed while it started the job
            if TEMPORARY_FACTS.fullmatch(name):
                remove_file(self.inside / name)

    def clear(self, shards: Sequence[Shard], labels: Labels) -> None:
        """Remove all files that the job wrote, identified by its records and names, and no others in its folder."""
        self.check_claim()
        self.tidy(shards, (), labels)
        remove_temporary(self.path, (MANIFEST, SCORES).__contains__)
        for file in self.made(shards, labels):
            remove_file(file)
        sync_folder(self.path)
        clear_inside(self.inside)

    def made(self, shards: Sequence[Shard], labels: Labels) -> Iterator[Path]:
        """The files that the job has or may have written, by its records; the manifest and scores first."""
        for name, text in self._final_files():
            if is_ours(self.path / name, text):
                yield self.path / name
        for shard in shards:
            if exists(self.record_file(shard)) or exists(self.begun_file(shard)):
                yield from shard_files(self.path, self.facts, shard, labels)

    def _manifest_text(self) -> str:
        return json.dumps(self.facts, indent=1)

    def _final_files(self) -> Iterator[tuple[str, str]]:
        """The final files of a finished job, and the beginning of each."""
        yield MANIFEST, self._manifest_text()
        if "scorer" in self.facts:
            about = {"count": self.facts["num_samples"], "scorer": self.facts["scorer"]["description"]}
            yield SCORES, json.dumps(about, indent=1)

    def _claim_names(self, shard: Shard, drafts: Sequence[Draft]) -> None:
        """Mark a shard's file names as the job's, unless other files have them."""
        if exists(self.begun_file(shard)):
            return
        if not exists(self.record_file(shard)):
            for each in drafts:
                if exists(each.path) and checksum(each.path, each.bytes) != each.sha256:
                    raise SdesamplersError(foreign_file_message(each.path), arguments=ARGUMENT_NAMES)
        self._mark_begun(shard)

    def _mark_begun(self, shard: Shard) -> None:
        write(self.begun_file(shard), b"", self.check_claim)


def key_of(facts: Facts) -> str:
    """A fingerprint of the facts that must agree."""
    return fingerprint(json.dumps({k: v for k, v in facts.items() if k not in MAY_DIFFER}).encode())


def sealed(record: Facts, facts: Facts) -> str:
    """The content of a record file: the shard's record, the job's facts and a checksum of both."""
    stored = {"record": record, "job": facts}
    return json.dumps({**stored, "sha256": sha256(json.dumps(stored).encode())}, indent=1) + "\n"


def unsealed(content: bytes) -> tuple[Facts, Facts] | None:
    """A record and its job's facts from the content of a record file; None if they are damaged."""
    try:
        stored = json.loads(content)
        seal = stored.pop("sha256")
        whole = seal == sha256(json.dumps(stored).encode())
        return (stored["record"], stored["job"]) if whole else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def exists(path: Path) -> bool:
    """True if the path exists; a broken link counts."""
    with file_errors(path, "could not be accessed"):
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True


def is_ours(path: Path, text: str) -> bool:
    """True if a file is empty or begins like `text`, apart from some damage.

    Raises:
        SdesamplersError: an I/O error, which leaves open whose file it is.
    """
    try:
        content = read(path)
    except OSError as error:
        if error.errno == errno.EIO:
            raise SdesamplersError(f"{path} could not be read: {error.strerror}") from None
        return False
    pairs = list(zip(content, text.encode()[:PREFIX], strict=False))
    return not content or sum(a == b for a, b in pairs) > len(pairs) / 2


def foreign_file_message(path: Path) -> str:
    """The message for a file that the job would replace but did not write."""
    return f"{path} does not belong to this job, which would replace it: move it away, or choose another {{out}}"


def number_of(name: str) -> int | None:
    """The shard number in the name of a record, a kept batch or a begun mark; None for any other name."""
    match = RECORD.fullmatch(name) or BATCH.fullmatch(name) or BEGUN.fullmatch(name)
    return int(match[1]) if match else None


def remove_temporary(folder: Path, meant: Callable[[str], bool]) -> None:
    """Remove temporary files whose final names satisfy `meant`."""
    for name in names_in(folder):
        if (found := TEMPORARY.fullmatch(name)) and meant(found["name"]):
            remove_file(folder / name)


def remove_file(path: Path) -> None:
    """Remove a file or link; leave a folder, since jobs create none of these names."""
    with file_errors(path, "could not be removed"):
        is_folder = path.is_dir() and not path.is_symlink()
    if not is_folder:
        remove(path)


def clear_inside(inside: Path) -> None:
    """Remove the files in `.job` except the claims, its empty folders, and last the job's facts."""
    for part in ("records", "batches"):
        for name in names_in(inside / part):
            temporary = TEMPORARY.fullmatch(name)
            if number_of(temporary["name"] if temporary else name) is not None:
                remove_file(inside / part / name)
    for name in names_in(inside / "progress"):
        if re.fullmatch(r"\d+-of-\d+-rank\d+", name):
            remove_file(inside / "progress" / name)
    for name in names_in(inside):
        if TEMPORARY_FACTS.fullmatch(name):
            remove_file(inside / name)
    for part in ("records", "batches", "progress"):
        with suppress(OSError):
            (inside / part).rmdir()
    remove(inside / "job.json")
    with file_errors(inside, "could not be accessed"):
        if inside.is_dir():
            sync_folder(inside)


def written_by(folder: Path, facts: Facts, shards: Sequence[Shard]) -> Iterator[Path]:
    """The paths of all files of a finished job."""
    labels = labels_of(facts)
    for shard in shards:
        yield from shard_files(folder, facts, shard, labels)
    if "scorer" in facts:
        yield folder / SCORES
    yield folder / MANIFEST


def labels_of(facts: Facts) -> Labels:
    """The labels that determine file names."""
    return Labels(facts["first_index"], facts["seed"], "", ())


def shard_files(folder: Path, facts: Facts, shard: Shard, labels: Labels) -> Iterator[Path]:
    """The paths of a shard's files in all formats."""
    for name in facts["formats"]:
        yield from FORMATS[name].files(folder, shard, labels)


def shortened(value: Any) -> str:
    """A fact's value, shortened to 40 characters."""
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
