"""How a plain network is called: argument order, shape and dtype of its times, and how its return value is read."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..processes.scalars import Scalar

TIME_NAMES = frozenset(
    (
        *("t", "time", "times", "timestep", "timesteps", "step", "steps", "diffusion_steps", "tau", "u", "s"),
        *("sigma", "sigmas", "noise_level", "noise_levels", "noise_labels", "noise_cond", "time_cond", "c_noise"),
        *("lam", "log_snr", "logsnr"),
    )
)
"""Common names of a network's time parameter."""

NOISY_NAMES = frozenset(
    (
        *("x_t", "xt", "y_t", "yt", "z_t", "zt", "noisy", "noised", "noisy_x", "x_noisy", "noisy_y", "y_noisy"),
        *("noisy_z", "z_noisy", "noisy_image", "noisy_images", "noisy_sample", "noisy_samples", "noisy_latent"),
        *("noisy_latents", "noisy_input", "noisy_inputs", "noisy_data", "noised_input", "noised_image"),
    )
)
"""Names that only a network's state has, wherever it is among the parameters."""

STATE_NAMES = NOISY_NAMES | frozenset(
    (
        *("x", "z", "sample", "samples", "image", "images", "img", "latent", "latents", "input", "inputs"),
        *("state", "hidden_states", "data"),
    )
)
"""Common names of a network's state; a condition may have one of those that are not in NOISY_NAMES."""

FORMER_FIELDS = {"time_word": "time_keyword", "whole": "integer_times", "condition_word": "condition_keyword"}
"""Field names in pickles of `CallStyle` from before it was renamed, and the present names."""


@dataclass(frozen=True)
class CallStyle:
    """One way to call a network.

    Attributes:
        network: a module, or any function.
        time_first: True for network(t, x), False for network(x, t).
        time_keyword, state_keyword: the keywords for t and x, if they are passed by keyword.
        time_shape: "each" (N,), "column" (N, 1, ..., 1), "pair" (N, 1), or "one", a zero-dimensional tensor.
        integer_times: True if times are rounded and passed as int64; False for floating-point times.
        condition_keyword: the keyword for a condition; None passes a mapping as keyword arguments and any other
            condition as the third argument.
        dtype: of floating-point times, if it is the network's own dtype and not float32.
    """

    network: Any
    time_first: bool = False
    time_keyword: str | None = None
    time_shape: str = "each"
    integer_times: bool = False
    condition_keyword: str | None = None
    dtype: torch.dtype | None = None
    state_keyword: str | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({FORMER_FIELDS.get(name, name): value for name, value in state.items()})

    def __call__(self, x: Tensor, t: Tensor, *condition: Any) -> Tensor:
        """Return the network's prediction at x (N, ...) and times (N,), with the shape of x.

        Raises:
            ModelError: the return value contains no prediction of that shape; see `read_output`.
        """
        return read_output(self.call(x, t, *condition), x)

    def call(self, x: Tensor, t: Tensor, *condition: Any) -> Any:
        """Return the network's raw return value."""
        t = self.shaped(t, x.dim())
        given = [(self.state_keyword, x), (self.time_keyword, t)]
        arguments = [value for keyword, value in given[:: self._step] if keyword is None]
        kwargs: dict[str, Any] = {keyword: value for keyword, value in given if keyword is not None}
        for each in condition:
            if self.condition_keyword is not None:
                kwargs[self.condition_keyword] = each
            elif isinstance(each, Mapping):
                kwargs |= each
            else:
                arguments.append(each)
        return self.network(*arguments, **kwargs)

    def shaped(self, t: Tensor, dim: int) -> Tensor:
        """Return times (N,) with the shape and dtype that the network expects."""
        t = t.round().long() if self.integer_times else t if self.dtype is None else t.to(self.dtype)
        if self.time_shape == "one":
            return t[0]
        return t.view(-1, *(1,) * {"each": 0, "pair": 1, "column": dim - 1}[self.time_shape])

    @property
    def _step(self) -> int:
        """-1 if the time is passed before the state, else 1."""
        return -1 if self.time_first else 1

    def __str__(self) -> str:
        return self.text(self.condition_keyword is not None)

    def text(self, conditional: bool) -> str:
        """Describe the call, with a condition if `conditional`."""
        # This text is part of a job's facts: a change would make stored jobs unresumable.
        given = [(self.state_keyword, "x"), (self.time_keyword, "t")][:: self._step]
        given += [(self.condition_keyword, "condition")] if conditional else []
        given.sort(key=lambda each: each[0] is not None)  # positional arguments first
        arguments = [value if keyword is None else f"{keyword}={value}" for keyword, value in given]
        shape = {"each": "(N,)", "pair": "(N, 1)", "column": "(N, 1, ..., 1)", "one": "()"}[self.time_shape]
        kind = "whole numbers" if self.integer_times else "float32" if self.dtype is None else str(self.dtype)[6:]
        return f"network({', '.join(arguments)}) with t of shape {shape}, {kind}"


Asking = CallStyle  # its former name, which pickles contain


def read_output(output: Any, x: Tensor) -> Tensor:
    """Return the prediction contained in a network's return value for a state x (N, C, ...).

    Accepted are a tensor, an object with a tensor `sample` (diffusers), a tuple or list whose first entry is the
    prediction, and a dictionary with an entry "sample" or with a single entry. Of 2 C channels the first C are the
    prediction and the others a learned variance (Nichol & Dhariwal 2021).

    Raises:
        ModelError: no such tensor, or a tensor of the wrong shape or dtype.
    """
    value = output
    if isinstance(value, Mapping):
        value = value["sample"] if "sample" in value else next(iter(value.values())) if len(value) == 1 else value
    elif isinstance(value, tuple | list) and value:
        value = value[0]
    elif not isinstance(value, Tensor):
        value = getattr(value, "sample", value)
    if not isinstance(value, Tensor):
        kind = f"a dictionary of {', '.join(map(str, value))}" if isinstance(value, Mapping) else type(value).__name__
        raise ModelError(f"the network returned {kind}, which contains no prediction tensor")
    if has_variance(value, x):
        value = value[:, : x.shape[1]]
    if value.shape != x.shape:
        raise ModelError(
            f"the network returned a tensor of shape {tuple(value.shape)} for a state of shape {tuple(x.shape)}"
        )
    if not value.is_floating_point():
        raise ModelError(f"the network returned {value.dtype}; predictions must be floating-point")
    return value


def has_variance(value: Tensor, x: Tensor) -> bool:
    """Return True if `value` has twice the channels of the state x and otherwise its shape."""
    shape = tuple(value.shape)
    return x.dim() > 2 and shape == (x.shape[0], 2 * x.shape[1], *x.shape[2:])


def possible_call_styles(
    network: Any, timesteps: str | None, condition_keyword: str | None, dtype: torch.dtype
) -> Iterator[CallStyle]:
    """Yield the call styles that a network's signature allows, the most common first.

    A half-precision network (`dtype`) gets float32 times if it accepts them: whole timesteps remain distinct there.
    """
    orders = _argument_orders(network, condition_keyword)
    integers, same = {"integer_times": True}, {"dtype": dtype}
    floats: list[dict[str, Any]] = {2: [{}, same], 8: [same]}.get(dtype.itemsize, [{}])
    kinds = {"int": [integers], "float": floats, None: [*floats, integers]}[timesteps]
    for kind in kinds:
        for order in orders:
            for shape in ("each", "column", "pair", "one"):
                yield replace(order, time_shape=shape, condition_keyword=condition_keyword, **kind)


def parameters_of(network: Any) -> list[inspect.Parameter] | None:
    """Return the parameters of a network's `forward` or of a function, or None if they are unknown."""
    function = network.forward if isinstance(network, torch.nn.Module) else network
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


def _argument_orders(network: Any, condition_keyword: str | None) -> list[CallStyle]:
    """Return the orders of x and t that a network's signature allows."""
    plain, swapped = CallStyle(network), CallStyle(network, time_first=True)
    parameters = parameters_of(network)
    if parameters is None:
        return [plain, swapped]
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    is_time = [name.lower() in TIME_NAMES for name in names]
    by_name = _later_state(parameters, condition_keyword)
    if by_name is not None:
        if is_time[:1] == [True]:
            return [replace(swapped, state_keyword=by_name)]
        times = [p.name for p in parameters if p.name.lower() in TIME_NAMES and p.name != by_name]
        if times:
            return [replace(plain, state_keyword=by_name, time_keyword=times[0])]
    if is_time[:1] == [True] and is_time[1:2] != [True]:
        return [swapped]
    if len(names) > 1 and is_time[1]:
        return [plain]
    later = [p.name for p in parameters if p.name.lower() in TIME_NAMES and p.name not in names[:1]]
    if later:
        return [replace(plain, time_keyword=later[0])]
    return [plain, swapped] if len(names) != 1 else [plain]


def _later_state(parameters: list[inspect.Parameter], condition_keyword: str | None) -> str | None:
    """Return the name of the state's parameter if it comes after a parameter other than the time; else None.

    Its name is one of NOISY_NAMES and no name in STATE_NAMES comes first; or the condition is named, and is in the
    state's usual place.
    """
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [p.name for p in parameters if p.kind in kinds]
    untimed = [name for name in names if name.lower() not in TIME_NAMES]
    if not untimed or len(names) < len([p for p in parameters if p.kind is not p.VAR_KEYWORD]):
        return None
    required = {p.name for p in parameters if p.default is p.empty}
    noisy = [name for name in untimed if name.lower() in NOISY_NAMES and name in required and name != condition_keyword]
    if len(noisy) == 1 and untimed[0].lower() not in STATE_NAMES:
        return noisy[0]
    if untimed[0] == condition_keyword and len(untimed) > 1:
        return untimed[1]
    return None


def as_network_time(t: Scalar, x: Tensor) -> Tensor:
    """Return one time, or one for each sample, as a tensor (N,) on x's device, in x's dtype or float32 if wider."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    numbers = torch.as_tensor(t, dtype=torch.float64).reshape(-1).to(dtype)
    return numbers.to(x.device, non_blocking=True) if len(numbers) == len(x) > 1 else torch.full(
        (len(x),), float(numbers[0]), dtype=dtype, device=x.device
    )  # fmt: skip
