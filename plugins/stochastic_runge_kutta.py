"""Stochastic Runge-Kutta methods in path time for the reverse SDE, whose noise is additive.

dx = a dt + eta g dw with a = f - (1 + eta^2)/2 g^2 s. Because g does not depend on x, Milstein's method is the same as
`euler-maruyama`: its correction is a multiple of dg/dx. Steps out of alpha = 0, where g is infinite, and into sigma = 0
use eta = 0; eta may change along the path without changing the marginals.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdesamplers import Path, Point, Prediction, Run, Sampler, hookimpl, sampler, weighted_sum

from ._adaptive import Budget, Outcome, Power, State, Tolerance, Trial, adapt, rms
from ._shared import check_noise
from ._tableaux import SRA1, SRA3, AdditiveTableau


def ode_step(x: Tensor, out: Prediction, now: Point, then: Point) -> Generator[Any, Any, Tensor]:
    """A Heun step of the probability-flow ODE; into sigma = 0 an Euler step."""
    h, slope = then.time - now.time, out.velocity
    if not then.is_clean:
        ahead = yield torch.add(x, slope, alpha=h), then
        slope, h = slope + ahead.velocity, h / 2
    return torch.add(x, slope, alpha=h)


def additive(x: Tensor, path: Path, eta: float, tableau: AdditiveTableau) -> Run:
    """Run a tableau. A step draws two normals, one for each half, for the Wiener integrals I1 and I10 = int W dt."""
    check_noise(eta=eta)
    for now, then in path.steps:
        out = yield x, now
        if now.is_pure_noise or then.is_clean:
            x = yield from ode_step(out.x, out, now, then)
            continue
        h, middle = then.time - now.time, path.at(0.5 * (now.time + then.time))
        x, slopes = out.x, [out.reverse_drift(eta)]
        here, there = (eta * math.sqrt(abs(h)) * float(point.diffusion) for point in (now, then))
        half = path.draw(x, math.sqrt(0.5) * here, now, middle)
        rest = path.draw(x, math.sqrt(0.5) * there, middle, then)
        first, second = ((half - x) / here, (rest - x) / there) if eta else (0.0 * x, 0.0 * x)
        single = first + second  # I1 / sqrt|h|; the difference is independent of it
        double = 0.5 * (single + (first - second) / math.sqrt(3))  # I10 / |h|^(3/2)
        for node, drift, (ahead, current) in zip(tableau.nodes, tableau.drift, tableau.noise, strict=True):
            state = weighted_sum([1.0, *(h * a for a in drift)], [x, *slopes])
            state = torch.add(state, double, alpha=ahead * there + current * here)
            point = then if node == 1.0 else path.at(now.time + node * h)
            slopes.append((yield state, point).reverse_drift(eta))
        weights = [1.0, *(h * b for b in tableau.weights), there, here - there]
        x = weighted_sum(weights, [x, *slopes, single, double])
    return x


@sampler(
    "stochastic-heun",
    order=2,
    evaluations=2,
    stochastic=True,
    noiseless={"eta": 0.0},
    no_density="the next state is a nonlinear function of the step's draw, through the second stage",
    reference="Kloeden & Platen 1992, chapter 15, for additive noise",
)
def stochastic_heun(x: Tensor, path: Path, *, eta: float = 1.0) -> Run:
    """Stochastic Heun, the trapezoidal rule on the drift and the noise of the reverse SDE.

        x' = x_t + h a(x_t, t) + eta g(t) sqrt|h| z
        x_s = x_t + h/2 [a(x_t, t) + a(x', s)] + eta/2 [g(t) + g(s)] sqrt|h| z

    with h = s - t and a = f - (1 + eta^2)/2 g^2 score the drift.

    Args:
        eta: noise of the SDE relative to the reverse SDE; its marginals are the same for every eta. 0 is Heun's method
            on the ODE.
    """
    check_noise(eta=eta)
    for now, then in path.steps:
        out = yield x, now
        if now.is_pure_noise or then.is_clean:
            x = yield from ode_step(out.x, out, now, then)
        else:
            _, x = yield from heun_step(out, path, now, then, then.time - now.time, eta)
    return x


def heun_step(
    out: Prediction, path: Path, now: Point[Any], then: Point[Any], h: Any, eta: float
) -> Generator[Any, Any, tuple[Tensor, Tensor]]:
    """(x' of Euler-Maruyama, x_s of stochastic Heun) after a step of size h."""
    x, slope, width = out.x, out.reverse_drift(eta), path.expand(h, out.x)
    mean = x + width * slope
    ahead = path.draw(mean, eta * now.diffusion * np.sqrt(np.abs(h)), now, then)
    noise = ahead - mean
    slope = slope + (yield ahead, then).reverse_drift(eta)
    return ahead, x + 0.5 * width * slope + 0.5 * path.expand(1 + then.diffusion / now.diffusion, x) * noise


@sampler(
    "sra1",
    order=2,
    evaluations=2,
    stochastic=True,
    noiseless={"eta": 0.0},
    no_density="the next state is a nonlinear function of the step's two draws, through the later stages",
    reference="Roessler 2010, SRA1",
)
def sra1(x: Tensor, path: Path, *, eta: float = 1.0) -> Run:
    """SRA1, a two-stage stochastic Runge-Kutta method of strong order 1.5 for additive noise.

        x_s = x_t + h (a_1 + 2 a_2)/3 + g(s) I1 + (g(t) - g(s)) I10 / h
        a_2 at t + 3h/4 in x_t + 3h/4 a_1 + 3/2 g(s) I10 / h

    with a the drift of the reverse SDE and g including the factor eta. Besides the increment I1 of the Wiener process
    it uses its time integral I10, drawn from their joint distribution. (The strong order requires that both belong to
    the same path; noise="brownian" fixes only the increments of the half steps.)

    Args:
        eta: noise of the SDE relative to the reverse SDE; its marginals are the same for every eta. 0 is a second-order
            method on the ODE.
    """
    return (yield from additive(x, path, eta, SRA1))


@sampler(
    "sra3",
    order=2,
    ode_order=3,
    evaluations=3,
    stochastic=True,
    noiseless={"eta": 0.0},
    no_density="the next state is a nonlinear function of the step's two draws, through the later stages",
    reference="Roessler 2010, SRA3",
)
def sra3(x: Tensor, path: Path, *, eta: float = 1.0) -> Run:
    """SRA3, a three-stage stochastic Runge-Kutta method of strong order 1.5 for additive noise.

        x_s = x_t + h (a_1 + a_2 + 4 a_3)/6 + g(s) I1 + (g(t) - g(s)) I10 / h
        a_2 at s in x_t + h a_1
        a_3 at t + h/2 in x_t + h (a_1 + a_2)/4 + (g(s) + g(t)/2) I10 / h

    This is `sra1` with a third-order method for the drift.

    Args:
        eta: noise of the SDE relative to the reverse SDE; its marginals are the same for every eta. 0 is a third-order
            method on the ODE.
    """
    return (yield from additive(x, path, eta, SRA3))


@sampler(
    "gotta-go-fast",
    order=2,
    evaluations=2,
    stochastic=True,
    control=("rtol", "atol", "safety", "power", "max_nfe"),
    limits="adaptive steps bias the samples of low-dimensional data",
    no_density="the next state is a nonlinear function of the step's draw, and steps may be rejected",
    reference="Jolicoeur-Martineau et al. 2021, algorithm 1",
)
def gotta_go_fast(
    x: Tensor,
    path: Path,
    *,
    rtol: float = 0.05,
    atol: float = 0.0078,
    safety: float = 0.9,
    power: float = 0.9,
    max_nfe: int = 10_000,
) -> Run:
    """Gotta go fast: the reverse SDE with adaptive steps, the error from Euler-Maruyama and stochastic Heun.

        x' = x + h a(x, t) + g(t) sqrt|h| z                                                    Euler-Maruyama
        x'' = x + h/2 [a(x, t) + a(x', t + h)] + 1/2 [g(t) + g(t + h)] sqrt|h| z               Heun
        E = RMS over a sample of (x' - x'') / max(atol, rtol |x'|, rtol |x'_before|)
        h <- safety h E^{-power}

    x'' is accepted if E is at most 1. Every sample has its own step sizes. As in the paper, the noise of a rejected
    step is discarded and new noise is drawn, which biases the result if E depends on the noise: in 2 dimensions 40 % of
    the steps are rejected and the variance is 50 % or more too large; in 256 dimensions 5 % are rejected and the
    variance is right to 2 %. With a grid (`steps`, `times`, ...) this is `stochastic-heun`.

    Args:
        rtol: relative error tolerance.
        atol: absolute error tolerance.
        safety: factor on the next step size, between 0 and 1.
        power: exponent of the error in the next step size, above 0 and at most 1.
        max_nfe: most evaluations per sample; a run that needs more is an error.
    """
    if not (rtol > 0 and atol > 0 and max_nfe > 0 and 0 < safety < 1 and 0 < power <= 1):
        raise ValueError(
            "rtol, atol and max_nfe must be positive, safety between 0 and 1, and power above 0 and at most 1"
        )
    if path.is_free:
        control = Power(len(x), path.points[1].time - path.points[0].time, safety, power)
        x = yield from controlled(x, path, control, Budget("gotta-go-fast", Tolerance(rtol, atol), max_nfe, cost=2))
        path = path.part(path.points[1:])
    return (yield from stochastic_heun(x, path))


def controlled(x: Tensor, path: Path, control: Power, budget: Budget) -> Run:
    """Integrate between the first two points of the path with step sizes per sample."""
    start, end = path.points[0], path.points[1]
    if start.is_pure_noise:  # the diffusion coefficient is infinite there
        out = yield x, start
        start = path.at(start.time + 0.01 * (end.time - start.time))
        x = out.step_to(start)

    def attempt(state: State, trial: Trial) -> Generator[Any, Any, Outcome]:
        now, then = path.at(trial.now, trial.rows), path.at(trial.then, trial.rows)
        out = yield state[0], now
        low, high = yield from heun_step(out, path, now, then, trial.then - trial.now, 1.0)
        return Outcome(state, (high, low), rms((low - high) / budget.tolerance.larger(low, state[1])))

    x, _ = yield from adapt((x, x), path, start.time, end.time, attempt, control, budget)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [stochastic_heun, sra1, sra3, gotta_go_fast]
