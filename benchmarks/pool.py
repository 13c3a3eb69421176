"""Images per second of a pool of mixed requests, compared with the same requests one after the other.

    python benchmarks/pool.py --out benchmarks/results      (some minutes, on an idle machine)
    python benchmarks/pool.py --out out --quick             (a minute; a check that it works)

Writes pool.json and pool.md. The requests differ in sampler, number of steps and seed, and run on the embedded model,
on one thread and on two (`--threads 1 2`):

- one after the other, each by `sds.sample`;
- in an `sds.Pool`, with at most 16 requests at once and 16 rows in a batch, alternating with the former; the time that
  is not spent in the network is the pool's own;
- the network alone at batch sizes 1 and 16: the gain that batches can have here.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from machine import machine, quartiles, sentence, target, write

import sdesamplers as sds

MODEL = "fashion-mnist"
SAMPLERS = ("euler", "dpmpp-2m", "heun", "dpmpp-2m-sde", "ddpm", "unipc", "ab", "euler-maruyama")
ROWS = 16


@dataclass(frozen=True)
class Size:
    """Sizes of the measurements.

    Attributes:
        requests: number of requests.
        steps: steps of the shortest request; the longest has one and a half times as many.
        rounds: repetitions of every measurement.
        calls: calls of the network when it is timed alone.
    """

    requests: int = 48
    steps: int = 8
    rounds: int = 3
    calls: int = 20


QUICK = Size(requests=16, steps=4, rounds=1, calls=3)


def requests(size: Size) -> list[dict[str, Any]]:
    """The sampler, steps and seed of each request."""
    longest = size.steps + size.steps // 2
    return [
        {"sampler": SAMPLERS[k % len(SAMPLERS)], "steps": size.steps + k % (longest - size.steps + 1), "seed": k}
        for k in range(size.requests)
    ]


def one_after_the_other(model: sds.Model, size: Size) -> list[torch.Tensor]:
    """The samples of each request, by `sample`."""
    return [sds.sample(model, **request).samples for request in requests(size)]


@dataclass
class Pooled:
    """A run of all requests in a pool.

    Attributes:
        samples: of each request.
        network: seconds in the network.
        rows: of each batch.
    """

    samples: list[torch.Tensor]
    network: float
    rows: list[int]


def in_a_pool(model: sds.Model, size: Size) -> Pooled:
    """All requests, of which `ROWS` are in the pool at a time."""
    waiting = requests(size)[::-1]
    pool = sds.Pool(model.process, prediction=model.prediction, max_rows=ROWS)
    found: dict[int, torch.Tensor] = {}
    network, rows = 0.0, []
    with torch.inference_mode():
        while True:
            while waiting and len(pool) < ROWS:
                pool.add(
                    sds.Stepper(
                        model.process, prediction=model.prediction, shape=model.shape, clip=model.clip, **waiting.pop()
                    )
                )
            batch = pool.batch()
            if batch is None:
                break
            began = time.perf_counter()
            output = model.predict(batch.x, batch.times, batch.condition)
            network += time.perf_counter() - began
            rows.append(len(batch))
            pool.send(output)  # type: ignore[arg-type]
            found |= {done.id: done.result.samples for done in pool.pop_finished()}
    return Pooled([found[id] for id in sorted(found)], network, rows)


def network_alone(model: sds.Model, rows: int, calls: int) -> float:
    """Seconds per row of the network at a batch size."""
    x = torch.randn(rows, *model.shape)
    with torch.inference_mode():
        model.predict(x, 500.0)
        began = time.perf_counter()
        for _ in range(calls):
            model.predict(x, 500.0)
    return (time.perf_counter() - began) / calls / rows


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the returned value."""
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def measure(size: Size, say: Callable[[str], None]) -> dict[str, Any]:
    """All measurements, alternating."""
    model = sds.load(MODEL)
    in_a_pool(model, QUICK)  # warm up
    alone: list[float] = []
    pooled: list[float] = []
    own: list[float] = []
    single: list[float] = []
    joint: list[float] = []
    rows: list[int] = []
    apart = 0.0
    for turn in range(size.rounds):
        say(f"round {turn + 1} of {size.rounds}")
        seconds, expected = timed(lambda: one_after_the_other(model, size))
        alone.append(seconds)
        seconds, found = timed(lambda: in_a_pool(model, size))
        pooled.append(seconds)
        own.append(1 - found.network / seconds)
        single.append(network_alone(model, 1, size.calls))
        joint.append(network_alone(model, ROWS, size.calls))
        rows = found.rows
        pairs = zip(found.samples, expected, strict=True)
        apart = max(apart, *(float((x - y).abs().max()) for x, y in pairs))
    return {
        "rows": sum(rows) / len(rows),
        "one after the other": quartiles([size.requests / seconds for seconds in alone]),
        "pool": quartiles([size.requests / seconds for seconds in pooled]),
        "gain": quartiles([a / b for a, b in zip(alone, pooled, strict=True)]),
        "network": quartiles([a / b for a, b in zip(single, joint, strict=True)]),
        "own": quartiles(own),
        "apart": apart,
    }


def spread(values: dict[str, float], digits: int = 3) -> str:
    """Median and quartiles."""
    middle = f"{values['median']:.{digits}g}"
    if values["q25"] == values["q75"]:
        return middle
    return f"{middle} [{values['q25']:.{digits}g}, {values['q75']:.{digits}g}]"


def spoken(rounds: int) -> str:
    """How often the measurements were repeated."""
    return "One round." if rounds == 1 else f"Median [quartiles] of {rounds} alternating rounds."


LINES = {
    "one after the other": "images per second, one after the other",
    "pool": "images per second, pool",
    "gain": "gain of the pool",
    "network": f"gain of the network alone, rows per second at batch {ROWS} relative to batch 1",
    "own": "share of the pool's time that is not spent in the network",
}


def report(facts: dict[str, Any]) -> str:
    """The findings as Markdown."""
    size, columns, about = facts["size"], facts["found"], facts["machine"]
    busy = about["load"] is not None and about["load"] > about["cores"] / 2
    warning = (
        " **Other programs used the processor during this run**; compare the lines of a column, and not the columns."
    )
    mean = next(iter(columns.values()))["rows"]
    lines = [
        "# A pool of mixed requests",
        "",
        f"{sentence(about)} {spoken(size['rounds'])}{warning if busy else ''}",
        "",
        f"{size['requests']} requests of one image, {len(SAMPLERS)} samplers, {size['steps']} to "
        f"{size['steps'] * 3 // 2} steps, on the embedded model: each by `sds.sample`, one after the other; and in an "
        f"`sds.Pool` with at most {ROWS} requests and {ROWS} rows a batch, {mean:.1f} on average.",
        "",
        f"| | {' | '.join(f'{count} thread' + 's' * (count != '1') for count in columns)} |",
        f"|---|{'--:|' * len(columns)}",
    ]
    lines += [
        f"| {name} | {' | '.join(spread(each[key]) for each in columns.values())} |" for key, name in LINES.items()
    ]
    apart = " | ".join(f"{each['apart']:.2g}" for each in columns.values())
    return "\n".join(
        [
            *lines,
            f"| largest difference of a sample from its run alone, data in [-1, 1] | {apart} |",
            "",
            "The gain of the pool is limited by that of the network: on a CPU the convolutions of one image already "
            "keep the arithmetic units busy, and a batch saves the fixed costs of calls.",
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the report")
    parser.add_argument("--quick", action="store_true", help="small sizes and one round")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads of the network")
    parser.add_argument("--rounds", type=int, default=None, help="repetitions of every measurement")
    args = parser.parse_args(arguments)
    size = QUICK if args.quick else Size()
    size = size if args.rounds is None else replace(size, rounds=args.rounds)
    facts: dict[str, Any] = {"machine": machine(), "size": vars(size), "found": {}}
    for threads in args.threads:
        torch.set_num_threads(threads)
        facts["found"][str(threads)] = measure(size, lambda line: print(line, flush=True))
    last = facts["found"][str(args.threads[-1])]
    facts["targets"] = [
        target("seconds per image of the pool relative to one after the other", 1 / last["gain"]["median"], 1 / 3),
        target("share of the pool's time that is not spent in the network", last["own"]["median"], 0.1),
    ]
    write(args.out, "pool", facts, report(facts))


if __name__ == "__main__":
    main()
