"""The unguided predictions that CFG++ samplers need, and that modular pipelines do not pass to `step`.

A guider's output has the guided, the conditional and the unconditional prediction. The blocks of a pipeline pass on the
first alone, as `model_output`, so that the guider itself must pass the last to the scheduler.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import shown
from ..errors import UsageError
from ..registry.plugin import Sampler


class Unguided:
    """The unguided prediction of the next `step`, if a connected guider has computed it."""

    def __init__(self) -> None:
        self._received: tuple[Tensor, int, Tensor] | None = None

    def clear(self) -> None:
        """Forget what was received."""
        self._received = None

    def receive(self, guided: Tensor, unguided: Tensor) -> None:
        """Keep both predictions of a guider until the next `step`."""
        # An inference tensor has no version, by which an edit in place is noticed: the values of a copy are compared.
        guided = guided.clone() if guided.is_inference() else guided
        self._received = guided, version_of(guided), unguided

    def of_step(self, spec: Sampler, model_output: Tensor, given: Tensor | None) -> Tensor | None:
        """The unguided output that belongs to `model_output`: the one given, or the one received, which is used once.

        Raises:
            UsageError: the sampler needs it and there is none, or the pipeline has changed the guided prediction since.
        """
        received, self._received = self._received, None
        if given is not None or "unguided" not in spec.needs:
            return given
        if received is None:
            raise UsageError(
                f"{spec.name} needs the unguided prediction as well as the guided one, and this pipeline passes only "
                "the guided one: in a modular pipeline, replace its guider by scheduler.connect(guider); in a loop of "
                "your own, call step(..., unguided=...); otherwise sds.sample(sds.from_pipeline(pipe), ...) has both"
            )
        guided, version, unguided = received
        if version_of(guided) != version or not is_same(guided, model_output):
            raise UsageError(
                f"{spec.name} cannot use the unguided prediction of this pipeline's guider, because the pipeline "
                "changes the guided prediction (its scale, sign or shape) before it passes it to step"
            )
        return unguided


def version_of(tensor: Tensor) -> int:
    """The number of edits in place of a tensor; 0 for an inference tensor."""
    return 0 if tensor.is_inference() else tensor._version


def is_same(guided: Tensor, model_output: Tensor) -> bool:
    """True if an output is a guider's, or a copy of it in another dtype (which is compared by value)."""
    if model_output is guided:
        return True
    return model_output.shape == guided.shape and torch.equal(model_output, guided.to(model_output.dtype))


class Connected:
    """Mixed into the class of a guider: `receiver` receives its predictions too."""

    receiver: ClassVar[Unguided]
    get_state: Callable[[], dict[str, Any]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Combine the predictions as the guider does."""
        output = super().forward(*args, **kwargs)  # type: ignore[misc]
        if not hasattr(output, "pred_uncond"):
            raise UsageError("the guiders of this version of diffusers do not return the unconditional prediction")
        unguided = output.pred_uncond
        if unguided is None:
            if self.get_state()["enabled"] and is_neutral(self):
                raise UsageError(
                    "a guider skips the unconditional prediction at the scale that means no guidance, but CFG++ needs "
                    "it there too; pass a scale that differs, such as guidance_scale=0.999, or disable the guider"
                )
            unguided = output.pred  # disabled, or outside of its start and stop
        self.receiver.receive(output.pred, unguided)
        return output


def is_neutral(guider: Any) -> bool:
    """True if the guider's scale is the one at which the guided prediction is the conditional one."""
    neutral = 0.0 if getattr(guider, "use_original_formulation", False) else 1.0
    return math.isclose(getattr(guider, "guidance_scale", math.nan), neutral)


def connected(guider: Any, receiver: Unguided) -> Any:
    """A copy of a guider that passes its predictions to `receiver`; it has the guider's settings and state.

    Raises:
        UsageError: not a guider of diffusers.
    """
    if isinstance(guider, type) or not all(
        callable(getattr(guider, name, None)) for name in ("forward", "prepare_inputs", "get_state")
    ):
        raise UsageError(
            f"guider must be one of diffusers' guiders, such as ClassifierFreeGuidance(), not {shown(guider)}"
        )
    kind = type(guider)
    base = kind.__bases__[1] if issubclass(kind, Connected) else kind
    # The name and module of the class itself, so that a saved pipeline has the guider of diffusers.
    members = {"receiver": receiver, "__module__": base.__module__, "__doc__": base.__doc__}
    made = copy.copy(guider)
    made.__class__ = type(base.__name__, (Connected, base), members)
    return made
