"""Import and start-up time of sdesamplers and its command, compared with its dependencies and other libraries.

    python benchmarks/startup.py --out benchmarks/results      (about five minutes)
    python benchmarks/startup.py --out out --quick             (a minute)

Writes startup.md and startup.json. Every line is the time of a new Python process until it ends, measured from outside,
alternating, after one untimed round that compiles and caches files. A library that is not installed is left out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import machine, quartiles, sentence, write

SAMPLING_ALONE = """
import importlib.util, sys, types
spec = importlib.util.find_spec("k_diffusion")
if spec is None:
    sys.exit("No module named 'k_diffusion'")
package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
package.__path__, package.utils = list(spec.submodule_search_locations), utils
sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
import k_diffusion.sampling
"""
"""Imports k-diffusion's samplers without the training part of the package, whose dependencies are often missing."""

COMMANDS: dict[str, list[str]] = {
    "python, nothing imported": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import sdesamplers": ["-c", "import sdesamplers"],
    "sdesamplers, ready to sample": ["-c", "import sdesamplers; sdesamplers.samplers(); sdesamplers.sample"],
    "sdesamplers --help": ["-m", "sdesamplers", "--help"],
    "sdesamplers list": ["-m", "sdesamplers", "list"],
    "sdesamplers.Scheduler": ["-c", "from sdesamplers import Scheduler"],
    "diffusers' DDIMScheduler": ["-c", "from diffusers import DDIMScheduler"],
    "import k_diffusion": ["-c", "import k_diffusion"],
    "k_diffusion.sampling by itself": ["-c", SAMPLING_ALONE],
    "azula.sample": ["-c", "import azula.sample"],
}
"""Line of the table -> arguments of python."""
BARE = "python, nothing imported"


def once(arguments: Sequence[str]) -> float:
    """Seconds that a new process takes.

    Raises:
        RuntimeError: the process failed; the message is its last line on stderr.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"exit code {done.returncode}")
    return seconds


def run(commands: dict[str, list[str]], rounds: int) -> dict[str, Any]:
    """Time all commands, alternating; commands that fail are left out with a reason."""
    facts: dict[str, Any] = {"machine": machine(), "rounds": rounds, "rows": [], "left_out": {}}
    seconds: dict[str, list[float]] = {}
    for name, arguments in commands.items():
        try:
            once(arguments)
        except RuntimeError as error:
            facts["left_out"][name] = str(error)
        else:
            seconds[name] = []
    names = list(seconds)
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(once(commands[name]))
    facts["rows"] = [{"name": name, "seconds": quartiles(values)} for name, values in seconds.items()]
    return facts


def report(facts: dict[str, Any]) -> str:
    """The findings as Markdown."""
    rows = {row["name"]: row for row in facts["rows"]}
    bare = rows[BARE]["seconds"]["median"] if BARE in rows else 0.0
    torch = rows["import torch"]["seconds"]["median"] if "import torch" in rows else None
    lines = [
        "# Import and start-up time",
        "",
        f"{sentence(facts['machine'])} New processes, median [quartiles] of {facts['rounds']} alternating rounds, with "
        "files in the system's cache.",
        "",
        "| | milliseconds | without python's own start-up | relative to `import torch` |",
        "|---|--:|--:|--:|",
    ]
    for name, row in rows.items():
        middle, low, high = (row["seconds"][key] * 1e3 for key in ("median", "q25", "q75"))
        times = "-" if torch is None else f"{middle / 1e3 / torch:.2f}"
        cells = [f"{middle:.0f} [{low:.0f}, {high:.0f}]", f"{middle - bare * 1e3:.0f}", times]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", *(f"Left out: {name} ({why})." for name, why in facts["left_out"].items()), ""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the report")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args(arguments)
    facts = run(COMMANDS, 1 if args.quick else args.rounds)
    write(args.out, "startup", facts, report(facts))


if __name__ == "__main__":
    main()
