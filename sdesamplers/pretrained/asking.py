"""How a plain network is called: the order of its arguments, the shape and kind of its times, what it returns."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..processes.scalars import Scalar

TIME_WORDS = frozenset(
    (
        *("t", "time", "times", "timestep", "timesteps", "step", "steps", "diffusion_steps", "tau", "u", "s"),
        *("sigma", "sigmas", "noise_level", "noise_levels", "noise_labels", "noise_cond", "time_cond", "c_noise"),
        *("lam", "log_snr", "logsnr"),
    )
)
"""Names under which networks take their time."""


@dataclass(frozen=True)
class Asking:
    """One way to call a network.

    Attributes:
        network: a module, or any function.
        time_first: network(t, x) and not network(x, t).
        time_word: the keyword for t, where it is passed by keyword.
        time_shape: "each" (N,), "column" (N, 1, ..., 1), "pair" (N, 1), or "one", a number without dimensions.
        whole: whether times are whole numbers (int64) and not float32.
        condition_word: the keyword for a condition; None for the third argument.
        dtype: of times, where it is the network's own and not float32.
    """

    network: Any
    time_first: bool = False
    time_word: str | None = None
    time_shape: str = "each"
    whole: bool = False
    condition_word: str | None = None
    dtype: torch.dtype | None = None

    def __call__(self, x: Tensor, t: Tensor, *condition: Any) -> Tensor:
        """The network's prediction at x (N, ...) and times (N,), of x's shape.

        Raises:
            ModelError: it returned something else.
        """
        return read_answer(self.call(x, t, *condition), x)

    def call(self, x: Tensor, t: Tensor, *condition: Any) -> Any:
        """What the network returns."""
        t = self.shaped(t, x.dim())
        words: dict[str, Any] = {}
        if self.time_word is not None:
            words[self.time_word] = t
            arguments = [x]
        else:
            arguments = [t, x] if self.time_first else [x, t]
        for each in condition:
            if self.condition_word is not None:
                words[self.condition_word] = each
            elif isinstance(each, Mapping):
                words |= each
            else:
                arguments.append(each)
        return self.network(*arguments, **words)

    def shaped(self, t: Tensor, dim: int) -> Tensor:
        """Times (N,) as the network takes them."""
        t = t.round().long() if self.whole else t if self.dtype is None else t.to(self.dtype)
        if self.time_shape == "one":
            return t[0]
        return t.view(-1, *(1,) * {"each": 0, "pair": 1, "column": dim - 1}[self.time_shape])

    def __str__(self) -> str:
        time = "t" if self.time_word is None else f"{self.time_word}=t"
        arguments = [time, "x"] if self.time_first else ["x", time]
        shape = {"each": "(N,)", "pair": "(N, 1)", "column": "(N, 1, ..., 1)", "one": "()"}[self.time_shape]
        kind = "whole numbers" if self.whole else "float32" if self.dtype is None else str(self.dtype)[6:]
        return f"network({', '.join(arguments)}) with t of shape {shape}, {kind}"


def read_answer(answer: Any, x: Tensor) -> Tensor:
    """The prediction in what a network returns for a state x (N, C, ...).

    It is a tensor, the `sample` of an object (diffusers), the first of a tuple, the "sample" or only entry of a
    dictionary. Of 2 C channels the first C are the prediction, the others a learned variance (Nichol & Dhariwal 2021).

    Raises:
        ModelError: none of these, or of another shape.
    """
    value = answer
    if isinstance(value, Mapping):
        value = value["sample"] if "sample" in value else next(iter(value.values())) if len(value) == 1 else value
    elif isinstance(value, tuple | list) and value:
        value = value[0]
    elif not isinstance(value, Tensor):
        value = getattr(value, "sample", value)
    if not isinstance(value, Tensor):
        kind = f"a dictionary of {', '.join(map(str, value))}" if isinstance(value, Mapping) else type(value).__name__
        raise ModelError(f"the network returned {kind}, and no tensor that could be its prediction")
    if has_variance(value, x):
        value = value[:, : x.shape[1]]
    if value.shape != x.shape:
        raise ModelError(
            f"the network returned a tensor of shape {tuple(value.shape)} for a state of shape {tuple(x.shape)}"
        )
    if not value.is_floating_point():
        raise ModelError(f"the network returned {value.dtype}, and a prediction is of floating-point numbers")
    return value


def has_variance(value: Tensor, x: Tensor) -> bool:
    """Whether there are twice as many channels as the state has."""
    shape = tuple(value.shape)
    return x.dim() > 2 and shape == (x.shape[0], 2 * x.shape[1], *x.shape[2:])


def ways(network: Any, timesteps: str | None, condition_word: str | None, dtype: torch.dtype) -> Iterator[Asking]:
    """The ways to call a network of a dtype, the commonest first, as far as its signature leaves them open.

    One in half precision is told its time in float32, in which whole timesteps are apart, if it takes that.
    """
    orders = _orders(network)
    whole, same = {"whole": True}, {"dtype": dtype}
    floats: list[dict[str, Any]] = {2: [{}, same], 8: [same]}.get(dtype.itemsize, [{}])
    kinds = {"int": [whole], "float": floats, None: [*floats, whole]}[timesteps]
    for kind in kinds:
        for order in orders:
            for shape in ("each", "column", "pair", "one"):
                yield replace(order, time_shape=shape, condition_word=condition_word, **kind)


def _orders(network: Any) -> list[Asking]:
    """The orders of x and t that a network's signature allows."""
    plain, swapped = Asking(network), Asking(network, time_first=True)
    function = network.forward if isinstance(network, torch.nn.Module) else network
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return [plain, swapped]
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    is_time = [name.lower() in TIME_WORDS for name in names]
    if is_time[:1] == [True] and is_time[1:2] != [True]:
        return [swapped]
    if len(names) > 1 and is_time[1]:
        return [plain]
    later = [p.name for p in parameters if p.name.lower() in TIME_WORDS and p.name not in names[:1]]
    if later:
        return [replace(plain, time_word=later[0])]
    return [plain, swapped] if len(names) != 1 else [plain]


def told(t: Scalar, x: Tensor) -> Tensor:
    """A time, or one for each sample, as a tensor (N,) on x's device, in x's dtype and float32 at least."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    numbers = torch.as_tensor(t, dtype=torch.float64).reshape(-1).to(dtype)
    return numbers.to(x.device, non_blocking=True) if len(numbers) == len(x) > 1 else torch.full(
        (len(x),), float(numbers[0]), dtype=dtype, device=x.device
    )  # fmt: skip
