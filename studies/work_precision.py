"""Error against evaluations: all our deterministic samplers compared with those of diffusers, azula and k-diffusion.

    python studies/work_precision.py                   (the mixture; hours, --resume continues an interrupted run)
    python studies/tournament.py --out studies/results (the embedded network, and the report on both)

There are two problems: a 16-dimensional Gaussian mixture with its exact score and DDPM's linear schedule, and the
embedded model. All samplers start from the same states at the last timestep and end at sigma = 0. The error of a sample
is its root-mean-square distance from the solution of the probability-flow ODE. The tables show its root mean square
over all samples (RMSE), which with few evaluations is dominated by the few samples that end in another mode, and its
median. Evaluations are counted by the model. Every setting is screened with few starts, and the best of each library by
either measure are run again with more.

The other libraries are listed in benchmarks/requirements.txt; one that is not installed is left out, with a message.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import math
import os
import platform
import sys
import time
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

import sdesamplers as sds

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))  # for its problems and peers
from peers import Problem, Setting, TooManyEvaluations
from problems import STARTS, Counted, mixture

OURS = "sdesamplers"
PEERS = {"diffusers": "peers.diffusers_peer", "k-diffusion": "peers.k_diffusion_peer", "azula": "peers.azula_peer"}
BUDGETS = (5, 6, 8, 10, 15, 20, 30, 50)
COORDINATES = ("native", "ve", "flow", "angle")
FLIPPED = 0.5  # a sample with a larger error, per dimension, has ended in another mode

SPACING_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "karras": [{}, {"rho": 3.0}],
    "flow-power": [{}, {"rho": 1.0}, {"rho": 1.25}, {"rho": 2.0}],
    "power": [{}, {"rho": 1.5}],
}
"""The options of spacings to run; the defaults only for other spacings."""


# Our settings, from the registry.


def option_values(option: Any) -> Sequence[Any]:
    """The values of a sampler option to run."""
    if typing.get_origin(option.type) is typing.Literal:
        return typing.get_args(option.type)
    if option.type is bool:
        return (False, True)
    if option.type is int and option.name.endswith("order"):
        return tuple(range(1, 6))
    return (option.default,)


def variants(spec: sds.Sampler) -> Iterator[dict[str, Any]]:
    """Deterministic options of a sampler: every combination of orders, with one other option changed at a time."""
    fixed = dict(spec.noiseless or {})
    free = {n: option_values(o) for n, o in spec.options.items() if n not in fixed and n not in spec.control}
    orders = {n: values for n, values in free.items() if n.endswith("order") and len(values) > 1}
    kinds = [(n, v) for n, values in free.items() if n not in orders for v in values if v != spec.options[n].default]
    for values in itertools.product(*orders.values()):
        chosen = {n: v for n, v in zip(orders, values, strict=True) if v != spec.options[n].default}
        yield {**fixed, **chosen}
        for name, value in kinds:
            yield {**fixed, **chosen, name: value}


def options_text(options: dict[str, Any]) -> str:
    """Options as text, " key=value ..."."""
    return "".join(f" {name}={value}" for name, value in options.items())


def our_setting(
    sampler: str,
    options: dict[str, Any],
    spacing: str,
    spacing_options: dict[str, Any],
    coordinates: str,
    final: str = "zero",
    round_timesteps: bool = False,
) -> Setting:
    """A setting that `sds.sample` runs within a budget of evaluations; `round_timesteps` is an option of `sds.load`."""

    def call(problem: Problem, nfe: int) -> Tensor:
        model = Counted(problem, round_timesteps)
        arguments = {"spacing": spacing, "spacing_options": spacing_options, "coordinates": coordinates, "final": final}
        return sds.sample(model, sampler, nfe=nfe, start=problem.start, **arguments, **options).samples

    others = {} if final == "zero" else {"final": final}
    others |= {"round_timesteps": True} if round_timesteps else {}
    name = f"{sampler}{options_text(options)}, {spacing}{options_text(spacing_options | others)}, {coordinates}"
    return Setting(OURS, name, call, f"{sampler}{options_text(options)}", budgeted=True)


def our_settings(
    samplers: Iterable[str] | None = None,
    grids: dict[str, list[dict[str, Any]]] | None = None,
    say: Callable[[str], None] = print,
) -> list[Setting]:
    """Every deterministic sampler with its variants and orders, every spacing, and coordinates if they have an effect.

    Of settings that give the same samples in a trial on the mixture only the first is kept.
    """
    probe = mixture(3)
    seen: set[tuple[Any, ...]] = set()
    kept, same = [], 0
    grids = grids or {name: SPACING_OPTIONS.get(name, [{}]) for name in sds.spacings()}
    for name, spec in sds.samplers().items():
        if samplers is not None and name not in samplers:
            continue
        if (spec.stochastic and not spec.noiseless) or spec.evaluations is None or set(spec.needs) - {"marginals"}:
            continue
        for options in variants(spec):
            usable = False
            for coordinates in distinct_coordinates(name, options, probe):
                for spacing, choices in grids.items():
                    for spacing_options in choices:
                        setting = our_setting(name, options, spacing, spacing_options, coordinates)
                        results = tuple(fingerprint(setting, probe, nfe) for nfe in (8, 13))
                        if results[-1] is None:
                            continue
                        usable = True
                        same += results in seen
                        if results not in seen:
                            seen.add(results)
                            kept.append(setting)
            if not usable:
                say(f"{name}{options_text(options)} cannot run within 13 evaluations on any spacing")
    say(f"{len(kept)} settings of ours; {same} more give the same samples as one of them")
    return kept


def distinct_coordinates(sampler: str, options: dict[str, Any], probe: Problem) -> list[str]:
    """The coordinates in which a sampler gives different samples."""
    found: dict[Any, str] = {}
    for coordinates in COORDINATES:
        result = fingerprint(our_setting(sampler, options, "angle", {}, coordinates), probe, 13)
        found.setdefault(result, coordinates)
    return [coordinates for result, coordinates in found.items() if result is not None]


def fingerprint(setting: Setting, probe: Problem, nfe: int) -> tuple[float, ...] | None:
    """The samples of a setting for the probe, rounded; None if it cannot run within the budget."""
    found = attempt(setting, probe, nfe, nfe)
    return None if found is None else tuple(float(f"{v:.8g}") for v in found[0].flatten()[:6].tolist())


# Running and measuring.


def attempt(setting: Setting, problem: Problem, steps: int, nfe: int) -> tuple[Tensor, int] | None:
    """Run a setting once: (samples, evaluations), or None if it fails or exceeds the budget."""
    trial = problem.part(slice(None), budget=nfe)
    try:
        with warnings.catch_warnings(), torch.no_grad(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            samples = setting.run(trial, steps)
    except (TooManyEvaluations, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, AssertionError):
        return None
    except sds_errors():
        return None
    if samples.shape != problem.start.shape or not bool(torch.isfinite(samples).all()):
        return None
    return samples, trial.count


def sds_errors() -> tuple[type[BaseException], ...]:
    """The exceptions of this library."""
    from sdesamplers.errors import SdesamplersError

    return (SdesamplersError,)


def planned_steps(setting: Setting, problem: Problem, nfe: int) -> int | None:
    """The largest number of steps whose evaluations fit in the budget, found with a model that costs nothing."""
    if setting.budgeted:
        return nfe
    for steps in range(nfe + 1, max(0, nfe // 4 - 1), -1):
        if attempt(setting, problem.silent(nfe), steps, nfe) is not None:
            return steps
    return None


def errors(setting: Setting, problem: Problem, nfe: int) -> tuple[np.ndarray, int] | None:
    """(the root-mean-square distance of each sample from the truth, evaluations), or None if it cannot run."""
    steps = planned_steps(setting, problem, nfe)
    found = None if steps is None else attempt(setting, problem, steps, nfe)
    if found is None:
        return None
    assert problem.truth is not None
    samples, count = found
    return (samples.double() - problem.truth).flatten(1).square().mean(1).sqrt().numpy(), count


def measure(setting: Setting, problem: Problem, nfe: int) -> dict[str, Any] | None:
    """The errors of a setting at a budget; None if it cannot run."""
    began = time.perf_counter()
    found = errors(setting, problem, nfe)
    if found is None:
        return None
    error, count = found
    return {
        "nfe": count,
        "rmse": significant(math.sqrt(np.mean(error**2))),
        "median": significant(float(np.median(error))),
        "q90": significant(float(np.quantile(error, 0.9))),
        "flipped": significant(float(np.mean(error > FLIPPED))),
        "seconds": round(time.perf_counter() - began, 3),
    }


def significant(value: float) -> float:
    """Round to four significant digits."""
    return float(f"{value:.4g}")


class Log:
    """Measured cells, appended to a file of JSON lines, so that an interrupted run can be continued."""

    def __init__(self, file: Path, resume: bool = True) -> None:
        self.file, self.cells = file, {}
        if not resume:
            file.unlink(missing_ok=True)
        if file.exists():
            for line in file.read_text().splitlines():
                cell = json.loads(line)
                self.cells[cell["problem"], cell["starts"], cell["key"], cell["budget"]] = cell

    def get(self, problem: Problem, setting: Setting, budget: int) -> dict[str, Any] | None:
        """A cell, from the log or measured now; None if the setting cannot run."""
        key = (problem.name, len(problem.start), setting.key, budget)
        if key not in self.cells:
            found = measure(setting, problem, budget) or {}
            cell = dict(zip(("problem", "starts", "key", "budget"), key, strict=True), **found)
            self.cells[key] = cell
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a") as out:
                out.write(json.dumps(cell) + "\n")
        return self.cells[key] if "rmse" in self.cells[key] else None


def peer_settings(say: Callable[[str], None] = print) -> list[Setting]:
    """The settings of the installed libraries."""
    made: list[Setting] = []
    for library, module in PEERS.items():
        try:
            peer = importlib.import_module(module)
        except ImportError as missing:
            say(f"{library} is left out: {missing} (pip install -r benchmarks/requirements.txt)")
            continue
        found = peer.settings()
        VERSIONS[library] = peer.VERSION
        say(f"{library} {peer.VERSION}: {len(found)} settings")
        made += found
    return made


VERSIONS: dict[str, str] = {}


def run_all(
    log: Log, problem: Problem, settings: Sequence[Setting], budgets: Sequence[int] = BUDGETS, say: Any = print
) -> None:
    """Measure every setting at every budget."""
    began = time.perf_counter()
    for done, setting in enumerate(settings):
        for budget in budgets:
            log.get(problem, setting, budget)
        if done % 50 == 49:
            say(f"{problem.name}: {done + 1} of {len(settings)} settings, {time.perf_counter() - began:.0f} s")


MEASURES = ("rmse", "median")


def ranked(cells: Iterable[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    """Cells from best to worst; "both" is the product of the two measures."""
    value = (lambda c: c["rmse"] * c["median"]) if by == "both" else (lambda c: c[by])
    return sorted(cells, key=value)


def finalists(
    log: Log, problem: Problem, settings: Sequence[Setting], count: int, budgets: Sequence[int] = BUDGETS
) -> dict[int, list[Setting]]:
    """At each budget the best `count` settings of each library by each measure, among those in the log."""
    known = {s.key: s for s in settings}
    chosen: dict[int, list[Setting]] = {}
    for budget in budgets:
        keys: dict[str, None] = {}
        for library in {s.library for s in settings}:
            cells = [
                cell
                for (name, starts, key, at), cell in log.cells.items()
                if (name, starts, at) == (problem.name, len(problem.start), budget)
                and key in known
                and known[key].library == library
                and "rmse" in cell
            ]
            for by in (*MEASURES, "both"):
                keys.update(dict.fromkeys(cell["key"] for cell in ranked(cells, by)[:count]))
        chosen[budget] = [known[key] for key in keys]
    return chosen


# The report.

WINNERS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], str]] = {
    "abm-power": ("abm", {}, "power", {}, "flow"),
    "ab-power": ("ab", {}, "power", {"rho": 1.25}, "native"),
    "abm-flow-power": ("abm", {}, "flow-power", {}, "flow"),
    "unipc-flow-power": ("unipc", {"order": 3}, "flow-power", {"rho": 2.0}, "native"),
}
"""Settings of ours that are run and shown at every budget: name -> sampler, options, spacing, spacing options,
coordinates. The first two were the recipes `fast` and `quality` when the recorded results were measured."""


def table(log: Log, problem: str, starts: int) -> dict[int, dict[str, list[dict[str, Any]]]]:
    """budget -> library -> cells, for one problem and number of starts."""
    found: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for (name, count, key, budget), cell in log.cells.items():
        if (name, count) == (problem, starts) and "rmse" in cell:
            found.setdefault(budget, {}).setdefault(key.split(": ")[0], []).append(cell)
    return dict(sorted(found.items()))


def pair(cell: dict[str, Any]) -> str:
    """The RMSE and the median of a cell as text."""
    return f"{cell['rmse']:.2g} / {cell['median']:.2g}"


def title(cell: dict[str, Any], library: bool = False) -> str:
    """The setting of a cell as text for a table."""
    name, _, setting = cell["key"].partition(": ")
    return f"{name}: {setting}" if library else setting


def ratio(ours: dict[str, Any], theirs: dict[str, Any], by: str) -> str:
    """The ratio of our error to theirs; if the errors of all samples are known, with a 95% bootstrap interval."""
    text = f"{ours[by] / theirs[by]:.2f}"
    if "errors" not in ours or "errors" not in theirs:
        return text
    measure = {"rmse": lambda e: np.sqrt((e**2).mean(1)), "median": lambda e: np.median(e, 1)}[by]
    count = len(ours["errors"])
    rows = np.random.default_rng(0).integers(0, count, (4000, count))
    low, high = np.quantile(measure(ours["errors"][rows]) / measure(theirs["errors"][rows]), [0.025, 0.975])
    return f"{text} [{low:.2f}, {high:.2f}]"


def best_tables(cells: dict[int, dict[str, list[dict[str, Any]]]]) -> Iterator[str]:
    """Markdown tables: for each measure, the best of ours and of the others at each budget."""
    for by in MEASURES:
        measure_name = {"rmse": "RMSE", "median": "median error"}[by]
        yield f"\n### By {measure_name}\n"
        yield "| NFE | ours: RMSE / median | setting | best peer: RMSE / median | setting | ratio, ours to theirs |"
        yield "|--:|--:|---|--:|---|--:|"
        for budget, libraries in cells.items():
            ours = ranked(libraries.get(OURS, []), by)
            theirs = ranked([c for name, group in libraries.items() if name != OURS for c in group], by)
            if ours and theirs:
                ours_to_theirs = ratio(ours[0], theirs[0], by)
                row = (pair(ours[0]), title(ours[0]), pair(theirs[0]), title(theirs[0], True), ours_to_theirs)
                yield f"| {budget} | {' | '.join(row)} |"


def whole_tables(cells: dict[int, dict[str, list[dict[str, Any]]]]) -> Iterator[str]:
    """Markdown table: settings of ours at every budget, and the best of each peer by each measure."""
    yield "\n### One setting at every budget\n"
    yield "For the others: the smallest RMSE and the smallest median error, usually of two different settings.\n"
    yield f"| setting | {' | '.join(str(b) for b in cells)} |"
    yield f"|---|{'--:|' * len(cells)}"
    for name, setting in WINNERS.items():
        key = our_setting(*setting).key
        found = [next((c for c in libraries.get(OURS, []) if c["key"] == key), None) for libraries in cells.values()]
        if not any(found):
            continue
        yield f"| `{name}`: {key.split(': ')[1]} | {' | '.join('-' if c is None else pair(c) for c in found)} |"
    for library in [name for name in PEERS if any(group.get(name) for group in cells.values())]:
        row = []
        for libraries in cells.values():
            group = libraries.get(library, [])
            least = [min((c[by] for c in group), default=math.nan) for by in MEASURES]
            row.append(f"{least[0]:.2g} / {least[1]:.2g}" if group else "-")
        yield f"| best of {library} | {' | '.join(row)} |"


Cells = dict[int, dict[str, list[dict[str, Any]]]]
"""budget -> library -> measured settings, of one problem."""


def plot(shown: Sequence[tuple[str, Cells]], file: Path) -> None:
    """Plot error against evaluations, log-log: the best of each library at each budget, and some settings of ours."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = {OURS: "#c1272d", "diffusers": "#0072b2", "k-diffusion": "#009e73", "azula": "#e69f00"}
    figure, axes = plt.subplots(len(shown), 2, figsize=(11, 4.2 * len(shown)), squeeze=False, layout="constrained")
    for row, (title, cells) in zip(axes, shown, strict=True):
        for axis, by in zip(row, MEASURES, strict=True):
            for library, colour in colours.items():
                points = [(b, min(c[by] for c in g[library])) for b, g in cells.items() if g.get(library)]
                if points:
                    line = {"lw": 2.4, "zorder": 5} if library == OURS else {"lw": 1.5}
                    label = f"best of {library}"
                    axis.plot(*zip(*points, strict=True), "o-", color=colour, label=label, ms=4, **line)
            for (name, setting), dash in zip(WINNERS.items(), ("--", ":", "-.", (0, (1, 4))), strict=True):
                key = our_setting(*setting).key
                points = [(b, c[by]) for b, g in cells.items() for c in g.get(OURS, []) if c["key"] == key]
                if points:
                    axis.plot(*zip(*points, strict=True), linestyle=dash, color="#7a1419", label=name, lw=1.3)
            axis.set(xscale="log", yscale="log", xlabel="model evaluations", title=title)
            axis.set_ylabel({"rmse": "RMSE", "median": "median error"}[by])
            axis.set_xticks(list(cells), [str(b) for b in cells])
            axis.minorticks_off()
            axis.grid(alpha=0.25)
    axes[0][0].legend(fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def machine() -> str:
    """The versions that the numbers were measured with."""
    versions = ", ".join(f"{name} {version}" for name, version in VERSIONS.items())
    return f"Python {platform.python_version()}, torch {torch.__version__}, {versions}"


def report(
    shown: Sequence[tuple[str, str, Cells, Cells]], tree: dict[str, Any], out: Path, work: Path, notes: Sequence[str]
) -> None:
    """Write work_precision.md and .png to `out`, and all cells to work_precision.json in `work`.

    Args:
        shown: (title, description, cells, cells of all settings) of each problem. The last, possibly with fewer starts,
            contain more settings, for the table of one setting at every budget and for the figure.
        tree: all cells, for the JSON file.
        out: folder for the report.
        work: folder for the JSON file.
        notes: paragraphs at the start of the report.
    """
    out.mkdir(parents=True, exist_ok=True)
    lines = ["# Work and precision\n", f"{machine()}.\n", *(f"{note}\n" for note in notes)]
    for heading, about, cells, everyone in shown:
        lines += [f"## {heading}\n", f"{about}\n", *best_tables(cells), *whole_tables(everyone), ""]
    lines += ["![error against evaluations](work_precision.png)", ""]
    (out / "work_precision.md").write_text("\n".join(lines))
    (work / "work_precision.json").write_text(json.dumps(tree, separators=(",", ":")) + "\n")
    plot([(heading.split(",")[0], cells) for heading, _, _, cells in shown], out / "work_precision.png")


def compact(log: Log) -> dict[str, Any]:
    """All cells: problem -> starts -> setting -> budget -> [nfe, rmse, median, 0.9 quantile]."""
    tree: dict[str, Any] = {"columns": ["nfe", "rmse", "median", "q90"], "versions": VERSIONS, "cells": {}}
    for (problem, starts, key, budget), cell in log.cells.items():
        if "rmse" in cell:
            place = tree["cells"].setdefault(problem, {}).setdefault(str(starts), {}).setdefault(key, {})
            place[str(budget)] = [cell["nfe"], *(float(f"{cell[c]:.3g}") for c in tree["columns"][1:])]
    return tree


def main(arguments: Sequence[str] | None = None) -> None:
    """Screen all settings on the mixture and run the finalists; tournament.py runs the network, writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=Path("out/work_precision"), help="folder for measurements and ODE solutions"
    )
    parser.add_argument("--resume", action="store_true", help="keep earlier measurements")
    parser.add_argument("--starts", type=int, default=STARTS, help="number of starts for the finalists")
    parser.add_argument("--screen", type=int, default=256, help="number of starts for the screening of all settings")
    parser.add_argument("--finalists", type=int, default=12, help="finalists per library, measure and budget")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    log = Log(args.work / "cells.jsonl", resume=args.resume)
    say = lambda line: print(line, flush=True)  # noqa: E731
    settings = [*our_settings(say=say), *peer_settings(say)]
    always = [our_setting(*w) for w in WINNERS.values()]
    screen_then_run(log, mixture(args.starts, args.work), settings, always, args.screen, args.finalists, say)


def screen_then_run(
    log: Log,
    problem: Problem,
    settings: Sequence[Setting],
    always: Sequence[Setting],
    screen: int,
    count: int,
    say: Any,
    budgets: Sequence[int] = BUDGETS,
) -> None:
    """Run all settings with few starts, then the best with all starts."""
    trial = problem.part(slice(0, screen))
    run_all(log, trial, settings, budgets, say)
    for budget, chosen in finalists(log, trial, settings, count, budgets).items():
        chosen = list({s.key: s for s in [*chosen, *always]}.values())
        say(f"{problem.name}: {len(chosen)} finalists at {budget} evaluations, {len(problem.start)} starts")
        run_all(log, problem, chosen, [budget], say)


NOTES = (
    "Error: root-mean-square distance, over the dimensions of a sample, from the solution of the probability-flow ODE "
    "with the same start, which ends with the model's x0 at the first timestep. RMSE is the root mean square over all "
    "samples; the median is over samples too. NFE are counted by the model; a method with several evaluations per step "
    "gets the largest number of steps that fits.",
    "Left out: k-diffusion's `dpm_adaptive` and our adaptive samplers (their evaluations cannot be set), diffusers' "
    "EDM schedulers (again DPM-Solver++ 2M and Euler on the Karras grid), skrample (needs Python 3.12).",
    "**Results.** On the mixture ours are best at every budget by either measure: `abm` on `flow-power` up to 20 "
    "evaluations, `unipc` on this grid above. On the network ours are best by the median at every budget, and by the "
    "RMSE at all but two: at 20 and 50, where single starts decide, the smallest RMSE is that of a method that another "
    "library has too, with the same samples: exponential Adams for the noise (`exp-ab`, azula's zEAB) and UniPC of "
    "order 3 evaluated at whole timesteps (diffusers; here `load(..., round_timesteps=True)`). With few evaluations "
    "equal steps of time without a step to sigma = 0 are best (`abm` of order 1 on `linspace` or `power`, "
    "final='min'), with many a logarithmic grid. `abm-power` has the smallest median error of all at 10. `ab-power` is "
    "good on both problems at 20 and runs on flow models, while the winners on the network there have 29 to 45 times "
    "the smallest RMSE on the mixture. These two were the recipes `fast` and `quality` when this was measured. Both "
    "have changed since, to be stable on every process; docs/defaults.md has their current settings.",
    "**The reference solution of the network.** The network was trained at whole timesteps, and its output fluctuates "
    "between them with a period of six. Earlier versions of this table used the result of an Adams method with 300 "
    "evaluations as the reference, whose error of 0.004 hid the differences above 20 evaluations. The reference is now "
    "accurate to about 0.0002 (`network_truth`).",
    "**Limitations.** Rounds 1 to 3 at up to 15 evaluations, and round 1 at 20, were run against the earlier "
    "reference, whose error is small compared with theirs. Besides the finalists of the tournament there are settings "
    "of ours from searches on the 32 starts of the screening (grids that end at a chosen sigma, and runs that end at "
    "the smallest sigma, which the others had from the start). At 50, nine of them, with whole timesteps and UniPC as "
    "in diffusers, were added after seeing the first 128 starts of the final, which are not among those of the tables. "
    "Of the others there are the same 7 to 17 settings per budget throughout.",
)


if __name__ == "__main__":
    main()
