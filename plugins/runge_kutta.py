"""Runge-Kutta solvers of the probability-flow ODE with embedded error estimates."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdesamplers import Path, Run, Sampler, SolverError, hookimpl, sampler, weighted_sum

# Dormand & Prince 1980, table 2: nodes, stage weights (the last row is the fifth-order solution, so that its slope
# is the next step's first), and the difference of the fifth- and fourth-order weights.
NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


# A network's output differs in its last bits with the batch that it is in. Two things keep that out of the step sizes,
# and so out of the sample: errors (in tolerances) too small to be told from rounding count as this much, and steps
# are whole quarter octaves.
ROUNDING = 1e-3


def quarter_octaves(h: np.ndarray) -> np.ndarray:
    """Step sizes rounded towards 0 to powers of 2^(1/4)."""
    return np.copysign(2.0 ** (np.floor(4 * np.log2(np.abs(h))) / 4), h)


def dormand_prince(
    x: Tensor, slope: Tensor, time: Any, h: Any, path: Path, rows: np.ndarray | None = None
) -> Generator[Any, Any, tuple[Tensor, list[Tensor]]]:
    """One step of size h from (x, time): the fifth-order solution and all seven slopes."""
    slopes, width = [slope], path.expand(h, x)
    for node, weights in zip(NODES, STAGES, strict=True):
        out = yield x + width * weighted_sum(weights, slopes), path.at(time + node * h, rows)
        slopes.append(out.velocity)
    return out.x, slopes


@sampler(
    "rk45",
    order=5,
    evaluations=6,
    control=("rtol", "atol", "max_nfe"),
    reference="Dormand & Prince 1980, table 2; Hairer, Norsett & Wanner 1993, II.4; PI control: Gustafsson 1991",
)
def rk45(x: Tensor, path: Path, *, rtol: float = 1e-4, atol: float = 1e-4, max_nfe: int = 10_000) -> Run:
    """Dormand-Prince 5(4) on the probability-flow ODE, adaptive, or with the steps of a given grid.

    A step is accepted where the RMS over a sample of |error| / (atol + rtol max|x|) is at most 1; every sample has
    its own steps, so none changes another's result. The step into sigma = 0 is Euler's. With a grid (`steps`,
    `times`, ...) it takes 6 evaluations a step and no error control.
    """
    if not (rtol > 0 and atol > 0 and max_nfe > 0):
        raise ValueError("rtol, atol and max_nfe must be positive")
    if path.is_free:
        x, slope = yield from controlled(x, path, rtol, atol, max_nfe)
        now, steps = path.points[1], path.steps[1:]
    else:
        now, steps = path.points[0], path.steps
        out = yield x, now
        x, slope = out.x, out.velocity
    for now, then in steps:
        h = then.time - now.time
        if then.is_clean:
            x = x + h * slope
        else:
            x, slopes = yield from dormand_prince(x, slope, now.time, h, path)
            slope = slopes[-1]
    return x


def controlled(
    x: Tensor, path: Path, rtol: float, atol: float, max_nfe: int
) -> Generator[Any, Any, tuple[Tensor, Tensor]]:
    """Integrate between the path's first two points with per-sample steps; the end state and its slope."""
    begin, end = path.points[0].time, path.points[1].time
    time, rows = np.full(len(x), begin), np.arange(len(x))
    out = yield x, path.at(time, rows)
    x, slope = out.x.clone(), out.velocity.clone()

    def norm(error: Tensor, state: Tensor) -> np.ndarray:
        ratio = (error / (atol + rtol * state)).flatten(1)
        return ratio.square().mean(1).sqrt().double().cpu().numpy()

    # First step: Hairer, Norsett & Wanner 1993, II.4, the guess a) 0.01 |x| / |v|. Their refinement by a difference
    # quotient is left out: in float32 it amplifies rounding, and the controller grows a small step tenfold at once.
    size, rate = norm(x, x.abs()), norm(slope, x.abs())
    first = np.where((size < 1e-5) | (rate < 1e-5), 1e-6 * abs(end - begin), 0.01 * size / np.maximum(rate, 1e-300))
    h = quarter_octaves(np.copysign(np.minimum(first, abs(end - begin)), end - begin))
    last = np.ones(len(x))  # the previous error, for the controller's integral part
    path.ledger.accepted, path.ledger.rejected = np.zeros(len(x), int), np.zeros(len(x), int)
    while len(rows := np.flatnonzero(time != end)):
        if (1 + 6 * (path.ledger.accepted + path.ledger.rejected)[rows] + 6).max() > max_nfe:
            raise SolverError(f"rk45 needs more than max_nfe={max_nfe} evaluations at {rtol=:g}, {atol=:g}")
        now, pick = time[rows], torch.from_numpy(rows).to(x.device)
        step = np.where(np.abs(h[rows]) >= np.abs(end - now) * (1 - 1e-12), end - now, h[rows])
        if np.any(np.abs(step) < 1e-14 * abs(begin - end)):
            raise SolverError("rk45's step fell below rounding; the model is not smooth enough for these tolerances")
        old = x[pick]
        new, slopes = yield from dormand_prince(old, slope[pick], now, step, path, rows)
        scale = torch.maximum(old.abs(), new.abs())
        error = np.maximum(norm(path.expand(step, new) * weighted_sum(ERROR, slopes), scale), ROUNDING)
        if not np.all(np.isfinite(error)):
            raise SolverError("rk45's error estimate is not finite, so it cannot choose a step")
        good, smooth = error <= 1, (error <= 1) & (error > ROUNDING)
        grow = 0.9 * np.where(smooth, error ** (-0.7 / 5) * last[rows] ** (0.4 / 5), error ** (-1 / 5))
        h[rows] = quarter_octaves(step * np.clip(grow, 0.2, np.where(good, 10.0, 1.0)))
        path.ledger.accepted[rows] += good
        path.ledger.rejected[rows] += ~good
        if len(won := np.flatnonzero(good)):
            keep = torch.from_numpy(won).to(x.device)
            x[pick[keep]], slope[pick[keep]] = new[keep], slopes[-1][keep]
            time[rows[won]] = np.where(step[won] == end - now[won], end, now[won] + step[won])
            last[rows[won]] = error[won]
    return x, slope


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [rk45]
