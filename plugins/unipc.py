"""UniPC (Zhao et al. 2023): a multistep predictor in lambda, and a corrector for any predictor, at no extra evaluation.

Both integrate the polynomial through several predictions in x_s = carry x_t + gain int e^{rate (u - u_s)} f(u) du
(`semilinear`): from three predictions on, the paper's matching conditions are equivalent to this for any B(h). For two
predictions the paper sets the only coefficient to 1/2, and the result depends on B(h): h in bh1, the integral of the
exponential in bh2.
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
    """Weights of the predictions at `nodes`, which include `now`, for a step to `then`."""
    h = then - now
    if len(apart(nodes, h)) != 2 or len(nodes) != 2 or variant == "vary_coeff" or not rate:
        return lagrange_integrals(nodes, now, then, rate=rate)
    total = -math.expm1(-rate * h) / rate
    (other,) = (node for node in nodes if node != now)
    slope = (h if variant == "bh1" else total) * 0.5 * h / (other - now)
    return [total - slope if node == now else slope for node in nodes]


def orders(path: Path, order: int, lower_order_final: bool) -> list[int]:
    """The order of each step; with `lower_order_final` the last ones are ..., 3, 2, 1 if the path ends at the data."""
    if not 1 <= order <= 6:
        raise ValueError(f"order must be from 1 to 6, not {order}")
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
    """UniP-p, the multistep predictor of UniPC.

        x_s = (sigma_s/sigma_t) x_t + alpha_s int e^{l - lambda_s} P(l) dl

    with P the polynomial through the last p predictions of x0; in noise prediction likewise with eps.

    Args:
        order: p, the number of predictions and the order of the method, 1 to 6.
        variant: weights for two predictions: "bh1", "bh2" (those of DPM-Solver++(2M)) or "vary_coeff" (exact).
        prediction: "data" (x0) or "noise" (eps).
        lower_order_final: make the last steps to the data of order ..., 3, 2, 1.
    """
    lams: list[Any] = []
    values: list[Tensor] = []
    for (now, then), size in zip(path.steps, orders(path, order, lower_order_final), strict=True):
        out = yield x, now
        if then.is_clean or now.is_pure_noise:
            # lambda is infinite here, so this prediction cannot be an interpolation node of later steps either
            x = out.step_to(then)
            continue
        lams = [now.lam, *lams][:order]
        values = [out.x0 if prediction == "data" else out.eps, *values][:order]
        carry, gain, rate = semilinear(now, then, prediction)
        integrals = weights(lams[:size], now.lam, then.lam, rate, variant)
        x = weighted_sum([carry, *(gain * w for w in integrals)], [out.x, *values[:size]])
    return x


OFF_GRID = "this predictor does not evaluate the model exactly once at each grid point, so it cannot be corrected"


def corrected(run: Run, path: Path, sizes: Sequence[int], variant: str, prediction: str) -> Run:
    """Run a predictor, correct each of its states by the prediction made there, and continue from the corrected state.

    The corrected x_s is integrated from the last corrected state with the prediction at s and the `sizes[k]`
    predictions before it. The predictor receives that prediction together with the corrected state. Changes that a
    callback makes to a state are kept.
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
        if now.is_pure_noise:  # use alpha/sigma, which is 0 here, because lambda is infinite
            nodes, past = [then.alpha / then.sigma, 0.0], [value]
        else:
            lams, values = [now.lam, *lams][:longest], [value, *values][:longest]
            nodes, past = [then.lam, *lams[:size]], values[:size]
        weight, *past_weights = (gain * w for w in weights(nodes, nodes[1], nodes[0], rate, variant))
        rest = weighted_sum([carry, *past_weights, -1.0], [x, *past, state])
        out = yield state, then
        latest = out.x0 if kind == "data" else out.eps
        out = Prediction(
            torch.add(out.x + rest, latest, alpha=weight), then, latest, "sample" if kind == "data" else "epsilon"
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
    """UniPC-p: the predictor UniP-p with the corrector UniC-p, of order p + 1.

        x_s = (sigma_s/sigma_t) x_t + alpha_s int e^{l - lambda_s} P(l) dl

    with P, in the corrector, the polynomial through the last p predictions of x0 and the one at the uncorrected x_s;
    in noise prediction likewise with eps. The next step reuses the prediction at the uncorrected x_s.

    Args:
        order: p, 1 to 6.
        variant: weights for two predictions: "bh1", "bh2" (those of DPM-Solver++(2M)) or "vary_coeff" (exact).
        prediction: "data" (x0) or "noise" (eps).
        lower_order_final: make the last steps to the data of order ..., 3, 2, 1.
    """
    sizes = orders(path, order, lower_order_final)
    options = {"order": order, "variant": variant, "prediction": prediction, "lower_order_final": lower_order_final}
    return (yield from corrected(unip(x, path, **options), path, sizes, variant, prediction))


SELF_CORRECTING = {"abm", "dpm-solver-v3", "unic", "unipc"}
"""Samplers that have a corrector of this kind already."""
OFF_GRID_EVALUATIONS = {"dpm-fast", "flow-map-euler", "plms", "pndm"}
"""Samplers with one evaluation per step, some of which lie inside a step or are means over it."""


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
    """UniC-p, the corrector of UniPC, with another deterministic sampler as the predictor.

        x_s = (sigma_s/sigma_t) x_t + alpha_s int e^{l - lambda_s} P(l) dl

    with P the polynomial through the last p predictions of x0 and the one at the uncorrected x_s; in noise prediction
    likewise with eps. It raises the order of a predictor of order p to p + 1 at no extra evaluation.

    Args:
        predictor: name of a deterministic sampler with one evaluation per step, at a grid point (such as euler, ddim
            and most multistep methods; not dpm-fast), and without a corrector. It runs with its default options.
        order: p, 1 to 6.
        variant: weights for two predictions: "bh1", "bh2" (those of DPM-Solver++(2M)) or "vary_coeff" (exact).
        prediction: "data" (x0) or "noise" (eps), the prediction in P.
        lower_order_final: make the last steps to the data of order ..., 3, 2, 1.
    """
    registered = samplers()
    plain = {
        n for n, s in registered.items() if s.evaluations == 1 and not s.stochastic and set(s.needs) <= {"marginals"}
    }
    valid = sorted(plain - SELF_CORRECTING - OFF_GRID_EVALUATIONS)
    if predictor not in valid:
        raise ValueError(
            "predictor must be a deterministic sampler with one evaluation per step, at a grid point, and without a "
            f"corrector, not {predictor!r}; valid are {', '.join(valid)}"
        )
    sizes = orders(path, order, lower_order_final)
    return (yield from corrected(registered[predictor](x, path), path, sizes, variant, prediction))


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [unip, unipc, unic]
