"""Error against model evaluations: every deterministic sampler here beside diffusers', azula's and k-diffusion's.

    python benchmarks/work_precision.py --out benchmarks/results            (hours; --resume takes it up again)
    python benchmarks/work_precision.py --report                            (tables and plot from what was measured)

Two problems: a 16-dimensional Gaussian mixture with its exact score on DDPM's linear table, and the embedded model.
Everyone starts from the same states at the table's last timestep and ends at sigma = 0; the error of a sample is its
root-mean-square distance from where the probability-flow ODE takes its start. Given are the root of its mean square over all
samples (RMSE), which the few samples that land in another mode rule at few evaluations, and its median. Evaluations
are counted by the model. On the mixture every setting runs at every budget with all starts. The embedded model costs
too much for that: settings are screened with few starts, and the best of each library by either measure run again
with more.

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
from peers import Problem, Setting, TooManyEvaluations
from torch import Tensor

import sdesamplers as sds

OURS = "sdesamplers"
PEERS = {"diffusers": "peers.diffusers_peer", "k-diffusion": "peers.k_diffusion_peer", "azula": "peers.azula_peer"}
BUDGETS = (5, 6, 8, 10, 15, 20, 30, 50)
COORDINATES = ("native", "ve", "flow", "angle")
STARTS, SEED = 2048, 20260
FLIPPED = 0.5  # a sample this far off, per dimension, has landed in another mode

SPACING_OPTIONS: dict[str, list[dict[str, Any]]] = {"karras": [{}, {"rho": 3.0}], "leading": [{}]}
"""Options of spacings that are tried beside the defaults."""


def linear_table() -> np.ndarray:
    """DDPM's alphas_cumprod (Ho et al. 2020)."""
    return np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


class Mixture(sds.Model):
    """A Gaussian mixture with diagonal covariances; epsilon in closed form by three matrix products."""

    prediction, dtype, name = "epsilon", torch.float64, "mixture-16d"

    def __init__(self, seed: int = 1, dimension: int = 16, components: int = 9) -> None:
        generator = torch.Generator().manual_seed(seed)
        normal = torch.randn(components, dimension, dtype=torch.float64, generator=generator)
        spread = torch.rand(components, dimension, dtype=torch.float64, generator=generator)
        share = 0.5 + torch.rand(components, dtype=torch.float64, generator=generator)
        self.weights, means, variances = share / share.sum(), normal, (0.05 * 8.0**spread) ** 2
        # Like pixels in [-1, 1], the data have mean 0 and a variance of 1/2.
        means = means - self.weights @ means
        between = float((self.weights @ means.square()).mean())
        within = float((self.weights @ variances).mean())
        self.means, self.variances = means * math.sqrt((0.5 - within) / between), variances
        self.process, self.shape = sds.DiscreteVP(linear_table()), (dimension,)

    def predict(self, x: Tensor, t: Any, condition: Any = None) -> Tensor:
        # Each (N, 1) where t holds one time a sample, as rk45 gives it.
        t = np.asarray(t, dtype=np.float64)
        t = t[:, None] if t.ndim else t
        alpha, sigma = (torch.as_tensor(f(t)) for f in (self.process.alpha, self.process.sigma))
        if t.ndim:
            alpha, sigma = alpha[:, :, None], sigma[:, :, None]
        inverse = 1 / (alpha**2 * self.variances + sigma**2)
        centre = alpha * self.means
        if t.ndim:
            residual = x[:, None] - centre
            log = -0.5 * (residual.square() * inverse - inverse.log()).sum(-1) + self.weights.log()
            share = log.softmax(1)[..., None]
            return (sigma[:, 0] * (share * residual * inverse).sum(1)).to(x.dtype)
        constant = self.weights.log() + 0.5 * (inverse.log() - centre.square() * inverse).sum(1)
        log = x @ (centre * inverse).T - 0.5 * x.square() @ inverse.T + constant
        share = log.softmax(1)
        return sigma * (x * (share @ inverse) - share @ (centre * inverse))


def mixture(starts: int, cache: Path | None = None, seed: int = 1) -> Problem:
    """The mixture, with its ODE solved to 1e-10."""
    model = Mixture(seed)
    start = torch.randn(starts, *model.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(SEED))
    name = model.name if seed == 1 else f"{model.name}-{seed}"
    truth = cached(cache, f"truth-{name}-{starts}", lambda: ode_truth(model, start, 1e-10, starts))
    problem = Problem(name, model.process, model.predict, start, truth, torch.float64)
    problem.model = model  # type: ignore[attr-defined]
    return problem


def embedded(starts: int, cache: Path | None = None) -> Problem:
    """The embedded network, with its ODE solved as far as its float32 arithmetic goes."""
    model = sds.load("fashion-mnist")
    start = torch.randn(STARTS, *model.shape, generator=torch.Generator().manual_seed(SEED))[:starts]
    chunks = [
        cached(
            cache,
            f"truth-{model.name}-{first}-{first + CHUNK}",
            lambda first=first: ode_truth(model, start[first : first + CHUNK], TOLERANCE, CHUNK),
        )
        for first in range(0, starts, CHUNK)
    ]

    def predict(x: Tensor, t: float) -> Tensor:
        parts = [model.predict(part.float(), t) for part in x.split(CHUNK)]
        return torch.cat(parts).to(x.dtype)

    problem = Problem(model.name, model.process, predict, start, torch.cat(chunks)[:starts])
    problem.model = model  # type: ignore[attr-defined]
    return problem


CHUNK = 32
TOLERANCE = 1e-4


def ode_truth(model: sds.Model, start: Tensor, tolerance: float, batch: int) -> Tensor:
    """Where the probability-flow ODE takes the starts: rk45 with a float64 state, Euler's step from t_min to sigma 0."""
    control = {"rtol": tolerance, "atol": tolerance, "max_nfe": 1_000_000}
    words: dict[str, Any] = {"coordinates": "angle", "dtype": torch.float64, "batch_size": batch}
    return sds.sample(model, "rk45", start=start, **words, **control).samples


def cached(folder: Path | None, name: str, make: Callable[[], Tensor]) -> Tensor:
    """A tensor from its file, or made and kept there."""
    if folder is None:
        return make()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.npy"
    if not file.exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.save(file, make().numpy())
    return torch.from_numpy(np.load(file))


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


def variants(spec: sds.Sampler, limit: int = 64) -> Iterator[dict[str, Any]]:
    """A sampler's deterministic options: its defaults first, then its orders and kinds."""
    fixed = dict(spec.noiseless or {})
    yield fixed
    free = {n: option_values(o) for n, o in spec.options.items() if n not in fixed and n not in spec.control}
    free = {n: values for n, values in free.items() if len(values) > 1}
    for values in itertools.islice(itertools.product(*free.values()), limit):
        chosen = {n: v for n, v in zip(free, values, strict=True) if v != spec.options[n].default}
        if chosen:
            yield {**fixed, **chosen}


def words_of(options: dict[str, Any]) -> str:
    """Options as they are written in a call."""
    return "".join(f" {name}={value}" for name, value in options.items())


def our_setting(
    sampler: str, options: dict[str, Any], spacing: str, spacing_options: dict[str, Any], coordinates: str
) -> Setting:
    """A setting that `sds.sample` runs within a budget of evaluations."""

    def call(problem: Problem, nfe: int) -> Tensor:
        model = Counted(problem)
        words = {"spacing": spacing, "spacing_options": spacing_options, "coordinates": coordinates}
        return sds.sample(model, sampler, nfe=nfe, start=problem.start, **words, **options).samples

    name = f"{sampler}{words_of(options)}, {spacing}{words_of(spacing_options)}, {coordinates}"
    return Setting(OURS, name, call, f"{sampler}{words_of(options)}", budgeted=True)


class Counted(sds.Model):
    """A problem as a model of ours."""

    prediction = "epsilon"

    def __init__(self, problem: Problem) -> None:
        self.problem, self.process, self.dtype = problem, problem.process, problem.dtype
        self.shape, self.name = tuple(problem.start.shape[1:]), problem.name

    def predict(self, x: Tensor, t: Any, condition: Any = None) -> Tensor:
        return self.problem.eps(x, t)


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
        if (spec.stochastic and not spec.noiseless) or spec.evaluations is None or spec.needs:
            continue
        for options in variants(spec):
            usable = False
            for coordinates in COORDINATES:
                for spacing, choices in grids.items():
                    for spacing_options in choices:
                        setting = our_setting(name, options, spacing, spacing_options, coordinates)
                        prints = [fingerprint(setting, probe, nfe) for nfe in (8, 13)]
                        if prints[-1] is None:
                            continue
                        usable = True
                        if tuple(prints) in seen:
                            same += 1
                            continue
                        seen.add(tuple(prints))
                        kept.append(setting)
            if not usable:
                say(f"{name}{words_of(options)} runs on no spacing within 13 evaluations")
    say(f"{len(kept)} settings of ours; {same} more give the same samples as one of them")
    return kept


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


def measure(setting: Setting, problem: Problem, nfe: int) -> dict[str, Any] | None:
    """Errors of a setting at a budget; None where it cannot run."""
    steps = planned_steps(setting, problem, nfe)
    if steps is None:
        return None
    began = time.perf_counter()
    found = attempt(setting, problem, steps, nfe)
    if found is None:
        return None
    samples, count = found
    assert problem.truth is not None
    error = (samples.double() - problem.truth).flatten(1).square().mean(1).sqrt().numpy()
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
