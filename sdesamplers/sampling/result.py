"""The result of a run: samples, their cost, and the recorded data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..checks import whole_numbers
from ..errors import UsageError
from ..io.images import to_images
from ..models.clipping import Clip
from ..processes.sde import SDE, GaussianProcess
from ..public import public
from ..registry.plugin import Sampler
from .recipe import Recipe
from .result_html import result_html

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..models.base import Model


@public
@dataclass(eq=False)
class Trajectory:
    """The states at the evaluations of a run, followed by the sample.

    Attributes:
        times: (K,) native time of each entry, or (K, N) if the samples choose their own steps; NaN for the sample.
        states: (K, N, *shape), in the state's dtype and the model's coordinates, on the CPU.
    """

    times: np.ndarray
    states: Tensor


Ends = tuple[tuple[float, float], tuple[float, float]]


def process_ends(process: SDE) -> Ends | None:
    """(alpha, sigma) of a process at t_min and at t_max; None if it has no alpha and sigma."""
    if not isinstance(process, GaussianProcess):
        return None
    low, high = ((float(process.alpha(t)), float(process.sigma(t))) for t in (process.t_min, process.t_max))
    return low, high


def check_process(result: Result, model: Model, advice: str = "") -> None:
    """Raise a UsageError if alpha and sigma at the ends of a model's process differ from those of a result's model."""
    ends = process_ends(model.process)
    if result.ends is not None and (ends is None or not np.allclose(ends, result.ends, rtol=1e-5, atol=0)):
        raise UsageError(
            f"this {type(result).__name__} was made with model {result.model_name!r}, which has another process than "
            f"{model.name!r} (alpha and sigma differ at t_min or t_max){advice}"
        )


@public
@dataclass(eq=False, repr=False)
class Result:
    """The result of a run.

    Attributes:
        samples: (N, *shape), float32 (float64 on request), in the model's data range, on the CPU.
        nfe: model evaluations per sample; for adaptive samplers the maximum over the samples.
        nfe_per_sample: (N,) integers.
        recipe: the recipe of the run.
        seed, indices: sample j is a function of (seed, indices[j]).
        model_name, revision: the model of the run.
        data_range: (low, high) of the model's data; None if unbounded.
        ends: (alpha, sigma) of the model's process at t_min and t_max; None if it has no alpha and sigma.
        trajectory: the `Trajectory` of a run with `trajectory=True`; else None.
        accepted, rejected: (N,) numbers of accepted and rejected steps of an adaptive sampler; else None.
        log_probs: with `log_probs=True`, the log-probability (nats) of every transition, (N, transitions), float64.
        start, draws: initial states (N, *shape) and outcomes of the transitions (N, transitions, *shape) in the path's
            coordinates, stored with the log-probabilities for `replay_log_probs`.
        visited: the states of the evaluations (N, evaluations, *shape) in the path's coordinates, stored with them;
            None if the samples take their own steps.
        transition_steps: the step of the grid, from 0, in which each transition begins, stored with them.
        edited: the evaluations, from 0, whose states a callback or the caller of a `Stepper` has set, stored with them.
        edited_rows: (N, len(edited)) True for the samples whose states were set; None for all of them.
        clip: the bounds of x0 of a `Stepper`; None if there were none, or those of the model.
        condition, guidance_scale: the arguments of the run.
        sampler: the `Sampler`.
        drew_noise: True if any step was stochastic.
        decoder, decoded_range: the model's `decode` and the range of its output, if samples are latents. The decoder is
            not pickled with the result.
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
    visited: Tensor | None = field(default=None, repr=False)
    transition_steps: list[int] | None = None
    edited: list[int] | None = None
    edited_rows: Tensor | None = field(default=None, repr=False)
    clip: Clip | None = None

    def __repr__(self) -> str:
        return f"<Result {tuple(self.samples.shape)} of {self.model_name!r} by {self.recipe.sampler!r}, {self.nfe} NFE>"

    def _repr_html_(self) -> str:
        """For notebooks: the facts of the run and its first pictures; nothing is evaluated or decoded for it."""
        return result_html(self)

    @property
    def nfe(self) -> int:
        """The number of model evaluations made per sample; the maximum if samples differ."""
        return int(self.nfe_per_sample.max())

    def step_log_probs(self, steps: Sequence[int] | None = None) -> Tensor:
        """The log-probabilities of steps of the grid, (N, number of steps), float64, in nats.

        A step's transitions are summed; steps without noise have log-probability 0.

        Args:
            steps: the steps, from 0; all by default.

        Raises:
            UsageError: the run did not record its log-probabilities, or has no such step.
        """
        if self.log_probs is None or self.transition_steps is None:
            raise UsageError("this result was stored without its transitions; sample with log_probs=True")
        return by_step(self.log_probs, self.transition_steps, chosen_steps(self.number_of_steps, steps))

    @property
    def number_of_steps(self) -> int | None:
        """The number of steps of the run's grid; None for adaptive runs."""
        grid = self.recipe.times or self.recipe.sigmas
        return self.recipe.steps if grid is None else len(grid) - 1

    @cached_property
    def decoded(self) -> Tensor:
        """The samples for viewing: images (N, C, H, W) decoded by a latent model, else the samples themselves."""
        return self.samples if self.decoder is None else self.decoder(self.samples)

    @property
    def images(self) -> list[Image]:
        """The samples as PIL images, decoded if they are latents, and clipped to the data range.

        Raises:
            UsageError: the samples are not (channels, height, width) with 1, 3 or 4 channels.
            ModelError: the samples are latents, and the model has no decoder.
        """
        return to_images(self.decoded, self.data_range if self.decoder is None else self.decoded_range)

    def __getstate__(self) -> dict[str, Any]:
        """The pickled state: everything except the decoded samples and the model's decoder."""
        state = {key: value for key, value in vars(self).items() if key != "decoded"}
        return state if self.decoder is None else {**state, "decoder": _not_stored}


def chosen_steps(count: int | None, steps: Sequence[int] | None) -> list[int]:
    """Steps of a grid of `count` steps, checked; all by default."""
    if count is None:
        raise UsageError("an adaptive run has no steps that all samples take; pass steps= to sample")
    if steps is None:
        return list(range(count))
    found = whole_numbers("steps", steps)
    if any(step >= count for step in found):
        raise UsageError(f"this run has the steps 0 to {count - 1}, not {max(found)}")
    return found


def by_step(log_probs: Tensor, transition_steps: Sequence[int], steps: Sequence[int]) -> Tensor:
    """The sums of the transitions (N, transitions) of each of `steps`, (N, len(steps))."""
    places = [[d for d, place in enumerate(transition_steps) if place == step] for step in steps]
    sums = [log_probs[:, of_step].sum(1) for of_step in places]
    return torch.stack(sums, 1) if sums else log_probs[:, :0]


def _not_stored(samples: Tensor) -> Tensor:
    raise UsageError("a stored result has no decoder for its latents: use model.decode(result.samples)")
