"""What disks, users and power cuts do to a job's folder: nothing finished is lost, nothing of others' is replaced."""

from __future__ import annotations

import errno
import hashlib
import importlib
import itertools
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import forked
from toy_jobs import content, toy, velocity

import sdesamplers as sds
from sdesamplers.cli import main
from sdesamplers.errors import Cancelled, SdesamplersError, UsageError
from sdesamplers.generation import claims
from sdesamplers.generation.job import JobFolder
from sdesamplers.io import files

ALL = ("safetensors", "png", "webdataset", "grid")
JOB: dict[str, Any] = {"steps": 2, "num_samples": 11, "batch_size": 3, "shard_size": 6, "seed": 5, "formats": ALL}


def run(out: Path, model: Any = None, sampler: Any = "euler-maruyama", **words: Any) -> sds.Generated:
    return sds.generate(model or toy(), sampler, out=out, **{**JOB, **words})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job, made without a break."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A finished job of one's own."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def stop_after(folder: Path, calls: int, **words: Any) -> None:
    """The job, stopped after so many evaluations."""
    stop, count = threading.Event(), itertools.count(1)

    def function(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if next(count) == calls:
            stop.set()
        return velocity(x, t)

    with pytest.raises(Cancelled):
        run(folder, toy(function), cancel=stop, **words)


# Files of others


STRAY = [".DS_Store", "._00000.json", ".nfs000000000123abcd00000001", "README", "README.md", "Thumbs.db", "a.json",
         "00000.json.bak", "-1.json", "00000-x.safetensors", ".hidden.json", "ünï.txt", "00000.begun~",
         "job-notes.json", os.fsdecode(b"\xff\xfe")]  # fmt: skip


def test_foreign_files_beside_the_records_stay(copy: Path, whole: Path) -> None:
    places = [".", ".job", ".job/records", ".job/batches"]
    strays = [copy / place / name for place in places for name in STRAY]
    for file in strays:
        file.write_bytes(b"mine")
    (copy / ".job/records/folder").mkdir()
    (copy / ".job/records/.00001.json.abcdefgh.json").mkdir()
    shutil.rmtree(copy / ".job/progress", ignore_errors=True)
    (copy / "samples-00000-of-00002.safetensors").unlink()
    assert run(copy, resume=True).made == 6
    assert {k: v for k, v in content(copy).items() if v != b"mine"} == content(whole)
    run(copy, overwrite=True, seed=6)
    assert all(file.read_bytes() == b"mine" for file in strays)
    assert json.loads((copy / "manifest.json").read_text())["seed"] == 6


OWN = ("manifest.json", "grid.png", "samples.safetensors", "sample-000003.png", "samples.tar")


@pytest.mark.parametrize("words", [{}, {"resume": True}, {"overwrite": True}], ids=str)
@pytest.mark.parametrize("name", OWN)
def test_a_users_own_file_is_not_replaced(tmp_path: Path, name: str, words: dict[str, Any]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(b"mine")
    with pytest.raises(UsageError, match=rf"{out} holds {name}, .*: move it away, or choose another out="):
        run(out, shard_size=12, **words)
    assert content(out) == {name: b"mine"}
    assert os.listdir(out) == [name]
    (out / name).rename(tmp_path / name)
    assert run(out, shard_size=12, **words).manifest is not None


def test_a_users_link_and_folder_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    for make in (lambda path: path.symlink_to(tmp_path / "mine"), Path.mkdir, lambda path: path.symlink_to("nowhere")):
        out = tmp_path / "out"
        out.mkdir()
        make(out / "grid.png")
        with pytest.raises(UsageError, match=r"holds grid\.png"):
            run(out, shard_size=12)
        shutil.rmtree(out)
    assert (tmp_path / "mine").read_bytes() == b"mine"


def test_what_a_user_puts_there_while_the_job_waits_is_not_replaced(tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "out"
    stop_after(out, 5)
    for name in ("grid-00001-of-00002.png", "manifest.json"):
        (out / name).write_bytes(b"mine")
        with pytest.raises(SdesamplersError, match=rf"{name} does not belong to this job.*move it away"):
            run(out, resume=True)
        assert (out / name).read_bytes() == b"mine"
        (out / name).unlink()
    run(out, resume=True)
    assert content(out) == content(whole)


def test_another_machines_rounding_replaces_what_a_kill_left(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files without a record are the job's if it had noted that it was about to name them."""
    with monkeypatch.context() as patch:
        patch.setattr(JobFolder, "finish", lambda *_: (_ for _ in ()).throw(SdesamplersError("power")))
        with pytest.raises(SdesamplersError, match="power"):
            run(tmp_path, toy(lambda x, t: velocity(x, t) * (1 + 1e-6)))
    assert (tmp_path / "grid-00000-of-00002.png").exists()
    assert not list((tmp_path / ".job/records").iterdir())
    for file in (tmp_path / ".job/batches").glob("*.safetensors"):
        file.unlink()
    run(tmp_path, resume=True)
    assert content(tmp_path) == content(whole)


# Damage


def flip(path: Path, at: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "bit": flip,
    "first bit": lambda path: flip(path, 0),
    "half": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "zeros": lambda path: path.write_bytes(bytes(len(path.read_bytes()))),
    "brackets": lambda path: path.write_bytes(b"[" * 100_000),
    "another kind": lambda path: path.write_text("[]"),
    "object": lambda path: path.write_text("{}"),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
}


STEPS = ("finished", "no manifest", "half", "a batch", "png alone")
QUICK = (("finished", "bit"), ("half", "empty"), ("a batch", "half"), ("png alone", "gone"), ("no manifest", "pipe"))


@pytest.mark.parametrize(
    ("step", "damage"),
    [*QUICK, *(pytest.param(*each, marks=pytest.mark.slow) for each in itertools.product(STEPS, DAMAGE)
               if each not in QUICK)],
)  # fmt: skip
def test_a_damaged_job_file_loses_no_finished_sample(
    tmp_path: Path, whole: Path, copy: Path, damage: str, step: str
) -> None:
    words: dict[str, Any] = {}
    if step == "png alone":
        words = {"formats": ("png",)}
        shutil.rmtree(copy)
        run(copy, **words)
    elif step in ("half", "a batch"):
        shutil.rmtree(copy)
        stop_after(copy, 6 if step == "half" else 3)
    elif step == "no manifest":
        (copy / "manifest.json").unlink()
    before = content(copy)
    made = {"half": 11 - 6 - 3, "a batch": 11 - 3}.get(step, 0)
    if step == "half":
        made = 11 - 9 if len(list((copy / ".job/batches").iterdir())) else 11 - 6
    file = copy / ".job/job.json"
    DAMAGE[damage](file)
    if damage in ("pipe", "device"):
        with pytest.raises(SdesamplersError, match=r"job\.json cannot be read: not a regular file; .*move it away"):
            run(copy, resume=True, **words)
        file.unlink()
    with pytest.raises(
        UsageError, match=r"already holds this job, .*: continue with resume=True, or start over with overwrite=True"
    ):
        run(copy, **words)
    with pytest.raises(UsageError, match="another job: seed is 5 there and 6 here"):
        run(copy, resume=True, **{**words, "seed": 6})
    assert {k: v for k, v in content(copy).items() if k != ".job/job.json"} == {
        k: v for k, v in before.items() if k != ".job/job.json"
    }
    assert run(copy, resume=True, batch_size=None, shard_size=None, **words).made == made
    if step != "png alone":
        assert content(copy) == content(whole)
    assert content(copy)[".job/job.json"] == before[".job/job.json"]


def test_a_damaged_job_file_and_no_record(copy: Path, whole: Path) -> None:
    (copy / ".job/job.json").write_bytes(b"")
    shutil.rmtree(copy / ".job/records")
    (copy / "manifest.json").unlink()
    assert run(copy, resume=True).made == 11  # by the files of samples, which are compared and found to be the same
    assert content(copy) == content(whole)


def test_nothing_tells_whose_files_they_are(tmp_path: Path) -> None:
    run(tmp_path, formats=("png",))
    (tmp_path / ".job/job.json").write_bytes(b"")
    shutil.rmtree(tmp_path / ".job/records")
    (tmp_path / "manifest.json").unlink()
    pictures = {k: v for k, v in content(tmp_path).items() if k.endswith(".png")}
    for words in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UsageError, match=r"holds sample-000000\.png, .*: move it away, or choose another out="):
            run(tmp_path, formats=("png",), **words)
        assert {k: v for k, v in content(tmp_path).items() if k.endswith(".png")} == pictures


@pytest.mark.parametrize("damage", ["empty", "bit", "gone", "pipe"])
def test_overwriting_a_damaged_job(copy: Path, tmp_path: Path, damage: str) -> None:
    (copy / "notes.txt").write_text("mine")
    DAMAGE[damage](copy / ".job/job.json")
    if damage in ("pipe", "device"):
        (copy / ".job/job.json").unlink()
    run(copy, overwrite=True, seed=6, num_samples=2, formats=("png",))
    run(tmp_path / "fresh", seed=6, num_samples=2, formats=("png",))
    assert content(copy) == {**content(tmp_path / "fresh"), "notes.txt": b"mine"}


@pytest.mark.parametrize("name", ["seed", "first_index", "layout", "sampler"])
def test_a_flipped_bit_in_the_jobs_own_file(copy: Path, whole: Path, name: str) -> None:
    """Which was taken for another job, or worse, for this one."""
    text = (copy / ".job/job.json").read_bytes()
    at = text.index(f'"{name}"'.encode()) + len(name) + 4
    for bit in range(4):
        flip(copy / ".job/job.json", at + bit // 2)
        assert run(copy, resume=True).made == 0
        assert content(copy) == content(whole)


def test_checksums_are_of_what_was_meant(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that changes a bit of a picture, and of a file of samples, as it is written."""
    write, spoilt = os.write, []

    def bad(handle: int, data: Any) -> int:
        name = os.readlink(f"/proc/self/fd/{handle}").rpartition("/")[2]
        if name.startswith((".sample-000002", ".samples-00001")) and name not in spoilt:
            spoilt.append(name)
            changed = bytearray(data)
            changed[len(changed) // 2] ^= 4
            return write(handle, changed)
        return write(handle, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", bad)
        run(tmp_path)
    assert len(spoilt) == 3
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    sums = {shard["files"]["safetensors"]["name"]: shard["files"]["safetensors"]["sha256"] for shard in
            manifest["shards"]}  # fmt: skip
    for name, meant in sums.items():
        assert meant == hashlib.sha256((whole / name).read_bytes()).hexdigest()
    name = "samples-00001-of-00002.safetensors"
    assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() != sums[name]
    assert run(tmp_path, resume=True).made == 11
    assert content(tmp_path) == content(whole)


# Identity

PLUGIN = '''
from sdesamplers import hookimpl, sampler
import helper_{n}

FACTOR = 1.0

def slope(prediction):
    return FACTOR * prediction.velocity

@sampler("edited-{n}", order=1)
def edited(x, path, *, scale: float = 1.0, table: str = ""):
    """Euler's method."""
    for now, then in path.steps:
        x = x + scale * helper_{n}.same(then.time - now.time) * slope((yield x, now))
    return x

@hookimpl
def sdesamplers_samplers():
    return [edited]
'''
HELPER = "def same(h):\n    return h\n"
EDITS: dict[str, tuple[str, str, str, bool]] = {
    "the function": ("plugin", "x + scale", "x + 0.5 * scale", True),
    "a function beside it": ("plugin", "return FACTOR *", "return 2 * FACTOR *", True),
    "a number beside it": ("plugin", "FACTOR = 1.0", "FACTOR = 1.5", True),
    "a module that it imports": ("helper", "return h", "return 2 * h", True),
    "a comment": ("plugin", "FACTOR = 1.0", "FACTOR = 1.0  # one", False),
    "a docstring": ("plugin", "Euler's method", "Euler (1768)", False),
    "layout": ("plugin", "    return FACTOR *", "\n\n    return  FACTOR *", False),
    "what it does not use": ("helper", "def same", "def other(h):\n    return 3\n\ndef same", False),
}


def edited_job(folder: Path, name: str, resume: bool) -> str:
    """What comes of the job of a plugin in a folder. For a process of its own, that has not imported the plugin."""
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    plugin = importlib.import_module(name)
    words: dict[str, Any] = {"steps": 2, "num_samples": 4, "batch_size": 2, "out": folder / "out", "resume": resume}
    model = sds.FunctionModel(lambda x, t: -x, sds.RectifiedFlow(), "flow", (2,), name="toy")
    try:
        return f"made {sds.generate(model, plugin.edited, **words).made}"
    except UsageError as error:
        return str(error)


@pytest.mark.parametrize("edit", ["a function beside it", "a module that it imports", "a comment", *(
    pytest.param(edit, marks=pytest.mark.slow) for edit in EDITS)])  # fmt: skip
def test_the_samplers_own_code_is_part_of_the_job(tmp_path: Path, edit: str) -> None:
    n = list(EDITS).index(edit)
    places = {"plugin": tmp_path / f"plugin_{n}.py", "helper": tmp_path / f"helper_{n}.py"}
    texts = {"plugin": PLUGIN.replace("{n}", str(n)), "helper": HELPER}

    def once(*more: str) -> str:
        for name, place in places.items():
            place.write_text(texts[name])
        return forked(lambda: edited_job(tmp_path, f"plugin_{n}", resume=bool(more)))

    assert once() == "made 4"
    where, old, new, matters = EDITS[edit]
    assert old in texts[where]
    texts[where] = texts[where].replace(old, new)
    said = once("resume")
    assert ("another job: code.sampler is" in said) if matters else said == "made 0"


def test_files_that_options_name_are_part_of_the_job(tmp_path: Path) -> None:
    @sds.sampler("tabled", order=1)
    def tabled(x: Any, path: Any, *, table: str = "", mode: str | None = None) -> Any:
        """Euler's method."""
        for now, then in path.steps:
            x = x + (then.time - now.time) * (yield x, now).velocity
        return x

    table = tmp_path / "table.bin"
    table.write_bytes(b"1")
    words: dict[str, Any] = {"sampler": tabled, "table": str(table), "mode": "zero"}
    run(tmp_path / "out", **words)
    facts = json.loads((tmp_path / "out/manifest.json").read_text())
    assert facts["files"] == {"table": hashlib.sha256(b"1").hexdigest()}
    assert run(tmp_path / "out", resume=True, **words).made == 0
    table.write_bytes(b"2")
    with pytest.raises(UsageError, match=r"another job: files\.table is"):
        run(tmp_path / "out", resume=True, **words)


# I/O errors

CALLS = ("open", "write", "fsync", "close", "replace", "rename", "unlink", "listdir", "stat", "lstat", "mkdir", "rmdir",
         "link", "utime", "fstat")  # fmt: skip


class Fault:
    """An I/O error of one kind of call of the operating system, the k-th that concerns a folder."""

    def __init__(self, patch: pytest.MonkeyPatch, name: str, folder: Path, at: int, code: int = errno.EIO) -> None:
        self.real, self.folder, self.at, self.code, self.count = getattr(os, name), str(folder), at, code, 0
        patch.setattr(os, name, self)
        self.close = name == "close"

    def __call__(self, *given: Any, **words: Any) -> Any:
        if self.concerns(given[0] if given else "."):
            self.count += 1
            if self.count == self.at:
                if self.close:
                    self.real(*given)  # as Linux does: it is closed, and the error is of what was written before
                raise OSError(self.code, os.strerror(self.code), str(given[0]))
        return self.real(*given, **words)

    def concerns(self, what: Any) -> bool:
        if isinstance(what, int):
            try:
                return os.readlink(f"/proc/self/fd/{what}").startswith(self.folder)
            except OSError:
                return False
        return os.fsdecode(what).startswith(self.folder)


SMALL: dict[str, Any] = {"num_samples": 5, "batch_size": 2, "shard_size": 4, "formats": ("png", "safetensors")}


def every_fault(tmp_path: Path, name: str, patch: pytest.MonkeyPatch, every: int, prepare: Any, **words: Any) -> int:
    """Errors at the k-th call, for each k; returns how many calls there are."""
    run(tmp_path / "whole", **SMALL)
    whole = content(tmp_path / "whole")
    for k in itertools.count(1, every):
        out = tmp_path / f"out-{k}"
        prepare(out)
        with patch.context() as local:
            fault = Fault(local, name, out, k)
            try:
                done = run(out, **SMALL, **words)
                assert done.manifest is not None
            except SdesamplersError as error:
                assert error.__class__ in (SdesamplersError, UsageError)  # noqa: PT017
                assert "\n" not in str(error)  # noqa: PT017
                assert os.strerror(errno.EIO) in str(error)  # noqa: PT017
        if fault.count < k:
            return k
        found = content(out) if out.exists() else {}
        for place, data in found.items():  # a name is whole
            if place in whole and place.endswith((".png", ".safetensors")):
                assert data == whole[place], (k, place)
        run(out, **SMALL, resume=True)
        assert content(out) == whole, (k, set(content(out)) ^ set(whole))
    raise AssertionError


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_an_io_error_in_any_call(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    every_fault(tmp_path, name, monkeypatch, 1, lambda out: None)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_an_io_error_in_any_call_of_a_resumed_job(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(out: Path) -> None:
        stop_after(out, 3, **SMALL)

    every_fault(tmp_path, name, monkeypatch, 1, prepare, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_an_io_error_in_any_call_of_an_overwritten_job(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    every_fault(tmp_path, name, monkeypatch, 1, lambda out: run(out, **SMALL), overwrite=True)


@pytest.mark.parametrize("name", ["write", "fsync", "close", "unlink", "listdir", "lstat"])
def test_an_io_error_in_some_calls(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert every_fault(tmp_path, name, monkeypatch, 7, lambda out: None) > 7


def test_an_io_error_is_one_line_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(errno.EIO, os.strerror(errno.EIO))))
    with pytest.raises(SystemExit) as caught:
        main(["sample", "fashion-mnist", "--sampler", "ddim", "--steps", "1", "-n", "1", "--quiet",
              "--out", str(tmp_path / "out")])  # fmt: skip
    assert caught.value.code == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert "could not be written: Input/output error" in told.err


# Modes of files


def test_the_umask_is_never_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", lambda mask: pytest.fail("another thread's files have no mask meanwhile"))
            run(tmp_path)
            files.write(tmp_path / "text", "text")
            files.write(tmp_path / "own", lambda path: path.write_text("x"))
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o640}


# Power cuts


class Disk:
    """What a disk holds after a power cut: a record of calls, and what each leaves if only synced things are sure.

    A file's bytes are sure once it was synced, a name once its folder was. What is not sure may be there or not, by a
    choice, each for itself, but names of one folder change in order. A name may outlive its file's bytes: it is empty
    then, or half.
    """

    def __init__(self, patch: pytest.MonkeyPatch, root: Path) -> None:
        self.root, self.log = root, list[tuple[Any, ...]]()
        self.inodes: dict[str, int] = {}
        self.handles: dict[int, str] = {}
        self.lock, self.fresh = threading.RLock(), itertools.count(1)
        real = {name: getattr(os, name) for name in ("open", "write", "fsync", "close", "replace", "link", "unlink")}
        real |= {name: getattr(os, name) for name in ("mkdir", "rename", "rmdir")}

        def open_(path: Any, flags: int, *more: Any, **words: Any) -> int:
            with self.lock:
                handle = real["open"](path, flags, *more, **words)
                place = os.fspath(path)
                if self.inside(place):
                    self.handles[handle] = place
                    if flags & os.O_CREAT and place not in self.inodes:
                        self.note("create", place, next(self.fresh))
                        self.inodes[place] = self.log[-1][2]
                return handle

        def write(handle: int, data: Any) -> int:
            with self.lock:
                if handle in self.handles:
                    self.note("write", self.inodes[self.handles[handle]], bytes(data))
                return real["write"](handle, data)

        def fsync(handle: int) -> None:
            with self.lock:
                place = self.handles.get(handle)
                if place is None:
                    real["fsync"](handle)
                elif os.path.isdir(place):
                    self.note("sync names", place)
                else:
                    self.note("sync bytes", self.inodes[place])

        def close(handle: int) -> None:
            with self.lock:
                self.handles.pop(handle, None)
                real["close"](handle)

        def move(name: str) -> Callable[..., None]:
            def moved(old: Any, new: Any, **words: Any) -> None:
                with self.lock:
                    real[name](old, new, **words)
                    first, second = os.fspath(old), os.fspath(new)
                    if self.inside(second):
                        if os.path.isdir(second):
                            for place in [p for p in self.inodes if p.startswith(first + "/")]:
                                self.inodes[second + place[len(first) :]] = self.inodes.pop(place)
                            return  # claims, which no power cut matters to
                        inode = self.inodes[first] if name == "link" else self.inodes.pop(first)
                        self.inodes[second] = inode
                        self.note("link" if name == "link" else "move", first, second, inode)

            return moved

        def unlink(path: Any, **words: Any) -> None:
            with self.lock:
                real["unlink"](path, **words)
                if self.inside(os.fspath(path)):
                    self.inodes.pop(os.fspath(path), None)
                    self.note("remove", os.fspath(path))

        def mkdir(path: Any, *more: Any, **words: Any) -> None:
            with self.lock:
                real["mkdir"](path, *more, **words)
                if self.inside(os.fspath(path)):
                    self.note("folder", os.fspath(path))

        ours = {"open": open_, "write": write, "fsync": fsync, "close": close, "replace": move("replace")}
        ours |= {"rename": move("rename"), "link": move("link"), "unlink": unlink, "mkdir": mkdir}
        for name, function in ours.items():
            patch.setattr(os, name, function)

    def inside(self, place: str) -> bool:
        return place.startswith(str(self.root)) and "/progress" not in place and "/claims" not in place

    def note(self, *what: Any) -> None:
        self.log.append(what)

    def after(self, cut: int, out: Path, chance: random.Random, luck: float) -> None:
        """Make what is there if the power goes after so many calls; `luck`: how likely what is not sure is there."""
        bytes_, sure = dict[int, bytes](), dict[int, int]()
        waiting: dict[str, list[tuple[Any, ...]]] = {}
        names: dict[str, int] = {}
        folders = {str(self.root)}

        def do(what: tuple[Any, ...]) -> None:
            if what[0] == "create":
                names[what[1]] = what[2]
            elif what[0] == "link":
                names[what[2]] = what[3]
            elif what[0] == "move":
                names.pop(what[1], None)
                names[what[2]] = what[3]
            elif what[0] == "remove":
                names.pop(what[1], None)
            else:
                folders.add(what[1])

        for what in self.log[:cut]:
            if what[0] == "write":
                bytes_[what[1]] = bytes_.get(what[1], b"") + what[2]
            elif what[0] == "sync bytes":
                sure[what[1]] = len(bytes_.get(what[1], b""))
            elif what[0] == "sync names":
                for each in waiting.pop(what[1], []):
                    do(each)
            else:
                waiting.setdefault(os.path.dirname(what[1]), []).append(what)
        for listed in waiting.values():
            for each in listed[: sum(1 for _ in itertools.takewhile(lambda _: chance.random() < luck, listed))]:
                do(each)
        for folder in sorted(folders):
            (out / os.path.relpath(folder, self.root)).mkdir(parents=True, exist_ok=True)
        for place, inode in names.items():
            if os.path.dirname(place) in folders:
                data = bytes_.get(inode, b"")
                rest = sure.get(inode, 0)
                if chance.random() >= luck / 2:
                    data = data[: rest + int((len(data) - rest) * chance.choice((0, 0, 0.5)))]
                (out / os.path.relpath(place, self.root)).write_bytes(data)


def cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, lucks: tuple[float, ...]) -> int:
    """Power cuts after every so many calls of a job; returns how many there were."""
    words: dict[str, Any] = {"num_samples": 8, "batch_size": 2, "shard_size": 4, "formats": ("png", "safetensors")}
    root = tmp_path / "job"
    with monkeypatch.context() as patch:
        disk = Disk(patch, root)
        run(root, **words)
    whole, count = content(root), 0
    assert len(disk.log) > 80
    for cut, luck in itertools.product(range(0, len(disk.log) + 1, every), lucks):
        out = tmp_path / "after"
        disk.after(cut, out, random.Random(cut), luck)
        for name, data in content(out).items():
            if name in whole:
                assert data == whole[name], f"{name} is not whole after {cut} calls"
        done = [name for name in content(out) if ".job/records/0" in name]
        made = run(out, resume=True, **words).made
        assert made <= 8 - 4 * len(done)
        assert content(out) == whole, cut
        disk.after(cut, tmp_path / "again", random.Random(cut), luck)
        run(tmp_path / "again", overwrite=True, **words)
        assert content(tmp_path / "again") == whole, cut
        shutil.rmtree(out)
        shutil.rmtree(tmp_path / "again")
        count += 1
    return count


def test_a_few_power_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuts(tmp_path, monkeypatch, 39, (0.0, 0.8)) >= 6


@pytest.mark.slow
def test_power_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuts(tmp_path, monkeypatch, 19, (0.0, 0.8)) >= 10


@pytest.mark.slow
def test_many_power_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuts(tmp_path, monkeypatch, 1, (0.0, 0.5, 0.95)) > 240


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[tuple[Path, Path, Callable[[Path, Path], Any]]]:
    """A mounted ext4 file system that orders nothing by itself, its image, and how to mount a copy of one."""
    image, place, mounted = tmp_path / "image", tmp_path / "disk", list[Path]()

    def mount(image: Path, place: Path) -> bool:
        place.mkdir(exist_ok=True)
        command = ["mount", "-o", "loop,noauto_da_alloc,commit=1", str(image), str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return False
        mounted.append(place)
        return True

    try:
        with image.open("wb") as file:
            file.truncate(8 * 2**20)
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no mkfs.ext4 here")
    if not mount(image, place):
        pytest.skip("mounting an image as a loop device is not allowed here (it takes root, and /dev/loop-control)")
    try:
        yield image, place, mount
    finally:
        for each in mounted:
            subprocess.run(["umount", str(each)], check=False, capture_output=True)


def copy_of_one_moment(image: Path) -> bytes | None:
    """The image's bytes at one moment, if it stays the same for two readings within 20.

    A single reading mixes moments: blocks of data read before a file was written, its directory's after.
    """
    before = image.read_bytes()
    for _ in range(20):
        after = image.read_bytes()
        if after == before:
            return after
        before = after
    return None


@pytest.mark.slow
def test_images_of_a_mounted_file_system(tmp_path: Path, ext4: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of one moment of a job's image is what a power cut would leave; nothing that was finished is lost."""
    image, place, mount = ext4
    words: dict[str, Any] = {"num_samples": 200, "batch_size": 5, "shard_size": 10, "formats": ("png", "safetensors")}
    run(tmp_path / "whole", **words)
    whole, chance, found = content(tmp_path / "whole"), random.Random(3), list[int]()
    copies, over = list[Path](), threading.Event()
    recorded = list[int]()

    def copy_at_random_moments() -> None:
        while not over.wait(chance.uniform(0, 0.25)) and len(copies) < 24:
            before = len(list((place / "job/.job/records").glob("0*.json")))
            if (copy := copy_of_one_moment(image)) is not None:
                copies.append(tmp_path / f"copy-{len(copies)}")
                copies[-1].write_bytes(copy)
                recorded.append(before)

    thread = threading.Thread(target=copy_at_random_moments)
    thread.start()
    run(place / "job", toy(lambda x, t: (time.sleep(0.05), velocity(x, t))[1]), **words)
    over.set()
    thread.join()
    assert len(copies) >= 8
    monkeypatch.setattr(claims, "TIMEOUT", 1.0)  # a claim is not synced: its file may be empty in a copy
    for number, copy in enumerate(copies):
        where = tmp_path / f"disk-{number}"
        assert mount(copy, where)
        for name, data in content(where / "job").items() if (where / "job").exists() else ():
            if name in whole:
                assert data == whole[name], f"{name} is not whole in image {number}"
        made = run(where / "job", resume=True, **words).made
        # What was recorded before the copy was begun; the last record is visible before it is synced.
        assert made <= 200 - 10 * max(recorded[number] - 1, 0)
        assert content(where / "job") == whole
        found.append(made)
    assert len(set(found)) > 3


# Fuzzing


def mutate(folder: Path, chance: random.Random) -> str:
    """Damage a job's folder in one way; returns which."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    path = chance.choice(paths)
    inside = [*sorted(path for path in folder.rglob("*") if path.is_dir()), folder]
    own = [path for path in paths if ".job" in path.parts]
    kinds: dict[str, Callable[[], Any]] = {
        "flip": lambda: path.stat().st_size and flip(path, chance.randrange(path.stat().st_size)),
        "cut": lambda: os.truncate(path, chance.randint(0, path.stat().st_size)),
        "remove": path.unlink,
        "bytes": lambda: path.write_bytes(chance.randbytes(chance.randint(0, 300))),
        "own": lambda: flip(chance.choice(own)) if own else None,
        "json": lambda: path.write_text(
            chance.choice(["{}", "[]", "null", "1e999", '{"job": {}, "sha256": ""}', "NaN"])
        ),
        "deep": lambda: path.write_bytes(b'{"job":' + b"[" * 50_000),
        "swap": lambda: path.replace(chance.choice(paths)),
        "copy": lambda: shutil.copy(path, chance.choice(inside) / chance.choice(STRAY)),
        "stray": lambda: (chance.choice(inside) / chance.choice(STRAY)).write_bytes(chance.randbytes(20)),
        "folder": lambda: (path.unlink(), path.mkdir()),
        "pipe": lambda: (path.unlink(), os.mkfifo(path)),
        "link": lambda: (path.unlink(), path.symlink_to(chance.choice(["nowhere", "/dev/zero", "/etc/hostname", "."]))),
        "huge": lambda: os.truncate(path, 2**33),
        "half": lambda: (path.parent / f".{path.name}.abcdefgh{path.suffix}").write_bytes(b"half"),
        "claim": lambda: stale_claim(folder, chance),
        "drop": lambda: shutil.rmtree(chance.choice(inside[:-1]), ignore_errors=True) if inside[:-1] else None,
    }
    kind = chance.choice(list(kinds))
    kinds[kind]()
    return f"{kind} {path.relative_to(folder)}"


def stale_claim(folder: Path, chance: random.Random) -> None:
    """A claim of a process that is gone, or one that makes no sense."""
    place = folder / ".job/claims" / chance.choice(["1-of-1", "2-of-3", "x", ".0123456789abcdef"])
    place.mkdir(parents=True, exist_ok=True)
    text = chance.choice(["", "{}", '{"pid": 1}', '{"pid": "x"}', "[" * 50_000])
    file = place / chance.choice([".0123456789abcdef-0.json", "README", ".DS_Store"])
    file.write_text(text)
    os.utime(file, (1.0, 1.0))


def fuzz(tmp_path: Path, seed: int, rounds: int) -> dict[str, int]:
    """Damaged folders, resumed, begun and overwritten: done or refused in one line, and what was whole is kept."""
    run(tmp_path / "whole")
    whole, chance, ends = content(tmp_path / "whole"), random.Random(seed), {"done": 0, "refused": 0}
    for number in range(rounds):
        out = tmp_path / f"job-{number}"
        if chance.random() < 0.5:
            shutil.copytree(tmp_path / "whole", out)
        else:
            stop_after(out, chance.randint(3, 7))
        story = [mutate(out, chance) for _ in range(chance.randint(1, 3)) if content_of(out)]
        for path in (out / ".job/claims").rglob("*"):
            os.utime(path, (1.0, 1.0), follow_symlinks=False)  # a fresh sign of life would be waited for
        samples = {name for name, data in content_of(out).items() if name in whole and data == whole[name]}
        samples = {name for name in samples if not name.startswith(".job") and name != "manifest.json"}
        how = chance.choice(["resume", "resume", "resume", "nothing", "overwrite"])
        words: dict[str, Any] = {} if how == "nothing" else {how: True}
        try:
            with Alarm(60):
                run(out, **words)
            ends["done"] += 1
            done = content_of(out)
            assert {name: done.get(name) for name in whole} == whole, story
        except SdesamplersError as error:
            assert "\n" not in str(error), story  # noqa: PT017
            ends["refused"] += 1
            after = content_of(out)
            assert how == "overwrite" or {name for name in samples if after.get(name) != whole[name]} == set(), story
        except Exception as error:
            raise AssertionError(f"round {number}, {how}: {story}") from error
        for path in out.rglob("*"):
            if path.is_file() and not path.is_symlink() and path.stat().st_size > 2**30:
                path.unlink()
    return ends


def content_of(folder: Path) -> dict[str, bytes]:
    """Regular files of no more than a megabyte."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 2**20
    }


class Alarm:
    """Raises where a block takes too long."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        def late(*_: Any) -> None:
            raise AssertionError("it hangs")

        self.before = signal.signal(signal.SIGALRM, late)
        signal.alarm(self.seconds)

    def __exit__(self, *_: Any) -> None:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, self.before)


def test_a_few_damaged_folders(tmp_path: Path) -> None:
    ends = fuzz(tmp_path, 1, 8)
    assert sum(ends.values()) == 8


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_damaged_folders(tmp_path: Path, seed: int) -> None:
    ends = fuzz(tmp_path, 100 + seed, 100)
    assert sum(ends.values()) == 100
    assert min(ends.values()) > 10
