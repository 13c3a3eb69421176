"""The trial call of `wrap`: which way to call a network works, and what it returns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ModelError
from ..models.calling import in_modes
from ..models.conditions import take_rows
from ..models.running import global_state
from ..processes.sde import GaussianProcess
from .asking import Asking, has_variance, read_answer, told

if TYPE_CHECKING:
    from .wrapping import WrappedModel


class Trial:
    """A call of a model's network on noise, at the ends of its time and in between.

    The batch's size is none of the sample's, so that times that are multiplied along a wrong dimension do not fit.
    """

    def __init__(self, model: WrappedModel, example: Any) -> None:
        self.model = model
        self.channels: int | None = None
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

    def trouble(self, asking: Asking) -> str | None:
        """What is wrong with a way to call the network, None if nothing is."""
        self.channels = None
        try:
            whole, last = self.ask(asking, slice(None)), self.ask(asking, slice(self.count - 1, self.count))
            scale = float(whole.abs().max()) or 1.0
            apart = float((whole[-1:] - last).abs().max())
        except Exception as error:  # whatever the network raises
            text = " ".join(str(error).split())
            return text[:160] if isinstance(error, ModelError) else f"{type(error).__name__}: {text[:160]}"
        if apart > (1e-3 if self.model.dtype in (torch.float32, torch.float64) else 5e-2) * scale:
            return "what it returns for a sample depends on the other samples of the batch"
        return None

    def ask(self, asking: Asking, rows: slice, times: Tensor | None = None) -> Tensor:
        """What the network predicts for a part of the batch, at the trial's times or at others of its clock."""
        model = self.model
        x, t = self.x[rows].clone(), self.t[rows]
        around = model.preconditioning
        given = x if around is None else around.scale_input(x, t)
        times = told(model.network_clock(t), x) if times is None else times
        condition = () if self.condition is None else (take_rows(self.condition, rows),)
        if asking.time_shape == "one":
            times = times[-1:].expand(len(x))
        return self.read(in_modes(asking.call, given, times, *condition), x)

    def read(self, answer: Any, x: Tensor) -> Tensor:
        """The prediction in an answer; twice the channels are noted."""
        value = read_answer(answer, x)
        whole = answer if isinstance(answer, Tensor) else getattr(answer, "sample", answer)
        whole = whole[0] if isinstance(whole, tuple | list) else whole
        if isinstance(whole, Tensor) and has_variance(whole, x):
            self.channels = whole.shape[1]
        return value.float()

    def rounds(self) -> bool:
        """Whether the network rounds its time to whole numbers by itself: nothing moves with 0.3, something with 1."""
        ends = [float(self.model.network_clock(float(t))) for t in (self.model.process.t_min, self.model.process.t_max)]
        if abs(ends[1] - ends[0]) < 10 * self.count:
            return False
        times = round(sum(ends) / 2) + 2 * torch.arange(self.count, dtype=torch.float32, device=self.model.device)
        here, near, beyond = (self.ask(self.model.asking, slice(None), times + ahead) for ahead in (0.0, 0.3, 1.0))
        return bool(torch.equal(here, near)) and not bool(torch.equal(here, beyond))


@contextmanager
def undisturbed(model: WrappedModel) -> Iterator[None]:
    """The network in evaluation mode, without gradients and on random numbers of its own; all is set back."""
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
