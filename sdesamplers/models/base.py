"""The `Model` interface: what the library needs to know of a trained network."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
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
        process: the SDE that it was trained on.
        prediction: what it predicts, one of `PREDICTIONS`.
        shape: the shape of one sample, without the batch.
        dtype, device: of the network's input; the state itself is float32 at least.
        data_range: (low, high) of the data, for images and tolerances; None where there is none.
        name, revision: where it came from, recorded with samples.
        network: the module behind `predict`, None where there is none; its weights tell models apart in records.
        tuning: what was done to it that changes rounding ("compile", "channels_last").
        autocast: makes the mixed-precision context that the network is asked in.
        pure: whether `predict` leaves its arguments as they are and returns tensors that nothing else holds or will
            write to. Where it is not said, states and predictions are copied around each call, so that nothing that a
            network does can change samples.
        clip: bounds of x0, which samplers meet at each evaluation; None for none. Encodings, likelihoods and the like
            follow the network's own ODE, without.
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

    def __init_subclass__(cls, **words: Any) -> None:
        """A class with a `predict` of its own says for itself whether it is pure."""
        super().__init_subclass__(**words)
        if {"predict", "predict_to"} & vars(cls).keys() and "pure" not in vars(cls):
            cls.pure = False

    clip: Clip | None = None

    def __repr__(self) -> str:
        process = type(self.process).__name__
        return f"<{type(self).__name__} {self.name!r}: {self.prediction} on {process}, samples {self.shape}>"

    @abstractmethod
    def predict(self, x: Tensor, t: Scalar, condition: Any = None) -> Tensor | Output:
        """The raw prediction at state x (N, *shape), in the model's own coordinates and clock.

        Args:
            x: the state, in `dtype` on `device`.
            t: one time for the batch, or a float64 NumPy array (N,).
            condition: what `sample(condition=...)` was given, cut to these samples.
        """

    def predict_to(self, x: Tensor, t: Scalar, condition: Any = None, *, end: Scalar) -> Tensor | Output:
        """The same for a step from t that ends at `end`: what a flow map needs to know, and other models do not."""
        answer: Tensor | Output = isolated(self)(x, t, condition)
        return answer

    def networks(self) -> list[torch.nn.Module]:
        """What is put into evaluation mode while the model runs; by default the modules among its attributes."""
        return list(held_by(self))

    def facts(self) -> dict[str, Any]:
        """What decides the predictions beside process, weights and condition, as plain data, for records."""
        return {}

    def condition_for(self, condition: Any, count: int) -> Any:
        """Check a user's condition and spread it over `count` samples; raise UsageError where it does not fit."""
        if condition is not None:
            raise UsageError(f"model {self.name!r} is unconditional and takes no condition")
        return None

    def unconditional(self, count: int) -> Any:
        """The condition that stands for none, for classifier-free guidance."""
        raise UsageError(f"model {self.name!r} has no unconditional input, so guidance_scale does not apply to it")

    @property
    def decoded_range(self) -> tuple[float, float] | None:
        """(low, high) of what `decode` returns; None where it is no picture."""
        return self.data_range

    def decode(self, samples: Tensor) -> Tensor:
        """Samples (N, *shape) as they are looked at; a model in latent space returns pictures (N, C, H, W)."""
        return samples

    @property
    def gaussian(self) -> GaussianProcess:
        """The process, where alpha and sigma are needed."""
        if not isinstance(self.process, GaussianProcess):
            raise UsageError(f"model {self.name!r} runs on {type(self.process).__name__}, which has no alpha and sigma")
        return self.process


class ModelAround(Model):
    """A model that asks another one and changes its answers (guidance, measurements); all else is the inner model's.

    Args:
        model: the inner model, kept as `model`.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.process, self.prediction, self.shape = model.process, model.prediction, model.shape
        self.dtype, self.device, self.data_range = model.dtype, model.device, model.data_range
        self.name, self.revision, self.network = model.name, model.revision, model.network
        self.tuning, self.autocast, self.clip = model.tuning, model.autocast, model.clip

    def facts(self) -> dict[str, Any]:
        return {**self.model.facts(), "around": type(self).__name__}

    def __getattr__(self, word: str) -> Any:
        if word.startswith("_") or word == "model":  # before __init__, as in unpickling, there is no model to ask
            raise AttributeError(word)
        return getattr(self.model, word)

    @property
    def decoded_range(self) -> tuple[float, float] | None:
        return self.model.decoded_range

    def decode(self, samples: Tensor, **options: Any) -> Tensor:
        return self.model.decode(samples, **options)


def home_of(function: Any) -> tuple[torch.dtype, torch.device]:
    """The dtype and device of a network's input: its first floating-point weight's, else float32 on the CPU."""
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
    """A floating-point dtype, checked."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        complex_ = isinstance(dtype, torch.dtype) and dtype.is_complex
        advice = "; complex states are not supported, take real and imaginary parts as channels" if complex_ else ""
        raise UsageError(f"dtype must be a floating-point dtype of torch, such as torch.float32, not {dtype!r}{advice}")
    return dtype


def __getattr__(name: str) -> Any:
    """Names that pickles of early 0.1 look for here."""
    if name not in ("FunctionModel", "FlowMapModel"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__package__}.function"), name)
