"""One run at a time on each part of a job: who has it, who may take it over, and who has lost it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lanes import mostly_slow
from places import SUPPORT
from toy_jobs import content, run, toy, velocity

from sdesamplers.errors import ClaimError, SolverError
from sdesamplers.generation import claims
from sdesamplers.generation.claims import acquire, this_process


def when(call: int, act: Callable[[], Any]) -> Any:
    """A toy that does something before one of its evaluations."""
    calls = itertools.count(1)

    def function(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if next(calls) == call:
            act()
        return velocity(x, t)

    return toy(function)


# Two at once


@pytest.mark.parametrize("words", [{}, {"resume": True}, {"overwrite": True}, {"resume": True, "part": (1, 3)},
                                   {"resume": True, "seed": 6}], ids=str)  # fmt: skip
def test_the_second_says_who_has_it_and_leaves(tmp_path: Path, words: dict[str, Any]) -> None:
    told: list[str] = []

    def second() -> None:
        with pytest.raises(ClaimError) as caught:
            run(tmp_path / "out", **words)
        assert caught.value.exit_code == 1
        told.append(str(caught.value))

    began = time.strftime("%Y-%m-%d", time.gmtime())
    run(tmp_path / "out", when(7, second))
    assert str(tmp_path / "out") in told[0]
    assert f"process {os.getpid()} of " in told[0]
    assert f"since {began}" in told[0]
    run(tmp_path / "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_parts_that_share_no_sample_run_at_once(tmp_path: Path) -> None:
    run(tmp_path / "out", when(3, lambda: run(tmp_path / "out", part=(1, 2), resume=True)), part=(0, 2), resume=True)
    run(tmp_path / "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_parts_cut_otherwise_share_samples_as_arithmetic_says(tmp_path: Path) -> None:
    (tmp_path / ".job").mkdir()
    parts = [(k, n) for n in range(1, 5) for k in range(n)]
    for first, second in itertools.product(parts, parts):
        shared = bool(set(range(first[0], 60, first[1])) & set(range(second[0], 60, second[1])))
        claim = acquire(tmp_path, first)
        try:
            if shared:
                with pytest.raises(ClaimError, match="is in use by another run"):
                    acquire(tmp_path, second)
            else:
                acquire(tmp_path, second).release()
        finally:
            claim.release()
        assert os.listdir(tmp_path / ".job") == []


def test_of_many_at_once_one_has_it(tmp_path: Path) -> None:
    (tmp_path / ".job").mkdir()
    got, start = [], threading.Barrier(12)

    def ask() -> None:
        start.wait()
        try:
            got.append(acquire(tmp_path, (0, 1)))
        except ClaimError:
            pass

    for _ in range(10):
        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
        got[0].check()
        got.pop().release()
        assert os.listdir(tmp_path / ".job") == []


def test_a_failed_run_leaves_no_claim(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("mine")

    for kind in (fail, lambda: sys.exit(3)):
        with pytest.raises((RuntimeError, SolverError)):
            run(tmp_path, when(5, kind), resume=True)
        assert not (tmp_path / ".job/claims").exists()
    assert run(tmp_path, resume=True).manifest is not None


# The dead


@pytest.fixture
def dead() -> Iterator[int]:
    """The number of a process that was killed and that nobody has waited for."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    child.kill()
    while Path(f"/proc/{child.pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z":
        time.sleep(0.01)
    yield child.pid
    child.wait()


def leave(job: Path, part: str = "1-of-1", age: float = 0.0, **facts: Any) -> Path:
    """A claim as another process has left it."""
    folder = job / ".job/claims" / part
    folder.mkdir(parents=True)
    file = folder / ".0123456789abcdef-0.json"
    file.write_text(json.dumps({**this_process(job), **facts}))
    os.utime(file, (time.time() - age,) * 2)
    return file


@pytest.mark.parametrize("way", ["dead", "never", "another began since", "in this process"])
def test_a_dead_runs_claim_is_taken_over_at_once(tmp_path: Path, dead: int, way: str) -> None:
    facts = {
        "dead": {"pid": dead, "start": claims.start_of(dead)},
        "never": {"pid": 2**22 + 1},
        "another began since": {"pid": os.getppid(), "start": -1.0},
        "in this process": {},
    }[way]
    leave(tmp_path, **facts)
    leave(tmp_path, "3-of-7", **facts)
    began = time.perf_counter()
    assert run(tmp_path, resume=True).made == 23
    assert time.perf_counter() - began < claims.TIMEOUT / 4
    assert not (tmp_path / ".job/claims").exists()


def test_a_process_of_another_machine_is_judged_by_its_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "TIMEOUT", 1.0)
    (tmp_path / "x/.job").mkdir(parents=True)
    elsewhere = {"world": "another machine", "host": "far", "pid": 4711}
    leave(tmp_path / "x", age=2.0, **elsewhere)  # long gone
    acquire(tmp_path / "x", (0, 1)).release()
    leave(tmp_path / "x", **elsewhere)  # has just died
    began = time.perf_counter()
    acquire(tmp_path / "x", (0, 1)).release()
    assert time.perf_counter() - began > 0.5
    file, over = leave(tmp_path / "x", **elsewhere), threading.Event()

    def live() -> None:
        while not over.wait(0.2):
            os.utime(file)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(ClaimError, match=r"process 4711 of .* on far"):
            acquire(tmp_path / "x", (0, 1))
    finally:
        over.set()
        thread.join()


def test_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT", 0.05)
    times = []

    def look() -> None:
        (file,) = (tmp_path / ".job/claims/1-of-1").iterdir()
        os.utime(file, (1.0, 1.0))
        time.sleep(0.5)
        times.append(file.stat().st_mtime)

    run(tmp_path, when(3, look))
    assert times[0] > 1.0


def test_a_claim_that_cannot_be_read_is_held_until_it_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "TIMEOUT", 0.1)
    for text in ("", "{", "[]", '{"pid": "x"}', "[" * 10_000):
        leave(tmp_path).write_text(text)
        acquire(tmp_path, (0, 1)).release()


@pytest.mark.parametrize("moment", ["this_process", "write", "link"])
def test_a_run_killed_while_it_writes_its_claim_leaves_no_file(tmp_path: Path, moment: str) -> None:
    """A file without an owner would be held for two minutes, and would outlive the job."""
    child = os.fork()
    if not child:
        setattr(
            claims if moment == "this_process" else os,
            moment,
            lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL),
        )
        run(tmp_path)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [path for path in (tmp_path / ".job/claims").rglob("*") if path.is_file()] == []


def test_a_copy_of_a_folder_is_not_held(tmp_path: Path) -> None:
    """As of an image of the disk, taken while the run goes on."""
    other = Path("/dev/shm") / f"copy-{os.getpid()}"
    if not os.access("/dev/shm", os.W_OK) or os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("there is no second file system here")
    try:
        run(tmp_path, when(7, lambda: shutil.copytree(tmp_path, other, copy_function=copy_of)))
        assert run(other, resume=True).manifest is not None
        assert content(other) == content(tmp_path)
    finally:
        shutil.rmtree(other, ignore_errors=True)


def copy_of(file: str, to: str) -> None:
    """A copy, unless the writer has given the file its name meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(file, to)


# The stopped

STOPPED = """
import sys
from pathlib import Path
import sdesamplers as sds
sys.path.insert(0, {support!r})
from toy_jobs import JOB, toy, velocity
import itertools, os, signal
calls = itertools.count(1)
def function(x, t):
    if next(calls) == 9:
        os.kill(os.getpid(), signal.SIGSTOP)
    return velocity(x, t)
try:
    sds.generate(toy(function), "euler-maruyama", out=sys.argv[1], formats=("safetensors", "png"), **JOB)
except sds.errors.ClaimError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def stopped(out: Path) -> subprocess.Popen[str]:
    """A run that has stopped itself in the middle of the job."""
    script = STOPPED.format(support=str(SUPPORT))
    child = subprocess.Popen([sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE, text=True)
    assert os.WIFSTOPPED(os.waitpid(child.pid, os.WUNTRACED)[1])
    return child


@pytest.mark.slow
def test_a_stopped_run_finds_that_it_has_lost_its_claim(tmp_path: Path) -> None:
    out, formats = tmp_path / "out", ("safetensors", "png")
    child = stopped(out)
    try:
        with pytest.raises(ClaimError, match=rf"process {child.pid} of .* is suspended: .*overwrite=True"):
            run(out, formats=formats, resume=True)
        run(out, formats=formats, overwrite=True, seed=6)
        made = content(out)
        child.send_signal(signal.SIGCONT)
        said = child.communicate(timeout=120)[0]
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 1
    assert "has lost its claim" in said
    assert content(out) == made
    run(tmp_path / "whole", formats=formats, seed=6)
    assert content(tmp_path / "whole") == made


@pytest.mark.parametrize("moment", mostly_slow(["os.replace", "os.fsync", "os.open", "os.unlink"], keep=["os.unlink"]))
def test_whoever_is_taken_over_at_any_moment_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Another run, that overwrites, comes just before the k-th call of the operating system, for every k."""
    real = getattr(os, moment.partition(".")[2])
    run(tmp_path / "whole", formats=("png",), num_samples=6, seed=6)
    whole = content(tmp_path / "whole")
    for k in itertools.count(1):
        out, calls, busy = tmp_path / f"out-{k}", itertools.count(1), threading.Lock()

        def call(*given: Any, out: Path = out, calls: Any = calls, k: int = k, busy: Any = busy, **words: Any) -> Any:
            inside = str(out) in str(given[0]) or isinstance(given[0], int)
            if inside and (out / ".job/job.json").exists() and not busy.locked() and next(calls) == k:
                with busy, monkeypatch.context() as patch:
                    patch.setattr(claims, "_held", set())  # what held the claim is as good as dead
                    patch.setattr(claims, "process_state", lambda owner, file, job: claims.STOPPED)
                    run(out, formats=("png",), num_samples=6, seed=6, overwrite=True)
            return real(*given, **words)

        monkeypatch.setattr(os, moment.partition(".")[2], call)
        try:
            run(out, formats=("png",), num_samples=6)
        except ClaimError as error:
            assert "has lost its claim" in str(error)  # noqa: PT017
            assert content(out) == whole, k
        else:
            if next(calls) <= k:
                break  # it was never called that often
            assert content(out) == whole, k
        finally:
            monkeypatch.setattr(os, moment.partition(".")[2], real)
    assert k > 3
