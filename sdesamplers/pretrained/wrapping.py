"""`wrap`: a plain network as a model; trial calls find out how the network is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import device_of, known_keywords, one_of_types, shown
from ..errors import UsageError, with_article
from ..models.base import Model, Output
from ..models.calling import call
from ..models.conditions import cloned, take_rows
from ..models.function import FunctionModel
from ..processes.check import check_process
from ..processes.reversal import Reversed
from ..processes.scalars import Scalar, is_per_sample
from ..processes.schedules import EDM, RectifiedFlow, float_column
from ..processes.sde import GaussianProcess, not_a_process
from ..processes.table import DiscreteVP
from ..public import public
from .call_errors import call_error, check_condition_keyword
from .call_styles import CallStyle, as_network_time, possible_call_styles
from .conventions import Preconditioned
from .trial import Trial, undisturbed, warn_of_denoiser

Clock = float | Callable[[Any], Any]


@public
class WrappedModel(FunctionModel):
    """A user's network as a model, created by `wrap`.

    Attributes:
        asking: the call style of the network: argument order, shape and dtype of its times.
        clock: maps the process's time to the network time: a factor, or a function.
        preconditioning: the convention of a raw EDM network, or None. `dtype` is then float32 at least, and only the
            network's input is rounded to the network's dtype.
        channels: the number of channels that the network returns, if it differs from the state's; else None.
    """

    pure = True
    asking: CallStyle
    channels: int | None = None

    def __init__(self, network: Any, process: GaussianProcess, prediction: str, shape: Sequence[int],
                 clock: Clock, preconditioning: Preconditioned | None, **options: Any) -> None:  # fmt: skip
        super().__init__(network, process, prediction, shape, **{"name": type(network).__name__, **options})
        self.network = network if isinstance(network, torch.nn.Module) else None
        self.clock, self.preconditioning = clock, preconditioning
        if preconditioning is not None:
            self._widen()

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}; {self.found}>"

    @property
    def found(self) -> str:
        """A description of how the network is called, and with which times."""
        first, last = (self.network_clock(float(t)) for t in (self.process.t_max, self.process.t_min))
        parts = [f"called as {self.asking.text(self.conditional)}, from {first:.6g} (noise) to {last:.6g} (data)"]
        if self.channels is not None:
            parts.append(f"{self.channels} channels, the first {self.shape[0]} are the prediction")
        if self.preconditioning is not None:
            parts.append(f"preconditioned with sigma_data = {self.preconditioning.sigma_data:g}")
        return "; ".join(parts)

    def facts(self) -> dict[str, Any]:
        ends = np.linspace(float(self.process.t_min), float(self.process.t_max), 5)
        return {**super().facts(), "called": self.found, "told": [f"{self.network_clock(t):.12g}" for t in ends]}

    def network_clock(self, t: Scalar) -> Scalar:
        """The network time at time t of the process."""
        t = self.process.network_time(t)
        return self.clock(t) if callable(self.clock) else self.clock * t

    def _called(self, x: Tensor, times: tuple[Scalar, ...], *given: Any) -> Tensor | Output:
        network_times = (as_network_time(self.network_clock(t), x) for t in times)
        output: Tensor | Output = call(self.function, x.clone(), *network_times, *map(cloned, given), name=self.name)
        return output

    def predict(self, x: Tensor, t: Scalar, condition: Any = None) -> Tensor | Output:
        if self.asking.time_shape == "one" and is_per_sample(t) and np.any(t != t[0]):
            return self._predict_time_by_time(x, t, condition)
        preconditioning = self.preconditioning
        if preconditioning is None:
            return super().predict(x, t, condition)
        output = super().predict(preconditioning.scale_input(x, t).to(self.network_dtype), t, condition)
        assert isinstance(output, Tensor)
        return preconditioning.read(output.to(x.dtype), x, t)

    def _predict_time_by_time(self, x: Tensor, t: np.ndarray, condition: Any) -> Tensor:
        """Predict samples at different times with a network that takes a single time for the batch."""
        whole = torch.empty_like(x)
        for time in np.unique(t):
            rows = np.flatnonzero(t == time)
            output = self.predict(x[rows], float(time), take_rows(condition, rows))
            assert isinstance(output, Tensor)
            whole[rows] = output.to(whole.dtype)
        return whole


@public
@known_keywords("data_range", "name", "clip")
def wrap(
    network: Any,
    shape: Sequence[int] | None = None,
    *,
    betas: Any = None,
    alphas_cumprod: Any = None,
    process: GaussianProcess | None = None,
    prediction: str | None = None,
    timesteps: str | None = None,
    clock: Clock = 1.0,
    sigma_data: float | None = None,
    conditional: bool | str = False,
    null_condition: Any = None,
    example: Any = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> WrappedModel:
    """Wrap a plain network as a model; it needs no base class and no adapter function.

    Trial calls on noise, in evaluation mode and without gradients, find out how the network takes its time: as (N,),
    which is the most common, (N, 1, ..., 1), (N, 1) or a scalar; as float32 or as integers; before or after the state.
    `model.found` describes the result. The network may return a tensor, an object with `sample`, a tuple or a
    dictionary, and twice the channels of the state (the second half is a learned variance, which is ignored).

        model = sds.wrap(net, (3, 32, 32), betas=torch.linspace(1e-4, 0.02, 1000))
        sds.sample(model, num_samples=16)

    Args:
        network: a module or a function of a state (N, *shape) and a time.
        shape: of one sample; by default from the network's configuration, if it is a network of diffusers.
        betas: the noise schedule that it was trained on, beta_1 ... beta_T (DDPM), or
        alphas_cumprod: cumprod(1 - betas) instead, or
        process: any Gaussian process instead; `sds.reversed(...)` if the network's time runs from noise to data.
        prediction: what the network predicts, one of `PREDICTIONS`. By default "epsilon" for betas or alphas_cumprod,
            "flow" for a rectified flow.
        timesteps: "int" for a network that takes integer timesteps (`nn.Embedding`), to which times are rounded;
            "float" for a network that takes float32; by default the trial calls decide.
        clock: maps time t of the process to the network time: a factor (1000 for flow networks with times from 0 to
            1000), or a function of t (a float or a NumPy array), such as `lambda sigma: np.log(sigma) / 4`.
        sigma_data: for the raw network F of Karras et al. (2022), eq. 7, on `EDM`: applies c_skip, c_out and c_in, and
            c_noise = log(sigma)/4 if no `clock` is given; in float32 at least, whatever the network's dtype. For a
            denoiser D(x, sigma) pass process=sds.EDM(), prediction="sample" instead.
        conditional: True if the network takes a condition as its third argument, or the keyword of that argument
            ("y").
        null_condition: the condition that means "no condition", for guidance.
        example: a condition for the trial calls; by default `null_condition`, else the label 0.
        dtype, device: of the network's input; by default those of its parameters.
        **options: further arguments of `FunctionModel` (data_range, name, ...).

    Raises:
        UsageError: invalid or conflicting arguments, or no call style works; the message has the errors that the
            network raised, each once, its parameters, and what to change.
    """
    if isinstance(network, Model):
        raise UsageError(f"wrap takes a network, and this is a model already: sample {network!r} as it is")
    if isinstance(network, type):
        raise UsageError(f"wrap takes a network, not the class {network.__name__}: pass {network.__name__}(...)")
    if not callable(network):
        raise UsageError(f"wrap takes a network, a module or a function of (x, t), not {shown(network)}")
    own = _process(betas, alphas_cumprod, process, sigma_data)
    kind = _prediction(own, prediction, sigma_data)
    for name, text in (("timesteps", timesteps), ("prediction", prediction)):
        one_of_types(name, text, (str, type(None)), "text")
    one_of_types("conditional", conditional, (bool, str), "True, False or the keyword of the condition")
    one_of_types("dtype", dtype, (torch.dtype, type(None)), "a torch dtype, such as torch.float32")
    if timesteps not in (None, "int", "float"):
        raise UsageError(f"timesteps must be 'int' or 'float', not {timesteps!r}")
    if not callable(clock) and (isinstance(clock, bool) or not isinstance(clock, int | float) or not 0 < clock < 1e12):
        raise UsageError(f"clock must be a positive number or a function of the time, not {clock!r}")
    preconditioning = None if sigma_data is None else _preconditioning(own, sigma_data)
    default = c_noise if preconditioning is not None and clock == 1.0 else clock
    found_dtype, found_device = _dtype_and_device(network)
    place = found_device if device is None else device_of("device", device)
    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device {str(place)!r} cannot be used here: {str(error).splitlines()[0]}") from None
    model = WrappedModel(
        network, own, kind, _shape(network, shape), default, preconditioning,
        dtype=dtype or found_dtype, device=place,
        conditional=bool(conditional), null_condition=null_condition, **options,
    )  # fmt: skip
    check_process(own)
    _check_clock(model)
    keyword = conditional if isinstance(conditional, str) else None
    check_condition_keyword(network, keyword)
    _find_call_style(model, timesteps, keyword, example)
    return model


def c_noise(t: Scalar) -> Scalar:
    """The network time of Karras et al. (2022), table 1."""
    return 0.25 * np.log(t)  # type: ignore[no-any-return]


def _process(betas: Any, alphas_cumprod: Any, process: Any, sigma_data: float | None) -> GaussianProcess:
    given = {"betas": betas, "alphas_cumprod": alphas_cumprod, "process": process}
    names = [name for name, value in given.items() if value is not None]
    if not names and sigma_data is not None:
        return EDM()
    if len(names) != 1:
        found = " and ".join(names) or "none"
        raise UsageError(
            f"wrap needs exactly one of betas=, alphas_cumprod= and process=, or sigma_data= alone; given: {found}"
        )
    if process is None:
        return table_process(betas, alphas_cumprod)
    if not isinstance(process, GaussianProcess):
        expected = "process must be a Gaussian process, such as VP() or RectifiedFlow()"
        if hasattr(process, "alphas_cumprod") and not isinstance(process, type):
            kind = type(process).__name__
            raise UsageError(f"{expected}, not {with_article(kind)}; pass alphas_cumprod=scheduler.alphas_cumprod")
        raise not_a_process(expected, process)
    return process


def table_process(betas: Any, alphas_cumprod: Any) -> DiscreteVP:
    """Return the process of a DDPM noise schedule, given as either betas or alphas_cumprod."""
    name, column = ("betas", betas) if betas is not None else ("alphas_cumprod", alphas_cumprod)
    table = float_column(column, name)
    if betas is not None:
        if table.ndim != 1 or not np.all((table > 0) & (table <= 1)):
            raise UsageError("betas must be a list of numbers above 0 and at most 1")
        if len(table) > 1 and table[0] > 0.5:
            raise UsageError(
                f"betas are small noise increments, such as 1e-4 to 0.02, but these start at {table[0]:.4g}: "
                "are they alphas_cumprod?"
            )
        table = np.cumprod(1 - table)
    made = DiscreteVP(table)
    if made.alphas_cumprod[-1] > 0.9:
        raise UsageError(
            f"the schedule ends at alphas_cumprod = {made.alphas_cumprod[-1]:.4g}, which is mostly data, not noise; if "
            "these are alphas = 1 - betas, pass alphas_cumprod=np.cumprod(alphas)"
        )
    return made


def _prediction(process: GaussianProcess, prediction: str | None, sigma_data: float | None) -> str:
    if sigma_data is not None:
        if prediction not in (None, "sample"):
            raise UsageError(f"sigma_data= determines what the raw network F predicts; omit prediction={prediction!r}")
        return "sample"
    if prediction is not None:
        return prediction
    if isinstance(process, DiscreteVP):
        return "epsilon"
    own = process.process if isinstance(process, Reversed) else process
    if isinstance(process, Reversed) or isinstance(own, RectifiedFlow):
        return "flow"
    kind = type(process).__name__
    raise UsageError(
        f"prediction= is required on {kind}; it is what the network predicts: 'epsilon', 'sample' (x0; a denoiser), "
        "'v', 'score' or 'flow' (the velocity)"
    )


def _preconditioning(process: GaussianProcess, sigma_data: float) -> Preconditioned:
    if not isinstance(process, EDM):
        raise UsageError(f"sigma_data applies only to networks on EDM(), not on {type(process).__name__}")
    if isinstance(sigma_data, bool) or not isinstance(sigma_data, int | float) or not sigma_data > 0:
        raise UsageError(f"sigma_data must be a positive number, not {sigma_data!r}")
    return Preconditioned(process, float(sigma_data))


def _shape(network: Any, shape: Any) -> tuple[int, ...]:
    if shape is None:
        config = getattr(network, "config", None)
        channels, size = getattr(config, "in_channels", None), getattr(config, "sample_size", None)
        if channels is None or size is None:
            raise UsageError("shape= is required: the shape of one sample, such as (3, 32, 32), without the batch")
        shape = (channels, *((size, size) if isinstance(size, int) else size))
    sizes = (shape,) if isinstance(shape, int) and not isinstance(shape, bool) else shape
    try:
        found = tuple(int(size) for size in sizes)
    except (TypeError, ValueError):
        found = ()
    if not found or any(size < 1 for size in found):
        raise UsageError(f"shape must be the positive integers of one sample's shape, as in (3, 32, 32), not {shape!r}")
    return found


def _dtype_and_device(network: Any) -> tuple[torch.dtype, torch.device]:
    """Return the dtype and device of a network's first floating-point parameter, else float32 and the CPU."""
    if isinstance(network, torch.nn.Module):
        for parameter in network.parameters():
            if parameter.is_floating_point():
                return parameter.dtype, parameter.device
    return torch.float32, torch.device("cpu")


def _check_clock(model: WrappedModel) -> None:
    """Evaluate `clock=` as a model does: at a time, and at one time for each sample."""
    if not callable(model.clock):
        return
    times = np.array([float(model.process.t_max), float(model.process.t_min)])
    advice = "it receives the process's time as a float or a NumPy array, as in lambda sigma: np.log(sigma) / 4"
    for kind, given in (("the float", float(times[0])), ("the NumPy array", times)):
        try:
            found = torch.as_tensor(model.network_clock(given), dtype=torch.float64).reshape(-1)
        except Exception as error:  # a user's function may raise anything
            text = " ".join(str(error).split())[:160]
            raise UsageError(f"clock= failed at {kind} {given}: {type(error).__name__}: {text}; {advice}") from None
        if len(found) not in (1, np.size(given)):
            raise UsageError(f"clock= returned {len(found)} numbers for {kind} {given}; {advice}")
        if bool(found.isnan().any()):
            raise UsageError(f"clock= returned NaN at {kind} {given}; {advice}")


def _find_call_style(model: WrappedModel, timesteps: str | None, condition_keyword: str | None, example: Any) -> None:
    """Set `model.asking` to the first call style that works."""
    trial = Trial(model, example)
    tried: list[tuple[CallStyle, str]] = []
    with undisturbed(model):
        for style in possible_call_styles(model.function, timesteps, condition_keyword, model.network_dtype):
            problem = trial.problem_with(style)
            if problem is None:
                model.asking, model.channels = style, trial.channels
                trial.warn_of_ends()
                if timesteps is None and not style.integer_times and trial.rounds_times():
                    rounded = replace(style, integer_times=True)
                    model.asking = rounded if trial.problem_with(rounded) is None else style
                _check_integer_times(model)
                if model.preconditioning is not None and trial.is_denoiser():
                    warn_of_denoiser("the network returns its input at the smallest sigma,")
                model.function = model.asking
                return
            tried.append((style, problem))
    conditional = condition_keyword or model.conditional
    raise call_error(model.name, model.function, model.shape, trial.count, conditional, tried)


def _check_integer_times(model: WrappedModel) -> None:
    first, last = (float(model.network_clock(float(t))) for t in (model.process.t_min, model.process.t_max))
    if model.asking.integer_times and abs(last - first) < 2:
        raise UsageError(
            f"the network takes integer timesteps, but its time only runs from {first:g} to {last:g}; pass clock=999, "
            "or the factor that it was trained with"
        )
