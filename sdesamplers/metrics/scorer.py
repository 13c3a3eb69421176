"""Scores of samples against real images, and the scores of real images themselves as a floor."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import ModelError, UsageError
from .distances import frechet_distance, gaussian_statistics, sliced_wasserstein
from .features import FeatureNet
from .intervals import jackknife_error


@dataclass(frozen=True)
class Score:
    """Distances of `count` samples to the reference set: Fréchet (squared feature units) and sliced Wasserstein.

    The sliced Wasserstein distance is None if only the mean and covariance of the reference are known.
    """

    count: int
    frechet: float
    sliced_wasserstein: float | None


class FeatureScorer(Protocol):
    """Interface for scoring images by their features, batch by batch: `Scorer`, `InceptionScorer` or your own class."""

    description: str

    def features(self, samples: Tensor) -> np.ndarray:
        """Feature vectors (N, D) of images (N, C, H, W) in [-1, 1]."""

    def score_features(self, features: np.ndarray) -> Score:
        """Score feature vectors (N, D)."""


class Scorer:
    """A feature network with the features of two sets of real images: the reference, and a second set for the floor.

    Args:
        folder: contains config.json, classifier.safetensors and reference.safetensors (`reference` and `second`,
            (N, D)).
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = folder = Path(folder)
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            self.net = FeatureNet(**config["network"])
            self.net.load_state_dict(load_file(folder / "classifier.safetensors"))
            sets = load_file(folder / "reference.safetensors")
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise ModelError(f"{folder}: cannot read the metrics: {error}") from None
        self.net.requires_grad_(False).eval()
        self.description: str = config.get("description", "")
        self.reference, self.second = (sets[k].double().numpy() for k in ("reference", "second"))
        self._statistics = gaussian_statistics(self.reference)

    def __repr__(self) -> str:
        return f"Scorer({self.folder.name!r})"

    @torch.inference_mode()
    def features(self, samples: Tensor, batch_size: int = 500) -> np.ndarray:
        """Feature vectors (N, D) of samples (N, C, H, W), which are clipped to [-1, 1] like saved images."""
        parts = [self._seen(part) for part in torch.split(samples, batch_size)]
        return np.asarray(torch.cat(parts).double().numpy())

    def distance(self, samples: Tensor, others: Tensor) -> Tensor:
        """The root mean square difference of the features of samples and others, both (N, C, H, W); returns (N,).

        Torch can differentiate it; it is a distance for `tune`.
        """
        return (self._seen(samples) - self._seen(others)).square().mean(1).clamp_min(1e-30).sqrt()

    def _seen(self, samples: Tensor) -> Tensor:
        """Features of samples as the network saw its images, on the CPU and in [-1, 1]."""
        return self.net.features(samples.cpu().float().clamp(-1, 1))

    def score(self, samples: Tensor) -> Score:
        """Score samples (N, C, H, W) in [-1, 1] against the reference."""
        return self.score_features(self.features(samples))

    def score_features(self, features: np.ndarray) -> Score:
        """Score feature vectors (N, D)."""
        distance = frechet_distance(gaussian_statistics(features), self._statistics)
        return Score(len(features), distance, sliced_wasserstein(features, self.reference))

    def frechet_error(self, features: np.ndarray) -> float | None:
        """The standard error of the Fréchet distance of feature vectors (N, D); None for fewer than 4."""
        return jackknife_error(
            lambda rows: frechet_distance(gaussian_statistics(rows), self._statistics), np.asarray(features)
        )

    def floor(self, count: int, repeats: int = 8) -> Score:
        """The mean score of `count` real images of the second set, over up to `repeats` disjoint draws.

        Both distances are biased upwards for few samples, so a score is meaningful only in comparison with the floor
        for the same count.
        """
        if not 2 <= count <= len(self.second):
            raise UsageError(f"the floor can be computed for 2 to {len(self.second)} samples, not {count}")
        order = np.random.default_rng(0).permutation(len(self.second))
        draws = min(repeats, len(self.second) // count)
        scores = [self.score_features(self.second[order[k * count : (k + 1) * count]]) for k in range(draws)]
        means = [float(np.mean([getattr(s, name) for s in scores])) for name in ("frechet", "sliced_wasserstein")]
        return Score(count, *means)
