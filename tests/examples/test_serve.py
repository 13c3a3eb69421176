"""examples/serve.py over HTTP: the samples are those of `sample`; events, cancellation, limits, faults, the end."""

import io
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from example_server import EXAMPLES, Client, servers, wait_until
from PIL import Image
from safetensors.torch import load
from torch import Tensor

import sdesamplers as sds

Start = Callable[..., Client]
SHAPE = (1, 4, 4)


def rows_apart(x: Tensor, t: Tensor) -> Tensor:
    """The flow of data N(0, 1/4), number by number, so that a row does not depend on the batch to the last bit."""
    sigma = t.view(-1, 1, 1, 1)  # and alpha = 1 - sigma
    return x * (sigma - (1 - sigma) / 4) / ((1 - sigma) ** 2 / 4 + sigma**2)


def new_model(function: Callable[..., Tensor] = rows_apart) -> sds.Model:
    return sds.FunctionModel(function, sds.RectifiedFlow(), "flow", SHAPE, data_range=(-2.0, 2.0), clip=False)


class Gate:
    """A network that waits until the test opens the gate, so that requests stay unfinished meanwhile."""

    def __init__(self) -> None:
        self.opened, self.entered = threading.Event(), threading.Event()

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.entered.set()
        assert self.opened.wait(timeout=60)
        return rows_apart(x, t)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


def samples_of(client: Client, path: str) -> Tensor:
    return load(client.call("GET", path + "/samples.safetensors").body)["samples"]


# --- samples ----------------------------------------------------------------------------------------------------------

REQUESTS = [
    {"sampler": "dpmpp-2m", "steps": 9, "seed": 3, "num_samples": 3},
    {"sampler": "euler", "steps": 4, "seed": 2**53 - 1, "num_samples": 1},
    {"sampler": "dpmpp-2m-sde", "steps": 7, "seed": 5, "num_samples": 2},
    {"sampler": "heun", "steps": 5, "seed": 6, "num_samples": 16},
    {"sampler": "restart", "steps": 6, "seed": 7, "num_samples": 2},
    {"sampler": "euler-cfgpp", "steps": 1, "seed": 8, "num_samples": 1},
]


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_each_client_has_the_samples_of_its_run_alone(start_server: Start, rows: int) -> None:
    """Bit for bit, whatever shares the batches; the pictures and the recipe too."""
    model = new_model()
    client = start_server(model, rows=rows)
    with ThreadPoolExecutor(len(REQUESTS)) as threads:
        paths = list(threads.map(lambda wanted: client.add(**wanted), REQUESTS))
        ends = list(threads.map(client.end, paths))
    for wanted, path, end in zip(REQUESTS, paths, ends, strict=True):
        expected = sds.sample(model, **wanted)  # type: ignore[arg-type]
        assert {name: end[name] for name in wanted} == wanted
        assert (end["state"], end["message"]) == ("done", "")
        assert end["evaluations"] == end["planned"] == expected.nfe
        assert torch.equal(samples_of(client, path), expected.samples)
        for k, image in enumerate(expected.images):
            reply = client.call("GET", f"{path}/samples/{k}.png")
            assert reply.headers["Content-Type"] == "image/png"
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(reply.body))), np.asarray(image))


def test_the_file_has_the_recipe(start_server: Start) -> None:
    model = new_model()
    client = start_server(model)
    path = client.add(sampler="dpmpp-2m-sde", steps=5, seed=4)
    client.end(path)
    data = client.call("GET", path + "/samples.safetensors").body
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    facts = json.loads(header["__metadata__"]["sdesamplers"])
    again = sds.sample(model, facts["recipe"], seed=facts["seed"])
    assert torch.equal(load(data)["samples"], again.samples)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), (None, 1e-3)])
def test_the_embedded_model(start_server: Start, dtype: str | None, tolerance: float) -> None:
    """To the rounding of its convolutions, which sum in an order that depends on the size of the batch."""
    model = sds.load("fashion-mnist", dtype=dtype)
    client = start_server(model)
    wanted: list[dict[str, Any]] = [{"sampler": "dpmpp-2m", "steps": 3}, {"sampler": "ddpm", "steps": 2, "seed": 1}]
    paths = [client.add(**each) for each in wanted]
    for path, each in zip(paths, wanted, strict=True):
        assert client.end(path)["state"] == "done"
        torch.testing.assert_close(samples_of(client, path), sds.sample(model, **each).samples, rtol=0, atol=tolerance)


# --- events -----------------------------------------------------------------------------------------------------------


def test_events_show_the_progress(start_server: Start, gate: Gate) -> None:
    client = start_server(new_model(gate))
    path = client.add(sampler="heun", steps=10)
    connection = client.connect()
    connection.request("GET", path + "/events")
    response = connection.getresponse()
    statuses = [json.loads(response.readline().removeprefix(b"data: "))]
    gate.opened.set()
    statuses += [json.loads(line.removeprefix(b"data: ")) for line in response if line.startswith(b"data: ")]
    connection.close()
    assert statuses[0]["state"] == "waiting"
    assert statuses[-1]["state"] == "done"
    counts = [status["evaluations"] for status in statuses]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 19)  # heun evaluates twice in each step but the last
    assert client.statuses(path) == statuses[-1:]  # a stream that is opened afterwards


def test_a_lost_stream_loses_nothing(start_server: Start, gate: Gate) -> None:
    model = new_model(gate)
    client = start_server(model)
    path = client.add(sampler="euler", steps=6, seed=5)
    connection = client.connect()
    connection.request("GET", path + "/events")
    response = connection.getresponse()
    assert response.readline().startswith(b"data: ")
    response.close()
    connection.close()
    wait_until(lambda: client.worker.metrics.streams._value.get() == 0)  # its place is free at once
    gate.opened.set()
    assert client.end(path)["state"] == "done"
    assert torch.equal(samples_of(client, path), sds.sample(model, "euler", steps=6, seed=5).samples)


# --- cancellation -----------------------------------------------------------------------------------------------------


def test_cancellation_ends_one_request_alone(start_server: Start, gate: Gate) -> None:
    model = new_model(gate)
    client = start_server(model, rows=2)
    first, second, third = (client.add(sampler="ddim", steps=5, seed=seed) for seed in range(3))
    assert gate.entered.wait(timeout=60)
    for path in (first, third):  # one in the network's batch, one that waits for it
        assert client.call("DELETE", path).json["state"] == "cancelled"
        assert client.call("DELETE", path).json["state"] == "cancelled"
        reply = client.call("GET", path + "/samples.safetensors")
        assert (reply.code, reply.detail) == (409, "this request has no samples: it is cancelled")
        assert client.end(path)["message"] == "by the client"
    gate.opened.set()
    assert client.end(second)["state"] == "done"
    assert client.call("DELETE", second).json["state"] == "done"
    assert torch.equal(samples_of(client, second), sds.sample(model, "ddim", steps=5, seed=1).samples)
    assert client.worker.unfinished == len(client.worker.pool) == 0


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_for_the_moment(start_server: Start, gate: Gate) -> None:
    client = start_server(new_model(gate), queue=2)
    paths = [client.add(steps=2, seed=seed) for seed in range(2)]
    refused = client.call("POST", "/api/requests", {"steps": 2})
    assert (refused.code, refused.headers["Retry-After"]) == (503, "1")
    assert refused.detail == "the queue is full (limit 2); try again later"
    client.call("DELETE", paths[0])
    paths[0] = client.add(steps=2)
    gate.opened.set()
    assert [client.end(path)["state"] for path in paths] == ["done", "done"]
    assert client.end(client.add(steps=2))["state"] == "done"


def test_the_queue_is_never_longer_under_concurrent_requests(start_server: Start, gate: Gate) -> None:
    client = start_server(new_model(gate), queue=5)
    with ThreadPoolExecutor(20) as threads:
        codes = list(threads.map(lambda k: client.call("POST", "/api/requests", {"seed": k}).code, range(20)))
    assert sorted(codes) == [202] * 5 + [503] * 15


INVALID = [
    ({"sampler": "huen"}, "unknown sampler 'huen'; did you mean 'heun'"),
    ({"sampler": "quality"}, "unknown sampler"),  # a recipe: only samplers are offered
    ({"sampler": "paradigms"}, "unknown sampler"),  # its cost is not known beforehand
    ({"sampler": "mala"}, "unknown sampler"),  # does not run on this model
    ({"sampler": "x" * 65}, "sampler: "),
    ({"sampler": ["euler"]}, "sampler: "),
    ({"steps": 0}, "steps: "),
    ({"steps": 101}, "steps: "),
    ({"steps": "20"}, "steps: "),
    ({"steps": True}, "steps: "),
    ({"steps": 1e400}, "steps: "),
    ({"steps": math.nan}, "steps: "),
    ({"seed": -1}, "seed: "),
    ({"seed": 2**53}, "seed: "),
    ({"seed": 10**400}, "seed: "),
    ({"num_samples": 17}, "num_samples: "),
    ({"num_samples": None}, "num_samples: "),
    ({"start": [1.0]}, "start: "),
    ({"sampler": "rk4", "steps": 100, "num_samples": 16}, "16 x 397 evaluations are more than the 4000"),
    ([], "the body: "),
    (b"", "the body: Field required"),
    ("euler", "the body: "),
    (b'{"sampler": "\\ud800"}', "sampler: "),
    (b'{"\\ud800": 1}', ""),
    (b"\xff", ""),
    (b"{", "the body: JSON decode error"),
    (b"[" * 4000, ""),
    (b"1" * 4000, ""),
]


@pytest.fixture(scope="module")
def shared(serve: Any) -> Iterator[Client]:
    """One server for the cases that change nothing."""
    with servers(serve) as start:
        yield start(new_model())


@pytest.mark.parametrize(("body", "message"), INVALID)
def test_what_is_not_accepted(shared: Client, body: Any, message: str) -> None:
    reply = shared.call("POST", "/api/requests", body)
    assert reply.code in (400, 422), reply.body
    assert message in reply.detail
    assert "Traceback" not in reply.detail
    assert shared.worker.unfinished == len(shared.worker.pool) == 0


def test_the_path_of_a_table_is_not_opened(shared: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of `sample` may be the path of a solver table; one of a client never is."""
    (tmp_path / "t.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for name in ("t.json", "./t.json", "../t.json", ".", "tuned"):
        assert "unknown sampler" in shared.call("POST", "/api/requests", {"sampler": name}).detail


def test_a_large_body_is_refused(shared: Client) -> None:
    large = b'{"sampler": "' + b"x" * 5000 + b'"}'
    assert shared.call("POST", "/api/requests", large).code == 413
    connection = shared.connect()
    connection.request(
        "POST", "/api/requests", iter([large[:2500], large[2500:]]), {"Content-Type": "application/json"}
    )
    assert connection.getresponse().status == 413  # in chunks, without its length
    connection.close()


def test_large_headers_are_refused(shared: Client) -> None:
    try:
        assert shared.call("GET", "/health", X_Large="x" * 2_000_000).code == 400
    except (BrokenPipeError, ConnectionResetError):
        pass  # closed before all was sent
    assert shared.call("GET", "/health").code == 200


def test_connections_are_limited(start_server: Start) -> None:
    client = start_server(new_model(), connections=3)
    idle = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(2)]
    wait_until(lambda: client.call("GET", "/health").code == 503)
    for each in idle:
        each.close()
    wait_until(lambda: client.call("GET", "/health").code == 200)


def test_forms_of_other_sites_are_refused(shared: Client) -> None:
    """A page of another site may send a form without asking; its own name may refer to this machine."""
    body = {"steps": 2}
    assert shared.call("POST", "/api/requests", body, Content_Type="text/plain").code == 422
    assert shared.call("GET", "/api/info", Host="evil.example").code == 400
    assert shared.call("GET", "/api/info", Host=f"localhost:{shared.port}").code == 200
    assert shared.call("GET", "/").headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/api/requests/none",
        "/api/requests/none/events",
        "/api/requests/none/samples/0.png",
        "/api/requests/..%2f..%2fetc%2fpasswd",
        "/serve.py",
        "/../serve.py",
        "/docs",
        f"/api/requests/{'x' * 5000}",
    ],
)
def test_unknown_paths(shared: Client, path: str) -> None:
    assert shared.call("GET", path).code == 404


def test_unknown_samples(shared: Client) -> None:
    path = shared.add(steps=1, num_samples=2)
    shared.end(path)
    codes = [shared.call("GET", f"{path}/samples/{name}.png").code for name in ("1", "2", "-1", "9" * 5000, "x")]
    assert codes == [200, 404, 404, 422, 422]


def test_finished_requests_are_kept_for_a_time(start_server: Start) -> None:
    client = start_server(new_model(), keep_seconds=0.2)
    path = client.add(steps=1)
    client.end(path)
    wait_until(lambda: client.call("GET", path).code == 404)
    assert client.call("GET", path + "/samples.safetensors").code == 404
    assert client.worker._jobs == {}


def test_finished_requests_are_kept_up_to_a_number(start_server: Start) -> None:
    client = start_server(new_model(), kept=2)
    paths = []
    for seed in range(4):
        paths.append(client.add(steps=1, seed=seed))
        client.end(paths[-1])
    wait_until(lambda: len(client.worker._jobs) == 2)
    assert [client.call("GET", path).code for path in paths] == [404, 404, 200, 200]


def test_streams_are_limited(start_server: Start, gate: Gate) -> None:
    client = start_server(new_model(gate), streams=1)
    path = client.add(steps=2)
    with ThreadPoolExecutor() as threads:
        stream = threads.submit(client.statuses, path)
        wait_until(lambda: client.worker.metrics.streams._value.get() == 1)
        refused = client.call("GET", path + "/events")
        assert (refused.code, refused.headers["Retry-After"]) == (503, "1")
        assert client.status(path)["state"] == "waiting"
        gate.opened.set()
        assert stream.result()[-1]["state"] == "done"
    wait_until(lambda: client.call("GET", path + "/events").code == 200)


# --- faults -----------------------------------------------------------------------------------------------------------


@sds.sampler("broken-nan", order=None, reference="none")
def broken_nan(x: Tensor, path: Any) -> Any:
    """Divides by zero as soon as the network predicts something."""
    for now, then in path.steps:
        out = yield x, now
        x = out.x + (then.time - now.time) * out.velocity / (1 - out.velocity.sign().abs())
    return x


@sds.sampler("broken-raises", order=None, reference="none")
def broken_raises(x: Tensor, path: Any) -> Any:
    """Fails as soon as the network predicts something, with a message that is not for clients."""
    for now, _ in path.steps:
        out = yield x, now
        if out.velocity.any():
            raise RuntimeError("no such file: /home/secret")
    return x


@sds.sampler("broken-always", order=None, reference="none")
def broken_always(x: Tensor, path: Any) -> Any:
    """Fails whatever the network predicts."""
    yield x, path.points[0]
    raise KeyError("/home/secret")


def test_a_sampler_that_cannot_run_is_not_accepted(start_server: Start) -> None:
    sds.register(broken_always)
    client = start_server(new_model())
    reply = client.call("POST", "/api/requests", {"sampler": "broken-always"})
    assert (reply.code, reply.detail) == (422, "the run failed with KeyError; the server's log has the details")
    assert client.worker.unfinished == 0


def test_a_fault_reaches_its_own_client_alone(start_server: Start, caplog: pytest.LogCaptureFixture) -> None:
    sds.register(broken_nan, broken_raises)
    model = new_model()
    client = start_server(model)
    samplers = ("euler", "broken-nan", "broken-raises", "heun")
    paths = [client.add(sampler=name, steps=4, seed=1) for name in samplers]
    ends = [client.end(path) for path in paths]
    assert [end["state"] for end in ends] == ["done", "failed", "failed", "done"]
    assert "broken-nan" in ends[1]["message"]
    assert "finite" in ends[1]["message"]
    assert ends[2]["message"] == "the run failed with RuntimeError; the server's log has the details"
    assert "/home/secret" in caplog.text
    for k in (0, 3):
        expected = sds.sample(model, samplers[k], steps=4, seed=1).samples
        assert torch.equal(samples_of(client, paths[k]), expected)


def test_messages_do_not_have_the_server_s_paths(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    for error in (sds.PluginError("sampler 'x' of plugin y: /home/secret, line 3"), OSError("/home/secret")):
        assert "/home/secret" not in serve.message_of(error)
        assert "/home/secret" in caplog.text
        caplog.clear()
    assert serve.message_of(sds.UsageError("steps must be at least 1")) == "steps must be at least 1"


def test_a_network_that_fails_on_large_batches_gets_smaller_ones(start_server: Start) -> None:
    """As one that runs out of memory does; the samples are the same."""

    def short_of_memory(x: Tensor, t: Tensor) -> Tensor:
        if len(x) > 3:
            raise MemoryError("out of memory")
        return rows_apart(x, t)

    client = start_server(new_model(short_of_memory))
    paths = [client.add(sampler="ddim", steps=4, seed=seed, num_samples=4) for seed in range(4)]
    for seed, path in enumerate(paths):
        assert client.end(path)["state"] == "done"
        expected = sds.sample(new_model(), "ddim", steps=4, seed=seed, num_samples=4).samples
        assert torch.equal(samples_of(client, path), expected)


def test_a_network_that_fails_on_one_request_ends_that_one(start_server: Start, gate: Gate) -> None:
    wrong = sds.sample(new_model(), "euler", steps=3, seed=2, trajectory=True).trajectory
    assert wrong is not None
    state = wrong.states[1, 0]

    def dislikes_a_state(x: Tensor, t: Tensor) -> Tensor:
        if any(torch.equal(row, state) for row in x):
            raise ValueError("cannot be evaluated")
        return gate(x, t)

    client = start_server(new_model(dislikes_a_state))
    paths = [client.add(sampler="euler", steps=3, seed=seed) for seed in range(5)]
    gate.opened.set()  # now they share their batches
    states = [client.end(path)["state"] for path in paths]
    assert states == ["done", "done", "failed", "done", "done"]
    assert client.worker.pool.max_rows == 16


def test_a_worker_that_stops_is_noticed(start_server: Start) -> None:
    """A network whose output has another shape than the pool's rows is an error of the program."""
    model = new_model()
    client = start_server(model)
    model.predict = lambda x, t, condition=None: x[:, :, :1]  # type: ignore[method-assign, assignment]
    end = client.end(client.add(steps=2))
    assert end["state"] == "failed"
    assert "log" in end["message"]
    assert client.call("GET", "/health").code == 503
    assert client.call("POST", "/api/requests", {}).code == 503


# --- metrics, and the end ---------------------------------------------------------------------------------------------


def test_metrics(start_server: Start, gate: Gate) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    client = start_server(new_model(gate), queue=3)
    paths = [client.add(sampler="euler", steps=4, seed=seed, num_samples=2) for seed in range(3)]
    client.call("POST", "/api/requests", {})

    def values() -> dict[str, float]:
        text = client.call("GET", "/metrics").body.decode()
        samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
        return {each.name + "".join(each.labels.values()): each.value for each in samples}

    assert values()["sdesamplers_unfinished_requests"] == 3
    client.call("DELETE", paths[0])
    gate.opened.set()
    for path in paths:
        client.end(path)
    found = values()
    assert found["sdesamplers_unfinished_requests"] == 0
    assert found["sdesamplers_requests_totaldone"] == 2
    assert found["sdesamplers_requests_totalcancelled"] == 1
    assert found["sdesamplers_requests_totalfailed"] == 0
    assert found["sdesamplers_refused_totalfull"] == 1
    assert found["sdesamplers_images_total"] == 4
    assert found["sdesamplers_request_seconds_count"] == 3
    assert (
        16 <= found["sdesamplers_batch_rows_sum"] <= 16 + 2
    )  # 4 evaluations of 4 samples, and one cancelled in a batch
    assert client.call("GET", "/health").json == {"status": "ok"}


def test_closing_finishes_what_was_accepted(start_server: Start, gate: Gate) -> None:
    client = start_server(new_model(gate))
    path = client.add(steps=3, num_samples=2)
    closing = threading.Thread(target=client.server.close)
    closing.start()
    wait_until(lambda: client.worker.is_closing)
    assert client.call("GET", "/health").code == 503
    refused = client.call("POST", "/api/requests", {})
    assert (refused.code, refused.detail) == (503, "the server is shutting down")
    gate.opened.set()
    assert client.end(path)["state"] == "done"
    assert client.call("GET", path + "/samples/0.png").code == 200
    assert closing.is_alive()  # until the other sample has been fetched
    assert client.call("GET", path + "/samples/1.png").code == 200
    closing.join(timeout=30)
    assert not closing.is_alive()
    wait_until(lambda: not client.server.started or client.server.should_exit)


def test_closing_cancels_what_does_not_finish(start_server: Start, gate: Gate) -> None:
    client = start_server(new_model(gate))
    path = client.add(steps=3)
    job = client.worker.find(path.rpartition("/")[2])
    with ThreadPoolExecutor() as threads:
        stream = threads.submit(client.statuses, path)
        wait_until(lambda: client.worker.metrics.streams._value.get() == 1)
        closing = threads.submit(client.worker.close, 3600)
        wait_until(lambda: client.worker.is_closing)
        assert client.worker.close(3600) == "no more time is given"  # a second signal
        wait_until(lambda: job.end is not None)
        gate.opened.set()
        assert closing.result(timeout=30) == "0 done, 0 failed, 1 cancelled; 0 not fetched"
        assert stream.result()[-1]["message"] == "the server has shut down"


# --- the program ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("signals", [1, 2])
def test_a_signal_ends_the_program_in_order(serve: Any, signals: int) -> None:
    """One lets the requests finish and exits with 0; a second cancels them. Both say what became of them."""
    command = [sys.executable, str(EXAMPLES / "serve.py"), "--port", "0", "--threads", "1", "--grace", "600"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    first = process.stderr.readline()
    assert first.startswith("fashion-mnist is served at http://127.0.0.1:")
    client = Client(int(first.rpartition(":")[2]), None, None)
    path = client.add(steps=5 if signals == 1 else 100, num_samples=4)
    process.send_signal(signal.SIGTERM)
    assert "600 seconds to finish" in process.stderr.readline()
    if signals == 2:
        process.send_signal(signal.SIGINT)
        process.stderr.readline()
    else:
        assert client.end(path)["state"] == "done"
        assert samples_of(client, path).shape == (4, 1, 28, 28)
    assert process.wait(timeout=120) == 0
    rest = process.stderr.read()
    ended = "1 done, 0 failed, 0 cancelled" if signals == 1 else "0 done, 0 failed, 1 cancelled"
    assert f"{ended}; 0 not fetched" in rest
    assert "Traceback" not in rest


@pytest.mark.slow
def test_a_port_in_use(serve: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, str(EXAMPLES / "serve.py"), "--port", str(taken.getsockname()[1])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("cannot listen on 127.0.0.1:")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("options", [["--queue", "0"], ["--port", "x"], ["--allow-host", "*x"], ["--keep", "-1"]])
def test_options(serve: Any, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["serve.py", *options])
    with pytest.raises(SystemExit) as ended:
        serve.main()
    assert ended.value.code == 2
    assert options[0] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_without_the_packages_it_says_how_to_install_them(tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError(\"No module named 'uvicorn'\")")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(EXAMPLES / "serve.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 1
    assert "pip install 'sdesamplers[serve]'" in done.stderr
    assert done.stderr.count("\n") == 1
