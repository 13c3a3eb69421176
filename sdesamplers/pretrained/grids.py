"""The grid of a model's makers, laid out by the scheduler class of diffusers that its configuration is of.

The class itself is asked, as for its table, so that every word of a configuration means what it means there: spacing,
offset, Karras, exponential, beta and flow sigmas, their ends, shift, dynamic shift and terminal shift. What the class
tells its networks (timesteps) or steps between (sigmas) becomes times of the model's process.

Flow pipelines give their class the even grid 1, 1 - 1/n, ..., 1/n; the class alone would spend the last of n
evaluations at t = 1/1000, where it moves nothing. So the even grid is what it is given here.
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
"""Classes that distilled models are sampled with."""
SHIFTED = ("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler", "LTXEulerAncestralRFScheduler")
"""Classes of flow models that take a grid of sigmas, and shift it."""
BY_SIGMAS = ("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")
"""Classes of tables whose timesteps have those of the middles of steps among them."""


class ClassGrid:
    """The grid of a configuration's class; see `OwnGrid`.

    Args:
        config: of a diffusers scheduler.
        convention: what it stands for.
        mu: the shift of the resolution, where the configuration leaves that open.
    """

    def __init__(self, config: Mapping[str, Any], convention: Convention, mu: float | None = None) -> None:
        self.words, self.convention, self.mu = completed(config), convention, mu
        self.kind = str(self.words["_class_name"])
        self.is_distilled = self.kind in DISTILLED
        self.teacher_steps: int | None = self.words.get("original_inference_steps")
        self._known: dict[int, np.ndarray | None] = {}
        self.final = "min" if self._stops_early() else "zero"

    def _stops_early(self) -> bool:
        """Whether the last step ends at the smallest sigma, below the last evaluation."""
        grid = grid_of(self.words)
        early = grid.final == "sigma_min" or (grid.set_alpha_to_one is False and self.kind != "LCMScheduler")
        if not early and self.kind not in ("CMStochasticIterativeScheduler", "TCDScheduler"):
            return False
        times = self.times(4)
        return times is not None and bool(times[-1] > self.convention.process.t_min * (1 + 1e-6))

    def times(self, steps: int) -> np.ndarray | None:
        """Where a run of `steps` evaluations asks the model; None where the class has no grid of so many steps."""
        if steps not in self._known:
            self._known[steps] = self._checked(steps)
        return self._known[steps]

    def _checked(self, steps: int) -> np.ndarray | None:
        process = self.convention.process
        try:
            times = self._laid_out(steps)
        except Exception:  # whatever a class raises, it has no such grid
            return None
        low, high = float(process.t_min), float(process.t_max)
        # The class counts in float32, and some end their tables a trifle beyond the last timestep.
        times = np.where(np.isclose(times, high, rtol=1e-5, atol=0), high, times)
        times = np.where(np.isclose(times, low, rtol=1e-5, atol=1e-7 * high), low, times)
        fits = len(times) == steps and bool(np.all(np.diff(times) < 0)) and low <= times[-1] and times[0] <= high
        # One step of a `leading` grid would start from pure noise next to the data; no sampler makes a sample of that.
        return times if fits and (steps > 1 or times[0] > high / 2) else None

    def _laid_out(self, steps: int) -> np.ndarray:
        kind, convention = self.kind, self.convention
        if kind == "FlowMatchHeunDiscreteScheduler":  # it takes no sigmas
            even = np.linspace(1.0, 1.0 / steps, steps)
            shift = float(self.words["shift"])
            return np.asarray(shift * even / (1 + (shift - 1) * even))
        if kind == "CosineDPMSolverMultistepScheduler":  # it needs torchsde to be built
            return self._of_sigmas(steps)
        scheduler = self._scheduler(steps)
        if kind in SHIFTED or self.words.get("use_flow_sigmas"):
            sigmas = falling(1.0 - _array(scheduler.sigmas) if self.words.get("invert_sigmas") else scheduler.sigmas)
            return sigmas[:steps]
        if kind == "ScoreSdeVeScheduler":
            return _array(scheduler.timesteps)
        if kind in ("SCMScheduler", "IPNDMScheduler"):
            return np.asarray(convention.time(_array(scheduler.timesteps)[:steps]))
        if not convention.is_plain:  # EDM, whose time is sigma
            return falling(_array(scheduler.sigmas)[:-1])
        if grid_of(self.words).sigmas or kind in BY_SIGMAS:
            ratios = falling(_array(scheduler.sigmas)[:-1])
            return np.asarray(convention.process.time_at_ratio(ratios[ratios > 0]))
        # Runge-Kutta steps ask PNDM's networks in between.
        return falling(scheduler._timesteps if kind == "PNDMScheduler" else scheduler.timesteps)

    def _of_sigmas(self, steps: int) -> np.ndarray:
        """Karras et al.'s (2022) eq. 5 between the model's ends, or equal ratios."""
        ends = self.convention.process.t_max, self.convention.process.t_min
        if self.words.get("sigma_schedule", "exponential") == "exponential":
            return np.geomspace(*ends, steps)
        rho = float(self.words.get("rho") or 7.0)
        first, last = (float(end) ** (1 / rho) for end in ends)
        return np.asarray(np.linspace(first, last, steps) ** rho)

    def _scheduler(self, steps: int) -> Any:
        """The class, with its run of `steps` laid out."""
        import diffusers  # diffusers takes seconds to import

        # Its class needs torchsde to be built, and has Euler's grid.
        kind = "EulerDiscreteScheduler" if self.kind == "DPMSolverSDEScheduler" else self.kind
        config = {key: value for key, value in self.words.items() if not key.startswith("_")}
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


def falling(values: Any) -> np.ndarray:
    """The different values of a grid, the largest first: classes of several evaluations a step list some twice."""
    return np.unique(_array(values))[::-1]


def attach(convention: Convention, config: Mapping[str, Any], mu: float | None = None) -> Convention:
    """Give a convention's process its makers' grid."""
    convention.process.own_grid = ClassGrid(config, convention, mu)
    return convention
