"""benchmarks/gpu.py on the CPU: it runs, its checks can fail, and without a device it says that it was not run."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sdesamplers as sds

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("gpu", "machine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("gpu")


def test_without_a_device_it_says_that_it_was_not_run(gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path)]) == 77
    assert "**Not run**" in (tmp_path / "gpu.md").read_text()
    assert json.loads((tmp_path / "gpu.json").read_text())["state"] == "not run"
    assert "this machine has no CUDA device" in capsys.readouterr().out.splitlines()[-1]


def test_the_report_that_is_kept_says_whether_it_was_run():
    facts = json.loads((FOLDER / "results" / "gpu.json").read_text())
    text = (FOLDER / "results" / "gpu.md").read_text()
    assert ("Not run" in text) == (facts["state"] == "not run")


QUICK = ["noise", "half", "streams", "memory", "speed"]
LONG = ["samples", "synchronisation", "compiled", "overhead"]


@pytest.mark.parametrize("parts", [QUICK, pytest.param(LONG, marks=pytest.mark.slow)], ids=["quick", "long"])
def test_every_part_but_memory_runs_on_the_cpu(gpu, tmp_path, parts):
    assert set(gpu.PARTS) == {*QUICK, *LONG}
    assert gpu.main(["--device", "cpu", "--quick", "--out", str(tmp_path), "--only", *parts]) == 0
    facts = json.loads((tmp_path / "gpu.json").read_text())
    assert facts["failed"] == {}
    assert set(facts["skipped"]) == {*parts} & {"memory"}
    assert {row["part"] for row in facts["rows"]} == {*parts} - {"memory"}
    assert sum(row["part"] == "samples" for row in facts["rows"]) == (12 if "samples" in parts else 0)
    assert all(row["met"] for row in facts["targets"])
    assert "a test of the script on the CPU" in (tmp_path / "gpu.md").read_text()


def test_a_run_that_waits_is_found(gpu, monkeypatch):
    """As CUDA would, an evaluation inside the guard raises torch's error."""
    bench = gpu.Bench(torch.device("cpu"), True, float("inf"))
    inner = bench.model()
    assert gpu.failures(lambda: sds.sample(inner, "euler", steps=3)) == 0

    def waits(event):
        if event.evaluation == 1:
            raise RuntimeError("called a synchronizing CUDA operation")

    assert gpu.failures(lambda: sds.sample(inner, "euler", steps=3, callback=waits)) == 1
    with pytest.raises(RuntimeError, match="another"):
        gpu.failures(lambda: (_ for _ in ()).throw(RuntimeError("another")))


def test_the_guard_covers_a_run_from_its_first_evaluation_to_its_last(gpu, monkeypatch):
    inside, seen = [0], []

    class Guard:
        def __enter__(self):
            inside[0] += 1

        def __exit__(self, *error):
            inside[0] -= 1

    monkeypatch.setattr(gpu, "sync_is_an_error", lambda bench: Guard())
    bench = gpu.Bench(torch.device("cpu"), True, float("inf"))
    guarded = gpu.Guarded(bench.model(), bench, 4)
    for _ in range(2):
        sds.sample(guarded, "euler", steps=4, callback=lambda event: seen.append(inside[0]))
        assert inside == [0]
    assert seen == [0, 1, 1, 1] * 2


def test_differences_and_failures_are_reported(gpu, tmp_path, monkeypatch):
    def wrong(bench):
        bench.require("a difference", 1.0, 0.5)
        raise ValueError("and then it broke")

    monkeypatch.setitem(gpu.PARTS, "noise", wrong)
    assert gpu.main(["--device", "cpu", "--quick", "--out", str(tmp_path), "--only", "noise"]) == 1
    text = (tmp_path / "gpu.md").read_text()
    assert "**no**" in text
    assert "noise failed: ValueError: and then it broke" in text


def test_a_network_that_reuses_its_buffer_is_imitated(gpu):
    network = gpu.Replayed(gpu.tiny(torch.device("cpu"), torch.float32))
    x, t = torch.randn(2, 1, 28, 28), torch.tensor([3.0, 500.0])
    with torch.no_grad():
        first = network(x, t)
        kept = first.clone()
        second = network(2 * x, t)
    assert first.data_ptr() == second.data_ptr()
    assert not torch.equal(first, kept)
    assert np.allclose(network.inner(x, t).detach(), kept, atol=1e-6)
