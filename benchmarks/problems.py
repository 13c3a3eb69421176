"""Test problems for solvers, with ODE solutions: a Gaussian mixture with its exact score, and the embedded network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import Problem
from torch import Tensor

import sdesamplers as sds

STARTS, SEED = 2048, 20260


def linear_table() -> np.ndarray:
    """DDPM's alphas_cumprod (Ho et al. 2020)."""
    return np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


class Mixture(sds.Model):
    """A Gaussian mixture with diagonal covariances; epsilon is in closed form, with three matrix products."""

    prediction, dtype, name = "epsilon", torch.float64, "mixture-16d"

    def __init__(self, seed: int = 1, dimension: int = 16, components: int = 9) -> None:
        generator = torch.Generator().manual_seed(seed)
        normal = torch.randn(components, dimension, dtype=torch.float64, generator=generator)
        spread = torch.rand(components, dimension, dtype=torch.float64, generator=generator)
        mass = 0.5 + torch.rand(components, dtype=torch.float64, generator=generator)
        self.weights, means, variances = mass / mass.sum(), normal, (0.05 * 8.0**spread) ** 2
        # As for pixels in [-1, 1], the mean of the data is 0 and the variance 1/2.
        means = means - self.weights @ means
        between = float((self.weights @ means.square()).mean())
        within = float((self.weights @ variances).mean())
        self.means, self.variances = means * math.sqrt((0.5 - within) / between), variances
        self.process, self.shape = sds.DiscreteVP(linear_table()), (dimension,)

    def predict(self, x: Tensor, t: Any, condition: Any = None) -> Tensor:
        # t may contain one time per sample, as from rk45; then alpha and sigma are (N, 1).
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
            posterior = log.softmax(1)[..., None]
            return (sigma[:, 0] * (posterior * residual * inverse).sum(1)).to(x.dtype)
        constant = self.weights.log() + 0.5 * (inverse.log() - centre.square() * inverse).sum(1)
        log = x @ (centre * inverse).T - 0.5 * x.square() @ inverse.T + constant
        posterior = log.softmax(1)
        return sigma * (x * (posterior @ inverse) - posterior @ (centre * inverse))


def mixture(starts: int, cache: Path | None = None, seed: int = 1) -> Problem:
    """The mixture, with its ODE solved to 1e-10."""
    model = Mixture(seed)
    start = torch.randn(starts, *model.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(SEED))
    name = model.name if seed == 1 else f"{model.name}-{seed}"
    truth = cached(cache, f"truth-{name}-{starts}", lambda: ode_truth(model, start, 1e-10))
    return Problem(name, model.process, model.predict, start, truth, torch.float64)


def embedded(starts: int, cache: Path | None = None) -> Problem:
    """The embedded network, with its ODE solved by `network_truth`."""
    model = sds.load("fashion-mnist")
    start = torch.randn(STARTS, *model.shape, generator=torch.Generator().manual_seed(SEED))[:starts]
    chunks = [
        cached(
            cache,
            f"truth-{model.name}-{first}-{first + CHUNK}",
            lambda first=first: network_truth(model, start[first : first + CHUNK]),
        )
        for first in range(0, starts, CHUNK)
    ]

    return network_problem(model, start, torch.cat(chunks)[:starts])


def network_problem(model: sds.Model, start: Tensor, truth: Tensor) -> Problem:
    """The problem of a network, given starts and their ends; it runs in float32 and in chunks, for any state dtype."""

    def predict(x: Tensor, t: float) -> Tensor:
        parts = [model.predict(part.float(), t) for part in x.split(CHUNK)]
        return torch.cat(parts).to(x.dtype)

    assert isinstance(model.process, sds.DiscreteVP)
    return Problem(model.name, model.process, predict, start, truth)


CHUNK = 32


def ode_truth(model: sds.Model, start: Tensor, tolerance: float) -> Tensor:
    """The solution of the probability-flow ODE: rk45 with a float64 state, then x0 at the first timestep.

    Networks are not evaluated below the first timestep, so the solution ends with the estimate of x0 there, which is
    exactly the Euler step to sigma = 0 in `flow` coordinates.
    """
    control = {"rtol": tolerance, "atol": tolerance, "max_nfe": 1_000_000}
    return sds.sample(model, "rk45", start=start, coordinates="flow", dtype=torch.float64, **control).samples


def network_truth(model: sds.Model, start: Tensor, points: int = 250) -> Tensor:
    """The same for the network, by the fourth-order Runge-Kutta method with a float64 state.

    The network was trained at whole timesteps, and its time embedding has a period of six timesteps. Between timesteps
    the vector field of the ODE therefore fluctuates, and accurate solutions differ by 0.001 to 0.005 unless they
    resolve this. The grid points are whole timesteps, where the interpolated schedule has its kinks, with equal steps
    of sqrt(t): 933 evaluations. On six starts the mean RMS difference from rk45 at 1e-7, which takes 2,100 evaluations
    per sample, is 2.1e-4; that of rk45 at 1e-6 from rk45 at 1e-7 is 7.6e-4, and those of Adams and DPM-Solver++
    methods with 500 to 800 evaluations are 7e-4 to 1.4e-3.
    """
    times = np.unique(np.round(np.linspace(0.0, math.sqrt(model.gaussian.t_max), points) ** 2))[::-1]
    sigmas = [*model.gaussian.ratio(times).tolist(), 0.0]
    return sds.sample(model, "rk4", sigmas=sigmas, start=start, coordinates="flow", dtype=torch.float64).samples


def cached(folder: Path | None, name: str, make: Callable[[], Tensor]) -> Tensor:
    """Load a tensor from its file, or create it and save it there."""
    if folder is None:
        return make()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.npy"
    if not file.exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.save(file, make().numpy())
    return torch.from_numpy(np.load(file))


class Counted(sds.Model):
    """A problem as a model of this library, with counted evaluations."""

    prediction = "epsilon"

    def __init__(self, problem: Problem, round_timesteps: bool = False) -> None:
        self.problem, self.process, self.dtype = problem, problem.process, problem.dtype
        self.round_timesteps = round_timesteps
        self.shape, self.name = tuple(problem.start.shape[1:]), problem.name

    def predict(self, x: Tensor, t: Any, condition: Any = None) -> Tensor:
        return self.problem.eps(x, np.round(t) if self.round_timesteps else t)
