"""The unguided predictions that CFG++ samplers need, and that modular pipelines do not pass to `step`.

A guider's output has the guided, the conditional and the unconditional prediction. The blocks of a pipeline pass on the
first alone, as `model_output`, so that the guider itself must pass the last to the scheduler.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..checks import shown
from ..errors import UsageError
from ..registry.plugin import Sampler


class Pair(NamedTuple):
    """The predictions of a guider at one evaluation, and the version of the guided one at that time."""

    guided: Tensor
    version: int
    unguided: Tensor

    def is_of(self, model_output: Tensor) -> bool:
        """True if an output is this guided prediction, which has not been edited since."""
        return version_of(self.guided) == self.version and is_same(self.guided, model_output)


class Received:
    """The latest predictions of a guider, which the copies of its scheduler share; not stored in pickles.

    Attributes:
        pairs: by their number, in the order in which they came; one is kept until the step that uses it has succeeded.
        count: the number of pairs received so far.
    """

    def __init__(self) -> None:
        self.pairs: dict[int, Pair] = {}
        self.count = 0

    def put(self, pair: Pair) -> None:
        """Add a pair; the oldest is dropped if there are too many."""
        self.count += 1
        self.pairs[self.count] = pair
        self.pairs.pop(self.count - KEPT, None)

    def __getstate__(self) -> dict[str, Any]:
        return {"pairs": {}, "count": self.count}


KEPT = 16
"""Number of pairs kept: copies of a scheduler may be at work in several threads."""


class Unguided:
    """The unguided prediction of the next `step` of a scheduler, if a connected guider has computed it.

    A copy, in a copy of the scheduler, shares what the guider computes, so the guider serves all of them.

    Attributes:
        is_connected: True if a guider has been connected.
    """

    def __init__(self, shared: Received | None = None) -> None:
        self.is_connected = shared is not None
        self._shared, self._used = shared or Received(), 0
        self._since = self._shared.count

    def __deepcopy__(self, memo: dict[int, Any]) -> Unguided:
        made = Unguided(self._shared if self.is_connected else None)
        made._since = self._since
        return made

    def clear(self) -> None:
        """Ignore what was received so far: it belongs to another grid."""
        self._since = self._shared.count

    def succeeded(self) -> None:
        """Forget the pair that the last `of_step` has returned: its step is made, and each pair is used once."""
        self._shared.pairs.pop(self._used, None)

    def receive(self, guided: Tensor, unguided: Tensor) -> None:
        """Keep both predictions of a guider until the next `step`."""
        # An inference tensor has no version, by which an edit in place is noticed: the values of a copy are compared.
        guided = guided.clone() if guided.is_inference() else guided
        self._shared.put(Pair(guided, version_of(guided), unguided))

    def of_step(self, spec: Sampler, model_output: Tensor, given: Tensor | None) -> Tensor | None:
        """The unguided output that belongs to `model_output`: the one given, or the one received.

        A received one is kept until `succeeded`, so that a step that raises an error can be repeated.

        Raises:
            UsageError: the sampler needs it and there is none, or the pipeline has changed the guided prediction since.
        """
        pairs = [(k, pair) for k, pair in reversed(list(self._shared.pairs.items())) if k > self._since]
        # The pairs may be those of other copies: only that of this output is used.
        own = ((k, pair.unguided) for k, pair in pairs if pair.is_of(model_output))
        self._used, received = next(own, (0, None))
        if given is not None or "unguided" not in spec.needs:
            return given
        if received is not None:
            return received
        if not pairs:
            raise UsageError(
                f"{spec.name} needs the unguided prediction as well as the guided one, and this pipeline passes only "
                "the guided one: in a modular pipeline, replace its guider by scheduler.connect(guider); in a loop of "
                "your own, call step(..., unguided=...); otherwise sds.sample(sds.from_pipeline(pipe), ...) has both"
            )
        raise UsageError(
            f"{spec.name} cannot use the unguided prediction of this pipeline's guider, because the pipeline "
            "changes the guided prediction (its scale, sign or shape) before it passes it to step"
        )


def version_of(tensor: Tensor) -> int:
    """The number of edits in place of a tensor; 0 for an inference tensor."""
    return 0 if tensor.is_inference() else tensor._version


def is_same(guided: Tensor, model_output: Tensor) -> bool:
    """True if an output is a guider's, or a copy of it in another dtype (which is compared by value)."""
    if model_output is guided:
        return True
    is_alike = model_output.shape == guided.shape and model_output.device == guided.device
    return is_alike and torch.equal(model_output, guided.to(model_output.dtype))


class Connected:
    """Mixed into the class of a guider: `receiver` receives its predictions too."""

    receiver: ClassVar[Unguided]
    get_state: Callable[[], dict[str, Any]]

    def __reduce__(self) -> Any:
        """Copied and pickled as the guider of diffusers and its receiver, which is also its scheduler's."""
        plain: Any = object.__new__(type(self).__bases__[1])
        plain.__dict__.update(self.__dict__)
        return connected, (plain, self.receiver)

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
    receiver.is_connected = True
    return made
