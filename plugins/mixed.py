"""Noise at chosen steps: a stochastic sampler on some steps of a grid, and an ODE solver on the others."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from sdesamplers import Path, Run, Sampler, default_registry, hookimpl, sampler

Solver = Callable[..., Run]
"""A sampler with its options."""


def noisy_sampler(name: str) -> tuple[Solver, str | None]:
    """The stochastic sampler of a name, and its numeric option that is 0 without noise; None if it has no such option.

    Raises:
        UnknownNameError: no such sampler.
        ValueError: the sampler draws no noise, has no density, or needs more than a prediction.
    """
    found = default_registry().resolve(name)
    spec = found.sampler
    if spec.name == "mixed" or not spec.stochastic or set(spec.needs) - {"marginals"} or spec.no_density:
        reason = spec.no_density or f"needs {', '.join(spec.needs)}" if spec.stochastic else "draws no noise"
        raise ValueError(f"sde={name!r} {reason}; use a stochastic sampler such as flow-sde, ddpm or dpmpp-2m-sde")
    scales = [option for option, value in (spec.noiseless or {"eta": 0.0}).items() if value == 0.0]
    scales = [option for option in scales if option in spec.options]
    return partial(spec, **found.options), scales[0] if scales else None


def quiet_sampler(name: str) -> Solver:
    """The ODE solver of a name.

    Raises:
        UnknownNameError: no such sampler.
        ValueError: the sampler draws noise, or needs more than a prediction.
    """
    found = default_registry().resolve(name)
    spec = found.sampler
    if spec.stochastic or set(spec.needs) - {"marginals"}:
        reason = f"needs {', '.join(spec.needs)}" if not spec.stochastic else "draws noise"
        raise ValueError(f"ode={name!r} {reason}; use an ODE solver such as ddim, heun or dpmpp-2m")
    return partial(spec, **found.options)


def amounts_of(path: Path, noisy_steps: Sequence[int] | None, amounts: Sequence[float] | None) -> list[float | None]:
    """The amount of noise of each step of the path: None for the sampler's default, 0 for the ODE.

    The arguments number the steps of the whole grid, of which a run that starts in the middle has only the last ones.

    Raises:
        ValueError: both are given, a step is not on the grid, or there is not one amount for each step.
    """
    count = path.first_step + len(path.steps)
    if noisy_steps is not None and amounts is not None:
        raise ValueError("pass noisy_steps or amounts, not both")
    if amounts is not None:
        if len(amounts) != count or min(amounts, default=0.0) < 0:
            raise ValueError(f"amounts must be {count} numbers of 0 or more, one for each step, not {list(amounts)}")
        return [float(amount) for amount in amounts[path.first_step :]]
    chosen = range((count + 1) // 2) if noisy_steps is None else noisy_steps
    if any(step != int(step) or not 0 <= step < count for step in chosen):
        raise ValueError(f"noisy_steps must be steps of the grid, from 0 to {count - 1}, not {list(chosen)}")
    return [None if step in chosen else 0.0 for step in range(path.first_step, count)]


@sampler(
    "mixed",
    order=1,
    stochastic=True,
    needs=("marginals",),
    reference="Li et al. 2025 (MixGRPO, arXiv 2507.21802), section 3",
)
def mixed(
    x: Tensor,
    path: Path,
    *,
    sde: str = "flow-sde",
    ode: str = "ddim",
    noisy_steps: Sequence[int] | None = None,
    amounts: Sequence[float] | None = None,
) -> Run:
    """Noise at chosen steps: some steps of the grid by a stochastic sampler, the others by an ODE solver.

    Steps next to each other with the same sampler and amount of noise are one run of it: a multistep method keeps its
    earlier predictions within them, and starts anew after a change. The marginals are those of the model, as with any
    mixture of steps of its SDEs. Steps of the ODE have log-probability 0.

    Args:
        sde: name of a stochastic sampler or recipe whose steps have a density.
        ode: name of a sampler or recipe without noise.
        noisy_steps: the steps with noise, from 0 to steps - 1; by default the first half of them. A run that starts in
            the middle of a scheduler's grid counts from the grid's first step too.
        amounts: instead of `noisy_steps`, one number for each step: the value there of the option of `sde` that is 0
            without noise (`eta` of euler-maruyama, `noise_level` of flow-sde); a step with 0 is one of the ODE.
    """
    (noisy, option), quiet = noisy_sampler(sde), quiet_sampler(ode)
    if amounts is not None and option is None:
        raise ValueError(f"sde={sde!r} has no option that scales its noise from 0; use noisy_steps")
    first = 0
    for amount, steps in itertools.groupby(amounts_of(path, noisy_steps, amounts)):
        part = path.part(path.points[first : (first := first + len([*steps])) + 1])
        if amount == 0.0:
            x = yield from quiet(x, part)
        else:
            x = yield from noisy(x, part, **({} if amount is None else {str(option): amount}))
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [mixed]
