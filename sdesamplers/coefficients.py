"""Numerical coefficients that samplers share, in float64: phi functions, Lagrange weights, integrals of interpolants.

A linear multistep method integrates the polynomial through its stored evaluations; an exponential one integrates it
against e^{rate u}. `lagrange_integrals` computes both. Nodes are plain numbers in the time variable that the method
interpolates in, and may be spaced unevenly.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, overload

import numpy as np

from .path.points import Point
from .path.points import added_noise_fraction as added_noise_fraction

_RADIUS = 8.0
"""Up to this |z| moments are summed by quadrature, whose terms all have the same sign; beyond it their recurrence is
stable."""
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)


def phi(k: int, z: float) -> float:
    """phi_0(z) = e^z, phi_k(z) = int_0^1 e^{(1-u) z} u^{k-1} / (k-1)! du (Hochbruck & Ostermann 2010, eq. 2.10).

    phi_1(z) = (e^z - 1)/z and phi_{k+1}(z) = (phi_k(z) - 1/k!)/z, without their cancellation near 0.
    """
    return math.exp(z) if k == 0 else _moments(-z, k)[k - 1] / math.factorial(k - 1)


@overload
def lagrange(nodes: Sequence[float], at: float) -> list[float]: ...


@overload
def lagrange(nodes: Sequence[float], at: np.ndarray) -> list[np.ndarray]: ...


def lagrange(nodes: Sequence[float], at: Any) -> list[Any]:
    """Values at `at` of the Lagrange polynomials of `nodes`: the weights of the interpolation at this place."""
    return [
        math.prod((at - other) / (node - other) for m, other in enumerate(nodes) if m != j)
        for j, node in enumerate(nodes)
    ]


def derivative_weights(nodes: Sequence[float], at: float) -> np.ndarray:
    """W with f^(k)(at) = sum_j W[k, j] f(nodes[j]), k = 0 .. n-1, exact for polynomials of degree below n."""
    distance = np.asarray(nodes, dtype=np.float64) - at
    unit = np.abs(distance).max() or 1.0
    powers = np.vander(distance / unit, increasing=True)
    scale = np.array([math.factorial(k) / unit**k for k in range(len(nodes))])
    return np.asarray(scale[:, None] * np.linalg.inv(powers))


def lagrange_integrals(nodes: Sequence[float], start: float, end: float, *, rate: float = 0.0) -> list[float]:
    """w_j = int_start^end e^{rate (u - end)} l_j(u) du, with l_j the Lagrange polynomials of `nodes`.

    rate = 0 gives the Adams weights. In lambda, rate = 1 gives the exponential weights of data prediction and rate = -1
    those of noise prediction. A node that nearly coincides with one before it in `nodes` has weight 0 (`apart`).
    """
    return list(_lagrange_integrals(tuple(nodes), start, end, rate))


NEAREST = 0.01
"""The smallest distance of two nodes, in steps, at which their difference still estimates the slope over a step."""


def apart(nodes: Sequence[float], h: float) -> list[int]:
    """Indices of the nodes to use for a step of length h: each lies `NEAREST` steps or more from all before it.

    The weights of two nodes d apart are of size h/d. The stored evaluations were made at states slightly off the ODE's
    exact solution, and as d goes to 0 this error would be amplified without bound. The newest node comes first.
    """
    kept: list[int] = []
    for j, node in enumerate(nodes):
        if all(abs(node - nodes[k]) >= NEAREST * abs(h) for k in kept):
            kept.append(j)
    return kept


@lru_cache(4096)  # the batches of a run, and the runs of a scheduler, use the same grid
def _lagrange_integrals(nodes: tuple[float, ...], start: float, end: float, rate: float) -> tuple[float, ...]:
    h = end - start
    kept = apart(nodes, h)
    u = (np.asarray(nodes, dtype=np.float64)[kept] - start) / h
    weights = dict(zip(kept, np.linalg.solve(np.vander(u, increasing=True).T, _moments(rate * h, len(u))), strict=True))
    return tuple(h * float(weights.get(j, 0.0)) for j in range(len(nodes)))


def quadrature(start: float, end: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights that integrate a smooth function from `start` to `end` (32-point Gauss-Legendre)."""
    half = 0.5 * (end - start)
    return start + half * (_NODES + 1), half * _WEIGHTS


def semilinear(now: Point[Any], then: Point[Any], prediction: str) -> tuple[Any, Any, float]:
    """(carry, gain, rate) of the ODE's exact solution x_s = carry x_t + gain int e^{rate (u - u_s)} f(u) du.

    "data": f = x0 and u = lambda (Lu et al. 2022b, eq. 8); "noise": f = eps and u = lambda (Lu et al. 2022, eq. 3.4).
    From alpha = 0, where lambda is infinite, f = x0 and u = alpha/sigma for both. It holds in all coordinates.
    """
    if now.is_pure_noise:
        return then.sigma / now.sigma, then.sigma, 0.0
    if prediction == "data":
        return then.sigma / now.sigma, then.alpha, 1.0
    return then.alpha / now.alpha, -then.sigma, -1.0


def semilinear_sde(now: Point, then: Point, prediction: str, tau: float) -> tuple[float, float, float, float]:
    """(carry, gain, rate, std) of the SDE with tau times the reverse SDE's noise and the same marginals as the ODE.

    x_s = carry x_t + gain int e^{rate (lambda - lambda_s)} f dlambda + std z, exactly. "data": f = x0 (Xue et al. 2023;
    tau = 1: Lu et al. 2022b, section 5); "noise": f = eps (tau = 1: Gonzalez et al. 2023). tau = 0 is
    `semilinear`. `carry` is also the factor from t to s of noise added before t. Both ends must be regular.
    """
    h = then.lam - now.lam
    if prediction == "data":
        decay = math.exp(-(tau**2) * h)
        std = then.sigma * math.sqrt(-math.expm1(-2 * tau**2 * h))
        return then.sigma / now.sigma * decay, (1 + tau**2) * then.alpha, 1 + tau**2, std
    return then.alpha / now.alpha, -(1 + tau**2) * then.sigma, -1.0, tau * then.sigma * math.sqrt(math.expm1(2 * h))


def constant_integral(h: Any, rate: float) -> Any:
    """int_0^h e^{rate (u - h)} du: the weight of a prediction that does not change; h may be an array."""
    return -np.expm1(-rate * h) / rate if rate else h


def midpoint_integrals(h: Any, rate: float, r: float) -> list[Any]:
    """Weights of predictions at 0 and r h for int_0^h e^{rate (u - h)} f du, with f replaced by the value at the middle
    of the step of the line through them: the rule of DPM-Solver-2 and DPM-Solver++(2M). r is negative in a multistep
    method; there a prediction that nearly coincides with the current one has weight 0 (`apart`)."""
    total = constant_integral(h, rate)
    if -NEAREST < r < 0:
        return [total, 0.0]
    return [total * (1 - 0.5 / r), total * (0.5 / r)]


def octave_parts(h: np.ndarray, parts: int = 4) -> np.ndarray:
    """Step sizes of either sign, rounded towards 0 to powers of 2^(1/parts).

    The last bits of a network's output for a sample depend on the rest of the batch. Adaptive samplers round with this
    function and with `ROUNDING`, so that these bits do not change their steps and thereby the sample.
    """
    return np.copysign(2.0 ** (np.floor(parts * np.log2(np.abs(h))) / parts), h)


ROUNDING = 1e-3
"""Errors below this many tolerances cannot be distinguished from rounding and count as this much."""


def __getattr__(name: str) -> Any:
    """Former names, for plugins."""
    if name != "fresh_share":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("fresh_share is now called added_noise_fraction", DeprecationWarning, stacklevel=2)
    return added_noise_fraction


def _moments(z: float, count: int) -> list[float]:
    """int_0^1 e^{z (u - 1)} u^k du for k < count."""
    if abs(z) <= _RADIUS:
        at, weights = quadrature(0.0, 1.0)
        values = weights * np.exp(z * (at - 1))
        return [float(np.sum(values * at**k)) for k in range(count)]
    moments = [-math.expm1(-z) / z]
    for k in range(1, count):
        moments.append((1 - k * moments[-1]) / z)
    return moments
