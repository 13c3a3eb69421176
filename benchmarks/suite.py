"""The benchmark suite: all parts one after the other, and one report.

    make bench                                          (about an hour on an idle machine)
    make bench BENCH=--quick                            (everything small, minutes; to see that it works)
    python benchmarks/suite.py --out out/benchmarks --only step_cost startup

A part is a file benchmarks/NAME.py that is called as `python benchmarks/NAME.py --out FOLDER`, with `--quick` where it
knows it, and writes NAME.md, NAME.json and pictures NAME*.png there. Its JSON may hold `targets`, a list of {what,
measured, limit, met}, which the report's summary shows. A part that cannot run here exits with 77, its last line the
reason. One that fails is reported, and the suite goes on; the exit code is then 1.
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
"""Modules and distributions whose absence makes a part "not run" and not "failed"."""


@dataclass(frozen=True)
class Part:
    """One benchmark.

    Attributes:
        name: of its file and of what it writes.
        about: what it measures, a line.
        small: arguments of a quick run where the file has no `--quick`.
        programs: that must be on the PATH.
    """

    name: str
    about: str
    small: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()


FEW = ("--steps", "5", "--repeats", "10")
PARTS = (
    Part("overhead", "the drive loop beside other libraries' loops", (*FEW, "--no-torchsde")),
    Part("scheduler", "Scheduler.step beside diffusers' schedulers", FEW),
    Part("instructions", "instructions of the drive loop, counted", programs=("valgrind",)),
    Part("memory", "the most memory that a sampler holds, in states"),
    Part("step_cost", "a step against the limit of memory bandwidth, 1e3 to 1e8 elements"),
    Part("startup", "import and start-up time"),
    Part("adaptive", "evaluations of adaptive solvers at equal error"),
    Part("scaling", "images a second on one and two processes"),
    Part("gpu", "what only a CUDA device shows: samples, noise, synchronisation, memory, time"),
)


@dataclass
class Outcome:
    """What became of a part: "done", "failed", "not run", or "kept", with results of another time."""

    name: str
    about: str
    state: str
    why: str = ""
    seconds: float = 0.0
    targets: list[dict[str, Any]] = field(default_factory=list)

    @property
    def shown(self) -> bool:
        """Whether the report holds results of it."""
        return self.state in ("done", "kept")

    @property
    def words(self) -> str:
        """State and reason."""
        return f"{self.state}: {self.why}" if self.why else self.state


@dataclass(frozen=True)
class Suite:
    """Parts, where their files are, and where results go.

    Attributes:
        parts, folder, out: these.
        quick: as on the command line.
        only: names of parts to run; empty for all.
    """

    parts: Sequence[Part]
    folder: Path
    out: Path
    quick: bool = False
    only: Sequence[str] = ()

    def command(self, part: Part) -> list[str]:
        """What is called."""
        file = self.folder / f"{part.name}.py"
        words = ["--out", str(self.out)]
        if self.quick:
            words += ["--quick"] if '"--quick"' in file.read_text(encoding="utf-8") else part.small
        return [sys.executable, str(file), *words]

    def hindrance(self, part: Part) -> str:
        """Why a part cannot be run here, or nothing."""
        file = f"{part.name}.py"
        gone = [] if (self.folder / file).exists() else [f"there is no {file} in {self.folder.name}/"]
        return "; ".join(gone + [f"{name} is not installed" for name in part.programs if shutil.which(name) is None])

    def outcome(self, part: Part, say: Callable[[str], None]) -> Outcome:
        """Run one part, or find out why not."""
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
        """Results of another time, where there are any."""
        written, why = self.out / f"{part.name}.md", "not asked for"
        if not written.exists():
            return Outcome(part.name, part.about, "not run", why)
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(written.stat().st_mtime))
        found = targets_of(self.out / f"{part.name}.json")
        return Outcome(part.name, part.about, "kept", f"{why}; results of {when}", targets=found)


def call(command: Sequence[str], log: Any, say: Callable[[str], None]) -> int:
    """Run a command on one thread, its output in a log and its last line told; its exit code."""
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
    """State and reason of a part, from its exit code and what it printed."""
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
    """What a part's JSON says was required."""
    if not file.exists():
        return []
    facts = json.loads(file.read_text(encoding="utf-8"))
    return list(facts.get("targets", [])) if isinstance(facts, dict) else []


# The report.


def minutes(seconds: float) -> str:
    """A time for people."""
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s" if seconds else "-"


def cell(text: str) -> str:
    """Text that does not break a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def section(outcome: Outcome, out: Path) -> list[str]:
    """A part's own report, its headings one level down, with the pictures that it does not show itself."""
    text = (out / f"{outcome.name}.md").read_text(encoding="utf-8").strip()
    lines, fenced = [], False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        lines.append(f"#{line}" if line.startswith("#") and not fenced else line)
    own = [f for f in sorted(out.glob(f"{outcome.name}*.png")) if f"({f.name})" not in text]
    if outcome.state != "done":
        lines[1:1] = ["", f"*{outcome.words}.*"]
    return [*lines, "", *(f"![{file.stem}]({file.name})\n" for file in own)]


def report(outcomes: Sequence[Outcome], out: Path, facts: dict[str, Any], quick: bool, commit: str) -> str:
    """All parts in one Markdown file beside their pictures."""
    lines = ["# Benchmarks", "", f"{sentence(facts)} Commit {commit}. One thread, unless a part says otherwise.", ""]
    if quick:
        lines += ["**A quick run: small sizes and few repeats, to see that the suite works. Not for the record.**", ""]
    lines += ["| part | what it measures | state | time |", "|---|---|---|--:|"]
    for each in outcomes:
        name = f"[{each.name}](#{anchor(each, out)})" if each.shown else each.name
        lines.append(f"| {name} | {cell(each.about)} | {cell(each.words)} | {minutes(each.seconds)} |")
    required = [(each.name, target) for each in outcomes for target in each.targets]
    if required:
        lines += ["", "## What was required", "", "| part | | measured | limit | |", "|---|---|--:|--:|---|"]
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
    """The link that Markdown viewers give a part's title."""
    title = (out / f"{outcome.name}.md").read_text(encoding="utf-8").lstrip().splitlines()[0].lstrip("# ")
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def closing_table(outcomes: Sequence[Outcome]) -> Table:
    """What the terminal shows at the end."""
    table = Table("part", "state", "time", "targets met")
    colours = {"done": "green", "failed": "red"}
    for each in outcomes:
        met = f"{sum(t['met'] for t in each.targets)} of {len(each.targets)}" if each.targets else "-"
        colour = colours.get(each.state, "yellow")
        table.add_row(each.name, Text(each.words, style=colour), minutes(each.seconds), met)
    return table


def run(suite: Suite, console: Console) -> tuple[list[Outcome], bool]:
    """Run all parts with a progress line; the outcomes, and whether Ctrl-C ended it."""
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
        console.print(f"{label}: {outcomes[-1].words}, {minutes(outcomes[-1].seconds)}", markup=False, highlight=False)
    return outcomes, False


def main(arguments: Sequence[str] | None = None, parts: Sequence[Part] = PARTS, folder: Path = HERE) -> int:
    """Run the parts and write the report; 1 where a part failed, 130 after Ctrl-C, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="where report.md and all else goes")
    parser.add_argument("--quick", action="store_true", help="everything small")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", choices=[part.name for part in parts],
                        help=f"run these parts only, of {', '.join(part.name for part in parts)}; the report keeps "
                        "what --out has of the others")  # fmt: skip
    parser.add_argument("--commit", default="unknown", help="what the report says was measured")
    words = parser.parse_args(arguments)
    console, facts = Console(stderr=True), machine()
    suite = Suite(parts, folder, words.out, words.quick, words.only)
    outcomes, interrupted = run(suite, console)
    words.out.mkdir(parents=True, exist_ok=True)
    text = report(outcomes, words.out, facts, words.quick, words.commit)
    (words.out / "report.md").write_text(text, encoding="utf-8")
    tree = {
        "machine": facts,
        "quick": words.quick,
        "commit": words.commit,
        "parts": [asdict(each) for each in outcomes],
    }
    (words.out / "suite.json").write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    console.print(closing_table(outcomes))
    console.print(f"report: {words.out / 'report.md'}", markup=False, highlight=False)
    return 130 if interrupted else int(any(each.state == "failed" for each in outcomes))


if __name__ == "__main__":
    sys.exit(main())
