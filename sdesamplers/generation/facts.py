"""Which job a folder is of: its file of facts, made once, read, and made again from what else is there."""

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
    """The facts of the job that a folder holds, by its file or, if that is damaged, by what else is there.

    Raises:
        SdesamplersError: they cannot be read.
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
    """Where a job's facts are."""
    return folder / ".job" / "job.json"


def encoded(facts: Facts) -> str:
    """Facts as the job's file holds them, with a checksum."""
    return json.dumps({"job": facts, "sha256": sha256(json.dumps(facts).encode())}, indent=1) + "\n"


def decoded(content: bytes) -> Facts | None:
    """The facts in a job's file; None if they are damaged."""
    try:
        stored = json.loads(content)
        if "layout" in stored:  # of before there was a checksum
            return stored if usable(stored) else None
        facts: Facts = stored["job"]
        return facts if stored["sha256"] == sha256(json.dumps(facts).encode()) and usable(facts) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def usable(facts: Any) -> bool:
    """Whether facts say what a folder's files are called."""
    try:
        shards = split(facts["num_samples"], facts["shard_size"])
        next(written_by(Path(), facts, shards[:1]))
        return isinstance(facts["layout"], int) and isinstance(facts["batch_size"], int)
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration, ZeroDivisionError, OverflowError):
        return False


def recovered_facts(folder: Path) -> Iterator[Any]:
    """What records, kept batches, the manifest and files of samples say of their job, the surest first."""
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
    """What stands before the tensors of a safetensors file."""
    with regular_file(path) as (file, size):
        return json.loads(file.read(min(int.from_bytes(file.read(8), "little"), size, HEADER)))


def open_job(folder: Path, facts: Facts, claim: Claim, *, resume: bool, adopted: Collection[str] = ()) -> JobFolder:
    """Make a folder this job's, or take up the same job in it again.

    Args:
        folder: where.
        facts: the job's.
        claim: of this run.
        resume: whether the same job may be there already.
        adopted: facts that are taken from the job that is there, for nobody asked for a value.

    Raises:
        UsageError: the folder holds another job, or the same one and `resume` was not asked for, or a file of another's
            that the job would replace.
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
    """Whether a job's file is whole."""
    try:
        return decoded(read(file)) is not None
    except OSError:
        return False


def check_free(folder: Path, facts: Facts, replaced: Collection[Path] = ()) -> None:
    """Raise UsageError if the job that is to begin here would replace a file, other than those that may be."""
    names = set(names_in(folder)) - {file.name for file in replaced}
    meant = written_by(folder, facts, split(facts["num_samples"], facts["shard_size"]))
    found = next((file.name for file in meant if file.name in names), None)
    if found is not None and (replaced or not is_stored(job_file(folder))):  # else another part began it meanwhile
        raise UsageError(
            f"{folder} holds {found}, which is no job's that is known there and would be replaced: move it away, or "
            "choose another {out}",
            arguments=ARGUMENT_NAMES,
        )


def begin(file: Path, facts: Facts) -> None:
    """Make a job's file of facts; of several parts that begin at once, one makes it."""
    damaged = exists(file) and not is_stored(file)
    fresh = draft(file, encoded(facts))
    try:
        sync([fresh])
        if damaged:  # and nothing tells what was in it
            fresh.commit()
        else:
            link(fresh)
    except SdesamplersError:
        if not is_stored(file):  # else another's, which has tidied
            raise
    finally:
        fresh.drop()
    sync_folder(file.parent)


def link(fresh: Draft) -> None:
    """Give a file its name, unless another has it."""
    try:
        os.link(fresh.temporary, fresh.path)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise SdesamplersError(f"{fresh.path} could not be written: {error.strerror or error}") from None
        fresh.commit()  # a file system without links


def already_there_message(folder: Path, facts: Facts, stored: Facts) -> str:
    """What to tell of a folder that holds a job already."""
    if changes := list(differences(stored, facts)):
        return other_job_message(folder, changes)
    job = JobFolder(folder, stored)
    shards = split(stored["num_samples"], stored["shard_size"])
    done = sum(job.read_record(shard) is not None for shard in shards)
    return (
        f"{folder} holds this job already, {done} of {len(shards)} shards done: {{resume}} goes on, {{overwrite}} "
        "begins anew"
    )


def other_job_message(folder: Path, changes: Sequence[str]) -> str:
    """What to tell of a folder that holds another job."""
    return f"{folder} holds another job: {'; '.join(changes)}. Choose another {{out}}, or discard it by {{overwrite}}"


def differences(stored: Facts, wanted: Facts, prefix: str = "") -> Iterator[str]:
    """How two jobs differ, a line each."""
    for key in dict.fromkeys((*stored, *wanted)):
        if key in MAY_DIFFER or stored.get(key) == wanted.get(key):
            continue
        old, new = stored.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key} is {shortened(old)} there and {shortened(new)} here"


def discard(folder: Path, facts: Facts, claim: Claim) -> None:
    """Remove an earlier job's files, by its records and the names that it gave them, and nothing else.

    Args:
        folder: of both jobs.
        facts: of the job that is to begin there.
        claim: of this run.

    Raises:
        UsageError: the job that is to begin would replace a file of another's; nothing is removed.
        SdesamplersError: what the folder holds cannot be read, or removed.
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
