"""Models from functions: `FunctionModel` and `FlowMapModel`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import device_of, range_of, shape_of
from ..errors import UsageError
from ..processes.predictions import prediction_type
from ..processes.scalars import Scalar
from ..processes.sde import SDE, GaussianProcess, not_a_process
from ..public import public
from .base import Model, floating, home_of
from .calling import TimedNetwork
from .clipping import Clip, ClipLike
from .conditions import map_tensors
from .output import Output as Output
from .running import networks_in


@public
class FunctionModel(Model):
    """A model from any function `f(x, t)` or `f(x, t, condition)`.

    The function receives copies, which it may modify, and its output is copied, so it may reuse the buffer. t is a
    tensor (N, 1, ..., 1), or (N,) if the function raises an error for that or returns a shape other than x's; it is
    float32 at least, whatever the dtype of x. Networks that the function is or refers to are in evaluation mode.

    Args:
        function: takes the state (N, *shape) and the time on the process's clock, and returns the prediction: a
            floating-point tensor (N, *shape), directly, alone in a tuple, or as `sample` of an object or dictionary.
        process: the process that the function was trained on; a `reversed` one if the function's time runs from noise
            to data.
        prediction: its prediction type.
        shape: the shape of one sample.
        dtype, device: of its input; by default those of the function's weights if it is a module, else float32 and the
            CPU.
        conditional: True if the function takes a condition: a tensor (N, ...) of labels, embeddings or images, or a
            dictionary or tuple of tensors.
        null_condition: the condition of a conditional function that means "no condition". Guidance needs it, and with
            it calls may omit the condition.
        data_range: (low, high) of the data, for images.
        clip: bounds that x0 is clipped to at each evaluation of a sampler: True for `data_range` (the default if it is
            given), False for no clipping, (low, high), or a `Clip` for dynamic thresholding.

    Raises:
        UsageError: an invalid argument, such as a complex dtype.
    """

    pure = True

    def __init__(
        self,
        function: Callable[..., Tensor],
        process: SDE,
        prediction: str,
        shape: Sequence[int],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        data_range: tuple[float, float] | None = None,
        name: str = "function",
        conditional: bool = False,
        null_condition: Any = None,
        clip: ClipLike = None,
    ) -> None:
        if null_condition is not None and not conditional:
            raise UsageError("null_condition is for conditional functions: pass conditional=True as well")
        if not isinstance(process, SDE):
            raise not_a_process("process must be a process, such as VP() or RectifiedFlow()", process)
        data_range = None if data_range is None else range_of("data_range", data_range)
        self.conditional, self.null_condition = conditional, null_condition
        self.function, self.process, self.prediction = function, process, prediction_type(prediction)
        own_dtype, own_device = home_of(function)
        self.dtype = own_dtype if dtype is None else floating(dtype)
        self.shape = shape_of("shape", shape)
        self.device = own_device if device is None else device_of("device", device)
        self.data_range, self.name = data_range, name
        self._timed = TimedNetwork(function, name)
        self.clip = Clip.of(clip, self._bounds())
        self.network = function if isinstance(function, torch.nn.Module) else None

    def _bounds(self) -> Clip | None:
        """Clipping to the data's range; None without a range, or if the process does not define x0."""
        if self.data_range is None or not isinstance(self.process, GaussianProcess):
            return None
        return Clip(*self.data_range)

    def condition_for(self, condition: Any, count: int) -> Any:
        """Expand a condition for all samples, a number or (1, ...), or one per sample, (N, ...), to a tensor (N, ...).

        Entries of a dictionary or tuple are expanded separately.
        """
        if not self.conditional:
            return super().condition_for(condition, count)
        if condition is None and self.null_condition is None:
            raise UsageError(
                f"model {self.name!r} is conditional: give {{condition}}, one for all samples or one per sample",
                arguments={"condition": "condition="},
            )
        whole = self.null_condition if condition is None else condition
        return map_tensors(whole, lambda entry: self._expand(entry, count))

    def _expand(self, condition: Any, count: int) -> Tensor:
        try:
            given = torch.as_tensor(condition, device=self.device)
        except (TypeError, ValueError, RuntimeError):
            raise UsageError(f"condition must be a tensor or numbers, not {condition!r}") from None
        given = given.to(self.network_dtype) if given.is_floating_point() else given
        given = given if given.dim() else given[None]
        if len(given) not in (1, count):
            raise UsageError(f"condition must be one for all samples or {count}, one per sample, not {len(given)}")
        return given.expand(count, *given.shape[1:])

    def unconditional(self, count: int) -> Any:
        if self.null_condition is None and self.conditional:
            raise UsageError(
                f"model {self.name!r} has no unconditional input, so guidance_scale does not apply to it: wrap it with "
                "null_condition=, the condition that means none; if the network takes None for that, wrap a function "
                "that replaces a value of your choice by None"
            )
        if self.null_condition is None:
            return super().unconditional(count)
        return self.condition_for(self.null_condition, count)

    def predict(self, x: Tensor, t: Scalar, condition: Any = None) -> Tensor | Output:
        return self._in_own_time(self._called(x, (t,), *self._given(condition)))

    def _called(self, x: Tensor, times: tuple[Scalar, ...], *given: Any) -> Tensor | Output:
        """Return the function's output at one or several times of the process."""
        output: Tensor | Output = self._timed(x, tuple(self.process.network_time(t) for t in times), *given)
        return output

    def _in_own_time(self, output: Tensor | Output) -> Tensor | Output:
        """Convert the flow of a `reversed` process from network time to the process's time."""
        if self.process.clock_sign > 0 or self.prediction != "flow":
            return output
        return output._replace(value=-output.value) if isinstance(output, Output) else -output

    def networks(self) -> list[torch.nn.Module]:
        return [*networks_in(self.function), *super().networks()]

    def _given(self, condition: Any) -> tuple[Any, ...]:
        return (condition,) if self.conditional else ()


@public
class FlowMapModel(FunctionModel):
    """A flow map `f(x, t, r)`: the mean velocity (x_t - x_r) / (t - r) of the flow from time t to time r.

    MeanFlow (Geng et al. 2025, eq. 3), AnyFlow and others learn it. f(x, t, t) is the velocity, which samplers receive
    that do not specify the end of a step; `flow-map-euler` specifies it.

    Args:
        function: takes the state (N, *shape) and two times, tensors (N, 1, ..., 1) or (N,) on the process's clock, and
            the condition if it is conditional, and returns the mean velocity.
        process: the process of the flow.
        shape: the shape of one sample.
        **options: the other arguments of `FunctionModel`.
    """

    pure = True

    def __init__(
        self,
        function: Callable[..., Tensor],
        process: GaussianProcess,
        shape: Sequence[int],
        **options: Any,
    ) -> None:
        super().__init__(function, process, "flow", shape, **{"name": "flow map", **options})

    def predict(self, x: Tensor, t: Scalar, condition: Any = None) -> Tensor | Output:
        return self.predict_to(x, t, condition, end=t)

    def predict_to(self, x: Tensor, t: Scalar, condition: Any = None, *, end: Scalar) -> Tensor | Output:
        return self._in_own_time(self._called(x, (t, end), *self._given(condition)))
