"""DPM-Solver-12 and -23: adaptive DPM-Solver, with step sizes in lambda."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from sdesamplers import Path, Run, Sampler, hookimpl, sampler

from ._adaptive import PID, Budget, Estimate, Outcome, State, Tolerance, Trial, adapt, rms
from ._dpm_stages import dpm_solver_2_step, dpm_solver_3_step
from ._shared import Kind
from .dpm_solver import singlestep

PURE_NOISE_END = 1e-4
"""alpha/sigma at the end of the first step from alpha = 0, whose error is about 1e-8 of the change in x0 over it."""


def embedded(path: Path, order: int, kind: Kind, tolerance: Tolerance) -> Estimate:
    """Steps of DPM-Solver-`order` in lambda, with an error estimate by the embedded solution of one order less."""

    def attempt(state: State, trial: Trial) -> Generator[Any, Any, Outcome]:
        now, then = path.at_lambda(trial.now, trial.rows), path.at_lambda(trial.then, trial.rows)
        out = yield state[0], now
        high, low = yield from (
            dpm_solver_2_step(out, then, path, kind, 0.5) if order == 2 else dpm_solver_3_step(out, then, path, kind)
        )
        return Outcome((out.x,), (high,), rms((high - low) / tolerance.larger(low, out.x)))

    return attempt


@sampler(
    "dpm-adaptive",
    order=3,
    evaluations=3,
    control=("rtol", "atol", "h_init", "pcoeff", "icoeff", "dcoeff", "accept_safety", "max_nfe"),
    needs=["marginals"],
    reference="Lu et al. 2022 (DPM-Solver-12 and -23), appendix C; PID control: Soderlind 2003",
)
def dpm_adaptive(
    x: Tensor,
    path: Path,
    *,
    order: Literal[2, 3] = 3,
    prediction: Kind = "noise",
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    max_nfe: int = 10_000,
) -> Run:
    """Adaptive DPM-Solver (DPM-Solver-12 or -23): step sizes in lambda from the difference of two orders.

        E = RMS over a sample of |x_high - x_low| / max(atol, rtol |x_low|, rtol |x_t|)
        F = E^{-a} E_1^{-b} E_2^{-c},   h <- h (1 + atan(F - 1))

    in the path's coordinates, with E_1 and E_2 the errors of the last two accepted steps and (a, b, c) =
    (p + i + d, -p - 2d, d) / order the exponents of a PID controller. A step is accepted if 1 + atan(F - 1) is at least
    `accept_safety`. Every sample has its own step sizes. On a given grid (`steps`, `times`, ...) this is singlestep
    DPM-Solver without error control.

    Args:
        order: order of the solution that is kept, x_high; x_low has one order less.
        prediction: "noise" for DPM-Solver, "data" for DPM-Solver++.
        rtol: relative error tolerance.
        atol: absolute error tolerance.
        h_init: first step in lambda.
        pcoeff: p, the proportional coefficient of the controller.
        icoeff: i, the integral coefficient.
        dcoeff: d, the derivative coefficient.
        accept_safety: the acceptance threshold, between 0 and 1; larger rejects more steps.
        max_nfe: most evaluations per sample; a run that needs more is an error.
    """
    if not (rtol > 0 and atol > 0 and h_init > 0 and max_nfe > 0):
        raise ValueError("rtol, atol, h_init and max_nfe must be positive")
    if not 0 < accept_safety < 1:
        raise ValueError(f"accept_safety must lie between 0 and 1, not {accept_safety}")
    if not path.is_free:
        return (yield from singlestep(x, path, order, prediction))
    begin, end, *clean = path.points
    if begin.is_pure_noise:
        out = yield x, begin
        begin = path.at_ratio(1 / PURE_NOISE_END)
        x = out.step_to(begin)
    pid = PID(np.full(len(x), h_init), order, (pcoeff, icoeff, dcoeff), accept_safety)
    budget = Budget("dpm-adaptive", Tolerance(rtol, atol), max_nfe, cost=order)
    attempt = embedded(path, order, prediction, budget.tolerance)
    (x,) = yield from adapt((x,), path, begin.lam, end.lam, attempt, pid, budget)
    if clean:
        out = yield x, end
        x = out.step_to(clean[0])
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [dpm_adaptive]
