"""Clipping and dynamic thresholding of x0. They are part of the model, so that they apply equally to every sampler."""

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
    """Bounds of a model's x0 prediction, applied at each evaluation; noise, score and velocity follow from the result.

    The data lies in [low, high], so its mean given any state does too, and a prediction outside is an error of the
    network. If the network predicts noise, this error is divided by alpha, which is small at the start of cosine
    tables.

    Attributes:
        low, high: bounds of the data.
        percentile: None to clip to the bounds; else dynamic thresholding (Saharia et al. 2022, section 2.3). With x0
            rescaled so that [low, high] becomes [-1, 1], s is this percentile (from 0 to 1) of a sample's |x0|, limited
            to [1, most]; x0 is clipped to [-s, s] and divided by s.
        most: the largest allowed s.
    """

    low: float = -1.0
    high: float = 1.0
    percentile: float | None = None
    most: float = math.inf

    def __post_init__(self) -> None:
        for name in ("low", "high", "percentile"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, number(f"a clip's {name}", getattr(self, name)))
        if not is_plain(self.most):
            raise UsageError(f"a clip's most must be a number, not {shown(self.most)}")
        if not -math.inf < self.low < self.high < math.inf:
            raise UsageError(f"clip needs finite bounds (low, high) of the data, not ({self.low}, {self.high})")
        if self.percentile is not None and not 0 <= self.percentile <= 1:
            raise UsageError(f"a clip's percentile must lie in [0, 1], such as 0.995, not {self.percentile}")
        if not self.most > 0:
            raise UsageError(f"a clip's most must be positive, not {self.most}")

    def apply(self, x0: Tensor) -> Tensor:
        """Return x0 (N, ...) clipped or thresholded to the bounds."""
        if self.percentile is None:
            return x0.clamp(self.low, self.high)
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        if (middle, half) == (0.0, 1.0):
            return thresholded(x0, self.percentile, self.most)
        return thresholded((x0 - middle) / half, self.percentile, self.most) * half + middle

    @classmethod
    def of(cls, value: ClipLike, usual: Clip | None = None) -> Clip | None:
        """Convert an argument `clip=` to a `Clip`, or None for no clipping.

        Args:
            value: None for `usual`, False for no clipping, True for `usual` or, if it is None, [-1, 1], a number r for
                [-r, r], (low, high), a `Clip`, or its attributes in a dictionary.
            usual: the model's default.

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
    """Return a prediction with clipped x0, and with the noise that then follows from the same state.

    If the prediction does not determine x0 (noise at alpha = 0), it is returned unchanged.
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
        x0: (N, ...), for data in [-1, 1].
        percentile: from 0 to 1; values between two entries are interpolated linearly.
        most: the largest allowed s.
    """
    size = x0.abs().flatten(1)
    position = percentile * (size.shape[1] - 1)
    below = math.floor(position)
    largest = size.topk(size.shape[1] - below, 1).values  # torch.quantile has a size limit in old versions
    level = largest[:, -1].lerp(largest[:, max(largest.shape[1] - 2, 0)], position - below)
    s = level.clamp(min=1, max=most).view(-1, *(1,) * (x0.dim() - 1))
    return x0.clamp(-s, s) / s
