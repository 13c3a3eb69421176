"""DPM-Solver-v3: a multistep exponential integrator with statistics of the model at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from sdesamplers import Path, Run, Sampler, hookimpl, sampler
from sdesamplers.statistics import Statistics, Step, to_tensor


def apply(step: Step, y: Tensor, residuals: Sequence[Tensor]) -> Tensor:
    """decay y - sum_j weights_j f_j + offset, coordinate by coordinate."""
    total = to_tensor(step.decay, y) * y + to_tensor(step.offset, y)
    for weight, residual in zip(step.weights, residuals, strict=True):
        total = total.addcmul(to_tensor(weight, y), residual, value=-1)
    return total


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

    With y = x/alpha and f = e^{-lambda} eps - l y the step is the exact one for dy/dlambda = -l y - f,
    df/dlambda = s f + b + (the rest), the rest's integral g being a polynomial through the last `order` evaluations.
    `statistics` is a file made by `sdesamplers statistics`; without one l = 1, s = b = 0, which is DPM-Solver++ of the
    same order with exact weights. `corrector` redoes a step with the evaluation at its end (no further evaluation; not
    at order 1); `pseudo` takes each derivative from the fewest points, which makes the order 2 at most, and gives the
    corrector one point more; `lower_order_final` ends with steps of order 2 and 1, safer where the last ones are wide.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, not {order}")
    table = Statistics.load(statistics) if statistics else Statistics.constant()
    table.check([p.lam for p in path.points if not (p.is_clean or p.is_pure_noise)], x.shape[1:])
    nodes: list[float] = []  # lambda and f of the last evaluations, newest first
    residuals: list[Tensor] = []
    begin = end = x
    left = sum(not point.is_clean for point in path.points[1:])
    for now, then in path.steps:
        out = yield x, now
        left -= 1
        if now.is_pure_noise:
            x = out.step_to(then)
            continue
        linear, y = to_tensor(table.linear(now.lam), x), out.x / now.alpha
        residuals.insert(0, out.eps * math.exp(-now.lam) - linear * y)
        nodes.insert(0, now.lam)
        if corrector and order > 1 and len(nodes) > 1:
            count = order + 1 if pseudo else order
            redone = table.step([nodes[1], nodes[0], *nodes[2:count]], nodes[1], nodes[0], pseudo)
            y = y + (apply(redone, begin, [residuals[1], residuals[0], *residuals[2:count]]) - end)
        del nodes[order:], residuals[order:]
        if then.is_clean:
            return (1 - linear) * y - residuals[0]
        most = min(order, left + 1) if lower_order_final else order
        begin, end = y, apply(table.step(nodes[:most], now.lam, then.lam, pseudo), y, residuals[:most])
        x = then.alpha * end
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [dpm_solver_v3]
