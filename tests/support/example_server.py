"""examples/serve.py in a thread of the test's process, on a free port, and a client: the fixture `start_server`."""

import http.client
import importlib.util
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import sdesamplers as sds

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Reply:
    """A response."""

    code: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)

    @property
    def detail(self) -> str:
        """The message of a refusal."""
        return self.json["detail"]


class Client:
    """A client of one server, with a connection of its own for each call.

    Attributes:
        worker, server: the server's objects, for tests that look inside.
    """

    def __init__(self, port: int, worker: Any, server: Any) -> None:
        self.port, self.worker, self.server = port, worker, server
        self.url = f"http://127.0.0.1:{port}"

    def connect(self) -> http.client.HTTPConnection:
        """A new connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """A response; the body is sent as JSON if it is not bytes already."""
        connection = self.connect()
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} if data is not None else {}
        connection.request(method, path, data, {**sent, **{name.replace("_", "-"): v for name, v in headers.items()}})
        response = connection.getresponse()
        reply = Reply(response.status, response.headers, response.read())
        connection.close()
        return reply

    def add(self, **wanted: Any) -> str:
        """The path of a new request."""
        reply = self.call("POST", "/api/requests", wanted)
        assert reply.code == 202, reply.body
        return reply.headers["Location"]

    def status(self, path: str) -> dict[str, Any]:
        """The state of a request."""
        return self.call("GET", path).json

    def statuses(self, path: str) -> list[dict[str, Any]]:
        """The events of a request, until the server ends the stream."""
        reply = self.call("GET", path + "/events")
        assert reply.code == 200, reply.body
        assert reply.headers["Content-Type"].startswith("text/event-stream")
        lines = reply.body.decode().splitlines()
        return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]

    def end(self, path: str) -> dict[str, Any]:
        """The state in which a request ends."""
        return self.statuses(path)[-1]


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread does soon."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="session")
def serve() -> Any:
    """The example as a module; skips the test if the packages of the extra "serve" are not installed."""
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    sys.path.insert(0, str(EXAMPLES))
    try:
        spec = importlib.util.spec_from_file_location("example_serve", EXAMPLES / "serve.py")
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules["example_serve"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXAMPLES))
    return module


@contextmanager
def servers(serve: Any) -> Iterator[Callable[..., Client]]:
    """A function that starts a server of a model, with other limits than the usual ones, and returns its client."""
    started: list[tuple[Client, threading.Thread]] = []

    def start(model: sds.Model, **limits: Any) -> Client:
        worker = serve.Worker(model, serve.Limits(**limits))
        server, listening = serve.Server(worker), socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        client = Client(listening.getsockname()[1], worker, server)
        started.append((client, thread))
        wait_until(lambda: server.started)
        return client

    yield start
    for client, thread in started:
        client.worker.close(grace=0)
        client.server.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive()


@pytest.fixture
def start_server(serve: Any) -> Iterator[Callable[..., Client]]:
    """Starts servers that end with the test; see `servers`."""
    with servers(serve) as start:
        yield start
