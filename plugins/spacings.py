"""Time grids. Each returns `count` times on the model's clock, falling from span.start to span.end.

Those that are published otherwise say so: they leave out the last, cleanest point, from which the run steps to
sigma = 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from sdesamplers import EDM, DiscreteVP, GaussianProcess, Spacing, Span, hookimpl, spacing


@spacing("linspace", reference="Song et al. 2021, section 4; diffusers' timestep_spacing='linspace' unrounded")
def linspace(span: Span, count: int) -> np.ndarray:
    """Equal steps of the model's own time, both ends included."""
    return np.linspace(span.start, span.end, count)


@spacing("even", reference="Lin et al. 2024, table 2; in sigma^(1/7), Karras et al. 2022, eq. 5")
def even_strides(span: Span, count: int) -> np.ndarray:
    """Equal strides from the noise end, one more of which leads to sigma = 0: no evaluation is spent next to it.

    They are strides of the model's own time, or of sigma^(1/7) where that time is sigma itself (EDM). A run that ends
    at the smallest sigma has both ends, as `linspace` has them.
    """
    exponent = 7.0 if isinstance(span.process, EDM) else 1.0
    start, end = span.start ** (1 / exponent), span.end ** (1 / exponent) if exponent != 1 else span.end
    if not span.ends_clean:
        times = np.linspace(start, end, count) ** exponent
        times[-1] = span.end
    else:
        clean = end if exponent != 1 else clean_end(span)
        clean = end if start - (count - 1) * (start - clean) / count < end else clean
        times = (start - np.arange(count) * (start - clean) / count) ** exponent
    times[0] = span.start
    return np.asarray(times)


@spacing("own", reference="the configuration of the scheduler that the model came with")
def own(span: Span, count: int) -> np.ndarray:
    """The grid of the model's makers: what its configuration says of spacing, offset and sigmas.

    The default of samplers without a grid of their own. Where the model came without a configuration, or its makers
    have no grid of so many steps (more than there are timesteps, say), it is `even`.
    """
    model = span.model
    authors_grid = model.own_grid if isinstance(model, GaussianProcess) else None
    times = None if authors_grid is None else authors_grid.times(count if span.ends_clean else count - 1)
    if times is None or (not span.ends_clean and times[-1] <= span.end):
        return even_strides(span, count)
    if isinstance(model, GaussianProcess) and span.process is not model:
        times = np.asarray(span.gaussian.time_at_ratio(model.ratio(times)))
    return np.asarray(times) if span.ends_clean else np.append(times, span.end)


@spacing("distilled", reference="Luo et al. 2023, section 4.3 (skipping steps); diffusers' LCMScheduler")
def distilled(span: Span, count: int, *, teacher_steps: int | None = None) -> np.ndarray:
    """Timesteps that a model was distilled at: every (teacher_steps / count)-th of k - 1, 2k - 1, ..., N - 1.

    k = N // teacher_steps on a table of N timesteps. 4 of 50 on a table of 1000 are 999, 759, 499 and 259. More steps
    than teacher_steps are `even`. Models on other processes have no such timesteps; they are run on the grid of their
    makers where these distilled them, else on `even`.

    Args:
        teacher_steps: how many timesteps it was distilled at (diffusers' original_inference_steps); by default what
            the model's configuration says, or 50.
    """
    model = span.model
    authors_grid = model.own_grid if isinstance(model, GaussianProcess) else None
    if not isinstance(span.process, DiscreteVP):
        return own(span, count) if authors_grid is not None and authors_grid.is_distilled else even_strides(span, count)
    total = round(span.process.t_max) + 1
    if teacher_steps is None:
        teacher_steps = min(total, (authors_grid.teacher_steps if authors_grid is not None else None) or 50)
    if not 1 <= teacher_steps <= total:
        raise ValueError(f"teacher_steps must lie between 1 and the table's {total} timesteps, not {teacher_steps}")
    stride = total // teacher_steps
    known = min(teacher_steps, math.floor((span.start + 1) / stride))
    wanted = count if span.ends_clean else count - 1
    if not 0 < wanted <= known:
        return even_strides(span, count)
    skipped = np.floor(np.linspace(0, known, wanted, endpoint=False))
    times = (known - skipped) * stride - 1
    times[0] = span.start
    return times if span.ends_clean else np.append(times, span.end)


@spacing("leading", reference="Ho et al. 2020; Lin et al. 2024, table 2")
def leading(span: Span, count: int, *, offset: int | None = None) -> np.ndarray:
    """Equal strides counted from the data end, t_i = i * stride + offset; the last, noisiest stride is left out.

    On a table of N timesteps the stride is the whole number N // count, as diffusers has it.

    Args:
        offset: in timesteps, 0 by default; for tables alone.
    """
    if isinstance(span.process, DiscreteVP):
        stride = (span.start + 1) // count
        return np.arange(count)[::-1] * stride + (offset or 0)
    if offset is not None:
        raise ValueError("offset is a number of timesteps of a table, and this process has none")
    stride = (span.start - span.end) / count
    return span.end + np.arange(count)[::-1] * stride


@spacing("trailing", reference="Lin et al. 2024, table 2")
def trailing(span: Span, count: int) -> np.ndarray:
    """Equal strides counted from the noise end, t_i = t_max - i * stride; rounded to whole timesteps on a table.

    One more stride leads to sigma = 0, or to span.end on a clock that does not reach it.
    """
    if isinstance(span.process, DiscreteVP):
        total = span.start + 1
        return np.round(total - np.arange(count) * total / count) - 1
    return span.start - np.arange(count) * (span.start - clean_end(span)) / count


@spacing("simple", reference="ComfyUI's and A1111's grid of this name")
def simple(span: Span, count: int) -> np.ndarray:
    """Trailing strides rounded up, t_i = N - 1 - floor(i N / count) on a table of N timesteps.

    The same as `trailing` where count divides N and on processes without a table. The last point is left out.
    """
    if isinstance(span.process, DiscreteVP):
        total = math.floor(span.start) + 1
        return span.start - np.arange(count) * total // count
    return trailing(span, count)


@spacing("sgm-uniform", reference="the grid of Stability's generative-models, by ComfyUI's and A1111's name")
def sgm_uniform(span: Span, count: int) -> np.ndarray:
    """count + 1 equal steps of the model's own time without the last: trailing strides that are not rounded."""
    return np.linspace(span.start, span.end, count + 1)[:-1]


@spacing("quadratic", reference="Song, Meng & Ermon 2021 (DDIM), appendix D.2")
def quadratic(span: Span, count: int) -> np.ndarray:
    """Equal steps of sqrt(t): denser towards the data."""
    times = np.linspace(np.sqrt(span.start), np.sqrt(span.end), count) ** 2
    times[-1] = span.end
    times[0] = span.start
    return times


@spacing("logsnr", reference="Lu et al. 2022 (DPM-Solver), section 3.3")
def logsnr(span: Span, count: int, *, sigma_min: float | None = None) -> np.ndarray:
    """Equal steps of lambda = log(alpha/sigma).

    Args:
        sigma_min: sigma/alpha of the last point before the step to sigma = 0; by default the model's smallest.
    """
    return span.at_ratios(np.geomspace(*ending_at(sigma_min, span), count))


@spacing("angle", reference="Salimans & Ho 2022, section 4 (cosine schedule in v-space)")
def angle(span: Span, count: int) -> np.ndarray:
    """Equal steps of arctan(sigma/alpha), the angle between signal and noise."""
    return kl_optimal(span, count)


@spacing("kl-optimal", reference="Sabour, Fidler & Kreis 2024 (Align Your Steps), theorem 3.1")
def kl_optimal(span: Span, count: int, *, data_std: float = 1.0) -> np.ndarray:
    """Equal steps of arctan(sigma / (alpha c)), the best grid of a first-order ODE solver for N(0, c^2) data.

    With c = 1 it is `angle`.

    Args:
        data_std: c.
    """
    if not 0 < data_std < math.inf:
        raise ValueError(f"data_std must be positive, not {data_std}")
    first, last = np.arctan(np.divide(span.ratios(finite=False), data_std))
    return from_ratios(span, data_std * np.tan(np.linspace(first, last, count)))


@spacing("karras", reference="Karras et al. 2022, eq. 5")
def karras(span: Span, count: int, *, rho: float = 7.0, sigma_min: float | None = None) -> np.ndarray:
    """Equal steps of (sigma/alpha)^(1/rho).

    Args:
        sigma_min: sigma/alpha of the last point before the step to sigma = 0; by default the model's smallest.
    """
    if rho == 0:
        raise ValueError("rho must not be 0")
    first, last = np.power(ending_at(sigma_min, span), 1 / rho)
    return span.at_ratios(np.linspace(first, last, count) ** rho)


@spacing("power", reference="studies/work_precision.py; with rho = 7 on EDM, Karras et al. 2022, eq. 5")
def power(span: Span, count: int, *, rho: float = 1.0, last: float = 1 / 3) -> np.ndarray:
    """Equal steps of t^(1/rho) that stop early when they are few.

    t is the model's time, or sigma^(1/7) where that time is sigma itself (EDM). The last point is a share `last` of a
    step above t = 0, or span.end where that is above it: the step into sigma = 0 needs no time below, and few points
    are better spent earlier.
    """
    exponent = 7 * rho if isinstance(span.process, EDM) else rho
    if exponent <= 0 or not 0 <= last <= 1:
        raise ValueError(f"rho must be positive and last lie in [0, 1], not {rho} and {last}")
    if count == 1:
        return np.array([span.start])
    end = max(span.end, span.start * (last / count) ** exponent)
    times = np.linspace(span.start ** (1 / exponent), end ** (1 / exponent), count) ** exponent
    times[0], times[-1] = span.start, end
    return np.asarray(times)


@spacing("flow-power", reference="Karras et al. 2022, eq. 5, in sigma/(alpha + sigma); studies/work_precision.py")
def flow_power(span: Span, count: int, *, rho: float = 1.5) -> np.ndarray:
    """Equal steps of tau^(1/rho), where tau = sigma/(alpha + sigma) is the flow model's time.

    It is dense in the middle, where samples choose their mode. `rho` as in `karras`, which does this in sigma/alpha.
    The last point is where one more equal step would reach tau = 0, or span.end where that is above it.
    """
    if rho <= 0:
        raise ValueError("rho must be positive")
    first, last = (r / (1 + r) if np.isfinite(r) else 1.0 for r in span.ratios(finite=False))
    low = max(1 / count, (last / first) ** (1 / rho))
    tau = first * np.linspace(1, low, count) ** rho
    with np.errstate(divide="ignore"):
        return span.at_ratios(tau / (1 - tau))


@spacing("exponential", reference="k-diffusion's name for equal steps of log(sigma)")
def exponential(span: Span, count: int, *, sigma_min: float | None = None) -> np.ndarray:
    """Equal ratios of sigma/alpha; the same grid as logsnr under k-diffusion's name.

    Args:
        sigma_min: sigma/alpha of the last point before the step to sigma = 0; by default the model's smallest.
    """
    return logsnr(span, count, sigma_min=sigma_min)


@spacing("polyexponential", reference="k-diffusion's polynomial in log(sigma)")
def polyexponential(span: Span, count: int, *, rho: float = 1.0, sigma_min: float | None = None) -> np.ndarray:
    """log(sigma/alpha) falls as a power rho of the remaining fraction; rho = 1 is exponential.

    Args:
        sigma_min: sigma/alpha of the last point before the step to sigma = 0; by default the model's smallest.
    """
    if rho <= 0:
        raise ValueError("rho must be positive")
    first, last = np.log(ending_at(sigma_min, span))
    return span.at_ratios(np.exp(last + np.linspace(1, 0, count) ** rho * (first - last)))


@spacing("edm", reference="Karras et al. 2022, table 1")
def edm(
    span: Span, count: int, *, column: Literal["edm", "vp", "ve", "iddpm"] = "edm", rho: float | None = None
) -> np.ndarray:
    """The time steps of a column of Karras et al.'s table 1, laid over the model's own range of sigma/alpha.

    "edm" takes equal steps of sigma^(1/rho); "vp" equal steps of t, sigma(t)^2 = exp(19.9 t^2 / 2 + 0.1 t) - 1;
    "ve" equal steps of log sigma^2; "iddpm" equal steps of the index j of iDDPM's cosine schedule,
    sigma_j^2 = abar_M / abar_j - 1 with abar_j = sin^2(pi/2 * j / (M (C_2 + 1))) and C_2 = 0.008, not rounded to whole
    ones of the table's M = 1000.

    Args:
        rho: of the column "edm", which alone has one; 7 by default.
    """
    if column == "edm":
        return karras(span, count, rho=7.0 if rho is None else rho)
    if rho is not None:
        raise ValueError(f"rho belongs to column='edm'; the column {column!r} has none")
    if column == "ve":
        return exponential(span, count)
    ratios = np.asarray(span.ratios(finite=column == "vp"))
    if column == "vp":
        # t(sigma) is the root of beta_d t^2 / 2 + beta_min t = log(1 + sigma^2).
        beta_d, beta_min = 19.9, 0.1
        t = even((np.sqrt(beta_min**2 + 2 * beta_d * np.log1p(ratios**2)) - beta_min) / beta_d, count)
        return from_ratios(span, np.sqrt(np.expm1(beta_d * t**2 / 2 + beta_min * t)))
    widest = math.sin(math.pi / 2 / 1.008)
    angles = even(np.arcsin(widest / np.hypot(1.0, ratios)), count)
    with np.errstate(divide="ignore"):
        # sqrt(widest^2 / sin^2 - 1) without the cancellation where sigma is small.
        away = np.arcsin(widest) - angles
        squares = np.sin(away) * np.sin(np.arcsin(widest) + angles)
        return from_ratios(span, np.sqrt(np.maximum(squares, 0)) / np.sin(angles))


@spacing("beta", reference="Lee et al. 2024 (Beta sampling is all you need)")
def beta(
    span: Span,
    count: int,
    *,
    alpha: float = 0.6,
    beta: float = 0.6,
    axis: Literal["time", "sigma"] = "time",
    last: bool = True,
) -> np.ndarray:
    """Quantiles of a beta distribution at equal steps, laid over the model's time: denser at both ends.

    Args:
        alpha, beta: the distribution's parameters; 1 and 1 give linspace.
        axis: lay them over sigma/alpha instead, as diffusers' use_beta_sigmas and A1111 do.
        last: False leaves out the last point, as ComfyUI does.
    """
    from scipy.stats import beta as distribution  # scipy takes a second to import

    if alpha <= 0 or beta <= 0:
        raise ValueError(f"alpha and beta must be positive, not {alpha} and {beta}")
    levels = distribution.ppf(1 - np.linspace(0, 1, count if last else count + 1)[:count], alpha, beta)
    levels[0] = 1.0
    if axis == "time":
        return between(span.start, span.end, levels)
    return from_ratios(span, between(*span.ratios(), levels), ends=last)


@spacing("linear-quadratic", reference="Genmo 2024 (Mochi 1)")
def linear_quadratic(
    span: Span, count: int, *, threshold: float = 0.025, linear_steps: int | None = None
) -> np.ndarray:
    """Small equal steps at first, then steps that grow linearly: t = 1 - f(i) over n = count steps on a flow's clock.

    f(i) = threshold i / L up to L steps, then a parabola that goes on with the same slope and is 1 at n. The last
    point, t = 0, is left out.

    Args:
        threshold: the share of time that the equal steps take.
        linear_steps: L; half of the steps by default.
    """
    linear = count // 2 if linear_steps is None else linear_steps
    if not 0 < threshold < 1 or not 0 <= linear <= max(count - 1, 0):
        raise ValueError(
            f"threshold must lie between 0 and 1 and linear_steps below {count}, not {threshold}, {linear}"
        )
    step = np.arange(count, dtype=float)
    slope = threshold / linear if linear else 0.0
    bend = (1 - slope * count) / (count - linear) ** 2
    if slope * (count + linear) > 2:
        raise ValueError(
            f"{linear} equal steps of {count} may take at most {2 * linear / (count + linear):.3g} of the time"
        )
    done = slope * step + bend * np.square(np.maximum(step - linear, 0))
    return between(span.start, clean_end(span), 1 - done)


@spacing("laplace", reference="Hang & Gu 2024 (Improved noise schedule for diffusion training), table 1")
def laplace(span: Span, count: int, *, mu: float = 0.0, b: float = 0.5) -> np.ndarray:
    """Quantiles of a Laplace distribution of log(alpha^2/sigma^2) at equal steps: densest where that is mu.

    The distribution is cut off at the model's ends, which are the first and the last point; where points outside are
    pulled to the ends instead, several coincide.

    Args:
        mu, b: the distribution's mean and scale in log(alpha^2/sigma^2). ComfyUI's beta is in log(sigma): b = 2 beta.
    """
    from scipy.stats import laplace as distribution  # scipy takes a second to import

    if b <= 0:
        raise ValueError(f"b must be positive, not {b}")
    ratios = np.asarray(span.ratios(finite=False))
    with np.errstate(divide="ignore"):
        first, last = -2 * np.log(ratios)
    # Beyond mu probabilities are counted from the far end, where they are small and thus exact.
    if first > mu:
        snr = distribution.isf(even(distribution.sf([first, last], mu, b), count), mu, b)
    else:
        snr = distribution.ppf(even(distribution.cdf([first, last], mu, b), count), mu, b)
    return from_ratios(span, np.exp(-snr / 2))


@spacing("flow-shift", reference="Esser et al. 2024 (Stable Diffusion 3), eq. 23; Black Forest Labs 2024 (FLUX.1)")
def flow_shift(
    span: Span,
    count: int,
    *,
    shift: float | None = None,
    mu: float | None = None,
    tokens: int | None = None,
    law: Literal["exponential", "linear"] = "exponential",
    base_shift: float | None = None,
    max_shift: float | None = None,
) -> np.ndarray:
    """Equal steps of u, shifted towards the noise: t = s u / (1 + (s - 1) u), t = sigma/(alpha + sigma).

    t is a flow model's own time; other processes are seen as flows. Ends stay where they are.

    Args:
        shift: s, 3 where nothing else is given (Stable Diffusion 3).
        mu: s = exp(mu), or s = mu with law="linear": a shift that depends on the resolution.
        tokens: number of image tokens that mu follows from, on the line through (256, base_shift) and
            (4096, max_shift), by default 0.5 and 1.15 (FLUX.1).
        law: how s follows from mu or tokens.
    """
    if sum(value is not None for value in (shift, mu, tokens)) > 1:
        raise ValueError("give one of shift, mu and tokens")
    if tokens is None and not base_shift is max_shift is None:
        raise ValueError("base_shift and max_shift belong to tokens, which is not given")
    if tokens is None and mu is None and law != "exponential":
        raise ValueError(f"law={law!r} belongs to mu or tokens, and neither is given")
    if tokens is not None:
        low, high = 0.5 if base_shift is None else base_shift, 1.15 if max_shift is None else max_shift
        mu = low + (high - low) * (tokens - 256) / (4096 - 256)
    if mu is not None:
        shift = math.exp(mu) if law == "exponential" else mu
    shift = 3.0 if shift is None else shift
    if not 0 < shift < math.inf:
        raise ValueError(f"the shift must be positive, not {shift}")
    # A shift by s multiplies sigma/alpha by s.
    ratios = np.asarray(span.ratios(finite=False)) / shift
    with np.errstate(divide="ignore"):
        u = even(1 / (1 + 1 / ratios), count)
        return from_ratios(span, shift * u / (1 - u))


AYS = {
    "ays-sd1": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "ays-sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "ays-svd": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
AYS_REFERENCE = "Sabour, Fidler & Kreis 2024 (Align Your Steps), quick-start guide"


def published(span: Span, count: int, name: str) -> np.ndarray:
    """The first `count` of count + 1 sigmas read off a table of 10 steps, straight lines between logarithms."""
    table = np.asarray(AYS[name])
    ratios = np.exp(np.interp(np.linspace(0, 1, count + 1), np.linspace(0, 1, len(table)), np.log(table)))[:-1]
    first, last = span.ratios(finite=False)
    # A model's own largest sigma has more digits than the table's.
    if ratios[0] > first * 1.001 or ratios[-1] < last * 0.999:
        asked, there = f"{ratios[0]:g} to {ratios[-1]:.3g}", f"{first:.5g} to {last:.3g}"
        raise ValueError(f"this grid, sigma {asked}, cannot be had here, where sigma/alpha goes from {there}")
    return span.at_ratios(np.clip(ratios, last, first))


@spacing("ays-sd1", reference=AYS_REFERENCE)
def ays_sd1(span: Span, count: int) -> np.ndarray:
    """Align Your Steps' sigmas for Stable Diffusion 1.5: from its sigma 14.615; the last one, 0.029, is left out."""
    return published(span, count, "ays-sd1")


@spacing("ays-sdxl", reference=AYS_REFERENCE)
def ays_sdxl(span: Span, count: int) -> np.ndarray:
    """Align Your Steps' sigmas for Stable Diffusion XL: from its sigma 14.615; the last one, 0.029, is left out."""
    return published(span, count, "ays-sdxl")


@spacing("ays-svd", reference=AYS_REFERENCE)
def ays_svd(span: Span, count: int) -> np.ndarray:
    """Align Your Steps' sigmas for Stable Video Diffusion: from its sigma 700; the last one, 0.002, is left out."""
    return published(span, count, "ays-svd")


def even(ends: np.ndarray, count: int) -> np.ndarray:
    """`count` numbers in equal steps from ends[0] to ends[1]."""
    return np.linspace(ends[0], ends[1], count)


def between(start: float, end: float, levels: np.ndarray) -> np.ndarray:
    """end + (start - end) levels, exact at level 1."""
    return np.where(levels == 1, start, end + (start - end) * levels)


def from_ratios(span: Span, ratios: np.ndarray, *, ends: bool = True) -> np.ndarray:
    """Times of sigma/alpha; the first is the span's start and, where the grid has it, the last its end."""
    times = span.at_ratios(ratios)
    times[-1] = span.end if ends else times[-1]
    times[0] = span.start
    return times


def ending_at(sigma_min: float | None, span: Span) -> tuple[float, float]:
    """sigma/alpha at both ends of a grid whose last point was chosen."""
    first, last = span.ratios()
    if sigma_min is None:
        return first, last
    if not last <= sigma_min < first:
        raise ValueError(f"sigma_min must lie in [{last:.4g}, {first:.4g}), sigma/alpha of this model, not {sigma_min}")
    return first, sigma_min


def clean_end(span: Span) -> float:
    """Where the model's clock reaches sigma = 0, or its last time where it does not."""
    end = getattr(span.process, "clean_time", None)
    return span.end if end is None else float(end)


@hookimpl
def sdesamplers_spacings() -> Sequence[Spacing]:
    """The spacings of this file."""
    even = [linspace, even_strides, own, distilled, leading, trailing, simple, sgm_uniform, quadratic]
    by_ratio = [logsnr, angle, kl_optimal, karras, power, flow_power, exponential, polyexponential, edm]
    return [*even, *by_ratio, beta, linear_quadratic, laplace, flow_shift, ays_sd1, ays_sdxl, ays_svd]
