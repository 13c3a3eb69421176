"""The cost of a step for states of growing size, compared with the minimum memory traffic of the method.

    python benchmarks/step_cost.py --out benchmarks/results      (about ten minutes, 5 GB of memory)
    python benchmarks/step_cost.py --out out --quick             (seconds)

Writes step_cost.md, step_cost.json and step_cost.png. One thread, float32, and a model that returns a constant tensor,
so that only the work of the library is measured. A *pass* is one read or write of a tensor of the size of the state.
The limit of a method at a size is its minimum number of passes times the time of a pass, a third of the time of
`torch.add(a, b, alpha=s, out=c)` at that size: two reads and one write into allocated memory.

The passes that a step actually makes are counted too, from the operations that torch executes.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from machine import machine, memory, quartiles, sentence, target, write
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sdesamplers as sds
from sdesamplers.sampling.arguments import make_recipe
from sdesamplers.sampling.loop import Evaluator
from sdesamplers.sampling.request import Request
from sdesamplers.sampling.runs import make_path, start_run

SIZES = (10**3, 10**4, 10**5, 10**6, 10**7, 10**8)
QUICK = (10**3, 10**4, 10**5)
STEPS = 8
LIMIT, BANDWIDTH_BOUND = 1.5, 10**7
TENSORS = 10  # the most tensors of the size of the state that exist at once
ALLOCATORS = {
    "default": "glibc's default: the memory of a large tensor is returned to the system when the tensor is freed",
    "kept": "freed memory is kept (mallopt: M_MMAP_MAX=0, M_TRIM_THRESHOLD=-1)",
}


@dataclass(frozen=True)
class Case:
    """A sampler and the prediction type of the model.

    Attributes:
        name: name in the table.
        sampler: the sampler, as in `sds.sample`.
        process: creates the process of the model.
        prediction: prediction type of the model.
        fewest: the minimum number of passes of a step.
        traffic: the tensors of these passes.
        evaluations: evaluations per step.
        kwargs: further arguments of `sds.sample`.
    """

    name: str
    sampler: str
    process: Callable[[], sds.GaussianProcess] = field(repr=False)
    prediction: str
    fewest: int
    traffic: str
    evaluations: int = 1
    kwargs: dict[str, Any] = field(default_factory=dict)


def table() -> sds.GaussianProcess:
    """DDPM's process with its linear schedule (Ho et al. 2020)."""
    return sds.DiscreteVP(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))


NATIVE = {"coordinates": "native", "spacing": "linspace"}
CASES = (
    Case("euler, velocity", "euler", sds.RectifiedFlow, "flow", 3, "x, v to x'", kwargs=NATIVE),
    Case("euler, epsilon", "euler", table, "epsilon", 3, "x, eps to x'", kwargs=NATIVE),
    Case("ddim, epsilon", "ddim", table, "epsilon", 3, "x, eps to x'", kwargs=NATIVE),
    Case("heun, velocity", "heun", sds.RectifiedFlow, "flow", 7, "x, v to u; x, v, v(u) to x'", 2, NATIVE),
    Case("dpmpp-2m, x0", "dpmpp-2m", table, "sample", 4, "x, x0, last x0 to x'", kwargs=NATIVE),
    Case("dpmpp-2m, epsilon", "dpmpp-2m", table, "epsilon", 5, "x, eps, last x0 to x0 and x'", kwargs=NATIVE),
    Case("euler-maruyama, epsilon", "euler-maruyama", table, "epsilon", 4, "x, eps, z to x'", kwargs=NATIVE),
    Case("ddpm, epsilon", "ddpm", table, "epsilon", 4, "x, eps, z to x'", kwargs=NATIVE),
)


class Passes(TorchDispatchMode):
    """Counts reads and writes of tensors of at least `size` elements, over all operations that torch executes.

    A view or an empty tensor costs nothing; an in-place operation reads and writes its tensor; `out=` is only written.
    """

    WRITTEN_ONLY = ("copy_", "fill_", "zero_")

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        schema, name = func._schema, func.overloadpacket.__name__
        if "empty" in name or any(r.alias_info and not r.alias_info.is_write for r in schema.returns):
            return result
        for place, argument in enumerate(schema.arguments):
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            write = argument.alias_info is not None and argument.alias_info.is_write
            blind = write and (argument.kwarg_only or name in self.WRITTEN_ONLY)
            self.count += (write + (not blind)) * self.large(value)
        if not any(r.alias_info for r in schema.returns):
            self.count += self.large(result)
        return result

    def large(self, value: Any) -> int:
        """The number of tensors of at least `size` elements in a value."""
        return sum(isinstance(leaf, Tensor) and leaf.numel() >= self.size for leaf in tree_leaves(value))


class Marked(sds.Model):
    """A model that costs nothing and records the value of a meter at every call."""

    pure = True  # avoids defensive copies around the model, see docs/design.md

    def __init__(self, case: Case, output: Tensor, meter: Callable[[], float]) -> None:
        self.process, self.prediction, self.shape = case.process(), case.prediction, tuple(output.shape[1:])
        self.output, self.meter, self.marks = output, meter, list[float]()

    def predict(self, x: Tensor, t: Any, condition: Any = None) -> Tensor:
        self.marks.append(self.meter())
        return self.output


@dataclass
class State:
    """The tensors that exist before a step, each (1, n) float32."""

    start: Tensor
    output: Tensor
    noise: Tensor

    @classmethod
    def of(cls, size: int) -> State:
        """Random tensors of `size` elements."""
        generator = torch.Generator().manual_seed(0)
        return cls(*(torch.randn(1, size, generator=generator) for _ in range(3)))


@torch.inference_mode()
def steps_of(case: Case, state: State, meter: Callable[[], float], steps: int = STEPS) -> list[float]:
    """The increase of a meter over each step of a run except the first two, the start-up of a multistep method.

    The last step is left out too, because no call of the model marks its end.
    """
    model = Marked(case, state.output, meter)
    recipe, spec = make_recipe(Request(case.sampler, steps, **case.kwargs), process=model.process)
    path = make_path(model.process, recipe)
    constant: Any = lambda start, end, rows: state.noise  # noqa: E731
    path.ledger.noise = constant
    sds.drive(start_run(spec, state.start, path, recipe.options), Evaluator(model, 1, case.name))
    starts = model.marks[:: case.evaluations]
    return [after - before for before, after in itertools.pairwise(starts[2:])]


def passes_made(case: Case, size: int = 1000) -> float:
    """The counted passes of a step in the middle of a run."""
    with Passes(size) as passes:
        return float(np.median(steps_of(case, State.of(size), lambda: passes.count)))


def timed(run: Callable[[], Any], count: int) -> list[float]:
    """Seconds of `count` runs."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return found


def measure(size: int, cases: Sequence[Case], rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of each case, and of plain operations such as the reference `torch.add`, alternating."""
    state = State.of(size)
    a, b, c = state.start, state.output, torch.empty_like(state.start)
    plain: dict[str, Callable[[], Any]] = {
        "add": lambda: torch.add(a, b, alpha=0.5, out=c),
        "add into new memory": lambda: torch.add(a, b, alpha=0.5),
        "copy": lambda: c.copy_(a),
        "sum": lambda: a.sum(),
    }
    found: dict[str, list[float]] = {name: [] for name in [*plain, *(case.name for case in cases)]}
    gc.collect()
    gc.disable()
    try:
        for turn in range(-1, rounds):
            for name, run in plain.items():
                found[name] += timed(run, STEPS)[: STEPS if turn >= 0 else 0]
            for case in cases:
                found[case.name] += steps_of(case, state, time.perf_counter)[: STEPS if turn >= 0 else 0]
    finally:
        gc.enable()
    return found


def keep_freed_memory() -> bool:
    """Make glibc's malloc keep freed memory for the rest of the process; return True if that is possible."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(-4, 0) and mallopt(-1, -1))  # M_MMAP_MAX, M_TRIM_THRESHOLD


def rounds_for(size: int) -> int:
    """The number of rounds, larger for short steps."""
    return int(np.clip(3 * 10**7 // size, 2, 40))


def rows_of(size: int, allocator: str, found: dict[str, list[float]], made: dict[str, float]) -> list[dict[str, Any]]:
    """The rows of a table: seconds of a step, the limit and their ratio for each case."""
    one = quartiles(found["add"])["median"] / 3
    rows = []
    for case in CASES:
        if case.name not in found:
            continue
        seconds = quartiles(found[case.name])
        limit = case.fewest * one
        row = {"case": case.name, "size": size, "allocator": allocator, "seconds": seconds, "limit": limit}
        rows.append({**row, "ratio": seconds["median"] / limit, "fewest": case.fewest, "made": made[case.name]})
    return rows


def keyed_noise(size: int) -> float:
    """Seconds of one draw of the noise of a step from seeded normals."""
    noise = sds.IndependentNoise(sds.NormalSource(0, [0], (size,)))
    return quartiles(timed(lambda: noise(1.0, 0.5), 1 + rounds_for(size))[1:])["median"]


def run(sizes: Sequence[int], cases: Sequence[Case], say: Callable[[str], None]) -> dict[str, Any]:
    """Measure everything; sizes that do not fit in memory are left out and listed."""
    facts: dict[str, Any] = {"machine": machine(), "rows": [], "plain": [], "noise": [], "left_out": []}
    made = {case.name: passes_made(case) for case in cases}
    for allocator in ALLOCATORS:
        if allocator == "kept" and not keep_freed_memory():
            facts["left_out"].append("allocator 'kept': this system's malloc has no mallopt")
            continue
        for size in sizes:
            need, free = TENSORS * 4 * size, memory("MemAvailable") or math.inf
            if need > 0.6 * free:
                facts["left_out"].append(f"{power(size)} elements: {need / 2**30:.1f} GiB of {free / 2**30:.1f} free")
                continue
            found = measure(size, cases, rounds_for(size))
            say(f"{allocator} allocator, {power(size)} elements: {si(quartiles(found['add'])['median'])} for torch.add")
            facts["rows"] += rows_of(size, allocator, found, made)
            if allocator == "default":
                plain = {name: quartiles(found[name]) for name in ("add", "add into new memory", "copy", "sum")}
                facts["plain"].append({"size": size, **plain})
                facts["noise"].append({"size": size, "seconds": keyed_noise(size)})
    facts["targets"] = targets(facts["rows"])
    return facts


def targets(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The required bounds, at the largest size if it is large enough to be limited by memory bandwidth."""
    largest = max((row["size"] for row in rows), default=0)
    size = f"{power(largest)} elements"
    return [
        target(f"time over limit, {row['case']}, {size}, {row['allocator']} allocator", row["ratio"], LIMIT)
        for row in rows
        if row["size"] == largest >= BANDWIDTH_BOUND
    ]


# The report.


def si(seconds: float) -> str:
    """A time with three significant digits and a unit."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1 or unit == "us":
            return f"{seconds * factor:.3g} {unit}"
    raise AssertionError("unreachable")


def power(size: int) -> str:
    """1e5 for 100,000."""
    return f"{size:.0e}".replace("e+0", "e")


def rate(passes: int, size: int, seconds: float) -> str:
    """Counted bytes per second, in GB."""
    return f"{passes * 4 * size / seconds / 1e9:.1f}"


def plain_table(facts: dict[str, Any]) -> list[str]:
    """The memory bandwidth of the machine at each size."""
    lines = [
        "| elements | torch.add, out= (3 passes) | a pass | GB/s | copy (2): GB/s | sum (1): GB/s | torch.add into new "
        "memory, relative to out= | seeded normals, ns per element |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row, noise in zip(facts["plain"], facts["noise"], strict=True):
        add, size = row["add"]["median"], row["size"]
        cells = [power(size), si(add), si(add / 3), rate(3, size, add)]
        cells += [rate(2, size, row["copy"]["median"]), rate(1, size, row["sum"]["median"])]
        cells += [f"{row['add into new memory']['median'] / add:.2f}", f"{noise['seconds'] / size * 1e9:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def count_table(facts: dict[str, Any]) -> list[str]:
    """Passes of each case: the minimum, and those made."""
    made = {row["case"]: row["made"] for row in facts["rows"]}
    lines = ["| sampler, prediction of the model | minimum passes of a step | tensors | made |", "|---|--:|---|--:|"]
    return lines + [
        f"| {c.name} | {c.fewest} | {c.traffic} | {made[c.name]:g} |" for c in CASES if c.name in made
    ]  # fmt: skip


def ratio_table(facts: dict[str, Any], allocator: str) -> list[str]:
    """The time of a step and its ratio to the limit, by size."""
    rows = [row for row in facts["rows"] if row["allocator"] == allocator]
    sizes = sorted({row["size"] for row in rows})
    head = " | ".join(power(size) for size in sizes)
    lines = [f"| sampler | {head} | growth at the end |", f"|---|{'--:|' * (len(sizes) + 1)}"]
    for name in dict.fromkeys(row["case"] for row in rows):
        of = {row["size"]: row for row in rows if row["case"] == name}
        cells = []
        for size in sizes:
            spread = of[size]["seconds"]
            half = (spread["q75"] - spread["q25"]) / 2 / spread["median"]
            shown = f"{of[size]['ratio']:.2f}"
            shown = f"**{shown}**" if of[size]["ratio"] <= LIMIT else shown
            cells.append(f"{shown} ({si(spread['median'])} ±{100 * half:.0f}%)")
        lines.append(f"| {name} | {' | '.join(cells)} | {growth(of, sizes)} |")
    return lines


def growth(of: dict[int, dict[str, Any]], sizes: Sequence[int]) -> str:
    """The growth of time between the last two sizes as a power of the size; 1 is linear."""
    if len(sizes) < 2:
        return "-"
    small, large = sizes[-2:]
    times = [of[size]["seconds"]["median"] for size in (small, large)]
    return f"n^{math.log(times[1] / times[0]) / math.log(large / small):.2f}"


def report(facts: dict[str, Any]) -> str:
    """The findings as Markdown."""
    lines = ["# The cost of a step by size of the state", "", f"{sentence(facts['machine'])} One thread, float32.", ""]
    lines += [*(f"{paragraph}\n" for paragraph in ABOUT), *count_table(facts), ""]
    lines += ["## The machine's memory, measured in the same run", "", *plain_table(facts), "", REFERENCE, ""]
    for allocator, about in ALLOCATORS.items():
        if any(row["allocator"] == allocator for row in facts["rows"]):
            lines += [f"## Time of a step over its limit, {allocator} allocator", "", f"{about[0].upper()}{about[1:]}."]
            lines += ["", *ratio_table(facts, allocator), ""]
    lines += [f"Left out: {what}." for what in facts["left_out"]]
    return "\n".join([*lines, "![time and ratio by size](step_cost.png)", ""])


ABOUT = (
    "The ratio is the time of a step, in the middle of a run of `drive`, divided by the limit: the minimum number of "
    "passes of the method times the time of a pass. In brackets: the time, with half its interquartile range. Bold: at "
    f"most {LIMIT}. For small states the fixed cost of a step dominates, see overhead.",
    "*Minimum* counts the reads and writes of a step in which every linear combination is one kernel and nothing else "
    "is stored. *Made* counts the reads and writes of torch's operations, including one read per evaluation to check "
    "that the model's output is finite. The noise z of stochastic steps is a constant tensor here; drawing it is a "
    "separate cost, the last column of the second table, which is arithmetic rather than memory traffic.",
    "If the three tensors of the reference operation fit in a cache and the eight or so of a step do not (near 1e6 "
    "elements here), the ratio is larger than the passes made would explain.",
)
REFERENCE = (
    "GB/s are counted bytes. A write to memory outside the cache first reads the cache line, so three passes move up "
    "to a third more than that, in the reference operation as in a step. *Into new memory* is the time of the same "
    "operation when its result is a new tensor, whose pages the system has to map and clear."
)


def plot(facts: dict[str, Any], file: Path) -> None:
    """Plot the time by size, and its ratio to the limit with either allocator."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [name for name in ALLOCATORS if any(row["allocator"] == name for row in facts["rows"])]
    figure, axes = plt.subplots(1, 1 + len(shown), figsize=(5 * (1 + len(shown)), 4.6), layout="constrained")
    colours = dict(zip((case.name for case in CASES), plt.get_cmap("tab10").colors, strict=False))
    for axis, name, allocator in zip(axes, ["seconds", *["ratio"] * len(shown)], [shown[-1], *shown], strict=True):
        for case in CASES:
            rows = [r for r in facts["rows"] if (r["case"], r["allocator"]) == (case.name, allocator)]
            values = [r["ratio"] if name == "ratio" else r["seconds"]["median"] for r in rows]
            axis.plot([r["size"] for r in rows], values, "o-", ms=3.5, color=colours[case.name], label=case.name)
        if name == "seconds":
            reference = [(row["size"], row["add"]["median"]) for row in facts["plain"]]
            axis.plot(*zip(*reference, strict=True), "k--", lw=1.5, label="limit of 3 passes")
            axis.set(yscale="log", ylabel="seconds per step", title=f"time, {allocator} allocator")
            axis.legend(fontsize=8)
        else:
            axis.axhline(LIMIT, color="k", ls=":", lw=1.2)
            axis.set(yscale="log", ylabel="time / limit", title=f"over the limit, {allocator} allocator")
            ticks = (1, 1.5, 2, 3, 5, 10, 20, 50)
            axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
            axis.set_ylim(bottom=0.8)
        axis.set(xscale="log", xlabel="elements of the state")
        axis.grid(alpha=0.25)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the report")
    parser.add_argument("--quick", action="store_true", help=f"up to {power(QUICK[-1])} elements only")
    parser.add_argument("--largest", type=float, default=SIZES[-1], help="the largest number of elements")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sizes = [size for size in (QUICK if args.quick else SIZES) if size <= args.largest]
    if not sizes:
        parser.error(f"--largest must be at least {SIZES[0]}")
    facts = run(sizes, CASES, lambda line: print(line, flush=True))
    write(args.out, "step_cost", facts, report(facts))
    plot(facts, args.out / "step_cost.png")


if __name__ == "__main__":
    main()
