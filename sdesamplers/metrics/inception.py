"""The Fréchet distance of InceptionV3 features (FID), computed with torch-fidelity, an optional dependency."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ModelError, UsageError
from ..io.reading import read_picture
from .distances import frechet_distance, gaussian_statistics
from .scorer import Score

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class InceptionScorer:
    """FID as torch-fidelity defines it, with the TensorFlow weights of 2015 and 2,048 features.

    The distance is biased upwards for few samples: compare only values for the same number of samples.

    Args:
        reference: a folder of images, searched recursively, or an .npz file with their statistics `mu` (2048,) and
            `sigma` (2048, 2048).
        weights: torch-fidelity's weights file; by default torch-fidelity downloads it if necessary.
        device: the device that the network runs on.
        batch_size: number of images evaluated at once.

    Raises:
        UsageError: torch-fidelity is not installed, or the reference does not exist.
        ModelError: the reference or the weights cannot be read.
    """

    def __init__(
        self,
        reference: str | Path,
        *,
        weights: str | Path | None = None,
        device: torch.device | str = "cpu",
        batch_size: int = 32,
    ) -> None:
        self.reference, self.batch_size = Path(reference), batch_size
        if not self.reference.exists():
            raise UsageError(f"{reference}: no such folder of images or .npz file of statistics")
        self.net = inception(weights).to(torch.device(device))
        self.device = torch.device(device)
        self.description = f"FID (torch-fidelity's InceptionV3) against {self.reference.name}"

    @torch.inference_mode()
    def features(self, samples: Tensor) -> np.ndarray:
        """Features (N, 2048) of images (N, C, H, W) in [-1, 1] with 1 or 3 channels, which are rounded to 8 bits."""
        if samples.dim() != 4 or samples.shape[1] not in (1, 3):
            raise UsageError(
                f"InceptionV3 needs images with 1 or 3 channels, not samples of shape {tuple(samples.shape[1:])}"
            )
        parts = []
        for part in torch.split(samples, self.batch_size):
            pixels = ((part.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
            whole = pixels.expand(-1, 3, -1, -1).to(self.device)
            parts.append(self.net(whole)[0].double().cpu())
        return np.asarray(torch.cat(parts).numpy())

    def score_features(self, features: np.ndarray) -> Score:
        """Score features (N, 2048) by their Fréchet distance to the reference."""
        return Score(len(features), frechet_distance(gaussian_statistics(features), self.statistics), None)

    def score(self, samples: Tensor) -> Score:
        """Score images (N, C, H, W) in [-1, 1]."""
        return self.score_features(self.features(samples))

    @cached_property
    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of the reference's features, computed on first use."""
        if self.reference.is_dir():
            return gaussian_statistics(np.concatenate(list(self._reference_features())))
        try:
            with np.load(self.reference, allow_pickle=False) as file:
                return file["mu"].astype(np.float64), file["sigma"].astype(np.float64)
        except (OSError, KeyError, ValueError) as error:
            raise ModelError(f"{self.reference}: not an .npz with mu and sigma ({error})") from None

    def _reference_features(self) -> Iterator[np.ndarray]:
        files = sorted(file for file in self.reference.rglob("*") if file.suffix.lower() in ENDINGS)
        if len(files) < 2:
            raise ModelError(f"{self.reference}: needs two or more images, but contains {len(files)}")
        for file in files:  # one at a time, since they may differ in size
            try:
                pixels = read_picture(file, "RGB", None)
            except UsageError as error:
                raise ModelError(str(error)) from None
            yield self.features(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1)


def inception(weights: str | Path | None) -> Any:
    """Load torch-fidelity's InceptionV3 network."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # optional
    except ImportError:
        raise UsageError("FID needs torch-fidelity: pip install 'sdesamplers[fidelity]'") from None
    except RuntimeError as error:  # for example, torchvision was built for another torch
        raise UsageError(f"torch-fidelity cannot be imported: {str(error).splitlines()[0]}") from None
    if weights is not None:
        try:  # torch-fidelity loads any pickle; this rejects files that contain anything but tensors
            torch.load(weights, weights_only=True, map_location="cpu")
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0]
            raise ModelError(f"{weights}: not a weights file of InceptionV3 ({reason})") from None
    path = None if weights is None else str(weights)
    try:
        return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=path)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"cannot load the weights of InceptionV3: {reason}; pass a weights file") from None
