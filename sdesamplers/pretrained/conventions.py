"""Conventions: how a network that was trained under a diffusers scheduler is asked, and what its answer means."""

from __future__ import annotations

import inspect
import math
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import whole
from ..errors import ModelError, UsageError
from ..models.clipping import Clip
from ..processes.predictions import prediction_type
from ..processes.scalars import Scalar, expand, scaled
from ..processes.schedules import EDM, VE, RectifiedFlow, TrigFlow
from ..processes.sde import GaussianProcess
from ..processes.table import DiscreteVP
from .configuration import REFUSED as REFUSED
from .configuration import GridSettings, clip_of, completed, defaults_of, grid_of
from .configuration import class_of as class_of
from .grids import attach
from .saved_keys import own_part, trained_part
from .scheduler_keys import refused_keys


class Convention:
    """A process, a prediction type, and the way between them and a network; this one is a DDPM table's.

    A table's network is told the timestep, which is the process's own time, and is given the state as it is.

    Attributes:
        process: what the network was trained on.
        prediction: what `read` returns, one of `PREDICTIONS`.
        data_range: (low, high) of pixels that such networks are trained on.
        is_plain: whether `scale_input` and `read` give back what they are given.
        grid, clip: what the configuration says of its class's grid and of x0; None where it says nothing.
    """

    data_range = (-1.0, 1.0)
    is_plain = True
    grid: GridSettings | None = None
    clip: Clip | None = None

    def __init__(self, process: GaussianProcess, prediction: str) -> None:
        self.process, self.prediction = process, prediction

    def on(self, process: GaussianProcess) -> Convention:
        """The same convention on another process of its kind."""
        made = copy(self)
        made.process = process
        return made

    def timestep(self, t: Scalar) -> Scalar:
        """What the network is told at time t of the process."""
        return np.clip(t, 0.0, self.process.t_max)

    def time(self, timestep: Scalar) -> Scalar:
        """The process's time at which the network is told `timestep`."""
        return timestep

    def scale_input(self, x: Tensor, t: Scalar) -> Tensor:
        """What the network is given for the state x (N, ...) at time t."""
        return x

    def read(self, output: Tensor, x: Tensor, t: Scalar) -> Tensor:
        """A network's output (N, ...) for the state x at time t, as `prediction`."""
        return output

    def target(self, t: Scalar) -> tuple[Scalar, Scalar]:
        """(p, q) of p x0 + q noise, what the network is trained to answer at time t: v on a table (get_velocity)."""
        return -self.process.sigma(t), self.process.alpha(t)


class ScoreVE(Convention):
    """Song et al.'s (2021) VE networks: asked at sigma, trained on pixels in [0, 1]."""

    data_range = (0.0, 1.0)
    process: VE

    def timestep(self, t: Scalar) -> Scalar:
        return self.process.sigma(t)

    def time(self, timestep: Scalar) -> Scalar:
        return self.process.time_at_ratio(timestep)

    def target(self, t: Scalar) -> tuple[Scalar, Scalar]:
        return 0.0 * t, -1.0 / self.process.sigma(t)


class Preconditioned(Convention):
    """F of Karras et al. (2022), eq. 7: x0 = c_skip x + c_out F(c_in x, c_noise), the process being x = x0 + t eps.

    c_in = (t^2 + d^2)^(-1/2), c_skip = d^2 / (t^2 + d^2) and c_out = t d c_in (their table 1), where d is the standard
    deviation of the data. A network that predicts v has c_out with the other sign.

    Args:
        sigma_data: d.
        clock: "edm" (c_noise = log(t)/4), "consistency" (1000 times that; Song et al. 2023) or "angle"
            (2/pi atan(t), Stable Audio).
        sign: of c_out.
        boundary: t_0, which makes x0 = x there: c_skip = d^2 / ((t - t_0)^2 + d^2), c_out = (t - t_0) d c_in
            (consistency models, Song et al. 2023, appendix C).
    """

    is_plain = False

    def __init__(
        self, process: EDM, sigma_data: float, *, clock: str = "edm", sign: float = 1.0, boundary: float = 0.0
    ) -> None:
        super().__init__(process, "sample")
        self.sigma_data, self.clock, self.sign, self.boundary = sigma_data, clock, sign, boundary
        self._factor = {"edm": 0.25, "consistency": 250.0, "angle": 2 / math.pi}[clock]

    def timestep(self, t: Scalar) -> Scalar:
        return self._factor * (np.arctan(t) if self.clock == "angle" else np.log(t))

    def time(self, timestep: Scalar) -> Scalar:
        inner = np.divide(timestep, self._factor)
        return np.tan(inner) if self.clock == "angle" else np.exp(inner)

    def scale_input(self, x: Tensor, t: Scalar) -> Tensor:
        return _times(x, 1 / np.hypot(t, self.sigma_data))

    def target(self, t: Scalar) -> tuple[Scalar, Scalar]:
        # F = (x0 - c_skip x) / c_out with x = x0 + t noise
        skip, out = self._weights(t)
        above = t - self.boundary
        return above**2 / (above**2 + self.sigma_data**2) / out, -skip * t / out

    def _weights(self, t: Scalar) -> tuple[Scalar, Scalar]:
        """c_skip and c_out."""
        above = t - self.boundary
        skip = self.sigma_data**2 / (above**2 + self.sigma_data**2)
        return skip, self.sign * above * self.sigma_data / np.hypot(t, self.sigma_data)

    def read(self, output: Tensor, x: Tensor, t: Scalar) -> Tensor:
        skip, out = self._weights(t)
        if np.ndim(t):
            return x * expand(skip, x) + output * expand(out, x)
        return torch.add(scaled(x, float(skip)), output, alpha=float(out))


class Flow(Convention):
    """Flow matching: the network is told 1000 t and predicts eps - x0, or with `reverse` 1000 (1 - t) and x0 - eps."""

    def __init__(self, process: RectifiedFlow, train_steps: float = 1000.0, *, reverse: bool = False) -> None:
        super().__init__(process, "flow")
        self.train_steps, self.reverse, self.is_plain = train_steps, reverse, not reverse

    def timestep(self, t: Scalar) -> Scalar:
        return self.train_steps * (1 - t if self.reverse else t)

    def time(self, timestep: Scalar) -> Scalar:
        share = np.divide(timestep, self.train_steps)
        return 1 - share if self.reverse else share

    def target(self, t: Scalar) -> tuple[Scalar, Scalar]:
        one = 0.0 * t + (-1.0 if self.reverse else 1.0)
        return -one, one

    def read(self, output: Tensor, x: Tensor, t: Scalar) -> Tensor:
        return -output if self.reverse else output


class Trigonometric(Convention):
    """v prediction on the circle, x0 = cos(t) x - sin(t) F (Lu & Song 2025, TrigFlow), told `factor` times t."""

    is_plain = False
    process: TrigFlow

    def __init__(self, process: TrigFlow, factor: float = 1.0) -> None:
        super().__init__(process, "sample")
        self.factor = factor

    def timestep(self, t: Scalar) -> Scalar:
        return self.factor * t

    def time(self, timestep: Scalar) -> Scalar:
        return np.divide(timestep, self.factor)

    def target(self, t: Scalar) -> tuple[Scalar, Scalar]:
        # x0 = cos(t) x - sin(t) F with x = cos(t) x0 + sin(t) d noise
        return -np.sin(t), np.cos(t) * self.process.sigma_data

    def read(self, output: Tensor, x: Tensor, t: Scalar) -> Tensor:
        if np.ndim(t):
            return x * expand(np.cos(t), x) - output * expand(np.sin(t), x)
        return torch.add(scaled(x, math.cos(t)), output, alpha=-math.sin(t))


def _times(x: Tensor, factor: Scalar) -> Tensor:
    return x * expand(factor, x) if np.ndim(factor) else scaled(x, float(factor))


FLOW = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "LTXEulerAncestralRFScheduler",
)
PRECONDITIONED = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")


def convention_of(config: dict[str, Any]) -> Convention:
    """The convention that a diffusers scheduler's configuration stands for.

    A table is computed by the scheduler class itself, so every `beta_schedule` that diffusers knows, `trained_betas`
    and `rescale_betas_zero_snr` mean what they mean there. What a configuration says of its grid is kept beside it;
    what it says of its solver is not read.

    Args:
        config: of any diffusers scheduler, or of one of ours.

    Raises:
        ModelError: a scheduler of another kind, or a broken configuration.
    """
    config = config if own_part(config) is None else trained_part(config)
    kind = class_of(config)
    if kind in REFUSED:
        raise ModelError(f"models that are sampled with {kind} are not supported: {REFUSED[kind]}")
    unsupported = refused_keys(kind, config, defaults_of(kind))
    if unsupported:
        raise ModelError(f"{kind}: {'; '.join(unsupported)}")
    try:
        if config.get("num_train_timesteps") is not None:
            whole("num_train_timesteps", config["num_train_timesteps"])
        convention = _convention(completed(config), kind)
        convention.grid, convention.clip = grid_of(config), clip_of(config)
        return attach(convention, config)
    except (UsageError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise ModelError(f"the {kind} configuration is broken: {text[:300]}") from None


def _convention(config: dict[str, Any], kind: str) -> Convention:
    if kind == "ScoreSdeVeScheduler":
        return ScoreVE(VE(_number(config, "sigma_min", 0.01), _number(config, "sigma_max", 1348.0)), "score")
    if kind in PRECONDITIONED:
        return _preconditioned(config, 0.5, "edm")
    if kind == "CosineDPMSolverMultistepScheduler":
        return _preconditioned(config, 1.0, "angle")
    if kind == "CMStochasticIterativeScheduler":
        return _preconditioned(config, 0.5, "consistency", boundary=_number(config, "sigma_min", 0.002))
    if config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction":
        return _continuous(config, kind)
    if kind == "SCMScheduler":
        return Trigonometric(TrigFlow(_number(config, "sigma_data", 0.5)))
    if kind == "IPNDMScheduler":
        return Trigonometric(TrigFlow(), 2 / math.pi)
    if kind in FLOW or config.get("use_flow_sigmas"):
        return _flow(config, kind)
    return _table(config, kind)


def _number(config: dict[str, Any], key: str, default: float) -> float:
    value = config.get(key)
    return default if value is None else float(value)


def _preconditioned(config: dict[str, Any], sigma_data: float, clock: str, *, boundary: float = 0.0) -> Preconditioned:
    process = EDM(_number(config, "sigma_min", 0.002), _number(config, "sigma_max", 80.0))
    kind = config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise UsageError(f"prediction_type must be epsilon or v_prediction here, not {kind!r}")
    sign = -1.0 if kind == "v_prediction" else 1.0
    return Preconditioned(process, _number(config, "sigma_data", sigma_data), clock=clock, sign=sign, boundary=boundary)


def _continuous(config: dict[str, Any], kind: str) -> Preconditioned:
    """Stable Video Diffusion, CosXL: EDM's network between two sigmas, by default those of the class's table."""
    if config.get("sigma_min") is None or config.get("sigma_max") is None:
        table = _table(config, kind).process
        ends = {"sigma_min": float(table.ratio(table.t_min)), "sigma_max": float(table.ratio(table.t_max))}
        config = {**config, **{word: value for word, value in ends.items() if config.get(word) is None}}
    return _preconditioned({**config, "sigma_data": 1.0}, 1.0, "edm")


def _flow(config: dict[str, Any], kind: str) -> Flow:
    dynamic = bool(config.get("use_dynamic_shifting"))
    shift = 1.0 if dynamic else _number(config, "shift" if kind in FLOW else "flow_shift", 1.0)
    steps = _number(config, "num_train_timesteps", 1000)
    return Flow(RectifiedFlow(shift), steps, reverse=bool(config.get("invert_sigmas")))


def with_shift(convention: Convention, config: dict[str, Any], mu: float | None) -> Convention:
    """A flow model's convention at the resolution that `mu` stands for: its shift is e^mu, or mu with the linear law.

    Other models, and flow models whose makers give them one shift for all resolutions, are left as they are: their
    pipelines may pass mu too.

    Raises:
        UsageError: the configuration has `use_dynamic_shifting` and there is no mu.
    """
    if not isinstance(convention, Flow) or not config.get("use_dynamic_shifting"):
        return convention
    if mu is None:
        raise UsageError("this model's shift depends on the resolution (use_dynamic_shifting), so mu is needed")
    shift = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
    return attach(convention.on(RectifiedFlow(shift)), config, mu)


def _table(config: dict[str, Any], kind: str) -> Convention:
    import diffusers  # diffusers takes seconds to import

    # Its class needs torchsde to be built, for noise that is not wanted here; the table is the same.
    kind = "EulerDiscreteScheduler" if kind == "DPMSolverSDEScheduler" else kind
    cls = getattr(diffusers, kind, None)
    if cls is None or not isinstance(cls, type) or not issubclass(cls, diffusers.SchedulerMixin):
        raise ModelError(f"the scheduler configuration names {kind!r}, which diffusers {diffusers.__version__} lacks")
    if not hasattr(cls, "from_config"):
        raise ModelError(f"scheduler {kind} cannot be built from a configuration")
    # Words of other classes make diffusers warn, and those that `_use_default_values` lists it would replace.
    config = {word: value for word, value in config.items() if word in inspect.signature(cls).parameters}
    try:
        theirs = cls.from_config(config)
    except Exception as error:  # whatever a scheduler raises, its configuration is what is wrong
        raise ValueError(str(error)) from None
    if getattr(theirs, "alphas_cumprod", None) is None:
        raise ModelError(f"scheduler {kind} has no alphas_cumprod table, so its process is unknown")
    return Convention(DiscreteVP(_alphas_cumprod(theirs)), prediction_type(config.get("prediction_type", "epsilon")))


def _alphas_cumprod(scheduler: Any) -> np.ndarray:
    """A scheduler's table; from its betas in float64 where the products have become 0 or equal in its float32."""
    table: np.ndarray = scheduler.alphas_cumprod.double().numpy()
    betas = getattr(scheduler, "betas", None)
    if betas is None or np.all(np.diff(table) < 0):
        return table
    return np.cumprod(1.0 - betas.double().numpy())


def timesteps_for(convention: Convention, t: Scalar, x: Tensor, *, rounded: bool = False) -> Tensor:
    """What a network is told at time t, one float32 number for each sample of x (N, ...)."""
    time = convention.timestep(t)
    time = np.round(time) if rounded and isinstance(convention.process, DiscreteVP) else time
    if np.ndim(time):
        return torch.from_numpy(np.asarray(time, dtype=np.float32)).to(x.device, non_blocking=True)
    return torch.full((len(x),), float(time), dtype=torch.float32, device=x.device)


def without_variance(output: Tensor, channels: int) -> Tensor:
    """A prediction (N, channels, ...) without the variance in the channels behind it (Nichol & Dhariwal 2021)."""
    return output if output.shape[1] == channels else output[:, :channels]


def with_zero_snr(convention: Convention) -> Convention:
    """A table that ends in pure noise, for a network that says something there.

    Raises:
        UsageError: there is no table, or epsilon is predicted, from which x0 does not follow where alpha = 0.
    """
    process = convention.process
    if not isinstance(process, DiscreteVP):
        raise UsageError(f"zero_snr changes a table of alphas_cumprod, and {type(process).__name__} has none")
    if convention.prediction == "epsilon":
        raise UsageError(
            "zero_snr needs a model that predicts v or the sample: at alpha = 0 epsilon is all of the input"
        )
    made = convention.on(process.with_zero_terminal_snr())
    made.process.own_grid = process.own_grid
    return made
