"""Tests and measurements that need a CUDA device, in under eight minutes.

    python benchmarks/gpu.py --out benchmarks/results

Writes gpu.md and gpu.json. The embedded model on the device is compared with the CPU and with diffusers: the same
samples up to rounding, bit for bit the same noise, no synchronisation during a run (torch's sync debug mode set to
"error"), half precision, compiled and captured networks, two streams, memory, time. Without a device the report states
that it was not run, and the exit code is 77. `--device cpu --quick` tests the script on a tiny network, with the parts
that do not need CUDA.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import NOT_RUN, machine, quartiles, sentence, target, write
from torch import Tensor

import sdesamplers as sds

SAMPLERS = (
    *("euler", "heun", "ddim", "dpmpp-2m", "unipc", "abm", "quality", "fast"),
    *("euler-ancestral", "ddpm", "dpmpp-2m-sde", "sa-solver"),
)
"""Twelve samplers, the last four of which are stochastic."""
DIFFUSERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp-2m": "DPMSolverMultistepScheduler",
}


@dataclass
class Bench:
    """Settings and results of the run.

    Attributes:
        device: the device to measure on.
        quick: use a tiny network and small sizes.
        deadline: in `time.monotonic`; no part starts after it.
        rows: measurements: part, what, measured, limit, met.
        skipped: part -> the reason why it was not run.
    """

    device: torch.device
    quick: bool
    deadline: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def model(self, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> sds.Model:
        """The embedded model, or for a quick run a tiny one of the same shape."""
        place = device or self.device
        if not self.quick:
            return sds.load("fashion-mnist", device=place, dtype=dtype)
        table = np.linspace(1e-4, 0.02, 1000)
        return sds.wrap(tiny(place, dtype), (1, 28, 28), betas=table, prediction="v", data_range=(-1, 1))

    def require(self, what: str, measured: float, limit: float, unit: str = "") -> None:
        """Record a measurement that must not exceed a limit."""
        self.rows.append({**target(what, measured, limit), "unit": unit})

    def record(self, what: str, measured: float, unit: str) -> None:
        """Record a measurement without a limit."""
        self.rows.append({"what": what, "measured": measured, "limit": None, "met": None, "unit": unit})

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)


def tiny(device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """A network with a small v prediction, so that samples stay near N(0, 1)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Tiny().to(device, dtype)


class Tiny(torch.nn.Module):
    """Two convolutions, scaled by the timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        level = (1 + t.float() / 1000).to(x.dtype)[:, None, None, None]
        return 0.1 * self.last(torch.nn.functional.silu(level * self.first(x)))


@contextmanager
def sync_is_an_error(bench: Bench) -> Iterator[None]:
    """Make every synchronisation with the device raise an error."""
    if not bench.cuda:
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class Guarded(sds.Model):
    """A model that forbids synchronisation from the first to the last evaluation of a run.

    Synchronisation is allowed at the ends of a run, where the samples and the finite check go to the host.
    """

    def __init__(self, model: sds.Model, bench: Bench, evaluations: int) -> None:
        self.model, self.bench, self.evaluations, self.calls = model, bench, evaluations, 0
        self.process, self.prediction, self.shape = model.process, model.prediction, model.shape
        self.dtype, self.device, self.data_range = model.dtype, model.device, model.data_range
        self.name, self.network = model.name, model.network
        self._guard: Any = None

    def predict(self, x: Tensor, t: Any, condition: Any = None) -> Any:
        first, self.calls = self.calls % self.evaluations == 0, self.calls + 1
        if first:
            self._guard = sync_is_an_error(self.bench)
            self._guard.__enter__()
        try:
            return self.model.predict(x, t, condition)
        finally:
            if self.calls % self.evaluations == 0:
                self._guard.__exit__(None, None, None)


def same_samples(bench: Bench) -> None:
    """Samples of twelve samplers on the device and on the CPU."""
    count, steps = (2, 4) if bench.quick else (8, 12)
    with exact_convolutions():
        here, there = bench.model(), bench.model(device=torch.device("cpu"))
        for name in SAMPLERS:
            settings = {"steps": steps, "num_samples": count, "seed": 3}
            ours, theirs = (sds.sample(model, name, **settings).samples for model in (here, there))
            scale = float(theirs.abs().max())
            bench.require(
                f"{name}: largest difference from the CPU's samples", float((ours - theirs).abs().max()) / scale, 2e-3
            )


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Turn off TF32, which has a precision of 10 bits instead of the CPU's 24."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def same_noise(bench: Bench) -> None:
    """The state at the first evaluation and a later draw, compared bit for bit."""
    states: dict[str, Tensor] = {}
    for place in (bench.device, torch.device("cpu")):
        model = sds.FunctionModel(lambda x, t: 0.0 * x, sds.EDM(), "sample", (4, 32, 32), device=place)

        def keep(event: Any, place: torch.device = place) -> None:
            if event.evaluation == 0:
                states[str(place)] = event.x.cpu().clone()

        sds.sample(model, "euler", steps=2, num_samples=16, seed=11, callback=keep)
    differing = int((states[str(bench.device)] != states["cpu"]).sum())
    bench.require("numbers of the starting noise that differ from the CPU's", differing, 0)
    source = sds.NormalSource(7, list(range(16)), (4, 32, 32))
    drawn = [source.draw(5).to(bench.device).cpu() for _ in range(2)]
    bench.require("numbers of a later draw that differ", int((drawn[0] != drawn[1]).sum()), 0)


def no_waiting(bench: Bench) -> None:
    """`sample`, `Scheduler.step` and a job, with every synchronisation an error."""
    steps = 4 if bench.quick else 10
    inner = bench.model()
    settings: dict[str, Any] = {"steps": steps, "num_samples": 2}
    for name in SAMPLERS:
        guarded = Guarded(inner, bench, sds.sample(inner, name, **settings).nfe)
        bench.require(f"sample {name}: synchronisations", failures(partial(sds.sample, guarded, name, **settings)), 0)
    guarded = Guarded(inner, bench, sds.sample(inner, "dpmpp-2m", steps=steps).nfe)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"steps": steps, "num_samples": 8, "batch_size": 4, "out": folder, "formats": ["safetensors"]}
        job = partial(sds.generate, guarded, "dpmpp-2m", **settings)
        bench.require("a job of two batches: synchronisations", failures(job), 0)
    for name in ("ddim", "euler", "dpmpp-2m", "unipc", "euler-ancestral", "dpmpp-2m-sde"):
        found = failures(partial(stepped, bench, name, steps))
        bench.require(f"Scheduler.step {name}: synchronisations", found, 0)


def failures(run: Callable[[], Any]) -> int:
    """1 if a run raised torch's synchronisation error, 0 if it succeeded; other errors are raised."""
    try:
        run()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return 1
    return 0


def stepped(bench: Bench, name: str, steps: int) -> None:
    """The loop of a pipeline with our scheduler, with synchronisation forbidden after the first step."""
    scheduler = sds.Scheduler.from_config({"num_train_timesteps": 1000, "_class_name": "DDIMScheduler"}, name)
    scheduler.set_timesteps(steps, device=bench.device)
    x = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0)).to(bench.device)
    timesteps = list(scheduler.timesteps)
    with torch.no_grad():
        x = one_step(scheduler, timesteps[0], x)  # the first step may synchronise while it sets up the run
        with sync_is_an_error(bench):
            for t in timesteps[1:]:
                x = one_step(scheduler, t, x)


def one_step(scheduler: Any, t: Any, x: Tensor) -> Tensor:
    """One evaluation in the loop of a pipeline, with a network that returns 0.1 times its input."""
    model_input = scheduler.scale_model_input(x, t)
    return scheduler.step(0.1 * model_input, t, x, return_dict=False)[0]


def half_precision(bench: Bench) -> None:
    """bf16 and fp16 networks compared with float32."""
    settings = {"steps": 4 if bench.quick else 12, "num_samples": 4, "seed": 5}
    exact = sds.sample(bench.model(), "dpmpp-2m", **settings).samples
    for dtype, limit in ((torch.bfloat16, 0.1), (torch.float16, 0.03)):
        got = sds.sample(bench.model(dtype), "dpmpp-2m", **settings).samples
        size = float((got - exact).square().mean().sqrt() / exact.square().mean().sqrt())
        bench.require(f"{str(dtype)[6:]}: RMS difference from float32, of the samples' RMS", size, limit)


def compiled(bench: Bench) -> None:
    """A network compiled by torch.compile, and one whose calls replay a CUDA graph into one output buffer."""
    settings = {"steps": 4 if bench.quick else 12, "num_samples": 4, "seed": 5}
    for name in ("dpmpp-2m", "heun"):
        plain = sds.sample(bench.model(), name, **settings).samples
        scale = float(plain.abs().max())
        model = bench.model()
        model.network.compile(backend="eager" if bench.quick else "inductor")
        got = sds.sample(model, name, **settings).samples
        bench.require(f"torch.compile, {name}: largest difference", float((got - plain).abs().max()) / scale, 5e-3)
        inner = bench.model()
        graphed = sds.wrap(
            Replayed(inner.network), inner.shape, process=inner.process, prediction=inner.prediction,
            dtype=inner.dtype, device=inner.device, clip=inner.clip,
        )  # fmt: skip
        got = sds.sample(graphed, name, **settings).samples
        bench.require(f"CUDA graph, {name}: largest difference", float((got - plain).abs().max()) / scale, 1e-5)


class Replayed(torch.nn.Module):
    """A network captured as a CUDA graph at its first call, so that every output is in the same buffer.

    On other devices only the common buffer is emulated.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.inner, self.replay = network, None

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if self.replay is None or self.x.shape != x.shape:
            self.x, self.t = x.clone(), t.clone()
            self.replay = self.captured() if x.is_cuda else self.emulated()
        self.x.copy_(x)
        self.t.copy_(t)
        self.replay()
        return self.out

    def call(self) -> Tensor:
        return output_of(self.inner(self.x, self.t))

    def emulated(self) -> Callable[[], Any]:
        self.out = self.call().clone()
        return lambda: self.out.copy_(self.call())

    def captured(self) -> Callable[[], Any]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.out = self.call()
        return graph.replay


def output_of(output: Any) -> Tensor:
    """The tensor in the output of a network."""
    return output if isinstance(output, Tensor) else output.sample


def two_streams(bench: Bench) -> None:
    """Two simultaneous runs, in two threads on two streams, compared with the same runs one after the other."""
    model = bench.model()
    settings = {"steps": 4 if bench.quick else 12, "num_samples": 4}
    alone = [sds.sample(model, "euler-ancestral", seed=k, **settings).samples for k in range(2)]
    together: list[Any] = [None, None]

    def run(k: int) -> None:
        stream = torch.cuda.Stream() if bench.cuda else None
        with torch.cuda.stream(stream):
            together[k] = sds.sample(model, "euler-ancestral", seed=k, **settings).samples

    threads = [threading.Thread(target=run, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    apart = max(float((a - b).abs().max()) for a, b in zip(alone, together, strict=True))
    bench.require("two streams: largest difference from one after the other", apart, 1e-3)


def memory(bench: Bench) -> None:
    """Peak memory of samplers on the device, in states, with a network that needs no memory."""
    if not bench.cuda:
        bench.skipped["memory"] = "needs CUDA's allocator"
        return
    shape, count = (4, 256, 256), 16
    size = 4 * count * int(np.prod(shape))
    for name, limit in (("euler", 5), ("heun", 6), ("dpmpp-2m", 7), ("quality", 9), ("euler-ancestral", 7)):
        model = sds.FunctionModel(lambda x, t: x, sds.VP(), "epsilon", shape, device=bench.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        sds.sample(model, name, steps=8, num_samples=count)
        peak = (torch.cuda.max_memory_allocated() - before) / size
        bench.require(f"{name}: peak memory", peak, limit, "states")


def overhead(bench: Bench) -> None:
    """Our loop and `Scheduler.step` compared with diffusers' scheduler, with a network that costs nothing."""
    import diffusers

    steps, rounds = (6, 2) if bench.quick else (50, 9)
    for name, kind in DIFFUSERS.items():
        config = {"num_train_timesteps": 1000}
        sides = {
            "loop": looped(bench, name, steps),
            "step": driven(bench, sds.Scheduler.from_config({**config, "_class_name": kind}, name), steps),
            "diffusers": driven(bench, getattr(diffusers, kind)(**config), steps),
        }
        spent: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(rounds):  # alternating, so that a slow phase of the machine affects all
            for side, run in sides.items():
                bench.wait()
                begin = time.perf_counter()
                evaluations = run()
                bench.wait()
                spent[side].append(1e6 * (time.perf_counter() - begin) / evaluations)
        found = {side: quartiles(times)["median"] for side, times in spent.items()}
        for side in ("loop", "step"):
            bench.record(f"{name}: {side}, microseconds per evaluation", found[side], "us")
            bench.record(f"{name}: {side} over diffusers' {kind}", found[side] / found["diffusers"], "x")


def looped(bench: Bench, name: str, steps: int) -> Callable[[], int]:
    """A function that runs our loop on a model that costs nothing and returns the number of evaluations."""
    output = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(1)).to(bench.device)
    process = sds.DiscreteVP(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    model = sds.FunctionModel(lambda x, t: output, process, "epsilon", (4, 64, 64), device=bench.device)
    return lambda: sds.sample(model, name, steps=steps, spacing="linspace", check_finite=False).nfe


def driven(bench: Bench, scheduler: Any, steps: int) -> Callable[[], int]:
    """A function that runs the loop of a pipeline with a scheduler and returns the number of evaluations."""
    start, output = (
        torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(k)).to(bench.device) for k in (0, 1)
    )

    def run() -> int:
        scheduler.set_timesteps(steps, device=bench.device)
        x, timesteps = start, list(scheduler.timesteps)
        with torch.no_grad():
            for t in timesteps:
                scheduler.scale_model_input(x, t)
                x = scheduler.step(output, t, x, return_dict=False)[0]
        return len(timesteps)

    return run


def speed(bench: Bench) -> None:
    """Images per second."""
    count, rounds = (4, 1) if bench.quick else (256, 3)
    for dtype in (torch.float32, torch.bfloat16):
        model, times = bench.model(dtype), []
        for _ in range(rounds + 1):
            bench.wait()
            begin = time.perf_counter()
            sds.sample(model, "fast", num_samples=count)
            bench.wait()
            times.append(time.perf_counter() - begin)
        rate = count / quartiles(times[1:])["median"]
        bench.record(f"{str(dtype)[6:]}: images per second, `fast`, batches of {count}", rate, "1/s")


PARTS: dict[str, Callable[[Bench], None]] = {
    "samples": same_samples,
    "noise": same_noise,
    "synchronisation": no_waiting,
    "half": half_precision,
    "compiled": compiled,
    "streams": two_streams,
    "memory": memory,
    "overhead": overhead,
    "speed": speed,
}


def run(bench: Bench, names: Sequence[str]) -> dict[str, str]:
    """Run the parts, continuing after failures; return the failed parts with their errors."""
    failed = {}
    for name in names:
        if time.monotonic() > bench.deadline:
            bench.skipped[name] = "the time limit was reached"
            continue
        first = len(bench.rows)
        try:
            PARTS[name](bench)
        except Exception as error:  # the report lists failures
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        for row in bench.rows[first:]:
            row["part"] = name
    return failed


def report(facts: dict[str, Any]) -> str:
    """The report in Markdown."""
    lines = ["# On a CUDA device\n", "Written by `python benchmarks/gpu.py`.\n"]
    if facts["state"] != "run":
        lines += [f"**Not run**: {facts['why']}\n", f"It would measure: {', '.join(PARTS)}.", ""]
        return "\n".join(lines)
    lines += [f"{facts['device']}; {sentence(facts['machine'])} {facts['seconds']:.0f} s.\n"]
    lines += ["| part | what | measured | required | met |", "|---|---|--:|--:|---|"]
    for row in facts["rows"]:
        limit = "" if row["limit"] is None else f"{row['limit']:g}"
        met = "" if row["met"] is None else "yes" if row["met"] else "**no**"
        lines.append(f"| {row['part']} | {row['what']} | {row['measured']:.4g} {row['unit']} | {limit} | {met} |")
    lines += [f"\n{name} failed: {why}" for name, why in facts["failed"].items()]
    lines += [f"\n{name} was not run: {why}" for name, why in facts["skipped"].items()]
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write the report; return 1 if a part failed or a limit is exceeded, 77 if there is no device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the report")
    parser.add_argument("--device", default="cuda", help="torch device")
    parser.add_argument("--quick", action="store_true", help="a tiny network and small sizes")
    parser.add_argument("--limit", type=float, default=450, help="seconds after which no part starts")
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="PART")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        why = "this machine has no CUDA device"
        write(args.out, "gpu", {"state": "not run", "why": why}, report({"state": "not run", "why": why}))
        print(why)
        return NOT_RUN
    begin = time.monotonic()
    bench = Bench(device, args.quick, begin + args.limit)
    failed = run(bench, args.only)
    name = torch.cuda.get_device_name(device) if bench.cuda else "no CUDA device: a test of the script on the CPU"
    facts = {
        "state": "run",
        "device": name,
        "machine": machine(),
        "seconds": time.monotonic() - begin,
        "rows": bench.rows,
        "targets": [row for row in bench.rows if row["limit"] is not None],
        "failed": failed,
        "skipped": bench.skipped,
    }
    write(args.out, "gpu", facts, report(facts))
    return int(bool(failed) or any(row["met"] is False for row in bench.rows))


if __name__ == "__main__":
    raise SystemExit(main())
