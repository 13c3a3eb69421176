"""DPM-Solver-v3: a multistep exponential integrator with statistics of the model at hand."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from sdesamplers import Path, Run, Sampler, hookimpl, sampler
from sdesamplers.ode.statistics import Statistics, to_tensor

from ._shared import falling_orders, orders


@lru_cache(maxsize=4)
def load(file: str, changed: int) -> Statistics:
    """The statistics in a file, read again when it has changed (at the time `changed`)."""
    return Statistics.load(file)


class Move(NamedTuple):
    """A `Step` on the sample's device: y <- decay y - sum_j weights_j f_j + offset, coordinate by coordinate."""

    decay: Tensor
    weights: list[Tensor]
    offset: Tensor

    def __call__(self, y: Tensor, residuals: Sequence[Tensor]) -> Tensor:
        total = self.decay * y + self.offset
        for weight, residual in zip(self.weights, residuals, strict=True):
            total = total.addcmul(weight, residual, value=-1)
        return total


def moves(
    table: Statistics, path: Path, like: Tensor, order: int, corrector: bool, pseudo: bool, lower: bool
) -> Iterator[tuple[Tensor, Move | None, Move | None]]:
    """For every step in lambda: l at its start, the step before it redone or None, the step, None into sigma = 0."""

    def move(nodes: Sequence[float], start: float, end: float) -> Move:
        decay, weights, offset = table.step(nodes, start, end, pseudo)
        return Move(to_tensor(decay, like), [to_tensor(w, like) for w in weights], to_tensor(offset, like))

    nodes: list[float] = []  # lambda of the last evaluations, newest first
    sizes = falling_orders(path, order) if lower else orders(path, order, most=2)
    for (now, then), size in zip(path.steps, sizes, strict=True):
        if now.is_pure_noise:
            continue
        nodes, redone = [now.lam, *nodes][: order + pseudo], None
        if corrector and order > 1 and len(nodes) > 1:
            redone = move([nodes[1], nodes[0], *nodes[2:]], nodes[1], nodes[0])
        step = None if then.is_clean else move(nodes[:size], now.lam, then.lam)
        yield to_tensor(table.linear(now.lam), like), redone, step


@sampler(
    "dpm-solver-v3",
    order=3,
    spacing="logsnr",
    needs=("marginals",),
    reference="Zheng, Lu, Chen & Zhu 2023, sections 3.1-3.3 (multistep predictor-corrector, pseudo-order)",
)
def dpm_solver_v3(
    x: Tensor,
    path: Path,
    *,
    statistics: str = "",
    order: int = 3,
    corrector: bool = True,
    pseudo: bool = False,
    lower_order_final: bool = False,
) -> Run:
    """DPM-Solver-v3, which takes out of the ODE what the model's statistics l, s, b say is linear.

        y = x/alpha,   f = e^{-lambda} eps - l y
        dy/dlambda = -l y - f
        df/dlambda = s f + b + (the rest)

    A step is the exact solution of these, the rest's integral being a polynomial through the last `order` evaluations.
    `statistics` is a file made by `sdesamplers statistics`; without one l = 1, s = b = 0, which is DPM-Solver++ of the
    same order with exact weights. `corrector` redoes a step with the evaluation at its end (no further evaluation; not
    at order 1); `pseudo` takes each derivative from the fewest points, which makes the order 2 at most, and gives the
    corrector one point more; `lower_order_final` makes the last steps to the data of order ..., 3, 2, 1. The step to
    the smallest sigma is of second order at most, and of first if there are fewer than 15.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, not {order}")
    changed = os.stat(statistics).st_mtime_ns if os.path.exists(statistics) else 0
    table = load(statistics, changed) if statistics else Statistics.constant()
    table.check([p.lam for p in path.points if not (p.is_clean or p.is_pure_noise)], x.shape[1:])
    plan = iter([*moves(table, path, x, order, corrector, pseudo, lower_order_final)])
    residuals: list[Tensor] = []  # f of the last evaluations, newest first
    begin = end = x
    for now, then in path.steps:
        out = yield x, now
        if now.is_pure_noise:
            x = out.step_to(then)
            continue
        linear, redone, step = next(plan)
        y = out.x / now.alpha
        residuals = [out.eps * math.exp(-now.lam) - linear * y, *residuals][: order + pseudo]
        if redone is not None:
            y = y + (redone(begin, [residuals[1], residuals[0], *residuals[2:]]) - end)
        if step is None:
            return (1 - linear) * y - residuals[0]
        begin, end = y, step(y, residuals[: len(step.weights)])
        x = then.alpha * end
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [dpm_solver_v3]
