"""Guidance as a wrapper around a model, so that everything that takes a model also takes a guided one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import function, number, unknown_keyword
from ..errors import UsageError
from ..processes.fingerprint import fingerprint, is_same_process
from ..processes.predictions import clean_map
from ..processes.scalars import Scalar, expand
from ..processes.sde import GaussianProcess
from ..public import public
from .base import Model, ModelAround, Output
from .calling import isolated
from .clipping import thresholded
from .conditions import GuidedCondition, join_conditions, take_rows
from .guidance_methods import METHODS, Combine, method


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
        combine: another formula in place of the combination above: a function of (conditional, unconditional, scale),
            which must treat samples independently and receives part of the batch if the other samples are outside the
            interval; or a name, of these formulas or of diffusers' guiders that use them. "apg": adaptive projected
            guidance, options `eta` (0) and `norm` (15) (Sadat et al. 2024). "cfg-zero-star" (Fan et al. 2025).
            "tangential" (Kwon et al. 2025). "magnitude-aware": option `alpha` (8) (Zhu et al. 2025).
            "frequency-decoupled": `scale` for the finest level, option `lower` ((5,)) with those of the coarser levels
            (Sadat et al. 2025).
        weak: a worse model of the same process and shape, from whose prediction for the same condition, or for
            `negative`, to guide away (autoguidance, Karras et al. 2024).
        batched: True for one network call on both halves, False for two calls, which need half the memory. None makes
            one call until it runs out of GPU memory, and two calls from then on; and two calls if the two conditions
            cannot be joined, or with `weak`.
        **options: the options of a formula's name.

    Raises:
        UsageError: an argument out of its range, or `interval` or `threshold` for a model without alpha and sigma or
            without a data range; an unknown formula or option.

    Example:
        >>> guided = sds.Guided(model, 4.0, combine="apg", eta=0.2)
        >>> sds.sample(guided, "dpmpp-2m", steps=10, condition=7)
    """

    pure = True
    weak: Model | None = None  # for pickles of early 0.1

    def __init__(
        self,
        model: Model,
        scale: float = 7.5,
        *,
        negative: Any = None,
        rescale: float = 0.0,
        interval: tuple[float, float] | None = None,
        threshold: float | None = None,
        combine: str | Combine | None = None,
        weak: Model | None = None,
        batched: bool | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(model, Model) or isinstance(model, Guided):
            raise UsageError(f"model must be a Model that is not guided yet, not {type(model).__name__}")
        scale, rescale = number("scale", scale), number("rescale", rescale)
        threshold = None if threshold is None else number("threshold", threshold)
        if isinstance(combine, str):
            combine = method(combine, options)
        elif options:
            raise unknown_keyword("Guided", next(iter(options)), _ARGUMENTS)
        function("combine", combine, "two predictions and a scale")
        if weak is not None:
            check_weak(weak, model, batched)
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
        self.threshold, self.combine, self.weak = threshold, combine, weak
        self.batched = False if weak is not None else batched
        self._plain = self.scale == 1.0 and combine is None
        self._short_of_memory = False

    def facts(self) -> dict[str, Any]:
        formula = repr(self.combine) if type(self.combine) in METHODS.values() else None
        return {**super().facts(), "formula": formula}

    @property
    def _predict(self) -> Any:
        """The inner model's `predict`, wrapped so that calls do not change each other's arguments or outputs."""
        return isolated(self.model)

    def condition_for(self, condition: Any, count: int) -> Any:
        if isinstance(condition, GuidedCondition):  # from an earlier result
            condition = condition.condition
        spread = self.model.condition_for(condition, count)
        if self._plain:
            return spread
        if self.weak is not None:
            return GuidedCondition(spread, self._weak_condition(condition, count))
        return GuidedCondition(spread, self._negative_condition(count))

    def unconditional(self, count: int) -> Any:
        if self._plain:
            return self._negative_condition(count)
        raise UsageError(
            f"model {self.name!r} is already guided, with scale {self.scale:g}; leave guidance_scale at 1, or pass the "
            "inner model (its .model) to sample"
        )

    def _weak_condition(self, condition: Any, count: int) -> Any:
        """The condition of the weak model."""
        assert self.weak is not None
        return self.weak.condition_for(condition if self.negative is None else self.negative, count)

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
            away = condition if self.weak is not None else self._negative_condition(len(x))
            pair = GuidedCondition(condition, away)
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
        plain = self._predict if self.weak is None else isolated(self.weak)
        return conditional, wide(plain(part, times, away))

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


def interval_of(model: Model) -> list[str] | None:
    """The interval of sigma/alpha with guidance of a `Guided` model, as texts: JSON has no infinity; or None."""
    interval = model.interval if isinstance(model, Guided) else None
    return None if interval is None else [*map(str, interval)]


_ARGUMENTS = ("scale", "negative", "rescale", "interval", "threshold", "combine", "weak", "batched")


def check_weak(weak: Any, model: Model, batched: bool | None) -> None:
    """Raise a UsageError if a weak model cannot guide a model."""
    if not isinstance(weak, Model):
        raise UsageError(f"weak must be a Model, not {type(weak).__name__}")
    if batched:
        raise UsageError("batched=True and weak contradict each other: two networks need two calls")
    for name, own, other in (("shape", model.shape, weak.shape), ("prediction", model.prediction, weak.prediction)):
        if own != other:
            raise UsageError(f"weak must have the {name} of the model, {own!r}, not {other!r}")
    if not is_same_process(fingerprint(model.process), fingerprint(weak.process)):
        raise UsageError("weak must have the process of the model: their states at one time differ otherwise")


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
