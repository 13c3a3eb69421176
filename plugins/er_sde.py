"""ER-SDE-Solvers: a family of reverse SDEs whose noise is a function of sigma/alpha, solved in data prediction."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from sdesamplers import Path, Run, Sampler, hookimpl, sampler, weighted_sum
from sdesamplers.coefficients import apart

# phi(r)/r for the noise scale functions phi of Cui et al. 2023, appendix A.8, with r = sigma/alpha. The noise is
# sqrt(d log(phi/r) / d log r) times that of the reverse SDE, so phi/r must increase, as er-sde-4's does up to r = 1000.
NOISE_SCALES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ode": lambda r: np.ones_like(r),
    "sde": lambda r: r,
    "er-sde-1": lambda r: np.exp(-1 / r) + 10,
    "er-sde-2": lambda r: r**0.5,
    "er-sde-3": lambda r: r**1.5,
    "er-sde-4": lambda r: np.minimum(r, 1000.0) ** -0.1 * np.log10(1 + 100 * np.minimum(r, 1000.0) ** 1.5),
    "er-sde-5": lambda r: np.exp(np.minimum(r, 1e9) ** 0.3) + 10,
}
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)


def taylor_integrals(scale: Callable[[np.ndarray], np.ndarray], begin: float, end: float, count: int) -> np.ndarray:
    """m_k = int_end^begin phi(end) phi'(r) / phi(r)^2 (r - begin)^k dr for k < count, the weights of x0's derivatives.

    Integrated by parts, m_k = (end - begin)^k - [k = 0] phi(end)/phi(begin)
    + k phi(end) int_end^begin (r - begin)^(k-1) / phi dr. The last integral is computed over log r, in which the
    integrand is smooth.
    """
    log = math.log(end) + 0.5 * (_NODES + 1) * math.log(begin / end)
    r = np.exp(log)
    final = float(scale(np.array(end)))
    share = 0.5 * _WEIGHTS * math.log(begin / end) * end * final / scale(r)
    moments = [1 - end * final / (begin * float(scale(np.array(begin))))]
    for k in range(1, count):
        moments.append((end - begin) ** k + k * float(np.sum(share * (r - begin) ** (k - 1))))
    return np.array(moments)


@sampler(
    "er-sde",
    order=2,
    stochastic=True,
    noiseless={"noise_scale": "ode"},
    needs=("marginals",),
    reference="Cui et al. 2023, ER-SDE-Solver-1, 2 and 3",
)
def er_sde(
    x: Tensor,
    path: Path,
    *,
    order: int = 2,
    noise_scale: Literal["ode", "sde", "er-sde-1", "er-sde-2", "er-sde-3", "er-sde-4", "er-sde-5"] = "er-sde-5",
) -> Run:
    """ER-SDE-Solver: multistep solver of an extended reverse-time SDE.

    With r = sigma/alpha,

        x_s = (alpha_s/alpha_t) (phi_s/phi_t) x_t + alpha_s sum_k m_k x0^(k) / k!
              + alpha_s sqrt(r_s^2 - r_t^2 (phi_s/phi_t)^2) z

    where x0^(k) are the derivatives at r_t of the polynomial in r through the last `order` predictions, and m_k exact
    integrals. (The published order 3 uses the mean slope since the last prediction in place of the slope at r_t, and is
    of second order.)

    Args:
        order: number of predictions in the polynomial, 1 to 3.
        noise_scale: phi(r). "ode" is r, without noise (DDIM for order 1); "sde" is r^2 (DDPM for order 1); "er-sde-1"
            to "er-sde-5" are the paper's ER SDE 1 to 5, the last being r (e^{r^0.3} + 10).
    """
    if not 1 <= order <= 3:
        raise ValueError(f"order must be 1, 2 or 3, not {order}")
    scale = NOISE_SCALES[noise_scale]
    history: list[tuple[float, Tensor]] = []
    for now, then in path.steps:
        out = yield x, now
        kept = 0.0 if then.is_clean else min(1.0, float(scale(np.array(then.ratio)) / scale(np.array(now.ratio))))
        std = then.sigma * math.sqrt((1 - kept) * (1 + kept))
        if now.is_pure_noise or then.is_clean:  # the limits of the first-order step
            x = path.draw(out.compose(then.alpha, kept * then.sigma), std, now, then)
            continue
        history = [(now.ratio, out.x0), *history][:order]
        size = now.ratio - then.ratio
        nodes, data = zip(*(history[j] for j in apart([ratio for ratio, _ in history], size)), strict=True)
        moments = taylor_integrals(scale, now.ratio, then.ratio, len(nodes)) / size ** np.arange(len(nodes))
        basis = np.vander((np.array(nodes) - now.ratio) / size, increasing=True).T
        weights = [then.alpha * float(w) for w in np.linalg.solve(basis, moments)]
        mean = weighted_sum([then.sigma / now.sigma * kept, *weights], [out.x, *data])
        x = path.draw(mean, std, now, then)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [er_sde]
