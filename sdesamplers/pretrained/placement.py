"""The device of a network, and the precision in which it runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ..checks import device_of
from ..errors import UsageError


def autocast_for(mixed_precision: str | None) -> Any:
    """Return a factory of accelerate's mixed-precision context.

    Raises:
        UsageError: this machine does not support the precision.
    """
    if mixed_precision in (None, "no"):
        return nullcontext
    try:
        return Autocast(mixed_precision)
    except ValueError as error:
        text = " ".join(str(error).split())
        raise UsageError(f"mixed_precision {mixed_precision!r} cannot be used here: {text}") from None


class Autocast:
    """A factory of accelerate's mixed-precision context; pickles contain only the name of the precision."""

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
    """Move a network or a pipeline to a device, by default the one that accelerate chooses.

    Raises:
        UsageError: the device does not exist or cannot be used.
    """
    import accelerate  # accelerate takes a second to import

    place = accelerate.PartialState().device if device is None else device_of("device", device)
    try:
        module.to(place)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from None
