"""Noise sources: the noise that `Path.draw` adds in a stochastic step, and optionally the noise that a run starts from.

The correlated sources are for images, (channels, height, width). They change the distribution that is sampled, since
models are trained with independent normal noise, unless the model was trained with the same correlated noise. As with
all noise, each draw is determined by the seed, the sample's index and the index of the draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sdesamplers import BrownianNoise, IndependentNoise, NoiseSource, NormalSource, hookimpl, noise_source

Where = Literal["both", "start", "steps"]
Rows = np.ndarray | None
CHANGED = "not the model's distribution, unless it was trained with this noise"


@noise_source("independent", reference="Box & Muller 1958, on bits of Philox (Salmon et al. 2011)")
def independent(source: NormalSource, shortest: float) -> IndependentNoise:
    """A fresh standard normal for every step."""
    return IndependentNoise(source)


@noise_source("brownian", additive=True, reference="Lévy's construction of Brownian motion")
def brownian(source: NormalSource, shortest: float) -> BrownianNoise:
    """Increments of one Brownian motion per sample, over lambda: the same Brownian path on every grid."""
    return BrownianNoise.for_steps(source, shortest)


class ImageNoise:
    """Correlated noise, a linear map of seeded normals, for the steps, the start or both.

    Args:
        source: the seeded normals.
        make: function (positions, rows) that returns the noise of each row's draw; position 0 is the start of the run.
        where: what the correlated noise replaces: "start", "steps" or "both". The rest is that of `independent`.
    """

    def __init__(self, source: NormalSource, make: Callable[[list[int], Rows], Tensor], where: Where) -> None:
        self._source, self._make, self._where = source, make, where
        self._plain = IndependentNoise(source)
        self._counts = np.zeros(len(source.indices), dtype=np.int64)

    def __call__(self, start: float, end: float, rows: Rows = None) -> Tensor:
        if self._where == "start":
            return self._plain(start, end, rows)
        self.skip(start, end, rows)
        taking = np.arange(len(self._counts)) if rows is None else rows
        return self._make(self._counts[taking].tolist(), rows)

    def skip(self, start: float, end: float, rows: Rows = None) -> None:
        """Count a draw without making it."""
        if self._where == "start":
            self._plain.skip(start, end, rows)
        else:
            self._counts[slice(None) if rows is None else rows] += 1

    def start_noise(self) -> Tensor:
        """The noise that the run starts from."""
        if self._where == "steps":
            return self._source.draw(NormalSource.START)
        return self._make([0] * len(self._counts), None)


def image_shape(source: NormalSource, name: str) -> tuple[int, int, int]:
    """(channels, height, width); ValueError unless the samples are images."""
    if len(source.shape) != 3:
        raise ValueError(
            f"{name} noise is for images of shape (channels, height, width), not for samples of shape {source.shape}"
        )
    channels, height, width = source.shape
    return channels, height, width


@noise_source("pyramid", limits=CHANGED, reference="Whitaker 2023, multi-resolution noise for diffusion model training")
def pyramid(
    source: NormalSource, shortest: float, *, discount: float = 0.9, levels: int | None = None, where: Where = "both"
) -> ImageNoise:
    """Multi-resolution noise: normals of full resolution, half, a quarter and so on, enlarged and added.

    Level k has weight discount^k. The sum is divided by the root of the sum of the squared weights, so that every
    element has mean 0 and variance 1. Neighbouring pixels are correlated.

    Args:
        discount: ratio of the weights of successive levels, from 0 (white noise) to 1.
        levels: number of levels, including that of full resolution; None continues down to one pixel.
        where: use this noise for the "start" of the run, for its "steps", or for "both".
    """
    channels, height, width = image_shape(source, "pyramid")
    whole = 1 + int(math.log2(max(min(height, width), 1)))
    if not 0 <= discount <= 1 or (levels is not None and levels < 1):
        raise ValueError(f"discount must lie from 0 to 1 and levels be 1 or more, not {discount} and {levels}")
    depth = whole if levels is None else min(levels, whole)
    weights = discount ** np.arange(depth)
    weights /= math.sqrt(np.sum(weights**2))
    sizes = [(-(-height >> k), -(-width >> k)) for k in range(depth)]
    small = [source.with_shape((channels, *size)) for size in sizes]
    grow = [(enlargement(height, low), enlargement(width, across)) for low, across in sizes]

    def make(positions: list[int], rows: Rows) -> Tensor:
        total = torch.zeros(1)
        for k, (weight, (rise, run)) in enumerate(zip(weights.tolist(), grow, strict=True)):
            normal = small[k].draw(NormalSource.AUXILIARY, positions, block=k, rows=rows)
            total = total + weight * (rise @ normal @ run.T)
        return total

    return ImageNoise(source, make, where)


def enlargement(size: int, small: int) -> Tensor:
    """The matrix (size, small) of linear interpolation, with rows of norm 1, which preserve the variance of noise."""
    place = np.clip((np.arange(size) + 0.5) * small / size - 0.5, 0, small - 1)
    matrix = np.maximum(0.0, 1 - np.abs(place[:, None] - np.arange(small)))
    return torch.from_numpy(matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).float()


@noise_source("coloured", limits=CHANGED, reference="noise with a power-law spectrum, 1/f^exponent")
def coloured(source: NormalSource, shortest: float, *, exponent: float = 1.0, where: Where = "both") -> ImageNoise:
    """Normal noise with the power spectrum 1/f^exponent, f being the magnitude of the two-dimensional frequency.

    Every element has mean 0 and variance 1; neighbouring pixels are correlated. At f = 0, the mean of a channel, where
    1/f^exponent is undefined, the power is that of the lowest non-zero frequency.

    Args:
        exponent: 0 for white noise, 1 for pink, 2 for brown, negative for blue; from -10 to 10.
        where: use this noise for the "start" of the run, for its "steps", or for "both".
    """
    _, height, width = image_shape(source, "coloured")
    if abs(exponent) > 10:  # larger ones leave only single frequencies, and then overflow
        raise ValueError(f"exponent must lie from -10 to 10, not {exponent}")
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    frequency[0, 0] = 1 / max(height, width, 1)
    amplitude = frequency ** (-exponent / 2)
    amplitude /= math.sqrt(np.mean(amplitude**2))
    mask = torch.from_numpy(amplitude[:, : width // 2 + 1]).float()

    def make(positions: list[int], rows: Rows) -> Tensor:
        normal = source.draw(NormalSource.AUXILIARY, positions, rows=rows)
        return torch.fft.irfft2(torch.fft.rfft2(normal) * mask, s=(height, width))

    return ImageNoise(source, make, where)


@noise_source("offset", limits=CHANGED, reference="Guttenberg 2023, diffusion with offset noise")
def offset(
    source: NormalSource, shortest: float, *, strength: float = 0.1, unit: bool = False, where: Where = "both"
) -> ImageNoise:
    """Offset noise: normal noise plus `strength` times one normal per channel, which shifts the whole channel.

    Every element has mean 0 and variance 1 + strength^2, as published, or 1 with unit=True.

    Args:
        strength: standard deviation of the shift.
        unit: divide by sqrt(1 + strength^2), for variance 1.
        where: use this noise for the "start" of the run, for its "steps", or for "both".
    """
    channels, _, _ = image_shape(source, "offset")
    shifts = source.with_shape((channels, 1, 1))
    scale = 1 / math.hypot(1.0, strength) if unit else 1.0

    def make(positions: list[int], rows: Rows) -> Tensor:
        shift = shifts.draw(NormalSource.AUXILIARY, positions, block=1, rows=rows)
        return (source.draw(NormalSource.AUXILIARY, positions, rows=rows) + strength * shift) * scale

    return ImageNoise(source, make, where)


@hookimpl
def sdesamplers_noises() -> Sequence[NoiseSource]:
    """The noise sources of this file."""
    return [independent, brownian, pyramid, coloured, offset]
