"""The evaluation that a run waits for: the sampler's request, and the state that the pipeline passes back for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from ..errors import UsageError
from ..models.clipping import Clip, clipped
from ..path.points import Point, model_state
from ..path.prediction import Prediction
from ..pretrained.conventions import Convention, without_variance
from ..processes.scalars import expand
from ..sampling.recorded import RecordedRun


@dataclass
class StepOutput(SchedulerOutput):
    """The output of `step`.

    Attributes:
        prev_sample: (N, ...) the state at which the pipeline evaluates the network next, or the finished sample.
        pred_original_sample: (N, ...) x0 as predicted at the state just evaluated.
        log_prob: (N,) the log-probability of the step in nats, float64; None unless requested, as are the next two.
        mean: (N, ...) the mean of the step, in the run's dtype.
        std: the standard deviation of the step; see `Transition`.
    """

    pred_original_sample: Tensor | None = None
    log_prob: Tensor | None = None
    mean: Tensor | None = None
    std: float | Tensor | None = None


@dataclass
class PendingStep:
    """A run in progress, and the state that the pipeline has received for its next evaluation.

    Attributes:
        run: the run, which waits for a prediction.
        given, version: the tensor returned to the pipeline for this state, and its version at that time (None if torch
            does not track versions).
        discard_next_output: True if the network's next output is for the start of the run, before the sampler has
            requested a prediction.
    """

    run: RecordedRun
    given: Tensor | None = None
    version: int | None = None
    discard_next_output: bool = False

    @property
    def x(self) -> Tensor:
        """The requested state, in the path's coordinates."""
        x: Tensor = self.run.request[0]
        return x

    @property
    def point(self) -> Point:
        """The requested point."""
        point: Point = self.run.request[1]
        return point

    @property
    def network_point(self) -> Point:
        """The point whose timestep the pipeline passes to its network next."""
        return self.run.path.points[0] if self.discard_next_output else self.point

    def hand_out(self, dtype: torch.dtype) -> Tensor:
        """The state at which to evaluate the network next, in the pipeline's dtype, not sharing memory with `x`."""
        given = model_state(self.x, self.point)
        if given.dtype is not dtype:
            given = given.to(dtype)
        if given is self.x:
            given = given.clone()
        self.given, self.version = given, None if given.is_inference() else given._version
        return given

    def is_own(self, sample: Tensor) -> bool:
        """True if `sample` is the tensor that the run returned last, and was not modified since."""
        if sample is self.given:
            return self.version is None or sample._version == self.version
        return False

    def predicted(
        self,
        model_output: Tensor,
        sample: Tensor,
        convention: Convention,
        clip: Clip | None,
        unguided: Tensor | None = None,
    ) -> Prediction:
        """The network's output for `sample`, and its output without guidance, read by this convention and clipped.

        Raises:
            UsageError: the shape of an output differs from the state's.
        """
        x = self.evaluated(sample)
        prediction = self._read(model_output, x, convention)
        if unguided is not None:
            prediction.unguided = self._read(unguided, x, convention)
        # A flow map's mean velocity over a whole step does not determine an x0 that could be clipped.
        return prediction if self.point.end is not None else clipped(prediction, clip)

    def _read(self, model_output: Tensor, x: Tensor, convention: Convention) -> Prediction:
        """An output for the state x as a prediction."""
        output = model_output
        if output.dtype is not x.dtype or output.shape != x.shape:
            output = without_variance(output, x.shape[1]).to(x.dtype)
            if output.shape != x.shape:
                raise UsageError(
                    f"the network returned shape {tuple(model_output.shape)} for a state of shape {tuple(x.shape)}"
                )
        output = output.clone() if output is model_output else output
        if not convention.is_plain:
            output = convention.read(output, model_state(x, self.point), self.point.t)
        return Prediction(x, self.point, output, convention.prediction)

    def evaluated(self, sample: Tensor) -> Tensor:
        """The state at which the network was evaluated, in the path's coordinates.

        Elements that the pipeline passes back unchanged are the run's own, unrounded values; edited elements are the
        pipeline's. The choice is made element by element on the device, without a synchronization.

        Gradients are those of `sample`: with respect to it if it requires them, and none with respect to earlier
        steps of the run if it was detached.
        """
        x, given = self.x, self.given
        if given is None:
            return x
        if sample.requires_grad and torch.is_grad_enabled():
            theirs = self._scaled(sample)
            # `theirs` is within a rounding of the values if they differ, so the sum is exact.
            return theirs + (self._values(sample.detach(), given) - theirs).detach()
        values = self._values(sample, given)
        if values.requires_grad:
            return values.detach()
        if sample is given and not x.requires_grad and x.is_inference() == values.is_inference():
            return x.copy_(values)  # overwritten by the pipeline: overwrite the sampler's own state too
        return values

    def _values(self, sample: Tensor, given: Tensor) -> Tensor:
        x, scale = self.x, self.point.scale
        if sample.dtype is given.dtype is x.dtype and isinstance(scale, float) and scale == 1.0:
            return sample if sample is given else sample.clone()  # equal to the run's own values unless edited
        echo = model_state(x, self.point).to(given.dtype)  # the pipeline may have cast it to another dtype since
        return torch.where(sample == echo.to(sample.dtype), x, self._scaled(sample))

    def _scaled(self, sample: Tensor) -> Tensor:
        """A pipeline's state in the path's coordinates and the run's dtype."""
        theirs, scale = sample.to(self.x.dtype), self.point.scale
        return theirs if isinstance(scale, float) and scale == 1.0 else theirs * expand(scale, theirs)
