"""Conventions: how a network trained with a diffusers scheduler is evaluated, and what its output means."""

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
    """A process, a prediction type, and the conversions to a network's inputs and from its output.

    This base class is the convention of a DDPM noise schedule: the network receives the timestep, which is the
    process's own time, and the unscaled state.

    Attributes:
        process: the process that the network was trained on.
        prediction: the prediction type that `read` returns, one of `PREDICTIONS`.
        data_range: (low, high) of the pixels that networks of this convention are trained on.
        is_plain: True if `scale_input` returns the state and `read` the output, unchanged.
        reads_state: True if `read` adds a multiple of the state to the output, which needs float32.
        grid, clip: the grid settings and the clipping of x0 in the configuration, if any; else None.
    """

    data_range = (-1.0, 1.0)
    is_plain = True
    reads_state = False
    grid: GridSettings | None = None
    clip: Clip | None = None

    def __init__(self, process: GaussianProcess, prediction: str) -> None:
        self.process, self.prediction = process, prediction

    def on(self, process: GaussianProcess) -> Convention:
        """Return the same convention with another process of the same class."""
        made = copy(self)
        made.process = process
        return made

    def timestep(self, t: Scalar) -> Scalar:
        """Return the network time (timestep, log sigma, ...) at time t of the process."""
        return np.clip(t, 0.0, self.process.t_max)

    def time(self, timestep: Scalar) -> Scalar:
        """Return the process's time for a network time; the inverse of `timestep`."""
        return timestep

    def scale_input(self, x: Tensor, t: Scalar) -> Tensor:
        """Return the network's input for the state x (N, ...) at time t."""
        return x

    def read(self, output: Tensor, x: Tensor, t: Scalar) -> Tensor:
        """Convert the network's output (N, ...) for the state x at time t to the type `prediction`."""
        return output

    def target(self, t: Scalar) -> tuple[Scalar, Scalar]:
        """Return (p, q) of the training target p x0 + q eps at time t; here that of v prediction (get_velocity)."""
        return -self.process.sigma(t), self.process.alpha(t)


class ScoreVE(Convention):
    """The VE networks of Song et al. (2021): they receive sigma, and are trained on pixels in [0, 1]."""

    data_range = (0.0, 1.0)
    process: VE

    def timestep(self, t: Scalar) -> Scalar:
        return self.process.sigma(t)

    def time(self, timestep: Scalar) -> Scalar:
        return self.process.time_at_ratio(timestep)

    def target(self, t: Scalar) -> tuple[Scalar, Scalar]:
        return 0.0 * t, -1.0 / self.process.sigma(t)


class Preconditioned(Convention):
    """The raw network F of Karras et al. (2022), eq. 7: x0 = c_skip x + c_out F(c_in x, c_noise) for x = x0 + t eps.

    c_in = (t^2 + d^2)^(-1/2), c_skip = d^2 / (t^2 + d^2) and c_out = t d c_in (their table 1), where d is the standard
    deviation of the data. For networks that predict v, c_out has the opposite sign.

    Args:
        process: the EDM process.
        sigma_data: d.
        clock: the network time: "edm" (c_noise = log(t)/4), "consistency" (1000 times that; Song et al. 2023) or
            "angle" (2/pi atan(t), Stable Audio).
        sign: of c_out.
        boundary: the time t_0 at which x0 = x: c_skip = d^2 / ((t - t_0)^2 + d^2), c_out = (t - t_0) d c_in
            (consistency models, Song et al. 2023, appendix C).
    """

    is_plain, reads_state = False, True

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
        """Return c_skip and c_out."""
        above = t - self.boundary
        skip = self.sigma_data**2 / (above**2 + self.sigma_data**2)
        return skip, self.sign * above * self.sigma_data / np.hypot(t, self.sigma_data)

    def read(self, output: Tensor, x: Tensor, t: Scalar) -> Tensor:
        skip, out = self._weights(t)
        if np.ndim(t):
            return x * expand(skip, x) + output * expand(out, x)
        return torch.add(scaled(x, float(skip)), output, alpha=float(out))


class Flow(Convention):
    """Flow matching: the network receives 1000 t and predicts eps - x0; if `reverse`, 1000 (1 - t) and x0 - eps."""

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
    """TrigFlow's v prediction, x0 = cos(t) x - sin(t) F (Lu & Song 2025); the network time is `factor` times t."""

    is_plain, reads_state = False, True
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
    """Return the convention of a diffusers scheduler's configuration.

    A discrete noise schedule is computed by the scheduler class itself, so `beta_schedule`, `trained_betas` and
    `rescale_betas_zero_snr` mean the same as in diffusers. Grid and clipping settings are kept as attributes of the
    convention; solver settings are ignored.

    Args:
        config: of any diffusers scheduler, or of our `Scheduler`.

    Raises:
        ModelError: an unsupported scheduler, or an invalid configuration.
    """
    config = config if own_part(config) is None else trained_part(config)
    kind = class_of(config)
    if kind in REFUSED:
        raise ModelError(f"models sampled with {kind} are not supported: {REFUSED[kind]}")
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
        raise ModelError(f"the {kind} configuration is invalid: {text[:300]}") from None


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
    return _discrete(config, kind)


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
    """Stable Video Diffusion, CosXL: an EDM network between two sigmas, by default those of the class's schedule."""
    if config.get("sigma_min") is None or config.get("sigma_max") is None:
        schedule = _discrete(config, kind).process
        ends = {"sigma_min": float(schedule.ratio(schedule.t_min)), "sigma_max": float(schedule.ratio(schedule.t_max))}
        config = {**config, **{key: value for key, value in ends.items() if config.get(key) is None}}
    return _preconditioned({**config, "sigma_data": 1.0}, 1.0, "edm")


def _flow(config: dict[str, Any], kind: str) -> Flow:
    dynamic = bool(config.get("use_dynamic_shifting"))
    shift = 1.0 if dynamic else _number(config, "shift" if kind in FLOW else "flow_shift", 1.0)
    steps = _number(config, "num_train_timesteps", 1000)
    return Flow(RectifiedFlow(shift), steps, reverse=bool(config.get("invert_sigmas")))


def with_shift(convention: Convention, config: dict[str, Any], mu: float | None) -> Convention:
    """Return a flow model's convention with the resolution-dependent shift e^mu, or mu if time_shift_type is linear.

    Conventions of other models, and of flow models with one shift for all resolutions, are returned unchanged, since
    their pipelines may pass mu too.

    Raises:
        UsageError: the configuration has `use_dynamic_shifting` and there is no mu.
    """
    if not isinstance(convention, Flow) or not config.get("use_dynamic_shifting"):
        return convention
    if mu is None:
        raise UsageError("this model's shift depends on the resolution (use_dynamic_shifting), so mu is needed")
    shift = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
    return attach(convention.on(RectifiedFlow(shift)), config, mu)


def _discrete(config: dict[str, Any], kind: str) -> Convention:
    """Return the convention of a discrete noise schedule, which the scheduler class computes."""
    import diffusers  # diffusers takes seconds to import

    # DPMSolverSDEScheduler needs torchsde, for noise that is unused here; the schedule is the same.
    kind = "EulerDiscreteScheduler" if kind == "DPMSolverSDEScheduler" else kind
    cls = getattr(diffusers, kind, None)
    if cls is None or not isinstance(cls, type) or not issubclass(cls, diffusers.SchedulerMixin):
        raise ModelError(f"the scheduler configuration names {kind!r}, which diffusers {diffusers.__version__} lacks")
    if not hasattr(cls, "from_config"):
        raise ModelError(f"scheduler {kind} cannot be constructed from a configuration")
    # diffusers warns of keys of other classes, and would replace the keys that `_use_default_values` lists.
    config = {key: value for key, value in config.items() if key in inspect.signature(cls).parameters}
    try:
        scheduler = cls.from_config(config)
    except Exception as error:  # whatever a scheduler raises, its configuration is the cause
        raise ValueError(str(error)) from None
    if getattr(scheduler, "alphas_cumprod", None) is None:
        raise ModelError(f"scheduler {kind} has no alphas_cumprod table, so its process is unknown")
    return Convention(DiscreteVP(_alphas_cumprod(scheduler)), prediction_type(config.get("prediction_type", "epsilon")))


def _alphas_cumprod(scheduler: Any) -> np.ndarray:
    """Return a scheduler's alphas_cumprod; from its betas in float64 if they are not strictly decreasing in float32."""
    table: np.ndarray = scheduler.alphas_cumprod.double().numpy()
    betas = getattr(scheduler, "betas", None)
    if betas is None or np.all(np.diff(table) < 0):
        return table
    return np.cumprod(1.0 - betas.double().numpy())


def timesteps_for(convention: Convention, t: Scalar, x: Tensor, *, rounded: bool = False) -> Tensor:
    """Return the network times at time t, one float32 number for each sample of x (N, ...).

    They are rounded to integers if `rounded` and the noise schedule is discrete.
    """
    time = convention.timestep(t)
    time = np.round(time) if rounded and isinstance(convention.process, DiscreteVP) else time
    if np.ndim(time):
        return torch.from_numpy(np.asarray(time, dtype=np.float32)).to(x.device, non_blocking=True)
    return torch.full((len(x),), float(time), dtype=torch.float32, device=x.device)


def without_variance(output: Tensor, channels: int) -> Tensor:
    """Return an output's first channels (N, channels, ...), without a learned variance (Nichol & Dhariwal 2021)."""
    return output if output.shape[1] == channels else output[:, :channels]


def with_zero_snr(convention: Convention) -> Convention:
    """Rescale a discrete noise schedule to end in pure noise (zero terminal SNR; Lin et al. 2024).

    Raises:
        UsageError: the schedule is not discrete, or the network predicts epsilon, which does not determine x0 at
            alpha = 0.
    """
    process = convention.process
    if not isinstance(process, DiscreteVP):
        raise UsageError(f"zero_snr rescales alphas_cumprod, which {type(process).__name__} does not have")
    if convention.prediction == "epsilon":
        raise UsageError(
            "zero_snr needs a model that predicts v or the sample: at alpha = 0 the input is epsilon alone, without x0"
        )
    made = convention.on(process.with_zero_terminal_snr())
    made.process.own_grid = process.own_grid
    return made
