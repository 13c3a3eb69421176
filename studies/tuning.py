"""Solver tables compared with fixed samplers, on mixtures and starts that had no part in their computation.

    python studies/tuning.py [--out studies/results]        (two hours on one core; continues an interrupted run)

Problems: the 16-dimensional mixture of `work_precision.py`, with its starts, for which the best setting of other
libraries is known; and mixtures of 16 and 64 dimensions on VP with linear and with cosine schedule and on the rectified
flow, with their ODE solved by rk45 at 1e-7. There the table is compared with the best of the 12 fixed settings that
`tune` considers, chosen with knowledge of the errors, for each measure and number of evaluations separately.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

import sdesamplers as sds
from sdesamplers.tuning.tuner import FIXED

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))  # for its problems
import problems

BUDGETS = (5, 8, 10, 15, 20)
HELD_OUT, OF_TOURNAMENT = 16_384, 2048
PEERS = {5: (0.13, 0.049), 8: (0.071, 0.016), 10: (0.058, 0.0073), 15: (0.035, 0.0039), 20: (0.018, 0.0014)}
"""The smallest RMSE and the smallest median of other libraries on `mixture-16d`, from results/work_precision.md."""
PROCESSES = {"VP linear": sds.VP, "VP cosine": sds.CosineVP, "flow": sds.RectifiedFlow}
MIXTURES = {f"{name}, {size}-D": (process, size) for name, process in PROCESSES.items() for size in (16, 64)}
"""Label -> process and dimension."""

TOURNAMENT = "mixture-16d, other libraries"
SAME_END = "ab-2m spacing=power spacing.rho=1.25"
"""A teacher that ends as the tournament's reference does, with the estimate of x0 at the first timestep."""


def random_mixture(process: sds.GaussianProcess, dimension: int, seed: int) -> sds.MixtureModel:
    """Eight components with random means, weights, and variances from 0.01 to 0.3."""
    chance = np.random.default_rng((seed, dimension))
    weights = chance.dirichlet(np.full(8, 3.0))
    variances = 10 ** chance.uniform(-2, -0.5, 8)
    return sds.MixtureModel(
        weights, chance.normal(size=(8, dimension)), variances, process, prediction="v", name="mixture"
    )


def measures(samples: Tensor, truth: Tensor) -> tuple[float, float]:
    """RMS and median over the samples of their root-mean-square distances."""
    error = (samples.double() - truth.double()).square().flatten(1).mean(1).sqrt()
    return float(error.square().mean().sqrt()), float(error.median())


def on(model: sds.Model, truth: Tensor, sampler: Any, **arguments: Any) -> tuple[float, float]:
    """The measures of a sampler; infinite if it does not run."""
    try:
        return measures(sds.sample(model, sampler, num_samples=len(truth), seed=1, **arguments).samples, truth)
    except sds.SdesamplersError:
        return math.inf, math.inf


Row = tuple[Any, ...]
"""Label, evaluations, tuned RMS and median, best fixed RMS and median, seconds, starts, trials, method."""


def stored(file: Path) -> dict[tuple[str, int], Row]:
    """The rows of a file of JSON lines, by label and evaluations."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return {(label, nfe): (label, nfe, *rest) for label, nfe, *rest in map(json.loads, lines)}  # the last of each


def keep(file: Path, row: Row) -> None:
    """Append a row to the file."""
    print(row, flush=True)
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(row) + "\n")


def measure(label: str, model: sds.Model, file: Path, budgets: list[int], settings: dict[str, Any]) -> None:
    """Tune a model at each budget that is not in the file yet, and keep the rows."""
    missing = [nfe for nfe in budgets if (label, nfe) not in stored(file)]
    if not missing:
        return
    arguments: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-7, "dtype": torch.float64, "batch_size": 4096}
    truth = sds.sample(model, "rk45", num_samples=HELD_OUT, seed=1, **arguments).samples
    for nfe in missing:
        began = time.perf_counter()
        table = sds.tune(model, nfe, **settings, teacher_nfe=200).tables[nfe]
        seconds = time.perf_counter() - began
        fixed = [on(model, truth, name, nfe=nfe, **grid) for name, grid in FIXED]
        best = min(rms for rms, _ in fixed), min(median for _, median in fixed)
        keep(file, (label, nfe, *on(model, truth, table), *best, seconds, *settings.values()))


def measure_tournament(file: Path, budgets: list[int], settings: dict[str, Any]) -> None:
    """The same on the mixture of the tournament, compared with the best of other libraries."""
    problem = problems.mixture(OF_TOURNAMENT, Path("out/work_precision"))
    shape = tuple(problem.start.shape[1:])
    network = sds.FunctionModel(
        lambda x, t: problem.predict(x, float(t.flatten()[0])), problem.process, "epsilon", shape, dtype=torch.float64
    )
    start = problem.start
    for nfe in budgets:
        if (TOURNAMENT, nfe) in stored(file):
            continue
        began = time.perf_counter()
        table = sds.tune(network, nfe, **settings, teacher=SAME_END, teacher_nfe=200).tables[nfe]
        seconds = time.perf_counter() - began
        found = sds.sample(network, table, start=start, dtype=torch.float64).samples
        keep(file, (TOURNAMENT, nfe, *measures(found, problem.truth), *PEERS[nfe], seconds, *settings.values()))


def report(rows: list[Row]) -> str:
    """The results in Markdown."""
    lines = [
        "# Solver tables on mixtures",
        "",
        f"Errors on {HELD_OUT:,} starts that had no part in the fit, and on the {OF_TOURNAMENT:,} of the tournament "
        "on its mixture. Written by `studies/tuning.py`.",
        "The best fixed RMSE and the best fixed median are usually of two settings; a table is one for both.",
        "Rows with 512 starts were measured before the search had Gauss-Newton steps. The three cells in which the",
        "search left a ratio above 0.8 (0.87, 1.05 and 0.82) were run again, by joint steps from 4,096 starts.",
        "",
        "| problem | NFE | tuned: RMSE / median | best fixed: RMSE / median | ratio of RMSE | of medians "
        "| method | starts | trials | seconds |",
        "|---|--:|--:|--:|--:|--:|---|--:|--:|--:|",
    ]
    for label, nfe, rms, median, best_rms, best_median, seconds, starts, trials, method in rows:
        ratios = f"{rms / best_rms:.2f} | {median / best_median:.3f}"
        errors = f"{rms:.2g} / {median:.2g} | {best_rms:.2g} / {best_median:.2g}"
        lines.append(f"| {label} | {nfe} | {errors} | {ratios} | {method} | {starts} | {trials} | {seconds:.0f} |")
    lines += ["", "![Error against evaluations, of tables and of the best fixed settings](tuning.png)"]
    return "\n".join(lines) + "\n"


def draw(rows: list[Row], file: Path) -> None:
    """Errors against evaluations, before and after, one panel for each problem."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    labels = list(dict.fromkeys(row[0] for row in rows))
    columns = min(4, len(labels))
    shape = -(-len(labels) // columns), columns
    figure, axes = plt.subplots(
        *shape, figsize=(3.2 * columns, 2.9 * shape[0]), squeeze=False, sharex=True, sharey=True
    )
    lines = (("tuned, median", 3, "C0o-"), ("tuned, RMS", 2, "C0o:"), ("best fixed, median", 5, "C1s-"))
    for label, axis in zip(labels, axes.flat, strict=False):
        own = [row for row in rows if row[0] == label]
        for name, column, style in (*lines, ("best fixed, RMS", 4, "C1s:")):
            axis.plot([row[1] for row in own], [row[column] for row in own], style, label=name, markersize=4)
        axis.set(title=label, yscale="log", xticks=BUDGETS)
        axis.grid(alpha=0.3)
        axis.tick_params(labelbottom=True)
    for axis in axes.flat[len(labels) :]:
        axis.axis("off")
    for axis in axes[-1]:
        axis.set_xlabel("model evaluations")
    for row in axes:
        row[0].set_ylabel("error")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="lower right", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    """Run all problems and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/tuning"))
    parser.add_argument("--work", type=Path, default=Path("out/tuning"), help="folder of the rows so far")
    parser.add_argument("--only", help="a part of the problems' names")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--method", default="joint", choices=("least-squares", "joint"))
    parser.add_argument("--starts", type=int, default=4096, help="starts of the fit")
    parser.add_argument("--trials", type=int, default=60, help="length of the search")
    arguments = parser.parse_args()
    settings = {name: getattr(arguments, name) for name in ("starts", "trials", "method")}
    arguments.work.mkdir(parents=True, exist_ok=True)
    file = arguments.work / "rows.jsonl"
    if not arguments.only or arguments.only in TOURNAMENT:
        measure_tournament(file, arguments.budgets, settings)
    for label, (process, dimension) in MIXTURES.items():
        if not arguments.only or arguments.only in label:
            measure(label, random_mixture(process(), dimension, seed=0), file, arguments.budgets, settings)
    order = [TOURNAMENT, *MIXTURES]
    rows = sorted(stored(file).values(), key=lambda row: (order.index(row[0]), row[1]))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "tuning.md").write_text(report(rows), encoding="utf-8")
    draw(rows, arguments.out / "tuning.png")


if __name__ == "__main__":
    main()
