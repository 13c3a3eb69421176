"""Checks of a process: its schedule, its SDE and its prior against each other, and runs on it.

Each check takes an `SdeCase` and returns (measured, required, passed), or None if it does not apply. The first eight
are those of `sds.check_process`, which stops at the first that fails.
"""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from ..errors import SdesamplersError, summary
from ..models.analytic import GaussianModel, grid_mixture
from ..models.base import Model
from ..models.function import FunctionModel
from ..processes.check import CHECKS as CONSISTENCY
from ..processes.check import process_findings
from ..processes.sde import SDE, GaussianProcess
from ..registry.registry import default_registry
from ..sampling.calls import sample
from .problems import Transport
from .report import Outcome

PIECES, NODES = 32, 16
"""Pieces of the time range, and nodes of Gauss-Legendre quadrature in each."""


@dataclass(frozen=True)
class SdeCase:
    """A process under test."""

    process: SDE

    @property
    def failure(self) -> str | None:
        """None: every check reports its own errors."""
        return None

    def describe(self, error: Exception) -> str:
        """An error in one line."""
        return summary(error)

    @property
    def gaussian(self) -> GaussianProcess | None:
        """The process, if it is Gaussian."""
        return self.process if isinstance(self.process, GaussianProcess) else None

    @cached_property
    def findings(self) -> dict[str, tuple[str, str | None]]:
        """Check of `sds.check_process` -> (requirement, problem or None), up to the first problem."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a small sigma/alpha at t_max is no contradiction
            return {name: (required, problem) for name, required, problem in process_findings(self.process)}

    @cached_property
    def times(self) -> np.ndarray:
        """Times away from both ends, where alpha or sigma may be 0 and their slopes infinite."""
        low, high = float(self.process.t_min), float(self.process.t_max)
        return low + (high - low) * np.linspace(0.05, 0.95, 19)

    def rate(self, t: Any) -> np.ndarray:
        """f(t) of the drift f(t) x."""
        x = torch.ones(len(t), 1, dtype=torch.float64)
        return np.asarray(self.process.drift(x, t)[:, 0].double().numpy())


def consistent(name: str, case: SdeCase) -> Outcome:
    """One check of `sds.check_process`."""
    if case.gaussian is None or name not in case.findings:
        return None
    required, problem = case.findings[name]
    return problem or "as declared", required, problem is None


def drift(case: SdeCase) -> Outcome:
    """drift(x, t) = f(t) x with d log(alpha)/dt = f. The drift of any other SDE keeps x's shape."""
    if case.gaussian is None:
        return _drift_of_any(case)
    edges, nodes, weights = _quadrature(case)
    found = np.diff(np.log(np.asarray(case.gaussian.alpha(edges), dtype=float)))
    rates = case.rate(nodes.reshape(-1)).reshape(nodes.shape)
    integral, size = np.sum(rates * weights, 1), np.sum(np.abs(rates) * weights, 1)
    linear = _is_linear(case)
    worst = float(np.max(np.abs(integral - found) / np.maximum(np.maximum(np.abs(found), size), 1e-6)))
    measured = f"off by {worst:.1e}" + ("" if linear else "; drift(x, t) is not f(t) x")
    return measured, "log(alpha) changes by the integral of f, within 1%", worst <= 0.01 and linear


def _is_linear(case: SdeCase) -> bool:
    x = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    t = float(case.times[9])
    return torch.allclose(case.process.drift(x, t), float(case.rate([t] * 2)[0]) * x, rtol=1e-6, atol=1e-12)


def _drift_of_any(case: SdeCase) -> Outcome:
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in case.times[::6].tolist():
        found = case.process.drift(x, t)
        if found.shape != x.shape or not found.isfinite().all():
            return f"shape {tuple(found.shape)} at t = {t:.4g}", "finite, x's shape (3, 2)", False
        alone = torch.cat([case.process.drift(x[k : k + 1], t) for k in range(3)])
        if not torch.allclose(found, alone, rtol=1e-9, atol=1e-12):
            return f"a sample's drift depends on its batch at t = {t:.4g}", "each sample by itself", False
    return "kept", "finite, x's shape, each sample by itself", True


def diffusion(case: SdeCase) -> Outcome:
    """d(sigma^2)/dt = 2 f sigma^2 + g^2, in the form d(sigma^2/alpha^2)/dt = g^2/alpha^2."""
    if case.gaussian is None:
        g = np.asarray([float(case.process.diffusion(float(t))) for t in case.times])
        good = bool(np.all(np.isfinite(g)) and np.all(g >= 0))
        return f"{g.min():.3g} to {g.max():.3g}", "finite, 0 or more", good
    edges, nodes, weights = _quadrature(case)
    found = np.diff(np.square(np.asarray(case.gaussian.ratio(edges), dtype=float)))
    squares = np.square(np.asarray(case.process.diffusion(nodes), dtype=float))
    integral = np.sum(squares / np.square(np.asarray(case.gaussian.alpha(nodes), dtype=float)) * weights, 1)
    worst = float(np.max(np.abs(integral - found) / np.abs(found)))
    return f"off by {worst:.1e}", "sigma^2/alpha^2 grows by the integral of g^2/alpha^2, within 1%", worst <= 0.01


def _quadrature(case: SdeCase) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ends of pieces of time, and the nodes and weights of the quadrature in each."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    edges = np.linspace(case.times[0], case.times[-1], PIECES + 1)
    half, middle = 0.5 * np.diff(edges)[:, None], 0.5 * (edges[1:] + edges[:-1])[:, None]
    return edges, middle + half * nodes, half * weights


def perturbed(case: SdeCase) -> Outcome:
    """`perturb` returns alpha(t) x0 + sigma(t) noise, also with one time for each sample."""
    process = case.gaussian
    if process is None:
        return None
    generator = torch.Generator().manual_seed(1)
    x0, noise = (torch.randn(3, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    times = case.times[[3, 9, 15]]
    together = process.perturb(x0, times, noise)
    worst = 0.0
    for k, t in enumerate(times.tolist()):
        exact = float(process.alpha(t)) * x0[k] + float(process.sigma(t)) * noise[k]
        worst = max(worst, float((together[k] - exact).abs().max() / exact.abs().max()))
    return f"off by {worst:.1e}", "alpha(t) x0 + sigma(t) noise, to 1e-6", worst <= 1e-6


def prior(case: SdeCase) -> Outcome:
    """The prior's draws and its density are those of one distribution, N(0, std^2)."""
    made = case.process.prior
    std = float(made.std)
    z = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None].expand(5, 3)
    x = made.sample(z)
    exact = torch.distributions.Normal(0.0, std).log_prob(std * z).sum(1) if std > 0 else torch.zeros(5)
    off = max(float((x / std - z).abs().max()), float((made.log_prob(x) - exact).abs().max())) if std > 0 else math.inf
    return f"std {std:.4g}, off by {off:.1e}", "positive std; draws and density agree to 1e-5", off <= 1e-5


def copied(case: SdeCase) -> Outcome:
    """Copies and pickles of the process are the same process, as jobs on several processes need."""
    t, wrong = case.times, []
    ways: dict[str, Callable[[Any], Any]] = {"copy": copy.deepcopy, "pickle": lambda p: pickle.loads(pickle.dumps(p))}
    for name, way in ways.items():
        try:
            again = way(case.process)
        except Exception as error:  # whatever a user's class raises
            wrong.append(f"{name}: {summary(error)}")
            continue
        if (again.t_min, again.t_max) != (case.process.t_min, case.process.t_max) or not np.array_equal(
            np.asarray(again.diffusion(t)), np.asarray(case.process.diffusion(t))
        ):
            wrong.append(f"a {name} differs")
    return "; ".join(wrong) or "the same", "copy.deepcopy and pickle keep it (define the class in a module)", not wrong


def transport(case: SdeCase) -> Outcome:
    """The probability-flow ODE carries Gaussian data to its exact states: 200 steps of `rk4`, error 1e-4 or less."""
    process = case.gaussian
    if process is None:
        return None
    problem = Transport(process)
    highest = -0.98 * math.log(float(process.ratio(process.t_max)))  # lambda just inside the process's range
    lowest = -0.98 * math.log(max(float(process.ratio(process.t_min)), 1e-9))
    lam = np.linspace(max(problem.first, highest), min(problem.last, lowest), 201)
    times = np.asarray(problem.time(lam), dtype=float)
    mean, deviation = 0.7, 0.6
    model = GaussianModel([mean], deviation**2, process)
    laws = [
        (a * mean, math.hypot(a * deviation, s))
        for a, s in ((float(process.alpha(t)), float(process.sigma(t))) for t in (float(times[0]), float(times[-1])))
    ]
    z = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    start, exact = (m + d * z for m, d in laws)
    found = sample(model, "rk4", times=times.tolist(), start=start, num_samples=5).samples
    error = float((found - exact).abs().max())
    return f"error {error:.1e}", "<= 1e-4", error <= 1e-4


def sampled(case: SdeCase) -> Outcome:
    """Runs on the process's preferred spacing give finite samples, from one step on."""
    name = case.process.preferred_spacing
    if name not in default_registry().names.grid_names():
        return f"preferred_spacing {name!r} is not registered", "a registered spacing", False
    model: Model = FunctionModel(lambda x, t: -x, case.process, "score", (2,), dtype=torch.float64)
    if case.gaussian is not None:
        model = grid_mixture(case.gaussian, prediction="v")
    wrong = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few steps may end far from the data
        for sampler, steps in (("euler", 1), ("euler", 8), ("euler-maruyama", 8)):
            try:
                samples = sample(model, sampler, steps=steps, num_samples=2).samples
            except (SdesamplersError, ArithmeticError, ValueError, RuntimeError) as error:
                wrong.append(f"{sampler}, {steps} steps: {error}")
                continue
            if not torch.isfinite(samples).all():
                wrong.append(f"{sampler}, {steps} steps: not finite")
    return "; ".join(wrong) or f"3 runs on {name!r}", "finite samples", not wrong


SDE_CHECKS: Mapping[str, Callable[[SdeCase], Outcome]] = {
    **{name: partial(consistent, name) for name in CONSISTENCY},
    "drift": drift,
    "diffusion": diffusion,
    "perturb": perturbed,
    "prior": prior,
    "copies": copied,
    "transport": transport,
    "sampled": sampled,
}
"""The checks of a process by name; the docstring of each describes what it checks."""
