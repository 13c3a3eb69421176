"""Training objectives: denoising score matching in continuous time, for any Gaussian process and prediction type.

Every objective of the field is one sum, E_t [w(t) E ||eps_hat - eps||^2], written for one prediction type or another; a
weighting here is its w, and times may be drawn from any density p, for the weight is divided by it. What the network
predicts changes nothing but the factor between its own error and that of eps (`error_ratio`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import UnknownNameError, UsageError
from .prediction import prediction_type, row
from .sde import GaussianProcess, Scalar, as_scalar, diffusion_squared, expand

Network = Callable[..., Tensor]
Weighting = Callable[[GaussianProcess, np.ndarray], np.ndarray]


class Times(ABC):
    """A density of training times."""

    @abstractmethod
    def quantile(self, process: GaussianProcess, share: np.ndarray) -> np.ndarray:
        """Times below which a share of the draws lies, on the process's clock."""

    @abstractmethod
    def density(self, process: GaussianProcess, t: np.ndarray) -> np.ndarray:
        """Probability density at t, per unit of the process's clock."""


class UniformTimes(Times):
    """Equal chances for all times from t_min to t_max."""

    def quantile(self, process: GaussianProcess, share: np.ndarray) -> np.ndarray:
        return process.t_min + (process.t_max - process.t_min) * share

    def density(self, process: GaussianProcess, t: np.ndarray) -> np.ndarray:
        return np.full_like(t, 1 / (process.t_max - process.t_min))


class LogNormalSigma(Times):
    """log(sigma/alpha) ~ N(mean, std^2), cut to the process's range (Karras et al. 2022, table 1)."""

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        if not std > 0:
            raise UsageError(f"std must be positive, not {std}")
        self.mean, self.std = mean, std

    def _ends(self, process: GaussianProcess) -> tuple[float, float]:
        from scipy.special import ndtr

        levels = [np.log(process.ratio(t)) for t in (process.t_min, process.t_max)]
        low, high = (float(ndtr((level - self.mean) / self.std)) for level in levels)
        return low, high

    def quantile(self, process: GaussianProcess, share: np.ndarray) -> np.ndarray:
        from scipy.special import ndtri

        low, high = self._ends(process)
        return process.time_at_ratio(np.exp(self.mean + self.std * ndtri(low + (high - low) * share)))

    def density(self, process: GaussianProcess, t: np.ndarray) -> np.ndarray:
        low, high = self._ends(process)
        z = (np.log(process.ratio(t)) - self.mean) / self.std
        return np.exp(-0.5 * z**2) / (math.sqrt(2 * math.pi) * self.std * (high - low)) * log_ratio_slope(process, t)


class LogitNormalTimes(Times):
    """logit(t / t_max) ~ N(mean, std^2) (Esser et al. 2024, section 3.1), for flow models."""

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        if not std > 0:
            raise UsageError(f"std must be positive, not {std}")
        self.mean, self.std = mean, std

    def _ends(self, process: GaussianProcess) -> tuple[float, float]:
        from scipy.special import logit, ndtr

        share = process.t_min / process.t_max
        return float(ndtr((logit(share) - self.mean) / self.std)) if share > 0 else 0.0, 1.0

    def quantile(self, process: GaussianProcess, share: np.ndarray) -> np.ndarray:
        from scipy.special import expit, ndtri

        low, high = self._ends(process)
        return process.t_max * expit(self.mean + self.std * ndtri(low + (high - low) * share))

    def density(self, process: GaussianProcess, t: np.ndarray) -> np.ndarray:
        from scipy.special import logit

        low, high = self._ends(process)
        u = t / process.t_max
        normal = np.exp(-0.5 * ((logit(u) - self.mean) / self.std) ** 2) / (math.sqrt(2 * math.pi) * self.std)
        return normal / (u * (1 - u) * process.t_max * (high - low))


class ImportanceTimes(Times):
    """p(t) proportional to a weighting, by its integral on a fine grid: then all draws weigh the same.

    With the likelihood weighting this is the importance sampling of Song, Durkan, Murray & Ermon (2021), section 5.1.
    """

    def __init__(self, weighting: str | Weighting = "likelihood", nodes: int = 4097) -> None:
        self.weighting, self.nodes = weighting, nodes

    def _table(self, process: GaussianProcess) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # Nodes at equal steps of log(sigma/alpha), where weightings are smooth.
        with np.errstate(divide="ignore"):
            low, high = (float(np.log(process.ratio(t))) for t in (process.t_min, process.t_max))
        high = high if math.isfinite(high) else math.log(1e4)
        t = np.asarray(process.time_at_ratio(np.exp(np.linspace(low, high, self.nodes))), dtype=np.float64)
        t[0], t[-1] = process.t_min, process.t_max
        weights = weigh(self.weighting, process, np.minimum(t, t[-2] + 0.5 * (t[-1] - t[-2])))
        mass = np.concatenate([[0.0], np.cumsum(0.5 * (weights[1:] + weights[:-1]) * np.diff(t))])
        return t, mass / mass[-1], 0.5 * (weights[1:] + weights[:-1]) / mass[-1]

    def quantile(self, process: GaussianProcess, share: np.ndarray) -> np.ndarray:
        t, mass, _ = self._table(process)
        return np.interp(share, mass, t)

    def density(self, process: GaussianProcess, t: np.ndarray) -> np.ndarray:
        grid, _, heights = self._table(process)
        return heights[np.clip(np.searchsorted(grid, t, side="right") - 1, 0, len(heights) - 1)]


def log_ratio_slope(process: GaussianProcess, t: np.ndarray) -> np.ndarray:
    """d log(sigma/alpha) / dt = sigma'/sigma - alpha'/alpha."""
    alpha, sigma, d_alpha, d_sigma = process.schedule(t)
    return np.asarray(d_sigma / sigma - d_alpha / alpha)


def simple(process: GaussianProcess, t: np.ndarray) -> np.ndarray:
    """w = 1: DDPM's L_simple (Ho et al. 2020, eq. 14), lambda = sigma^2 on the score."""
    return np.ones_like(t)


def likelihood(process: GaussianProcess, t: np.ndarray) -> np.ndarray:
    """w = g^2 / (2 sigma^2), lambda = g^2 on the score: with uniform times of weight T the loss bounds the negative
    log-likelihood but for constants (Song, Durkan, Murray & Ermon 2021, theorem 1)."""
    schedule = process.schedule(t)
    return np.asarray(diffusion_squared(*schedule) / (2 * np.square(schedule[1])))


def edm(process: GaussianProcess, t: np.ndarray, *, sigma_data: float = 0.5) -> np.ndarray:
    """lambda = (r^2 + d^2) / (r d)^2 on x0 (Karras et al. 2022, table 1), r = sigma/alpha: w = (r^2 + d^2) / d^2."""
    return np.square(process.ratio(t)) / sigma_data**2 + 1


def min_snr(process: GaussianProcess, t: np.ndarray, *, gamma: float = 5.0) -> np.ndarray:
    """min(SNR, gamma) on x0 (Hang et al. 2023, eq. 8): w = min(SNR, gamma) / SNR = min(1, gamma r^2)."""
    return np.minimum(1.0, gamma * np.square(process.ratio(t)))


def flow(process: GaussianProcess, t: np.ndarray) -> np.ndarray:
    """1 on the velocity alpha' x0 + sigma' eps (Lipman et al. 2023, eq. 9): conditional flow matching."""
    return np.square(error_ratio("flow", process.schedule(t)))


def v(process: GaussianProcess, t: np.ndarray) -> np.ndarray:
    """1 on v = alpha eps - sigma x0, "SNR+1" (Salimans & Ho 2022, section 4)."""
    return np.square(error_ratio("v", process.schedule(t)))


def x0(process: GaussianProcess, t: np.ndarray) -> np.ndarray:
    """1 on x0: w = sigma^2 / alpha^2."""
    return np.square(process.ratio(t))


WEIGHTINGS: dict[str, Weighting] = {
    "simple": simple,
    "likelihood": likelihood,
    "edm": edm,
    "min-snr": min_snr,
    "flow": flow,
    "v": v,
    "x0": x0,
}
"""Weightings by name, as w(t) on the squared error of eps."""


def weigh(weighting: str | Weighting, process: GaussianProcess, t: np.ndarray) -> np.ndarray:
    """A weighting's values at times (N,).

    Raises:
        UnknownNameError: no weighting of this name.
    """
    if isinstance(weighting, str):
        if weighting not in WEIGHTINGS:
            raise UnknownNameError("weighting", weighting, WEIGHTINGS, f" (known: {', '.join(WEIGHTINGS)})")
        weighting = WEIGHTINGS[weighting]
    return np.asarray(weighting(process, t), dtype=np.float64)


def error_ratio(prediction: str, schedule: Any) -> Scalar:
    """d(prediction)/d(eps) at a given state: how much an error of eps is in a prediction of another type."""
    alpha, sigma, *_ = schedule
    # At a given x an error e of eps is one of -sigma/alpha e in x0.
    on_x0, on_eps = row(prediction_type(prediction), schedule)
    return on_eps - on_x0 * np.divide(sigma, alpha)


def denoising_loss(
    network: Network,
    process: GaussianProcess,
    x0: Tensor,
    *,
    prediction: str = "epsilon",
    weighting: str | Weighting = "simple",
    times: Times | None = None,
    generator: torch.Generator | None = None,
    t: Any = None,
    noise: Tensor | None = None,
    condition: Any = None,
) -> Tensor:
    """w(t)/p(t) ||eps_hat - eps||^2 / D of each sample, whose mean estimates int w E ||eps_hat - eps||^2 / D dt.

    Args:
        network: called as network(x_t, t), or network(x_t, t, condition) where a condition is given; x_t (N, *shape)
            and t (N,) of x0's dtype on the process's clock; returns its prediction, of x_t's shape.
        process: the Gaussian process.
        x0: data (N, *shape).
        prediction: what the network predicts, one of `PREDICTIONS`.
        weighting: a name of `WEIGHTINGS`, or a function of process and times giving w on the squared error of eps.
        times: their density p; uniform by default. Draws are stratified, one in each N-th part of the density, which
            keeps the estimate unbiased and lowers its variance (Kingma et al. 2021, appendix I.1).
        generator: of the times and the noise; torch's global one by default.
        t, noise: given times (N,) and noise (N, *shape) instead of drawn ones.
        condition: handed to the network.

    Returns:
        (N,), to be averaged.

    Raises:
        UsageError: words that do not fit.
    """
    kind, density = prediction_type(prediction), times or UniformTimes()
    count = len(x0)
    if t is None:
        jitter = torch.rand(count, generator=generator, device=generator.device if generator else "cpu").double()
        order = torch.randperm(count, generator=generator, device=jitter.device)
        shares = ((order + jitter) / count).cpu().numpy()
        t = density.quantile(process, shares)
    clock = np.broadcast_to(np.asarray(as_scalar(t), dtype=np.float64), (count,))
    if noise is None:
        place = generator.device if generator else x0.device
        noise = torch.randn(x0.shape, generator=generator, device=place, dtype=x0.dtype).to(x0.device)
    if noise.shape != x0.shape:
        raise UsageError(f"noise must have x0's shape {tuple(x0.shape)}, not {tuple(noise.shape)}")
    schedule = tuple(as_scalar(value) for value in process.schedule(clock))
    state = expand(schedule[0], x0) * x0 + expand(schedule[1], x0) * noise
    told = torch.from_numpy(np.ascontiguousarray(clock)).to(device=x0.device, dtype=x0.dtype)
    answer = network(state, told) if condition is None else network(state, told, condition)
    on_x0, on_eps = row(kind, schedule)  # type: ignore[arg-type]
    target = expand(np.broadcast_to(on_x0, (count,)), x0) * x0 + expand(np.broadcast_to(on_eps, (count,)), x0) * noise
    factor = np.square(error_ratio(kind, schedule))
    weights = weigh(weighting, process, clock) / (factor * density.density(process, clock))
    return expand(weights, answer).flatten() * (answer - target).square().flatten(1).mean(1)
