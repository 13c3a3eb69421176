"""Empirical model statistics of DPM-Solver-v3 (Zheng et al. 2023): estimated on a model, stored in a file.

With y = x/alpha and lambda = log(alpha/sigma) the probability-flow ODE is dy/dlambda = -u, u = e^{-lambda} eps. The
paper splits it with three numbers for each coordinate and lambda. l removes the linear part of u, f = u - l y; s and
b remove the part of f's change along the ODE that is linear in f, df/dlambda ~ s f + b. The remainder g hardly varies:

    y_t = e^{-(L_t - L_s)} [y_s - int_s^t e^{(L + S)(lambda) - (L + S)(s)} (g(lambda) + B(lambda)) dlambda],
    f(lambda) = e^{S(lambda) - S(s)} (g(lambda) + B(lambda)),   B(lambda) = int_s^lambda e^{-(S(r) - S(s))} b(r) dr,

with L and S the integrals of l and s. l = 1, s = b = 0 is data prediction (DPM-Solver++), l = 0, s = -1, b = 0 noise
prediction (DPM-Solver). The statistics are the least-squares choice of all three.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from ..categories import AccuracyWarning
from ..checks import warn, whole
from ..coefficients import apart, derivative_weights, lagrange_integrals
from ..errors import ModelError, UsageError
from ..io.files import write
from ..models.base import Model
from ..models.conditions import take_rows
from ..models.running import running
from ..path.noise import AUXILIARY, START, NormalSource
from ..path.path import Path
from ..processes.coordinates import view
from ..processes.predictions import weighted_sum
from ..sampling.loop import Evaluator

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
STEEP = 20.0
"""A larger s results from a regression over too few trajectories: e^(s h) is a factor of the solver's weights."""
LOWEST = -8.0
"""Statistics begin at this lambda if the process begins lower: below it there is almost no signal (e^-8)."""


class Step(NamedTuple):
    """Coefficients of y_t = decay y_s - sum_j weights[j] f_j + offset, with an entry for each coordinate."""

    decay: np.ndarray
    weights: list[np.ndarray]
    offset: np.ndarray


@dataclass(frozen=True)
class Statistics:
    """l, s and b at a number of values of lambda, interpolated by cubic splines.

    Attributes:
        lam: (K,), increasing.
        l, s, b: (K, *shape) for a model's sample shape, or any shape that broadcasts with it.
        about: how they were computed; stored in the file.
    """

    lam: np.ndarray
    l: np.ndarray  # noqa: E741 - the paper's name
    s: np.ndarray
    b: np.ndarray
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def constant(cls, l: float = 1.0, s: float = 0.0, b: float = 0.0) -> Statistics:  # noqa: E741
        """The same numbers at every lambda; with the default values the solver is DPM-Solver++."""
        ones = np.ones((5, 1))
        return cls(np.linspace(-60.0, 60.0, 5), l * ones, s * ones, b * ones)

    @cached_property
    def _curves(self) -> tuple[Any, Any, Any, Any]:
        """l, L, S and the integral of e^{-S} b, as functions of lambda."""
        from scipy.interpolate import CubicSpline  # scipy takes a second to import

        l, s = CubicSpline(self.lam, self.l), CubicSpline(self.lam, self.s)  # noqa: E741
        rise = s.antiderivative()
        shift = CubicSpline(self.lam, np.exp(-rise(self.lam)) * self.b)
        return l, l.antiderivative(), rise, shift.antiderivative()

    def linear(self, lam: float) -> np.ndarray:
        """l at one lambda."""
        return np.asarray(self._curves[0](lam))

    def check(self, lams: Sequence[float], shape: Sequence[int]) -> None:
        """Raise unless the statistics cover these values of lambda and fit samples of this shape."""
        low, high = float(self.lam[0]), float(self.lam[-1])
        outside = [lam for lam in lams if not low - 1e-6 <= lam <= high + 1e-6]
        if outside:
            raise UsageError(
                f"the statistics cover log(alpha/sigma) from {low:.4g} to {high:.4g}, and the grid contains "
                f"{outside[0]:.4g}; compute them over a wider range or choose another grid"
            )
        own = self.l.shape[1:]
        if own != (1,) and own != tuple(shape):
            raise UsageError(f"the statistics are for samples of shape {own}, not {tuple(shape)}")

    def step(self, nodes: Sequence[float], start: float, end: float, pseudo: bool = False) -> Step:
        """The step of y from `start` to `end` if g is the polynomial through its values at `nodes`, nearest first.

        With `pseudo`, the k-th derivative of g at the first node is k! times the divided difference of the first k + 1
        nodes (the paper's pseudo-order), not that of the polynomial through all of them.
        """
        _, big_l, rise, shift = self._curves
        kept = apart(nodes, end - start)
        given, nodes = len(nodes), [nodes[j] for j in kept]
        h, base_l, base_s, base_b = end - start, big_l(start), rise(start), shift(start)
        at = start + h * 0.5 * (_NODES + 1)
        grow = np.exp(big_l(at) - base_l + rise(at) - base_s)
        measure = 0.5 * h * _WEIGHTS

        def drift(lam: Any) -> np.ndarray:  # B in the module's docstring
            return np.asarray(np.exp(base_s) * (shift(lam) - base_b))

        center = nodes[0] if pseudo else start
        powers = divided_differences(nodes) if pseudo else derivative_weights(nodes, center)
        powers = powers if pseudo else powers / np.array([math.factorial(k) for k in range(len(nodes))])[:, None]
        moments = [np.tensordot(measure * (at - center) ** k, grow, 1) for k in range(len(nodes))]
        decay = np.exp(base_l - big_l(end))
        offset = -np.tensordot(measure, grow * drift(at), 1)
        weights = [0.0 * decay] * given
        for j, node in enumerate(nodes):
            on_g = sum(powers[k, j] * moment for k, moment in enumerate(moments))
            weights[kept[j]] = decay * on_g * np.exp(base_s - rise(node))
            offset = offset + on_g * drift(node)
        return Step(decay, weights, decay * offset)

    def save(self, path: str | FilePath) -> FilePath:
        """Write a safetensors file."""
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in ("lam", "l", "s", "b")}
        about = {"sdesamplers": json.dumps(self.about, default=str)}
        return write(FilePath(path), lambda place: save_file(tensors, place, about))

    @classmethod
    def load(cls, path: str | FilePath) -> Statistics:
        """Read a file written by `save`.

        Raises:
            UsageError: there is no such file.
            ModelError: it is not a file of model statistics.
        """
        try:
            with safe_open(path, "np") as file:
                about = json.loads((file.metadata() or {}).get("sdesamplers", "{}"))
                lam, l, s, b = (file.get_tensor(name).astype(np.float64) for name in ("lam", "l", "s", "b"))  # noqa: E741
                return cls(lam, l, s, b, about)
        except FileNotFoundError:
            raise UsageError(f"{path}: no such file; make one with `sdesamplers statistics MODEL --out FILE`") from None
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{path} is not a file of model statistics: {error}") from None


def divided_differences(nodes: Sequence[float]) -> np.ndarray:
    """W with f[nodes 0 .. k] = sum_j W[k, j] f(nodes[j])."""
    count = len(nodes)
    table, rows = np.eye(count), [np.eye(count)[0]]
    for width in range(1, count):
        gaps = np.array([nodes[j + width] - nodes[j] for j in range(count - width)])
        table = (table[1:] - table[:-1]) / gaps[:, None]
        rows.append(table[0])
    return np.array(rows)


def compute_statistics(
    model: Model,
    *,
    samples: int = 64,
    nodes: int = 60,
    batch_size: int = 16,
    seed: int = 0,
    condition: Any = None,
    guidance_scale: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """Estimate l, s and b of a model on its own ODE trajectories (Zheng et al. 2023, section 3.1 and appendix C).

    l is the mean of the diagonal of sigma d(eps)/dx, by Hutchinson's estimator with signs: v * (J^T v), one backward
    pass. s and b come from regressions of df/dlambda on f, coordinate by coordinate; the derivative of x0 along a
    trajectory is that of a cubic spline through its nodes. The cost is `nodes` evaluations and `nodes` backward passes
    per sample.

    Args:
        model: a differentiable model on a Gaussian process.
        samples: number of trajectories. 64 give l to a few per cent; s and b need more, especially in low dimensions.
        nodes: number of values of lambda, evenly spaced from the process's first (at least -8) to its last.
        batch_size: trajectories per batch.
        seed, condition, guidance_scale: as in `sample`; statistics are valid only for their guidance scale.
        progress: called with (nodes done, total nodes).
    """
    samples, nodes = whole("samples", samples, 2), whole("nodes", nodes, 8)
    batch_size = whole("batch_size", batch_size)
    native = model.gaussian
    ends = [float(0.5 * native.log_snr(t)) for t in (native.t_max, native.t_min)]
    lam = np.linspace(max(ends[0], LOWEST), ends[1], nodes)
    path = Path(view(native), [])
    points = [path.at_lambda(value) for value in lam]
    if lam[0] == ends[0]:
        points[0] = path.at(native.t_max)
    spread = model.condition_for(condition, samples)
    diagonal = np.zeros((nodes, *model.shape))
    sums = np.zeros((8, nodes, *model.shape))
    batches = [range(first, min(first + batch_size, samples)) for first in range(0, samples, batch_size)]
    for number, rows in enumerate(batches):
        evaluate = Evaluator(
            model,
            len(rows),
            f"statistics of {model.name}",
            condition=take_rows(spread, slice(rows.start, rows.stop)),
            guidance_scale=guidance_scale,
        )
        source = NormalSource(seed, rows, model.shape)
        dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
        y = source.draw(START).to(model.device, dtype) * points[0].ratio
        states, data = [], []
        with running(model, key=(seed, rows.start)):
            for k, point in enumerate(points):
                signs = source.draw(AUXILIARY, k).to(model.device, dtype).sign()
                with torch.enable_grad():
                    x = (point.alpha * y).detach().requires_grad_()
                    eps = evaluate(x, point).eps
                    (pulled,) = torch.autograd.grad((eps * signs).sum(), x)
                diagonal[k] += (point.sigma * signs * pulled).double().sum(0).cpu().numpy()
                states.append(y)
                data.append(torch.add(y, eps.detach(), alpha=-point.ratio))
                if k + 1 < nodes:
                    last = list(range(k, max(k - 3, -1), -1))
                    weights = lagrange_integrals([lam[j] for j in last], lam[k], lam[k + 1], rate=1.0)
                    y = torch.add(
                        weighted_sum(weights, [data[j] for j in last]), y, alpha=math.exp(lam[k] - lam[k + 1])
                    )
                if progress is not None:
                    progress(number * nodes + k + 1, len(batches) * nodes)
        for j in range(len(rows)):
            trajectory = (torch.stack([part[j] for part in parts]).double().cpu().numpy() for parts in (states, data))
            sums += products(lam, *trajectory)
    about = {"model": model.name, "revision": model.revision, "samples": samples, "nodes": nodes, "seed": seed}
    found = from_moments(lam, diagonal / samples, sums / samples, {**about, "guidance_scale": guidance_scale})
    if (steepest := float(np.abs(found.s).max())) > STEEP:
        warn(
            f"{samples} samples at {nodes} nodes are too few for these statistics: s is up to {steepest:.3g}, and "
            f"above {STEEP:g} the solver is likely to overflow; use more of both",
            AccuracyWarning,
        )
    return found


def products(lam: np.ndarray, y: np.ndarray, data: np.ndarray) -> np.ndarray:
    """d, y, d', d^2, d y, y^2, d d', y d' along one trajectory, (8, K, *shape), where d is the prediction of x0.

    d = y - u keeps the scale of the data at high noise, where u and y grow like e^{-lambda}.
    """
    from scipy.interpolate import CubicSpline  # scipy takes a second to import

    slope = CubicSpline(lam, data)(lam, 1)
    return np.stack([data, y, slope, data * data, data * y, y * y, data * slope, y * slope])


RIDGE = 1e-4
"""If f's variance is below this share of the data's mean square (at high noise, for Gaussian data, in constant pixels),
s tends to 0 and b alone remains. A regression on such a small variation may be correct but is useless: on a mixture it
gave growth rates of 2.5 over wide steps at high noise, and the error of six steps of order 3 was eight times larger."""


def from_moments(lam: np.ndarray, l: np.ndarray, moments: np.ndarray, about: dict[str, Any]) -> Statistics:  # noqa: E741
    """s and b from the means of `products`: f = m y - d and df/dlambda = (m' - m) y + m d - d', where m = 1 - l."""
    from scipy.interpolate import CubicSpline  # scipy takes a second to import

    m = 1 - l
    k = CubicSpline(lam, m)(lam, 1) - m
    d, y, slope, dd, dy, yy, d_slope, y_slope = moments
    f, df = m * y - d, k * y + m * d - slope
    square = m * m * yy - 2 * m * dy + dd
    cross = m * k * yy + (m * m - k) * dy - m * y_slope - m * dd + d_slope
    variance, covariance = square - f * f, cross - f * df
    s = covariance / (np.maximum(variance, 0.0) + RIDGE * dd[-1].mean())
    return Statistics(lam, l, s, df - s * f, about)


def to_tensor(values: np.ndarray, like: Tensor) -> Tensor:
    """An array as a tensor of `like`'s dtype on its device."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.device, like.dtype, non_blocking=True)
