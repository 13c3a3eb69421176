"""Overhead of the library: the loop of a sampler compared with diffusers and k-diffusion, and the noise of SDE steps.

    pip install -r benchmarks/requirements.txt
    python benchmarks/overhead.py --out benchmarks/results

Writes overhead.md and overhead.json; takes about two minutes. All contestants run alternately in one process on one
thread, with a model that returns a constant tensor, so that only overhead is measured; the time is the processor time
of the thread, which depends less on the load of the machine than wall-clock time. `instructions.py` counts the
instructions of the same loops. k-diffusion is left out if it is not installed. The comparison with torchsde's Brownian
trees needs torchsde; if it is missing, pip installs it into a temporary folder. It is left out if that fails, or with
--no-torchsde.
"""

from __future__ import annotations

import argparse
import atexit
import functools
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

os.environ.setdefault("OMP_NUM_THREADS", "1")

import diffusers
import numpy as np
import torch
from machine import target
from step_cost import Passes

import sdesamplers as sds
from sdesamplers.path.noise import brownian_levels
from sdesamplers.path.points import points_at
from sdesamplers.sampling.arguments import make_recipe
from sdesamplers.sampling.loop import Evaluator
from sdesamplers.sampling.request import Request
from sdesamplers.sampling.runs import RECENT, make_path, start_run

Shape = tuple[int, ...]
IMAGE: Shape = (1, 3, 32, 32)
LATENT: Shape = (16, 4, 64, 64)
TABLE = {"num_train_timesteps": 1000, "beta_schedule": "linear"}
LIMITS = {"diffusers": 0.25, "k-diffusion": 1.0}
NOISE_LIMIT = 10.0
WHOLE_STEPS = (4, 20, 40)
WHOLE_LIMITS = {4: 1.0, 40: 0.5}
"""Steps of a whole call, and the largest ratio to diffusers' time that is allowed."""
LARGE = 4
"""The number of timed runs is divided by this at the larger shape."""


@dataclass(frozen=True)
class Rivals:
    """The names of a method in this library and in the others.

    Attributes:
        recipe: our recipe, with the settings of diffusers' scheduler.
        scheduler: diffusers' class.
        options: options of that class.
        scaled: True if diffusers' pipeline calls scale_model_input (DDIMPipeline does not).
        function: k-diffusion's function.
    """

    recipe: str
    scheduler: str
    options: dict[str, Any] = field(default_factory=dict)
    scaled: bool = True
    function: str | None = None


RIVALS = {
    "ddim": Rivals("ddim-leading", "DDIMScheduler", scaled=False),
    "euler": Rivals("k-euler", "EulerDiscreteScheduler", function="sample_euler"),
    "heun": Rivals("k-heun", "HeunDiscreteScheduler", function="sample_heun"),
    "dpmpp-2m": Rivals("dpmpp-2m", "DPMSolverMultistepScheduler", function="sample_dpmpp_2m"),
}


def spread(seconds: list[float], count: int = 1) -> dict[str, float]:
    """Median, quartiles and minimum of timings, in microseconds, divided by `count`."""
    low, middle, high = np.percentile(np.asarray(seconds) / count * 1e6, [25, 50, 75])
    return {"median": middle, "q25": low, "q75": high, "least": min(seconds) / count * 1e6}


def in_turns(
    contestants: dict[str, Callable[[], Any]], repeats: int, before: dict[str, Callable[[], Any]] | None = None
) -> dict[str, list[float]]:
    """Time every contestant `repeats` times, alternating, after two warm-up rounds; seconds of processor time.

    `before` contains functions that run, untimed, directly before a contestant.
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
                began = time.thread_time()
                contestants[name]()
                if turn >= 0:
                    seconds[name].append(time.thread_time() - began)
    finally:
        gc.enable()
    return seconds


class Loop(Protocol):
    """A sampler with a model that costs nothing.

    Attributes:
        shape: shape of the state.
        evaluations: number of evaluations in `loop`.
    """

    shape: Shape
    evaluations: int

    def prepare(self) -> None:
        """Untimed preparation before every `loop`."""

    def loop(self) -> torch.Tensor:
        """One run from the starting noise to a sample."""


class Diffusers:
    """A diffusers scheduler in the loop of a pipeline: scale_model_input, the model, step."""

    def __init__(self, rivals: Rivals, shape: Shape, steps: int) -> None:
        self.scheduler = getattr(diffusers, rivals.scheduler)(**TABLE, **rivals.options)
        self.shape, self.steps, self.scaled = shape, steps, rivals.scaled
        self.output, self.noise = torch.randn(shape), torch.randn(shape)
        self.prepare()
        self.evaluations = len(self.scheduler.timesteps)

    def prepare(self) -> None:
        """set_timesteps, which also resets the scheduler."""
        self.scheduler.set_timesteps(self.steps)

    def model(self, x: torch.Tensor, t: Any) -> torch.Tensor:
        """A model that costs nothing."""
        return self.output

    @torch.no_grad()
    def loop(self) -> torch.Tensor:
        """The loop only, with the timesteps already set."""
        scheduler = self.scheduler
        x = self.noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            model_input = scheduler.scale_model_input(x, t) if self.scaled else x
            x = scheduler.step(self.model(model_input, t), t, x).prev_sample
        return x

    def whole(self) -> torch.Tensor:
        """set_timesteps, starting noise, loop."""
        self.prepare()
        self.noise = torch.randn(self.shape)
        return self.loop()


class KDiffusion:
    """A function of k-diffusion on Karras et al.'s grid, with a denoiser that uses none of its wrappers."""

    def __init__(self, rivals: Rivals, shape: Shape, steps: int) -> None:
        from peers.k_diffusion_peer import K

        self.function, self.shape = getattr(K, rivals.function or ""), shape
        self.sigmas = K.get_sigmas_karras(steps, 0.002, 80.0)
        self.output, self.start = torch.randn(shape), torch.randn(shape) * 80.0
        self.calls = 0
        self.function(self.counted, self.start, self.sigmas, disable=True)
        self.evaluations = self.calls

    def prepare(self) -> None:
        """Do nothing: the sigmas exist already."""

    def model(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """A denoiser that costs nothing."""
        return self.output

    def counted(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The same, counting the calls."""
        self.calls += 1
        return self.output

    def loop(self) -> torch.Tensor:
        """One call of the function."""
        return self.function(self.model, self.start, self.sigmas, disable=True)


class ConstantModel(sds.Model):
    """A model that costs nothing: it always returns the same tensor."""

    pure = True  # avoids defensive copies around the model, see docs/design.md

    def __init__(self, output, process, prediction):
        self.output, self.process, self.prediction = output, process, prediction
        self.shape = tuple(output.shape[1:])

    def predict(self, x, t, condition=None):
        return self.output


class Ours:
    """A recipe of this library: its loop with a prepared path, and the whole call of `sample`."""

    def __init__(self, model: sds.Model, name: str, shape: Shape, steps: int, **kwargs: Any) -> None:
        self.model, self.name, self.shape, self.steps, self.kwargs = model, name, shape, steps, kwargs
        self.recipe, self.spec = make_recipe(Request(name, steps, **kwargs), process=model.process)
        self.path = make_path(model.process, self.recipe)
        self.start = torch.randn(shape) * float(self.path.points[0].sigma)
        self.loop()

    def prepare(self) -> None:
        """Do nothing: the path exists already."""

    mode: Any = staticmethod(torch.inference_mode)

    def loop(self) -> torch.Tensor:
        """`drive` with a prepared path: sampler, predictions, counting, the check for NaN at every evaluation."""
        evaluator = Evaluator(self.model, len(self.start), self.name)
        with self.mode():
            final = sds.drive(start_run(self.spec, self.start, self.path, self.recipe.options), evaluator)
        self.evaluations = evaluator.evaluations
        return final

    def whole(self) -> torch.Tensor:
        """The whole call of `sds.sample`: validation, time grid, path, starting noise, loop."""
        return sds.sample(self.model, self.name, steps=self.steps, **self.kwargs).samples


class InSample(Ours):
    """The loop in the autograd mode of `sample`."""

    mode = staticmethod(torch.no_grad)


class ByHand:
    """A `Stepper` in a loop of one's own, with a network that costs nothing."""

    def __init__(self, network: Callable[..., Any], process: sds.SDE, name: str, shape: Shape, steps: int) -> None:
        self.network, self.process, self.name, self.shape, self.steps = network, process, name, shape, steps
        self.prepare()
        self.loop()

    def prepare(self) -> None:
        """A new run; the dry runs for its sampler and grid have been made by earlier ones."""
        self.stepper = sds.Stepper(
            self.process,
            self.name,
            prediction="epsilon",
            shape=self.shape[1:],
            num_samples=self.shape[0],
            steps=self.steps,
        )

    @torch.no_grad()
    def loop(self) -> torch.Tensor:
        """States and times are read, and outputs sent."""
        stepper = self.stepper
        while not stepper.is_done:
            stepper.send(self.network(stepper.x, stepper.t))
        self.evaluations = stepper.evaluations
        return stepper.x


def beside_sample(name: str, shape: Shape, steps: int) -> tuple[ByHand, InSample]:
    """A loop by hand and that of `sample`, on the linear VP process, with a function that returns a constant tensor."""
    output, process = torch.randn(shape), sds.VP()

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return output

    model = sds.FunctionModel(network, process, "epsilon", shape[1:])
    return ByHand(network, process, name, shape, steps), InSample(model, name, shape, steps)


def beside_diffusers(name: str, shape: Shape, steps: int) -> tuple[Ours, Diffusers]:
    """Our loop and diffusers', with a model that predicts epsilon at linear DDPM timesteps."""
    rivals = RIVALS[name]
    process = sds.DiscreteVP(diffusers.DDIMScheduler(**TABLE).alphas_cumprod.numpy())
    model = ConstantModel(torch.randn(shape), process, "epsilon")
    return Ours(model, rivals.recipe, shape, steps), Diffusers(rivals, shape, steps)


def beside_k_diffusion(name: str, shape: Shape, steps: int) -> tuple[Ours, KDiffusion]:
    """Our loop and k-diffusion's, with a model that predicts x0 in EDM's process, on the same sigmas."""
    model = ConstantModel(torch.randn(shape), sds.EDM(), "sample")
    ours = Ours(model, name, shape, steps, coordinates="ve", spacing="karras")
    return ours, KDiffusion(RIVALS[name], shape, steps)


def warm(run: Loop) -> None:
    """Run once untimed, so that the next run does not depend on the cache contents that another contestant left."""
    run.prepare()
    run.loop()
    run.prepare()


def passes(run: Loop) -> float:
    """Reads and writes of tensors of the size of the state in a loop, per model evaluation."""
    run.prepare()
    with Passes(math.prod(run.shape)) as counted:
        run.loop()
    return counted.count / run.evaluations


def k_diffusion_version() -> str | None:
    """k-diffusion's version, or None if it is not installed."""
    try:
        from peers.k_diffusion_peer import VERSION
    except ImportError:
        return None
    return str(VERSION)


def drive_overhead(shape: Shape, steps: int, repeats: int, peers: Sequence[str]) -> list[dict[str, Any]]:
    """Overhead per evaluation of the loops and of whole runs, ours compared with the others'."""
    sides: dict[tuple[str, str], tuple[Any, Any]] = {}
    for name, rivals in RIVALS.items():
        sides["diffusers", name] = beside_diffusers(name, shape, steps)
        if "k-diffusion" in peers and rivals.function is not None:
            sides["k-diffusion", name] = beside_k_diffusion(name, shape, steps)
    contestants: dict[str, Callable[[], Any]] = {}
    resets: dict[str, Callable[[], Any]] = {}
    for (peer, name), (ours, theirs) in sides.items():
        for side, run in (("theirs", theirs), ("ours", ours)):
            contestants[f"loop {peer} {name} {side}"] = run.loop
            resets[f"loop {peer} {name} {side}"] = functools.partial(warm, run)
    seconds = in_turns(contestants, repeats, resets)
    rows = []
    for (peer, name), (ours, theirs) in sides.items():
        row: dict[str, Any] = {"sampler": name, "peer": peer, "shape": list(shape)}
        row["evaluations"] = {"ours": ours.evaluations, "theirs": theirs.evaluations}
        row["passes"] = {"ours": passes(ours), "theirs": passes(theirs)}
        mine = spread(seconds[f"loop {peer} {name} ours"], ours.evaluations)
        other = spread(seconds[f"loop {peer} {name} theirs"], theirs.evaluations)
        row["loop"] = {"ours": mine, "theirs": other, "ratio": mine["median"] / other["median"]}
        rows.append(row)
    return rows


def whole_calls(repeats: int) -> list[dict[str, Any]]:
    """A whole call of `sds.sample`, with a grid that it has used before and with a new one, beside diffusers'."""
    rows = []
    for steps in WHOLE_STEPS:
        sides = {name: beside_diffusers(name, IMAGE, steps) for name in RIVALS}
        contestants: dict[str, Callable[[], Any]] = {}
        resets: dict[str, Callable[[], Any]] = {}
        for name, (ours, theirs) in sides.items():
            contestants |= {f"{name} again": ours.whole, f"{name} new": ours.whole, f"{name} theirs": theirs.whole}
            resets[f"{name} new"] = RECENT.clear
            resets |= {f"{name} again": ours.whole, f"{name} theirs": theirs.whole}
        seconds = in_turns(contestants, repeats, resets)
        for name in sides:
            row: dict[str, Any] = {side: spread(seconds[f"{name} {side}"]) for side in ("again", "new", "theirs")}
            ratios = {side: row[side]["median"] / row["theirs"]["median"] for side in ("again", "new")}
            rows.append({"sampler": name, "steps": steps, **row, "ratios": ratios})
    return rows


def find_torchsde(allowed: bool) -> tuple[Any, str]:
    """(torchsde, its version), installed into a temporary folder if necessary; or (None, the reason)."""
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
    """lambda = log(alpha/sigma) of a linear DDPM schedule, at `steps` equal steps of time."""
    process = sds.view(sds.DiscreteVP(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))))
    return [float(points_at(process, t).lam) for t in np.linspace(process.t_max, process.native.t_min, steps + 1)]


class Trees:
    """One torchsde tree per sample, with the options that diffusers' DPMSolverSDEScheduler uses."""

    def __init__(self, torchsde: Any, start: float, end: float) -> None:
        options = {"dtype": torch.float32, "tol": 1e-6, "pool_size": 24, "halfway_tree": True}
        self.trees = [
            torchsde.BrownianInterval(t0=start, t1=end, size=LATENT[1:], entropy=seed, **options)
            for seed in range(LATENT[0])
        ]

    def __call__(self, start: float, end: float) -> torch.Tensor:
        return torch.stack([tree(start, end) for tree in self.trees]) / math.sqrt(abs(end - start))


def noise_cost(counts: tuple[int, ...], repeats: int, torchsde: Any) -> list[dict[str, Any]]:
    """The cost of the noise of a step, averaged over runs of several lengths, each with a new source."""
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
        if torchsde is not None and steps <= 20:  # only once: it takes seconds
            began = time.thread_time()
            warnings.simplefilter("ignore")  # torchsde rounds the interval's ends, then warns of points beyond them
            run(Trees(torchsde, grid[0], grid[-1]), grid)
            row["torchsde"] = (time.thread_time() - began) / steps * 1e3
        rows.append(row)
    return rows


def source() -> Any:
    """The seeded normals of sixteen latents."""
    return sds.NormalSource(0, range(LATENT[0]), LATENT[1:])


def run(noise: Any, grid: list[float]) -> None:
    """Draw the noise of all steps of a grid."""
    for start, end in itertools.pairwise(grid):
        noise(start, end)


def outside(torchsde: Any) -> dict[str, str]:
    """The result of a step from 4 ulp before the interval of the source to 1 ulp inside it, for each library."""
    start, end = 0.1, 14.6
    before, inside = start - 4 * math.ulp(start), start + math.ulp(start)
    results = {"sdesamplers": attempt(lambda: sds.BrownianNoise(sds.NormalSource(0, [0], (4,)))(before, inside))}
    if torchsde is not None:

        def interval() -> torch.Tensor:
            tree = torchsde.BrownianInterval(t0=start, t1=end, size=(4,), entropy=0, tol=1e-6, halfway_tree=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns that it clips the point
                return tree(before, inside)

        results["torchsde"] = attempt(interval)
    return results


def attempt(draw: Callable[[], torch.Tensor]) -> str:
    """Return "finite", "not finite" or a short description of the error."""
    try:
        return "finite" if bool(torch.isfinite(draw()).all()) else "not finite"
    except (Exception, RecursionError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"


def machine() -> dict[str, str]:
    """Processor, load and versions."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    load = f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else "unknown"
    versions = {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__}
    return {"cpu": name, "threads": str(torch.get_num_threads()), "load": load, **versions}


K_DIFFUSION = """Compared with k-diffusion ({state}): a model that predicts x0 at sigma, as its functions expect, so
that neither side converts or scales anything, on the same Karras grid. In every step its euler and heun draw noise that
they do not use."""


def cell(part: dict[str, float]) -> str:
    """Median and quartiles."""
    return f"{part['median']:.1f} ({part['q25']:.1f}-{part['q75']:.1f})"


def targets(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The required bounds and the measurements."""
    found = [
        target(
            f"loop of {r['sampler']} at {tuple(r['shape'])} relative to {r['peer']}",
            r["loop"]["ratio"],
            LIMITS[r["peer"]],
        )
        for r in facts["drive"]
    ]
    found += [
        target(f"whole call of {r['sampler']}, {r['steps']} steps, of diffusers'", r["ratios"]["again"], limit)
        for r in facts["whole"]
        if (limit := WHOLE_LIMITS.get(r["steps"])) is not None
    ]
    worst = max(row["ratio"] for row in facts["noise"])
    return [*found, target("Brownian noise of a step relative to independent noise", worst, NOISE_LIMIT)]


def verdict(rows: Sequence[dict[str, Any]], peer: str) -> str:
    """A sentence on whether the loops are within the limit relative to a peer."""
    missed = [f"{r['sampler']} at {tuple(r['shape'])}" for r in rows if r["loop"]["ratio"] > LIMITS[peer]]
    worst = max(r["loop"]["ratio"] for r in rows)
    outcome = f"missed by {', '.join(missed)}" if missed else "met"
    limit = f"at most {LIMITS[peer]:g} times the time of {peer}"
    return f"Required: {limit}; the largest ratio is {worst:.2f}: {outcome}."


def loops(facts: dict[str, Any]) -> list[str]:
    """The section on the loops."""
    lines = [
        f"## The loop, float32, {facts['steps']} steps",
        "",
        f"Microseconds of processor time per model evaluation, without the model: median and quartiles of "
        f"{facts['repeats']} alternating runs, {max(5, facts['repeats'] // LARGE)} at {LATENT}, each after an untimed "
        "run. Ours is `drive` with a prepared path: sampler, predictions, counting, the check for NaN at every "
        "evaluation. A pass is one read or write of a tensor of the size of the state, per evaluation, over all "
        "operations of torch; passes dominate the time at the larger shape.",
        "",
        "Compared with diffusers: a model that predicts epsilon at linear DDPM timesteps; theirs is "
        "`scale_model_input` (except for DDIM, whose pipeline does not call it) and `step`, with the timesteps set.",
        "",
    ]
    for peer in LIMITS:
        rows = [row for row in facts["drive"] if row["peer"] == peer]
        if peer == "k-diffusion":
            state = facts["k_diffusion"] or "left out: it is not installed"
            lines += [K_DIFFUSION.format(state=state), ""]
        if not rows:
            continue
        lines += [f"| sampler | shape | ours | {peer} | ratio | passes, ours | {peer} | ratio |"]
        lines += ["|---|---|--:|--:|--:|--:|--:|--:|"]
        for row in rows:
            part, shape, passes = row["loop"], tuple(row["shape"]), row["passes"]
            sides = f"{cell(part['ours'])} | {cell(part['theirs'])} | {part['ratio']:.2f}"
            counts = f"{passes['ours']:.1f} | {passes['theirs']:.1f} | {passes['ours'] / passes['theirs']:.2f}"
            lines.append(f"| {row['sampler']} | {shape} | {sides} | {counts} |")
        lines += ["", verdict(rows, peer), ""]
    lines += [
        f"## A whole call, {IMAGE}",
        "",
        "Microseconds of `sds.sample` (validation, grid, path, seeded noise, loop) compared with `set_timesteps`, "
        "`randn` and the loop of diffusers. The grids of recent calls are kept; the second column is of a new grid.",
        "",
        "| steps | sampler | ours | with a new grid | diffusers | ratio | with a new grid |",
        "|--:|---|--:|--:|--:|--:|--:|",
    ]
    for row in facts["whole"]:
        sides = " | ".join(cell(row[side]) for side in ("again", "new", "theirs"))
        ratios = " | ".join(f"{row['ratios'][side]:.2f}" for side in ("again", "new"))
        lines.append(f"| {row['steps']} | {row['sampler']} | {sides} | {ratios} |")
    for steps, limit in WHOLE_LIMITS.items():
        found = {row["sampler"]: row["ratios"]["again"] for row in facts["whole"] if row["steps"] == steps}
        missed = [f"{name} ({ratio:.2f})" for name, ratio in found.items() if ratio > limit]
        outcome = f"missed by {', '.join(missed)}" if missed else f"met, {max(found.values()):.2f} at most"
        lines += ["", f"Required at {steps} steps: at most {limit:g} of the time of diffusers: {outcome}."]
    return lines


def report(facts: dict[str, Any]) -> str:
    """The findings as Markdown."""
    m = facts["machine"]
    lines = [
        "# Overhead",
        "",
        f"{m['cpu']}, {m['threads']} thread, load {m['load']}; Python {m['python']}, torch {m['torch']}, diffusers "
        f"{m['diffusers']}. Written by `python benchmarks/overhead.py`.",
        "",
        *loops(facts),
        "",
        f"## The noise of a step, at {LATENT} float32",
        "",
        "Milliseconds per step, averaged over whole runs with new sources, equal steps of time in a linear DDPM "
        f"schedule; torchsde: one tree per sample, one run, for the short runs only ({facts['torchsde']}).",
        "",
        "| steps | levels | independent | Brownian | ratio | torchsde |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for row in facts["noise"]:
        tree = f"{row['torchsde']:.0f}" if "torchsde" in row else "-"
        numbers = [cell(row["independent"]), cell(row["brownian"]), f"{row['ratio']:.2f}", tree]
        lines.append(f"| {row['steps']} | {row['levels']} | {' | '.join(numbers)} |")
    worst = max(row["ratio"] for row in facts["noise"])
    outcome = "met" if worst <= NOISE_LIMIT else "missed"
    lines += [
        "",
        f"Required: Brownian within {NOISE_LIMIT:g} times independent; the largest ratio is {worst:.2f}: {outcome}.",
        "",
        "A step from 4 ulp before the interval of the source to 1 ulp inside it: "
        + "; ".join(f"{name}: {result}" for name, result in facts["outside"].items())
        + ". (Our source has no fixed interval.)",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=150)
    parser.add_argument("--no-torchsde", action="store_true", help="leave out torchsde, and do not install it")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torchsde, remark = find_torchsde(not args.no_torchsde)
    facts: dict[str, Any] = {"machine": machine(), "steps": args.steps, "repeats": args.repeats, "torchsde": remark}
    facts["k_diffusion"] = k_diffusion_version()
    peers = [peer for peer in LIMITS if peer == "diffusers" or facts["k_diffusion"]]
    facts["drive"] = [
        *drive_overhead(IMAGE, args.steps, args.repeats, peers),
        *drive_overhead(LATENT, args.steps, max(5, args.repeats // LARGE), peers),
    ]
    facts["whole"] = whole_calls(args.repeats)
    facts["noise"] = noise_cost((10, 20, 50, 100), args.repeats, torchsde)
    facts["outside"] = outside(torchsde)
    facts["targets"] = targets(facts)
    args.out.mkdir(parents=True, exist_ok=True)
    text = report(facts)
    (args.out / "overhead.md").write_text(text, encoding="utf-8")
    (args.out / "overhead.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
