"""The benchmark of `Pool` on few requests: the same samples, the batches' sizes, and the report."""

import importlib
import json
import sys

import pytest
import torch

import sdesamplers as sds

pytestmark = pytest.mark.usefixtures("benchmarks")


@pytest.fixture(scope="module")
def pool(benchmarks):
    return importlib.import_module("pool")


def test_both_ways_have_the_same_samples(pool):
    model, size = sds.load("fashion-mnist"), pool.Size(requests=3, steps=4, rounds=1, calls=1)
    expected, found = pool.one_after_the_other(model, size), pool.in_a_pool(model, size)
    # 4, 5 and 6 steps; heun, the third, evaluates twice in each step but the last
    assert found.rows == [3] * 4 + [2] + [1] * 6
    for sample, alone in zip(found.samples, expected, strict=True):
        torch.testing.assert_close(sample, alone, rtol=0, atol=1e-3)


def test_the_report(pool, tmp_path, monkeypatch):
    numbers = {"median": 2.0, "q25": 2.0, "q75": 2.0}
    found = {**dict.fromkeys(pool.LINES, numbers), "rows": 12.5, "apart": 1e-5}
    monkeypatch.setattr(pool, "measure", lambda size, say: found)
    monkeypatch.setattr(sys, "argv", ["pool.py"])
    threads = torch.get_num_threads()
    pool.main(["--out", str(tmp_path), "--rounds", "1"])
    torch.set_num_threads(threads)
    text = (tmp_path / "pool.md").read_text()
    assert "| gain of the pool | 2 | 2 |" in text
    assert "| | 1 thread | 2 threads |" in text
    targets = json.loads((tmp_path / "pool.json").read_text())["targets"]
    assert (targets[0]["measured"], targets[0]["met"]) == (0.5, False)
