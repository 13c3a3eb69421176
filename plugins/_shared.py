"""Building blocks shared by several sampler files: exponential Adams methods, and stages of the reverse SDE.

They solve the SDE of `semilinear_sde`, which for eta = 0 is the probability-flow ODE.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from sdesamplers import Path, Point, Prediction, Run, weighted_sum
from sdesamplers.coefficients import lagrange_integrals, midpoint_integrals, semilinear_sde

from ._dpm_stages import dpm_solver_2_step

Kind = Literal["data", "noise"]
Node = tuple[float, Tensor]
"""(lambda, prediction) of an evaluation."""


FEW_STEPS = 15
"""With fewer steps, the last one is of first order (`lower_order_final` in the code of Lu et al. 2022b)."""


def orders(path: Path, order: int, lower: bool = True, *, second: bool = False, most: int | None = None) -> list[int]:
    """The order of each step of a method that extrapolates through its last `order` predictions.

    The step that arrives at the data is much longer in lambda than the steps before, so that extrapolating a polynomial
    over it is inaccurate. A step into sigma = 0 is always of first order.

    Args:
        path: the path; its number of steps and its end determine the orders.
        order: the order of the other steps.
        lower: lower the order of the last step, if it arrives at the data: to 1 with fewer than `FEW_STEPS` steps, else
            to at most `most`.
        second: limit the step before a last step of first order to second order (with `lower`).
        most: the largest order of the last step with `FEW_STEPS` steps or more; `order` by default.
    """
    count = len(path.steps)
    sizes = [order] * count
    if path.points[-1].is_clean or (lower and path.ends_at_data and count < FEW_STEPS):
        sizes[-1] = 1
        if lower and second and count > 1:
            sizes[-2] = min(order, 2)
    elif lower and path.ends_at_data:
        sizes[-1] = min(order, most or order)
    return sizes


def falling_orders(path: Path, order: int, lower: bool = True) -> list[int]:
    """The order of each step; with `lower` the last ones are ..., 3, 2, 1 if the path ends at the data."""
    count, falls = len(path.steps), lower and path.ends_at_data
    return [min(order, count - k) if falls else order for k in range(count)]


def check_noise(**amounts: float) -> None:
    """Raise ValueError if a noise scale is negative."""
    for name, value in amounts.items():
        if value < 0:
            raise ValueError(f"{name} scales the noise and must be 0 or more, not {value}")


def predicted(out: Prediction, kind: str) -> Tensor:
    """The prediction to integrate: x0 ("data") or eps ("noise")."""
    return out.x0 if kind == "data" else out.eps


def singular_step(
    out: Prediction, path: Path, now: Point, then: Point, kind: str, eta: float, s_noise: float = 1.0
) -> Tensor:
    """The first-order step from or to an infinite lambda.

    Into sigma = 0 it returns x0. Out of alpha = 0 with noise in data prediction, it returns alpha_s x0 + sigma_s z,
    independent of the starting state. In noise prediction that step has no limit, so it is the ODE's.
    """
    all_new_noise = eta > 0 and kind == "data"
    mean = out.compose(then.alpha, 0.0 if all_new_noise else then.sigma)
    return path.draw(mean, s_noise * then.sigma if all_new_noise else 0.0, now, then)


def exponential_adams(
    x: Tensor, path: Path, order: int, kind: str, *, eta: float = 0.0, s_noise: float = 1.0, midpoint: bool = False,
    lower: bool = True, second: bool = False,
) -> Run:  # fmt: skip
    """Exponential Adams-Bashforth: the polynomial through the last `order` predictions, integrated exactly.

    `midpoint` uses the midpoint rule instead in second-order steps, as the papers do. `lower` and `second` are as in
    `orders`. With `lower` and `FEW_STEPS` steps or more, the step that arrives at the data is of second order at most
    and uses the midpoint rule; for a method of order 3 or higher with noise it is of first order.
    """
    check_noise(eta=eta, s_noise=s_noise)
    history: list[Node] = []
    sizes = orders(path, order, lower, second=second, most=1 if eta and order > 2 else 2)
    lowers_last = lower and path.ends_at_data
    for (now, then), size in zip(path.steps, sizes, strict=True):
        out = yield x, now
        if now.is_pure_noise or then.is_clean:
            # lambda is infinite here, so this prediction cannot be an interpolation node of later steps either
            x = singular_step(out, path, now, then, kind, eta, s_noise)
            continue
        history = [(now.lam, predicted(out, kind)), *history][:order]
        nodes, values = zip(*history[:size], strict=True)
        carry, gain, rate, std = semilinear_sde(now, then, kind, eta)
        if len(nodes) == 2 and (midpoint or (lowers_last and then is path.points[-1])):
            h = then.lam - now.lam
            weights = midpoint_integrals(h, rate, (nodes[1] - now.lam) / h)
        else:
            weights = lagrange_integrals(nodes, now.lam, then.lam, rate=rate)
        mean = weighted_sum([carry, *(gain * w for w in weights)], [out.x, *values])
        x = path.draw(mean, s_noise * std, now, then)
    return x


def sde_stage(
    x: Tensor, path: Path, nodes: Sequence[Node], noise: Tensor | float, begin: Point, last: Point, end: Point,
    kind: str, eta: float, s_noise: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The state at `end` of a step that started from x at `begin`, and the noise in that state.

    `noise` is the noise added between `begin` and `last`, the previous stage. It is propagated to `end`, and only the
    noise of the interval from `last` to `end` is drawn.
    """
    carry, gain, rate, _ = semilinear_sde(begin, end, kind, eta)
    noise_carry, _, _, std = semilinear_sde(last, end, kind, eta)
    lams, values = zip(*nodes, strict=True)
    weights = lagrange_integrals(lams, begin.lam, end.lam, rate=rate)
    mean = weighted_sum([carry, *(gain * w for w in weights)], [x, *values])
    state = path.draw(mean + noise_carry * noise, s_noise * std, last, end)
    return state, state - mean


def two_stage_sde(x: Tensor, path: Path, kind: str, eta: float, s_noise: float, r: float) -> Run:
    """A stage at lambda_t + r h, then a step with the constant (1 - 1/(2r)) f_t + 1/(2r) f_u, on one Brownian motion.

    Without noise this is DPM-Solver-2, also in a step out of alpha = 0.
    """
    check_noise(eta=eta, s_noise=s_noise)
    if not 0 < r <= 1:
        raise ValueError(f"r is the position of the stage in the step and must lie in (0, 1], not {r}")
    for now, then in path.steps:
        out = yield x, now
        if now.is_pure_noise and not (eta or then.is_clean):
            x, _ = yield from dpm_solver_2_step(out, then, path, kind, r)
            continue
        if now.is_pure_noise or then.is_clean:
            x = singular_step(out, path, now, then, kind, eta, s_noise)
            continue
        middle = path.between(now, then, r) if r < 1 else then
        x, first = out.x, predicted(out, kind)
        state, noise = sde_stage(x, path, [(now.lam, first)], 0.0, now, now, middle, kind, eta, s_noise)
        ahead = yield state, middle
        both = weighted_sum([1 - 0.5 / r, 0.5 / r], [first, predicted(ahead, kind)])
        x, _ = sde_stage(x, path, [(now.lam, both)], noise, now, middle, then, kind, eta, s_noise)
    return x
