"""The `Model` interface: what the library needs to know about a trained network."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..html import facts_table
from ..processes.pickling import Pickled
from ..processes.scalars import Scalar
from ..processes.sde import SDE, GaussianProcess
from ..public import public
from .calling import isolated
from .clipping import Clip
from .output import Output as Output
from .running import held_by


@public
class Model(Pickled, ABC):
    """A score model: `process` + `prediction` + a function of state and time.

    Attributes:
        process: the SDE that the model was trained on.
        prediction: the prediction type, one of `PREDICTIONS`.
        shape: the shape of one sample, without the batch dimension.
        dtype, device: of the state that `predict` receives; that of a run is float32 at least.
        data_range: (low, high) of the data, for images and tolerances; None if the data has no range.
        name, revision: the origin of the model, recorded with samples.
        network: the module behind `predict`, or None; its weights identify the model in records.
        tuning: optimisations that change rounding ("compile", "channels_last").
        autocast: returns the mixed-precision context in which the network is evaluated.
        pure: True if `predict` does not modify its arguments and returns tensors that nothing else refers to or will
            write to. If it is False, states and predictions are copied around each call, so that side effects of a
            network cannot change samples.
        clip: bounds of x0, applied at each evaluation of a sampler; None for no bounds. Encodings, likelihoods and
            similar functions follow the network's own ODE, without clipping.
    """

    process: SDE
    prediction: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")
    data_range: tuple[float, float] | None = None
    name: str = "model"
    revision: str | None = None
    network: Any = None
    tuning: tuple[str, ...] = ()
    autocast: Any = nullcontext
    pure: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A class that overrides `predict` does not inherit `pure`; it must set it itself."""
        super().__init_subclass__(**kwargs)
        if {"predict", "predict_to"} & vars(cls).keys() and "pure" not in vars(cls):
            cls.pure = False

    clip: Clip | None = None
    _network_dtype: torch.dtype | None = None

    @property
    def network_dtype(self) -> torch.dtype:
        """The dtype of the network's input; `dtype` is wider if x0 is its output plus a multiple of the state."""
        return self._network_dtype or self.dtype

    def _widen(self) -> None:
        """Receive states in float32 at least, and round only the network's input to its own dtype.

        For networks in a preconditioning (Karras et al. 2022, eq. 7): in half precision c_skip x + c_out F would lose
        the digits for which it was designed.
        """
        self._network_dtype, self.dtype = self.dtype, torch.promote_types(self.dtype, torch.float32)

    def __repr__(self) -> str:
        process = type(self.process).__name__
        return f"<{type(self).__name__} {self.name!r}: {self.prediction} on {process}, samples {self.shape}>"

    def _repr_html_(self) -> str:
        """For notebooks: what the library knows about the model; the network is not evaluated."""
        facts = {
            "prediction": self.prediction,
            "process": type(self.process).__name__,
            "sample": self.shape,
            "data range": self.data_range,
            "dtype, device": f"{str(self.network_dtype).removeprefix('torch.')}, {self.device}",
            "revision": self.revision,
            "clip": None if self.clip is None else repr(self.clip),
        }
        return facts_table(f"{type(self).__name__} {self.name}", facts)

    @abstractmethod
    def predict(self, x: Tensor, t: Scalar, condition: Any = None) -> Tensor | Output:
        """Return the raw prediction at state x (N, *shape), in native coordinates and time.

        Args:
            x: the state, in `dtype` on `device`.
            t: one time for the batch, or a float64 NumPy array (N,).
            condition: the rows for these samples of the argument of `sample(condition=...)`.
        """

    def predict_to(self, x: Tensor, t: Scalar, condition: Any = None, *, end: Scalar) -> Tensor | Output:
        """Return the prediction for a step from t to `end`. Flow maps use `end`; other models ignore it."""
        output: Tensor | Output = isolated(self)(x, t, condition)
        return output

    def networks(self) -> list[torch.nn.Module]:
        """The modules that are put into evaluation mode during a run; by default all modules found in attributes."""
        return list(held_by(self))

    def facts(self) -> dict[str, Any]:
        """What else determines the predictions, besides process, weights and condition, as plain data for records."""
        return {}

    def condition_for(self, condition: Any, count: int) -> Any:
        """Check a user's condition and expand it to `count` samples; raise UsageError if it is not valid."""
        if condition is not None:
            raise UsageError(f"model {self.name!r} is unconditional and takes no condition")
        return None

    def unconditional(self, count: int) -> Any:
        """The null condition, for classifier-free guidance."""
        raise UsageError(f"model {self.name!r} has no unconditional input, so guidance_scale does not apply to it")

    @property
    def decoded_range(self) -> tuple[float, float] | None:
        """(low, high) of the output of `decode`; None if it is not an image."""
        return self.data_range

    def decode(self, samples: Tensor) -> Tensor:
        """Convert samples (N, *shape) for display; a model in latent space returns images (N, C, H, W)."""
        return samples

    @property
    def gaussian(self) -> GaussianProcess:
        """The process, for code that needs alpha and sigma; UsageError if it has none."""
        if not isinstance(self.process, GaussianProcess):
            raise UsageError(f"model {self.name!r} runs on {type(self.process).__name__}, which has no alpha and sigma")
        return self.process


class ModelAround(Model):
    """A model that evaluates another model and changes its predictions; other attributes are the inner model's.

    Args:
        model: the inner model, kept as `model`.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.process, self.prediction, self.shape = model.process, model.prediction, model.shape
        self.dtype, self.device, self.data_range = model.dtype, model.device, model.data_range
        self.name, self.revision, self.network = model.name, model.revision, model.network
        self.tuning, self.autocast, self.clip = model.tuning, model.autocast, model.clip
        self._network_dtype = model.network_dtype

    def facts(self) -> dict[str, Any]:
        return {**self.model.facts(), "around": type(self).__name__}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "model":  # before __init__, as in unpickling, there is no inner model
            raise AttributeError(name)
        return getattr(self.model, name)

    @property
    def decoded_range(self) -> tuple[float, float] | None:
        return self.model.decoded_range

    def decode(self, samples: Tensor, **options: Any) -> Tensor:
        return self.model.decode(samples, **options)


def home_of(function: Any) -> tuple[torch.dtype, torch.device]:
    """The dtype and device of a network's input: those of its first floating-point weight, else float32 on the CPU."""
    owner = getattr(function, "__self__", function)  # of a bound method
    if isinstance(owner, torch.nn.Module):
        weights = [*owner.parameters(), *owner.buffers()]
        for weight in weights:
            if weight.is_floating_point():
                return weight.dtype, weight.device
        for weight in weights:
            return torch.float32, weight.device
    return torch.float32, torch.device("cpu")


def floating(dtype: Any) -> torch.dtype:
    """Return a floating-point dtype; raise UsageError for anything else."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        complex_ = isinstance(dtype, torch.dtype) and dtype.is_complex
        advice = "; complex states are not supported: use real and imaginary parts as channels" if complex_ else ""
        raise UsageError(f"dtype must be a floating-point dtype of torch, such as torch.float32, not {dtype!r}{advice}")
    return dtype


def __getattr__(name: str) -> Any:
    """Names that were in this module in early 0.1, for pickles."""
    if name not in ("FunctionModel", "FlowMapModel"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__package__}.function"), name)
