"""What a run makes: samples, their cost, and what was recorded on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..errors import UsageError
from ..io.images import to_images
from ..processes.sde import SDE, GaussianProcess
from ..public import public
from ..registry.plugin import Sampler
from .recipe import Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..models.base import Model


@public
@dataclass(eq=False)
class Trajectory:
    """States at the evaluations of a run, and the sample last.

    Attributes:
        times: the model's time of each entry, shape (K,), or (K, N) where samples choose their own steps; NaN for
            the sample.
        states: (K, N, *shape), in the state's dtype and the model's own coordinates, on the CPU.
    """

    times: np.ndarray
    states: Tensor


Ends = tuple[tuple[float, float], tuple[float, float]]


def process_ends(process: SDE) -> Ends | None:
    """(alpha, sigma) of a process at t_min and t_max; None where it has none."""
    if not isinstance(process, GaussianProcess):
        return None
    low, high = ((float(process.alpha(t)), float(process.sigma(t))) for t in (process.t_min, process.t_max))
    return low, high


def check_process(result: Result, model: Model, advice: str = "") -> None:
    """Raise a UsageError where a model's process has other ends than that of the model that a result is of."""
    ends = process_ends(model.process)
    if result.ends is not None and (ends is None or not np.allclose(ends, result.ends, rtol=1e-5, atol=0)):
        raise UsageError(
            f"this {type(result).__name__} is of {result.model_name!r}, whose process is not that of {model.name!r} "
            f"(alpha and sigma differ at the ends of time){advice}"
        )


@public
@dataclass(eq=False, repr=False)
class Result:
    """What a run made.

    Attributes:
        samples: (N, *shape), float32 (float64 on request), in the model's data range, on the CPU.
        nfe: model evaluations a sample; for adaptive samplers the largest over the samples.
        nfe_per_sample: (N,) whole numbers.
        recipe: what was run.
        seed, indices: sample j is a function of (seed, indices[j]).
        model_name, revision: what it was run on.
        ends: (alpha, sigma) of the model's process at t_min and t_max; None without alpha and sigma.
        trajectory: with `trajectory=True`.
        accepted, rejected: (N,) steps of an adaptive sampler.
        log_probs: with `log_probs=True`, the log-probability (nats) of every transition, (N, transitions), float64.
        start, draws: first states (N, *shape) and transitions' outcomes (N, transitions, *shape) in the path's
            coordinates, kept with the log-probabilities for `replay_log_probs`.
        sampler: the sampler itself.
        drew_noise: whether any step was stochastic.
        decoder, decoded_range: the model's `decode`, where samples are latents, and the range of what it returns. It is
            not stored with the result.
    """

    samples: Tensor
    nfe_per_sample: np.ndarray
    recipe: Recipe
    seed: int
    indices: list[int]
    model_name: str
    revision: str | None
    data_range: tuple[float, float] | None
    ends: Ends | None = None
    trajectory: Trajectory | None = None
    log_probs: Tensor | None = None
    start: Tensor | None = None
    draws: Tensor | None = None
    accepted: np.ndarray | None = None
    rejected: np.ndarray | None = None
    condition: Any = None
    guidance_scale: float = 1.0
    sampler: Sampler | None = field(default=None, repr=False)

    drew_noise: bool = False
    decoder: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    decoded_range: tuple[float, float] | None = None

    def __repr__(self) -> str:
        return f"<Result {tuple(self.samples.shape)} of {self.model_name!r} by {self.recipe.sampler!r}, {self.nfe} NFE>"

    @property
    def nfe(self) -> int:
        """Model evaluations a sample actually made (the largest, where samples differ)."""
        return int(self.nfe_per_sample.max())

    @cached_property
    def decoded(self) -> Tensor:
        """The samples as they are looked at: pictures (N, C, H, W) where the model is one of latents."""
        return self.samples if self.decoder is None else self.decoder(self.samples)

    @property
    def images(self) -> list[Image]:
        """The samples, decoded where they are latents, as PIL images, clipped to the data range.

        Raises:
            UsageError: the samples are not (channels, height, width) with 1, 3 or 4 channels.
            ModelError: they are latents, and the model has no decoder.
        """
        return to_images(self.decoded, self.data_range if self.decoder is None else self.decoded_range)

    def __getstate__(self) -> dict[str, Any]:
        """What is stored: all but the model that decodes."""
        state = {key: value for key, value in vars(self).items() if key != "decoded"}
        return state if self.decoder is None else {**state, "decoder": _not_stored}


def _not_stored(samples: Tensor) -> Tensor:
    raise UsageError("a stored result has no decoder for its latents: use model.decode(result.samples)")
