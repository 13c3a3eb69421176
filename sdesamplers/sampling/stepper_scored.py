"""Steps of a `Stepper` with their densities."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from ..path.transition import Transition
from ..processes.scalars import expand
from ..registry.plugin import Sampler
from .observed import check_density, observe
from .recipe import Recipe
from .recorded import RecordedRun
from .waiting import floating


class Scored:
    """The methods of `Stepper` that return transitions."""

    spec: Sampler
    recipe: Recipe
    x: Any
    _run: RecordedRun

    def step(
        self,
        output: Tensor,
        *,
        prev_sample: Tensor | None = None,
        unguided: Tensor | None = None,
        log_density: Tensor | None = None,
    ) -> Transition:
        """Like `send`, and return the transition to the next state: its mean, standard deviation and log-probability.

        Args:
            output, unguided, log_density: as in `send`.
            prev_sample: (N, *shape) the outcome of the transition, in the model's coordinates, from which the run then
                continues; drawn from the run's noise by default. (The name is that of diffusers.)

        Raises:
            UsageError: as `send`; or the sampler's steps have no Gaussian density (`Sampler.no_density`).
        """
        self._open()
        check_density(self.spec, self.recipe)
        given = None if prev_sample is None else floating("prev_sample", prev_sample, self._run.record.shape)

        def send() -> None:
            self.send(output, unguided=unguided, log_density=log_density)

        with self._mode():
            made = observe(self._run, send, given)
        if given is not None and not made.is_stochastic:
            self._continue_from(given)
        return made

    def _continue_from(self, state: Tensor) -> None:
        """Replace the state after a step without noise."""
        if self._run.end is None:
            self.x = state.detach()
        else:
            point = self._run.path.points[-1]
            self._run.end = (state * expand(point.scale, state)).detach().to(self._run.end)

    # Defined by `Stepper` and its copies.

    def send(self, output: Tensor, *, unguided: Tensor | None = None, log_density: Tensor | None = None) -> Any:
        """Pass the sampler the network's output, and advance to the next evaluation."""
        raise NotImplementedError

    def _open(self) -> None:
        """Raise a UsageError if the run is over."""
        raise NotImplementedError

    def _mode(self) -> AbstractContextManager[Any]:
        """The autograd mode of the sampler's computations."""
        raise NotImplementedError
