"""The work-precision study of the embedded network, which is too slow to run every setting at every budget.

    python studies/tournament.py --work out/work_precision       (hours; continues an interrupted run)

It is a tournament of five rounds, with the same rules for every library. The starts of the last two rounds were not
used in any earlier round or search for a grid:

1. every setting of the other libraries at 10 and at 20 evaluations, every deterministic sampler of ours on one grid,
   and the best of these on more grids: 8 starts;
2. at each budget the best settings of each library, judged at the nearer of these two budgets: 8 starts;
3. the best of round 2: 32 starts;
4. the best of round 3, and the results of manual searches on these 32 starts (`extra.jsonl`): new starts, in blocks,
   with the error of every sample recorded, so that a ratio has a confidence interval;
5. the best of ours and of the others by each measure on the first two blocks: 2,048 new starts, which alone count.

The last round can be divided among several processes: `--begin 2 --blocks 18` and `--begin 18`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import work_precision as wp  # adds benchmarks/ to sys.path
import yaml
from peers import Problem, Setting
from problems import STARTS, cached, embedded, network_problem, network_truth

import sdesamplers as sds

FINAL_SEED = 20261123
BLOCK = 64
NEAREST = {5: 10, 6: 10, 8: 10, 10: 10, 15: 20, 20: 20, 30: 20, 50: 20}
KEEP = {"grids": 12, "second": 16, "third": 5, "final": 3}
"""Number of settings per library and measure that advance to the next round."""
WHOLE = 2
"""Number of blocks of the final on which all its settings run, to choose those of the last round."""
ADDED = {
    50: [
        "unipc order=3, karras, native",
        "unipc order=4, karras, native",
        "unipc order=3 variant=bh1, karras, native",
        *(f"{sampler}, karras round_timesteps=True, native" for sampler in ("unipc order=2", "unipc order=3")),
        *(f"unic {kind}, karras round_timesteps=True, native" for kind in ("order=3", "prediction=noise")),
        *(f"abm order={order}, karras round_timesteps=True, ve" for order in (3, 4)),
    ]
}
"""Settings of ours that were added to the final after seeing the results of the first blocks."""
GRIDS: dict[str, list[dict[str, Any]]] = {
    "linspace": [{}],
    "trailing": [{}],
    "karras": [{}, {"rho": 5.0}, {"rho": 5.0, "sigma_min": 0.03}],
    "logsnr": [{}, {"sigma_min": 0.03}, {"sigma_min": 0.1}],
    "edm": [{"column": "vp"}],
    "angle": [{}],
    "flow-power": [{}, {"rho": 2.0}],
    "power": [{"last": 0.15}, {"last": 0.6}, {"rho": 1.25}, {"rho": 1.25, "last": 0.6}],
}
"""Grids of the second half of round 1; in the first half all our samplers run on `power`."""


@dataclass
class Tournament:
    """The rounds of the tournament on a problem, recorded in one log."""

    log: wp.Log
    problem: Problem

    def best(self, settings: Sequence[Setting], starts: int, budget: int, count: int) -> list[Setting]:
        """The best `count` settings of each library by each measure, among those measured at a budget."""
        small = self.problem.part(slice(0, starts))
        return wp.finalists(self.log, small, settings, count, (budget,))[budget]

    def run(self, settings: Iterable[Setting], starts: int, budget: int) -> None:
        """Measure settings, unless they are in the log already."""
        small = self.problem.part(slice(0, starts))
        for setting in settings:
            self.log.get(small, setting, budget)

    def rounds(self, peers: list[Setting], say: Any) -> dict[int, list[Setting]]:
        """Run rounds 1 to 3; return the finalists of each budget."""
        ours = wp.our_settings(grids={"power": [{}]}, say=say)
        for budget in (10, 20):
            say(f"round 1: {len(ours)} settings of ours on one grid, {len(peers)} of others, at {budget} evaluations")
            self.run([*ours, *peers], 8, budget)
        best = {s.key: s for b in (10, 20) for s in self.best(ours, 8, b, KEEP["grids"])}
        more = [
            regridded(s, grid, options) for s in best.values() for grid, choices in GRIDS.items() for options in choices
        ]
        for budget in (10, 20):
            say(f"round 1: {len(more)} more settings of ours, at {budget} evaluations")
            self.run(more, 8, budget)
        everyone, chosen = [*ours, *more, *peers], {}
        for budget, near in NEAREST.items():
            second = self.best(everyone, 8, near, KEEP["second"])
            self.run(second, 8, budget)
            third = self.best(second, 8, budget, KEEP["third"])
            say(f"{len(second)} settings in round 2, {len(third)} in round 3, at {budget} evaluations")
            self.run(third, 32, budget)
            chosen[budget] = self.best(third, 32, budget, KEEP["final"])
        return chosen


def regridded(setting: Setting, grid: str, grid_options: dict[str, Any]) -> Setting:
    """A setting of ours on another grid."""
    sampler, _, coordinates = setting.name.split(", ")
    name, options = split(sampler)
    return wp.our_setting(name, options, grid, grid_options, coordinates)


def block(number: int, folder: Path) -> Problem:
    """Block `number` of the starts of the final, with their ODE solutions."""
    model = sds.load("fashion-mnist")
    generator = torch.Generator().manual_seed(FINAL_SEED + number)
    start = torch.randn(BLOCK, *model.shape, generator=generator)
    truth = cached(folder, f"truth-final-{number}", lambda: network_truth(model, start))
    return network_problem(model, start, truth)


def final(chosen: dict[int, list[Setting]], folder: Path, blocks: range, say: Any) -> None:
    """Run rounds 4 and 5, and record the error of every sample, in one file of JSON lines per block."""
    everyone = chosen
    for number in blocks:
        chosen = everyone if number < WHOLE else duel(everyone, errors_of(folder, range(WHOLE)))
        problem, file = block(number, folder), folder / f"final-{number}.jsonl"
        done = {tuple(json.loads(line)[:2]) for line in file.read_text().splitlines()} if file.exists() else set()
        for budget, settings in sorted(chosen.items()):
            for setting in settings:
                if (setting.key, budget) in done:
                    continue
                found = wp.errors(setting, problem, budget)
                if found is not None:
                    with file.open("a") as out:
                        out.write(
                            json.dumps([setting.key, budget, [wp.significant(float(e)) for e in found[0]]]) + "\n"
                        )
        say(f"final: block {number} of {BLOCK} starts done")


def rmse(errors: np.ndarray) -> float:
    """The root mean square of the errors of all samples."""
    return float(np.sqrt((errors**2).mean()))


DUEL = ((rmse, 2), (np.median, 1))
"""(measure, number of settings of ours and of the others that it sends to the last round)."""


def duel(chosen: dict[int, list[Setting]], errors: dict[int, dict[str, np.ndarray]]) -> dict[int, list[Setting]]:
    """At each budget the best settings of ours and of the others; only one of several settings with equal errors.

    If one of ours is the same method as an advancing setting of the others, it advances too.
    """
    kept: dict[int, list[Setting]] = {}
    for budget, settings in chosen.items():
        known = {s.key: s for s in settings if s.key in errors[budget]}
        keys: dict[str, None] = {}
        for ours in (True, False):
            side = {k: errors[budget][k] for k, s in known.items() if (s.library == wp.OURS) == ours}
            for measure, count in DUEL:
                single = {round(measure(side[k]), 5): k for k in sorted(side, reverse=True)}
                keys |= dict.fromkeys(single[value] for value in sorted(single)[:count])
        others = {round(rmse(errors[budget][key]), 5) for key in keys if known[key].library != wp.OURS}
        ours_too = [k for k, s in known.items() if s.library == wp.OURS and round(rmse(errors[budget][k]), 5) in others]
        keys |= dict.fromkeys(ours_too)
        kept[budget] = [known[key] for key in keys]
    return kept


def errors_of(folder: Path, blocks: range | None = None) -> dict[int, dict[str, np.ndarray]]:
    """budget -> setting -> errors of the samples, for the settings that ran on the same, largest set of blocks."""
    found: dict[tuple[int, str], dict[int, list[float]]] = {}
    for number, file in sorted((int(file.stem.split("-")[1]), file) for file in folder.glob("final-*.jsonl")):
        if blocks is None or number in blocks:
            for key, budget, errors in map(json.loads, file.read_text().splitlines()):
                found.setdefault((budget, key), {})[number] = errors
    tree: dict[int, dict[str, np.ndarray]] = {}
    for (budget, key), parts in sorted(found.items()):
        most = max((blocks_run for (at, _), blocks_run in found.items() if at == budget), key=len)
        if parts.keys() == most.keys():
            tree.setdefault(budget, {})[key] = np.concatenate(list(parts.values()))
    return tree


def found_by_hand(file: Path) -> dict[int, list[Setting]]:
    """Settings of ours from manual searches on the 32 starts of round 3: at each budget the best by each measure."""
    if not file.exists():
        return {}
    log = wp.Log(file)
    chosen: dict[int, list[Setting]] = {}
    for budget in NEAREST:
        cells = [c for (_, starts, _, at), c in log.cells.items() if (starts, at) == (32, budget) and "rmse" in c]
        keys = {c["key"]: None for by in wp.MEASURES for c in wp.ranked(cells, by)[: KEEP["final"]]}
        chosen[budget] = [parsed(key) for key in keys]
    return chosen


def parsed(key: str) -> Setting:
    """A setting of ours from its key."""
    sampler, grid, coordinates = key.split(": ", 1)[1].split(", ")
    (name, options), (spacing, spacing_options) = (split(text) for text in (sampler, grid))
    final, whole = spacing_options.pop("final", "zero"), spacing_options.pop("round_timesteps", False)
    return wp.our_setting(name, options, spacing, spacing_options, coordinates, final, whole)


def split(text: str) -> tuple[str, dict[str, Any]]:
    """Split "name key=value ..." into (name, options)."""
    name, *pairs = text.split(" ")
    return name, {k: yaml.safe_load(v) for k, v in (p.split("=") for p in pairs)}


def cells_of(errors: dict[int, dict[str, np.ndarray]]) -> wp.Cells:
    """The errors of the final as cells of the report, with the errors from which the intervals are computed."""
    cells: wp.Cells = {}
    for budget, settings in errors.items():
        for key, values in settings.items():
            found = {"rmse": rmse(values), "median": np.median(values), "q90": np.quantile(values, 0.9)}
            numbers = {name: wp.significant(float(value)) for name, value in found.items()}
            cell = {"key": key, "budget": budget, **numbers, "errors": values}
            cells.setdefault(budget, {}).setdefault(key.split(": ")[0], []).append(cell)
    return cells


def write_report(work: Path, out: Path) -> None:
    """Write the report on both problems: the network from the final, the mixture from its log or the last report."""
    screened, everyone = wp.Log(work / "tournament.jsonl"), errors_of(work, range(WHOLE))
    errors = errors_of(work, range(WHOLE, sys.maxsize)) or everyone
    starts, few = starts_of(errors), starts_of(everyone)
    log = wp.Log(work / "cells.jsonl")
    tree = wp.compact(log) if log.cells else json.loads((work / "work_precision.json").read_text())
    mixture: wp.Cells = {}
    for key, budgets in tree["cells"]["mixture-16d"][str(STARTS)].items():
        for budget, (_, *found) in budgets.items():
            cell = {"key": key, "budget": int(budget), **dict(zip(("rmse", "median", "q90"), found, strict=True))}
            mixture.setdefault(int(budget), {}).setdefault(key.split(": ")[0], []).append(cell)
    mixture = dict(sorted(mixture.items()))
    longest = {budget: {**everyone[budget], **group} for budget, group in errors.items()}
    finalists = {key: {str(b): group[key] for b, group in longest.items() if key in group} for key in
                 dict.fromkeys(key for group in longest.values() for key in group)}  # fmt: skip
    tree["versions"] = wp.VERSIONS
    tree["cells"]["fashion-mnist"] = {
        "8": wp.compact(screened)["cells"]["fashion-mnist"]["8"],
        "32": wp.compact(screened)["cells"]["fashion-mnist"]["32"],
    }
    tree["final"] = {
        key: {b: [float(f"{e:.3g}") for e in values] for b, values in of.items()} for key, of in finalists.items()
    }
    rounds = ", ".join(
        f"{n:,} settings with {k} starts" for k, n in ((8, settings_in(screened, 8)), (32, settings_in(screened, 32)))
    )
    shown = [
        (f"mixture-16d, {STARTS:,} starts", ABOUT_MIXTURE, mixture, mixture),
        (
            f"fashion-mnist, {starts}",
            ABOUT_NETWORK.format(rounds=rounds, few=few),
            cells_of(errors),
            cells_of(everyone),
        ),
    ]
    wp.report(shown, tree, out, work, wp.NOTES)


def starts_of(errors: dict[int, dict[str, np.ndarray]]) -> str:
    """The numbers of starts, with their budgets if they differ."""
    counts = {budget: len(next(iter(group.values()))) for budget, group in errors.items()}
    if len(kinds := dict.fromkeys(counts.values())) == 1:
        return f"{next(iter(kinds)):,} starts"
    return " and ".join(f"{n:,} starts at {', '.join(str(b) for b in counts if counts[b] == n)}" for n in kinds)


def settings_in(log: wp.Log, starts: int) -> int:
    """The number of settings that were run with this number of starts."""
    return len({key for _, count, key, _ in log.cells if count == starts})


ABOUT_MIXTURE = """Every setting of the others, and of ours 230 on ten grids and 450 on three, screened with 256 starts;
the best run with all starts. The grids `flow-power` and `power` were found by searches on this mixture and on the
network; the grids of the others are those that they ship."""
ABOUT_NETWORK = """A tournament with the same rules for every library: {rounds}; then the final, with {few} that were
not used in any round or search; last the best of ours and of the others by each measure, and those of ours that are the
same method as one of these, on the starts of the tables, which are different again. Ratios have 95% intervals from
resampling the starts, because the RMSE is dominated by the one start in a hundred that ends in another mode; if an
interval contains 1 the question is open. The settings shown at every budget and the figure are of the first {few} of
the final."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the rounds, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("out/work_precision"), help="folder for all measurements")
    parser.add_argument("--out", type=Path, default=Path("studies/results"), help="folder for the report")
    parser.add_argument("--blocks", type=int, default=WHOLE + 32, help=f"blocks of {BLOCK} starts up to which to run")
    parser.add_argument("--begin", type=int, default=0, help="the first block to run")
    parser.add_argument("--budgets", type=int, nargs="*", default=list(NEAREST), help="evaluations in the final")
    parser.add_argument("--report", action="store_true", help="only write the report, from earlier measurements")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    say = lambda line: print(line, flush=True)  # noqa: E731
    peers = wp.peer_settings(say)
    if not args.report:
        log = wp.Log(args.work / "tournament.jsonl")
        chosen = Tournament(log, embedded(32, args.work)).rounds(peers, say)
        by_hand = found_by_hand(args.work / "extra.jsonl")
        added = {budget: [parsed(f"{wp.OURS}: {name}") for name in names] for budget, names in ADDED.items()}
        chosen = {b: [*chosen[b], *by_hand.get(b, []), *added.get(b, [])] for b in args.budgets}
        final(with_winners(chosen), args.work, range(args.begin, args.blocks), say)
    write_report(args.work, args.out)


def with_winners(chosen: dict[int, list[Setting]]) -> dict[int, list[Setting]]:
    """The finalists, and at every budget the settings that are shown at all budgets."""
    always = [wp.our_setting(*setting) for setting in wp.WINNERS.values()]
    return {budget: list({s.key: s for s in [*settings, *always]}.values()) for budget, settings in chosen.items()}


if __name__ == "__main__":
    main()
