"""DPM-Solver-12 and -23: steps in lambda of DPM-Solver's own choice."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from sdesamplers import Path, Run, Sampler, hookimpl, sampler

from ._adaptive import PID, Budget, Estimate, Outcome, State, Tolerance, Trial, adapt, rms
from ._dpm_stages import second, third
from ._shared import Kind
from .dpm_solver import singlestep

PURE_NOISE_END = 1e-4
"""alpha/sigma that a path from alpha = 0 reaches in one step; the error of that is some 1e-8 of x0's change there."""


def embedded(path: Path, order: int, kind: Kind, tolerance: Tolerance) -> Estimate:
    """DPM-Solver-`order`'s steps in lambda, with the error of the embedded solution of one order less."""

    def attempt(state: State, trial: Trial) -> Generator[Any, Any, Outcome]:
        now, then = path.at_lambda(trial.now, trial.rows), path.at_lambda(trial.then, trial.rows)
        out = yield state[0], now
        high, low = yield from (second(out, then, path, kind, 0.5) if order == 2 else third(out, then, path, kind))
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
    """DPM-Solver-12 or -23: steps in lambda chosen from the difference of two orders, for every sample by itself.

        E = RMS over a sample of |x_high - x_low| / max(atol, rtol |x_low|, rtol |x_t|)
        F = E^{-a} E_1^{-b} E_2^{-c},   h <- h (1 + atan(F - 1))

    in the path's coordinates, with E_1 and E_2 the errors of the last two accepted steps and a, b, c those of a PID
    controller, (p + i + d, -p - 2d, d) / `order` from `pcoeff`, `icoeff` and `dcoeff`. A step, `h_init` at first, is
    accepted where 1 + atan(F - 1) is `accept_safety` at least; more than `max_nfe` evaluations are an error. `order` is
    the higher of the two, `prediction` "noise" (DPM-Solver) or "data" (++). On a given grid it takes steps of
    DPM-Solver-`order` without error control.
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
