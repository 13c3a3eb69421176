"""From a network's outputs to the predictions that a sampler receives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import NonFiniteError, UsageError
from ..models.clipping import Clip, clipped
from ..path.points import Point
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
        gradients: keep the outputs' graph.
        label: the run in error messages.
    """

    process: SDE
    prediction: str
    clip: Clip | None
    spec: Sampler
    check_finite: bool
    gradients: bool
    label: str

    def predictions(
        self, waiting: Waiting, output: Any, unguided: Any, log_density: Any, evaluations: int
    ) -> list[Prediction]:
        """The predictions for the states that a run waits for; arguments as in `Stepper.send`.

        Raises:
            UsageError: an output has another shape, or is missing.
            NonFiniteError: an output is not finite.
        """
        value = self._checked("output", output, waiting, evaluations)
        plain = None if unguided is None else self._checked("unguided", unguided, waiting, evaluations)
        if plain is None and "unguided" in self.spec.needs:
            raise UsageError(
                f"{self.spec.name} needs the unguided output too: send(output, unguided=...); pass the same output if "
                "nothing is guided"
            )
        if log_density is not None:
            log_density = floating("log_density", log_density, (len(value),)).to(value.device)
        elif "log_density" in self.spec.needs:
            raise UsageError(f"{self.spec.name} needs the log-density too: send(score, log_density=...)")
        made, begin = [], 0
        for (_, point), x in zip(waiting.requests, waiting.evaluated(), strict=True):
            part = slice(begin, begin := begin + len(x))
            prediction = self._prediction(x, point, value[part])
            prediction.unguided = None if plain is None else self._prediction(x, point, plain[part])
            prediction.log_density = None if log_density is None else log_density[part]
            # A flow map's output for a whole step does not determine x0.
            made.append(prediction if point.end is not None else clipped(prediction, self.clip))
        return made

    def _checked(self, name: str, output: Any, waiting: Waiting, evaluations: int) -> Tensor:
        """A copy of an output in the states' dtype: the network may reuse its buffer."""
        like = waiting.requests[0][0]
        output = floating(name, output, (sum(len(x) for x, _ in waiting.requests), *like.shape[1:]))
        output = output if self.gradients else output.detach()
        made = output.to(device=like.device, dtype=like.dtype, copy=True)
        if self.check_finite and made.is_cpu and not math.isfinite(made.sum().item()):
            raise NonFiniteError(
                f"{self.label}: {name} is not finite at evaluation {evaluations + 1} (check_finite=False turns this "
                "check off)"
            )
        return -made if self.prediction == "flow" and self.process.clock_sign < 0 else made

    def _prediction(self, x: Tensor, point: Point[Any], output: Tensor) -> Prediction:
        make = Prediction if isinstance(self.process, GaussianProcess) else ScorePrediction
        return make(x, point, output, self.prediction)
