"""`wrap`: a plain network as a model, called as it wants to be called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import device_of, one_of_types
from ..errors import UsageError
from ..models.base import Output
from ..models.calling import call
from ..models.conditions import cloned, take_rows
from ..models.function import FunctionModel
from ..processes.check import check_process
from ..processes.reversal import Reversed
from ..processes.scalars import Scalar, is_per_sample
from ..processes.schedules import EDM, RectifiedFlow, float_column
from ..processes.sde import GaussianProcess
from ..processes.table import DiscreteVP
from ..public import public
from .asking import Asking, told, ways
from .conventions import Preconditioned
from .trial import Trial, undisturbed

Clock = float | Callable[[Any], Any]


@public
class WrappedModel(FunctionModel):
    """A network of the user's as a model; `wrap` makes it.

    Attributes:
        asking: how the network is called.
        clock: what its time is, a factor of the process's time or a function of it.
        preconditioning: the convention of a raw EDM network, or None.
        channels: how many channels it returns, where they are not the state's.
    """

    pure = True
    asking: Asking
    channels: int | None = None

    def __init__(self, network: Any, process: GaussianProcess, prediction: str, shape: Sequence[int],
                 clock: Clock, preconditioning: Preconditioned | None, **options: Any) -> None:  # fmt: skip
        super().__init__(network, process, prediction, shape, **{"name": type(network).__name__, **options})
        self.network = network if isinstance(network, torch.nn.Module) else None
        self.clock, self.preconditioning = clock, preconditioning

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}; {self.found}>"

    @property
    def found(self) -> str:
        """How the network is called, and with what, in words."""
        first, last = (self.network_clock(float(t)) for t in (self.process.t_max, self.process.t_min))
        parts = [f"called as {self.asking}, from {first:.6g} (noise) to {last:.6g} (data)"]
        if self.channels is not None:
            parts.append(f"{self.channels} channels, the first {self.shape[0]} are the prediction")
        if self.preconditioning is not None:
            parts.append(f"preconditioned with sigma_data = {self.preconditioning.sigma_data:g}")
        return "; ".join(parts)

    def facts(self) -> dict[str, Any]:
        ends = np.linspace(float(self.process.t_min), float(self.process.t_max), 5)
        return {**super().facts(), "called": self.found, "told": [f"{self.network_clock(t):.12g}" for t in ends]}

    def network_clock(self, t: Scalar) -> Scalar:
        """The network's time where the process's is t."""
        t = self.process.network_time(t)
        return self.clock(t) if callable(self.clock) else self.clock * t

    def _called(self, x: Tensor, times: tuple[Scalar, ...], *given: Any) -> Tensor | Output:
        now = (told(self.network_clock(t), x) for t in times)
        answer: Tensor | Output = call(self.function, x.clone(), *now, *map(cloned, given), name=self.name)
        return answer

    def predict(self, x: Tensor, t: Scalar, condition: Any = None) -> Tensor | Output:
        if self.asking.time_shape == "one" and is_per_sample(t) and np.any(t != t[0]):
            return self._one_time_after_the_other(x, t, condition)
        around = self.preconditioning
        if around is None:
            return super().predict(x, t, condition)
        answer = super().predict(around.scale_input(x, t), t, condition)
        assert isinstance(answer, Tensor)
        return around.read(answer, x, t)

    def _one_time_after_the_other(self, x: Tensor, t: np.ndarray, condition: Any) -> Tensor:
        """Samples at different times, for a network that takes one time for all."""
        whole = torch.empty_like(x)
        for time in np.unique(t):
            rows = np.flatnonzero(t == time)
            answer = self.predict(x[rows], float(time), take_rows(condition, rows))
            assert isinstance(answer, Tensor)
            whole[rows] = answer.to(whole.dtype)
        return whole


@public
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
    """A plain network as a model, as it is: it needs no base class and no lambda.

    A trial call on noise, in evaluation mode and without gradients, finds how the network takes its time: (N,), as most
    do, or (N, 1, ..., 1), (N, 1) or one number; float32 or whole numbers; before or behind the state. `model.found`
    says it. A tensor, an object with `sample`, a tuple, a dictionary and twice the channels (a learned variance) are
    read.

        model = sds.wrap(net, (3, 32, 32), betas=torch.linspace(1e-4, 0.02, 1000))
        sds.sample(model, num_samples=16)

    Args:
        network: a module or a function of a state (N, *shape) and a time.
        shape: of one sample; diffusers' networks bring theirs.
        betas: the table that it was trained on, beta_1 ... beta_T (DDPM), or
        alphas_cumprod: cumprod(1 - betas) instead, or
        process: any Gaussian process instead, `sds.reversed(...)` for a time that runs from noise to data.
        prediction: what it predicts, one of `PREDICTIONS`. By default "epsilon" on a table, "flow" on a rectified flow.
        timesteps: "int" for a network of whole timesteps (`nn.Embedding`): times are rounded to them; "float" for
            one that takes float32; by default what the trial call shows.
        clock: what the network is told at time t of the process: this factor times t (1000 for flow networks of 0 to
            1000), or a function of t (a float or a NumPy array), such as `lambda sigma: np.log(sigma) / 4`.
        sigma_data: for the raw network F of Karras et al. (2022), eq. 7, on `EDM`; c_skip, c_out, c_in and c_noise =
            log(sigma)/4 (if no `clock` is given) come with it. A denoiser D(x, sigma) is process=sds.EDM(),
            prediction="sample".
        conditional: whether it takes a condition, as its third argument, or the keyword of that argument ("y").
        null_condition: what stands for no condition, for guidance.
        example: a condition for the trial call; by default `null_condition`, else the label 0.
        dtype, device: of the network's input; its parameters' by default.
        **options: the others of `FunctionModel` (data_range, name, ...).

    Raises:
        UsageError: arguments that do not fit together, or a network that none of the ways to call it works for; the
            message has them all, with what the network raised.
    """
    if not callable(network):
        raise UsageError(f"wrap takes a network, a module or a function of (x, t), not {network!r}")
    own = _process(betas, alphas_cumprod, process, sigma_data)
    kind = _prediction(own, prediction, sigma_data)
    for word, text in (("timesteps", timesteps), ("prediction", prediction)):
        one_of_types(word, text, (str, type(None)), "text")
    one_of_types("conditional", conditional, (bool, str), "True, False or the keyword of the condition")
    one_of_types("dtype", dtype, (torch.dtype, type(None)), "a dtype of torch, such as torch.float32")
    if timesteps not in (None, "int", "float"):
        raise UsageError(f"timesteps must be 'int' or 'float', not {timesteps!r}")
    if not callable(clock) and (isinstance(clock, bool) or not isinstance(clock, int | float) or not 0 < clock < 1e12):
        raise UsageError(f"clock must be a positive number or a function of the time, not {clock!r}")
    around = None if sigma_data is None else _preconditioning(own, sigma_data)
    default = (lambda t: 0.25 * np.log(t)) if around is not None and clock == 1.0 else clock
    found_dtype, found_device = _home(network)
    place = found_device if device is None else device_of("device", device)
    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device {str(place)!r} cannot be used here: {str(error).splitlines()[0]}") from None
    model = WrappedModel(
        network, own, kind, _shape(network, shape), default, around,
        dtype=dtype or found_dtype, device=place,
        conditional=bool(conditional), null_condition=null_condition, **options,
    )  # fmt: skip
    check_process(own)
    _find_way(model, timesteps, conditional if isinstance(conditional, str) else None, example)
    return model


def _process(betas: Any, alphas_cumprod: Any, process: Any, sigma_data: float | None) -> GaussianProcess:
    given = {"betas": betas, "alphas_cumprod": alphas_cumprod, "process": process}
    names = [name for name, value in given.items() if value is not None]
    if not names and sigma_data is not None:
        return EDM()
    if len(names) != 1:
        found = " and ".join(names) or "none of them"
        raise UsageError(f"wrap needs one of betas=, alphas_cumprod= and process=, not {found}")
    if process is None:
        return table_process(betas, alphas_cumprod)
    if not isinstance(process, GaussianProcess):
        raise UsageError(f"process must be a Gaussian process, such as VP() or RectifiedFlow(), not {process!r}")
    return process


def table_process(betas: Any, alphas_cumprod: Any) -> DiscreteVP:
    """The process of a DDPM table, given by one of two columns of it."""
    word, column = ("betas", betas) if betas is not None else ("alphas_cumprod", alphas_cumprod)
    table = float_column(column, word)
    if betas is not None:
        if table.ndim != 1 or not np.all((table > 0) & (table <= 1)):
            raise UsageError("betas must be a list of numbers above 0, and not above 1")
        if len(table) > 1 and table[0] > 0.5:
            raise UsageError(
                f"betas are the small steps of noise, such as 1e-4 to 0.02, and these start at {table[0]:.4g}: are "
                "they alphas_cumprod?"
            )
        table = np.cumprod(1 - table)
    made = DiscreteVP(table)
    if made.alphas_cumprod[-1] > 0.9:
        raise UsageError(
            f"the table ends at alphas_cumprod = {made.alphas_cumprod[-1]:.4g}, where the data are still there and not "
            "noise; of alphas = 1 - betas pass alphas_cumprod=np.cumprod(alphas)"
        )
    return made


def _prediction(process: GaussianProcess, prediction: str | None, sigma_data: float | None) -> str:
    if sigma_data is not None:
        if prediction not in (None, "sample"):
            raise UsageError(f"a network F with sigma_data predicts neither; leave prediction={prediction!r} out")
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
        f"prediction= says what the network predicts on {kind}: 'epsilon', 'sample' (x0; a denoiser), 'v', 'score' or "
        "'flow' (the velocity)"
    )


def _preconditioning(process: GaussianProcess, sigma_data: float) -> Preconditioned:
    if not isinstance(process, EDM):
        raise UsageError(f"sigma_data is for networks on EDM(), not on {type(process).__name__}")
    if isinstance(sigma_data, bool) or not isinstance(sigma_data, int | float) or not sigma_data > 0:
        raise UsageError(f"sigma_data must be a positive number, not {sigma_data!r}")
    return Preconditioned(process, float(sigma_data))


def _shape(network: Any, shape: Any) -> tuple[int, ...]:
    if shape is None:
        config = getattr(network, "config", None)
        channels, size = getattr(config, "in_channels", None), getattr(config, "sample_size", None)
        if channels is None or size is None:
            raise UsageError("shape= is the shape of one sample, such as (3, 32, 32), without the batch")
        shape = (channels, *((size, size) if isinstance(size, int) else size))
    sizes = (shape,) if isinstance(shape, int) and not isinstance(shape, bool) else shape
    try:
        found = tuple(int(size) for size in sizes)
    except (TypeError, ValueError):
        found = ()
    if not found or any(size < 1 for size in found):
        raise UsageError(f"shape must be the whole numbers of one sample's shape, such as (3, 32, 32), not {shape!r}")
    return found


def _home(network: Any) -> tuple[torch.dtype, torch.device]:
    """The dtype and device of a network's first parameter of floating-point numbers."""
    if isinstance(network, torch.nn.Module):
        for parameter in network.parameters():
            if parameter.is_floating_point():
                return parameter.dtype, parameter.device
    return torch.float32, torch.device("cpu")


def _find_way(model: WrappedModel, timesteps: str | None, word: str | None, example: Any) -> None:
    """Set `model.asking` to the first way to call its network that works."""
    trial = Trial(model, example)
    tried: dict[str, str] = {}
    with undisturbed(model):
        for asking in ways(model.function, timesteps, word, model.dtype):
            trouble = trial.trouble(asking)
            if trouble is None:
                model.asking, model.channels = asking, trial.channels
                if timesteps is None and not asking.whole and trial.rounds():
                    rounded = replace(asking, whole=True)
                    model.asking = rounded if trial.trouble(rounded) is None else asking
                _check_whole(model)
                model.function = model.asking
                return
            tried[str(asking)] = trouble
    lines = "; ".join(f"{way}: {trouble}" for way, trouble in tried.items())
    raise UsageError(f"{model.name} could not be called. Tried {lines}. {_advice(lines)}")


def _advice(lines: str) -> str:
    if "index out of range" in lines:
        return "Does the network know as many timesteps as the table has? clock= scales its time"
    if "missing" in lines and "required" in lines:
        return "For another argument pass conditional=True, or its keyword: conditional='y'"
    return "A function of your own, def network(x, t), can call it as it wants to be called"


def _check_whole(model: WrappedModel) -> None:
    first, last = (float(model.network_clock(float(t))) for t in (model.process.t_min, model.process.t_max))
    if model.asking.whole and abs(last - first) < 2:
        raise UsageError(
            f"the network takes whole timesteps, and its clock runs from {first:g} to {last:g}, which are hardly any; "
            "pass clock=999 or what it was trained with"
        )
