"""Claims: at most one run works on a part of a job, and a run that died does not block the next one.

A claim is a folder in `.job/claims`, named after the part, with a file for each process of the run. A prepared folder
is renamed to that name. The rename fails while another folder has the name, on every kind of file system; locks of the
operating system do not work on all of them, and child processes may keep a lock after its owner has died. A run that
takes over a claim moves the folder away. So a process holds its claim if and only if its own file still exists. A
process that was suspended notices the loss because it checks for that file before it renames any file into place.
"""

from __future__ import annotations

import errno
import getpass
import json
import math
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import ClaimError, SdesamplersError
from ..io.files import file_errors, names_in, read
from .argument_names import ARGUMENT_NAMES

Owner = dict[str, Any]

HEARTBEAT = 15.0
"""Seconds between heartbeats, by which processes on other machines see that a run is alive."""
TIMEOUT = 120.0
"""Seconds without a heartbeat after which a process that cannot be inspected from here is assumed dead."""
TRIES = 50
"""Attempts to make a claim while other runs start and end."""
PART = re.compile(r"(\d+)-of-(\d+)")
MEMBER = re.compile(r"\.[0-9a-f]{16}-\d+\.json")
ALIVE, STOPPED, GONE = "alive", "stopped", "gone"
_held: set[str] = set()  # by this process: a claim file that it failed to remove on release must not lock it out


@dataclass(frozen=True)
class Claim:
    """A run's claim on a part of a job, as seen by one of its processes.

    Attributes:
        folder: the claim's folder.
        nonce: random identifier of the run.
        rank: rank of the process.
    """

    folder: Path
    nonce: str
    rank: int = 0

    @property
    def file(self) -> Path:
        """This process's file, which exists as long as the claim holds."""
        return self.folder / f".{self.nonce}-{self.rank}.json"

    @property
    def job(self) -> Path:
        """The job's folder."""
        return self.folder.parents[2]

    def check(self) -> None:
        """Raise if the claim no longer holds.

        Raises:
            ClaimError: another run has taken it over.
            SdesamplersError: the claim's file cannot be read.
        """
        try:
            read(self.file)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR):
                raise ClaimError(self._lost_message()) from None
            raise SdesamplersError(f"{self.file} could not be read: {error.strerror or error}") from None

    @contextmanager
    def joined(self, rank: int) -> Iterator[Claim]:
        """Join the run as one of its processes: send heartbeats inside the context and release the claim at its end.

        Raises:
            ClaimError: another run has taken the claim over already.
        """
        mine, stop = replace(self, rank=rank), threading.Event()
        try:
            if rank:
                mine._write()
                self.check()
            threading.Thread(target=mine._send_heartbeats, args=(stop,), name="sdesamplers-claim", daemon=True).start()
            yield mine
        finally:
            stop.set()
            mine.release()

    def release(self) -> None:
        """Release the claim; the last process of the run removes its folder."""
        _held.discard(self.nonce)
        with suppress(OSError):
            self.file.unlink(missing_ok=True)
        for place in (self.folder, self.folder.parent):
            with suppress(OSError):  # other processes or claims are left
                place.rmdir()

    def _send_heartbeats(self, stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT):
            with suppress(OSError):
                os.utime(self.file)

    def _write(self) -> None:
        _held.add(self.nonce)
        # Computed before the file exists: a file without an owner is cleared only when it is old.
        owner = json.dumps(this_process(self.job)).encode()
        with file_errors(self.file):
            if not linked(self.file, owner):
                with self.file.open("xb", buffering=0) as out:
                    out.write(owner)

    def _lost_message(self) -> str:
        others = [owner for each in members(self.folder) if (owner := read_owner(each)) is not None]
        taker = f" {owner_label(others[0])}" if others else ""
        return (
            f"this run has lost its claim on {self.job}: another run{taker} took it over while this one was suspended "
            "or sent no heartbeats; this run has stopped and changed nothing since"
        )


def linked(file: Path, content: bytes) -> bool:
    """Create a file that appears with its content, so that a kill leaves all of it or nothing.

    Returns False, with nothing created, if the system or the file system has no unnamed files (O_TMPFILE of Linux).
    """
    try:
        handle = os.open(file.parent, os.O_TMPFILE | os.O_WRONLY, 0o666)
    except AttributeError:
        return False
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            return False
        raise
    try:
        os.write(handle, content)
        # src_dir_fd, unused for an absolute path, has Python follow the link in /proc.
        os.link(f"/proc/self/fd/{handle}", file, src_dir_fd=handle, follow_symlinks=True)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP):
            return False
        raise
    finally:
        os.close(handle)
    return True


def acquire(job: Path, part: tuple[int, int], *, overwrite: bool = False) -> Claim:
    """Claim a part of a job for this process and the other processes of its run.

    Args:
        job: the job's folder; its `.job` folder must exist.
        part: (k, n).
        overwrite: claim the whole job, and take it from processes that are suspended.

    Raises:
        ClaimError: another run is working on samples of this part.
    """
    claims = job / ".job" / "claims"
    claim = prepare(claims)
    target = claims / f"{part[0] + 1}-of-{part[1]}"
    try:
        for _ in range(TRIES):
            clear(claims, part, claim, overwrite)
            try:
                os.rename(claim.folder, target)
                break
            except FileExistsError:
                continue
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        claim = replace(claim, folder=target)
        claim.check()
        # A run with another number of parts may have claimed an overlapping part at the same moment.
        clear(claims, part, claim, overwrite)
    except OSError as error:
        claim.release()
        raise SdesamplersError(f"{target} could not be written: {error.strerror or error}") from None
    except BaseException:
        claim.release()
        raise
    return claim


def refuse_if_busy(job: Path, part: tuple[int, int], overwrite: bool) -> None:
    """Raise ClaimError if a process visible from this one is working on samples of this part.

    A cheap check before expensive work; `acquire` also covers processes on other machines.

    Raises:
        ClaimError: another run is working on samples of this part.
    """
    for folder in rivals(job / ".job" / "claims", part, overwrite):
        for file in members(folder):
            owner = read_owner(file)
            if owner is not None and process_state(owner, file, job) in (ALIVE, STOPPED)[: 1 if overwrite else 2]:
                raise ClaimError(
                    busy_message(job, owner, process_state(owner, file, job) or ALIVE), arguments=ARGUMENT_NAMES
                )


def prepare(claims: Path) -> Claim:
    """Create a claim folder that does not have a part's name yet."""
    nonce = os.urandom(8).hex()
    claim = Claim(claims / f".{nonce}", nonce)
    for chance in range(TRIES):
        try:
            claim.folder.mkdir(parents=True)
            claim._write()
            return claim
        except FileExistsError:
            continue
        except OSError as error:
            reason = error.strerror or str(error)
            if isinstance(error, FileNotFoundError) and chance + 1 < TRIES:  # removed by a run that ended
                continue
            claim.release()
            raise SdesamplersError(f"{claim.folder} could not be written: {reason}") from None
        except BaseException:
            claim.release()
            raise
    raise SdesamplersError(f"{claims} could not be written: other runs keep starting and ending")


def clear(claims: Path, part: tuple[int, int], own: Claim, overwrite: bool) -> None:
    """Remove the claims of dead runs.

    Raises:
        ClaimError: a live run is working on samples of this part.
    """
    wanted = set(rivals(claims, part, overwrite))
    for name in names_in(claims):
        folder = claims / name
        with file_errors(folder, "could not be accessed"):
            if own.folder == folder or not folder.is_dir():
                continue
        found, rival = members(folder), folder in wanted
        state, owner = GONE, None
        for file in found:
            owner = read_owner(file)
            state = owner_state(owner, file, own, wait=rival)
            if state != GONE:
                break
        if state == GONE or (state == STOPPED and overwrite and rival):
            remove_dead(folder, found)
        elif rival:
            raise ClaimError(busy_message(own.job, owner, state), arguments=ARGUMENT_NAMES)


def rivals(claims: Path, part: tuple[int, int], overwrite: bool) -> list[Path]:
    """The claims of parts that share samples with this one; with `overwrite`, the claims of all parts.

    Shards k, k + n, ... and j, j + m, ... overlap if and only if k = j modulo gcd(n, m).
    """
    found = []
    for name in names_in(claims):
        if (match := PART.fullmatch(name)) is None:
            continue
        k, n = int(match[1]) - 1, int(match[2])
        if overwrite or (k - part[0]) % math.gcd(n, part[1]) == 0:
            found.append(claims / name)
    return found


def members(folder: Path) -> list[Path]:
    """The process files of a claim."""
    with suppress(SdesamplersError):
        return [folder / name for name in names_in(folder) if MEMBER.fullmatch(name)]
    return []


def remove_dead(folder: Path, found: list[Path]) -> None:
    """Remove a dead claim; if another run has taken it over meanwhile, move it back."""
    if not found:
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > TIMEOUT or PART.fullmatch(folder.name):
                folder.rmdir()  # a folder that is not named after a part may be about to be filled
        return
    away = folder.with_name(f".{os.urandom(8).hex()}")
    try:
        os.rename(folder, away)
    except FileNotFoundError:
        return  # another run has removed it
    except OSError as error:
        raise SdesamplersError(f"{folder} could not be removed: {error.strerror}") from None
    now = members(away)
    if {file.name for file in now} <= {file.name for file in found}:
        with file_errors(away, "could not be removed"):
            for file in now:
                file.unlink(missing_ok=True)
            away.rmdir()
    else:
        with suppress(OSError):
            os.rename(away, folder)


def owner_state(owner: Owner | None, file: Path, own: Claim, *, wait: bool) -> str:
    """ALIVE, STOPPED or GONE: the state of a claim's process, by inspecting it or else by its heartbeats.

    Args:
        owner: the process.
        file: the process's claim file, whose modification time is its last heartbeat.
        own: the caller's claim; touching its file reads the file system's clock, which may differ from the machine's.
        wait: if the process cannot be inspected, wait for a heartbeat until `TIMEOUT`; False counts it as alive.
    """
    if owner is not None and (state := process_state(owner, file, own.job)) is not None:
        return state
    first: float | None = None
    while True:
        try:
            os.utime(own.file)
            now, last = last_modified(own.file), last_modified(file)
        except FileNotFoundError:
            return GONE
        except OSError as error:
            raise SdesamplersError(f"{file} could not be read: {error.strerror}") from None
        if first is not None and last != first:
            return ALIVE
        first = last
        if now - last > TIMEOUT:
            return GONE
        if not wait:
            return ALIVE
        time.sleep(min(1.0, TIMEOUT / 10))


def last_modified(file: Path) -> float:
    """A file's modification time. The file is opened because network file systems then query their server."""
    handle = os.open(file, os.O_RDONLY)
    try:
        return os.fstat(handle).st_mtime
    finally:
        os.close(handle)


# Processes


def this_process(job: Path) -> Owner:
    """The description of this process that its claim file holds."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        user = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
    return {
        "host": socket.gethostname(),
        "user": user,
        "pid": os.getpid(),
        "start": start_of(os.getpid()),
        "world": pid_namespace(),
        "since": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "job": os.path.realpath(job),
        "device": os.stat(job).st_dev,
    }


def read_owner(file: Path) -> Owner | None:
    """The process that a claim file describes; None if the file cannot be read."""
    try:
        owner = json.loads(read(file, 2**16))
        return owner if isinstance(owner, dict) and isinstance(owner["pid"], int) else None
    except (OSError, ValueError, KeyError, RecursionError):
        return None


@cache
def pid_namespace() -> str | None:
    """Boot id and PID namespace: equal for processes that can see each other by PID; None if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        if sys.platform == "linux":  # hidden in this container
            return None
        import psutil  # only jobs need it

        return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def process_state(owner: Owner, file: Path, job: Path) -> str | None:
    """ALIVE, STOPPED or GONE; None if the process cannot be seen from this one."""
    if owner.get("world") is None or owner.get("world") != pid_namespace():
        return None
    with suppress(OSError):
        if owner.get("job") != os.path.realpath(job) and owner.get("device") != os.stat(job).st_dev:
            return GONE  # a copied folder: the process works on the original
    if owner["pid"] == os.getpid():
        return ALIVE if file.name[1:17] in _held and owner.get("start") == start_of(os.getpid()) else GONE
    if owner.get("start") is None or start_of(owner["pid"]) != owner["start"]:
        return GONE
    return state_of(owner["pid"])


def start_of(pid: int) -> float | None:
    """Start time of a process in units of the operating system; None if it does not exist."""
    if (fields := proc_stat(pid)) is not None:
        return float(fields[19])
    if os.path.isdir("/proc/self"):
        return None
    import psutil  # only jobs need it

    with suppress(psutil.Error):
        return round(psutil.Process(pid).create_time(), 2)
    return None


def state_of(pid: int) -> str:
    """ALIVE, STOPPED or GONE for an existing process; a zombie counts as GONE."""
    import psutil  # only jobs need it

    try:
        state = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return GONE
    except psutil.Error:
        return ALIVE
    if state in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
        return GONE
    return STOPPED if state in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP) else ALIVE


def proc_stat(pid: int) -> list[bytes] | None:
    """The fields of Linux's /proc/PID/stat after the name, the state first; None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None


# Messages


def owner_label(owner: Owner) -> str:
    """A process, as messages describe it."""
    return f"(process {owner['pid']} of {owner.get('user')} on {owner.get('host')}, since {owner.get('since')})"


def busy_message(job: Path, owner: Owner | None, state: str) -> str:
    """The message for a run that finds the part claimed."""
    who = "another run" if owner is None else f"another run {owner_label(owner)}"
    if state == STOPPED and owner is not None:
        return (
            f"{job} is in use by {who}, which is suspended: continue it (kill -CONT {owner['pid']}), end it, or take "
            "the folder from it with {overwrite}"
        )
    return f"{job} is in use by {who}; wait until it has ended, or choose another {{out}}"
