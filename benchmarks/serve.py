"""Images per second and latency of examples/serve.py on loopback, for one client and for many.

    python benchmarks/serve.py --out benchmarks/results     (some minutes, on an idle machine)
    python benchmarks/serve.py --out out --quick            (half a minute; a check that it works)

Writes serve.json and serve.md. The server runs in a process of its own, and the clients are threads of this one. A
client sends a request for one image, follows its events to the end, fetches the samples, and sends the next. The
numbers of clients alternate, and each has the same number of requests in all:

- one request at a time by `sds.sample`, in this process and without a server;
- 1, 8 and 32 clients;
- 32 clients of which a third cancel, with every sample compared with `sds.sample`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import NOT_RUN, machine, quartiles, sentence, version, write
from safetensors.torch import load

import sdesamplers as sds

MODEL = "fashion-mnist"
SERVER = Path(__file__).parents[1] / "examples" / "serve.py"
SAMPLERS = ("euler", "dpmpp-2m", "heun", "dpmpp-2m-sde", "ddpm", "unipc", "ab", "euler-maruyama")
CLIENTS = (1, 8, 32)


@dataclass(frozen=True)
class Size:
    """Sizes of the measurements.

    Attributes:
        requests: requests of each number of clients, in one round.
        steps: steps of the shortest request; the longest has one and a half times as many.
        rounds: repetitions of every measurement.
    """

    requests: int = 64
    steps: int = 8
    rounds: int = 3


QUICK = Size(requests=8, steps=2, rounds=1)


def wanted(k: int, size: Size) -> dict[str, Any]:
    """The arguments of a request: eight samplers, several numbers of steps, a seed of its own."""
    return {"sampler": SAMPLERS[k % len(SAMPLERS)], "steps": size.steps + k // 8 % (size.steps // 2 + 1), "seed": k}


class Client:
    """A client of the server, with one connection."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)

    def call(self, method: str, path: str, body: Any = None) -> bytes:
        """The body of a response; RuntimeError for a refusal."""
        data, headers = (None, {}) if body is None else (json.dumps(body), {"Content-Type": "application/json"})
        self.connection.request(method, path, data, headers)
        response = self.connection.getresponse()
        content = response.read()
        if response.status >= 400:
            raise RuntimeError(f"{method} {path}: {response.status} {content[:200].decode(errors='replace')}")
        return content

    def add(self, arguments: dict[str, Any]) -> str:
        """The path of a new request."""
        return f"/api/requests/{json.loads(self.call('POST', '/api/requests', arguments))['id']}"

    def follow(self, path: str) -> str:
        """The state in which a request ends, at the end of its stream of events."""
        events = self.call("GET", path + "/events").decode().splitlines()
        return json.loads([line for line in events if line.startswith("data: ")][-1].removeprefix("data: "))["state"]

    def samples(self, path: str) -> torch.Tensor:
        """The samples of a finished request."""
        return load(self.call("GET", path + "/samples.safetensors"))["samples"]


@dataclass
class Outcome:
    """One request of a run.

    Attributes:
        k: its number; see `wanted`.
        cancels: True if its client cancels it.
        state: in which it ended.
        seconds: until its samples had arrived.
        samples: (1, *shape); None if it has none.
    """

    k: int
    cancels: bool
    state: str
    seconds: float
    samples: torch.Tensor | None


def run(port: int, clients: int, size: Size, cancels: bool = False) -> tuple[float, list[Outcome]]:
    """All requests, sent by some clients at once, of which one in three is cancelled if `cancels`; seconds in all."""
    numbers = count()

    def work(_: int) -> list[Outcome]:
        client, found = Client(port), list[Outcome]()
        while (k := next(numbers)) < size.requests:
            began = time.perf_counter()
            path = client.add(wanted(k, size))
            is_cancelled = cancels and k % 3 == 0
            if is_cancelled:
                client.call("DELETE", path)
            state = client.follow(path)
            samples = client.samples(path) if state == "done" else None
            found.append(Outcome(k, is_cancelled, state, time.perf_counter() - began, samples))
        client.connection.close()
        return found

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        parts = list(threads.map(work, range(clients)))
    return time.perf_counter() - began, [each for part in parts for each in part]


def alone(model: sds.Model, size: Size) -> tuple[float, list[torch.Tensor]]:
    """The samples of all requests by `sample`, one after the other; seconds in all."""
    began = time.perf_counter()
    samples = [sds.sample(model, **wanted(k, size)).samples for k in range(size.requests)]
    return time.perf_counter() - began, samples


def faults(outcomes: Sequence[Outcome], expected: Sequence[torch.Tensor]) -> tuple[list[str], float]:
    """What is lost or mixed up, and the largest difference of a sample from that of its request alone."""
    found, apart = [], 0.0
    if (numbers := sorted(each.k for each in outcomes)) != list(range(len(expected))):
        found.append(f"{len(expected)} requests were sent, and {len(numbers)} have ended")
    for each in outcomes:
        if each.state != "done" and not (each.cancels and each.state == "cancelled"):
            found.append(f"request {each.k} is {each.state}")
        if each.samples is not None:
            distance, nearest = min((float((each.samples - x).abs().max()), j) for j, x in enumerate(expected))
            apart = max(apart, distance)
            if nearest != each.k:
                found.append(f"request {each.k} has the samples of {nearest}")
    return found, apart


@contextmanager
def server(threads: int) -> Iterator[int]:
    """A server in a process of its own; its port."""
    command = [sys.executable, str(SERVER), "--port", "0", "--threads", str(threads), "--queue", "64"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:  # ends with the process, if it fails
            lines.append(line)
            if " is served at " in line:
                break
        else:
            raise RuntimeError("".join(lines))
        yield int(line.rpartition(":")[2])
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def measure(port: int, size: Size) -> dict[str, Any]:
    """All measurements, alternating."""
    model = sds.load(MODEL)
    run(port, 8, size)  # so that both sides have seen every kind of request
    alone(model, replace(size, requests=len(SAMPLERS)))
    rates: dict[str, list[float]] = {}
    latencies: dict[str, list[float]] = {}
    lost: list[str] = []
    apart, cancelled, finished = 0.0, 0, 0
    for turn in range(size.rounds):
        print(f"round {turn + 1} of {size.rounds}", flush=True)
        seconds, expected = alone(model, size)
        rates.setdefault("alone", []).append(size.requests / seconds)
        for clients in CLIENTS:
            seconds, outcomes = run(port, clients, size)
            rates.setdefault(str(clients), []).append(size.requests / seconds)
            latencies.setdefault(str(clients), []).extend(each.seconds for each in outcomes)
            found, difference = faults(outcomes, expected)
            lost, apart = lost + found, max(apart, difference)
        _, outcomes = run(port, CLIENTS[-1], size, cancels=True)
        found, difference = faults(outcomes, expected)
        lost, apart = lost + found, max(apart, difference)
        cancelled += sum(each.state == "cancelled" for each in outcomes)
        finished += sum(each.state == "done" for each in outcomes)
    return {
        "rates": {name: quartiles(each) for name, each in rates.items()},
        "gains": {
            name: quartiles([a / b for a, b in zip(each, rates["1"], strict=True)]) for name, each in rates.items()
        },
        "latencies": {
            name: dict(zip(("median", "p95"), map(float, np.percentile(each, [50, 95])), strict=True))
            for name, each in latencies.items()
        },
        "cancelled": cancelled,
        "finished": finished,
        "faults": lost,
        "apart": apart,
    }


def report(facts: dict[str, Any]) -> str:
    """The findings as Markdown."""
    size, found, about = facts["size"], facts["found"], facts["machine"]
    busy = about["load"] is not None and about["load"] > about["cores"] / 2
    warning = " **Other programs used the processor during this run**; compare the lines, and not their seconds."
    rounds = "One round." if size["rounds"] == 1 else f"Medians of {size['rounds']} alternating rounds."
    lines = [
        "# The server under load",
        "",
        f"{sentence(about)} FastAPI {facts['fastapi']}, uvicorn {facts['uvicorn']}. {rounds}{warning if busy else ''}",
        "",
        f"{size['requests']} requests of one image for each line, {len(SAMPLERS)} samplers, {size['steps']} to "
        f"{size['steps'] * 3 // 2} steps, on the embedded model with {facts['threads']} "
        f"thread{'s' * (facts['threads'] != 1)}, at most 16 rows a batch. Server and clients share the machine. A "
        "latency is from sending a request until its samples have arrived.",
        "",
        "| | images per second | relative to 1 client | median latency | 95th percentile |",
        "|---|--:|--:|--:|--:|",
    ]
    names = {"alone": "`sds.sample`, without a server", **{str(n): f"{n} client{'s' * (n != 1)}" for n in CLIENTS}}
    for key, name in names.items():
        rate, gain = found["rates"][key]["median"], found["gains"][key]["median"]
        times = found["latencies"].get(key)
        latency = f"{times['median']:.2g} s | {times['p95']:.2g} s" if times else f"{1 / rate:.2g} s |"
        lines.append(f"| {name} | {rate:.3g} | {gain:.2f} | {latency} |")
    sent = size["requests"] * size["rounds"]
    faults = "; ".join(found["faults"][:5]) or "none was lost, failed or had the samples of another"
    lines += [
        "",
        f"With {CLIENTS[-1]} clients and every third request cancelled: of {sent} requests {found['finished']} were "
        f"finished and {found['cancelled']} cancelled (a request may finish before its cancellation arrives). Of all "
        f"requests, {faults}. The largest difference of a sample from its run alone is {found['apart']:.2g}, with data "
        "in [-1, 1].",
        "",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write the report; 1 if a request was lost or mixed up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the report")
    parser.add_argument("--quick", action="store_true", help="small sizes and one round")
    parser.add_argument("--threads", type=int, default=1, help="threads of the network")
    parser.add_argument("--rounds", type=int, default=None, help="repetitions of every measurement")
    args = parser.parse_args(arguments)
    missing = [name for name in ("fastapi", "uvicorn", "prometheus-client") if version(name) is None]
    if missing:
        print(f"{', '.join(missing)} not installed; pip install 'sdesamplers[serve]'")
        return NOT_RUN
    size = QUICK if args.quick else Size()
    size = size if args.rounds is None else replace(size, rounds=args.rounds)
    torch.set_num_threads(args.threads)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    facts: dict[str, Any] = {"machine": machine(), "size": vars(size), "threads": args.threads}
    facts |= {name: version(name) for name in ("fastapi", "uvicorn")}
    with server(args.threads) as port:
        facts["found"] = measure(port, size)
    write(args.out, "serve", facts, report(facts))
    return int(bool(facts["found"]["faults"]))


if __name__ == "__main__":
    sys.exit(main())
