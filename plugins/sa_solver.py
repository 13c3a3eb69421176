"""SA-Solver: stochastic Adams predictors and correctors, in data or noise prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from sdesamplers import Path, Point, Run, Sampler, hookimpl, sampler, weighted_sum
from sdesamplers.coefficients import lagrange_integrals, semilinear_sde

from ._shared import Node, falling_orders, singular_step


def integral(
    history: Sequence[Node], now: Point, then: Point, prediction: str, tau: float
) -> tuple[list[float], list[Tensor]]:
    """(weights, predictions): the integral over a step of the polynomial through `history` is their weighted sum."""
    _, gain, rate, _ = semilinear_sde(now, then, prediction, tau)
    nodes, values = zip(*history, strict=True)
    return [gain * w for w in lagrange_integrals(nodes, now.lam, then.lam, rate=rate)], list(values)


@sampler(
    "sa-solver",
    order=2,
    ode_order=3,
    stochastic=True,
    noiseless={"tau": 0.0},
    needs=("marginals",),
    reference="Xue et al. 2023, SA-Predictor and SA-Corrector, algorithm 1",
)
def sa_solver(
    x: Tensor,
    path: Path,
    *,
    predictor_order: int = 2,
    corrector_order: int = 3,
    prediction: Literal["data", "noise"] = "data",
    tau: float = 1.0,
    tau_start: float = math.inf,
    tau_end: float = 0.0,
    lower_order_final: bool = True,
) -> Run:
    """SA-Solver: stochastic Adams-Bashforth predictor with an Adams-Moulton corrector, one evaluation per step.

    With h = lambda_s - lambda_t,

        x_s = (sigma_s/sigma_t) e^{-tau^2 h} x_t + sum_j b_j x0_j + sigma_s sqrt(1 - e^{-2 tau^2 h}) z

    where b_j are the integrals of the Lagrange polynomials of the last `predictor_order` predictions. The corrector
    repeats the step with the same noise, and with the prediction at the end of the step as one of its nodes.

    Args:
        predictor_order: number of predictions that the predictor uses, 1 to 4.
        corrector_order: number of predictions that the corrector uses, 1 to 4, or 0 for no corrector.
        prediction: "data" as above, or "noise", with eps in place of x0 and the corresponding linear part.
        tau: noise relative to the reverse SDE; 0 is the exponential Adams method for the ODE.
        tau_start: largest sigma/alpha at which noise is added.
        tau_end: smallest sigma/alpha at which noise is added.
        lower_order_final: make the predictor's last steps to the data of order ..., 3, 2, 1, as the authors' code does.
    """
    if not (1 <= predictor_order <= 4 and 0 <= corrector_order <= 4):
        raise ValueError(
            f"predictor_order must be 1 to 4 and corrector_order 0 (none) to 4, not {predictor_order} and "
            f"{corrector_order}"
        )
    if tau < 0 or not 0 <= tau_end <= tau_start:
        raise ValueError(
            f"tau must be 0 or more and 0 <= tau_end <= tau_start, not {tau=}, {tau_end=} and {tau_start=}"
        )
    sizes = falling_orders(path, predictor_order, lower_order_final)
    history: list[Node] = []  # most recent first
    last: tuple[Point, float, tuple[list[float], list[Tensor]]] | None = None
    for (now, then), size in zip(path.steps, sizes, strict=True):
        out = yield x, now
        x, amount = out.x, tau if tau_end <= now.ratio <= tau_start else 0.0
        if now.is_pure_noise or then.is_clean:
            x = singular_step(out, path, now, then, prediction, amount)
            continue
        history = [(now.lam, out.x0 if prediction == "data" else out.eps), *history][:4]
        if last is not None and corrector_order:
            begin, tau_then, (weights, values) = last
            corrected, nodes = integral(history[:corrector_order], begin, now, prediction, tau_then)
            x = weighted_sum([1.0, *corrected, *(-w for w in weights)], [x, *nodes, *values])
        predicted = integral(history[:size], now, then, prediction, amount)
        carry, _, _, std = semilinear_sde(now, then, prediction, amount)
        last = now, amount, predicted
        x = path.draw(weighted_sum([carry, *predicted[0]], [x, *predicted[1]]), std, now, then)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [sa_solver]
