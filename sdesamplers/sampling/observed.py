"""One step of a run as a `Transition`, observed while the run takes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import UsageError
from ..path.points import model_state
from ..path.transition import Draw, Transition
from ..processes.scalars import expand
from ..registry.plugin import Sampler
from .recipe import Recipe, noise_of
from .recorded import RecordedRun


def check_density(spec: Sampler, recipe: Recipe) -> None:
    """Raise a UsageError if the steps of a run have no Gaussian density, with the reason."""
    if spec.no_density:
        raise UsageError(f"a step of {spec.name} has no Gaussian density: {spec.no_density}")
    if noise_of(recipe).limits:
        raise UsageError(f"densities need independent normal noise, and noise={recipe.noise!r} is coloured")


def observe(run: RecordedRun, send: Callable[[], Any], prev_sample: Tensor | None = None) -> Transition:
    """The transition that a run makes while `send` passes it a prediction.

    Args:
        run: the run, which waits for a prediction at one point.
        send: passes it the prediction.
        prev_sample: (N, *shape) the outcome of the transition, in the model's coordinates; drawn by default.

    Raises:
        UsageError: the step is no Gaussian transition, or each sample takes its own steps.
    """
    spec, request = run.setup.spec, run.request
    if isinstance(request, list) or request[1].rows is not None:
        takes = "evaluates at several points at once" if isinstance(request, list) else "takes other steps per sample"
        raise UsageError(f"a step of {spec.name} has no density, because this run {takes}")
    ledger, begin = run.ledger, float(request[1].time)
    prev_sample = None if prev_sample is None else prev_sample.detach()
    ledger.watched, ledger.next_outcome = [], prev_sample
    try:
        send()
        draws, reached = ledger.watched, run.reached
    finally:
        ledger.watched = ledger.next_outcome = run.reached = None
    assert reached is not None
    state, point = reached
    dt = float(point.time) - begin
    if not draws:  # a step of the ODE, or a stage of a step
        mean = model_state(state, point).clone()
        outcome = mean if prev_sample is None else prev_sample
        return Transition(outcome.detach().to(mean, copy=True), mean, 0.0, dt)
    draw = draws[0]
    if len(draws) > 1 or draw.outcome is not state or draw.then.scale != point.scale:
        raise _not_gaussian(spec, len(draws))
    std = _in_model(draw)
    return Transition(model_state(state, point).clone(), model_state(draw.mean, point), std, dt)


def _in_model(draw: Draw) -> float | Tensor:
    """A draw's standard deviation in the model's coordinates: a number, or (N, 1, ..., 1), float64."""
    std = np.asarray(draw.std, dtype=np.float64) / draw.then.scale
    return expand(std, draw.mean.double()) if std.ndim else float(std)  # type: ignore[no-any-return]


def _not_gaussian(spec: Sampler, count: int) -> UsageError:
    made = f"it made {count} draws" if count > 1 else "the next state is another function of its draw"
    return UsageError(
        f"this step of {spec.name} is no Gaussian transition: {made}. Its plugin should declare no_density= (see "
        "Sampler); ddpm, euler-maruyama, flow-sde or dpmpp-2m-sde have densities"
    )
