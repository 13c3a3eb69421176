"""Clipping and dynamic thresholding of x0: a part of the model, so that every sampler meets it alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from ..checks import is_plain, number, shown
from ..errors import UsageError
from ..path.prediction import Prediction
from ..public import public

ClipLike: TypeAlias = "Clip | bool | float | Sequence[float] | Mapping[str, Any] | None"


@public
@dataclass(frozen=True)
class Clip:
    """Bounds of a model's estimate of x0, applied at each evaluation; noise, score and velocity follow from it.

    Data lie in [low, high], so their mean given any state does too, and what a network says beyond it is an error of
    its own. Where a network predicts noise, that error is divided by alpha, which is small at the start of cosine
    tables.

    Attributes:
        low, high: bounds of the data.
        percentile: None to clip to the bounds; else dynamic thresholding (Saharia et al. 2022, section 2.3): with x0 in
            half widths of [low, high] from its middle, s is this percentile of a sample's |x0|, not less than 1 and not
            more than `most`; x0 is clipped to [-s, s] and divided by s.
        most: the greatest s.
    """

    low: float = -1.0
    high: float = 1.0
    percentile: float | None = None
    most: float = math.inf

    def __post_init__(self) -> None:
        for word in ("low", "high", "percentile"):
            if getattr(self, word) is not None:
                object.__setattr__(self, word, number(f"a clip's {word}", getattr(self, word)))
        if not is_plain(self.most):
            raise UsageError(f"a clip's most must be a number, not {shown(self.most)}")
        if not -math.inf < self.low < self.high < math.inf:
            raise UsageError(f"clip needs finite bounds (low, high) of the data, not ({self.low}, {self.high})")
        if self.percentile is not None and not 0 <= self.percentile <= 1:
            raise UsageError(f"a clip's percentile must lie in [0, 1], such as 0.995, not {self.percentile}")
        if not self.most > 0:
            raise UsageError(f"a clip's greatest s must be positive, not {self.most}")

    def apply(self, x0: Tensor) -> Tensor:
        """x0 (N, ...) inside the bounds."""
        if self.percentile is None:
            return x0.clamp(self.low, self.high)
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        if (middle, half) == (0.0, 1.0):
            return thresholded(x0, self.percentile, self.most)
        return thresholded((x0 - middle) / half, self.percentile, self.most) * half + middle

    @classmethod
    def of(cls, value: ClipLike, usual: Clip | None = None) -> Clip | None:
        """What an argument `clip=` means.

        Args:
            value: None for `usual`, False for none, True for `usual` or [-1, 1], a number r for [-r, r], (low, high), a
                `Clip`, or its attributes in a dictionary.
            usual: the model's own.

        Raises:
            UsageError: anything else.
        """
        if value is None or value is False:
            return usual if value is None else None
        if value is True:
            return usual or cls()
        if isinstance(value, Clip):
            return value
        try:
            if isinstance(value, Mapping):
                return cls(**value)
            if isinstance(value, (int, float)):
                return cls(-float(value), float(value))
            low, high = (float(bound) for bound in value)
        except (TypeError, ValueError):
            raise UsageError(f"clip must be True, False, a bound, (low, high) or an sds.Clip, not {value!r}") from None
        return cls(low, high)


def clipped(prediction: Prediction, clip: Clip | None) -> Prediction:
    """A prediction whose x0 is the clipped one, and the noise what is left of the same state.

    Where x0 does not follow from the prediction (noise at alpha = 0) it stays as it is.
    """
    if clip is None or (prediction.point.is_pure_noise and prediction.kind in ("epsilon", "score")):
        return prediction
    made = Prediction(prediction.x, prediction.point, clip.apply(prediction.x0), "sample")
    if prediction.unguided is not None:
        made.unguided = clipped(prediction.unguided, clip)
    made.log_density = prediction.log_density
    return made


def thresholded(x0: Tensor, percentile: float, most: float = math.inf) -> Tensor:
    """Clip to [-s, s] and divide by s = max(1, percentile of |x0| in each sample) (Saharia et al. 2022, section 2.3).

    Args:
        x0: (N, ...), data being in [-1, 1].
        percentile: from 0 to 1; between two values it is interpolated.
        most: the greatest s.
    """
    size = x0.abs().flatten(1)
    position = percentile * (size.shape[1] - 1)
    below = math.floor(position)
    largest = size.topk(size.shape[1] - below, 1).values  # not torch.quantile, which old versions limit in size
    level = largest[:, -1].lerp(largest[:, max(largest.shape[1] - 2, 0)], position - below)
    s = level.clamp(min=1, max=most).view(-1, *(1,) * (x0.dim() - 1))
    return x0.clamp(-s, s) / s
