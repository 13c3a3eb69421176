"""What the library costs beyond the model: a sampler's loop beside diffusers' schedulers, and the noise of SDE steps.

    python benchmarks/overhead.py --out benchmarks/results

Writes overhead.md and overhead.json; takes less than a minute. All contestants run in turns in one process on one
thread, around a model that returns a tensor made beforehand, so that what is left is overhead. The comparison with
torchsde's Brownian trees needs torchsde; where it is not installed it is put into a temporary folder with pip, and
left out where that fails or with --no-torchsde.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import itertools
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import diffusers
import numpy as np
import torch

import sdesamplers as sds
from sdesamplers.loop import Evaluator
from sdesamplers.noise import brownian_levels
from sdesamplers.path import points_at
from sdesamplers.recipe import make_path, make_recipe, start_run

IMAGE = (1, 3, 32, 32)
LATENT = (16, 4, 64, 64)
TABLE = {"num_train_timesteps": 1000, "beta_schedule": "linear"}
LIMIT, NOISE_LIMIT = 0.25, 10.0


def spread(seconds: list[float], count: int = 1) -> dict[str, float]:
    """Median, quartiles and least of timings, in microseconds for each of `count` parts."""
    low, middle, high = np.percentile(np.asarray(seconds) / count * 1e6, [25, 50, 75])
    return {"median": middle, "q25": low, "q75": high, "least": min(seconds) / count * 1e6}


def in_turns(
    contestants: dict[str, Callable[[], Any]], repeats: int, before: dict[str, Callable[[], Any]] | None = None
) -> dict[str, list[float]]:
    """Time every contestant `repeats` times in rounds, after two rounds to warm up.

    `before` holds what is to run, untimed, directly before a contestant.
    """
    prepare = before or {}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    gc.collect()
    gc.disable()
    try:
        for turn in range(-2, repeats):
            shift = turn % len(order)
            for name in order[shift:] + order[:shift]:
                prepare.get(name, int)()
                began = time.perf_counter()
                contestants[name]()
                if turn >= 0:
                    seconds[name].append(time.perf_counter() - began)
    finally:
        gc.enable()
    return seconds


class Theirs:
    """A diffusers scheduler run as its pipelines run it: scale_model_input, the model, step."""

    def __init__(self, scheduler: Any, steps: int, scaled: bool) -> None:
        self.scheduler, self.steps, self.scaled = scheduler, steps, scaled
        self.answer, self.noise = torch.randn(IMAGE), torch.randn(IMAGE)
        self.prepare()
        self.evaluations = len(scheduler.timesteps)

    def prepare(self) -> None:
        """set_timesteps, which also forgets the last run."""
        self.scheduler.set_timesteps(self.steps)

    def model(self, x: torch.Tensor, t: Any) -> torch.Tensor:
        """A model that costs nothing."""
        return self.answer

    @torch.no_grad()
    def loop(self) -> torch.Tensor:
        """The loop alone, timesteps set before."""
        scheduler = self.scheduler
        x = self.noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            # DDIMPipeline does not call scale_model_input; pipelines that take any scheduler do.
            asked = scheduler.scale_model_input(x, t) if self.scaled else x
            x = scheduler.step(self.model(asked, t), t, x).prev_sample
        return x

    def whole(self) -> torch.Tensor:
        """set_timesteps, starting noise, loop."""
        self.prepare()
        self.noise = torch.randn(IMAGE)
        return self.loop()


class Answering(sds.Model):
    """A model that costs nothing: it always gives the same answer."""

    prediction, shape = "epsilon", IMAGE[1:]

    def __init__(self, answer, process):
        self.answer, self.process = answer, process

    def predict(self, x, t, condition=None):
        return self.answer


class Ours:
    """A recipe of this library with its path made, and the same through `sample`."""

    def __init__(self, name: str, steps: int, **words: Any) -> None:
        self.name, self.steps, self.words = name, steps, words
        answer = torch.randn(IMAGE)
        table = diffusers.DDIMScheduler(**TABLE).alphas_cumprod.numpy()
        self.model = Answering(answer, sds.DiscreteVP(table))
        self.recipe, self.spec = make_recipe(name, process=self.model.process, steps=steps, **words)
        self.path = make_path(self.model.process, self.recipe)
        self.start = torch.randn(IMAGE) * float(self.path.points[0].sigma)
        self.loop()

    @torch.inference_mode()
    def loop(self) -> torch.Tensor:
        """`drive` with the path made: sampler, predictions, counting, the check for NaN at every evaluation."""
        evaluator = Evaluator(self.model, 1, self.name)
        final = sds.drive(start_run(self.spec, self.start, self.path, self.recipe.options), evaluator)
        self.evaluations = evaluator.evaluations
        return final

    def whole(self) -> torch.Tensor:
        """`sds.sample` from words to a result: checks, time grid, path, starting noise, loop."""
        return sds.sample(self.model, self.name, steps=self.steps, **self.words).samples


def drive_overhead(steps: int, repeats: int) -> list[dict[str, Any]]:
    """Overhead per evaluation of the loops and of whole runs, ours beside theirs."""
    heun = diffusers.HeunDiscreteScheduler(**TABLE)
    multistep = diffusers.DPMSolverMultistepScheduler(**TABLE, algorithm_type="dpmsolver++", solver_order=2)
    pairs = [
        ("ddim", Ours("ddim-leading", steps), "DDIM (eta=0)", diffusers.DDIMScheduler(**TABLE), False),
        ("heun", Ours("k-heun", steps), "HeunDiscrete", heun, True),
        ("euler (in place of dpmpp-2m)", Ours("k-euler", steps), "DPM-Solver++ 2M", multistep, True),
    ]
    contestants: dict[str, Callable[[], Any]] = {}
    resets: dict[str, Callable[[], Any]] = {}  # set_timesteps is what resets a scheduler
    sides = []
    for ours_name, ours, theirs_name, scheduler, scaled in pairs:
        theirs = Theirs(scheduler, steps, scaled)
        sides.append((ours_name, ours, theirs_name, theirs))
        resets[f"loop {theirs_name}"] = theirs.prepare
        contestants[f"loop {theirs_name}"] = theirs.loop
        contestants[f"loop {ours_name}"] = ours.loop
        contestants[f"whole {theirs_name}"] = theirs.whole
        contestants[f"whole {ours_name}"] = ours.whole
    seconds = in_turns(contestants, repeats, resets)
    rows = []
    for ours_name, ours, theirs_name, theirs in sides:
        row: dict[str, Any] = {"ours": ours_name, "theirs": theirs_name}
        row["evaluations"] = {"ours": ours.evaluations, "theirs": theirs.evaluations}
        for part in ("loop", "whole"):
            mine = spread(seconds[f"{part} {ours_name}"], ours.evaluations)
            other = spread(seconds[f"{part} {theirs_name}"], theirs.evaluations)
            row[part] = {"ours": mine, "theirs": other, "ratio": mine["median"] / other["median"]}
        rows.append(row)
    return rows


def find_torchsde(allowed: bool) -> tuple[Any, str]:
    """torchsde, installed or put into a temporary folder; or None and why not."""
    if not allowed:
        return None, "left out (--no-torchsde)"
    try:
        import torchsde
    except ImportError:
        folder = tempfile.mkdtemp(prefix="torchsde-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
        try:
            subprocess.run([*command, "torchsde", "trampoline"], check=True, capture_output=True, timeout=30)
            sys.path.insert(0, folder)
            import torchsde
        except (subprocess.SubprocessError, OSError, ImportError) as error:
            return None, f"left out: torchsde could not be installed ({type(error).__name__})"
    return torchsde, f"torchsde {torchsde.__version__}"


def lambdas(steps: int) -> list[float]:
    """lambda = log(alpha/sigma) along a linear DDPM table, at `steps` equal steps of time."""
    process = sds.view(sds.DiscreteVP(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))))
    return [float(points_at(process, t).lam) for t in np.linspace(process.t_max, process.native.t_min, steps + 1)]


class Trees:
    """One torchsde tree a sample, with the options that diffusers' DPMSolverSDEScheduler gives it."""

    def __init__(self, torchsde: Any, start: float, end: float) -> None:
        options = {"dtype": torch.float32, "tol": 1e-6, "pool_size": 24, "halfway_tree": True}
        self.trees = [
            torchsde.BrownianInterval(t0=start, t1=end, size=LATENT[1:], entropy=seed, **options)
            for seed in range(LATENT[0])
        ]

    def __call__(self, start: float, end: float) -> torch.Tensor:
        return torch.stack([tree(start, end) for tree in self.trees]) / math.sqrt(abs(end - start))


def noise_cost(counts: tuple[int, ...], repeats: int, torchsde: Any) -> list[dict[str, Any]]:
    """The cost of one step's noise over whole runs of several lengths, from new sources each time."""
    rows = []
    for steps in counts:
        grid = lambdas(steps)
        levels = brownian_levels(grid)

        def independent(grid: list[float] = grid) -> None:
            run(sds.IndependentNoise(source()), grid)

        def brownian(grid: list[float] = grid, levels: int = levels) -> None:
            run(sds.BrownianNoise(source(), levels), grid)

        rounds = max(3, repeats // steps)
        seconds = in_turns({"independent": independent, "brownian": brownian}, rounds)
        row: dict[str, Any] = {"steps": steps, "levels": levels}
        row |= {name: {k: v / 1e3 for k, v in spread(s, steps).items()} for name, s in seconds.items()}
        row["ratio"] = row["brownian"]["median"] / row["independent"]["median"]
        if torchsde is not None and steps <= 20:  # once is enough: it takes seconds
            began = time.perf_counter()
            warnings.simplefilter("ignore")  # torchsde rounds the interval's ends, then warns of points beyond them
            run(Trees(torchsde, grid[0], grid[-1]), grid)
            row["torchsde"] = (time.perf_counter() - began) / steps * 1e3
        rows.append(row)
    return rows


def source() -> Any:
    """The keyed normals of sixteen latents."""
    return sds.NormalSource(0, range(LATENT[0]), LATENT[1:])


def run(noise: Any, grid: list[float]) -> None:
    """All steps of a grid."""
    for start, end in itertools.pairwise(grid):
        noise(start, end)


def outside(torchsde: Any) -> dict[str, str]:
    """What a step does that begins 4 ulp before the interval that the source was made for and ends 1 ulp inside."""
    start, end = 0.1, 14.6
    before, inside = start - 4 * math.ulp(start), start + math.ulp(start)
    answers = {"sdesamplers": attempt(lambda: sds.BrownianNoise(sds.NormalSource(0, [0], (4,)))(before, inside))}
    if torchsde is not None:

        def interval() -> torch.Tensor:
            tree = torchsde.BrownianInterval(t0=start, t1=end, size=(4,), entropy=0, tol=1e-6, halfway_tree=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it says that it clips the point
                return tree(before, inside)

        answers["torchsde"] = attempt(interval)
    return answers


def attempt(draw: Callable[[], torch.Tensor]) -> str:
    """ "finite", or the error in a few words."""
    try:
        return "finite" if bool(torch.isfinite(draw()).all()) else "not finite"
    except (Exception, RecursionError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"


def machine() -> dict[str, str]:
    """Processor and versions."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    load = f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else "unknown"
    versions = {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__}
    return {"cpu": name, "threads": str(torch.get_num_threads()), "load": load, **versions}


def report(facts: dict[str, Any]) -> str:
    """The findings as Markdown."""

    def cell(part: dict[str, float]) -> str:
        return f"{part['median']:.1f} ({part['q25']:.1f}-{part['q75']:.1f})"

    m = facts["machine"]
    lines = [
        "# Overhead",
        "",
        f"{m['cpu']}, {m['threads']} thread, load {m['load']}; Python {m['python']}, torch {m['torch']}, diffusers "
        f"{m['diffusers']}. Made by `python benchmarks/overhead.py`.",
        "",
        f"## The loop, at {IMAGE} float32, {facts['steps']} steps",
        "",
        f"Microseconds per model evaluation beyond the model: median and quartiles of {facts['repeats']} runs in "
        "turns. "
        "*Loop*: ours is `drive` with the path made (sampler, predictions, counting, the NaN check), theirs "
        "`scale_model_input` (but for DDIM, whose pipeline has none) and `step` with the timesteps set. *Whole run*: "
        "ours is `sds.sample` (checks, grid, path, keyed noise, loop), theirs `set_timesteps`, `randn` and the loop. "
        "There is no dpmpp-2m here yet; euler stands in for it.",
        "",
        "| ours | theirs | loop, ours | loop, theirs | ratio | whole run, ours | whole run, theirs | ratio |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in facts["drive"]:
        cells = [row["ours"], row["theirs"]]
        for part in ("loop", "whole"):
            cells += [cell(row[part]["ours"]), cell(row[part]["theirs"]), f"{row[part]['ratio']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    worst = max(row["loop"]["ratio"] for row in facts["drive"])
    verdict = "met" if worst <= LIMIT else "missed"
    lines += [
        "",
        f"Required: the loop within {LIMIT} of diffusers'; the largest ratio is {worst:.2f}: {verdict}.",
        "",
        f"## The noise of a step, at {LATENT} float32",
        "",
        "Milliseconds a step, over whole runs from new sources, equal steps of time on a linear DDPM table; torchsde: "
        f"one tree a sample, once, for the short runs ({facts['torchsde']}).",
        "",
        "| steps | levels | independent | Brownian | ratio | torchsde |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for row in facts["noise"]:
        tree = f"{row['torchsde']:.0f}" if "torchsde" in row else "-"
        numbers = [cell(row["independent"]), cell(row["brownian"]), f"{row['ratio']:.2f}", tree]
        lines.append(f"| {row['steps']} | {row['levels']} | {' | '.join(numbers)} |")
    worst = max(row["ratio"] for row in facts["noise"])
    verdict = "met" if worst <= NOISE_LIMIT else "missed"
    lines += [
        "",
        f"Required: Brownian within {NOISE_LIMIT:g} times independent; the largest ratio is {worst:.2f}: {verdict}.",
        "",
        "A step from 4 ulp before the interval that the source was made for to 1 ulp inside it: "
        + "; ".join(f"{name}: {answer}" for name, answer in facts["outside"].items())
        + ". (Ours is made for no interval.)",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=150)
    parser.add_argument("--no-torchsde", action="store_true", help="leave torchsde out, and do not install it")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torchsde, remark = find_torchsde(not args.no_torchsde)
    facts: dict[str, Any] = {"machine": machine(), "steps": args.steps, "repeats": args.repeats, "torchsde": remark}
    facts["drive"] = drive_overhead(args.steps, args.repeats)
    facts["noise"] = noise_cost((10, 20, 50, 100), args.repeats, torchsde)
    facts["outside"] = outside(torchsde)
    args.out.mkdir(parents=True, exist_ok=True)
    text = report(facts)
    (args.out / "overhead.md").write_text(text, encoding="utf-8")
    (args.out / "overhead.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
