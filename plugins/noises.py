"""Sources of noise: what `Path.draw` adds in a stochastic step and, where a source says so, what a run starts from.

The coloured ones are for pictures, (channels, height, width). They change the distribution that is sampled: a model
is trained on independent normals, unless it was trained on the same coloured noise. Every number is keyed by seed,
sample and draw, as all others are.
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


@noise_source("independent")
def independent(source: NormalSource, shortest: float) -> IndependentNoise:
    """A fresh standard normal for every step."""
    return IndependentNoise(source)


@noise_source("brownian", reference="Lévy's construction of Brownian motion")
def brownian(source: NormalSource, shortest: float) -> BrownianNoise:
    """Increments of one Brownian motion a sample over lambda, the same whatever the grid."""
    return BrownianNoise.for_steps(source, shortest)


class PictureNoise:
    """Draws of a coloured noise, a linear map of keyed normals, for the steps, the start or both.

    Args:
        make: the noise for the draws at `positions`, one a row; position 0 is the run's start.
        where: what is coloured; the rest is the plain noise of `independent`.
    """

    def __init__(self, source: NormalSource, make: Callable[[list[int], Rows], Tensor], where: Where) -> None:
        self._source, self._make, self._where = source, make, where
        self._plain = IndependentNoise(source)
        self._counts = np.zeros(len(source.indices), dtype=np.int64)

    def __call__(self, start: float, end: float, rows: Rows = None) -> Tensor:
        if self._where == "start":
            return self._plain(start, end, rows)
        taking = np.arange(len(self._counts)) if rows is None else rows
        self._counts[taking] += 1
        return self._make(self._counts[taking].tolist(), rows)

    def start_noise(self) -> Tensor:
        """The noise that the run starts from."""
        if self._where == "steps":
            return self._source.draw(NormalSource.START)
        return self._make([0] * len(self._counts), None)


def picture_shape(source: NormalSource, name: str) -> tuple[int, int, int]:
    """(channels, height, width), or an error where the samples are no pictures."""
    if len(source.shape) != 3:
        raise ValueError(f"{name} noise is for pictures, (channels, height, width), not for samples of {source.shape}")
    channels, height, width = source.shape
    return channels, height, width


@noise_source("pyramid", limits=CHANGED, reference="Whitaker 2023, multi-resolution noise for diffusion model training")
def pyramid(
    source: NormalSource, shortest: float, *, discount: float = 0.9, levels: int | None = None, where: Where = "both"
) -> PictureNoise:
    """Normals of the full resolution, of half of it, a quarter and so on, enlarged and summed: large blotches.

    Level k has weight discount^k. The sum is divided by the root of the weights' squares, so every element has mean 0
    and variance 1; neighbours are correlated.

    Args:
        discount: weight of a level in the one above it; 0 is white noise.
        levels: how many, the full one included; None goes on down to one pixel a side.
        where: colour "both" the starting noise and the steps', the "start" alone or the "steps" alone.
    """
    channels, height, width = picture_shape(source, "pyramid")
    whole = 1 + int(math.log2(max(min(height, width), 1)))
    if not 0 <= discount <= 1 or (levels is not None and levels < 1):
        raise ValueError(f"discount must lie from 0 to 1 and levels be 1 or more, not {discount} and {levels}")
    depth = whole if levels is None else min(levels, whole)
    weights = discount ** np.arange(depth)
    weights /= math.sqrt(np.sum(weights**2))
    sizes = [(-(-height >> k), -(-width >> k)) for k in range(depth)]
    small = [NormalSource(source.seed, source.indices, (channels, *size)) for size in sizes]
    grow = [(enlargement(height, low), enlargement(width, across)) for low, across in sizes]

    def make(positions: list[int], rows: Rows) -> Tensor:
        total = torch.zeros(1)
        for k, (weight, (rise, run)) in enumerate(zip(weights.tolist(), grow, strict=True)):
            normal = small[k].draw(NormalSource.AUXILIARY, positions, block=k, rows=rows)
            total = total + weight * (rise @ normal @ run.T)
        return total

    return PictureNoise(source, make, where)


def enlargement(size: int, small: int) -> Tensor:
    """The matrix (size, small) of linear interpolation, its rows of length 1 so that it keeps a normal's variance."""
    place = np.clip((np.arange(size) + 0.5) * small / size - 0.5, 0, small - 1)
    matrix = np.maximum(0.0, 1 - np.abs(place[:, None] - np.arange(small)))
    return torch.from_numpy(matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).float()


@noise_source("coloured", limits=CHANGED, reference="noise with a power-law spectrum, 1/f^exponent")
def coloured(source: NormalSource, shortest: float, *, exponent: float = 1.0, where: Where = "both") -> PictureNoise:
    """Normal noise whose power falls as 1/f^exponent, f the distance from frequency 0 in the plane.

    Every element has mean 0 and variance 1; neighbours are correlated. Frequency 0, a channel's mean, has the power
    of the lowest frequency beside it, since 1/f^exponent has none there.

    Args:
        exponent: 0 white, 1 pink, 2 brown, below 0 blue; from -10 to 10.
        where: colour "both" the starting noise and the steps', the "start" alone or the "steps" alone.
    """
    _, height, width = picture_shape(source, "coloured")
    if abs(exponent) > 10:  # beyond it single frequencies are all there is, and then the powers overflow
        raise ValueError(f"exponent must lie from -10 to 10, not {exponent}")
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    frequency[0, 0] = 1 / max(height, width, 1)
    amplitude = frequency ** (-exponent / 2)
    amplitude /= math.sqrt(np.mean(amplitude**2))
    mask = torch.from_numpy(amplitude[:, : width // 2 + 1]).float()

    def make(positions: list[int], rows: Rows) -> Tensor:
        normal = source.draw(NormalSource.AUXILIARY, positions, rows=rows)
        return torch.fft.irfft2(torch.fft.rfft2(normal) * mask, s=(height, width))

    return PictureNoise(source, make, where)


@noise_source("offset", limits=CHANGED, reference="Guttenberg 2023, diffusion with offset noise")
def offset(
    source: NormalSource, shortest: float, *, strength: float = 0.1, unit: bool = False, where: Where = "both"
) -> PictureNoise:
    """Normal noise plus strength times one normal for each channel, which shifts the whole channel.

    Every element has mean 0 and variance 1 + strength^2, as published, or 1 with unit=True.

    Args:
        strength: standard deviation of the shift.
        unit: divide by sqrt(1 + strength^2).
        where: colour "both" the starting noise and the steps', the "start" alone or the "steps" alone.
    """
    channels, _, _ = picture_shape(source, "offset")
    shifts = NormalSource(source.seed, source.indices, (channels, 1, 1))
    scale = 1 / math.hypot(1.0, strength) if unit else 1.0

    def make(positions: list[int], rows: Rows) -> Tensor:
        shift = shifts.draw(NormalSource.AUXILIARY, positions, block=1, rows=rows)
        return (source.draw(NormalSource.AUXILIARY, positions, rows=rows) + strength * shift) * scale

    return PictureNoise(source, make, where)


@hookimpl
def sdesamplers_noises() -> Sequence[NoiseSource]:
    """The noise sources of this file."""
    return [independent, brownian, pyramid, coloured, offset]
