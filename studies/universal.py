"""One solver for every model: weights and grids fitted to a family of problems, tried on problems that had no part.

    python studies/universal.py fit [--work out/universal]       (an hour on one core; continues an interrupted run)
    python studies/universal.py report --out studies/results

NeuralSolver's tables were found on one network and work on others (Wang et al. 2025, arXiv 2505.21114). Here a solver
for N evaluations is a grid of relative steps in phi = arctan(sigma/alpha) and corrections of the weights of
Adams-Bashforth there, so that it runs on any process. All corrections of a step are one least-squares fit to all
problems of the family, in which each problem's error is relative to its own size. A random search over grids minimises
the ratios to the best of `tune`'s 12 fixed settings: the worst problem's plus the mean, by the geometric mean of RMS
and median. Problems with large ratios count more in the following fits. There is one set for processes that begin at
alpha = 0 and one for those that do not.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

import sdesamplers as sds
from sdesamplers.path.path import Path as GridPath
from sdesamplers.processes.predictions import weighted_sum
from sdesamplers.sampling.arguments import make_recipe
from sdesamplers.sampling.request import Request
from sdesamplers.tuning.field import Field, Teacher
from sdesamplers.tuning.search import Candidate
from sdesamplers.tuning.trace import table_of, traced
from sdesamplers.tuning.tuner import FIXED

BUDGETS = (4, 5, 6, 8, 10, 12, 15, 20)
TRIALS, STARTS, HELD_OUT_STARTS, NETWORK_STARTS = 80, 192, 2048, 16
RIDGE = 1e-3
SHIFT = 0.5
"""Exponent of a problem's ratio in the change of its weight."""
LARGEST = 15.0
"""sigma/alpha up to which a DDPM network is evaluated on a flow's process; beyond, its errors in x0 are large."""
SMALLEST = 0.031
"""Radians: the last point of a grid lies within the range of every common table; Stable Diffusion's ends at 0.029."""
FIT, HELD_OUT = 0, 10_000
"""First indices of the starts for the fit and for the report."""


def mixture(process: sds.GaussianProcess, dimension: int, components: int, scale: float, seed: int) -> sds.Model:
    """A mixture with random weights, means of standard deviation `scale`, and narrower components.

    Half of the components are isotropic; the others have a spectrum, as images have.
    """
    chance = np.random.default_rng((seed, dimension, components))
    weights = chance.dirichlet(np.full(components, 3.0))
    spectra = (
        np.arange(1, dimension + 1) ** -chance.uniform(0, 2, (components, 1)) * (np.arange(components) % 2)[:, None]
    )
    spectra = np.where(spectra == 0, 1.0, spectra)
    variances = scale**2 * 10 ** chance.uniform(-2.5, -0.5, (components, 1)) * spectra
    means = scale * chance.normal(size=(components, dimension))
    label = f"{components} in {dimension}-D, scale {scale:g}"
    return sds.MixtureModel(weights, means, variances, process, prediction="v", name=label)


def spectrum(process: sds.GaussianProcess, smallest: float, largest: float, dimension: int) -> sds.Model:
    """A Gaussian whose standard deviations go from the smallest to the largest."""
    variances = np.geomspace(smallest, largest, dimension) ** 2
    label = f"Gaussian of widths {smallest:g} to {largest:g}"
    return sds.GaussianModel(np.zeros(dimension), variances, process, prediction="v", name=label)


@dataclass
class Problem:
    """A model, its starts and the exact ends, and the errors of the fixed settings there."""

    label: str
    model: sds.Model
    starts: int
    first: int

    @cached_property
    def field(self) -> Field:
        return Field(self.model, range(self.first, self.first + self.starts), 7)

    @cached_property
    def teacher(self) -> Teacher:
        return Teacher.of(self.field, Request("quality", nfe=200))

    def errors(self, sampler: sds.SolverTable) -> tuple[float, float]:
        """RMS and median error; infinite if it diverges."""
        try:
            found = self.teacher.distances(self.field.run(Request(sampler))[0])
        except sds.SdesamplersError:
            return math.inf, math.inf
        return float(np.sqrt(np.square(found).mean())), float(np.median(found))

    def fixed(self, nfe: int) -> dict[str, tuple[float, float]]:
        """Setting -> errors, for the fixed settings that this process has."""
        found = {}
        for name, grid in FIXED:
            try:
                table = table_of(self.model.gaussian, name, nfe=nfe, **grid)
            except sds.UsageError:
                continue
            found[" ".join([name, *(f"{key}={value}" for key, value in grid.items())])] = self.errors(table)
        return found

    def base(self, name: str, angles: list[float]) -> list[list[float]]:
        """The weights of a base method on a grid."""
        recipe, spec = make_recipe(Request(name, steps=len(angles) - 1), process=self.model.process)
        path = GridPath(self.field.path.process, [self.field.point(phi) for phi in angles])
        return [list(row) for row in traced(path, recipe, spec).weights]


FITTED_MIXTURES = (
    (2, 3, 1.0),
    (4, 6, 0.3),
    (8, 8, 1.0),
    (16, 4, 2.0),
    (32, 12, 0.6),
    (48, 3, 1.0),
    (96, 6, 0.5),
    (128, 9, 1.2),
)
HELD_OUT_MIXTURES = ((3, 5, 1.0), (6, 3, 0.4), (12, 10, 1.5), (24, 8, 0.7), (64, 6, 1.0), (100, 5, 0.8))
"""Dimension, components and scale."""


def processes(group: str) -> dict[str, sds.GaussianProcess]:
    """The processes of a group."""
    if group == "zero":
        return {"flow": sds.RectifiedFlow()}
    scaled = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    latent = sds.DiscreteVP(np.cumprod(1 - scaled))
    return {"VP linear": sds.VP(), "VP cosine": sds.CosineVP(), "scaled linear": latent}


def problems(group: str, held_out: bool) -> list[Problem]:
    """The family of one group ("ddpm" or "zero": the start's alpha), or its held-out members."""
    models = list[tuple[str, sds.Model]]()
    for name, process in processes(group).items():
        made = HELD_OUT_MIXTURES if held_out else FITTED_MIXTURES
        if group == "ddpm" and not held_out:  # three processes share the mixtures
            made = made[list(processes(group)).index(name) :: 3]
        models += [(name, mixture(process, *sizes, seed=int(held_out))) for sizes in made]
        models.append((name, spectrum(process, *((0.03, 1.5, 9) if held_out else (0.02, 2.0, 16)))))
    first = HELD_OUT if held_out else FIT
    starts = HELD_OUT_STARTS if held_out else STARTS
    found = [Problem(f"{name}, {model.name}", model, starts, first) for name, model in models]
    if group == "ddpm":
        return [*found, network(held_out)]
    return [*found, network_on_flow()] if held_out else found


def network(held_out: bool) -> Problem:
    """The embedded network; held out are other starts of it."""
    first, starts = (HELD_OUT, 4 * NETWORK_STARTS) if held_out else (FIT, NETWORK_STARTS)
    return Problem("network", sds.load("fashion-mnist", channels_last=True), starts, first)


def network_on_flow() -> Problem:
    """The embedded network on a flow's process: the only network of the zero group, and held out.

    Its state is x / (alpha^2 + sigma^2)^(1/2), of a process with the same sigma/alpha. Beyond `LARGEST` it is evaluated
    there.
    """
    inner = sds.load("fashion-mnist", channels_last=True)
    table = inner.gaussian

    def sample(x: Tensor, t: Tensor) -> Tensor:
        time = float(t.flatten()[0])
        ratio = min(time / (1 - time) if time < 1 else math.inf, LARGEST)
        alpha, sigma = (float(part) for part in table.at_ratio(ratio))
        own = x / math.hypot(1 - time, time)
        noise = inner.predict(own.to(inner.dtype), float(table.time_at_ratio(ratio)))
        assert isinstance(noise, Tensor)
        return (own - sigma * noise) / alpha

    name = "network on the flow's process"
    model = sds.FunctionModel(sample, sds.RectifiedFlow(), "sample", inner.shape, name=name)
    return Problem("network", model, 4 * NETWORK_STARTS, HELD_OUT)


@dataclass(frozen=True)
class Solver:
    """A grid of relative steps and corrections of a base method's weights, for any process."""

    candidate: Candidate
    corrections: tuple[tuple[float, ...], ...]

    def table(self, problem: Problem) -> sds.SolverTable:
        """The solver table on a problem's process."""
        angles = self.candidate.angles(problem.field.angle)
        asked = self.candidate.network_angles(angles, problem.field.smallest)
        rows = problem.base(self.candidate.base, angles)
        weights = [
            [row[0] + c[0], row[1], *np.add(row[2:], c[1:])] for row, c in zip(rows, self.corrections, strict=True)
        ]
        return sds.SolverTable(tuple(angles), tuple(tuple(map(float, row)) for row in weights), tuple(asked))


def fitted(candidate: Candidate, family: Sequence[Problem], shares: np.ndarray) -> Solver:
    """The corrections of all steps by least squares over all problems, on the solver's own states.

    `shares` are the weights of the problems.
    """
    angles = [candidate.angles(problem.field.angle) for problem in family]
    asked = [candidate.network_angles(own, p.field.smallest) for own, p in zip(angles, family, strict=True)]
    bases = [problem.base(candidate.base, own) for problem, own in zip(family, angles, strict=True)]
    states = [problem.field.start for problem in family]
    velocities: list[list[Tensor]] = [[] for _ in family]
    corrections = []
    for n in range(len(bases[0])):
        systems, plains = [], []
        for p, problem in enumerate(family):
            velocities[p].append(problem.field(states[p], angles[p][n], asked[p][n]))
            plain = weighted_sum(bases[p][n], [problem.field.start, states[p], *velocities[p]])
            plains.append(plain)
            systems.append(system(problem.teacher.at(angles[p][n + 1]) - plain, [problem.field.start, *velocities[p]]))
        change = jointly(systems, shares)
        corrections.append(tuple(change.tolist()))
        for p, problem in enumerate(family):
            states[p] = plains[p] + weighted_sum(change.tolist(), [problem.field.start, *velocities[p]])
    return Solver(candidate, tuple(corrections))


System = tuple[np.ndarray, np.ndarray, np.ndarray]


def system(target: Tensor, features: Sequence[Tensor]) -> System:
    """Gram matrices, moments and squares of each sample."""
    stacked = torch.stack([feature.flatten(1).double() for feature in features], 1)
    goal = target.flatten(1).double()
    gram = torch.bmm(stacked, stacked.transpose(1, 2)).numpy()
    return gram, torch.bmm(stacked, goal[:, :, None])[..., 0].numpy(), goal.square().sum(1).numpy()


def jointly(systems: Sequence[System], shares: np.ndarray) -> np.ndarray:
    """Coefficients that minimise the sum over problems of robust errors, each relative to the problem's median."""
    count = systems[0][0].shape[1]
    found = np.zeros(count)
    for _ in range(6):
        matrix, moment = np.zeros((count, count)), np.zeros(count)
        for own, (gram, moments, squares) in zip(shares, systems, strict=True):
            left = squares - 2 * moments @ found + np.einsum("i,nij,j->n", found, gram, found)
            distance = np.sqrt(np.maximum(left, 0))
            share = own / (distance + np.median(distance) + 1e-30) ** 2 / len(squares)
            matrix += np.einsum("n,nij->ij", share, gram)
            moment += share @ moments
        matrix[np.diag_indices_from(matrix)] *= 1 + RIDGE
        found = np.linalg.lstsq(matrix, moment, rcond=1e-12)[0]
    return found


def ratios(solver: Solver, family: Sequence[Problem], best: Sequence[tuple[float, float]]) -> np.ndarray:
    """The logarithms of a solver's errors, RMS and median, over those of the best fixed settings, (problems, 2)."""
    with np.errstate(divide="ignore"):
        return np.log([problem.errors(solver.table(problem)) for problem in family]) - np.log(best)


def best_of(found: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """The smallest RMS and the smallest median, usually of two settings."""
    return min(rms for rms, _ in found.values()), min(median for _, median in found.values())


def best_fixed(found: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """The same, without the universal solver."""
    return best_of({name: errors for name, errors in found.items() if name != "universal"})


def search(family: Sequence[Problem], nfe: int, trials: int, previous: Solver | None) -> Solver:
    """Random search over grids; the first ones are those of fixed settings and that of another number of steps."""
    best = [best_of(problem.fixed(nfe)) for problem in family]
    chance, width = np.random.default_rng(nfe), 0.3
    start = family[0].field.angle
    grids = [np.linspace(start, 0, nfe + 1), start * np.linspace(1, 0, nfe + 1) ** 1.3]
    for name in ("fast", "quality"):
        table = table_of(family[0].model.gaussian, name, nfe=nfe)
        if table.angles[-1] == 0:
            grids.append(np.array(table.angles))
    first = [Candidate.of(grid, "ab") for grid in grids]
    if previous is not None:
        own = previous.candidate
        known = np.array(own.angles(start))
        grid = np.interp(np.linspace(0, 1, nfe + 1), np.linspace(0, 1, len(known)), known)
        shifts = np.interp(np.linspace(0, 1, nfe), np.linspace(0, 1, len(own.shifts)), own.shifts)
        first = [replace(Candidate.of(grid, own.base), shifts=tuple(shifts.tolist())), *first]
    chosen, lowest, shares = None, math.inf, np.ones(len(family))
    for trial in range(trials):
        candidate = first[trial] if trial < len(first) or chosen is None else chosen.candidate.changed(chance, width)
        if candidate.angles(start)[-2] < SMALLEST:
            continue
        solver = fitted(candidate, family, shares)
        found = ratios(solver, family, best)
        balance = found.mean(1)
        score = float(balance.max() + balance.mean()) if np.isfinite(found).all() else math.inf
        if score < lowest:
            chosen, lowest = solver, score
            shares = shares * np.exp(SHIFT * (balance - balance.mean()))
            shares *= len(shares) / shares.sum()
            width = min(1.5 * width, 1.0)
            worst, mean = np.exp(balance.max()), np.exp(balance.mean())
            print(f"{nfe}: trial {trial}, worst {worst:.2f}, mean {mean:.2f}", flush=True)
        elif trial >= len(first):
            width = max(0.9 * width, 0.02)
    assert chosen is not None
    return chosen


def stored(file: Path) -> dict[str, Solver]:
    """The solvers of a file of JSON lines, by group and number of evaluations."""
    found = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        group, nfe, sizes, shifts, base, corrections = json.loads(line)
        candidate = Candidate(tuple(sizes), tuple(shifts), base, RIDGE)
        found[f"{group} {nfe}"] = Solver(candidate, tuple(tuple(row) for row in corrections))
    return found


def fit(folder: Path, trials: int, groups: Sequence[str]) -> None:
    """Search for all solvers that are not stored yet."""
    file = folder / "solvers.jsonl"
    for group in groups:
        family = problems(group, held_out=False)
        for nfe in BUDGETS:
            known = stored(file)
            if f"{group} {nfe}" in known:
                continue
            solver = search(family, nfe, trials, neighbour(known, group, nfe))
            own = solver.candidate
            with file.open("a") as out:
                out.write(json.dumps([group, nfe, own.sizes, own.shifts, own.base, solver.corrections]) + "\n")


def neighbour(known: dict[str, Solver], group: str, nfe: int) -> Solver | None:
    """The solver for the next smaller number of evaluations."""
    smaller = [count for count in BUDGETS if count < nfe and f"{group} {count}" in known]
    return known[f"{group} {max(smaller)}"] if smaller else None


Row = tuple[str, int, str, dict[str, tuple[float, float]]]
"""Group, evaluations, held-out problem, and the errors of all settings and of the universal solver."""


def judged(folder: Path) -> Iterator[Row]:
    """Measure all solvers on the held-out problems; rows that are stored are not measured again."""
    solvers, file = stored(folder / "solvers.jsonl"), folder / "judged.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    known = {(group, nfe, label): found for group, nfe, label, found in map(json.loads, lines)}
    for group in ("zero", "ddpm"):
        budgets = [nfe for nfe in BUDGETS if f"{group} {nfe}" in solvers]
        for problem in problems(group, held_out=True) if budgets else []:
            for nfe in budgets:
                key = group, nfe, problem.label
                if key not in known:
                    known[key] = problem.fixed(nfe)
                    known[key]["universal"] = problem.errors(solvers[f"{group} {nfe}"].table(problem))
                    with file.open("a") as out:
                        out.write(json.dumps([*key, known[key]]) + "\n")
                yield *key, known[key]


def report(folder: Path) -> str:
    """The results in Markdown."""
    rows = list(judged(folder))
    lines = ["# One solver for every model", "", "Written by `studies/universal.py`.", ""]
    lines += [
        "Ratio of a setting's errors to the smallest among the 12 fixed settings of `tune`, for each of the held-out",
        "problems and numbers of evaluations, by RMS and by median: the worst, and the geometric mean.",
        "",
        "| group | setting | cells | worst RMS | mean RMS | worst median | mean median |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for group in dict.fromkeys(group for group, *_ in rows):
        own = [found for each, _, _, found in rows if each == group]
        names = [name for name in own[0] if all(name in found for found in own)]
        table = {}
        for name in names:
            fixed = [best_fixed(found) for found in own]
            table[name] = np.array([found[name] for found in own]) / np.array(fixed)
        for name in sorted(table, key=lambda name: float(np.log(table[name]).mean())):
            worst, mean = table[name].max(0), np.exp(np.log(table[name]).mean(0))
            lines.append(
                f"| {group} | {name} | {len(own)} | {worst[0]:.2f} | {mean[0]:.2f} | {worst[1]:.2f} | {mean[1]:.2f} |"
            )
    lines += ["", "Geometric means of these ratios by number of evaluations, RMS / median:", ""]
    shown = ("universal", "fast", "quality")
    lines += ["| group | NFE | " + " | ".join(shown) + " |", "|---|--:|" + "--:|" * len(shown)]
    for group, nfe in sorted({row[:2] for row in rows}, key=lambda key: (key[0] != "zero", key[1])):
        own = [found for *key, _, found in rows if key == [group, nfe]]
        least = [best_fixed(found) for found in own]
        means = [np.exp(np.log(np.array([found[name] for found in own]) / np.array(least)).mean(0)) for name in shown]
        lines.append(f"| {group} | {nfe} | " + " | ".join(f"{rms:.2f} / {median:.2f}" for rms, median in means) + " |")
    lines += [
        "",
        "| group | NFE | problem | universal: RMS / median | best fixed | `fast` | `quality` |",
        "|---|--:|---|--:|--:|--:|--:|",
    ]
    pair = lambda errors: f"{errors[0]:.2g} / {errors[1]:.2g}"  # noqa: E731
    for group, nfe, label, found in rows:
        best = best_fixed(found)
        cells = [pair(found["universal"]), pair(best), pair(found["fast"]), pair(found["quality"])]
        lines.append(f"| {group} | {nfe} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def command(description: str | None, first: str, folder: Path) -> argparse.ArgumentParser:
    """The command line of a study with a first stage, which is kept in a folder, and a report."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=(first, "report"))
    parser.add_argument("--work", type=Path, default=folder)
    parser.add_argument("--out", type=Path, default=folder)
    return parser


def main() -> None:
    """Run one stage of the study."""
    parser = command(__doc__, "fit", Path("out/universal"))
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--groups", default="zero,ddpm")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "fit":
        fit(arguments.work, arguments.trials, arguments.groups.split(","))
    else:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "universal.md").write_text(report(arguments.work), encoding="utf-8")


if __name__ == "__main__":
    main()
