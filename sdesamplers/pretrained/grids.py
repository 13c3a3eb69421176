"""A model's default grid, computed by the diffusers scheduler class that its configuration names.

The class itself computes the grid, so every configuration key has the same meaning as in diffusers: spacing, offset,
Karras, exponential, beta and flow sigmas, their ends, shift, dynamic shift and terminal shift. The class's timesteps
(passed to the network) or sigmas (between which it steps) are converted to times of the model's process.

Flow pipelines pass the uniform grid 1, 1 - 1/n, ..., 1/n to their class; by default the class would spend the last of n
evaluations at t = 1/1000, where the state barely moves. The uniform grid is therefore passed here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .configuration import completed, grid_of

if TYPE_CHECKING:
    from .conventions import Convention

DISTILLED = (
    *("LCMScheduler", "TCDScheduler", "SCMScheduler", "CMStochasticIterativeScheduler", "FlowMatchLCMScheduler"),
)
"""Scheduler classes of distilled models."""
SHIFTED = ("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler", "LTXEulerAncestralRFScheduler")
"""Scheduler classes of flow models that accept a sigma grid, and shift it."""
BY_SIGMAS = ("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")
"""Classes with discrete schedules whose timesteps include those of the midpoints of steps."""


class ClassGrid:
    """The grid computed by a configuration's scheduler class; see `OwnGrid`.

    Args:
        config: of a diffusers scheduler.
        convention: the convention of this configuration.
        mu: determines the shift at the resolution in use, if the configuration has `use_dynamic_shifting`.
    """

    def __init__(self, config: Mapping[str, Any], convention: Convention, mu: float | None = None) -> None:
        self.config, self.convention, self.mu = completed(config), convention, mu
        self.kind = str(self.config["_class_name"])
        self.is_distilled = self.kind in DISTILLED
        self.teacher_steps: int | None = self.config.get("original_inference_steps")
        self._known: dict[int, np.ndarray | None] = {}
        self.final = "min" if self._stops_early() else "zero"

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "words" in state:  # the former name of `config`, in pickles
            state = {**state, "config": state["words"]}
        vars(self).update(state)

    @property
    def spacing(self) -> str | None:
        """The timestep spacing in the configuration."""
        found: str | None = self.config.get("timestep_spacing")
        return found

    def _stops_early(self) -> bool:
        """Return True if the last step ends at the smallest sigma, which lies below the last evaluation."""
        grid = grid_of(self.config)
        early = grid.final == "sigma_min" or (grid.set_alpha_to_one is False and self.kind != "LCMScheduler")
        if not early and self.kind not in ("CMStochasticIterativeScheduler", "TCDScheduler"):
            return False
        times = self.times(4)
        return times is not None and bool(times[-1] > self.convention.process.t_min * (1 + 1e-6))

    def times(self, steps: int) -> np.ndarray | None:
        """Return the times of a run of `steps` evaluations; None if the class has no grid with this number of steps."""
        if steps not in self._known:
            self._known[steps] = self._checked(steps)
        return self._known[steps]

    def _checked(self, steps: int) -> np.ndarray | None:
        process = self.convention.process
        try:
            times = self._class_times(steps)
        except Exception:  # whatever the class raises, it has no grid of this length
            return None
        low, high = float(process.t_min), float(process.t_max)
        # Classes compute in float32, and some schedules end slightly beyond the last timestep.
        times = np.where(np.isclose(times, high, rtol=1e-5, atol=0), high, times)
        times = np.where(np.isclose(times, low, rtol=1e-5, atol=1e-7 * high), low, times)
        fits = len(times) == steps and bool(np.all(np.diff(times) < 0)) and low <= times[-1] and times[0] <= high
        # A single step of a `leading` grid would treat pure noise as a state near the data, which yields no sample.
        return times if fits and (steps > 1 or times[0] > high / 2) else None

    def _class_times(self, steps: int) -> np.ndarray:
        """Return the class's grid as times of the process; raises whatever the class raises."""
        kind, convention = self.kind, self.convention
        if kind == "FlowMatchHeunDiscreteScheduler":  # its set_timesteps takes no sigmas
            even = np.linspace(1.0, 1.0 / steps, steps)
            shift = float(self.config["shift"])
            return np.asarray(shift * even / (1 + (shift - 1) * even))
        if kind == "CosineDPMSolverMultistepScheduler":  # it cannot be constructed without torchsde
            return self._sigma_grid(steps)
        scheduler = self._scheduler(steps)
        if kind in SHIFTED or self.config.get("use_flow_sigmas"):
            sigmas = _array(scheduler.sigmas)
            return descending(1.0 - sigmas if self.config.get("invert_sigmas") else sigmas)[:steps]
        if kind == "ScoreSdeVeScheduler":
            return _array(scheduler.timesteps)
        if kind in ("SCMScheduler", "IPNDMScheduler"):
            return np.asarray(convention.time(_array(scheduler.timesteps)[:steps]))
        if not convention.is_plain:  # EDM, whose time is sigma
            return descending(_array(scheduler.sigmas)[:-1])
        if grid_of(self.config).sigmas or kind in BY_SIGMAS:
            ratios = descending(_array(scheduler.sigmas)[:-1])
            return np.asarray(convention.process.time_at_ratio(ratios[ratios > 0]))
        # PNDM's `timesteps` also lists the evaluations inside its Runge-Kutta steps; `_timesteps` does not.
        return descending(scheduler._timesteps if kind == "PNDMScheduler" else scheduler.timesteps)

    def _sigma_grid(self, steps: int) -> np.ndarray:
        """Return the grid of Karras et al. (2022), eq. 5, between the model's ends, or one with equal ratios."""
        ends = self.convention.process.t_max, self.convention.process.t_min
        if self.config.get("sigma_schedule", "exponential") == "exponential":
            return np.geomspace(*ends, steps)
        rho = float(self.config.get("rho") or 7.0)
        first, last = (float(end) ** (1 / rho) for end in ends)
        return np.asarray(np.linspace(first, last, steps) ** rho)

    def _scheduler(self, steps: int) -> Any:
        """Return an instance of the class, after `set_timesteps` for `steps` steps."""
        import diffusers  # diffusers takes seconds to import

        # DPMSolverSDEScheduler cannot be constructed without torchsde; its grid is that of Euler.
        kind = "EulerDiscreteScheduler" if self.kind == "DPMSolverSDEScheduler" else self.kind
        config = {key: value for key, value in self.config.items() if not key.startswith("_")}
        scheduler = getattr(diffusers, kind).from_config(config)
        if kind in SHIFTED:
            even = np.linspace(1.0, 1.0 / steps, steps).tolist()
            scheduler.set_timesteps(sigmas=even, **({} if self.mu is None else {"mu": self.mu}))
        elif kind == "SCMScheduler":
            scheduler.set_timesteps(steps, intermediate_timesteps=1.3 if steps == 2 else None)
        else:
            scheduler.set_timesteps(steps, **({"mu": self.mu} if self.mu is not None else {}))
        return scheduler


def _array(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


def descending(values: Any) -> np.ndarray:
    """Return a grid's distinct values, the largest first: classes with several evaluations per step repeat some."""
    return np.unique(_array(values))[::-1]


def attach(convention: Convention, config: Mapping[str, Any], mu: float | None = None) -> Convention:
    """Set the default grid of a convention's process."""
    convention.process.own_grid = ClassGrid(config, convention, mu)
    return convention
