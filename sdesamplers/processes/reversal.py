"""Processes of networks whose time runs from noise to data, as in most flow matching code."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from ..public import public
from .scalars import Scalar
from .sde import GaussianProcess, not_a_process


class Reversed(GaussianProcess):
    """A Gaussian process whose networks receive the time u = `pivot` - t, which runs from noise to data.

    The process itself runs like every process, from data at `t_min` to noise at `t_max`; grids (`times=`) are on its
    clock. Only networks use the other clock: they receive u, and their "flow" prediction is dx/du = -dx/dt.

    Attributes:
        process: the process that was given.
        pivot: t + u: 1 if the process lies within [0, 1], else t_min + t_max.
    """

    clock_sign = -1.0

    def __init__(self, process: GaussianProcess) -> None:
        self.process = process
        low, high = float(process.t_min), float(process.t_max)
        self.pivot = 1.0 if 0 <= low < high <= 1 else low + high
        self.mirrored = runs_from_noise_to_data(process)
        clean = process.clean_time
        if self.mirrored:
            self.t_min, self.t_max = self.pivot - high, self.pivot - low
            self.clean_time = None if clean is None else self.pivot - clean
        else:
            self.t_min, self.t_max, self.clean_time = low, high, clean
            self.preferred_spacing = process.preferred_spacing

    def __repr__(self) -> str:
        return f"reversed({type(self.process).__name__})"

    def network_time(self, t: Scalar) -> Scalar:
        return self.pivot - t

    @property
    def grid_process(self) -> GaussianProcess:
        grid = self.process.grid_process
        return self if self.mirrored or grid is self.process else grid

    def _own(self, t: Scalar) -> Scalar:
        """The time on the clock of `process`."""
        return self.pivot - t if self.mirrored else t

    def _sign(self) -> float:
        return -1.0 if self.mirrored else 1.0

    def alpha(self, t: Scalar) -> Scalar:
        return self.process.alpha(self._own(t))

    def sigma(self, t: Scalar) -> Scalar:
        return self.process.sigma(self._own(t))

    def d_alpha(self, t: Scalar) -> Scalar:
        return self._sign() * self.process.d_alpha(self._own(t))

    def d_sigma(self, t: Scalar) -> Scalar:
        return self._sign() * self.process.d_sigma(self._own(t))

    def ratio(self, t: Scalar) -> Scalar:
        return self.process.ratio(self._own(t))

    def at_ratio(self, ratio: Scalar) -> tuple[Scalar, Scalar]:
        return self.process.at_ratio(ratio)

    def d_alpha_d_ratio(self, ratio: Scalar) -> Scalar:
        return self.process.d_alpha_d_ratio(ratio)

    def time_at_ratio(self, ratio: Scalar) -> Scalar:
        return self._own(self.process.time_at_ratio(ratio))


def runs_from_noise_to_data(process: GaussianProcess) -> bool:
    """True if sigma/alpha is smaller at t_max than at t_min."""
    return bool(process.ratio(float(process.t_max)) < process.ratio(float(process.t_min)))


@public
def reversed(process: GaussianProcess) -> Reversed:
    """Return the process for a network whose time runs from noise (smallest time) to data (largest time).

    Most flow matching code uses this clock: x_u = u x_1 + (1 - u) x_0, with data at u = 1 (Lipman et al. 2023;
    torchcfm, SiT and others). Pass your own process, written on that clock, or one of the library's. Networks then
    receive u and predict dx/du, as they were trained to.

        model = sds.FunctionModel(network, sds.reversed(sds.RectifiedFlow()), "flow", (3, 32, 32))

    Args:
        process: a Gaussian process on either clock.

    Raises:
        UsageError: not a Gaussian process, or already reversed.
    """
    check: Any = process
    if isinstance(check, Reversed):
        raise UsageError("this process is already reversed: its networks receive a time that runs from noise to data")
    if not isinstance(check, GaussianProcess):
        raise not_a_process("reversed takes a GaussianProcess, such as RectifiedFlow()", check)
    return Reversed(check)
