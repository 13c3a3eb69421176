"""Processes of a launcher: the same bytes as one, no waiting for each other, one that speaks."""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from places import SUPPORT
from tiny_models import save_pipeline
from toy_jobs import content

import sdesamplers as sds

LAUNCHER = ("accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no",
            "--dynamo_backend", "no")  # fmt: skip
"""accelerate's launcher starts several processes on CPUs under this name, and gloo is what they find there."""


def free_port() -> str:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with one thread a process."""
    places = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SUPPORT)}
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **places, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def launch(*words: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """A module or a file on several processes of accelerate's launcher."""
    return start("-m", *LAUNCHER, "--num_processes", str(processes), "--main_process_port", free_port(), *words)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline."""
    return save_pipeline(tmp_path_factory.mktemp("models") / "tiny")


def told(ran: subprocess.CompletedProcess[str]) -> list[str]:
    """What stands on standard error, without what the untrained network's samples cause."""
    return [line for line in ran.stderr.splitlines() if "lie far outside" not in line]


@pytest.mark.slow
def test_two_processes_make_what_one_makes(tmp_path: Path, pipeline: Path) -> None:
    words = ["sdesamplers", "sample", str(pipeline), "--sampler", "ddpm", "--steps", "2", "-n", "22", "--json"]
    words += ["--batch-size", "2", "--shard-size", "4", "--format", "safetensors,png,webdataset,grid"]
    two, one = tmp_path / "two", tmp_path / "one"
    log = tmp_path / "log.jsonl"
    ran = launch("-m", *words, "--out", str(two), "--json-log", str(log))
    assert ran.returncode == 0, ran.stderr
    assert told(ran) == []
    assert json.loads(ran.stdout)["complete"]  # one object: one process speaks
    alone = start("-m", *words, "--out", str(one))
    assert alone.returncode == 0, alone.stderr
    assert content(two) == content(one)
    logs = [log, tmp_path / "log-rank1.jsonl"]
    events = [[json.loads(line) for line in each.read_text().splitlines()] for each in logs]
    assert [{event["rank"] for event in each} for each in events] == [{0}, {1}]
    made = [sum(event["count"] for event in each if event["event"] == "batch") for each in events]
    assert made == [12, 10]


@pytest.mark.slow
def test_sizes_that_are_found_are_the_same_for_all(tmp_path: Path, pipeline: Path) -> None:
    words = ["sdesamplers", "sample", str(pipeline), "--sampler", "ddim", "--steps", "1", "-n", "300", "--quiet"]
    ran = launch("-m", *words, "--out", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["batch_size"], manifest["shard_size"]) == (64, 64)


@pytest.mark.slow
def test_a_refusal_reaches_all(tmp_path: Path, pipeline: Path) -> None:
    words = ["sdesamplers", "sample", str(pipeline), "--sampler", "ddim", "--steps", "1", "-n", "4"]
    words += ["--batch-size", "1", "--out", str(tmp_path)]
    assert start("-m", *words).returncode == 0
    ran = launch("-m", *words)
    assert ran.returncode == 1
    assert "already holds this job, 1 of 1 shards done" in ran.stderr
    assert 'Traceback (most recent call last):\n  File "' + str(Path(sds.__file__).parent) not in ran.stderr


# The Python API, on torchrun's variables alone


def ranks(*words: str, count: int = 2) -> list[Any]:
    """What this file prints, as a program, on each of several processes."""
    port = free_port()
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = {**os.environ, **common, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SUPPORT)}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, *words],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * count, said
    assert all(error == "" for _, error in said), said
    return [json.loads(output) for output, _ in said]


RARE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4, "num_samples": 14, "batch_size": 2, "seed": 3}


def hard() -> Any:
    """A mixture whose samples need different numbers of steps."""
    return sds.MixtureModel([0.5, 0.5], [[-2.0, 0.0], [3.0, 1.0]], [1e-4, 0.5], sds.VP(), name="mixture")


def report_an_open_group() -> None:
    """One line on standard error if a process group is still open; its threads can abort a process that ends so."""
    if torch.distributed.is_initialized():
        print("the process group is open at exit", file=sys.stderr)


def on_a_rank(out: str) -> dict[str, Any]:
    """A job of an adaptive sampler, a stream, and a refusal, one after the other on the same processes."""
    from accelerate import PartialState

    from sdesamplers.generation.ranks import Ranks

    PartialState()  # as another library may have done, which takes processes on CPUs for lone ones
    here = Ranks.here()
    done = sds.generate(hard(), "rk45", out=out, shard_size=2, **RARE)
    streamed = [batch.indices for batch in sds.stream(hard(), "rk45", **RARE)]
    found = {"ranks": [here.rank, here.count], "made": done.made, "complete": done.manifest is not None}
    try:
        sds.generate(hard(), "rk45", out=out, resume=True, **{**RARE, "seed": 4})
    except sds.errors.UsageError as error:
        return {**found, "streamed": streamed, "error": str(error)}
    return found


@pytest.mark.slow
def test_processes_with_different_numbers_of_calls(tmp_path: Path) -> None:
    two = tmp_path / "two"
    first, second = ranks(str(two))
    assert (first["ranks"], second["ranks"]) == ([0, 2], [1, 2])
    assert (first["made"], second["made"]) == (8, 6)
    assert first["complete"]  # the first stays until all is done
    assert first["streamed"] == [[0, 1], [4, 5], [8, 9], [12, 13]]
    assert second["streamed"] == [[2, 3], [6, 7], [10, 11]]
    refusal = (
        f"{two} holds another job: seed is 3 there and 4 here. Choose another out=, or discard it with overwrite=True"
    )
    assert (first["error"], second["error"]) == (refusal, refusal)
    done = sds.generate(hard(), "rk45", out=tmp_path / "one", shard_size=2, **RARE)
    assert content(two) == content(tmp_path / "one")
    assert done.manifest is not None
    costs = [shard["nfe"]["total"] for shard in done.manifest["shards"]]
    assert sum(costs[::2]) != sum(costs[1::2])


if __name__ == "__main__":
    atexit.register(report_an_open_group)  # runs after every function registered later
    print(json.dumps(on_a_rank(sys.argv[1])))
