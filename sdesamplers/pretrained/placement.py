"""Where a network lives, and in what precision it is run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ..checks import device_of
from ..errors import UsageError


def autocast_for(mixed_precision: str | None) -> Any:
    """A factory of accelerate's mixed-precision context.

    Raises:
        UsageError: this machine cannot do it.
    """
    if mixed_precision in (None, "no"):
        return nullcontext
    try:
        return Autocast(mixed_precision)
    except ValueError as error:
        text = " ".join(str(error).split())
        raise UsageError(f"mixed_precision {mixed_precision!r} cannot be used here: {text}") from None


class Autocast:
    """A factory of accelerate's mixed-precision context, pickled by the name of its precision."""

    def __init__(self, mixed_precision: str) -> None:
        import accelerate  # accelerate takes a second to import

        self.mixed_precision = mixed_precision
        self._accelerator = accelerate.Accelerator(mixed_precision=mixed_precision)

    def __call__(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self._accelerator.autocast()
        return context

    def __reduce__(self) -> Any:
        return Autocast, (self.mixed_precision,)


def move(module: Any, device: torch.device | str | None) -> None:
    """Put a network or a pipeline on a device, accelerate's choice by default.

    Raises:
        UsageError: there is no such device.
    """
    import accelerate  # accelerate takes a second to import

    place = accelerate.PartialState().device if device is None else device_of("device", device)
    try:
        module.to(place)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from None
