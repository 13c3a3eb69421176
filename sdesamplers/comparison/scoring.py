"""The scorer and the metrics of a comparison, tested before anything is run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..categories import OutputWarning
from ..checks import function, shown, warn
from ..errors import UsageError, last_place
from ..metrics import FeatureScorer, Score, Scorer
from ..models.base import Model
from ..registry.registry import default_registry

Metric = Callable[[Tensor], Any]
"""A function of the samples (N, *shape), decoded if they are latents, that returns a number or N numbers."""
OWN = ("error", "frechet", "sliced_wasserstein", "seconds", "nfe", "steps")
"""Names that a metric cannot have: the library's own values of a cell."""
NAME = re.compile(r"[A-Za-z_]\w*")


def find_scorer(model_name: str) -> Scorer | None:
    """The registry's metrics for a model; None if it has no metrics."""
    entry = default_registry().catalogue.models.get(model_name, {})
    return Scorer(Path(entry["base"]) / entry["metrics"]) if "metrics" in entry else None


def check_scorer(scorer: FeatureScorer, model: Model, num_samples: int) -> Score | None:
    """Test a scorer on noise; return the floor for `num_samples` real images, or None if it has no floor.

    Raises:
        UsageError: it does not work as a `FeatureScorer`.
    """
    for name in ("description", "features", "score_features"):
        if not hasattr(scorer, name):
            raise UsageError(f"scorer {type(scorer).__name__} lacks {name}; a FeatureScorer has description, features "
                             "and score_features")  # fmt: skip
    try:
        features = np.asarray(scorer.features(noise_images(model)))
        if features.ndim != 2 or len(features) != 2 or features.dtype.kind not in "fiu":
            raise UsageError(f"features of 2 images must be numbers of shape (2, D), not {shown(features)}")
        drawn = np.random.default_rng(0).standard_normal((num_samples, features.shape[1]))
        numbers_of(scorer.score_features(features.mean(0) + drawn))
        floor = getattr(scorer, "floor", None)
    except Exception as error:
        raise UsageError(
            f"scorer {type(scorer).__name__} does not work: {type(error).__name__}: {error}{last_place(error)}"
        ) from error
    if floor is None:
        return None
    try:
        score: Score = floor(num_samples)
    except UsageError as unknown:
        warn(f"the scores have no floor to compare with: {unknown}", OutputWarning)
        return None
    return score


def noise_images(model: Model) -> Tensor:
    """Two images of noise (2, *shape), decoded if the model is one of latents."""
    noise = torch.rand(2, *model.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return model.decode(noise.to(model.device)).cpu() if type(model).decode is not Model.decode else noise


def numbers_of(score: Any) -> tuple[float, float | None]:
    """The Fréchet and sliced Wasserstein distances of a scorer's return value.

    Raises:
        UsageError: it is not a `Score`.
    """
    try:
        second = score.sliced_wasserstein
        return float(score.frechet), None if second is None else float(second)
    except (AttributeError, TypeError, ValueError):
        raise UsageError(
            f"score_features must return a Score (count, frechet, sliced_wasserstein), not {shown(score)}"
        ) from None


def check_metrics(metrics: Any) -> dict[str, Metric]:
    """Metrics by name, checked except for what they return.

    Raises:
        UsageError: not a dictionary of functions, or a name that is taken or cannot be written in a rule.
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise UsageError(f"metrics must be a dictionary of functions by name, not {shown(metrics)}")
    for name, each in metrics.items():
        if not isinstance(name, str) or not NAME.fullmatch(name) or name in OWN:
            taken = " (it is one of the library's own)" if name in OWN else ""
            raise UsageError(f"the name of a metric must be letters, digits and _, not {name!r}{taken}")
        function(f"metrics[{name!r}]", each, "the samples")
    return dict(metrics)
