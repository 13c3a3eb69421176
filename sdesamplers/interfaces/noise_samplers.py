"""k-diffusion's `noise_sampler(sigma, sigma_next)` as a noise source."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import shown
from ..errors import UsageError
from ..models.running import generators
from ..path.noise import Noise
from ..registry.plugin import NoiseSource


class CallersGenerators:
    """torch's global generators in the state that the caller knows, which a run in the main thread seeds for itself."""

    def __init__(self) -> None:
        self.states = self._read()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Context in which the caller's function draws from them."""
        inside = self._read()
        self.restore()
        try:
            yield
        finally:
            self.states = self._read()
            for generator, state in inside:
                generator.set_state(state)

    def restore(self) -> None:
        """Set the generators to the state after the draws so far."""
        for generator, state in self.states:
            generator.set_state(state)

    @staticmethod
    def _read() -> list[tuple[torch.Generator, Tensor]]:
        if threading.current_thread() is not threading.main_thread():
            return []  # runs in other threads leave the generators alone
        return [(generator, generator.get_state()) for generator in generators()]


def as_noise_source(
    noise_sampler: Callable[[Any, Any], Tensor],
    shape: torch.Size,
    kind: str,
    sigmas: Tensor,
    callers: CallersGenerators,
) -> NoiseSource:
    """A noise source that calls `noise_sampler(sigma, sigma_next)`; on the grid its arguments are the given sigmas.

    Args:
        shape: the state's, (N, ...), which draws must have.
        kind: "ve" or "flow", which determines sigma at a value of lambda.
        sigmas: the grid.
        callers: the generators of the caller.
    """
    places = sigmas.double().cpu().numpy()

    def as_sigma(lam: float) -> Tensor:
        sigma = math.exp(-lam) if kind == "ve" else 1 / (1 + math.exp(lam))
        nearest = int(np.abs(places - sigma).argmin())
        close = math.isclose(places[nearest], sigma, rel_tol=1e-9, abs_tol=1e-12)
        return sigmas[nearest] if close else sigmas.new_tensor(sigma)

    def noise(start: float, end: float, rows: np.ndarray | None = None) -> Tensor:
        if rows is not None:
            raise UsageError(
                "noise_sampler draws for all samples at once, but in this sampler each takes its own steps"
            )
        with callers.in_use():
            drawn = noise_sampler(as_sigma(start), as_sigma(end))
        if not isinstance(drawn, Tensor) or drawn.shape != shape:
            found = f"shape {tuple(drawn.shape)}" if isinstance(drawn, Tensor) else shown(drawn)
            raise UsageError(f"noise_sampler must return a tensor of x's shape {tuple(shape)}, not {found}")
        return drawn

    def source(source: Any, shortest: float) -> Noise:
        """The noise of a caller's noise_sampler."""
        return noise

    return NoiseSource(source, "noise-sampler")
