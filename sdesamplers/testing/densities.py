"""The check of a sampler's declaration that its steps have densities, or have none."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from ..errors import UsageError
from ..path.transition import Transition
from ..sampling.stepper import Stepper
from .case import Case
from .invariants import clipped
from .report import Outcome
from .resumption import by_hand, sent


def densities(case: Case) -> Outcome:
    """Steps are Gaussian transitions with the density of `torch.distributions`, or `no_density` gives the reason.

    The mean of a step must not depend on its draw: the same step to another outcome has the same mean.
    """
    spec = case.spec
    if not spec.stochastic:
        fault = "declares no_density, and draws no noise", "no_density= is for samplers with noise", False
        return fault if spec.no_density else None
    stepper = by_hand(case, {"steps": 12})
    if spec.no_density:
        return _refusal(case, stepper)
    wrong: list[str] = []
    stochastic = 0
    while not stepper.is_done:
        output, extra = sent(stepper, case.main_model)
        again = copy.deepcopy(stepper)
        made = stepper.step(output, **extra)
        if made.is_stochastic:
            stochastic += 1
            wrong += _faults(made, stepper.x, again, output, extra)
    if not stochastic:
        wrong.append("no step has a density")
    found = "; ".join(dict.fromkeys(wrong)) or f"{stochastic} Gaussian steps"
    return found, "the densities of torch.distributions, or no_density=", not wrong


def _faults(made: Transition, state: Tensor, before: Stepper, output: Tensor, extra: dict[str, Any]) -> list[str]:
    """What is wrong with a transition to `state`; `before` is a copy of the run before it."""
    wrong, other = [], made.sample + 0.1
    scored = before.step(output, prev_sample=other, **extra)
    if not torch.equal(made.sample, state):
        wrong.append("the next state is not the outcome of the step")
    for step, outcome in ((made, made.sample), (scored, other)):
        expected = Independent(Normal(step.mean, step.std), 1).log_prob(outcome)
        found = step.log_prob()
        if not torch.isfinite(found).all() or not torch.allclose(found, expected, rtol=1e-9, atol=1e-9):
            wrong.append("a log-probability is not that of the normal distribution")
    std, other_std = (torch.as_tensor(step.std, dtype=torch.float64) for step in (made, scored))
    same_mean = torch.allclose(made.mean, scored.mean, rtol=1e-9, atol=1e-9)
    if not same_mean or not torch.allclose(std, other_std, rtol=1e-9, atol=0):
        wrong.append("the mean or the standard deviation of a step depends on its draw")
    return wrong


def _refusal(case: Case, stepper: Stepper) -> Outcome:
    """The outcome for a sampler that declares no density: a step with one is refused, and the run can continue."""
    reason, required = case.spec.no_density, "refused with the declared reason, one line of text"
    if not reason.strip() or not reason.isprintable():
        return f"no_density={reason!r} is no reason", required, False
    output, extra = sent(stepper, case.main_model)
    before = stepper.x.clone()
    try:
        stepper.step(output, **extra)
    except UsageError as refusal:
        kept = stepper.evaluations == 0 and torch.equal(stepper.x, before)
        return clipped(f"refused: {refusal}"), required, reason in str(refusal) and kept
    return "a step has a density", required, False
