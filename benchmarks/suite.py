"""The benchmark suite: runs all parts one after the other and writes one report.

    make bench                                          (about an hour on an idle machine)
    make bench BENCH=--quick                            (small sizes, a few minutes; a check that everything works)
    python benchmarks/suite.py --out out/benchmarks --only step_cost startup

A part is a file benchmarks/NAME.py, run as `python benchmarks/NAME.py --out FOLDER`, with `--quick` if it has this
option. It writes NAME.md, NAME.json and figures NAME*.png into the folder. Its JSON may contain `targets`, a list of
{what, measured, limit, met}, which the summary of the report shows. A part that cannot run here exits with code 77 and
prints the reason as its last line. If a part fails, the suite reports this and continues; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from machine import NOT_RUN, machine, sentence
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

HERE = Path(__file__).resolve().parent
PEERS = ("azula", "diffusers", "k_diffusion", "k-diffusion", "torchdiffeq", "torchsde")
"""Modules and distributions; a part that lacks one of them is "not run" rather than "failed"."""


@dataclass(frozen=True)
class Part:
    """One benchmark.

    Attributes:
        name: name of its file and of its results.
        about: one line on what it measures.
        small: arguments of a quick run, for a file without `--quick`.
        programs: programs that must be on the PATH.
    """

    name: str
    about: str
    small: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()


FEW = ("--steps", "5", "--repeats", "10")
PARTS = (
    Part("overhead", "the drive loop compared with other libraries' loops", (*FEW, "--no-torchsde")),
    Part("scheduler", "Scheduler.step compared with diffusers' schedulers", FEW),
    Part("instructions", "instructions of the drive loop", programs=("valgrind",)),
    Part("memory", "the peak memory of a sampler, in states"),
    Part("step_cost", "a step compared with the limit of memory bandwidth, 1e3 to 1e8 elements"),
    Part("startup", "import and start-up time"),
    Part("adaptive", "evaluations of adaptive solvers at equal error"),
    Part("scaling", "images per second with one and two processes"),
    Part("pool", "images per second of a pool of mixed requests"),
    Part("serve", "images per second and latency of the example server"),
    Part("gpu", "on a CUDA device: samples, noise, synchronisation, memory, time"),
)


@dataclass
class Outcome:
    """Outcome of a part: "done", "failed", "not run", or "kept" (results of an earlier run)."""

    name: str
    about: str
    state: str
    why: str = ""
    seconds: float = 0.0
    targets: list[dict[str, Any]] = field(default_factory=list)

    @property
    def shown(self) -> bool:
        """True if the report includes its results."""
        return self.state in ("done", "kept")

    @property
    def status(self) -> str:
        """The state and the reason."""
        return f"{self.state}: {self.why}" if self.why else self.state


@dataclass(frozen=True)
class Suite:
    """A run of the suite.

    Attributes:
        parts: all parts.
        folder: folder of their files.
        out: folder for the results.
        quick: use small sizes.
        only: names of the parts to run; empty for all.
    """

    parts: Sequence[Part]
    folder: Path
    out: Path
    quick: bool = False
    only: Sequence[str] = ()

    def command(self, part: Part) -> list[str]:
        """The command that runs a part."""
        file = self.folder / f"{part.name}.py"
        arguments = ["--out", str(self.out)]
        if self.quick:
            arguments += ["--quick"] if '"--quick"' in file.read_text(encoding="utf-8") else part.small
        return [sys.executable, str(file), *arguments]

    def hindrance(self, part: Part) -> str:
        """The reason why a part cannot be run here, or an empty string."""
        file = f"{part.name}.py"
        missing = [] if (self.folder / file).exists() else [f"there is no {file} in {self.folder.name}/"]
        return "; ".join(missing + [f"{name} is not installed" for name in part.programs if shutil.which(name) is None])

    def outcome(self, part: Part, say: Callable[[str], None]) -> Outcome:
        """Run a part, or return why it was not run."""
        if self.only and part.name not in self.only:
            return self.earlier(part)
        if why := self.hindrance(part):
            return Outcome(part.name, part.about, "not run", why)
        log = self.out / "logs" / f"{part.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        began, stamp = time.perf_counter(), time.time()
        with log.open("w", encoding="utf-8") as file:
            code = call(self.command(part), file, say)
        state, why = judge(code, log.read_text(encoding="utf-8"))
        written = self.out / f"{part.name}.md"
        if state == "done" and not (written.exists() and written.stat().st_mtime >= stamp - 2):
            state, why = "failed", f"it wrote no {written.name}"
        if state == "failed":
            why += f" (logs/{log.name})"
        outcome = Outcome(part.name, part.about, state, why, time.perf_counter() - began)
        outcome.targets = targets_of(self.out / f"{part.name}.json") if outcome.shown else []
        return outcome

    def earlier(self, part: Part) -> Outcome:
        """The results of an earlier run, if there are any."""
        written, why = self.out / f"{part.name}.md", "not selected"
        if not written.exists():
            return Outcome(part.name, part.about, "not run", why)
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(written.stat().st_mtime))
        found = targets_of(self.out / f"{part.name}.json")
        return Outcome(part.name, part.about, "kept", f"{why}; results of {when}", targets=found)


def call(command: Sequence[str], log: Any, say: Callable[[str], None]) -> int:
    """Run a command on one thread, write its output to a log, report each line to `say`; return the exit code."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONUNBUFFERED"), "1")
    with subprocess.Popen(
        command, env={**os.environ, **threads}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                log.write(line)
                if line.strip():
                    say(line.strip())
        except BaseException:
            process.terminate()
            raise
    return process.returncode


def judge(code: int, output: str) -> tuple[str, str]:
    """(state, reason) of a part, from its exit code and its output."""
    if code == 0:
        return "done", ""
    last = ([line.strip() for line in output.splitlines() if line.strip()] or ["it printed nothing"])[-1]
    if code == NOT_RUN:
        return "not run", last
    missing = re.search(r"(?:No module named '?|No package metadata was found for )([\w-]+)", last)
    if missing and missing[1] in PEERS:
        return "not run", f"{missing[1]} is not installed (pip install -r benchmarks/requirements.txt)"
    return "failed", f"exit code {code}, {last}"


def targets_of(file: Path) -> list[dict[str, Any]]:
    """The targets in the JSON of a part."""
    if not file.exists():
        return []
    facts = json.loads(file.read_text(encoding="utf-8"))
    return list(facts.get("targets", [])) if isinstance(facts, dict) else []


# The report.


def minutes(seconds: float) -> str:
    """A duration in minutes or seconds, or "-"."""
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s" if seconds else "-"


def cell(text: str) -> str:
    """Text escaped for a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def section(outcome: Outcome, out: Path) -> list[str]:
    """The report of a part, with its headings one level down and with the figures that it does not include itself."""
    text = (out / f"{outcome.name}.md").read_text(encoding="utf-8").strip()
    lines, fenced = [], False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        lines.append(f"#{line}" if line.startswith("#") and not fenced else line)
    own = [f for f in sorted(out.glob(f"{outcome.name}*.png")) if f"({f.name})" not in text]
    if outcome.state != "done":
        lines[1:1] = ["", f"*{outcome.status}.*"]
    return [*lines, "", *(f"![{file.stem}]({file.name})\n" for file in own)]


def report(outcomes: Sequence[Outcome], out: Path, facts: dict[str, Any], quick: bool, commit: str) -> str:
    """The report of the suite in Markdown, with all parts."""
    lines = ["# Benchmarks", "", f"{sentence(facts)} Commit {commit}. One thread, unless a part says otherwise.", ""]
    if quick:
        lines += ["**A quick run: small sizes and few repeats, only a check that the suite works.**", ""]
    lines += ["| part | what it measures | state | time |", "|---|---|---|--:|"]
    for each in outcomes:
        name = f"[{each.name}](#{anchor(each, out)})" if each.shown else each.name
        lines.append(f"| {name} | {cell(each.about)} | {cell(each.status)} | {minutes(each.seconds)} |")
    required = [(each.name, target) for each in outcomes for target in each.targets]
    if required:
        lines += ["", "## Targets", "", "| part | | measured | limit | |", "|---|---|--:|--:|---|"]
        for name, found in required:
            verdict = "met" if found["met"] else "**missed**"
            numbers = f"{found['measured']:.3g} | {found['limit']:.3g}"
            lines.append(f"| {name} | {cell(found['what'])} | {numbers} | {verdict} |")
    lines.append("")
    for each in outcomes:
        if each.shown:
            lines += section(each, out)
    return "\n".join(lines).rstrip() + "\n"


def anchor(outcome: Outcome, out: Path) -> str:
    """The anchor that Markdown viewers create for the title of a part."""
    title = (out / f"{outcome.name}.md").read_text(encoding="utf-8").lstrip().splitlines()[0].lstrip("# ")
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def closing_table(outcomes: Sequence[Outcome]) -> Table:
    """The table that the terminal shows at the end."""
    table = Table("part", "state", "time", "targets met")
    colours = {"done": "green", "failed": "red"}
    for each in outcomes:
        met = f"{sum(t['met'] for t in each.targets)} of {len(each.targets)}" if each.targets else "-"
        colour = colours.get(each.state, "yellow")
        table.add_row(each.name, Text(each.status, style=colour), minutes(each.seconds), met)
    return table


def run(suite: Suite, console: Console) -> tuple[list[Outcome], bool]:
    """Run all parts with a progress line; return (outcomes, True if interrupted by Ctrl-C)."""
    outcomes: list[Outcome] = []
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    for number, part in enumerate(suite.parts, 1):
        label = f"[{number}/{len(suite.parts)}] {part.name}"
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task(label, total=None)
            say = lambda line: progress.update(task, description=f"{label}: {line[:70]}")  # noqa: B023, E731
            try:
                outcomes.append(suite.outcome(part, say))
            except KeyboardInterrupt:
                rest = suite.parts[number - 1 :]
                return [*outcomes, *(Outcome(p.name, p.about, "not run", "interrupted") for p in rest)], True
        console.print(f"{label}: {outcomes[-1].status}, {minutes(outcomes[-1].seconds)}", markup=False, highlight=False)
    return outcomes, False


def main(arguments: Sequence[str] | None = None, parts: Sequence[Part] = PARTS, folder: Path = HERE) -> int:
    """Run the parts and write the report; return 1 if a part failed, 130 after Ctrl-C, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="folder for report.md and all results")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", choices=[part.name for part in parts],
                        help=f"run only these parts, from {', '.join(part.name for part in parts)}; the report keeps "
                        "earlier results of the others in --out")  # fmt: skip
    parser.add_argument("--commit", default="unknown", help="the commit to state in the report")
    args = parser.parse_args(arguments)
    console, facts = Console(stderr=True), machine()
    suite = Suite(parts, folder, args.out, args.quick, args.only)
    outcomes, interrupted = run(suite, console)
    args.out.mkdir(parents=True, exist_ok=True)
    text = report(outcomes, args.out, facts, args.quick, args.commit)
    (args.out / "report.md").write_text(text, encoding="utf-8")
    tree = {
        "machine": facts,
        "quick": args.quick,
        "commit": args.commit,
        "parts": [asdict(each) for each in outcomes],
    }
    (args.out / "suite.json").write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    console.print(closing_table(outcomes))
    console.print(f"report: {args.out / 'report.md'}", markup=False, highlight=False)
    return 130 if interrupted else int(any(each.state == "failed" for each in outcomes))


if __name__ == "__main__":
    sys.exit(main())
