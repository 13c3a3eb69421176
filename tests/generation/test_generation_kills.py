"""SIGKILL at random moments, a lost process, a full disk: what `resume` makes of it equals an unbroken run.

As a program (`python test_generation_kills.py ordeal ...`) this file is the server that the kill tests start: it loads
the model once, and every process that is to be killed is forked from it.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lanes import mostly_slow
from places import SUPPORT
from toy_jobs import content, velocity

import sdesamplers as sds
from sdesamplers.errors import SdesamplersError
from sdesamplers.generation import progress

Words = dict[str, Any]


def toy() -> Any:
    """A model that costs nothing, so that most of a job's time is spent with files."""
    return sds.FunctionModel(velocity, sds.RectifiedFlow(), "flow", (1, 8, 8), data_range=(-1.0, 1.0), name="toy")


def check_finished_files(folder: Path, whole: dict[str, bytes]) -> None:
    """Whatever has a finished file's name is that file; all else is known."""
    for name, data in content(folder).items():
        place, _, last = name.rpartition("/")
        if name in whole:
            assert data == whole[name], f"{name} differs"
        else:
            assert last.startswith((".", "job-")) or place in (".job/batches", ".job/progress"), name


# The server


def start(model: Any, folder: Path, words: Words, part: tuple[int, int]) -> int:
    """Fork a process that works on a job; returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        sds.generate(model, out=folder, resume=True, part=part, **words)
    except BaseException:
        traceback.print_exc()
        os._exit(3)
    os._exit(0)


def ended(child: int) -> int:
    """A process's exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def ordeal(model: Any, folder: Path, words: Words, kills: int, processes: int, seed: int) -> dict[str, int]:
    """Make a job without a break, and again with kills; they must be the same.

    A life is as long on average as 0.8 of the whole job takes, over the number of kills. Where the job is finished
    before all kills are spent, it begins again in another folder.
    """
    began = time.perf_counter()
    sds.generate(model, out=folder / "whole", **words)
    seconds = time.perf_counter() - began
    whole, chance, killed, rounds = content(folder / "whole"), random.Random(seed), 0, 0
    while killed < kills:
        rounds += 1
        again = folder / f"again-{rounds}"
        while killed < kills:
            children = [start(model, again, words, (k, processes)) for k in range(processes)]
            time.sleep(chance.uniform(0, 1.6 * seconds / kills))
            for child in children:
                os.kill(child, signal.SIGKILL)
            codes = [ended(child) for child in children]
            assert set(codes) <= {0, -signal.SIGKILL}, codes
            if again.exists():
                check_finished_files(again, whole)
            if not any(codes):
                break
            killed += 1
        for k in range(processes):
            assert ended(start(model, again, words, (k, processes))) == 0
        assert content(again) == whole, sorted(set(content(again)) ^ set(whole))
    return {"kills": killed, "rounds": rounds, "files": len(whole)}


def serve(arguments: list[str]) -> None:
    """Run an ordeal, and print what came of it."""
    name, folder, text = arguments
    torch.set_num_threads(1)
    model = toy() if name == "toy" else sds.load(name)
    print(json.dumps(ordeal(model, Path(folder), **json.loads(text))))


# Random kills


def run_ordeal(name: str, folder: Path, **words: Any) -> dict[str, int]:
    """Have a server of its own run an ordeal."""
    command = [sys.executable, __file__, "ordeal", name, str(folder), json.dumps(words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SUPPORT)}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=3000, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, int] = json.loads(ran.stdout)
    return found


def test_two_kills(tmp_path: Path) -> None:
    """With no server: the processes are forked from this one."""
    words = {"sampler": "euler-maruyama", "steps": 2, "num_samples": 60, "batch_size": 10, "shard_size": 20}
    words["formats"] = ["safetensors", "png"]
    assert ordeal(toy(), tmp_path, words, kills=2, processes=2, seed=1)["kills"] == 2


@pytest.mark.slow
def test_a_few_kills(tmp_path: Path) -> None:
    words = {"sampler": "euler-maruyama", "steps": 2, "num_samples": 300, "batch_size": 10, "shard_size": 50}
    words["formats"] = ["safetensors", "png", "webdataset", "grid"]
    found = run_ordeal("toy", tmp_path, words=words, kills=6, processes=2, seed=1)
    assert found["kills"] == 6


EMBEDDED: dict[str, Words] = {
    "pictures": {
        "words": {"sampler": "ddim", "formats": ["safetensors", "png"], "batch_size": 16, "shard_size": 80},
        "kills": 34,
        "processes": 1,
    },
    "two processes": {
        "words": {"sampler": "euler-maruyama", "formats": ["webdataset"], "batch_size": 25, "shard_size": 25},
        "kills": 33,
        "processes": 2,
    },
    "large shards": {
        "words": {"sampler": "ddim", "formats": ["grid", "safetensors"], "batch_size": 50, "shard_size": 500},
        "kills": 33,
        "processes": 1,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("setting", EMBEDDED)
def test_a_hundred_kills(tmp_path: Path, setting: str) -> None:
    """34 + 33 + 33 kills over jobs of 2,000 images of the embedded model."""
    given = EMBEDDED[setting]
    words = {**given["words"], "steps": 2, "num_samples": 2000}
    found = run_ordeal("fashion-mnist", tmp_path, **{**given, "words": words}, seed=list(EMBEDDED).index(setting))
    assert found["kills"] == given["kills"]


# A lost process

JOB: Words = {"sampler": "euler-maruyama", "steps": 2, "num_samples": 70, "batch_size": 5, "shard_size": 10}


def work_as_rank(arguments: list[str]) -> None:
    """One of several processes, which may kill itself at an evaluation."""
    folder, victim = arguments
    progress.TIMEOUT = 0.5
    calls = itertools.count(1)

    def function(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if os.environ["RANK"] == victim and next(calls) == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return velocity(x, t)

    model = sds.FunctionModel(function, sds.RectifiedFlow(), "flow", (1, 8, 8), data_range=(-1.0, 1.0), name="toy")
    done = sds.generate(model, out=folder, resume=True, **JOB)
    print(json.dumps({"made": done.made, "complete": done.manifest is not None}))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_rank(tmp_path: Path, free_port: int, victim: int) -> None:
    launched = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)}
    environment = {**os.environ, **launched, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment["PYTHONPATH"] = str(SUPPORT)
    command = [sys.executable, __file__, "rank", str(tmp_path / "lost"), str(victim)]
    ranks = [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=300) for rank in ranks]
    assert ranks[victim].returncode == -signal.SIGKILL, said
    assert ranks[1 - victim].returncode == 0, said
    # Of seven shards the first process has four and the other three; the victim was in its third.
    assert json.loads(said[1 - victim][0]) == {"made": 30 if victim == 0 else 40, "complete": False}
    whole = tmp_path / "whole"
    sds.generate(toy(), out=whole, **JOB)
    check_finished_files(tmp_path / "lost", content(whole))
    done = sds.generate(toy(), out=tmp_path / "lost", resume=True, **JOB)
    # Of its first two shards, each of ten, and their four batches, some may not have been written yet.
    assert done.made in (range(20, 41, 5) if victim == 0 else range(10, 31, 5))
    assert content(tmp_path / "lost") == content(whole)


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens at."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Any]:
    """A folder on a file system of its own, and how to set its size; skipped where mounting is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()

    def size(kib: int, how: str = "remount,") -> bool:
        command = ["mount", "-t", "tmpfs", "-o", f"{how}size={kib}k", "tmpfs", str(place)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    if not size(4, ""):
        pytest.skip("mounting is not allowed")
    try:
        yield place, size
    finally:
        subprocess.run(["umount", str(place)], check=True)


FORMATS = ("safetensors", "png", "webdataset", "grid")


@pytest.mark.parametrize(
    "kib", mostly_slow([4, 8, 12, 20, 40, 60, 80, 100, 140, 200, 240, 280, 320, 340], keep=[4, 40, 140, 320])
)
def test_a_full_disk(tmp_path: Path, small_disk: Any, kib: int) -> None:
    place, size = small_disk
    sds.generate(toy(), out=tmp_path / "whole", formats=FORMATS, **JOB)
    whole = content(tmp_path / "whole")
    size(kib)
    with pytest.raises(SdesamplersError, match=r"could not be written: No space left on device"):
        sds.generate(toy(), out=place, formats=FORMATS, json_log=place / "log.jsonl", **JOB)
    (place / "log.jsonl").unlink()
    check_finished_files(place, whole)
    assert not [name for name in content(place) if name.rpartition("/")[2].startswith(".")]
    assert set(content(place)) <= set(whole) | {path for path in content(place) if path.startswith(".job/batches/")}
    size(100_000)
    sds.generate(toy(), out=place, formats=FORMATS, resume=True, **JOB)
    assert content(place) == whole


@pytest.mark.parametrize("limit", [100, 900, 2000, 4000])
def test_files_that_may_not_grow(tmp_path: Path, limit: int) -> None:
    """A quota's stand-in where mounting is not allowed."""
    sds.generate(toy(), out=tmp_path / "whole", formats=FORMATS, **JOB)
    whole, place = content(tmp_path / "whole"), tmp_path / "limited"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(SdesamplersError, match=r"could not be written: File too large"):
            sds.generate(toy(), out=place, formats=FORMATS, **JOB)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    check_finished_files(place, whole)
    assert not [name for name in content(place) if name.rpartition("/")[2].startswith(".")]
    sds.generate(toy(), out=place, formats=FORMATS, resume=True, **JOB)
    assert content(place) == whole


if __name__ == "__main__":
    {"ordeal": serve, "rank": work_as_rank}[sys.argv[1]](sys.argv[2:])
