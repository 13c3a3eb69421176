"""Training objectives: denoising score matching in continuous time, for any Gaussian process and prediction type.

The usual objectives are E_{t ~ times} [w(t) E ||error||^2], with the error of some prediction type. At a given state
the errors of all types are proportional to each other, so an objective is given by a density of times and a
`Weighting`, w on the error of one type, and does not depend on the type that the network predicts (Kingma & Gao 2023).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import UnknownNameError, UsageError
from .models.calling import TimedNetwork
from .models.output import Output
from .processes.check import check_once
from .processes.predictions import Schedule, prediction_type, row
from .processes.scalars import Scalar, as_scalar, expand
from .processes.sde import GaussianProcess

Network = Callable[..., Tensor]


@dataclass(frozen=True)
class Weighting:
    """w(t) on the squared error of one prediction type.

    Attributes:
        on: the prediction type.
        weight: a function of the process and times (N,) on its clock; returns weights (N,) of 0 or more.
    """

    on: str
    weight: Callable[[GaussianProcess, np.ndarray], np.ndarray]

    def __post_init__(self) -> None:
        prediction_type(self.on)


def unit(on: str) -> Weighting:
    """Weight 1 on the squared error of a prediction type."""
    return Weighting(on, lambda process, t: np.ones_like(t))


def likelihood() -> Weighting:
    """g^2 / 2 on the score, with which the loss bounds the negative log-likelihood (Song, Durkan, Murray & Ermon 2021,
    corollary 1): up to a constant, the bound is D (t_max - t_min) times the mean loss.

    Written as alpha / (sigma (alpha sigma' - sigma alpha')) on the flow, which is finite where alpha = 0 and g is not.
    """

    def weight(process: GaussianProcess, t: np.ndarray) -> np.ndarray:
        alpha, sigma, d_alpha, d_sigma = process.schedule(t)
        return np.asarray(alpha / (sigma * (alpha * d_sigma - sigma * d_alpha)))

    return Weighting("flow", weight)


def edm(sigma_data: float = 0.5) -> Weighting:
    """(r^2 + d^2) / (r d)^2 on x0, r = sigma/alpha and d = sigma_data (Karras et al. 2022, table 1)."""
    if not sigma_data > 0:
        raise UsageError(f"sigma_data must be positive, not {sigma_data}")
    return Weighting("sample", lambda process, t: 1 / sigma_data**2 + 1 / np.square(process.ratio(t)))


def min_snr(gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma) on x0 (Hang et al. 2023, Min-SNR-gamma), which is min(1, gamma sigma^2/alpha^2) on epsilon."""
    if not gamma > 0:
        raise UsageError(f"gamma must be positive, not {gamma}")
    return Weighting("epsilon", lambda process, t: np.minimum(1.0, gamma * np.square(process.ratio(t))))


WEIGHTINGS: dict[str, Weighting] = {
    "simple": unit("epsilon"),
    "x0": unit("sample"),
    "v": unit("v"),
    "flow": unit("flow"),
    "likelihood": likelihood(),
    "edm": edm(),
    "min-snr": min_snr(),
}
"""Weightings by name. "simple": 1 on epsilon (Ho et al. 2020, eq. 14), which is sigma^2 on the score (Song et al. 2021,
section 3.3); "x0": 1 on x0; "v": 1 on v (Salimans & Ho 2022, section 4, "SNR+1"); "flow": 1 on the velocity (Lipman et
al. 2023, eq. 9; Liu et al. 2022); the others by their functions' defaults."""


def weights_on(
    weighting: str | Weighting, prediction: str, process: GaussianProcess, t: np.ndarray | float
) -> np.ndarray:
    """Convert a weighting to the squared error of another prediction type, at times (N,).

    Raises:
        UnknownNameError: no weighting or prediction type of this name.
        UsageError: the weight is infinite, as for epsilon at alpha = 0, which does not determine x0.
    """
    if isinstance(weighting, str):
        if weighting not in WEIGHTINGS:
            raise UnknownNameError("weighting", weighting, WEIGHTINGS, f" (known: {', '.join(WEIGHTINGS)})")
        weighting = WEIGHTINGS[weighting]
    if not isinstance(weighting, Weighting):
        raise UsageError(f"weighting must be a name or a losses.Weighting, not {weighting!r}")
    source, target = prediction_type(weighting.on), prediction_type(prediction)
    t = np.atleast_1d(np.asarray(t, dtype=np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.asarray(weighting.weight(process, t), dtype=np.float64)
        if source != target:
            schedule = process.schedule(t)
            weights = weights * np.square(error_size(source, schedule) / error_size(target, schedule))
    weights = np.array(np.broadcast_to(weights, t.shape))
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        raise UsageError(
            f"this weighting is {weights[bad][0]:g} on the squared error of {target} at t = {t[bad][0]:g}; exclude "
            "that time, or let the network predict v or flow, which determine x0 and epsilon at all times"
        )
    return weights


def error_size(prediction: str, schedule: Schedule) -> Scalar:
    """The size of a prediction's error relative to other types' at the same state: alpha q - sigma p of its `row`.

    An error moves (x0, eps) along (-sigma, alpha), since alpha x0 + sigma eps is fixed.
    """
    alpha, sigma, *_ = schedule
    on_x0, on_eps = row(prediction, schedule)
    return alpha * on_eps - sigma * on_x0


class Times(ABC):
    """A density of training times."""

    @abstractmethod
    def quantile(self, process: GaussianProcess, share: np.ndarray) -> np.ndarray:
        """Quantile function: times, on the process's clock, below which a fraction `share` (N,) of the draws lies."""

    @abstractmethod
    def density(self, process: GaussianProcess, t: np.ndarray) -> np.ndarray:
        """Probability density at t (N,), per unit of the process's clock."""


class UniformTimes(Times):
    """The uniform density from t_min to t_max."""

    def quantile(self, process: GaussianProcess, share: np.ndarray) -> np.ndarray:
        return process.t_min + (process.t_max - process.t_min) * share

    def density(self, process: GaussianProcess, t: np.ndarray) -> np.ndarray:
        inside = (t >= process.t_min) & (t <= process.t_max)
        return np.where(inside, 1 / (process.t_max - process.t_min), 0.0)


class NormalTimes(Times):
    """Base of densities that are normal in some coordinate of time, truncated to the process's range.

    Args:
        mean, std: of the normal distribution, before truncation.
    """

    def __init__(self, mean: float, std: float) -> None:
        if not (std > 0 and math.isfinite(mean)):
            raise UsageError(f"a normal distribution needs a finite mean and a positive std, not {mean} and {std}")
        self.mean, self.std = mean, std

    @abstractmethod
    def coordinate(self, process: GaussianProcess, t: Scalar) -> Scalar:
        """The coordinate at time t, increasing in t; it may be infinite at the ends."""

    @abstractmethod
    def slope(self, process: GaussianProcess, t: np.ndarray) -> np.ndarray:
        """The derivative of the coordinate with respect to t."""

    @abstractmethod
    def time(self, process: GaussianProcess, coordinate: np.ndarray) -> np.ndarray:
        """The time at a coordinate: the inverse of `coordinate`."""

    def _ends(self, process: GaussianProcess) -> tuple[float, float]:
        from scipy.special import ndtr  # scipy takes a second to import

        with np.errstate(divide="ignore"):
            ends = [self.coordinate(process, np.float64(t)) for t in (process.t_min, process.t_max)]
        low, high = (float(ndtr((end - self.mean) / self.std)) for end in ends)
        if high - low < 1e-6:
            raise UsageError(
                f"{type(self).__name__}(mean={self.mean}, std={self.std}) has almost no probability within the range "
                f"of this process, {ends[0]:.3g} to {ends[1]:.3g}"
            )
        return low, high

    def quantile(self, process: GaussianProcess, share: np.ndarray) -> np.ndarray:
        from scipy.special import ndtri  # scipy takes a second to import

        low, high = self._ends(process)
        normal = self.mean + self.std * ndtri(low + (high - low) * share)
        return np.clip(self.time(process, normal), process.t_min, process.t_max)

    def density(self, process: GaussianProcess, t: np.ndarray) -> np.ndarray:
        low, high = self._ends(process)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (self.coordinate(process, t) - self.mean) / self.std
            value = np.exp(-0.5 * z**2) * self.slope(process, t) / (math.sqrt(2 * math.pi) * self.std * (high - low))
        inside = (t >= process.t_min) & (t <= process.t_max) & np.isfinite(z)
        return np.where(inside, value, 0.0)


class LogNormalSigma(NormalTimes):
    """log(sigma/alpha) ~ N(mean, std^2) (Karras et al. 2022, table 1)."""

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        super().__init__(mean, std)

    def coordinate(self, process: GaussianProcess, t: Scalar) -> Scalar:
        return np.log(process.ratio(t))

    def slope(self, process: GaussianProcess, t: np.ndarray) -> np.ndarray:
        alpha, sigma, d_alpha, d_sigma = process.schedule(t)
        return np.asarray(d_sigma / sigma - d_alpha / alpha)

    def time(self, process: GaussianProcess, coordinate: np.ndarray) -> np.ndarray:
        return np.asarray(process.time_at_ratio(np.exp(coordinate)))


class LogitNormalTimes(NormalTimes):
    """logit(t / t_max) ~ N(mean, std^2), for flow models (Esser et al. 2024, section 3.1)."""

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__(mean, std)

    def coordinate(self, process: GaussianProcess, t: Scalar) -> Scalar:
        return np.log(np.divide(t, process.t_max - t))

    def slope(self, process: GaussianProcess, t: np.ndarray) -> np.ndarray:
        return 1 / t + 1 / (process.t_max - t)

    def time(self, process: GaussianProcess, coordinate: np.ndarray) -> np.ndarray:
        from scipy.special import expit  # scipy takes a second to import

        return process.t_max * np.asarray(expit(coordinate))


class ImportanceTimes(Times):
    """The density proportional to `times` multiplied by a weighting, so that all draws have the same weight.

    With the defaults it is the importance sampling of Song, Durkan, Murray & Ermon (2021), section 5.1: proportional to
    g^2/sigma^2, which gives constant weight to the squared error of epsilon, whose size hardly depends on the time. The
    density is integrated by the trapezoidal rule, once per process.

    Args:
        weighting: a name in `WEIGHTINGS` or a `Weighting`.
        prediction: the type whose squared error has the same weight at all times. For processes that end at alpha = 0,
            such as flow models, use "flow" or "v": epsilon's weight is not integrable there.
        times: the objective's density of times, uniform by default.
        nodes: number of nodes of the trapezoidal rule, 8 or more.
    """

    def __init__(
        self,
        weighting: str | Weighting = "likelihood",
        prediction: str = "epsilon",
        times: Times | None = None,
        nodes: int = 4096,
    ) -> None:
        if isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 8:
            raise UsageError(f"nodes must be a whole number of 8 or more, not {nodes!r}")
        self.weighting, self.prediction, self.nodes = weighting, prediction_type(prediction), nodes
        self.times = times or UniformTimes()
        self._kept: tuple[GaussianProcess, np.ndarray, np.ndarray] | None = None

    def _table(self, process: GaussianProcess) -> tuple[np.ndarray, np.ndarray]:
        """The nodes and the cumulative distribution function there; it is linear between nodes."""
        kept = self._kept
        if kept is None or kept[0] is not process:
            t = nodes(process, self.nodes)
            height = self.times.density(process, t) * weights_on(self.weighting, self.prediction, process, t)
            mass = np.concatenate([[0.0], np.cumsum(0.5 * (height[1:] + height[:-1]) * np.diff(t))])
            self._kept = kept = (process, t, mass / mass[-1])
        return kept[1:]

    def quantile(self, process: GaussianProcess, share: np.ndarray) -> np.ndarray:
        t, mass = self._table(process)
        return np.interp(share, mass, t)

    def density(self, process: GaussianProcess, t: np.ndarray) -> np.ndarray:
        grid, mass = self._table(process)
        cell = np.clip(np.searchsorted(grid, t, side="right") - 1, 0, len(grid) - 2)
        inside = (t >= process.t_min) & (t <= process.t_max)
        return np.where(inside, (np.diff(mass) / np.diff(grid))[cell], 0.0)


def nodes(process: GaussianProcess, count: int) -> np.ndarray:
    """Times from t_min to t_max, dense both in t and in log(sigma/alpha); weightings vary slowly in the latter."""
    ends = process.t_min, process.t_max
    low, high = (float(np.clip(process.ratio(t), 1e-6, 1e6)) for t in ends)
    levels = np.asarray(process.time_at_ratio(np.geomspace(low, high, count // 2)), dtype=np.float64)
    t = np.unique(np.concatenate([np.clip(levels, *ends), np.linspace(*ends, count // 2)]))
    return t[np.append(True, np.diff(t) > 1e-12 * process.t_max)]


def stratified_shares(count: int, generator: torch.Generator | None = None) -> np.ndarray:
    """Numbers (count,) in [0, 1), each uniform and exactly one in each of `count` equal parts, in random order.

    The mean over a batch is unbiased and varies less than with independent draws. Kingma et al. (2021, appendix I.1) do
    the same with one offset for all parts.
    """
    device = generator.device if generator else torch.device("cpu")
    place = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
    order = torch.randperm(count, generator=generator, device=device)
    return np.asarray(((order + place) / count).cpu().numpy())


def denoising_loss(
    network: Network,
    process: GaussianProcess,
    x0: Tensor,
    *,
    prediction: str = "epsilon",
    weighting: str | Weighting = "simple",
    times: Times | None = None,
    importance: Times | None = None,
    generator: torch.Generator | None = None,
    t: Any = None,
    noise: Tensor | None = None,
    condition: Any = None,
) -> Tensor:
    """Return w(t) ||error||^2 / D of each sample; the mean estimates E_{t ~ times} [w(t) E ||error||^2 / D].

    Args:
        network: called as network(x_t, t), or network(x_t, t, condition) if a condition is given, exactly as
            `FunctionModel` calls it, so that a trained network can be sampled unchanged. x_t is (N, *shape), of x0's
            dtype; t is on the process's clock, float32 at least, of shape (N, 1, ..., 1), or (N,) if the network does
            not accept that. The network returns its prediction, of x_t's shape, as a tensor, as the only entry of a
            tuple, or as `sample` of an object or dictionary.
        process: the Gaussian process. With a `reversed` process the network receives the time that runs from noise to
            data, and its flow is the derivative with respect to that time; `t` below is on the process's own clock.
        x0: data (N, *shape), floating-point.
        prediction: what the network predicts, one of `PREDICTIONS`. It does not change the objective.
        weighting: a name in `WEIGHTINGS` or a `Weighting`.
        times: the objective's density of times, uniform by default.
        importance: a density to draw times from instead, with weights times / importance, which do not change the
            expectation; its support must contain that of `times`.
        generator: for the times and the noise; torch's global generator by default. Times are drawn by
            `stratified_shares`.
        t, noise: times, one number or (N,), and noise (N, *shape), to use instead of random ones. The times count as
            draws from `importance` if it is given, else from `times`.
        condition: passed to the network.

    Returns:
        (N,), of the prediction's dtype, to be averaged.

    Raises:
        UsageError: invalid arguments, or an infinite weight at a given time.
        ModelError: the network does not return one tensor of x_t's shape.
        ConversionError: score prediction at sigma = 0.
    """
    kind, count = prediction_type(prediction), len(x0)
    check_once(process)
    if x0.dim() < 2 or not x0.is_floating_point():
        raise UsageError(f"x0 must be floating-point numbers (N, ...), not {x0.dtype} of shape {tuple(x0.shape)}")
    target_times = times or UniformTimes()
    drawn_from = importance or target_times
    clock = drawn_from.quantile(process, stratified_shares(count, generator)) if t is None else as_scalar(t)
    if np.shape(clock) not in ((), (1,), (count,)):
        raise UsageError(f"t must be one time or {count}, one for each sample, not of shape {np.shape(clock)}")
    clock = np.array(np.broadcast_to(clock, (count,)), dtype=np.float64)
    if not (np.all(clock >= min(process.t_min, 0.0)) and np.all(clock <= process.t_max)):
        raise UsageError(f"t must lie from {min(process.t_min, 0.0):g} to {process.t_max:g} on this process, not {t}")
    weights = weights_on(weighting, kind, process, clock)
    if importance is not None:
        density = importance.density(process, clock)
        if not np.all(density > 0):
            raise UsageError(f"importance has density 0 at t = {clock[density <= 0][0]:g}; t must be drawn from it")
        weights = weights * target_times.density(process, clock) / density
    if noise is None:
        place = generator.device if generator else x0.device
        noise = torch.randn(x0.shape, generator=generator, device=place, dtype=x0.dtype).to(x0.device)
    if noise.shape != x0.shape:
        raise UsageError(f"noise must have x0's shape {tuple(x0.shape)}, not {tuple(noise.shape)}")
    schedule = process.schedule(clock)
    state, timed = mix(schedule[:2], x0, noise), TimedNetwork(network, "denoising_loss")
    predicted = timed(state, (process.network_time(clock),), *(() if condition is None else (condition,)))
    if isinstance(predicted, Output):
        predicted = predicted.value
    if kind == "flow" and process.clock_sign < 0:
        predicted = -predicted
    error = (predicted - mix(row(kind, schedule), x0, noise)).square().flatten(1).mean(1)
    return torch.from_numpy(weights).to(error) * error


def mix(coefficients: tuple[Scalar, Scalar], x0: Tensor, noise: Tensor) -> Tensor:
    """Return a x0 + b noise, with coefficients for each sample."""
    a, b = (np.asarray(value, dtype=np.float64) for value in coefficients)
    return expand(a, x0) * x0 + expand(b, x0) * noise
