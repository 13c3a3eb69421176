"""Prediction types of networks, and the 2 x 2 linear algebra that converts one type to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import name_of
from ..errors import ConversionError, UnknownNameError, nearest
from ..public import public
from .scalars import Scalar, any_zero, as_scalar, expand, scaled
from .sde import GaussianProcess

PREDICTIONS = ("epsilon", "sample", "v", "score", "flow")
"""epsilon; sample (x0); v = alpha eps - sigma x0 (Salimans & Ho 2022); score = -eps / sigma (Song et al. 2021);
flow = alpha' x0 + sigma' eps, the velocity in the process's own time (eps - x0 for rectified flow)."""


_ALIASES = {
    "eps": "epsilon",
    "noise": "epsilon",
    "x0": "sample",
    "denoised": "sample",
    "denoiser": "sample",
    "v_prediction": "v",
    "velocity": "flow",
}


def prediction_type(name: str) -> str:
    """Return the canonical name of a prediction type; names from diffusers and from papers are accepted.

    Raises:
        UnknownNameError: not a prediction type.
    """
    canonical = _ALIASES.get(name_of("prediction", name), name)
    if canonical not in PREDICTIONS:
        known = PREDICTIONS if nearest(name, PREDICTIONS) else _ALIASES
        raise UnknownNameError("prediction type", name, known, f" (known: {', '.join(PREDICTIONS)})")
    return canonical


Schedule = tuple[Scalar, Scalar, Scalar, Scalar]
"""(alpha, sigma, alpha', sigma') at one point."""


Row = tuple[Scalar, Scalar]
"""Coefficients (on x0, on eps)."""


def row(kind: str, schedule: Schedule) -> Row:
    """The coefficients (on x0, on eps) of a canonical prediction type."""
    alpha, sigma, d_alpha, d_sigma = schedule
    if kind == "epsilon":
        return 0.0, 1.0
    if kind == "sample":
        return 1.0, 0.0
    if kind == "v":
        return -sigma, alpha
    if kind == "flow":
        return d_alpha, d_sigma
    if any_zero(sigma):
        raise ConversionError("a prediction does not determine the score at sigma = 0")
    return 0.0, -1.0 / sigma


def linear_map(state: Row, source: Row, target: Row) -> Row:
    """Coefficients (a, b) with target = a state + b source, all three given as rows (on x0, on eps).

    Raises:
        ConversionError: state and source are linearly dependent, so they do not determine the target.
    """
    (alpha, sigma), (p, q), (r, s) = state, source, target
    determinant = alpha * q - sigma * p
    if determinant == 0.0 if isinstance(determinant, float) else any_zero(determinant):
        raise ConversionError(
            "this prediction cannot be converted here: at this time it carries the same information as the state "
            "(epsilon and score do not determine x0 where alpha = 0, nor x0 epsilon where sigma = 0); use a model with "
            "another prediction type (v, flow or x0 at alpha = 0), or a grid that does not reach this time"
        )
    return (r * q - s * p) / determinant, (alpha * s - sigma * r) / determinant


def combine(a: Scalar, x: Tensor, b: Scalar, y: Tensor) -> Tensor:
    """Return a x + b y, with coefficients for the batch or for each sample."""
    if isinstance(a, float) and isinstance(b, float):
        if a == 0.0:
            return y if b == 1.0 else scaled(y, b)
        return torch.add(x, y, alpha=b) if a == 1.0 else scaled(x, a).add_(y, alpha=b)
    return (expand(a, x) * x).add_(expand(b, x) * y)


@public
def weighted_sum(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """Return sum_j weights_j tensors_j, skipping weights of 0; always a new tensor."""
    if len(weights) > 1 and weights[0] == 1.0 and weights[1]:  # one pass for the first two
        total, done = torch.add(tensors[0], tensors[1], alpha=weights[1]), 2
    else:
        total, done = scaled(tensors[0], weights[0]), 1
    for weight, tensor in zip(weights[done:], tensors[done:], strict=True):
        if weight:
            total.add_(tensor, alpha=weight)
    return total


@public
def convert(value: Tensor, source: str, target: str, x: Tensor, process: GaussianProcess, t: Any) -> Tensor:
    """Convert a prediction of type `source` at state `x` and time `t` to type `target`.

    Args:
        value: the prediction, of x's shape (N, ...).
        x: the state at which the network was evaluated.
        t: one time, or one for each sample.

    Raises:
        ConversionError: the conversion is undefined at this alpha and sigma.
    """
    source, target, t = prediction_type(source), prediction_type(target), as_scalar(t)
    if source == target:
        return value
    with np.errstate(divide="ignore"):
        functions = process.alpha, process.sigma, process.d_alpha, process.d_sigma
        alpha, sigma, d_alpha, d_sigma = (as_scalar(f(t)) for f in functions)
    if "flow" in (source, target) and not np.all(np.isfinite(d_sigma)):
        raise ConversionError("the velocity is infinite here: sigma has infinite slope where it reaches 0")
    schedule = alpha, sigma, d_alpha, d_sigma
    a, b = linear_map((alpha, sigma), row(source, schedule), row(target, schedule))
    return combine(a, x, b, value)


def clean_map(kind: str, process: GaussianProcess, t: Scalar) -> tuple[Scalar, Scalar, Scalar]:
    """Return (a, b, c): x0 = a x + b prediction, and a change d of x0 at a fixed state changes the prediction by c d.

    All three are 0 if the prediction and x0 do not determine each other.
    """
    if kind == "sample":
        return 0.0, 1.0, 1.0
    with np.errstate(all="ignore"):
        alpha, sigma, d_alpha, d_sigma = (np.asarray(v, dtype=np.float64) for v in process.schedule(t))
        sigma = np.where(sigma == 0, np.nan, sigma)  # at sigma = 0, x0 is the state, whatever the prediction
        p, q = row(kind, (alpha, sigma, d_alpha, d_sigma))
        determinant = alpha * q - sigma * p
        found = [q / determinant, -sigma / determinant, -determinant / sigma]
    known = np.logical_and.reduce([np.isfinite(v) for v in found])
    a, b, c = (as_scalar(np.where(known, v, 0.0)) for v in found)
    return a, b, c
