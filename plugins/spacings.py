"""Spacings: each returns `count` decreasing times of the process, from span.start to span.end.

Some are published without the last, cleanest point and end earlier, as their docstrings say. From its last point the
run steps to sigma = 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from sdesamplers import EDM, DiscreteVP, GaussianProcess, Spacing, Span, hookimpl, spacing


@spacing("linspace", reference="Song et al. 2021, section 4; diffusers' timestep_spacing='linspace' unrounded")
def linspace(span: Span, count: int) -> np.ndarray:
    """Equal steps of native time, both ends included."""
    return np.linspace(span.start, span.end, count)


@spacing("even", reference="Lin et al. 2024, table 2; in sigma^(1/7), Karras et al. 2022, eq. 5", reaches="start")
def even_strides(span: Span, count: int) -> np.ndarray:
    """Equal steps from the noise end down to sigma = 0, so that no evaluation is spent next to sigma = 0.

    The steps are equal in native time, or in sigma^(1/7) if native time is sigma (EDM). For a run that ends at the
    smallest sigma both ends are included, as in `linspace`.
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


@spacing("own", reference="the configuration of the scheduler that the model came with", reaches="start")
def own(span: Span, count: int) -> np.ndarray:
    """The grid of the model's authors, from the spacing, offset and sigmas in the model's configuration.

    This is the default of samplers that do not declare a spacing. If the model has no configuration, or the authors'
    grid does not exist for this number of steps (such as more steps than timesteps), it is `even`.
    """
    model = span.model
    authors_grid = model.own_grid if isinstance(model, GaussianProcess) else None
    times = None if authors_grid is None else authors_grid.times(count if span.ends_clean else count - 1)
    if times is None or (not span.ends_clean and times[-1] <= span.end):
        return even_strides(span, count)
    if isinstance(model, GaussianProcess) and span.process is not model:
        times = np.asarray(span.gaussian.time_at_ratio(model.ratio(times)))
    return np.asarray(times) if span.ends_clean else np.append(times, span.end)


@spacing(
    "distilled", reference="Luo et al. 2023, section 4.3 (skipping steps); diffusers' LCMScheduler", reaches="start"
)
def distilled(span: Span, count: int, *, teacher_steps: int | None = None) -> np.ndarray:
    """The timesteps that a model was distilled at: every (teacher_steps / count)-th of k - 1, 2k - 1, ..., N - 1.

    k = N // teacher_steps for a process with N discrete timesteps. For example, 4 of 50 with N = 1000 are 999, 759, 499
    and 259. With more steps than teacher_steps it is `even`. For continuous processes, it is the authors' grid if the
    model is distilled, else `even`.

    Args:
        teacher_steps: number of timesteps that the model was distilled at (diffusers' original_inference_steps); by
            default the value in the model's configuration, or 50.
    """
    model = span.model
    authors_grid = model.own_grid if isinstance(model, GaussianProcess) else None
    if not isinstance(span.process, DiscreteVP):
        return own(span, count) if authors_grid is not None and authors_grid.is_distilled else even_strides(span, count)
    total = round(span.process.t_max) + 1
    if teacher_steps is None:
        teacher_steps = min(total, (authors_grid.teacher_steps if authors_grid is not None else None) or 50)
    if not 1 <= teacher_steps <= total:
        raise ValueError(
            f"teacher_steps must lie between 1 and {total}, the number of timesteps of the process, not {teacher_steps}"
        )
    stride = total // teacher_steps
    available = min(teacher_steps, math.floor((span.start + 1) / stride))
    needed = count if span.ends_clean else count - 1
    if not 0 < needed <= available:
        return even_strides(span, count)
    skipped = np.floor(np.linspace(0, available, needed, endpoint=False))
    times = (available - skipped) * stride - 1
    times[0] = span.start
    return times if span.ends_clean else np.append(times, span.end)


@spacing("leading", reference="Ho et al. 2020; Lin et al. 2024, table 2", reaches="end")
def leading(span: Span, count: int, *, offset: int | None = None) -> np.ndarray:
    """Equal strides counted from the data end, t_i = i * stride + offset, without the noisiest point.

    With N discrete timesteps the stride is the integer N // count, as in diffusers.

    Args:
        offset: in timesteps, 0 by default; for discrete timesteps only.
    """
    if isinstance(span.process, DiscreteVP):
        stride = (span.start + 1) // count
        return np.arange(count)[::-1] * stride + (offset or 0)
    if offset is not None:
        raise ValueError("offset is a number of discrete timesteps, and this process is continuous in time")
    stride = (span.start - span.end) / count
    return span.end + np.arange(count)[::-1] * stride


@spacing("trailing", reference="Lin et al. 2024, table 2", reaches="start")
def trailing(span: Span, count: int) -> np.ndarray:
    """Equal strides counted from the noise end, t_i = t_max - i * stride, rounded if timesteps are discrete.

    One more stride would lead to sigma = 0, or to span.end if native time does not reach sigma = 0.
    """
    if isinstance(span.process, DiscreteVP):
        total = span.start + 1
        return np.round(total - np.arange(count) * total / count) - 1
    return span.start - np.arange(count) * (span.start - clean_end(span)) / count


@spacing("simple", reference="ComfyUI's and A1111's grid of this name", reaches="start")
def simple(span: Span, count: int) -> np.ndarray:
    """Trailing strides rounded up, t_i = N - 1 - floor(i N / count) for N discrete timesteps.

    It is the same as `trailing` if count divides N, and for continuous processes. The last point is left out.
    """
    if isinstance(span.process, DiscreteVP):
        total = math.floor(span.start) + 1
        return span.start - np.arange(count) * total // count
    return trailing(span, count)


@spacing(
    "sgm-uniform", reference="the grid of Stability's generative-models, by ComfyUI's and A1111's name", reaches="start"
)
def sgm_uniform(span: Span, count: int) -> np.ndarray:
    """count + 1 equally spaced native times without the last: trailing strides that are not rounded."""
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
    """Equal steps of lambda = log(alpha/sigma), half the log-SNR.

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
    """Equal steps of arctan(sigma / (alpha c)), the best grid for a first-order ODE solver on N(0, c^2) data.

    With c = 1 it is `angle`.

    Args:
        data_std: c, the standard deviation of the data.
    """
    if not 0 < data_std < math.inf:
        raise ValueError(f"data_std must be positive, not {data_std}")
    first, last = np.arctan(np.divide(span.ratios(finite=False), data_std))
    return from_ratios(span, data_std * np.tan(np.linspace(first, last, count)))


@spacing("karras", reference="Karras et al. 2022, eq. 5")
def karras(span: Span, count: int, *, rho: float = 7.0, sigma_min: float | None = None) -> np.ndarray:
    """Equal steps of (sigma/alpha)^(1/rho), EDM's grid.

    Args:
        rho: larger values make the grid denser at small sigma.
        sigma_min: sigma/alpha of the last point before the step to sigma = 0; by default the model's smallest.
    """
    if rho == 0:
        raise ValueError("rho must not be 0")
    first, last = np.power(ending_at(sigma_min, span), 1 / rho)
    return span.at_ratios(np.linspace(first, last, count) ** rho)


@spacing(
    "power", reference="studies/work_precision.py; with rho = 7 on EDM, Karras et al. 2022, eq. 5", reaches="start"
)
def power(span: Span, count: int, *, rho: float = 1.0, last: float = 1 / 3) -> np.ndarray:
    """Equal steps of t^(1/rho) that end early if the steps are few.

    t is native time, or sigma^(1/7) if native time is sigma (EDM). The last point is a fraction `last` of a step above
    t = 0, or span.end if that is larger: the run steps from there to sigma = 0, and a small number of points is better
    used at earlier times.

    Args:
        rho: larger values make the grid denser towards the data; 1 for equal steps of t.
        last: from 0 to 1, the distance of the last point from t = 0 in units of a step.
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


@spacing(
    "flow-power",
    reference="Karras et al. 2022, eq. 5, in sigma/(alpha + sigma); studies/work_precision.py",
    reaches="start",
)
def flow_power(span: Span, count: int, *, rho: float = 1.5) -> np.ndarray:
    """Equal steps of tau^(1/rho), where tau = sigma/(alpha + sigma) is the time of a flow model.

    It is dense at intermediate noise levels, where samples settle on a mode. One more step would reach tau = 0; the
    grid does not go below span.end.

    Args:
        rho: larger values make the grid denser at small tau; `karras` uses the same rule in sigma/alpha.
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
    """Equal steps of log(sigma/alpha): `logsnr` under its name in k-diffusion.

    Args:
        sigma_min: sigma/alpha of the last point before the step to sigma = 0; by default the model's smallest.
    """
    return logsnr(span, count, sigma_min=sigma_min)


@spacing("polyexponential", reference="k-diffusion's polynomial in log(sigma)")
def polyexponential(span: Span, count: int, *, rho: float = 1.0, sigma_min: float | None = None) -> np.ndarray:
    """log(sigma/alpha) decreases as the power rho of the remaining fraction of the steps.

    Args:
        rho: the power; 1 is `exponential`.
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
    """The time steps of a column of Karras et al.'s table 1, on the model's range of sigma/alpha.

    "edm" has equal steps of sigma^(1/rho); "vp" equal steps of t, sigma(t)^2 = exp(19.9 t^2 / 2 + 0.1 t) - 1;
    "ve" equal steps of log sigma^2; "iddpm" equal steps of the index j of iDDPM's cosine schedule,
    sigma_j^2 = abar_M / abar_j - 1 with abar_j = sin^2(pi/2 * j / (M (C_2 + 1))) and C_2 = 0.008, without rounding to
    one of its M = 1000 integers.

    Args:
        column: the column of the table.
        rho: exponent of the column "edm", 7 by default; not allowed for the others.
    """
    if column == "edm":
        return karras(span, count, rho=7.0 if rho is None else rho)
    if rho is not None:
        raise ValueError(f"rho applies to column='edm' only, not to {column!r}")
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
        # sqrt(widest^2 / sin^2 - 1) without cancellation at small sigma.
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
    """Equally spaced quantiles of a beta distribution over native time, denser at both ends by default.

    Args:
        alpha: first parameter of the beta distribution; alpha = beta = 1 gives `linspace`.
        beta: second parameter.
        axis: "time" for quantiles of native time, "sigma" for quantiles of sigma/alpha (diffusers' use_beta_sigmas,
            A1111).
        last: include the last point; False leaves it out, as in ComfyUI.
    """
    from scipy.stats import beta as distribution  # scipy takes a second to import

    if alpha <= 0 or beta <= 0:
        raise ValueError(f"alpha and beta must be positive, not {alpha} and {beta}")
    levels = distribution.ppf(1 - np.linspace(0, 1, count if last else count + 1)[:count], alpha, beta)
    levels[0] = 1.0
    if axis == "time":
        return between(span.start, span.end, levels)
    return from_ratios(span, between(*span.ratios(), levels), ends=last)


@spacing("linear-quadratic", reference="Genmo 2024 (Mochi 1)", reaches="start")
def linear_quadratic(
    span: Span, count: int, *, threshold: float = 0.025, linear_steps: int | None = None
) -> np.ndarray:
    """Small equal steps first, then linearly growing steps: t = 1 - f(i) over n = count steps of a flow model's time.

    f(i) = threshold i / L for the first L steps, then a parabola that continues with the same slope and is 1 at n. The
    last point, t = 0, is left out.

    Args:
        threshold: the fraction of time that the equal steps cover.
        linear_steps: L, the number of equal steps; half of the steps by default.
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
            f"threshold may be at most {2 * linear / (count + linear):.3g} for {linear} equal steps of {count}, "
            f"not {threshold}"
        )
    done = slope * step + bend * np.square(np.maximum(step - linear, 0))
    return between(span.start, clean_end(span), 1 - done)


@spacing("laplace", reference="Hang & Gu 2024 (Improved noise schedule for diffusion training), table 1")
def laplace(span: Span, count: int, *, mu: float = 0.0, b: float = 0.5) -> np.ndarray:
    """Equally spaced quantiles of a Laplace distribution of log(alpha^2/sigma^2), densest around mu.

    The distribution is truncated at the model's ends, which are the first and last points. (Clamping quantiles to the
    ends instead, as other implementations do, makes several points coincide.)

    Args:
        mu: mean of the distribution, in log(alpha^2/sigma^2).
        b: scale of the distribution, in log(alpha^2/sigma^2). ComfyUI's beta is in log(sigma): b = 2 beta.
    """
    from scipy.stats import laplace as distribution  # scipy takes a second to import

    if b <= 0:
        raise ValueError(f"b must be positive, not {b}")
    ratios = np.asarray(span.ratios(finite=False))
    with np.errstate(divide="ignore"):
        first, last = -2 * np.log(ratios)
    # Above mu use the survival function, which is small there and so loses no precision.
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
    """Equal steps of u, shifted towards the noise: t = s u / (1 + (s - 1) u), with t = sigma/(alpha + sigma).

    t is the native time of a flow model; for other processes it is computed from alpha and sigma. The ends of the grid
    are not shifted.

    Args:
        shift: s; by default 3 (Stable Diffusion 3) unless mu or tokens is given.
        mu: sets s = exp(mu), or s = mu with law="linear", for a shift that depends on the resolution.
        tokens: number of image tokens, from which mu is computed on the straight line through (256, base_shift) and
            (4096, max_shift).
        law: "exponential" for s = exp(mu), "linear" for s = mu.
        base_shift: mu at 256 tokens, 0.5 by default (FLUX.1).
        max_shift: mu at 4096 tokens, 1.15 by default (FLUX.1).
    """
    if sum(value is not None for value in (shift, mu, tokens)) > 1:
        raise ValueError("pass only one of shift, mu and tokens")
    if tokens is None and not base_shift is max_shift is None:
        raise ValueError("base_shift and max_shift apply only together with tokens")
    if tokens is None and mu is None and law != "exponential":
        raise ValueError(f"law={law!r} applies only together with mu or tokens")
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
    """The first `count` of count + 1 sigmas, log-linearly interpolated in a published table of 10 steps."""
    table = np.asarray(AYS[name])
    ratios = np.exp(np.interp(np.linspace(0, 1, count + 1), np.linspace(0, 1, len(table)), np.log(table)))[:-1]
    first, last = span.ratios(finite=False)
    # The largest sigma of a model has more digits than the table's.
    if ratios[0] > first * 1.001 or ratios[-1] < last * 0.999:
        raise ValueError(
            f"this grid covers sigma from {ratios[0]:g} to {ratios[-1]:.3g}, which exceeds the range of sigma/alpha "
            f"here, from {first:.5g} to {last:.3g}"
        )
    return span.at_ratios(np.clip(ratios, last, first))


@spacing("ays-sd1", reference=AYS_REFERENCE, reaches="neither")
def ays_sd1(span: Span, count: int) -> np.ndarray:
    """Align Your Steps' sigmas for Stable Diffusion 1.5, from 14.615; the last one, 0.029, is left out."""
    return published(span, count, "ays-sd1")


@spacing("ays-sdxl", reference=AYS_REFERENCE, reaches="neither")
def ays_sdxl(span: Span, count: int) -> np.ndarray:
    """Align Your Steps' sigmas for Stable Diffusion XL, from 14.615; the last one, 0.029, is left out."""
    return published(span, count, "ays-sdxl")


@spacing("ays-svd", reference=AYS_REFERENCE, reaches="neither")
def ays_svd(span: Span, count: int) -> np.ndarray:
    """Align Your Steps' sigmas for Stable Video Diffusion, from 700; the last one, 0.002, is left out."""
    return published(span, count, "ays-svd")


def even(ends: np.ndarray, count: int) -> np.ndarray:
    """`count` equally spaced numbers from ends[0] to ends[1]."""
    return np.linspace(ends[0], ends[1], count)


def between(start: float, end: float, levels: np.ndarray) -> np.ndarray:
    """end + (start - end) levels, exactly `start` at level 1."""
    return np.where(levels == 1, start, end + (start - end) * levels)


def from_ratios(span: Span, ratios: np.ndarray, *, ends: bool = True) -> np.ndarray:
    """The times of these sigma/alpha, with the first set to span.start and, if `ends`, the last to span.end."""
    times = span.at_ratios(ratios)
    times[-1] = span.end if ends else times[-1]
    times[0] = span.start
    return times


def ending_at(sigma_min: float | None, span: Span) -> tuple[float, float]:
    """sigma/alpha at both ends of a grid whose last point is `sigma_min`, if given."""
    first, last = span.ratios()
    if sigma_min is None:
        return first, last
    if not last <= sigma_min < first:
        raise ValueError(
            f"sigma_min must lie in [{last:.4g}, {first:.4g}), the model's range of sigma/alpha, not {sigma_min}"
        )
    return first, sigma_min


def clean_end(span: Span) -> float:
    """The native time at which sigma = 0, or span.end if there is none."""
    end = getattr(span.process, "clean_time", None)
    return span.end if end is None else float(end)


@hookimpl
def sdesamplers_spacings() -> Sequence[Spacing]:
    """The spacings of this file."""
    even = [linspace, even_strides, own, distilled, leading, trailing, simple, sgm_uniform, quadratic]
    by_ratio = [logsnr, angle, kl_optimal, karras, power, flow_power, exponential, polyexponential, edm]
    return [*even, *by_ratio, beta, linear_quadratic, laplace, flow_shift, ays_sd1, ays_sdxl, ays_svd]
