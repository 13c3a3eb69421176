"""UniPC (Zhao et al. 2023): a multistep predictor in lambda, and a corrector of any predictor at no extra evaluation.

Both integrate the polynomial through several predictions in x_s = carry x_t + gain int e^{rate (u - u_s)} f(u) du
(`semilinear`): the paper's matching conditions say just that, whatever B(h), once there are three predictions. For two,
the paper sets the one coefficient to 1/2, and B(h) matters: h in bh1, the integral of the exponential in bh2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from sdesamplers import Path, Prediction, Run, Sampler, UsageError, hookimpl, sampler, samplers, weighted_sum
from sdesamplers.coefficients import apart, lagrange_integrals, semilinear

from ._shared import falling_orders

Variant = Literal["bh1", "bh2", "vary_coeff"]
Kind = Literal["data", "noise"]


def weights(nodes: Sequence[float], now: float, then: float, rate: float, variant: str) -> list[float]:
    """Weights of the predictions at `nodes`, one of which is `now`, for a step to `then`."""
    h = then - now
    if len(apart(nodes, h)) != 2 or len(nodes) != 2 or variant == "vary_coeff" or not rate:
        return lagrange_integrals(nodes, now, then, rate=rate)
    total = -math.expm1(-rate * h) / rate
    (other,) = (node for node in nodes if node != now)
    slope = (h if variant == "bh1" else total) * 0.5 * h / (other - now)
    return [total - slope if node == now else slope for node in nodes]


def orders(path: Path, order: int, lower_order_final: bool) -> list[int]:
    """The order of each step as far as the history reaches; on a path to the data it falls to 1 at its end."""
    if not 1 <= order <= 6:
        raise ValueError(f"order must lie between 1 and 6, not {order}")
    return falling_orders(path, order, lower_order_final)


@sampler("unip", order=2, needs=["marginals"], reference="Zhao et al. 2023 (UniPC), algorithm 2")
def unip(
    x: Tensor,
    path: Path,
    *,
    order: int = 2,
    variant: Variant = "bh2",
    prediction: Kind = "data",
    lower_order_final: bool = True,
) -> Run:
    """UniP-p, the predictor of UniPC, of order p = `order` (1 to 6).

        x_s = (sigma_s/sigma_t) x_t + alpha_s int e^{l - lambda_s} P(l) dl

    with P the polynomial through the last p values of x0, or likewise of eps (`prediction`). `variant` is how two
    values are weighted: "bh1", "bh2" (as DPM-Solver++(2M) does) or exactly, "vary_coeff". `lower_order_final` makes the
    last steps to the data of order ..., 3, 2, 1.
    """
    lams: list[Any] = []
    values: list[Tensor] = []
    for (now, then), size in zip(path.steps, orders(path, order, lower_order_final), strict=True):
        out = yield x, now
        if then.is_clean or now.is_pure_noise:
            x = out.step_to(then)  # lambda is infinite there, so this prediction is no node of later steps either
            continue
        lams = [now.lam, *lams][:order]
        values = [out.x0 if prediction == "data" else out.eps, *values][:order]
        carry, gain, rate = semilinear(now, then, prediction)
        shares = weights(lams[:size], now.lam, then.lam, rate, variant)
        x = weighted_sum([carry, *(gain * w for w in shares)], [out.x, *values[:size]])
    return x


OFF_GRID = "this predictor asks the model elsewhere than once at each point of the grid, so it cannot be corrected"


def corrected(run: Run, path: Path, sizes: Sequence[int], variant: str, prediction: str) -> Run:
    """Relay a predictor's requests; correct each state by the prediction made there and let it go on from that.

    x_s is integrated anew from the last corrected state through the prediction at s and the `sizes[k]` before it. The
    predictor is told the prediction that was made, at the corrected state. What a callback adds to a state is kept.
    """
    lams: list[Any] = []
    values: list[Tensor] = []
    longest = max(sizes)
    out = yield next(run)
    for (now, then), size in zip(path.steps, sizes, strict=True):
        kind = "data" if now.is_pure_noise else prediction
        x, value = out.x, out.x0 if kind == "data" else out.eps
        try:
            state, point = run.send(out)
        except StopIteration as stop:
            return stop.value
        if point is not then:
            raise UsageError(OFF_GRID)
        carry, gain, rate = semilinear(now, then, kind)
        if now.is_pure_noise:  # in alpha/sigma, which is 0 here and lambda infinite
            nodes, past = [then.alpha / then.sigma, 0.0], [value]
        else:
            lams, values = [now.lam, *lams][:longest], [value, *values][:longest]
            nodes, past = [then.lam, *lams[:size]], values[:size]
        share, *shares = (gain * w for w in weights(nodes, nodes[1], nodes[0], rate, variant))
        rest = weighted_sum([carry, *shares, -1.0], [x, *past, state])
        out = yield state, then
        fresh = out.x0 if kind == "data" else out.eps
        out = Prediction(
            torch.add(out.x + rest, fresh, alpha=share), then, fresh, "sample" if kind == "data" else "epsilon"
        )
    raise UsageError(OFF_GRID)


@sampler("unipc", order=3, needs=["marginals"], reference="Zhao et al. 2023 (UniPC), algorithms 1 and 2, theorem 3.1")
def unipc(
    x: Tensor,
    path: Path,
    *,
    order: int = 2,
    variant: Variant = "bh2",
    prediction: Kind = "data",
    lower_order_final: bool = True,
) -> Run:
    """UniPC-p: UniP-p corrected by UniC-p, of order p + 1 with p = `order` (1 to 6).

        x_s = (sigma_s/sigma_t) x_t + alpha_s int e^{l - lambda_s} P(l) dl

    with P, in UniC-p, the polynomial through the x0 that is predicted at the uncorrected x_s and the last p, or
    likewise for eps (`prediction`). The next step uses it too. `variant` ("bh1", "bh2", "vary_coeff") and
    `lower_order_final` are as in `unip`.
    """
    sizes = orders(path, order, lower_order_final)
    options = {"order": order, "variant": variant, "prediction": prediction, "lower_order_final": lower_order_final}
    return (yield from corrected(unip(x, path, **options), path, sizes, variant, prediction))


SELF_CORRECTING = {"abm", "dpm-solver-v3", "unic", "unipc"}
"""Samplers that correct a state by the evaluation made there themselves."""
OFF_GRID_EVALUATIONS = {"dpm-fast", "flow-map-euler", "plms", "pndm"}
"""Samplers of one evaluation a step that make some of them inside a step, or ask for a mean over it."""


@sampler("unic", order=3, needs=["marginals"], reference="Zhao et al. 2023 (UniPC), algorithm 1")
def unic(
    x: Tensor,
    path: Path,
    *,
    predictor: str = "dpmpp-2m",
    order: int = 2,
    variant: Variant = "bh2",
    prediction: Kind = "data",
    lower_order_final: bool = True,
) -> Run:
    """UniC-p, the corrector of UniPC, on any deterministic `predictor` with one evaluation a step.

        x_s = (sigma_s/sigma_t) x_t + alpha_s int e^{l - lambda_s} P(l) dl

    with P through the x0 that is predicted at the uncorrected x_s and the last p, or likewise for eps. It raises a
    predictor of order p = `order` (1 to 6) to p + 1 at no further evaluation. Its evaluations must all be at steps'
    ends (as those of euler, ddim and most multistep methods are; dpm-fast's are not), and it must not correct its
    states itself. `variant`, `prediction` and `lower_order_final` are as in `unipc`; the predictor runs with its
    default options.
    """
    registered = samplers()
    plain = {
        n for n, s in registered.items() if s.evaluations == 1 and not s.stochastic and set(s.needs) <= {"marginals"}
    }
    fit = sorted(plain - SELF_CORRECTING - OFF_GRID_EVALUATIONS)
    if predictor not in fit:
        raise ValueError(
            "predictor must be a deterministic sampler with one evaluation a step, at its end, and no corrector of its "
            f"own, not {predictor!r}: {', '.join(fit)}"
        )
    sizes = orders(path, order, lower_order_final)
    return (yield from corrected(registered[predictor](x, path), path, sizes, variant, prediction))


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [unip, unipc, unic]
