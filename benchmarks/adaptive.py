"""Evaluations of adaptive solvers at equal error: ours, torchdiffeq's dopri5, scipy's RK45, k-diffusion.

    python benchmarks/adaptive.py --out benchmarks/results      (about a quarter of an hour)
    python benchmarks/adaptive.py --out out --quick             (half a minute)

Writes adaptive.md, adaptive.json and adaptive.png. There are two problems: the 16-dimensional Gaussian mixture of
problems.py, whose score is exact, and the embedded network. All solvers solve the same probability-flow ODE from the
same states at the last timestep to the first, and end with one Euler step to sigma = 0. Each solver is run with several
tolerances (rtol = atol); evaluations are compared at equal error.

A solver has one step size for its input. Ours, like torchdiffeq and scipy "a sample", treats samples separately; with
"a batch" they take all samples at once, so that the hardest sample determines the steps of all. Evaluations are those
of one sample, averaged over the samples, counted by the model.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from machine import machine, sentence, write
from peers import Problem
from problems import SEED, Counted, Mixture, network_problem, network_truth
from scipy.integrate import solve_ivp
from torch import Tensor

import sdesamplers as sds
from sdesamplers.path.points import model_state, points_at
from sdesamplers.sampling.arguments import make_recipe
from sdesamplers.sampling.request import Request
from sdesamplers.sampling.runs import make_path

Solver = Callable[[float], tuple[Tensor, float]]
"""Maps a tolerance to (samples, mean evaluations per sample)."""
OURS = "rk45"


class Flow:
    """The probability-flow ODE of a problem in some coordinates, with its evaluations counted.

    Attributes:
        begin: path time at which a solver starts.
        end: path time at which it ends; a last Euler step leads from there to sigma = 0.
        calls: evaluations made so far.
    """

    def __init__(self, problem: Problem, coordinates: str) -> None:
        recipe, _ = make_recipe(Request(OURS, coordinates=coordinates), process=problem.process)
        path = make_path(problem.process, recipe)
        self.problem, self.process, self.first, self.calls = problem, path.process, path.points[0], 0
        self.last, self.clean = path.points[1:]
        self.begin, self.end = float(self.first.time), float(self.last.time)

    def velocity(self, x: Tensor, time: float) -> Tensor:
        """dx/dtime at a path time, for all samples of x (N, ...)."""
        # Solvers evaluate slightly beyond the ends: by a rounding error, or in torchdiffeq's first estimate of a step.
        point = points_at(self.process, float(np.clip(time, min(self.begin, self.end), max(self.begin, self.end))))
        self.calls += 1
        eps = self.problem.predict(model_state(x, point), float(point.t)).to(x.dtype)
        return sds.Prediction(x, point, eps, "epsilon").velocity

    def start(self) -> Tensor:
        """The starting states in these coordinates, float64."""
        return self.problem.start.double() * float(self.first.scale)

    def finish(self, x: Tensor) -> Tensor:
        """The Euler step to sigma = 0."""
        return x + (float(self.clean.time) - self.end) * self.velocity(x, self.end)


def ours(problem: Problem, sampler: str, kwargs: dict[str, Any]) -> Solver:
    """A sampler of this library, with error control per sample."""

    def solve(tolerance: float) -> tuple[Tensor, float]:
        control: dict[str, Any] = {"rtol": tolerance, "atol": tolerance, "max_nfe": 100_000}
        model = PerSampleTimes(problem)
        result = sds.sample(model, sampler, start=problem.start, dtype=torch.float64, **control, **kwargs)
        return result.samples, float(result.nfe_per_sample.mean())

    return solve


class PerSampleTimes(Counted):
    """A problem as a model that accepts one time per sample."""

    def predict(self, x: Tensor, t: Any, condition: Any = None) -> Tensor:
        return self.problem.predict(x, t)


def parts(flow: Flow, alone: bool) -> Iterable[Tensor]:
    """The inputs of a solver: each sample separately, or all as one batch."""
    start = flow.start()
    return start.split(1) if alone else [start]


def scipy_rk45(problem: Problem, coordinates: str, alone: bool) -> Solver:
    """scipy.integrate.solve_ivp(method="RK45")."""

    def solve(tolerance: float) -> tuple[Tensor, float]:
        flow, found, count = Flow(problem, coordinates), [], 0
        for x in parts(flow, alone):

            def slope(time: float, y: np.ndarray, like: Tensor = x) -> np.ndarray:
                return flow.velocity(torch.from_numpy(y).view_as(like), time).flatten().numpy()

            span, y = (flow.begin, flow.end), x.flatten().numpy()
            done = solve_ivp(slope, span, y, method="RK45", rtol=tolerance, atol=tolerance)
            found.append(flow.finish(torch.from_numpy(done.y[:, -1].copy()).view_as(x)))
            count += flow.calls * len(x)
            flow.calls = 0
        return torch.cat(found), count / len(problem.start)

    return solve


def torchdiffeq_dopri5(problem: Problem, coordinates: str, alone: bool) -> Solver:
    """torchdiffeq.odeint(method="dopri5")."""
    from torchdiffeq import odeint

    def solve(tolerance: float) -> tuple[Tensor, float]:
        flow, found, count = Flow(problem, coordinates), [], 0
        times = torch.tensor([flow.begin, flow.end], dtype=torch.float64)
        for x in parts(flow, alone):
            kwargs = {"method": "dopri5", "rtol": tolerance, "atol": tolerance}
            x = odeint(lambda time, x: flow.velocity(x, float(time)), x, times, **kwargs)[-1]
            found.append(flow.finish(x))
            count += flow.calls * len(x)
            flow.calls = 0
        return torch.cat(found), count / len(problem.start)

    return solve


def k_diffusion_adaptive(problem: Problem) -> Solver:
    """k_diffusion.sampling.sample_dpm_adaptive without noise, with a last denoising to sigma = 0."""
    from peers.k_diffusion_peer import K, begin, ends

    def solve(tolerance: float) -> tuple[Tensor, float]:
        trial = problem.part(slice(None))
        trial.start = trial.start.double()
        low, high = ends(trial, None)
        kwargs = {"rtol": tolerance, "atol": tolerance, "disable": True, "noise_sampler": lambda *sigmas: 0.0}
        model = lambda x, sigma: trial.denoised(x, float(sigma.flatten()[0]))  # noqa: E731
        x = K.sample_dpm_adaptive(model, begin(trial, high), low, high, **kwargs)
        return trial.denoised(x, low), float(trial.count)

    return solve


def solvers(problem: Problem, coordinates: str) -> tuple[dict[str, Solver], dict[str, str]]:
    """(solvers by name, ours first; reasons why others cannot be run)."""
    made: dict[str, Solver] = {
        OURS: ours(problem, OURS, {"coordinates": coordinates}),
        "scipy RK45, a sample": scipy_rk45(problem, coordinates, True),
        "scipy RK45, a batch": scipy_rk45(problem, coordinates, False),
    }
    missing: dict[str, str] = {}
    in_lambda = coordinates == "flow"  # solvers in lambda do not depend on the coordinates, so they are run once
    if in_lambda:
        made["dpm-adaptive"] = ours(problem, "dpm-adaptive", {})
    others: dict[str, Callable[[], Solver]] = {
        "torchdiffeq dopri5, a sample": lambda: torchdiffeq_dopri5(problem, coordinates, True),
        "torchdiffeq dopri5, a batch": lambda: torchdiffeq_dopri5(problem, coordinates, False),
    }
    if in_lambda:
        others["k-diffusion dpm_adaptive, a batch"] = lambda: k_diffusion_adaptive(problem)
    for name, make in others.items():
        try:
            made[name] = make()
        except ImportError as error:
            missing[name] = str(error)
    return made, missing


# Measuring.


@dataclass
class Curve:
    """Results of one solver: (tolerance, evaluations, RMSE, median error) for each tolerance."""

    name: str
    points: list[tuple[float, float, float, float]] = field(default_factory=list)

    def errors(self, by: str) -> list[tuple[float, float]]:
        """(evaluations, error) pairs, for the error "rmse" or "median"."""
        column = {"rmse": 2, "median": 3}[by]
        return [(point[1], point[column]) for point in self.points]


def sweep(name: str, solve: Solver, truth: Tensor, tolerances: Sequence[float], say: Callable[[str], None]) -> Curve:
    """Run a solver at every tolerance; if it fails at a tolerance, the curve has no point there."""
    curve, began = Curve(name), time.perf_counter()
    for tolerance in tolerances:
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                samples, count = solve(tolerance)
        except (sds.SolverError, AssertionError) as error:
            say(f"{name} at {tolerance:g} gave up: {error}")
            continue
        each = (samples.double() - truth).flatten(1).square().mean(1).sqrt().numpy()
        curve.points.append((tolerance, count, float(np.sqrt((each**2).mean())), float(np.median(each))))
    say(f"{name}: {time.perf_counter() - began:.0f} s")
    return curve


def evaluations_at(error: float, points: Iterable[tuple[float, float]]) -> float | None:
    """Evaluations at which a curve of (evaluations, error) reaches `error`, interpolated by a power law.

    Points with more evaluations but no smaller error than another are ignored. None if the curve does not reach
    `error`.
    """
    front: list[tuple[float, float]] = []
    for count, found in sorted(points):
        if math.isfinite(found) and found > 0 and (not front or found < front[-1][1]):
            front.append((count, found))
    if not front or not front[-1][1] <= error <= front[0][1]:
        return None
    counts, errors = np.log(np.array(front)).T
    return float(np.exp(np.interp(-math.log(error), -errors, counts)))


def exact_truth(problem: Problem, coordinates: str) -> Tensor:
    """The exact solution of the ODE from the starts, by an independent solver, scipy's DOP853 at 1e-11."""
    flow, ends = Flow(problem, coordinates), []
    for x in flow.start().split(1):
        call = lambda time, y: flow.velocity(torch.from_numpy(y)[None], time)[0].numpy()  # noqa: E731
        done = solve_ivp(call, (flow.begin, flow.end), x[0].numpy(), method="DOP853", rtol=1e-11, atol=1e-12)
        ends.append(flow.finish(torch.from_numpy(done.y[:, -1].copy())[None]))
    return torch.cat(ends)


def mixture(starts: int, coordinates: str) -> Problem:
    """The mixture of problems.py; the truth ends with an Euler step in these coordinates, like all solvers."""
    model = Mixture()
    start = torch.randn(starts, *model.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(SEED))
    problem = Problem(model.name, model.process, model.predict, start, None, torch.float64)
    problem.truth = exact_truth(problem, coordinates)
    return problem


def embedded(starts: int, points: int) -> Problem:
    """The embedded network, with its ODE solved on a fine grid."""
    model = sds.load("fashion-mnist")
    start = torch.randn(starts, *model.shape, generator=torch.Generator().manual_seed(SEED))
    return network_problem(model, start, network_truth(model, start, points))


@dataclass(frozen=True)
class Plan:
    """A problem, the coordinates in which it is solved, the tolerances, and the errors at which curves are compared."""

    title: str
    make: Callable[[], Problem] = field(repr=False)
    coordinates: str
    tolerances: Sequence[float]
    errors: Sequence[float]


def plans(quick: bool) -> list[Plan]:
    """The problems to run."""
    fine = [10.0**-k for k in (2, 3, 4, 5)] if quick else [10 ** (-k / 2) for k in range(2, 17)]
    coarse = [3e-2, 1e-2, 3e-3] if quick else [0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.003, 0.001, 3e-4, 1e-4, 3e-5]
    starts, few = (4, 2) if quick else (32, 8)
    exact = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
    made = []
    for where in ("flow", "native"):
        title = f"mixture-16d, {starts} starts, {where} coordinates"
        made.append(Plan(title, functools.partial(mixture, starts, where), where, fine, exact))
    network = Plan(
        f"fashion-mnist, {few} starts, flow coordinates",
        lambda: embedded(few, 30 if quick else 250),
        "flow",
        coarse,
        (0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.003),
    )
    return [*made, network]


def run(chosen: Sequence[Plan], say: Callable[[str], None]) -> dict[str, Any]:
    """Run every solver on every problem at every tolerance."""
    facts: dict[str, Any] = {"machine": machine(), "problems": [], "left_out": {}}
    facts["columns"] = ["tolerance", "nfe", "rmse", "median"]
    for plan in chosen:
        say(plan.title)
        problem = plan.make()
        assert problem.truth is not None
        made, missing = solvers(problem, plan.coordinates)
        facts["left_out"] |= missing
        curves = [sweep(name, solve, problem.truth, plan.tolerances, say) for name, solve in made.items()]
        listed = [
            {"name": c.name, "columns": ["tolerance", "nfe", "rmse", "median"], "points": c.points} for c in curves
        ]
        facts["problems"].append({"title": plan.title, "errors": list(plan.errors), "curves": listed})
    return facts


# The report.


def curves_of(part: dict[str, Any]) -> list[Curve]:
    """The curves of a problem, from its JSON."""
    return [Curve(each["name"], [tuple(point) for point in each["points"]]) for each in part["curves"]]


def ratio_table(part: dict[str, Any], by: str) -> list[str]:
    """Evaluations at equal error, and their ratio to those of rk45; errors that no solver reaches are left out."""
    curves = curves_of(part)
    reached = {e: [evaluations_at(e, curve.errors(by)) for curve in curves] for e in part["errors"]}
    errors = [e for e, counts in reached.items() if any(counts)]
    lines = [f"| {by} error | {' | '.join(f'{e:g}' for e in errors)} |", f"|---|{'--:|' * len(errors)}"]
    for place, curve in enumerate(curves):
        cells = []
        for e in errors:
            count, own = reached[e][place], reached[e][0]
            ratio = f" ({count / own:.2f})" if count and own and place else ""
            cells.append(f"{count:.0f}{ratio}" if count else "-")
        lines.append(f"| {curve.name} | {' | '.join(cells)} |")
    return lines


def report(facts: dict[str, Any]) -> str:
    """The findings as Markdown."""
    lines = ["# Evaluations of adaptive solvers at equal error", "", sentence(facts["machine"]), "", ABOUT, ""]
    for part in facts["problems"]:
        lines += [f"## {part['title'][0].upper()}{part['title'][1:]}", ""]
        for by in ("median", "rmse"):
            lines += [*ratio_table(part, by), ""]
    lines += [f"Left out: {name} ({why})." for name, why in facts["left_out"].items()]
    return "\n".join([*lines, "![error against evaluations](adaptive.png)", ""])


ABOUT = (
    "Evaluations per sample, averaged over the samples, at which the error of a solver reaches the given value "
    "(interpolated between tolerances); in brackets their ratio to those of `rk45`, above 1 if `rk45` needs fewer. The "
    "error is the root-mean-square distance of a sample from the exact solution of the same ODE; *median* and *rmse* "
    "are over the samples. `rk45`, scipy and torchdiffeq use the same tableau (Dormand & Prince 1980) in the same "
    "coordinates, so they differ only in how steps are chosen. *A batch*: one step size for all samples. "
    "`dpm-adaptive` and k-diffusion's step in lambda in all coordinates, and are listed once. A dash: the curve does "
    "not reach this error. The network was trained at whole timesteps and fluctuates between them, which solvers have "
    "to resolve for errors below 0.003; its reference solution is accurate to about 0.0002, so smaller errors are not "
    "compared."
)


def plot(facts: dict[str, Any], file: Path) -> None:
    """Plot error against evaluations, log-log: a row per measure, a column per problem."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    problems = facts["problems"]
    names = list(dict.fromkeys(each["name"] for part in problems for each in part["curves"]))
    looks = {OURS: ("#c1272d", "-"), "dpm-adaptive": ("#e69f00", "-")}
    for library, colour in (("scipy", "#0072b2"), ("torchdiffeq", "#009e73"), ("k-diffusion", "#cc79a7")):
        for name in names:
            if name.startswith(library):
                looks[name] = (colour, "-" if name.endswith("a sample") else "--")
    figure, axes = plt.subplots(
        2, len(problems), figsize=(5.2 * len(problems), 8), squeeze=False, layout="constrained", sharex="col"
    )
    for column, part in zip(axes.T, problems, strict=True):
        for axis, by in zip(column, ("median", "rmse"), strict=True):
            for curve in curves_of(part):
                colour, dash = looks[curve.name]
                wide = {"lw": 2.4, "zorder": 5} if curve.name == OURS else {"lw": 1.4}
                if points := sorted(curve.errors(by)):
                    axis.plot(
                        *zip(*points, strict=True), dash, marker="o", ms=3, color=colour, label=curve.name, **wide
                    )
            axis.set(xscale="log", yscale="log", ylabel=f"{by} error")
            low, high = axis.get_ylim()
            for side, many in ((axis.xaxis, True), (axis.yaxis, high < 30 * low)):
                side.set_major_locator(LogLocator(subs=(1, 2, 5) if many else (1,)))
                side.set_minor_locator(NullLocator())
                if many:
                    side.set_major_formatter(FormatStrFormatter("%g"))
            axis.grid(alpha=0.25)
        column[0].set_title(part["title"], fontsize=10)
        column[1].set_xlabel("evaluations per sample")
    axes[0][0].legend(fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the report")
    parser.add_argument("--quick", action="store_true", help="few starts and tolerances")
    parser.add_argument("--report", action="store_true", help="only rewrite the report from adaptive.json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if args.report:
        facts = json.loads((args.out / "adaptive.json").read_text(encoding="utf-8"))
    else:
        facts = run(plans(args.quick), lambda line: print(line, flush=True))
    write(args.out, "adaptive", facts, report(facts))
    plot(facts, args.out / "adaptive.png")


if __name__ == "__main__":
    main()
