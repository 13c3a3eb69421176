"""Guidance as a wrapper around a model, so that everything that takes a model also takes a guided one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import function, number
from ..errors import UsageError
from ..processes.predictions import clean_map
from ..processes.scalars import Scalar, expand
from ..processes.sde import GaussianProcess
from ..public import public
from .base import Model, ModelAround, Output
from .calling import isolated
from .clipping import thresholded
from .conditions import as_plain_data, join_conditions, take_rows

Combine = Callable[[Tensor, Tensor, float], Tensor]
"""(conditional, unconditional, scale) -> guided, all (n, *shape) in the model's own prediction type."""


@dataclass(frozen=True)
class GuidedCondition:
    """The condition of a guided model: a condition and the one to guide away from, for the same samples."""

    condition: Any
    unconditional: Any

    def __getitem__(self, rows: Any) -> GuidedCondition:
        return GuidedCondition(take_rows(self.condition, rows), take_rows(self.unconditional, rows))

    def tolist(self) -> Any:
        """The condition itself, for records."""
        return as_plain_data(self.condition)


@public
class Guided(ModelAround):
    """A conditional model with classifier-free guidance, for any sampler.

    The guided prediction is unconditional + scale (conditional - unconditional) (Ho & Salimans 2022, eq. 6, with
    w + 1 = scale). It commutes with the linear maps between prediction types, so it is computed in the model's own
    type. So are `rescale` and `combine`, as in diffusers. Arithmetic is in float32 at least. The output contains the
    unconditional prediction besides the guided one, as CFG++ samplers need. An evaluation counts once in NFE.

    Process, prediction type, shape, dtype, device and all other attributes that `Guided` does not define are those of
    the wrapped model. Leave `guidance_scale` of `sample` at 1.

    Args:
        model: a conditional model.
        scale: guidance weight; 1 is the conditional model, evaluated once, 0 the unconditional one.
        negative: a condition to guide away from instead of the null condition (a negative prompt); one for all samples
            or one per sample.
        rescale: phi of Lin et al. (2024, eqs. 14-16), in [0, 1]: how far the standard deviation of the guided
            prediction, over all dimensions of a sample, is brought back to that of the conditional one.
        interval: (low, high) bounds of sigma/alpha (Kynkäänniemi et al. 2024, whose sigma is that of alpha = 1).
            Guidance applies for low < sigma/alpha <= high. Outside, the model is evaluated once and its conditional
            prediction is both the guided and the unguided one. high may be infinite.
        threshold: percentile, in (0.5, 1], of dynamic thresholding (Saharia et al. 2022, section 2.3), for pixel-space
            models; latents have no range to clip to. With x0 rescaled so that `data_range` becomes [-1, 1], s is this
            percentile of a sample's |x0|, or 1 if that is larger; x0 is clipped to [-s, s] and divided by s. It applies
            at all times, except when the prediction does not determine x0 (epsilon at alpha = 0) or x0 is the state
            (sigma = 0). The unguided prediction is not thresholded.
        combine: a function that replaces the combination above. It must treat samples independently; it receives part
            of the batch if the other samples are outside the interval.
        batched: True for one network call on both halves, False for two calls, which need half the memory. None makes
            one call until it runs out of GPU memory, and two calls from then on; and two calls if the two conditions
            cannot be joined.

    Raises:
        UsageError: an argument out of its range, or `interval` or `threshold` for a model without alpha and sigma or
            without a data range.
    """

    pure = True

    def __init__(
        self,
        model: Model,
        scale: float = 7.5,
        *,
        negative: Any = None,
        rescale: float = 0.0,
        interval: tuple[float, float] | None = None,
        threshold: float | None = None,
        combine: Combine | None = None,
        batched: bool | None = None,
    ) -> None:
        if not isinstance(model, Model) or isinstance(model, Guided):
            raise UsageError(f"model must be a Model that is not guided yet, not {type(model).__name__}")
        scale, rescale = number("scale", scale), number("rescale", rescale)
        threshold = None if threshold is None else number("threshold", threshold)
        function("combine", combine, "two predictions and a scale")
        if not 0 <= rescale <= 1:
            raise UsageError(f"rescale must be from 0 to 1, not {rescale}")
        if threshold is not None and not 0.5 < threshold <= 1:
            raise UsageError(f"threshold must be a percentile above 0.5 and at most 1, such as 0.995, not {threshold}")
        if threshold is not None and model.data_range is None:
            raise UsageError(f"threshold needs the range of the data, but model {model.name!r} has no data_range")
        if interval is not None or threshold is not None:
            self._process: GaussianProcess = model.gaussian
        super().__init__(model)
        self.scale, self.negative, self.rescale = float(scale), negative, float(rescale)
        self.interval = None if interval is None else bounds(interval)
        self.threshold, self.combine, self.batched = threshold, combine, batched
        self._plain = self.scale == 1.0 and combine is None
        self._short_of_memory = False

    @property
    def _predict(self) -> Any:
        """The inner model's `predict`, wrapped so that calls do not change each other's arguments or outputs."""
        return isolated(self.model)

    def condition_for(self, condition: Any, count: int) -> Any:
        if isinstance(condition, GuidedCondition):  # from an earlier result
            condition = condition.condition
        spread = self.model.condition_for(condition, count)
        return spread if self._plain else GuidedCondition(spread, self._negative_condition(count))

    def unconditional(self, count: int) -> Any:
        if self._plain:
            return self._negative_condition(count)
        raise UsageError(
            f"model {self.name!r} is already guided, with scale {self.scale:g}; leave guidance_scale at 1, or pass the "
            "inner model (its .model) to sample"
        )

    def _negative_condition(self, count: int) -> Any:
        """The condition to guide away from."""
        if self.negative is None:
            return self.model.unconditional(count)
        return self.model.condition_for(self.negative, count)

    def predict(self, x: Tensor, t: Scalar, condition: Any = None) -> Tensor | Output:
        if self._plain:
            own = condition.condition if isinstance(condition, GuidedCondition) else condition
            output = self._predict(x, t, own)
            return output if self.threshold is None else self._clipped(wide(output), x, t)
        pair = condition
        if not isinstance(pair, GuidedCondition):
            pair = GuidedCondition(condition, self._negative_condition(len(x)))
        rows = self._rows(t, len(x))
        if rows is None:
            conditional, unguided = self._both(x, t, pair, None)
            value = self._guide(conditional, unguided)
        elif not len(rows):
            value = unguided = wide(self._predict(x, t, pair.condition))
        else:
            conditional, plain = self._both(x, t, pair, rows)
            index = torch.from_numpy(rows).to(x.device, non_blocking=True)
            value = conditional.index_copy(0, index, self._guide(conditional[index], plain))
            unguided = conditional.index_copy(0, index, plain)
        return Output(value if self.threshold is None else self._clipped(value, x, t), unguided)

    def _rows(self, t: Scalar, count: int) -> np.ndarray | None:
        """The positions of the samples inside the interval, or None for all."""
        if self.interval is None:
            return None
        low, high = self.interval
        ratio = np.broadcast_to(np.asarray(self._process.ratio(t)), count)
        inside = (low < ratio) & (ratio <= high)
        return None if inside.all() else np.flatnonzero(inside)

    def _both(self, x: Tensor, t: Scalar, pair: GuidedCondition, rows: np.ndarray | None) -> tuple[Tensor, Tensor]:
        """Return the conditional prediction of all samples and the unconditional one of `rows`."""
        part, times, away = x, t, pair.unconditional
        if rows is not None:
            part = x[torch.from_numpy(rows).to(x.device, non_blocking=True)]
            times, away = np.asarray(t)[rows], take_rows(away, rows)
        if self.batched or (self.batched is None and not self._short_of_memory):
            joined = self._at_once(part, x, np.concatenate([times, t]) if np.ndim(t) else t, away, pair.condition)
            if joined is not None:
                return joined[len(part) :], joined[: len(part)]
        conditional = wide(self._predict(x, t, pair.condition))
        return conditional, wide(self._predict(part, times, away))

    def _at_once(self, part: Tensor, x: Tensor, t: Scalar, away: Any, condition: Any) -> Tensor | None:
        """Return both predictions from one call, (n + N, *shape), or None if two calls are needed."""
        try:
            joined = join_conditions(away, condition)
        except UsageError:
            if self.batched:
                raise
            return None
        try:
            return wide(self._predict(torch.cat([part, x]), t, joined))
        except torch.cuda.OutOfMemoryError:
            if self.batched:
                raise
            self._short_of_memory = True
            return None

    def _guide(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        if self.combine is None:
            guided = unconditional + self.scale * (conditional - unconditional)
        else:
            guided = self.combine(conditional, unconditional, self.scale)
            if not isinstance(guided, Tensor) or guided.shape != conditional.shape:
                found = tuple(guided.shape) if isinstance(guided, Tensor) else type(guided).__name__
                raise UsageError(f"combine must return a tensor of shape {tuple(conditional.shape)}, not {found}")
        return rescaled(guided, conditional, self.rescale) if self.rescale else guided

    def _clipped(self, value: Tensor, x: Tensor, t: Scalar) -> Tensor:
        """Return the prediction that corresponds to the thresholded x0 at the same state."""
        assert self.threshold is not None
        assert self.data_range is not None
        a, b, back = clean_map(self.prediction, self._process, t)
        low, high = self.data_range
        middle, half = (low + high) / 2, (high - low) / 2
        inside = (expand(a, value) * x.to(value.dtype) + expand(b, value) * value - middle) / half
        return value + expand(back, value) * half * (thresholded(inside, self.threshold) - inside)


def effective_scale(model: Model, guidance_scale: float) -> float:
    """The guidance weight of a run: that of a `Guided` model, or else the run's `guidance_scale`."""
    return model.scale if isinstance(model, Guided) else guidance_scale


def bounds(interval: Any) -> tuple[float, float]:
    """Return an interval of sigma/alpha; raise UsageError if it is not valid."""
    try:
        low, high = (float(bound) for bound in interval)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not 0 <= low < high:
        raise UsageError(f"interval must be (low, high) of sigma/alpha with 0 <= low < high, not {interval!r}")
    return low, high


def wide(output: Tensor | Output) -> Tensor:
    """Convert a prediction to float32 at least, so that guidance of a half-precision network adds no rounding error."""
    value = output.value if isinstance(output, Output) else output
    return value.to(torch.promote_types(value.dtype, torch.float32))


def rescaled(guided: Tensor, conditional: Tensor, phi: float) -> Tensor:
    """phi x std(conditional)/std(x) + (1 - phi) x, for x the guided prediction (Lin et al. 2024, eqs. 14-16)."""
    dims = tuple(range(1, guided.dim()))
    wanted, found = (v.std(dims, correction=0, keepdim=True) for v in (conditional, guided))
    ratio = torch.where(found > 0, wanted / found, torch.ones_like(found))
    return guided * (phi * ratio + (1 - phi))
