"""The benchmark of examples/serve.py: what it finds lost or mixed up, its report; and, slow, the server under load."""

import importlib
import json
import threading

import pytest
import torch

import sdesamplers as sds

pytestmark = pytest.mark.usefixtures("benchmarks")


@pytest.fixture(scope="module")
def bench(benchmarks):
    return importlib.import_module("serve")


SIZE = {"requests": 4, "steps": 4, "rounds": 1}


def outcomes(bench, expected):
    """Four requests, of which the first has been cancelled."""
    found = [bench.Outcome(k, False, "done", 1.0, sample + 1e-4) for k, sample in enumerate(expected)]
    found[0] = bench.Outcome(0, True, "cancelled", 1.0, None)
    return found


def test_faults(bench):
    expected = [torch.full((1, 2), float(k)) for k in range(4)]
    good = outcomes(bench, expected)
    found, apart = bench.faults(good, expected)
    assert found == []
    assert apart == pytest.approx(1e-4, rel=1e-2)

    assert bench.faults(good[:-1], expected)[0] == ["4 requests were sent, and 3 have ended"]
    assert bench.faults([*good, good[-1]], expected)[0] == ["4 requests were sent, and 5 have ended"]
    mixed = [*good[:2], bench.Outcome(2, False, "done", 1.0, expected[3]), good[3]]
    assert bench.faults(mixed, expected)[0] == ["request 2 has the samples of 3"]
    failed = [*good[:2], bench.Outcome(2, False, "cancelled", 1.0, None), good[3]]
    assert bench.faults(failed, expected)[0] == ["request 2 is cancelled"]


def test_every_request_is_sent_once(bench, monkeypatch):
    """By 5 clients, each with one request at a time; one in three is cancelled."""
    lock, sent, cancelled, busy = threading.Lock(), [], [], []

    class Client(bench.Client):
        def call(self, method, path, body=None):
            with lock:
                busy.append(threading.active_count())
                if method == "POST":
                    sent.append(body["seed"])
                    return json.dumps({"id": body["seed"]}).encode()
                if method == "DELETE":
                    cancelled.append(int(path.rpartition("/")[2]))
                    return b"{}"
            state = "cancelled" if int(path.split("/")[3]) % 3 == 0 else "failed"
            return f'data: {{"state": "running"}}\n\ndata: {{"state": "{state}"}}\n\n'.encode()

    monkeypatch.setattr(bench, "Client", Client)
    _, found = bench.run(0, 5, bench.Size(requests=40), cancels=True)
    assert sorted(sent) == sorted(each.k for each in found) == list(range(40))
    assert sorted(cancelled) == list(range(0, 40, 3))
    assert {each.state for each in found if not each.cancels} == {"failed"}
    assert max(busy) > 1


def test_the_report(bench, tmp_path, monkeypatch):
    from contextlib import nullcontext

    numbers = {"median": 2.0, "q25": 2.0, "q75": 2.0}
    names = ("alone", "1", "8", "32")
    found = {
        "rates": dict.fromkeys(names, numbers),
        "gains": dict.fromkeys(names, numbers),
        "latencies": {key: {"median": 0.5, "p95": 0.75} for key in names[1:]},
        "cancelled": 20,
        "finished": 44,
        "faults": [],
        "apart": 1e-5,
    }
    monkeypatch.setattr(bench, "server", lambda threads: nullcontext(0))
    monkeypatch.setattr(bench, "measure", lambda port, size: found)
    monkeypatch.setattr(bench, "version", lambda name: "1.0")
    assert bench.main(["--out", str(tmp_path), "--rounds", "1"]) == 0
    text = (tmp_path / "serve.md").read_text()
    assert "| 32 clients | 2 | 2.00 | 0.5 s | 0.75 s |" in text
    assert "44 were finished and 20 cancelled" in text
    assert "none was lost" in text
    found["faults"] = ["request 2 is failed"]
    assert bench.main(["--out", str(tmp_path), "--rounds", "1"]) == 1
    assert "request 2 is failed" in (tmp_path / "serve.md").read_text()


def test_without_the_packages_it_is_not_run(bench, monkeypatch, capsys):
    monkeypatch.setattr(bench, "version", lambda name: None)
    assert bench.main([]) == 77
    assert "sdesamplers[serve]" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("serve")
def test_nothing_is_lost_or_mixed_up_under_load(bench):
    """A server in its own process, 32 clients of which a third cancel, then 8 that do not; every sample is compared."""
    model, size = sds.load(bench.MODEL), bench.Size(requests=48, steps=4, rounds=1)
    _, expected = bench.alone(model, size)
    with bench.server(threads=1) as port:
        for clients, cancels in ((32, True), (8, False)):
            _, found = bench.run(port, clients, size, cancels)
            faults, apart = bench.faults(found, expected)
            assert faults == []
            assert apart < 0.02  # rounding, in samples of 4 steps; those of two requests differ by more than 1
            states = [each.state for each in found]
            assert states.count("cancelled") <= (16 if cancels else 0)
            assert states.count("done") + states.count("cancelled") == 48
        metrics = bench.Client(port).call("GET", "/metrics").decode()
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    assert float(values["sdesamplers_unfinished_requests"]) == 0
    assert sum(float(values[f'sdesamplers_requests_total{{state="{state}"}}']) for state in ("done", "cancelled")) == 96
