"""The trial calls of `wrap`: which call style works for a network, and what it returns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..categories import ModelWarning
from ..checks import warn
from ..errors import ModelError
from ..models.calling import in_modes
from ..models.conditions import take_rows
from ..models.running import global_state
from ..processes.sde import GaussianProcess
from .call_styles import CallStyle, as_network_time, has_variance, read_output

if TYPE_CHECKING:
    from .wrapping import WrappedModel


class Trial:
    """Trial calls of a model's network on noise, at both ends of its time range and at times between.

    The batch size differs from every dimension of a sample, so broadcasting times along a wrong dimension raises an
    error.

    Attributes:
        channels: number of output channels in the last call style tried, if it includes a learned variance.
        not_finite: the ends of the process's time at which the output in that style was not finite.
    """

    def __init__(self, model: WrappedModel, example: Any) -> None:
        self.model = model
        self.channels: int | None = None
        self.not_finite: list[float] = []
        self.count = next(n for n in range(3, 99) if n not in model.shape)
        process = model.process
        assert isinstance(process, GaussianProcess)
        low, high = float(process.t_min), float(process.t_max)
        self.t = np.concatenate([[high, low], np.linspace(low, high, self.count)[1:-1]])
        noise = torch.randn(self.count, *model.shape, generator=torch.Generator().manual_seed(0))
        self.x = process.perturb(torch.zeros_like(noise), self.t, noise).to(model.device, model.dtype)
        self.condition = self._condition(example) if model.conditional else None

    def _condition(self, example: Any) -> Any:
        model = self.model
        given = example if example is not None else 0 if model.null_condition is None else model.null_condition
        return model.condition_for(given, self.count)

    def problem_with(self, style: CallStyle) -> str | None:
        """Return what is wrong with a call style, or None if it works."""
        self.channels, self.not_finite = None, []
        try:
            whole, last = self.evaluate(style, slice(None)), self.evaluate(style, slice(self.count - 1, self.count))
            ends = [self.evaluate(style, slice(n, n + 1)) for n in range(2)] if style.time_shape == "one" else whole[:2]
            self.not_finite = [t for t, end in zip(self.t[:2], ends, strict=True) if not bool(end.isfinite().all())]
            if not bool(last.isfinite().all()):
                return f"its output is not finite at its times {self._times()}"
            scale = float(whole.nan_to_num(0.0, 0.0, 0.0).abs().max()) or 1.0
            difference = float((whole[-1:] - last).abs().max())
        except Exception as error:  # a network may raise anything
            text = " ".join(str(error).split()).partition(" (while checking arguments")[0]
            text = text if len(text) <= 200 else f"{text[:197]}..."
            return text if isinstance(error, ModelError) else f"{type(error).__name__}: {text}"
        if difference > (1e-3 if self.model.network_dtype in (torch.float32, torch.float64) else 5e-2) * scale:
            return "its prediction for a sample depends on the other samples of the batch"
        return None

    def evaluate(self, style: CallStyle, rows: slice, times: Tensor | None = None) -> Tensor:
        """Return the prediction for some rows of the batch, at the trial's times or at the given network times."""
        model = self.model
        x, t = self.x[rows].clone(), self.t[rows]
        preconditioning = model.preconditioning
        given = x if preconditioning is None else preconditioning.scale_input(x, t).to(model.network_dtype)
        times = as_network_time(model.network_clock(t), x) if times is None else times
        condition = () if self.condition is None else (take_rows(self.condition, rows),)
        if style.time_shape == "one":
            times = times[-1:].expand(len(x))
        return self.read(in_modes(style.call, given, times, *condition), x)

    def read(self, output: Any, x: Tensor) -> Tensor:
        """Return the prediction of a raw output; sets `channels` if a learned variance comes with it."""
        value = read_output(output, x)
        tensor = output if isinstance(output, Tensor) else getattr(output, "sample", output)
        tensor = tensor[0] if isinstance(tensor, tuple | list) else tensor
        if isinstance(tensor, Tensor) and has_variance(tensor, x):
            self.channels = tensor.shape[1]
        return value.float()

    def _ends(self) -> list[float]:
        """The network's times at both ends of the process's."""
        process = self.model.process
        return [float(self.model.network_clock(float(t))) for t in (process.t_min, process.t_max)]

    def _times(self) -> str:
        low, high = self._ends()
        return f"from {low:.3g} to {high:.3g}"

    def warn_of_ends(self) -> None:
        """Warn if the output is not finite at an end of the time range, at which many grids have no point."""
        if self.not_finite:
            times = " and ".join(f"{float(self.model.network_clock(t)):.3g}" for t in self.not_finite)
            warn(
                f"{self.model.name}: the output of the network is not finite at its time {times}, an end of its times "
                f"{self._times()}; check process= and clock=, or use grids without this time",
                ModelWarning,
            )

    def is_denoiser(self) -> bool:
        """Return True if the network returns its input at the smallest sigma, as a denoiser D(x, sigma) does."""
        assert self.model.preconditioning is not None
        given = self.model.preconditioning.scale_input(self.x, self.t).float()
        times = as_network_time(float(self.model.process.t_min), self.x)
        try:
            output = self.evaluate(self.model.asking, slice(None), times)
        except Exception:  # a raw network may refuse this time
            return False
        return float((output - given).abs().mean()) < 0.05 * float(given.abs().mean())

    def rounds_times(self) -> bool:
        """Return True if the network itself rounds its time to integers.

        Its output then stays the same if the time grows by 0.3, and changes if it grows by 1.
        """
        ends = self._ends()
        if not all(map(math.isfinite, ends)) or abs(ends[1] - ends[0]) < 10 * self.count:
            return False
        times = round(sum(ends) / 2) + 2 * torch.arange(self.count, dtype=torch.float32, device=self.model.device)
        here, near, beyond = (self.evaluate(self.model.asking, slice(None), times + ahead) for ahead in (0.0, 0.3, 1.0))
        return bool(torch.equal(here, near)) and not bool(torch.equal(here, beyond))


def warn_of_denoiser(sign: str) -> None:
    """Warn that sigma_data= was passed with a denoiser D(x, sigma), by the sign of it."""
    warn(
        f"{sign} as a denoiser D(x, sigma) has; sigma_data= is for the raw network F inside of one, and wraps it a "
        "second time. For a denoiser omit it: sds.from_denoiser(network, shape), or sds.wrap(network, shape, "
        "process=sds.EDM(), prediction='sample')",
        ModelWarning,
    )


@contextmanager
def undisturbed(model: WrappedModel) -> Iterator[None]:
    """Evaluation mode without gradients; training modes and the global random state are restored afterwards."""
    modules = list(model.network.modules()) if model.network is not None else []
    modes = [module.training for module in modules]
    with torch.no_grad(), global_state(()):
        try:
            for module in modules:
                module.training = False
            yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode
