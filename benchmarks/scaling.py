"""Images per second with one and two processes, and the cost of a job compared with the network alone.

    python benchmarks/scaling.py --out benchmarks/results      (about fifteen minutes, on an idle machine)
    python benchmarks/scaling.py --out out --quick             (a minute or two; a check that it works)

Writes scaling.json and scaling.md. All measurements use the embedded model and one thread per process:

- one process and two processes of accelerate's launcher (gloo), alternating: the time of the whole `sdesamplers sample`
  command, and of its steady part, from the first event in its log to the last shard; the two outputs must be equal byte
  for byte. For comparison, the network alone in one process and in two simultaneous, independent processes;
- `generate` in one process relative to the evaluations of the network alone at the same batch size, alternating, with
  its parts: the drive loop and its noise (`sample`), and the files;
- the network in bfloat16, channels last and compiled, compared with float32: speed, and the errors of the samples.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from machine import machine, quartiles, sentence, target, write

MODEL = "fashion-mnist"
LAUNCHER = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes", "2",
            "--mixed_precision", "no", "--dynamo_backend", "no")  # fmt: skip
ALONE = """
import sys, time, torch, sdesamplers as sds
model, count, size = sds.load(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
x = torch.randn(size, *model.shape)
with torch.inference_mode():
    model.network(x, 500.0)
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    for _ in range(count):
        model.network(x, 500.0)
    print(time.perf_counter() - began)
"""
"""Script that runs the network alone: it waits for a line on stdin, runs, and prints its time."""


@dataclass(frozen=True)
class Size:
    """Sizes of the measurements.

    Attributes:
        images: images of a job in separate processes.
        batch: batch size everywhere.
        nfe: evaluations per image.
        rounds: repetitions of every measurement.
        batches: batches of a job within this process.
        calls: calls of the network when it is timed alone or as a variant.
    """

    images: int = 1280
    batch: int = 64
    nfe: int = 10
    rounds: int = 3
    batches: int = 4
    calls: int = 6


QUICK = Size(images=64, batch=16, nfe=3, rounds=1, batches=2, calls=2)


# Processes


def environment() -> dict[str, str]:
    """The environment of a process with one thread."""
    return {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")}


def free_port() -> str:
    """An unused port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def job(processes: int, size: Size, folder: Path) -> dict[str, float]:
    """Seconds of a job run as a command: of the whole command, and of its steady part."""
    arguments = ["-m", "sdesamplers", "sample", MODEL, "--sampler", "fast", "--nfe", str(size.nfe), "--quiet"]
    arguments += ["-n", str(size.images), "--batch-size", str(size.batch), "--shard-size", str(size.batch)]
    arguments += ["--format", "safetensors", "--out", str(folder / "out"), "--json-log", str(folder / "log.jsonl")]
    launcher = [*LAUNCHER, "--main_process_port", free_port()] if processes == 2 else []
    began = time.perf_counter()
    subprocess.run([sys.executable, *launcher, *arguments], env=environment(), check=True, capture_output=True)
    return {"end to end": time.perf_counter() - began, "steady": steady(sorted(folder.glob("log*.jsonl")))}


def steady(logs: Sequence[Path]) -> float:
    """Seconds from the start of the first process to the last shard."""
    events = [json.loads(line) for log in logs for line in log.read_text(encoding="utf-8").splitlines()]
    times = {kind: [datetime.fromisoformat(e["time"]) for e in events if e["event"] == kind] for kind in
             ("begin", "shard")}  # fmt: skip
    return (max(times["shard"]) - min(times["begin"])).total_seconds()


def alone(processes: int, size: Size) -> float:
    """Seconds that the network alone takes for its calls, in the slowest of several simultaneous processes."""
    calls = str(size.calls * 2)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", ALONE, MODEL, calls, str(size.batch)],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    for process in started:
        process.stdout.readline()  # type: ignore[union-attr]
    for process in started:
        process.stdin.write("\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    return max(float(process.communicate()[0]) for process in started)


def contents(folder: Path) -> dict[str, bytes]:
    """The contents of every file of a job."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def processes(size: Size, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure one process and two, alternating."""
    seconds: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    network: dict[int, list[float]] = {1: [], 2: []}
    equal = True
    for turn in range(size.rounds):
        with tempfile.TemporaryDirectory() as place:
            for count in (1, 2) if turn % 2 == 0 else (2, 1):
                say(f"processes: round {turn + 1} of {size.rounds}, {count}")
                folder = Path(place) / str(count)
                folder.mkdir()
                seconds[count].append(job(count, size, folder))
                network[count].append(alone(count, size))
            equal &= contents(Path(place) / "1" / "out") == contents(Path(place) / "2" / "out")
    found: dict[str, Any] = {"files equal": equal}
    for kind in ("end to end", "steady"):
        pairs = zip(seconds[1], seconds[2], strict=True)
        found[kind] = {
            "one": quartiles([size.images / each[kind] for each in seconds[1]]),
            "two": quartiles([size.images / each[kind] for each in seconds[2]]),
            "gain": quartiles([one[kind] / two[kind] for one, two in pairs]),
        }
    rates = {n: [n * 2 * size.calls * size.batch / s for s in network[n]] for n in (1, 2)}
    found["network alone, evaluations"] = {
        "one": quartiles(rates[1]),
        "two": quartiles(rates[2]),
        "gain": quartiles([two / one for one, two in zip(rates[1], rates[2], strict=True)]),
    }
    return found


# Within one process


def overhead(size: Size, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure `generate` and `sample` relative to the network's calls alone, alternating."""
    import torch

    import sdesamplers as sds

    model = sds.load(MODEL)
    count, calls = size.batches * size.batch, size.batches * size.nfe
    x = torch.randn(size.batch, *model.shape)
    settings: dict[str, Any] = {"num_samples": count, "batch_size": size.batch, "nfe": size.nfe}

    def network() -> None:
        with torch.inference_mode():
            for _ in range(calls):
                model.network(x, 500.0)

    def written(*formats: str) -> Callable[[], None]:
        def make() -> None:
            with tempfile.TemporaryDirectory() as place:
                sds.generate(model, "fast", out=place, formats=formats, shard_size=size.batch, **settings)

        return make

    ways: dict[str, Callable[[], Any]] = {
        "the network alone": network,
        "sample": lambda: sds.sample(model, "fast", **settings),
        "generate, safetensors": written("safetensors"),
        "generate, png": written("png"),
        "generate, webdataset": written("webdataset"),
    }
    return {"rows": in_turns(ways, size.rounds, say), "calls": calls, "batch": size.batch}


def in_turns(ways: dict[str, Callable[[], Any]], rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds of each function, and ratios to the first one just before and after, in wall-clock and processor time."""
    first, *others = ways
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    ratios: dict[str, list[tuple[float, float]]] = {name: [] for name in others}
    for make in ways.values():
        make()  # warm up: compile files, allocate memory
    for turn in range(rounds):
        before = timed(ways[first])
        seconds[first].append(before[0])
        for name in others:
            say(f"round {turn + 1} of {rounds}, {name}")
            took, after = timed(ways[name]), timed(ways[first])
            seconds[name].append(took[0])
            seconds[first].append(after[0])
            ratios[name].append((2 * took[0] / (before[0] + after[0]), 2 * took[1] / (before[1] + after[1])))
            before = after
    rows: dict[str, Any] = {name: {"seconds": quartiles(values)} for name, values in seconds.items()}
    for name, found in ratios.items():
        clock, processor = zip(*found, strict=True)
        rows[name] |= {
            "ratio": quartiles(clock),
            "processor": quartiles(processor),
            "faster": quartiles(inverse(clock)),
        }
    return rows


def inverse(values: Sequence[float]) -> list[float]:
    """The reciprocals."""
    return [1 / value for value in values]


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """(wall-clock seconds, processor seconds of all threads)."""
    began = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began[0], time.process_time() - began[1]


# Variants of the network


def variants(size: Size, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure variants of the network against float32: speed, and the errors of the samples."""
    import torch

    import sdesamplers as sds

    plain = sds.load(MODEL)
    settings: dict[str, Any] = {"nfe": size.nfe, "num_samples": size.batch}
    expected = sds.sample(plain, "fast", **settings)
    pixels = torch.stack([levels(image) for image in expected.images])
    rows: dict[str, Any] = {}
    forms: dict[str, dict[str, Any]] = {
        "bfloat16": {"dtype": "bf16"},
        "mixed precision bf16": {"mixed_precision": "bf16"},
        "channels last": {"channels_last": True},
        "compiled": {"compile": True},
        "compiled, channels last": {"compile": True, "channels_last": True},
    }
    for name, options in forms.items():
        say(f"{name}: load")
        try:
            model = sds.load(MODEL, **options)
            began = time.perf_counter()
            got = sds.sample(model, "fast", **settings)
            first = time.perf_counter() - began
        except Exception as error:  # no compiler, or an instruction that this processor does not support
            rows[name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"}
            continue
        calls = in_turns({"float32": calling(plain, size), name: calling(model, size)}, max(size.rounds, 3), say)
        off = (torch.stack([levels(image) for image in got.images]) - pixels).abs()
        rows[name] = {
            "speed": calls[name]["faster"],
            "first": first,
            "rms": float((got.samples - expected.samples).square().mean().sqrt()),
            "largest": float((got.samples - expected.samples).abs().max()),
            "levels": float(off.mean()),
            "same": float((off == 0).float().mean()),
        }
    return {"rows": rows, "batch": size.batch, "nfe": size.nfe}


def calling(model: Any, size: Size) -> Callable[[], None]:
    """A function that makes several calls of a model."""
    import torch

    x = torch.randn(size.batch, *model.shape).to(model.dtype)

    def run() -> None:
        with torch.inference_mode():
            for _ in range(size.calls):
                model.predict(x, 500.0)

    return run


def levels(image: Any) -> Any:
    """The grey levels of an image."""
    import numpy as np
    import torch

    return torch.from_numpy(np.asarray(image).astype("float32"))


# The report


def spread(values: dict[str, float], digits: int = 3) -> str:
    """Median and quartiles."""
    return f"{values['median']:.{digits}g} [{values['q25']:.{digits}g}, {values['q75']:.{digits}g}]"


def report(facts: dict[str, Any]) -> str:
    """The findings as Markdown."""
    size, two = facts["size"], facts["processes"]
    lines = [
        "# Many samples with one and two processes",
        "",
        f"{sentence(facts['machine'])} One thread per process, median [quartiles] of {size['rounds']} alternating "
        "rounds.",
        "",
        f"`sdesamplers sample {MODEL} --sampler fast --nfe {size['nfe']} -n {size['images']} --batch-size "
        f"{size['batch']}`, and the same with two processes of `accelerate launch` (gloo). The files are "
        f"{'equal byte for byte' if two['files equal'] else '**not equal**'}.",
        "",
        "| images per second | one process | two processes | gain |",
        "|---|--:|--:|--:|",
    ]
    names = {
        "end to end": "the whole command",
        "steady": "steady part, without start-up",
        "network alone, evaluations": "the network alone in independent processes (evaluations per second)",
    }
    for key, name in names.items():
        lines.append(f"| {name} | {' | '.join(spread(two[key][column]) for column in ('one', 'two', 'gain'))} |")
    inside = facts["overhead"]
    lines += [
        "",
        f"Within one process, {inside['calls']} evaluations of batches of {inside['batch']}, relative to the network's "
        "calls alone just before and after, in wall-clock time and in processor time of all threads:",
        "",
        "| | seconds | relative to the network alone | the same in processor time |",
        "|---|--:|--:|--:|",
    ]
    for name, row in inside["rows"].items():
        over = [spread(row[column], 4) if column in row else "1" for column in ("ratio", "processor")]
        lines.append(f"| {name} | {spread(row['seconds'])} | {' | '.join(over)} |")
    forms = facts["variants"]
    lines += [
        "",
        f"Variants of the network, compared with float32: speed at batch size {forms['batch']}; errors of the samples "
        f"of `fast` at {forms['nfe']} evaluations from the same seeds, in the range [-1, 1] and in grey levels of 255.",
        "",
        "| | speed-up | first batch, s | RMS error | largest error | mean error, grey levels | equal pixels |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in forms["rows"].items():
        if "failed" in row:
            lines.append(f"| {name} | failed: {row['failed'].replace('|', '/')} | | | | | |")
            continue
        error = f"{row['rms']:.2g} | {row['largest']:.2g} | {row['levels']:.2g} | {100 * row['same']:.1f}%"
        lines.append(f"| {name} | {spread(row['speed'])} | {row['first']:.1f} | {error} |")
    return "\n".join([*lines, ""])


def targets(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The required bounds and the measurements."""
    gain = facts["processes"]["steady"]["gain"]["median"]
    ratio = facts["overhead"]["rows"]["generate, safetensors"]["ratio"]["median"]
    return [
        target("images per second of one process relative to two (gain of 1.85)", 1 / gain, 1 / 1.85),
        target("1 if files of one and two processes differ", 0.0 if facts["processes"]["files equal"] else 1.0, 0.0),
        target("wall time of a job relative to its evaluations of the network alone", ratio, 1.03),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the report")
    parser.add_argument("--quick", action="store_true", help="small sizes and one round")
    args = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    size = QUICK if args.quick else Size()
    say = lambda line: print(line, flush=True)  # noqa: E731
    facts: dict[str, Any] = {"machine": machine(), "size": vars(size)}
    facts["processes"] = processes(size, say)
    facts["overhead"] = overhead(size, say)
    facts["variants"] = variants(size, say)
    facts["targets"] = targets(facts)
    write(args.out, "scaling", facts, report(facts))


if __name__ == "__main__":
    main()
