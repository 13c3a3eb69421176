"""Instructions of a step of the drive loop, compared with diffusers: a measure that does not depend on machine load.

    pip install -r benchmarks/requirements.txt
    python benchmarks/instructions.py --out benchmarks/results

Needs valgrind on the PATH and a torch with valgrind's hooks (the Linux wheels have them). Writes instructions.md and
instructions.json; takes two to five minutes, almost all of it Python's start-up under valgrind. The loops are those of
`overhead.py`, with a model that returns a constant tensor. callgrind counts each loop with two numbers of steps; the
difference is the cost of the steps, without start-up, the grid and the first and last steps. Each loop is counted
several times and the minimum is used, because the work of malloc depends on earlier deallocations.

Absolute counts depend on the processor (which kernels torch chooses under valgrind), Python and torch. The ratio to
diffusers' scheduler of the same method, counted in the same run, depends little on them, so
tests/benchmarks/test_instruction_counts.py compares this ratio with `LIMITS`. A third comparison is within the library:
a `Stepper` in a loop of one's own, beside the loop of `sample`, with the same function as the network.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from machine import NOT_RUN, machine, sentence, target, write

SAMPLERS = ("euler", "heun", "dpmpp-2m")
STEPS, REPEATS = (10, 30), 5
LIMITS = {"euler": 0.237, "heun": 0.310, "dpmpp-2m": 0.138}
"""Largest allowed ratios to diffusers' instructions per step: the values measured on an AMD EPYC (0.215, 0.281, 0.125)
plus 10 %. On the Intel Xeon of benchmarks/results the same code measures 8, 8 and 5 per cent less."""


BY_HAND = "the loop of sample"
BY_HAND_LIMIT = 1.05
"""Largest allowed ratio of a `Stepper`'s step to that of the loop of `sample`."""


def why_not() -> str | None:
    """The reason why instructions cannot be counted here, or None."""
    if shutil.which("valgrind") is None:
        return "valgrind is not installed"
    supported = getattr(torch._C, "_valgrind_supported_platform", lambda: False)
    return None if supported() else "this torch is built without valgrind's hooks"


def contestants(peers: Sequence[str]) -> list[tuple[dict[str, Any], Any]]:
    """The (label, loop) pairs to count, at both numbers of steps."""
    from overhead import IMAGE, beside_diffusers, beside_k_diffusion, beside_sample

    sides = {"diffusers": beside_diffusers, "k-diffusion": beside_k_diffusion, BY_HAND: beside_sample}
    made = []
    for peer in peers:
        for sampler in SAMPLERS:
            for steps in STEPS:
                for side, run in zip(("ours", "theirs"), sides[peer](sampler, IMAGE, steps), strict=True):
                    label = {"peer": peer, "sampler": sampler, "side": side, "steps": steps}
                    made.append((label, run))
    return made


def child(peers: Sequence[str]) -> None:
    """Run every loop under callgrind, twice to warm up and `REPEATS` times counted, and print the labels."""
    torch.set_num_threads(1)
    labels = []
    for label, run in contestants(peers):
        for _ in range(2):
            run.prepare()
            run.loop()
        gc.collect()
        gc.disable()
        for _ in range(REPEATS):
            run.prepare()
            torch._C._valgrind_toggle()
            run.loop()
            torch._C._valgrind_toggle_and_dump_stats()
        gc.enable()
        labels.append({**label, "evaluations": run.evaluations})
    print(json.dumps(labels))


def total(dump: Path) -> int:
    """The number of instructions in a dump of callgrind."""
    lines = dump.read_text(encoding="utf-8", errors="replace").splitlines()
    return int(next(line for line in reversed(lines) if line.startswith("totals:")).split()[1])


def count(peers: Sequence[str] = ("diffusers",)) -> list[dict[str, Any]]:
    """Instructions for each loop and number of steps, counted in one process."""
    with tempfile.TemporaryDirectory() as folder:
        dumps = Path(folder) / "counts"
        command = ["valgrind", "--tool=callgrind", "--collect-atstart=no", f"--callgrind-out-file={dumps}"]
        script = [sys.executable, str(Path(__file__).resolve()), "--child", *peers]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        done = subprocess.run([*command, *script], capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise RuntimeError(f"the process under callgrind failed:\n{done.stderr[-2000:]}")
        labels = json.loads(done.stdout.splitlines()[-1])
        totals = [total(Path(f"{dumps}.{k}")) for k in range(1, REPEATS * len(labels) + 1)]  # as callgrind numbers them
        least = [min(totals[k : k + REPEATS]) for k in range(0, len(totals), REPEATS)]
        return [{**label, "instructions": made} for label, made in zip(labels, least, strict=True)]


def compare(counts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Instructions per evaluation, ours and theirs, from the differences between the two numbers of steps."""
    found = {(c["peer"], c["sampler"], c["side"], c["steps"]): c for c in counts}
    few, many = STEPS

    def slope(peer: str, sampler: str, side: str) -> float:
        ends = [found[peer, sampler, side, steps] for steps in (few, many)]
        instructions, evaluations = (ends[1][key] - ends[0][key] for key in ("instructions", "evaluations"))
        return instructions / evaluations

    rows = []
    for peer in dict.fromkeys(c["peer"] for c in counts):
        for sampler in SAMPLERS:
            ours, theirs = slope(peer, sampler, "ours"), slope(peer, sampler, "theirs")
            rows.append({"peer": peer, "sampler": sampler, "ours": ours, "theirs": theirs, "ratio": ours / theirs})
    return rows


def report(facts: dict[str, Any]) -> str:
    """The table in Markdown."""
    lines = [
        "# Instructions",
        "",
        f"{sentence(facts['machine'])} {facts['valgrind']}. Written by `python benchmarks/instructions.py`.",
        "",
        f"Instructions per model evaluation without those of the model, at (1, 3, 32, 32): the difference between "
        f"{STEPS[1]} and {STEPS[0]} steps. For diffusers the model predicts epsilon at DDPM timesteps, for k-diffusion "
        "x0 at sigma. Beside the loop of `sample`, ours is a `Stepper` whose `x` and `t` are read and whose "
        "outputs are sent, and the network is a function that returns a constant tensor.",
        "",
        "| sampler | compared with | ours | theirs | ratio | limit of the test |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in facts["rows"]:
        limits = {"diffusers": LIMITS[row["sampler"]], BY_HAND: BY_HAND_LIMIT}
        limit = f"{limits[row['peer']]:.3f}" if row["peer"] in limits else "-"
        sides = f"{row['ours']:,.0f} | {row['theirs']:,.0f} | {row['ratio']:.3f}"
        lines.append(f"| {row['sampler']} | {row['peer']} | {sides} | {limit} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Count, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--quick", action="store_true", help="compare with diffusers only")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    missing = why_not()
    if missing:
        parser.exit(NOT_RUN, f"instructions cannot be counted: {missing}\n")
    from overhead import k_diffusion_version

    peers = ["diffusers", "k-diffusion"] if k_diffusion_version() and not args.quick else ["diffusers"]
    peers.append(BY_HAND)
    version = subprocess.run(["valgrind", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    facts = {"machine": machine(), "valgrind": version, "steps": STEPS}
    facts["counts"] = count(peers)
    facts["rows"] = rows = compare(facts["counts"])
    beside = [row for row in rows if row["peer"] == "diffusers"]
    facts["targets"] = [
        target(f"instructions of {row['sampler']} relative to diffusers", row["ratio"], LIMITS[row["sampler"]])
        for row in beside
    ]
    facts["targets"] += [
        target(f"instructions of a Stepper with {row['sampler']} relative to {BY_HAND}", row["ratio"], BY_HAND_LIMIT)
        for row in rows
        if row["peer"] == BY_HAND
    ]
    write(args.out, "instructions", facts, report(facts))


if __name__ == "__main__":
    main()
