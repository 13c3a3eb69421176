"""The grid that a pipeline requests, in any form that diffusers' schedulers accept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import UsageError
from ..pretrained.conventions import Convention
from ..processes.coordinates import view
from ..processes.scalars import as_scalar
from ..processes.schedules import RectifiedFlow, TrigFlow
from ..processes.sde import GaussianProcess
from ..processes.table import DiscreteVP
from .choice import Choice

CONSISTENCY = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
"""Defaults of a consistency model's training grid."""


@dataclass(frozen=True)
class GridRequest:
    """The arguments of `set_timesteps`; `limits` holds the arguments of TrigFlow grids that were passed."""

    num_inference_steps: int | None
    device: Any
    timesteps: Any
    sigmas: Any
    mu: float | None
    strength: float
    original_inference_steps: int | None
    limits: dict[str, Any]

    @property
    def count(self) -> int | None:
        """The number of grid intervals if it is passed, or else as many as there are times or levels above 0."""
        levels = self.timesteps if self.sigmas is None else self.sigmas
        if self.num_inference_steps is not None or levels is None:
            return self.num_inference_steps
        return int(np.count_nonzero(numbers(levels, "timesteps" if self.sigmas is None else "sigmas")))

    def arguments(self) -> dict[str, Any]:
        """The same as serializable keyword arguments, with grids as lists."""
        plain = {name: value for name, value in vars(self).items() if name != "limits"}
        return {**plain, "timesteps": plain_list(self.timesteps), "sigmas": plain_list(self.sigmas), **self.limits}


@dataclass(frozen=True)
class RequestedGrid:
    """A grid in terms of a recipe.

    Attributes:
        steps: number of grid intervals; None if the times are listed.
        arguments: recipe arguments that override the sampler's own.
        is_given: True if the pipeline passed the grid; it then takes the number of timesteps for the number of steps.
        is_closed: True if the clean end is the last timestep.
    """

    steps: int | None
    arguments: dict[str, Any]
    is_given: bool
    is_closed: bool


def requested_grid(
    request: GridRequest, convention: Convention, trained: Mapping[str, Any], choice: Choice
) -> RequestedGrid:
    """The grid for a model of this convention and configuration, and the chosen sampler.

    Raises:
        UsageError: no grid, or an invalid one.
    """
    process = convention.process
    steps, timesteps, sigmas = request.num_inference_steps, request.timesteps, request.sigmas
    is_closed = is_trig(process, request.limits)
    if is_closed:
        timesteps = trig_times(steps, **request.limits) if timesteps is None else timesteps
        steps = None
    times: list[float] | None = None
    if sigmas is not None:
        levels = numbers(sigmas, "sigmas")
        steps = even_steps(levels) if replaces_even_grids(convention, choice) else None
        times = own_times(convention, levels) if steps is None else None
    elif timesteps is not None:
        own = consistency_times(trained, timesteps)
        own = np.asarray(convention.time(numbers(timesteps, "timesteps"))) if own is None else own
        times = to_the_end(process, own)
    elif steps is None:
        raise UsageError("set_timesteps needs num_inference_steps, timesteps or sigmas")
    if choice.is_table and (times is not None or request.strength != 1.0):
        passed = "strength" if times is None else "timesteps" if sigmas is None else "sigmas"
        raise UsageError(f"a solver table has its own grid, so {passed}= does not apply to it")
    if times is not None:
        arguments: dict[str, Any] = {"times": times, "spacing": None, "spacing_options": None}
    else:
        arguments = distilled_arguments(request.original_inference_steps, trained, choice)
    if request.strength != 1.0:
        teacher_steps = (arguments.get("spacing_options") or {}).get("teacher_steps")
        arguments["start_time"] = start_time(request.strength, process, teacher_steps, choice)
    return RequestedGrid(steps, arguments, sigmas is not None or timesteps is not None, is_closed)


# Grids given by a number of steps.


def distilled_arguments(teacher_steps: int | None, trained: Mapping[str, Any], choice: Choice) -> dict[str, Any]:
    """The spacing arguments for `teacher_steps` as passed by a pipeline; empty if the grid is not `distilled`."""
    arguments = choice.recipe_arguments
    if teacher_steps is None or not choice.is_distilled or arguments["spacing"] not in (None, "distilled"):
        return {}
    if trained["_class_name"] == "TCDScheduler":  # any of its training timesteps may be used then
        teacher_steps = int(trained.get("num_train_timesteps", 1000))
    options = {**(arguments["spacing_options"] or {}), "teacher_steps": teacher_steps}
    return {"spacing": "distilled", "spacing_options": options}


def start_time(strength: float, process: GaussianProcess, teacher_steps: int | None, choice: Choice) -> float:
    """The native time from which a run covers the share `strength` of the model's time range."""
    if not choice.is_distilled or not isinstance(process, DiscreteVP):
        return process.t_min + strength * (process.t_max - process.t_min)
    own = process.own_grid
    teacher = teacher_steps or (own.teacher_steps if own is not None else None) or 50
    return float(int(teacher * strength) * (round(process.t_max + 1) // teacher) - 1)


# Grids given as numbers.


def plain_list(values: Any) -> Any:
    """A grid as a list, which can be pickled with a scheduler."""
    return values.tolist() if isinstance(values, Tensor | np.ndarray) else values


def numbers(values: Any, name: str) -> np.ndarray:
    """A list, array or tensor of numbers as a float64 array; `name` is the argument's name in messages."""
    try:
        found = np.atleast_1d(np.asarray(as_scalar(values), dtype=np.float64))
    except (TypeError, ValueError):
        raise UsageError(f"{name} must be a list of numbers, not {values!r}") from None
    if not found.size:
        raise UsageError(f"{name} must be a non-empty list of numbers")
    return found


def even_steps(sigmas: np.ndarray) -> int | None:
    """N if sigmas are the even grid 1, 1 - 1/N, ..., 1/N, which flow pipelines pass by default; else None."""
    count = len(sigmas)
    return count if np.allclose(sigmas, np.linspace(1.0, 1.0 / count, count), atol=1e-6) else None


def replaces_even_grids(convention: Convention, choice: Choice) -> bool:
    """True if an even grid of a flow model is taken as a number of steps: if the caller has chosen a spacing, or the
    model's scheduler class would replace it by other sigmas."""
    if not isinstance(convention.process, RectifiedFlow):
        return False
    return choice.names_a_grid or (convention.grid is not None and convention.grid.sigmas is not None)


def own_times(convention: Convention, sigmas: np.ndarray) -> list[float]:
    """Native times of a grid of sigma/alpha, or of a flow's times before its shift; the clean end is last.

    If a flow model's authors stretch their grids to a terminal time (`shift_terminal`), this grid is stretched too.
    """
    process, body = convention.process, sigmas[:-1] if sigmas[-1] == 0 else sigmas
    if isinstance(process, RectifiedFlow):
        times = process.shift * body / (1 + (process.shift - 1) * body)
        terminal = None if convention.grid is None else convention.grid.shift_terminal
        if terminal:
            times = 1 - (1 - times) * (1 - terminal) / (1 - times[-1])
    else:
        times = np.asarray(process.time_at_ratio(body))
    return to_the_end(process, np.asarray(times, dtype=float))


def clean_time(process: GaussianProcess) -> float:
    """The native time at which sigma = 0."""
    time = view(process).clean_time
    assert time is not None
    return time


def to_the_end(process: GaussianProcess, times: np.ndarray) -> list[float]:
    """A grid of times with the clean end appended; ends outside the process by a float32 rounding are moved inside."""
    above = (times > process.t_max) & (times < process.t_max * (1 + 1e-4))
    below = (times < 0) & (times > -1e-6 * process.t_max)
    grid: list[float] = np.select([above, below], [process.t_max, 0.0], times).tolist()
    clean = clean_time(process)
    return grid if grid[-1:] == [clean] else [*grid, clean]


# Grids of particular model types.


def is_trig(process: GaussianProcess, limits: Mapping[str, Any]) -> bool:
    """True if the grid is given by the arguments of TrigFlow's scheduler.

    Raises:
        UsageError: those arguments were passed for another type of model.
    """
    given = [name for name, value in limits.items() if value is not None]
    if given and not isinstance(process, TrigFlow):
        raise UsageError(f"{' and '.join(given)}: only for TrigFlow models (SCMScheduler), and this model is not one")
    return isinstance(process, TrigFlow) and bool(limits)


def trig_times(steps: int | None, max_timesteps: Any = None, intermediate_timesteps: Any = None) -> list[float]:
    """The grid of SCMScheduler (Lu & Song 2025, appendix): even from the first time to 0, or two steps as given.

    Raises:
        UsageError: `steps` is not a positive whole number, or an intermediate time is given and `steps` is not 2.
    """
    if steps is None or isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
        raise UsageError(f"steps must be a whole number of 1 or more, not {steps!r}")
    first = float(np.pi / 2) if max_timesteps is None else float(max_timesteps)
    if intermediate_timesteps is None:
        return np.linspace(first, 0.0, int(steps) + 1).tolist()
    if steps != 2:
        raise UsageError(f"intermediate_timesteps is only for 2 steps, and there are {steps}; pass None instead")
    return [first, float(intermediate_timesteps), 0.0]


def consistency_times(trained: Mapping[str, Any], timesteps: Any) -> np.ndarray | None:
    """Times of the integers that a consistency model's pipeline passes: indices of its training grid, 0 the noisiest.

    The pipeline of `CMStochasticIterativeScheduler` passes them in decreasing order, and the scheduler runs them in
    increasing order:
    sigma_i = (sigma_max^(1/rho) + i/(N-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho (Karras et al. 2022, eq. 5).
    None for other schedulers and for fractional timesteps.

    Raises:
        UsageError: an index lies outside of the grid, or they are not strictly decreasing.
    """
    if trained.get("_class_name") != "CMStochasticIterativeScheduler":
        return None
    array = np.atleast_1d(np.asarray(plain_list(timesteps)))
    if not array.size or not np.issubdtype(array.dtype, np.integer):
        return None
    count = int(trained.get("num_train_timesteps") or 40)
    if np.any(np.diff(array) >= 0) or array[0] >= count or array[-1] < 0:
        raise UsageError(f"timesteps must be strictly decreasing indices of the training grid, from 0 to {count - 1}")
    low, high, rho = (float(trained.get(key) or value) for key, value in CONSISTENCY.items())
    share = array[::-1] / (count - 1)
    ends = high ** (1 / rho), low ** (1 / rho)
    times: np.ndarray = (ends[0] + share * (ends[1] - ends[0])) ** rho
    return times
