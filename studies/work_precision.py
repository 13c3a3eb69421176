"""Error against model evaluations: every deterministic sampler here beside diffusers', azula's and k-diffusion's.

    python studies/work_precision.py                   (the mixture; hours, --resume takes it up again)
    python studies/tournament.py --out studies/results (the embedded network, and the report of both)

Two problems: a 16-dimensional Gaussian mixture with its exact score on DDPM's linear table, and the embedded model.
Everyone starts from the same states at the table's last timestep and ends at sigma = 0; the error of a sample is its
root-mean-square distance from where the probability-flow ODE takes its start. Given are the root of its mean square
over all samples (RMSE), which the few samples that land in another mode rule at few evaluations, and its median.
Evaluations are counted by the model. Every setting is screened with few starts, and the best of each library by
either measure run again with more.

The other libraries are named in benchmarks/requirements.txt; one that is not installed is left out, with a line.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))  # of whose problems and peers it is a study
from peers import Problem, Setting, TooManyEvaluations
from problems import STARTS, Counted, mixture

OURS = "sdesamplers"
PEERS = {"diffusers": "peers.diffusers_peer", "k-diffusion": "peers.k_diffusion_peer", "azula": "peers.azula_peer"}
BUDGETS = (5, 6, 8, 10, 15, 20, 30, 50)
COORDINATES = ("native", "ve", "flow", "angle")
FLIPPED = 0.5  # a sample this far off, per dimension, has landed in another mode

SPACING_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "karras": [{}, {"rho": 3.0}],
    "flow-power": [{}, {"rho": 1.0}, {"rho": 1.25}, {"rho": 2.0}],
    "power": [{}, {"rho": 1.5}],
}
"""Options of spacings that are tried beside the defaults."""


# Our settings, from the registry.


def option_values(option: Any) -> Sequence[Any]:
    """The values of a sampler's option that are tried."""
    if typing.get_origin(option.type) is typing.Literal:
        return typing.get_args(option.type)
    if option.type is bool:
        return (False, True)
    if option.type is int and option.name.endswith("order"):
        return tuple(range(1, 6))
    return (option.default,)


def variants(spec: sds.Sampler) -> Iterator[dict[str, Any]]:
    """A sampler's deterministic options: every combination of its orders, with each of its other kinds in turn."""
    fixed = dict(spec.noiseless or {})
    free = {n: option_values(o) for n, o in spec.options.items() if n not in fixed and n not in spec.control}
    orders = {n: values for n, values in free.items() if n.endswith("order") and len(values) > 1}
    kinds = [(n, v) for n, values in free.items() if n not in orders for v in values if v != spec.options[n].default]
    for values in itertools.product(*orders.values()):
        chosen = {n: v for n, v in zip(orders, values, strict=True) if v != spec.options[n].default}
        yield {**fixed, **chosen}
        for name, value in kinds:
            yield {**fixed, **chosen, name: value}


def words_of(options: dict[str, Any]) -> str:
    """Options as they are written in a call."""
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
    """A setting that `sds.sample` runs within a budget of evaluations; the last word is `sds.load`'s."""

    def call(problem: Problem, nfe: int) -> Tensor:
        model = Counted(problem, round_timesteps)
        words = {"spacing": spacing, "spacing_options": spacing_options, "coordinates": coordinates, "final": final}
        return sds.sample(model, sampler, nfe=nfe, start=problem.start, **words, **options).samples

    others = {} if final == "zero" else {"final": final}
    others |= {"round_timesteps": True} if round_timesteps else {}
    name = f"{sampler}{words_of(options)}, {spacing}{words_of(spacing_options | others)}, {coordinates}"
    return Setting(OURS, name, call, f"{sampler}{words_of(options)}", budgeted=True)


def our_settings(
    samplers: Iterable[str] | None = None,
    grids: dict[str, list[dict[str, Any]]] | None = None,
    say: Callable[[str], None] = print,
) -> list[Setting]:
    """Every deterministic sampler, its kinds and orders, every spacing, and coordinates where they matter.

    Settings that give the same samples are told apart by a trial on the mixture and kept once, under the first name.
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
            for coordinates in matter(name, options, probe):
                for spacing, choices in grids.items():
                    for spacing_options in choices:
                        setting = our_setting(name, options, spacing, spacing_options, coordinates)
                        prints = tuple(fingerprint(setting, probe, nfe) for nfe in (8, 13))
                        if prints[-1] is None:
                            continue
                        usable = True
                        same += prints in seen
                        if prints not in seen:
                            seen.add(prints)
                            kept.append(setting)
            if not usable:
                say(f"{name}{words_of(options)} runs on no spacing within 13 evaluations")
    say(f"{len(kept)} settings of ours; {same} more give the same samples as one of them")
    return kept


def matter(sampler: str, options: dict[str, Any], probe: Problem) -> list[str]:
    """The coordinates in which a sampler gives something else than in those before."""
    found: dict[Any, str] = {}
    for coordinates in COORDINATES:
        print_ = fingerprint(our_setting(sampler, options, "angle", {}, coordinates), probe, 13)
        found.setdefault(print_, coordinates)
    return [coordinates for print_, coordinates in found.items() if print_ is not None]


def fingerprint(setting: Setting, probe: Problem, nfe: int) -> tuple[float, ...] | None:
    """What a setting gives on the probe, rounded; None where it cannot run within the budget."""
    found = attempt(setting, probe, nfe, nfe)
    return None if found is None else tuple(float(f"{v:.8g}") for v in found[0].flatten()[:6].tolist())


# Running and measuring.


def attempt(setting: Setting, problem: Problem, steps: int, nfe: int) -> tuple[Tensor, int] | None:
    """One run: samples and evaluations; None where it fails or asks too often."""
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
    """Refusals of our own library."""
    from sdesamplers.errors import SdesamplersError

    return (SdesamplersError,)


def planned_steps(setting: Setting, problem: Problem, nfe: int) -> int | None:
    """The most steps whose evaluations fit in the budget, found with a model that costs nothing."""
    if setting.budgeted:
        return nfe
    for steps in range(nfe + 1, max(0, nfe // 4 - 1), -1):
        if attempt(setting, problem.silent(nfe), steps, nfe) is not None:
            return steps
    return None


def errors(setting: Setting, problem: Problem, nfe: int) -> tuple[np.ndarray, int] | None:
    """Each sample's root-mean-square distance from the truth, and evaluations; None where it cannot run."""
    steps = planned_steps(setting, problem, nfe)
    found = None if steps is None else attempt(setting, problem, steps, nfe)
    if found is None:
        return None
    assert problem.truth is not None
    samples, count = found
    return (samples.double() - problem.truth).flatten(1).square().mean(1).sqrt().numpy(), count


def measure(setting: Setting, problem: Problem, nfe: int) -> dict[str, Any] | None:
    """Errors of a setting at a budget; None where it cannot run."""
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
    """Four significant digits."""
    return float(f"{value:.4g}")


class Log:
    """Measured cells, kept in a file of JSON lines as they come, so that a run can be taken up again."""

    def __init__(self, file: Path, resume: bool = True) -> None:
        self.file, self.cells = file, {}
        if not resume:
            file.unlink(missing_ok=True)
        if file.exists():
            for line in file.read_text().splitlines():
                cell = json.loads(line)
                self.cells[cell["problem"], cell["starts"], cell["key"], cell["budget"]] = cell

    def get(self, problem: Problem, setting: Setting, budget: int) -> dict[str, Any] | None:
        """A cell, measured now unless it has been."""
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
    """The settings of the libraries that are installed."""
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
    """At each budget the best `count` settings of each library by each measure, of those that `log` has."""
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
"""Settings of ours that are run at every budget and shown as wholes: name -> sampler, options, spacing, its options,
coordinates. The first two were `fast` and `quality` when the recorded results were made."""


def table(log: Log, problem: str, starts: int) -> dict[int, dict[str, list[dict[str, Any]]]]:
    """budget -> library -> cells, of one problem at one number of starts."""
    found: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for (name, count, key, budget), cell in log.cells.items():
        if (name, count) == (problem, starts) and "rmse" in cell:
            found.setdefault(budget, {}).setdefault(key.split(": ")[0], []).append(cell)
    return dict(sorted(found.items()))


def pair(cell: dict[str, Any]) -> str:
    """RMSE / median of a cell."""
    return f"{cell['rmse']:.2g} / {cell['median']:.2g}"


def title(cell: dict[str, Any], library: bool = False) -> str:
    """A cell's setting for a table."""
    name, _, setting = cell["key"].partition(": ")
    return f"{name}: {setting}" if library else setting


def ratio(ours: dict[str, Any], theirs: dict[str, Any], by: str) -> str:
    """Our error to theirs; where every sample's is known with a 95% interval, from 4,000 resamples of the starts."""
    share = f"{ours[by] / theirs[by]:.2f}"
    if "errors" not in ours or "errors" not in theirs:
        return share
    measure = {"rmse": lambda e: np.sqrt((e**2).mean(1)), "median": lambda e: np.median(e, 1)}[by]
    count = len(ours["errors"])
    rows = np.random.default_rng(0).integers(0, count, (4000, count))
    low, high = np.quantile(measure(ours["errors"][rows]) / measure(theirs["errors"][rows]), [0.025, 0.975])
    return f"{share} [{low:.2f}, {high:.2f}]"


def best_tables(cells: dict[int, dict[str, list[dict[str, Any]]]]) -> Iterator[str]:
    """Markdown: for each measure, the best of ours and of the others at each budget."""
    for by in MEASURES:
        word = {"rmse": "RMSE", "median": "median error"}[by]
        yield f"\n### By {word}\n"
        yield "| NFE | ours: RMSE / median | setting | best peer: RMSE / median | setting | ours to theirs |"
        yield "|--:|--:|---|--:|---|--:|"
        for budget, libraries in cells.items():
            ours = ranked(libraries.get(OURS, []), by)
            theirs = ranked([c for name, group in libraries.items() if name != OURS for c in group], by)
            if ours and theirs:
                share = ratio(ours[0], theirs[0], by)
                row = (pair(ours[0]), title(ours[0]), pair(theirs[0]), title(theirs[0], True), share)
                yield f"| {budget} | {' | '.join(row)} |"


def whole_tables(cells: dict[int, dict[str, list[dict[str, Any]]]]) -> Iterator[str]:
    """Markdown: settings that are shown at every budget, beside the best peer of each measure."""
    yield "\n### One setting at every budget\n"
    yield "Of the others: the least RMSE and the least median error of any setting, mostly of two different ones.\n"
    yield f"| setting | {' | '.join(str(b) for b in cells)} |"
    yield f"|---|{'--:|' * len(cells)}"
    for name, words in WINNERS.items():
        key = our_setting(*words).key
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
    """Error against evaluations, log-log: the best of each library at each budget, and settings of ours as wholes."""
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
            for (name, words), dash in zip(WINNERS.items(), ("--", ":", "-.", (0, (1, 4))), strict=True):
                key = our_setting(*words).key
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
    """What the numbers were measured with."""
    versions = ", ".join(f"{name} {version}" for name, version in VERSIONS.items())
    return f"Python {platform.python_version()}, torch {torch.__version__}, {versions}"


def report(
    shown: Sequence[tuple[str, str, Cells, Cells]], tree: dict[str, Any], out: Path, work: Path, notes: Sequence[str]
) -> None:
    """Write work_precision.md and .png, and all cells as .json beside what was measured.

    Each problem has its title, how it was run, and its cells.

    The second cells, which may be of fewer starts, hold more settings: for the settings as wholes and the picture.
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
    """Screen on the mixture, run the finalists; the network is run, and the report written, by tournament.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("out/work_precision"), help="where cells and truths are kept")
    parser.add_argument("--resume", action="store_true", help="keep what was measured before")
    parser.add_argument("--starts", type=int, default=STARTS, help="of the finalists")
    parser.add_argument("--screen", type=int, default=256, help="starts that all settings are screened with")
    parser.add_argument("--finalists", type=int, default=12, help="settings of a library by a measure at a budget")
    words = parser.parse_args(arguments)
    torch.set_num_threads(1)
    log = Log(words.work / "cells.jsonl", resume=words.resume)
    say = lambda line: print(line, flush=True)  # noqa: E731
    settings = [*our_settings(say=say), *peer_settings(say)]
    always = [our_setting(*w) for w in WINNERS.values()]
    screen_then_run(log, mixture(words.starts, words.work), settings, always, words.screen, words.finalists, say)


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
    """All settings with few starts, the best with all of them."""
    trial = problem.part(slice(0, screen))
    run_all(log, trial, settings, budgets, say)
    for budget, chosen in finalists(log, trial, settings, count, budgets).items():
        chosen = list({s.key: s for s in [*chosen, *always]}.values())
        say(f"{problem.name}: {len(chosen)} finalists at {budget} evaluations, {len(problem.start)} starts")
        run_all(log, problem, chosen, [budget], say)


NOTES = (
    "Error: root-mean-square distance, over a sample's dimensions, from where the probability-flow ODE takes the "
    "same start, ending with the model's x0 at the table's first timestep. RMSE is over all samples, the median over"
    " samples. NFE are counted by the model; a method that takes several a step is given the most steps that fit.",
    "Left out: k-diffusion's `dpm_adaptive` and our adaptive samplers (their evaluations cannot be set), diffusers' "
    "EDM schedulers (DPM-Solver++ 2M and Euler on the Karras grid once more), skrample (needs Python 3.12).",
    "**What wins.** On the mixture ours at every budget by either measure: `abm` on `flow-power` up to 20 "
    "evaluations, `unipc` on it above. On the network ours is ahead by the median at every budget, and by the RMSE "
    "at all but two: at 20 and 50, where single starts decide, the least RMSE is that of a method that another "
    "library has too, with the same samples: exponential Adams of the noise (`exp-ab`, azula's zEAB) and UniPC of "
    "order 3 asked at whole timesteps (diffusers'; here `load(..., round_timesteps=True)`). Few evaluations want "
    "equal steps of time and no step to sigma = 0 (`abm` of order 1 on `linspace` or `power`, final='min'), many a "
    "logarithmic grid. `abm-power` has the least median error of all at 10. `ab-power` is what is good on both problems"
    " at 20 and runs on flow models: the network's winners there have 29 to 45 times the least RMSE on the mixture. "
    "These two were `fast` and `quality` when this was measured. Both have been changed since, to be stable on every "
    "process, and what they have now is in docs/defaults.md.",
    "**The network's truth.** Trained at whole timesteps, it wavers between them with a period of six; earlier "
    "editions of this table took for the truth what 300 evaluations of an Adams method gave, which was 0.004 off and"
    " hid what happens above 20 evaluations. It is now known to some 0.0002 (`network_truth`).",
    "**What to hold against it.** Rounds 1 to 3 at up to 15 evaluations, and round 1 at 20, were run against the "
    "earlier truth, whose error is small beside theirs. Besides the tournament's finalists there are settings of "
    "ours that searches on the screening's 32 starts had found (grids that end at a sigma of choice and runs that "
    "end at the smallest sigma, which the others had from the start); at 50 nine of them, whole timesteps and UniPC "
    "as diffusers has it, were added after a look at the final's first 128 starts, which are not among those of the "
    "tables. Of the others there are the same 7 to 17 at a budget throughout.",
)


if __name__ == "__main__":
    main()
