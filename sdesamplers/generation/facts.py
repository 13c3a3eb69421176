"""The facts of the job in a folder: written once, read, and restored from other files if they are damaged."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import SdesamplersError, UsageError
from ..io.files import Draft, draft, names_in, read, regular_file, sync, sync_folder, write
from .argument_names import ARGUMENT_NAMES
from .claims import Claim
from .identity import Facts
from .job import (
    BATCH,
    MANIFEST,
    MAY_DIFFER,
    RECORD,
    JobFolder,
    clear_inside,
    exists,
    labels_of,
    shortened,
    unsealed,
    written_by,
)
from .shards import HEADER, batch_metadata, read_batch, sha256, split


def stored_facts(folder: Path) -> Facts | None:
    """The facts of a folder's job, from its job file or, if that is damaged, from other files; None if there is no job.

    Raises:
        SdesamplersError: the job file cannot be read.
    """
    file = job_file(folder)
    try:
        content = read(file)
    except (FileNotFoundError, NotADirectoryError):
        content = b""
    except OSError as error:
        reason = error.strerror or error
        raise SdesamplersError(
            f"{file} cannot be read: {reason}; choose another {{out}}, or move it away", arguments=ARGUMENT_NAMES
        ) from None
    found = decoded(content)
    return found if found is not None else next(filter(usable, recovered_facts(folder)), None)


def job_file(folder: Path) -> Path:
    """The file that holds a job's facts."""
    return folder / ".job" / "job.json"


def encoded(facts: Facts) -> str:
    """The content of a job file: the facts and their checksum."""
    return json.dumps({"job": facts, "sha256": sha256(json.dumps(facts).encode())}, indent=1) + "\n"


def decoded(content: bytes) -> Facts | None:
    """The facts in the content of a job file; None if they are damaged."""
    try:
        stored = json.loads(content)
        if "layout" in stored:  # written by an early version, without a checksum
            return stored if usable(stored) else None
        facts: Facts = stored["job"]
        return facts if stored["sha256"] == sha256(json.dumps(facts).encode()) and usable(facts) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def usable(facts: Any) -> bool:
    """True if facts are complete enough to determine the names of the job's files."""
    try:
        shards = split(facts["num_samples"], facts["shard_size"])
        next(written_by(Path(), facts, shards[:1]))
        return isinstance(facts["layout"], int) and isinstance(facts["batch_size"], int)
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration, ZeroDivisionError, OverflowError):
        return False


def recovered_facts(folder: Path) -> Iterator[Any]:
    """Facts recovered from records, kept batches, the manifest and sample files, the most reliable first."""
    inside = folder / ".job"
    for name in names_in(inside / "records"):
        if RECORD.fullmatch(name):
            with suppress(OSError):
                if (found := unsealed(read(inside / "records" / name))) is not None:
                    yield found[1]
    for name in names_in(inside / "batches"):
        if BATCH.fullmatch(name):
            with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
                if (kept := read_batch(inside / "batches" / name)) is not None:
                    yield (batch_metadata(kept) or {}).get("job")
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        manifest = json.loads(read(folder / MANIFEST))
        yield {key: value for key, value in manifest.items() if key not in ("nfe", "shards")}
    for name in names_in(folder):
        if name.startswith("samples") and name.endswith(".safetensors"):
            with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
                yield json.loads(header(folder / name)["__metadata__"]["sdesamplers"])


def header(path: Path) -> Any:
    """The header of a safetensors file."""
    with regular_file(path) as (file, size):
        return json.loads(file.read(min(int.from_bytes(file.read(8), "little"), size, HEADER)))


def open_job(folder: Path, facts: Facts, claim: Claim, *, resume: bool, adopted: Collection[str] = ()) -> JobFolder:
    """Start a job in a folder, or resume the same job there.

    Args:
        folder: the output folder.
        facts: the job's facts.
        claim: this run's claim.
        resume: True if the same job may already be in the folder.
        adopted: keys of facts that the caller left open: an existing job's values are used.

    Raises:
        UsageError: the folder holds another job, or the same job without `resume`, or a file of unknown origin that the
            job would replace.
    """
    stored = stored_facts(folder)
    if stored is None:
        check_free(folder, facts)
        begin(job_file(folder), facts)
        stored = stored_facts(folder) or facts
        claim.check()
    elif not resume:
        raise UsageError(already_there_message(folder, facts, stored), arguments=ARGUMENT_NAMES)
    wanted = {**facts, **{key: stored[key] for key in adopted if key in stored}}
    if changes := list(differences(stored, wanted)):
        raise UsageError(other_job_message(folder, changes), arguments=ARGUMENT_NAMES)
    if not is_stored(job_file(folder)):
        claim.check()
        write(job_file(folder), encoded(stored))
    job = JobFolder(folder, stored, claim)
    job.make()
    return job


def is_stored(file: Path) -> bool:
    """True if a job file exists and is intact."""
    try:
        return decoded(read(file)) is not None
    except OSError:
        return False


def check_free(folder: Path, facts: Facts, replaced: Collection[Path] = ()) -> None:
    """Raise UsageError if a new job would replace a file that is not in `replaced`."""
    names = set(names_in(folder)) - {file.name for file in replaced}
    meant = written_by(folder, facts, split(facts["num_samples"], facts["shard_size"]))
    found = next((file.name for file in meant if file.name in names), None)
    # A file found beside an intact job file is fine: another part has just started the job.
    if found is not None and (replaced or not is_stored(job_file(folder))):
        raise UsageError(
            f"{folder} holds {found}, which belongs to no known job and would be replaced: move it away, or choose "
            "another {out}",
            arguments=ARGUMENT_NAMES,
        )


def begin(file: Path, facts: Facts) -> None:
    """Write a job file; if several parts start at once, the first one wins."""
    damaged = exists(file) and not is_stored(file)
    fresh = draft(file, encoded(facts))
    try:
        sync([fresh])
        if damaged:  # and the facts could not be recovered
            fresh.commit()
        else:
            link(fresh)
    except SdesamplersError:
        if not is_stored(file):  # otherwise another part wrote it, and removed this draft
            raise
    finally:
        fresh.drop()
    sync_folder(file.parent)


def link(fresh: Draft) -> None:
    """Give a draft its final name, unless a file of that name exists."""
    try:
        os.link(fresh.temporary, fresh.path)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise SdesamplersError(f"{fresh.path} could not be written: {error.strerror or error}") from None
        fresh.commit()  # a file system without links


def already_there_message(folder: Path, facts: Facts, stored: Facts) -> str:
    """The message for a folder that already holds a job."""
    if changes := list(differences(stored, facts)):
        return other_job_message(folder, changes)
    job = JobFolder(folder, stored)
    shards = split(stored["num_samples"], stored["shard_size"])
    done = sum(job.read_record(shard) is not None for shard in shards)
    return (
        f"{folder} already holds this job, {done} of {len(shards)} shards done: continue with {{resume}}, or start "
        "over with {overwrite}"
    )


def other_job_message(folder: Path, changes: Sequence[str]) -> str:
    """The message for a folder that holds another job."""
    return f"{folder} holds another job: {'; '.join(changes)}. Choose another {{out}}, or discard it with {{overwrite}}"


def differences(stored: Facts, wanted: Facts, prefix: str = "") -> Iterator[str]:
    """The differences between two jobs, one text for each fact."""
    for key in dict.fromkeys((*stored, *wanted)):
        if key in MAY_DIFFER or stored.get(key) == wanted.get(key):
            continue
        old, new = stored.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key} is {shortened(old)} there and {shortened(new)} here"


def discard(folder: Path, facts: Facts, claim: Claim) -> None:
    """Remove an earlier job's files, identified by its records and their names, and no others.

    Args:
        folder: the folder of both jobs.
        facts: the facts of the new job.
        claim: this run's claim.

    Raises:
        UsageError: the new job would replace a file of unknown origin; nothing has been removed.
        SdesamplersError: a file in the folder cannot be read or removed.
    """
    stored = stored_facts(folder)
    if stored is None:
        check_free(folder, facts)
        clear_inside(folder / ".job")
        return
    job, labels = JobFolder(folder, stored, claim), labels_of(stored)
    shards = split(stored["num_samples"], stored["shard_size"])
    check_free(folder, facts, [job.inside, *job.made(shards, labels)])
    job.clear(shards, labels)
