"""`from_denoiser`: a function `denoiser(x, sigma)`, as k-diffusion and ComfyUI call a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..checks import choice, known_keywords, number, one_of_types, shown
from ..errors import UsageError
from ..models.base import Model, Output
from ..models.calling import as_flat, call
from ..models.conditions import cloned
from ..models.function import FunctionModel
from ..pretrained.trial import warn_of_denoiser
from ..processes.scalars import Scalar, expand
from ..processes.schedules import EDM, RectifiedFlow
from ..processes.sde import GaussianProcess
from ..public import public

KINDS = ("ve", "flow")
"""x = x0 + sigma noise, and x = (1 - sigma) x0 + sigma noise."""


class DenoiserModel(FunctionModel):
    """A denoiser as a model that predicts x0; its time is sigma, which it receives as (N,).

    Attributes:
        sigma_data: standard deviation of the data, if the denoiser is the network inside of Karras et al.'s (2022)
            preconditioning; else None. `dtype` is then float32 at least, and only the network's input is rounded.
        extra_args: keyword arguments of every call.
    """

    pure = True

    def __init__(
        self,
        denoiser: Callable[..., Any],
        process: GaussianProcess,
        shape: Sequence[int],
        *,
        sigma_data: float | None = None,
        extra_args: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(denoiser, process, "sample", shape, **options)
        self.sigma_data, self.extra_args = sigma_data, dict(extra_args or {})
        if sigma_data is not None:
            self._widen()

    def _called(self, x: Tensor, times: tuple[Scalar, ...], *given: Any) -> Tensor | Output:
        (sigma,) = times
        args = [cloned(each) for each in given if not isinstance(each, dict)]
        kwargs = {key: cloned(value) for each in given if isinstance(each, dict) for key, value in each.items()}
        kwargs = self.extra_args | kwargs
        if self.sigma_data is None:
            output: Tensor | Output = call(self.function, x.clone(), as_flat(sigma, x), *args, name=self.name, **kwargs)
            return output
        # Karras et al. (2022), table 1.
        data, variance = self.sigma_data, self.sigma_data**2 + sigma**2
        inside = (x * expand(variance**-0.5, x)).to(self.network_dtype)
        raw = call(self.function, inside, as_flat(sigma, x), *args, name=self.name, **kwargs)
        assert isinstance(raw, Tensor)
        return x * expand(data**2 / variance, x) + raw.to(x.dtype) * expand(sigma * data * variance**-0.5, x)


@public
@known_keywords("data_range", "name", "clip", "dtype", "device")
def from_denoiser(
    denoiser: Callable[..., Any],
    shape: Sequence[int],
    *,
    kind: str | None = None,
    sigma_data: float | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    extra_args: Mapping[str, Any] | None = None,
    conditional: bool = False,
    null_condition: Any = None,
    **options: Any,
) -> Model:
    """A model from a denoiser `denoiser(x, sigma, **extra_args)`, as k-diffusion and ComfyUI call their models.

    The denoiser receives the noised state (N, *shape) and sigma (N,), and returns the estimate of x0 (N, *shape). All
    of k-diffusion's wrappers are such denoisers, and ComfyUI's guiders as samplers receive them.

    Args:
        denoiser: a module or a function.
        shape: the shape of one sample.
        kind: "ve" for x = x0 + sigma noise (k-diffusion, and ComfyUI for all models but flows), on the process `EDM`;
            "flow" for x = (1 - sigma) x0 + sigma noise, on `RectifiedFlow`. By default "flow" for ComfyUI's flow
            models, otherwise "ve".
        sigma_data: standard deviation of the data, if `denoiser` is the network inside of k-diffusion's
            `Denoiser(network, sigma_data)`: it then receives c_in x and sigma, and x0 is c_skip x + c_out output
            (Karras et al. 2022, eq. 7 and table 1), computed in float32 at least whatever the network's dtype. Only for
            "ve". For a network that receives log(sigma)/4 use `wrap`.
        sigma_min, sigma_max: the range of sigma on which a "ve" denoiser was trained; by default the denoiser's own
            attributes `sigma_min` and `sigma_max` or those of its `inner_model`, otherwise 0.002 and 80.
        extra_args: keyword arguments of every call. A condition is better passed to `sample`, which divides it between
            batches.
        conditional: True if the denoiser takes a condition: a dictionary is passed as keyword arguments
            (`condition={"class_cond": labels}`), and anything else as a third argument.
        null_condition: the condition that means "no condition".
        **options: further arguments of `FunctionModel`: data_range, clip, name, dtype, device.

    Raises:
        UsageError: an argument of the wrong type or range, or one that does not apply to this kind.

    Example:
        >>> def denoiser(x, sigma):  # of data N(0, 1)
        ...     return x / (1 + sigma[:, None] ** 2)
        >>> model = sds.from_denoiser(denoiser, (2,), sigma_max=80)
        >>> sds.sample(model, "heun", steps=18, num_samples=4).samples.shape
        torch.Size([4, 2])
    """
    if isinstance(denoiser, Model):
        raise UsageError(f"from_denoiser takes a function of (x, sigma), and {denoiser!r} is a model already")
    if isinstance(denoiser, type) or not callable(denoiser):
        raise UsageError(f"denoiser must be a module or a function of (x, sigma), not {shown(denoiser)}")
    one_of_types("extra_args", extra_args, (Mapping, type(None)), "a dictionary of keyword arguments")
    kind = kind_of(denoiser) if kind is None else choice("kind", kind, KINDS)
    if kind == "flow":
        for name, value in (("sigma_data", sigma_data), ("sigma_min", sigma_min), ("sigma_max", sigma_max)):
            if value is not None:
                raise UsageError(f"{name} does not apply to kind='flow', whose sigma runs from 1 to 0")
        process: GaussianProcess = RectifiedFlow()
    else:
        low = own_end(denoiser, "sigma_min", 0.002) if sigma_min is None else number("sigma_min", sigma_min)
        high = own_end(denoiser, "sigma_max", 80.0) if sigma_max is None else number("sigma_max", sigma_max)
        process = EDM(low, high)
    if sigma_data is not None and not number("sigma_data", sigma_data) > 0:
        raise UsageError(f"sigma_data must be positive, not {sigma_data}")
    if sigma_data is not None and isinstance(getattr(denoiser, "sigma_data", None), int | float):
        warn_of_denoiser(f"{type(denoiser).__name__} has a sigma_data of its own,")
    return DenoiserModel(
        denoiser, process, shape, sigma_data=sigma_data, extra_args=extra_args,
        conditional=conditional, null_condition=null_condition,
        **{"name": getattr(denoiser, "__name__", type(denoiser).__name__), **options},
    )  # fmt: skip


def kind_of(denoiser: Any) -> str:
    """The kind of a denoiser: "flow" if it holds ComfyUI's `model_sampling` of a flow model, else "ve"."""
    for each in nested(denoiser):
        sampling = getattr(each, "model_sampling", None)
        if sampling is not None:
            return "flow" if any(base.__name__ == "CONST" for base in type(sampling).__mro__) else "ve"
    return "ve"


def nested(denoiser: Any) -> Iterator[Any]:
    """A denoiser, its `inner_model`, the `inner_model` of that, and so on."""
    for _ in range(8):
        yield denoiser
        denoiser = getattr(denoiser, "inner_model", None)
        if denoiser is None:
            return


def own_end(denoiser: Any, name: str, otherwise: float) -> float:
    """An end of a denoiser's range of sigma: its attribute `name`, or that of what it holds, else the default."""
    for each in nested(denoiser):
        for holder in (each, getattr(each, "model_sampling", None)):
            value = getattr(holder, name, None)
            if value is not None:
                return float(value)
    return otherwise
