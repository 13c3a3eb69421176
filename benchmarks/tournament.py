"""The embedded network's half of the work-precision table: too slow to run every setting at every budget.

    python benchmarks/tournament.py --work out/work_precision       (hours; goes on where it was stopped)

Four rounds, the same for every library, each with starts of its own or a part of them, and the last with starts that no
round before, and no search for a grid, has seen:

1. every setting of the other libraries at 10 and at 20 evaluations, and every deterministic sampler of ours on one
   grid, the best of these on more grids: 8 starts;
2. at each budget the best of each library at the nearest of these two: 8 starts;
3. the best of those: 32 starts;
4. the best of those: fresh starts, in blocks, every sample's error kept, so that a ratio has an interval.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import work_precision as wp
import yaml
from peers import Problem, Setting

import sdesamplers as sds

FINAL_SEED = 20261123
BLOCK = 64
NEAREST = {5: 10, 6: 10, 8: 10, 10: 10, 15: 20, 20: 20, 30: 20, 50: 20}
KEEP = {"grids": 12, "second": 16, "third": 5, "final": 3}
"""How many settings of a library go on, by each measure."""
GRIDS: dict[str, list[dict[str, Any]]] = {
    "linspace": [{}],
    "trailing": [{}],
    "karras": [{}],
    "logsnr": [{}],
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
    name, *pairs = sampler.split(" ")
    options = {k: yaml.safe_load(v) for k, v in (p.split("=") for p in pairs)}
    return wp.our_setting(name, options, grid, words, coordinates)


def block(number: int, folder: Path) -> Problem:
    """The final's starts number `number`, with where the ODE takes them."""
    model = sds.load("fashion-mnist")
    generator = torch.Generator().manual_seed(FINAL_SEED + number)
    start = torch.randn(BLOCK, *model.shape, generator=generator)
    truth = wp.cached(folder, f"truth-final-{number}", lambda: wp.network_truth(model, start, 300))
    return wp.network_problem(model, start, truth)


def final(chosen: dict[int, list[Setting]], folder: Path, blocks: int, say: Any) -> None:
    """Round 4: errors of every sample, kept in a file of JSON lines a block."""
    for number in range(blocks):
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
        say(f"round 4: block {number} of {BLOCK} starts done")


def errors_of(folder: Path) -> dict[int, dict[str, np.ndarray]]:
    """budget -> setting -> errors of the samples, of the blocks in which every finalist was measured."""
    found: dict[tuple[int, str], list[list[float]]] = {}
    for number in range(len(list(folder.glob("final-*.jsonl")))):
        for line in (folder / f"final-{number}.jsonl").read_text().splitlines():
            key, budget, errors = json.loads(line)
            found.setdefault((budget, key), []).append(errors)
    most = max(map(len, found.values()), default=0)
    tree: dict[int, dict[str, np.ndarray]] = {}
    for (budget, key), parts in sorted(found.items()):
        if len(parts) == most:
            tree.setdefault(budget, {})[key] = np.concatenate(parts)
    return tree


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("out/work_precision"), help="where all is kept")
    parser.add_argument("--blocks", type=int, default=4, help=f"of {BLOCK} starts in the final")
    words = parser.parse_args(arguments)
    torch.set_num_threads(1)
    say = lambda line: print(line, flush=True)  # noqa: E731
    log = wp.Log(words.work / "tournament.jsonl")
    chosen = Tournament(log, wp.embedded(32, words.work)).rounds(wp.peer_settings(say), say)
    final(chosen, words.work, words.blocks, say)


if __name__ == "__main__":
    main()
