"""Steps of a pushed run with their densities, as policy-gradient fine-tuning needs them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..checks import choice
from ..path.prediction import Prediction
from ..path.transition import REDUCTIONS, Transition
from ..sampling.observed import check_density, observe
from ..sampling.waiting import floating
from .pending import PendingStep
from .run import PushedRun


def check_scored(run: PushedRun, sample: Tensor, prev_sample: Any, reduction: Any, eta: float) -> Tensor | None:
    """The outcome set by the caller, checked; None if the step is to be drawn.

    Raises:
        UsageError: the steps of the sampler have no Gaussian density, `prev_sample` has another shape, or the reduction
            is another.
    """
    choice("reduction", reduction, REDUCTIONS)
    check_density(run.layout.spec, run.with_eta(eta))
    return None if prev_sample is None else floating("prev_sample", prev_sample, sample.shape)


def advance_observed(
    run: PushedRun,
    pending: PendingStep,
    prediction: Prediction | None,
    sample: Tensor,
    next_timestep: Any,
    prev_sample: Tensor | None,
) -> tuple[Tensor, Transition]:
    """`PushedRun.advance` with the transition that it makes; `prev_sample` is its outcome, drawn if None."""
    states: list[Tensor] = []

    def send() -> None:
        states.append(run.advance(pending, prediction, sample.dtype, next_timestep))

    if prediction is None:  # the output was for the start of the run, from which no step has been taken yet
        send()
        return states[0], Transition(states[0], states[0], 0.0, 0.0)
    drawn = len(pending.run.steps)
    transition = observe(pending.run, send, prev_sample)
    if prev_sample is not None:
        run.note_given(range(drawn, len(pending.run.steps)))
        if not transition.is_stochastic:
            return prev_sample.to(states[0], copy=True), transition  # the caller may edit the state that it receives
    if transition.is_stochastic and states[0].requires_grad:
        # The densities of later steps take this outcome as a constant, as that of this step does.
        return run.without_graph(pending, states[0]), transition
    return states[0], transition
