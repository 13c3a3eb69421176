"""Time grids. Each returns `count` times on the model's clock, falling from span.start to span.end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sdesamplers import DiscreteVP, Spacing, Span, hookimpl, spacing


@spacing("linspace", reference="Song et al. 2021, section 4; diffusers' timestep_spacing='linspace' unrounded")
def linspace(span: Span, count: int) -> np.ndarray:
    """Equal steps of the model's own time, both ends included."""
    return np.linspace(span.start, span.end, count)


@spacing("leading", reference="Ho et al. 2020; Lin et al. 2024, table 2")
def leading(span: Span, count: int, *, offset: int = 0) -> np.ndarray:
    """Equal strides counted from the data end, t_i = i * stride + offset; the last, noisiest stride is left out.

    On a table of N timesteps the stride is the whole number N // count, as diffusers has it.
    """
    if isinstance(span.process, DiscreteVP):
        stride = (span.start + 1) // count
        return np.arange(count)[::-1] * stride + offset
    stride = (span.start - span.end) / count
    return span.end + np.arange(count)[::-1] * stride


@spacing("trailing", reference="Lin et al. 2024, table 2")
def trailing(span: Span, count: int) -> np.ndarray:
    """Equal strides counted from the noise end, t_i = t_max - i * stride; rounded to whole timesteps on a table."""
    if isinstance(span.process, DiscreteVP):
        total = span.start + 1
        return np.round(total - np.arange(count) * total / count) - 1
    return span.start - np.arange(count) * (span.start - span.end) / count


@spacing("quadratic", reference="Song, Meng & Ermon 2021 (DDIM), appendix D.2")
def quadratic(span: Span, count: int) -> np.ndarray:
    """Equal steps of sqrt(t): denser towards the data."""
    return np.linspace(np.sqrt(span.start), np.sqrt(span.end), count) ** 2


@spacing("logsnr", reference="Lu et al. 2022 (DPM-Solver), section 3.3")
def logsnr(span: Span, count: int) -> np.ndarray:
    """Equal steps of lambda = log(alpha/sigma)."""
    return span.at_ratios(np.geomspace(*span.ratios(), count))


@spacing("angle", reference="Salimans & Ho 2022, section 4 (cosine schedule in v-space)")
def angle(span: Span, count: int) -> np.ndarray:
    """Equal steps of arctan(sigma/alpha), the angle between signal and noise."""
    first, last = np.arctan(span.ratios(finite=False))
    times = span.at_ratios(np.tan(np.linspace(first, last, count)))
    times[0] = span.start
    return times


@spacing("karras", reference="Karras et al. 2022, eq. 5")
def karras(span: Span, count: int, *, rho: float = 7.0) -> np.ndarray:
    """Equal steps of (sigma/alpha)^(1/rho)."""
    if rho == 0:
        raise ValueError("rho must not be 0")
    first, last = np.power(span.ratios(), 1 / rho)
    return span.at_ratios(np.linspace(first, last, count) ** rho)


@spacing("exponential", reference="k-diffusion's name for equal steps of log(sigma)")
def exponential(span: Span, count: int) -> np.ndarray:
    """Equal ratios of sigma/alpha; the same grid as logsnr under k-diffusion's name."""
    return span.at_ratios(np.geomspace(*span.ratios(), count))


@spacing("polyexponential", reference="k-diffusion's polynomial in log(sigma)")
def polyexponential(span: Span, count: int, *, rho: float = 1.0) -> np.ndarray:
    """log(sigma/alpha) falls as a power rho of the remaining fraction; rho = 1 is exponential."""
    if rho <= 0:
        raise ValueError("rho must be positive")
    first, last = np.log(span.ratios())
    return span.at_ratios(np.exp(last + np.linspace(1, 0, count) ** rho * (first - last)))


@hookimpl
def sdesamplers_spacings() -> Sequence[Spacing]:
    """The spacings of this file."""
    return [linspace, leading, trailing, quadratic, logsnr, angle, karras, exponential, polyexponential]
