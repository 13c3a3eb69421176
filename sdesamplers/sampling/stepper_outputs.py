"""From a network's outputs to the predictions that a sampler receives."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..errors import NonFiniteError, UsageError
from ..models.clipping import Clip, clipped
from ..path.prediction import Prediction, ScorePrediction
from ..processes.sde import SDE, GaussianProcess
from ..registry.plugin import Sampler
from .waiting import Waiting, floating


@dataclass(slots=True)
class Reader:
    """How the outputs of a network are read.

    Attributes:
        process, prediction: the network's process and prediction type.
        clip: bounds of x0.
        spec: the sampler, which may need more than the output.
        check_finite: raise an error if an output on the CPU is not finite.
        label: the run in error messages.
    """

    process: SDE
    prediction: str
    clip: Clip | None
    spec: Sampler
    check_finite: bool
    label: str
    _make: type[Prediction] = field(init=False)
    _is_reversed: bool = field(init=False)

    def __post_init__(self) -> None:
        self._make = Prediction if isinstance(self.process, GaussianProcess) else ScorePrediction
        self._is_reversed = self.prediction == "flow" and self.process.clock_sign < 0

    def predictions(
        self, waiting: Waiting, output: Any, unguided: Any, log_density: Any, evaluations: int
    ) -> list[Prediction]:
        """The predictions for the states that a run waits for; arguments as in `Stepper.send`.

        Raises:
            UsageError: an output has another shape, or is missing.
            NonFiniteError: an output is not finite.
        """
        value = self._checked("output", output, waiting, evaluations)
        made = self._made(waiting, waiting.evaluated(), value)
        if unguided is not None:
            plain = self._checked("unguided", unguided, waiting, evaluations)
            for prediction, other in zip(made, self._made(waiting, [each.x for each in made], plain), strict=True):
                prediction.unguided = other
        elif "unguided" in self.spec.needs:
            raise UsageError(
                f"{self.spec.name} needs the unguided output too: send(output, unguided=...); pass the same output if "
                "nothing is guided"
            )
        if log_density is not None:
            density = floating("log_density", log_density, waiting.shape[:1]).to(value.device, copy=True)
            for prediction, part in zip(made, waiting.split(density), strict=True):
                prediction.log_density = part
        elif "log_density" in self.spec.needs:
            raise UsageError(f"{self.spec.name} needs the log-density too: send(score, log_density=...)")
        if self.clip is None:
            return made
        # A flow map's output for a whole step does not determine x0.
        return [each if each.point.end is not None else clipped(each, self.clip) for each in made]

    def _made(self, waiting: Waiting, states: list[Tensor], output: Tensor) -> list[Prediction]:
        make, kind, requests = self._make, self.prediction, waiting.requests
        if len(requests) == 1:
            return [make(states[0], requests[0][1], output, kind)]
        parts = zip(states, requests, waiting.split(output), strict=True)
        return [make(x, point, part, kind) for x, (_, point), part in parts]

    def _checked(self, name: str, output: Any, waiting: Waiting, evaluations: int) -> Tensor:
        """A copy of an output in the states' dtype: the network may reuse its buffer."""
        like = waiting.requests[0][0]
        output = floating(name, output, waiting.shape)
        if output.dtype is like.dtype and output.device == like.device:
            made = output.clone()
        else:
            made = output.to(like)
        if self.check_finite and made.is_cpu and not math.isfinite(made.sum().item()):
            raise NonFiniteError(
                f"{self.label}: {name} is not finite at evaluation {evaluations + 1} (check_finite=False turns this "
                "check off)"
            )
        return -made if self._is_reversed else made
