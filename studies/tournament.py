"""The embedded network's half of the work-precision table: too slow to run every setting at every budget.

    python studies/tournament.py --work out/work_precision       (hours; goes on where it was stopped)

Five rounds, the same for every library, each with starts of its own or a part of them, and the last with starts that no
round before, and no search for a grid, has seen:

1. every setting of the other libraries at 10 and at 20 evaluations, and every deterministic sampler of ours on one
   grid, the best of these on more grids: 8 starts;
2. at each budget the best of each library at the nearest of these two: 8 starts;
3. the best of those: 32 starts;
4. the best of those, and what searches by hand found on these 32 starts (`extra.jsonl`): fresh starts, in blocks, every
   sample's error kept, so that a ratio has an interval;
5. the best of ours and of the others by each measure on the first two blocks, with 2,048 starts more, that alone count.

The last round can be shared by several processes: `--begin 2 --blocks 18` and `--begin 18`.
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
import work_precision as wp  # which puts benchmarks/ on the path
import yaml
from peers import Problem, Setting
from problems import STARTS, cached, embedded, network_problem, network_truth

import sdesamplers as sds

FINAL_SEED = 20261123
BLOCK = 64
NEAREST = {5: 10, 6: 10, 8: 10, 10: 10, 15: 20, 20: 20, 30: 20, 50: 20}
KEEP = {"grids": 12, "second": 16, "third": 5, "final": 3}
"""How many settings of a library go on, by each measure."""
WHOLE = 2
"""Blocks of the final that all its settings run on, to choose those of the last round."""
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
"""Settings of ours that were added to the final after a look at those first blocks."""
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
"""Grids of the first round's second half; all samplers of ours were on `power` in the first."""


@dataclass
class Tournament:
    """The rounds, on one log."""

    log: wp.Log
    problem: Problem

    def best(self, settings: Sequence[Setting], starts: int, budget: int, count: int) -> list[Setting]:
        """Of each library the best `count` by each measure, of what was measured at a budget."""
        small = self.problem.part(slice(0, starts))
        return wp.finalists(self.log, small, settings, count, (budget,))[budget]

    def run(self, settings: Iterable[Setting], starts: int, budget: int) -> None:
        """Measure settings that have not been."""
        small = self.problem.part(slice(0, starts))
        for setting in settings:
            self.log.get(small, setting, budget)

    def rounds(self, peers: list[Setting], say: Any) -> dict[int, list[Setting]]:
        """Rounds 1 to 3; returns the finalists of each budget."""
        ours = wp.our_settings(grids={"power": [{}]}, say=say)
        for budget in (10, 20):
            say(f"round 1: {len(ours)} settings of ours on one grid, {len(peers)} of others at {budget}")
            self.run([*ours, *peers], 8, budget)
        best = {s.key: s for b in (10, 20) for s in self.best(ours, 8, b, KEEP["grids"])}
        more = [
            regridded(s, grid, words) for s in best.values() for grid, choices in GRIDS.items() for words in choices
        ]
        for budget in (10, 20):
            say(f"round 1: {len(more)} more of ours at {budget}")
            self.run(more, 8, budget)
        everyone, chosen = [*ours, *more, *peers], {}
        for budget, near in NEAREST.items():
            second = self.best(everyone, 8, near, KEEP["second"])
            self.run(second, 8, budget)
            third = self.best(second, 8, budget, KEEP["third"])
            say(f"round 2 at {budget}: {len(second)}; round 3: {len(third)}")
            self.run(third, 32, budget)
            chosen[budget] = self.best(third, 32, budget, KEEP["final"])
        return chosen


def regridded(setting: Setting, grid: str, words: dict[str, Any]) -> Setting:
    """A setting of ours on another grid."""
    sampler, _, coordinates = setting.name.split(", ")
    name, options = split(sampler)
    return wp.our_setting(name, options, grid, words, coordinates)


def block(number: int, folder: Path) -> Problem:
    """The final's starts number `number`, with where the ODE takes them."""
    model = sds.load("fashion-mnist")
    generator = torch.Generator().manual_seed(FINAL_SEED + number)
    start = torch.randn(BLOCK, *model.shape, generator=generator)
    truth = cached(folder, f"truth-final-{number}", lambda: network_truth(model, start))
    return network_problem(model, start, truth)


def final(chosen: dict[int, list[Setting]], folder: Path, blocks: range, say: Any) -> None:
    """Rounds 4 and 5: errors of every sample, kept in a file of JSON lines a block."""
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
    """Over all samples."""
    return float(np.sqrt((errors**2).mean()))


DUEL = ((rmse, 2), (np.median, 1))
"""How many settings of either side go into the last round, by which measure."""


def duel(chosen: dict[int, list[Setting]], errors: dict[int, dict[str, np.ndarray]]) -> dict[int, list[Setting]]:
    """Of each budget's settings the best of ours and the best of the others; of twins, with the same errors, one.

    Where ours has the very method of one of the others that go on, that goes on too.
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
    """budget -> setting -> samples' errors, of the settings that ran on the most of the blocks, and on the same."""
    found: dict[tuple[int, str], dict[int, list[float]]] = {}
    for number, file in sorted((int(file.stem.split("-")[1]), file) for file in folder.glob("final-*.jsonl")):
        if blocks is None or number in blocks:
            for key, budget, errors in map(json.loads, file.read_text().splitlines()):
                found.setdefault((budget, key), {})[number] = errors
    tree: dict[int, dict[str, np.ndarray]] = {}
    for (budget, key), parts in sorted(found.items()):
        most = max((those for (at, _), those in found.items() if at == budget), key=len)
        if parts.keys() == most.keys():
            tree.setdefault(budget, {})[key] = np.concatenate(list(parts.values()))
    return tree


def found_by_hand(file: Path) -> dict[int, list[Setting]]:
    """Settings of ours from searches on the screening's 32 starts: at each budget the best by each measure."""
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
    (name, options), (spacing, words) = (split(text) for text in (sampler, grid))
    final, whole = words.pop("final", "zero"), words.pop("round_timesteps", False)
    return wp.our_setting(name, options, spacing, words, coordinates, final, whole)


def split(text: str) -> tuple[str, dict[str, Any]]:
    """ "name key=value ..." in its parts."""
    name, *pairs = text.split(" ")
    return name, {k: yaml.safe_load(v) for k, v in (p.split("=") for p in pairs)}


def cells_of(errors: dict[int, dict[str, np.ndarray]]) -> wp.Cells:
    """The final's errors as cells of the report, each with the errors that its interval comes from."""
    cells: wp.Cells = {}
    for budget, settings in errors.items():
        for key, values in settings.items():
            found = {"rmse": rmse(values), "median": np.median(values), "q90": np.quantile(values, 0.9)}
            numbers = {name: wp.significant(float(value)) for name, value in found.items()}
            cell = {"key": key, "budget": budget, **numbers, "errors": values}
            cells.setdefault(budget, {}).setdefault(key.split(": ")[0], []).append(cell)
    return cells


def write_report(work: Path, out: Path) -> None:
    """Both problems' tables: the network from the final, the mixture from its log, or else from the last report."""
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
    """How many starts there are at which budgets."""
    counts = {budget: len(next(iter(group.values()))) for budget, group in errors.items()}
    if len(kinds := dict.fromkeys(counts.values())) == 1:
        return f"{next(iter(kinds)):,} starts"
    return " and ".join(f"{n:,} starts at {', '.join(str(b) for b in counts if counts[b] == n)}" for n in kinds)


def settings_in(log: wp.Log, starts: int) -> int:
    """How many settings were run with so many starts."""
    return len({key for _, count, key, _ in log.cells if count == starts})


ABOUT_MIXTURE = """Every setting of the others and of ours 230 on ten grids and 450 on three, screened with 256 starts;
the best run with all. The grids `flow-power` and `power` were found by searches on this mixture and on the network, the
others' grids are those that they ship."""
ABOUT_NETWORK = """A tournament, the same for every library ({rounds}; then the final, with starts that no round and no
search has seen, {few}; and at last the best of ours and of the others by each measure, and of ours what is the very
method of one of those, on the starts of the tables, which are others again). Ratios have 95% intervals from resampling
the starts, for the RMSE is ruled by one start in a hundred that lands in another mode; where an interval holds 1 the
question is open. The settings as wholes and the picture are of the final's first {few}."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the rounds, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("out/work_precision"), help="where all is kept")
    parser.add_argument("--out", type=Path, default=Path("studies/results"), help="where the report goes")
    parser.add_argument("--blocks", type=int, default=WHOLE + 32, help=f"of {BLOCK} starts in the final")
    parser.add_argument("--begin", type=int, default=0, help="the first block to run")
    parser.add_argument("--budgets", type=int, nargs="*", default=list(NEAREST), help="of the final")
    parser.add_argument("--report", action="store_true", help="write the report from what was measured, run nothing")
    words = parser.parse_args(arguments)
    torch.set_num_threads(1)
    say = lambda line: print(line, flush=True)  # noqa: E731
    peers = wp.peer_settings(say)
    if not words.report:
        log = wp.Log(words.work / "tournament.jsonl")
        chosen = Tournament(log, embedded(32, words.work)).rounds(peers, say)
        by_hand = found_by_hand(words.work / "extra.jsonl")
        added = {budget: [parsed(f"{wp.OURS}: {name}") for name in names] for budget, names in ADDED.items()}
        chosen = {b: [*chosen[b], *by_hand.get(b, []), *added.get(b, [])] for b in words.budgets}
        final(with_winners(chosen), words.work, range(words.begin, words.blocks), say)
    write_report(words.work, words.out)


def with_winners(chosen: dict[int, list[Setting]]) -> dict[int, list[Setting]]:
    """The finalists, and at every budget the settings that are shown as wholes."""
    always = [wp.our_setting(*words) for words in wp.WINNERS.values()]
    return {budget: list({s.key: s for s in [*settings, *always]}.values()) for budget, settings in chosen.items()}


if __name__ == "__main__":
    main()
