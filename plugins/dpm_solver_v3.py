"""DPM-Solver-v3: a multistep exponential integrator that uses precomputed statistics of the model."""

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
    """The statistics in a file, cached by its modification time `changed`."""
    return Statistics.load(file)


class LinearStep(NamedTuple):
    """A step as tensors on the sample's device: y <- decay y - sum_j weights_j f_j + offset, elementwise."""

    decay: Tensor
    weights: list[Tensor]
    offset: Tensor

    def __call__(self, y: Tensor, residuals: Sequence[Tensor]) -> Tensor:
        total = self.decay * y + self.offset
        for weight, residual in zip(self.weights, residuals, strict=True):
            total = total.addcmul(weight, residual, value=-1)
        return total


def step_plan(
    table: Statistics, path: Path, like: Tensor, order: int, corrector: bool, pseudo: bool, lower: bool
) -> Iterator[tuple[Tensor, LinearStep | None, LinearStep | None]]:
    """Yield (l at the start, the corrector for the previous step or None, the predictor) for every step in lambda.

    The predictor is None for the step into sigma = 0.
    """

    def linear_step(nodes: Sequence[float], start: float, end: float) -> LinearStep:
        decay, weights, offset = table.step(nodes, start, end, pseudo)
        return LinearStep(to_tensor(decay, like), [to_tensor(w, like) for w in weights], to_tensor(offset, like))

    nodes: list[float] = []  # lambda of the last evaluations, most recent first
    sizes = falling_orders(path, order) if lower else orders(path, order, most=2)
    for (now, then), size in zip(path.steps, sizes, strict=True):
        if now.is_pure_noise:
            continue
        nodes, corrected = [now.lam, *nodes][: order + pseudo], None
        if corrector and order > 1 and len(nodes) > 1:
            corrected = linear_step([nodes[1], nodes[0], *nodes[2:]], nodes[1], nodes[0])
        step = None if then.is_clean else linear_step(nodes[:size], now.lam, then.lam)
        yield to_tensor(table.linear(now.lam), like), corrected, step


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
    """DPM-Solver-v3: exponential integrator whose linear part is estimated from the model (statistics l, s, b).

        y = x/alpha,   f = e^{-lambda} eps - l y
        dy/dlambda = -l y - f
        df/dlambda = s f + b + (remainder)

    A step solves these equations exactly, with a polynomial through the last `order` evaluations for the remainder. The
    step to the smallest sigma is of second order at most, and of first order with fewer than 15 steps.

    Args:
        statistics: file written by `sdesamplers statistics`. Without it l = 1 and s = b = 0, which is DPM-Solver++ of
            the same order with exact weights.
        order: 1 to 3.
        corrector: correct each step with the evaluation at its end, at no extra evaluation; no effect at order 1.
        pseudo: estimate each derivative from as few points as possible (the paper's pseudo-order), which limits the
            order to 2; the corrector then uses one more point.
        lower_order_final: make the last steps to the data of order ..., 3, 2, 1.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, not {order}")
    changed = os.stat(statistics).st_mtime_ns if os.path.exists(statistics) else 0
    table = load(statistics, changed) if statistics else Statistics.constant()
    table.check([p.lam for p in path.points if not (p.is_clean or p.is_pure_noise)], x.shape[1:])
    plan = iter([*step_plan(table, path, x, order, corrector, pseudo, lower_order_final)])
    residuals: list[Tensor] = []  # f of the last evaluations, most recent first
    begin = end = x
    for now, then in path.steps:
        out = yield x, now
        if now.is_pure_noise:
            x = out.step_to(then)
            continue
        linear, corrected, step = next(plan)
        y = out.x / now.alpha
        residuals = [out.eps * math.exp(-now.lam) - linear * y, *residuals][: order + pseudo]
        if corrected is not None:
            y = y + (corrected(begin, [residuals[1], residuals[0], *residuals[2:]]) - end)
        if step is None:
            return (1 - linear) * y - residuals[0]
        begin, end = y, step(y, residuals[: len(step.weights)])
        x = then.alpha * end
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [dpm_solver_v3]
