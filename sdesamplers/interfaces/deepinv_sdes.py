"""deepinv's diffusion SDEs as models, and models as deepinv's diffusion SDEs.

deepinv writes the marginals as x_t = s(t) (x_0 + sigma(t) eps), so that its scale is our alpha, and its sigma our
sigma/alpha, the noise level that its denoisers receive together with x_t / s(t).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import known_keywords, number, shown
from ..errors import UsageError
from ..models.base import Model, Output
from ..models.calling import as_flat, call, isolated
from ..processes.predictions import convert
from ..processes.scalars import Scalar, expand
from ..processes.sde import GaussianProcess, starts_as_noise
from ..public import public
from .keyword_denoiser import KeywordDenoiser, keywords_of
from .schedule_process import ScheduleProcess

RATIO_AT_END = 99.0
"""The last sigma/alpha of a process whose alpha falls to 0, at which deepinv's denoisers have no input: that of its
`FlowMatching`, which ends at t = 0.99."""


TimeFunction = Callable[[Scalar], Scalar]


def process_of(sde: Any, t_max: float, t_min: float | None = None) -> ScheduleProcess:
    """The process of an SDE of deepinv, on its own clock.

    Args:
        sde: an object with `scale_t` and `sigma_t`; their slopes are its `scale_prime_t` and `sigma_prime_t` if it has
            them, otherwise found by autograd.
        t_max: the latest time.
        t_min: the earliest time at which the score is evaluated; by default 0 if the SDE ends at a positive noise
            level there, otherwise t_max / 1000.

    Raises:
        UsageError: the SDE has no scale and noise level.
    """
    try:
        first, last = float(sde.sigma_t(0.0)), float(sde.scale_t(t_max))
    except (AttributeError, NotImplementedError):
        raise UsageError(
            f"{type(sde).__name__} has no scale_t and sigma_t, which the samplers need; deepinv's EDMDiffusionSDE and "
            "its subclasses have them"
        ) from None
    if not last > 0:
        raise UsageError(
            f"the scale of this SDE is {last:g} at its end t = {t_max:g}, and deepinv's denoisers receive x / scale; "
            "end it earlier, such as at T=0.99"
        )

    def schedule(t: Tensor) -> tuple[Tensor, Tensor]:
        scale, ratio = like(sde.scale_t(t), t), like(sde.sigma_t(t), t)
        return scale, scale * ratio

    def slopes(t: Tensor) -> tuple[Tensor, Tensor]:
        scale, ratio = like(sde.scale_t(t), t), like(sde.sigma_t(t), t)
        d_scale, d_ratio = like(sde.scale_prime_t(t), t), like(sde.sigma_prime_t(t), t)
        return d_scale, d_scale * ratio + scale * d_ratio

    given = slopes if hasattr(sde, "scale_prime_t") and hasattr(sde, "sigma_prime_t") else None
    if given is None and not is_differentiable(schedule, t_max / 2):
        raise UsageError(
            f"the noise level of this {type(sde).__name__} has no derivative: write sigma_t and scale_t in torch, or "
            "give the SDE sigma_prime_t and scale_prime_t"
        )
    if t_min is None:
        t_min = 0.0 if first > 0 else t_max / 1000
    return ScheduleProcess(schedule, given, t_min=t_min, t_max=t_max)


def is_differentiable(schedule: Callable[[Tensor], tuple[Tensor, Tensor]], t: float) -> bool:
    """True if autograd follows sigma of a schedule."""
    try:
        with torch.enable_grad():
            return schedule(torch.tensor(t, dtype=torch.float64, requires_grad=True))[1].requires_grad
    except RuntimeError:  # NumPy's functions refuse tensors that require gradients
        return False


def like(value: Any, t: Tensor) -> Tensor:
    """A value of one of deepinv's schedules, a tensor or a number, in the form of the times."""
    return torch.as_tensor(value).to(t.device, t.dtype).expand(t.shape)


class DeepinvModel(KeywordDenoiser):
    """A denoiser of deepinv as a model that predicts x0; a dictionary as its condition is passed as keywords."""

    pure = True

    def _called(self, x: Tensor, times: tuple[Scalar, ...], *given: Any) -> Tensor | Output:
        (t,) = times
        process = self.gaussian
        kwargs = keywords_of(given)
        inside, ratio = x / expand(process.alpha(t), x), as_flat(process.ratio(t), x)
        output: Tensor | Output = call(self.function, inside, ratio, name=self.name, **kwargs)
        return output


@public
@known_keywords("data_range", "name", "clip", "dtype", "device", "conditional", "null_condition")
def from_deepinv(sde: Any, shape: Sequence[int], **options: Any) -> Model:
    """A model from one of deepinv's diffusion SDEs, with the SDE's denoiser and on its clock.

    The weight `alpha` of the SDE's noise and its solver are not used: the sampler determines both. Samples are in the
    range of the SDE's states, [-1, 1] if it is `minus_one_one`; deepinv's own `sample` then returns (samples + 1) / 2.

    Args:
        sde: a `deepinv.sampling.EDMDiffusionSDE` (`VariancePreservingDiffusion`, `FlowMatching`, ...) with a denoiser.
        shape: the shape of one sample.
        **options: further arguments of `FunctionModel`. `data_range` is (-1, 1) if the SDE is `minus_one_one`; x0 is
            not clipped unless `clip` is passed. A condition is a dictionary of the denoiser's keyword arguments.

    Raises:
        UsageError: no such SDE, or it has no denoiser; or an invalid option.

    Example:
        >>> denoiser = deepinv.models.NCSNpp(pretrained="download")
        >>> sde = deepinv.sampling.VariancePreservingDiffusion(denoiser)
        >>> sds.sample(sds.from_deepinv(sde, (3, 64, 64)), "dpmpp-2m", steps=20, num_samples=4)
    """
    denoiser = getattr(sde, "denoiser", None)
    if isinstance(sde, type) or not callable(getattr(sde, "scale_t", None)) or not hasattr(sde, "denoiser"):
        raise UsageError(f"sde must be one of deepinv's diffusion SDEs, such as FlowMatching(), not {shown(sde)}")
    if denoiser is None or getattr(denoiser, "model", denoiser) is None:  # deepinv wraps a missing one too
        raise UsageError(f"this {type(sde).__name__} has no denoiser: pass one when it is created, denoiser=...")
    process = process_of(sde, float(getattr(sde, "T", 1.0)))
    bounded = {"data_range": (-1.0, 1.0)} if getattr(sde, "minus_one_one", False) else {}
    options = {"name": type(sde).__name__, "clip": False, **bounded, **options}
    return DeepinvModel(denoiser, process, "sample", shape, **options)


@public
def as_deepinv(model: Model, *, alpha: float | Callable[[Any], Any] = 1.0, solver: Any = None) -> Any:
    """A model as one of deepinv's diffusion SDEs, for its solvers and its posterior sampling.

    Its time is that of the model's process, from `T` (the process's `t_max`, or earlier if alpha falls to 0 there) to
    `t_min`. If the model's data are in [-1, 1], the SDE is `minus_one_one`: its denoiser and the samples are in [0, 1],
    as all of deepinv's. Keyword arguments of the denoiser: `condition`, as in `sample`.

    deepinv evaluates denoisers in float32.

    Args:
        model: a `Model` with alpha and sigma.
        alpha: the weight of the noise: 0 for the ODE, 1 for the reverse SDE, or a function of time. It is the square
            of `eta` in this library.
        solver: one of deepinv's, or from `as_deepinv_solver`.

    Returns:
        A `deepinv.sampling.EDMDiffusionSDE`.

    Raises:
        UsageError: not a model, or its process has no alpha and sigma.
        ModuleNotFoundError: deepinv is not installed.

    Example:
        >>> solver = deepinv.sampling.DDIMSolver(timesteps=torch.linspace(1, 0.001, 50), rng=torch.Generator())
        >>> sds.as_deepinv(model, solver=solver).sample((4, *model.shape), seed=0)
    """
    if not isinstance(model, Model):
        raise UsageError(f"model must be a Model, not {shown(model)}")
    if not callable(alpha) and not number("alpha", alpha) >= 0:
        raise UsageError(f"alpha must be 0, for the ODE, or positive, not {alpha}")
    process = model.gaussian  # raises if there are no alpha and sigma
    from deepinv.models import Denoiser  # an optional package
    from deepinv.sampling import EDMDiffusionSDE

    bounded = model.data_range is not None and tuple(model.data_range) == (-1.0, 1.0)
    low, high = float(process.ratio(process.t_min)), float(process.ratio(process.t_max))

    class ModelDenoiser(Denoiser):
        """The x0 of the model, for data in [0, 1] if the model's are in [-1, 1]."""

        def __init__(self) -> None:
            super().__init__()
            self.network = model.network if isinstance(model.network, torch.nn.Module) else None

        def forward(self, x: Tensor, sigma: Any, condition: Any = None) -> Tensor:
            ratio = np.asarray(torch.as_tensor(sigma).detach().double().cpu().reshape(-1))
            if bounded:
                x, ratio = 2 * x - 1, 2 * ratio
            if ratio.max() > high * (1 + 1e-6):
                raise UsageError(f"sigma is {ratio.max():g}, and model {model.name!r} was trained up to {high:g}")
            x0 = denoised(x, ratio.clip(low, high), condition)
            return (x0 + 1) / 2 if bounded else x0

    def denoised(x: Tensor, ratio: np.ndarray, condition: Any) -> Tensor:
        """The x0 of the model at states x = x0 + ratio eps."""
        times = process.time_at_ratio(ratio if len(ratio) > 1 else float(ratio[0]))
        state = x * expand(process.alpha(times), x)
        given = model.condition_for(condition, len(x))
        output = isolated(model)(state.to(model.device, model.dtype), times, given)
        value = output.value if isinstance(output, Output) else output
        return convert(value.to(x), model.prediction, "sample", state, process, times)

    def slope(t: Scalar) -> Scalar:
        return d_ratio(process, t)

    differentiable: Any = Differentiable.apply

    last = process.time_at_ratio(RATIO_AT_END) if starts_as_noise(process) else process.t_max
    return EDMDiffusionSDE(
        sigma_t=lambda t: differentiable(t, process.ratio, slope), sigma_prime_t=lambda t: evaluated(slope, t),
        scale_t=lambda t: differentiable(t, process.alpha, process.d_alpha),
        scale_prime_t=lambda t: evaluated(process.d_alpha, t),
        alpha=alpha, T=float(last), denoiser=ModelDenoiser(), solver=solver, minus_one_one=bounded, device=model.device,
    )  # fmt: skip


def d_ratio(process: GaussianProcess, t: Scalar) -> Scalar:
    """The slope of sigma/alpha."""
    alpha, sigma, d_alpha, d_sigma = process.schedule(t)
    return (d_sigma * alpha - sigma * d_alpha) / alpha**2


class Differentiable(torch.autograd.Function):
    """A function of times of a process as one of tensors, with its slope: deepinv's posteriors pass on values alone."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, function: TimeFunction, slope: TimeFunction) -> Tensor:
        ctx.save_for_backward(t)
        ctx.slope = slope
        return evaluated(function, t)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (t,) = ctx.saved_tensors
        return grad * evaluated(ctx.slope, t), None, None


def evaluated(function: TimeFunction, t: Tensor) -> Tensor:
    """The values of a function of times of a process at a tensor of times."""
    times = t.detach().double().cpu().numpy()
    values = function(times if times.ndim else float(times))
    return torch.as_tensor(np.broadcast_to(np.asarray(values), t.shape).copy()).to(t)
