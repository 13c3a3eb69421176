"""The `SDE` interface, and Gaussian processes with everything derived from alpha and sigma.

Time is a float, or a float64 NumPy array with one time for each sample. Schedule values (alpha, sigma and their
derivatives) have the same form; they are never device tensors, so that no step waits for a device. Users may also pass
tensors, and then get tensors (`forms`).
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..checks import shown
from ..errors import UsageError, nearest
from ..public import public
from .forms import keep_forms
from .own_grid import OwnGrid
from .pickling import Pickled
from .scalars import Scalar, as_scalar, expand


@public
@dataclass(frozen=True)
class Prior:
    """The distribution that sampling starts from: N(0, std^2 I)."""

    std: float

    def sample(self, noise: Tensor) -> Tensor:
        """Scale standard normal `noise` of any shape to a draw from the prior."""
        return noise * self.std

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats of each sample of `x` (N, ...), shape (N,)."""
        flat = x.flatten(1) / self.std
        return -0.5 * flat.square().sum(1) - flat.shape[1] * (math.log(self.std) + 0.5 * math.log(2 * math.pi))


@public
class SDE(Pickled, ABC):
    """dx = f(x, t) dt + g(t) dw, noise growing with t from `t_min` to `t_max` (Song et al. 2021, eq. 5).

    `t_min` is the smallest time at which the score is evaluated; samplers start at `t_max`.
    """

    t_min: float = 0.0
    t_max: float = 1.0
    preferred_spacing: str = "linspace"
    """The spacing used if neither the call nor the sampler sets one."""

    clock_sign: float = 1.0
    """-1 if network time runs opposite to the process's time (`reversed`): a network's flow is then -dx/dt."""

    def __repr__(self) -> str:
        """The call that makes the process, `EDM(sigma_min=0.002, sigma_max=80)`, if its arguments are known."""
        arguments = self._arguments()
        if arguments is None:
            return f"<{type(self).__name__}, t from {self.t_min:.4g} to {self.t_max:.4g}>"
        defaults = {name: p.default for name, p in inspect.signature(type(self)).parameters.items()}
        kept = {name: value for name, value in arguments.items() if not value == defaults[name] == 1}  # 1 has no effect
        return f"{type(self).__name__}({', '.join(f'{name}={_short(value)}' for name, value in kept.items())})"

    def _arguments(self) -> dict[str, float] | None:
        """The arguments of the constructor, for `repr`; None if they are not numbers that the process keeps."""
        if type(self).__init__ is object.__init__:
            return {}
        names = inspect.signature(type(self)).parameters
        found = {name: vars(self).get(name) for name in names}
        numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
        return numbers if len(numbers) == len(names) else None

    def network_time(self, t: Scalar) -> Scalar:
        """The time that a user's network receives at time t of the process."""
        return t

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        keep_forms(cls)

    @abstractmethod
    def drift(self, x: Tensor, t: Scalar) -> Tensor:
        """f(x, t), of x's shape (N, ...)."""

    @abstractmethod
    def diffusion(self, t: Scalar) -> Scalar:
        """g(t), in data units per square root of time."""

    @property
    @abstractmethod
    def prior(self) -> Prior:
        """The distribution at `t_max`."""

    def reverse_drift(self, x: Tensor, t: Scalar, score: Tensor, eta: float = 1.0) -> Tensor:
        """Drift of a family of reverse processes with the same marginals, f - (1 + eta^2)/2 g^2 s.

        eta = 1 is the reverse SDE of Anderson (1982), eta = 0 the probability-flow ODE of Song et al. (2021,
        eq. 13). The corresponding diffusion coefficient is eta * g for every eta >= 0.
        """
        t = as_scalar(t)
        g = self.diffusion(t)
        return self.drift(x, t) - expand(0.5 * (1 + eta**2) * g * g, x) * score

    def velocity(self, x: Tensor, t: Scalar, score: Tensor) -> Tensor:
        """dx/dt of the probability-flow ODE, f - g^2 s / 2 (Song et al. 2021, eq. 13)."""
        return self.reverse_drift(x, t, score, eta=0.0)


@public
class GaussianProcess(SDE):
    """x_t = alpha(t) x_0 + sigma(t) eps: a linear SDE defined by its two schedule functions.

    Subclasses implement alpha, sigma, their derivatives and `time_at_ratio`, as functions of a float or a NumPy array
    (so `np.cos`, not `math.cos`). Drift and diffusion follow (Karras et al. 2022, appendix B; Lu et al. 2022
    (DPM-Solver), eq. 2.3): f = (alpha'/alpha) x and g^2 = 2 sigma (sigma' - (alpha'/alpha) sigma).
    """

    clean_time: float | None = None
    """The time at which sigma reaches 0 with finite slope. None if there is no such time: a path then extends the clock
    to sigma = 0 (`NativeView`)."""
    preferred_spacing = "even"
    own_grid: OwnGrid | None = None
    """The grid that the model's authors use, if the model was loaded from a configuration that specifies it."""
    table_sources: tuple[str, ...] = ()
    """The solver tables that came with the model, in order of precedence: folders, or "hf://owner/name@revision"."""
    table_access: Any = None
    """The options of `load` for the download of tables from the Hub, a `HubAccess`."""

    @property
    def grid_process(self) -> GaussianProcess:
        """The same process on the clock that spacings divide: itself, unless the model's authors use another clock."""
        return self

    @abstractmethod
    def alpha(self, t: Scalar) -> Scalar:
        """Signal coefficient at time t."""

    @abstractmethod
    def sigma(self, t: Scalar) -> Scalar:
        """Noise coefficient (standard deviation) at time t."""

    @abstractmethod
    def d_alpha(self, t: Scalar) -> Scalar:
        """Time derivative of alpha."""

    @abstractmethod
    def d_sigma(self, t: Scalar) -> Scalar:
        """Time derivative of sigma."""

    @abstractmethod
    def time_at_ratio(self, ratio: Scalar) -> Scalar:
        """The time at which sigma / alpha equals `ratio`, for ratio in [0, inf]."""

    def schedule(self, t: Scalar) -> tuple[Scalar, Scalar, Scalar, Scalar]:
        """(alpha, sigma, alpha', sigma') at t; a subclass may compute them together."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.alpha(t), self.sigma(t), self.d_alpha(t), self.d_sigma(t)

    def ratio(self, t: Scalar) -> Scalar:
        """sigma(t) / alpha(t), the noise-to-signal ratio; infinite where alpha = 0."""
        with np.errstate(divide="ignore"):
            return np.divide(self.sigma(t), self.alpha(t))

    @property
    def largest_ratio(self) -> float:
        """The sigma/alpha at which grids and coordinates that need alpha > 0 start; infinite if there is none."""
        return float(self.ratio(self.t_max))

    def log_snr(self, t: Scalar) -> Scalar:
        """log(alpha^2 / sigma^2), that is 2 lambda in the notation of DPM-Solver (Lu et al. 2022)."""
        with np.errstate(divide="ignore"):
            return -2 * np.log(self.ratio(t))

    def time_at_log_snr(self, log_snr: Scalar) -> Scalar:
        """Inverse of `log_snr`."""
        return self.time_at_ratio(np.exp(-0.5 * np.asarray(log_snr)))

    def at_ratio(self, ratio: Scalar) -> tuple[Scalar, Scalar]:
        """Return (alpha, sigma) at the time at which sigma / alpha = `ratio`."""
        t = self.time_at_ratio(ratio)
        return self.alpha(t), self.sigma(t)

    def d_alpha_d_ratio(self, ratio: Scalar) -> Scalar:
        """Derivative of alpha with respect to sigma / alpha, along the process."""
        t = self.time_at_ratio(ratio)
        alpha, d_alpha = self.alpha(t), self.d_alpha(t)
        return d_alpha * alpha**2 / (self.d_sigma(t) * alpha - self.sigma(t) * d_alpha)

    def perturb(self, x0: Tensor, t: Any, noise: Tensor) -> Tensor:
        """Return alpha(t) x0 + sigma(t) noise; t is a number, or one time for each sample of x0 (N, ...)."""
        t = as_scalar(t)
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * noise

    def drift(self, x: Tensor, t: Scalar) -> Tensor:
        t = as_scalar(t)
        return expand(np.divide(self.d_alpha(t), self.alpha(t)), x) * x

    def diffusion(self, t: Scalar) -> Scalar:
        return np.sqrt(diffusion_squared(self.alpha(t), self.sigma(t), self.d_alpha(t), self.d_sigma(t)))

    @property
    def prior(self) -> Prior:
        return Prior(float(self.sigma(self.t_max)))


def diffusion_squared(alpha: Scalar, sigma: Scalar, d_alpha: Scalar, d_sigma: Scalar) -> Any:
    """g^2 = 2 sigma (sigma' - (alpha'/alpha) sigma) of a Gaussian process (Lu et al. 2022 (DPM-Solver), eq. 2.3)."""
    return 2 * sigma * (d_sigma - d_alpha / alpha * sigma)


def _short(value: float) -> str:
    """A number as Python text without a needless fraction: 80 for 80.0."""
    return repr(int(value)) if float(value).is_integer() and abs(value) < 1e6 else repr(float(value))


def starts_as_noise(process: GaussianProcess) -> bool:
    """True if alpha = 0 at t_max up to rounding: cos(pi/2) is 6e-17, which float32 states cannot distinguish from 0."""
    return bool(process.ratio(float(process.t_max)) > 1e7)


OTHER_NAMES = {
    "flow": "RectifiedFlow", "flow-matching": "RectifiedFlow", "ddpm": "VP", "linear": "VP", "cosine": "CosineVP",
}  # fmt: skip
"""What users call a process -> its class, for messages."""


def not_a_process(expected: str, value: Any) -> UsageError:
    """The error for something passed as a process; a process's class or its name gets the call that creates one.

    Args:
        expected: the start of the message: which argument it is, and what is valid.
        value: what was passed.
    """
    if isinstance(value, type) and issubclass(value, SDE):
        return UsageError(f"{expected}, not the class {value.__name__}: pass {_constructor(value)}")
    if isinstance(value, str):
        base: Any = SDE
        known = {cls.__name__: cls for cls in _subclasses(base) if cls.__module__ == "sdesamplers"}
        meant = OTHER_NAMES.get(value.lower())
        near = " or ".join(_constructor(known[name]) for name in ([meant] if meant else nearest(value, known)))
        return UsageError(f"{expected}, not {value!r}{f'; did you mean {near}?' if near else ''}")
    return UsageError(f"{expected}, not {shown(value)}")


def _constructor(cls: type[SDE]) -> str:
    """The call that creates a process: "VP()", or "ShiftedFlow(shift)" if it has required arguments."""
    parameters = inspect.signature(cls).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return f"{cls.__name__}({', '.join(required)})"


def _subclasses(cls: type[SDE]) -> Iterator[type[SDE]]:
    """The subclasses that can be instantiated."""
    for each in cls.__subclasses__():
        if not inspect.isabstract(each):
            yield each
        yield from _subclasses(each)
