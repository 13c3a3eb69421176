"""What a run waits for: where its sampler wants the model, and what a pipeline hands back of what it was given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from ..errors import UsageError
from ..models.clipping import Clip, clipped
from ..path.path import Path
from ..path.points import Point, model_state
from ..path.prediction import Prediction
from ..pretrained.conventions import Convention, without_variance
from ..processes.scalars import expand
from ..sampling.loop import Run


@dataclass
class StepOutput(SchedulerOutput):
    """What `step` returns.

    Attributes:
        prev_sample: the state that the pipeline is to ask the network at next, or the finished sample.
        pred_original_sample: x0 as predicted at the state just evaluated.
    """

    pred_original_sample: Tensor | None = None


@dataclass
class PendingStep:
    """A run in progress: the sampler's generator, and the state and point at which it waits for the model's answer.

    Attributes:
        run, path: the generator, and what it was given.
        x, point: the state and point asked for, in the path's coordinates.
        given: the tensor that the pipeline was handed for it, and its version then (None where torch keeps none).
        waits: whether the network's next answer is for the run's start, before the sampler has asked anything.
    """

    run: Run
    path: Path
    x: Tensor
    point: Point
    given: Tensor | None = None
    version: int | None = None
    waits: bool = False

    @property
    def asked_at(self) -> Point:
        """The point whose timestep the pipeline is to tell its network."""
        return self.path.points[0] if self.waits else self.point

    def hand_out(self, dtype: torch.dtype) -> Tensor:
        """The state to ask the network at next, as a pipeline of this dtype is given it: a tensor of its own."""
        given = model_state(self.x, self.point)
        if given.dtype is not dtype:
            given = given.to(dtype)
        if given is self.x:
            given = given.clone()
        self.given, self.version = given, None if given.is_inference() else given._version
        return given

    def is_own(self, sample: Tensor) -> bool:
        """Whether `sample` is the very tensor that the run has returned, not written over since."""
        if sample is self.given:
            return self.version is None or sample._version == self.version
        return False

    def predicted(self, model_output: Tensor, sample: Tensor, convention: Convention, clip: Clip | None) -> Prediction:
        """The network's answer for `sample`, read as this convention has it and clipped.

        Raises:
            UsageError: it has another shape than the state.
        """
        x = self.evaluated(sample)
        output = model_output
        if output.dtype is not x.dtype or output.shape != x.shape:
            output = without_variance(output, x.shape[1]).to(x.dtype)
            if output.shape != x.shape:
                raise UsageError(
                    f"the network answered with shape {tuple(model_output.shape)} for a state of {tuple(x.shape)}"
                )
        output = output.clone() if output is model_output else output
        if not convention.is_plain:
            output = convention.read(output, model_state(x, self.point), self.point.t)
        prediction = Prediction(x, self.point, output, convention.prediction)
        # A flow map's mean velocity over a whole step is no x0 to be clipped.
        return prediction if self.point.end is not None else clipped(prediction, clip)

    def evaluated(self, sample: Tensor) -> Tensor:
        """The state that the network was asked at, in the path's coordinates.

        It is the run's own, unrounded, wherever the pipeline hands back what it was given; where it has edited
        something the edited values are taken, number by number, so that nothing is read from the device to find out.

        Gradients are those of the tensor handed in: with respect to `sample` if it requires them, and none of the
        run's own past if it was detached.
        """
        x, given = self.x, self.given
        if given is None:
            return x
        if sample.requires_grad and torch.is_grad_enabled():
            theirs = self._scaled(sample)
            # theirs lies within a rounding of the values wherever these differ, so that the sum is exact.
            return theirs + (self._values(sample.detach(), given) - theirs).detach()
        values = self._values(sample, given)
        if values.requires_grad:
            return values.detach()
        if sample is given and not x.requires_grad and x.is_inference() == values.is_inference():
            return x.copy_(values)  # written over by the pipeline: then the sampler's own state is, too
        return values

    def _values(self, sample: Tensor, given: Tensor) -> Tensor:
        x, scale = self.x, self.point.scale
        if sample.dtype is given.dtype is x.dtype and isinstance(scale, float) and scale == 1.0:
            return sample if sample is given else sample.clone()  # the run's own numbers unless it was edited
        echo = model_state(x, self.point).to(given.dtype)  # which the pipeline may have cast since
        return torch.where(sample == echo.to(sample.dtype), x, self._scaled(sample))

    def _scaled(self, sample: Tensor) -> Tensor:
        """A pipeline's state in the path's coordinates and the run's dtype."""
        theirs, scale = sample.to(self.x.dtype), self.point.scale
        return theirs if isinstance(scale, float) and scale == 1.0 else theirs * expand(scale, theirs)

    def __deepcopy__(self, memo: Any) -> PendingStep:
        raise UsageError(
            "a run in progress cannot be copied, as panorama pipelines do with every view's; use their own schedulers "
            "there, and elsewhere a scheduler.clone() for each run"
        )
