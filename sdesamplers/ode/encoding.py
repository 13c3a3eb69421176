"""Encoding by the probability-flow ODE: data to latents and back, and interpolation between latents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import numbers, shown, suggest_keywords
from ..errors import UsageError
from ..io.datasets import Data
from ..models.base import Model
from ..pretrained.loading import as_model
from ..public import public
from ..registry.plugin import Sampler
from ..sampling.loop import Callback, Flag
from ..sampling.recipe import Recipe
from ..sampling.request import Conduct, Request, SamplerLike
from .integration import Encoding, OdeRun, check_companion, check_encoding, check_runnable, ode_recipe, own_recipe


@public
@suggest_keywords()
def encode(
    model: Model | str,
    x: Data | Encoding,
    sampler: str | Sampler | Recipe | Mapping[str, Any] | None = None,
    *,
    steps: int | None = None,
    nfe: int | None = None,
    spacing: str | None = None,
    spacing_options: dict[str, Any] | None = None,
    coordinates: str | None = None,
    batch_size: int | None = None,
    condition: Any = None,
    guidance_scale: float | None = None,
    callback: Callback | None = None,
    cancel: Flag | None = None,
    trajectory: bool = False,
    check_finite: bool = True,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Encoding:
    """Solve a model's probability-flow ODE from data to noise, x_0 to x_T, with any registered ODE sampler.

    The sampler and grid are those of sampling, in the opposite direction: from the smallest time on which the model was
    trained, where the state is alpha x_0, to the largest. `decode` is the inverse; the error of a round trip falls at
    the sampler's order. Exactly invertible samplers recover the data exactly, if `decode` is passed the `Encoding`
    itself.

    Args:
        model: a `Model`, or any argument of `load`.
        x: data (N, *shape) in the model's range, PIL images of the model's size, or an `Encoding` returned by `decode`,
            which is encoded with its own recipe (see `decode`). Data in [0, 1] for a model of [-1, 1] cannot be
            distinguished from valid data and are not detected.
        sampler: a name or a `Sampler`, `heun` by default; for a stochastic sampler, the options that turn its noise off
            are set.
        guidance_scale: 1 by default.
        steps, nfe, spacing, spacing_options, coordinates, **options: as in `sample`.
        batch_size, condition, callback, cancel, trajectory, check_finite, dtype: as in `sample`.

    Returns:
        an `Encoding` whose `samples` (N, *shape) are the latents in the model's coordinates, in float32, or in float64
        if x or the model has it.

    Raises:
        UsageError: invalid or conflicting arguments, data of another shape or type or far outside the model's range, or
            a sampler that does not follow the ODE or cannot run in this direction.
        NonFiniteError: the model's output or the latents are not finite.
        Cancelled: the run was stopped.
    """
    grid = Request("heun", steps, nfe, spacing, spacing_options, coordinates=coordinates, options=options)
    conduct = Conduct(1.0, callback, cancel, trajectory, check_finite=check_finite, dtype=dtype)
    return solve_ode(as_model(model), x, sampler, grid, conduct, condition, guidance_scale, batch_size, forward=True)


@public
@suggest_keywords()
def decode(
    model: Model | str,
    latents: Tensor | np.ndarray | Encoding,
    sampler: str | Sampler | Recipe | Mapping[str, Any] | None = None,
    *,
    steps: int | None = None,
    nfe: int | None = None,
    spacing: str | None = None,
    spacing_options: dict[str, Any] | None = None,
    coordinates: str | None = None,
    batch_size: int | None = None,
    condition: Any = None,
    guidance_scale: float | None = None,
    callback: Callback | None = None,
    cancel: Flag | None = None,
    trajectory: bool = False,
    check_finite: bool = True,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Encoding:
    """Solve the probability-flow ODE from latents to data, the inverse of `encode`.

    An `Encoding` is decoded with the sampler, options, grid, coordinates, condition and guidance scale that produced
    it, except for the arguments passed here. If `sampler` is passed, the sampler, options, grid and coordinates come
    from this call alone. Another grid or sampler decodes the same latents a little differently, within its own error;
    the second state of a pair (`bdia-ddim`, ...) cannot be used on another grid and is refused.

    Args:
        model: a `Model`, or any argument of `load`.
        latents: (N, *shape), or an `Encoding` returned by `encode`.
        steps, ..., **options: as in `encode`; the default sampler for a tensor is `heun`.

    Returns:
        an `Encoding` whose `samples` (N, *shape) are data.

    Raises:
        UsageError: as in `encode`, or an `Encoding` that already contains data, belongs to a model with another
            process, or has a second state that these arguments cannot use.
        NonFiniteError: the model's output or the data are not finite.
        Cancelled: the run was stopped.
    """
    grid = Request("heun", steps, nfe, spacing, spacing_options, coordinates=coordinates, options=options)
    conduct = Conduct(1.0, callback, cancel, trajectory, check_finite=check_finite, dtype=dtype)
    model = as_model(model)
    return solve_ode(model, latents, sampler, grid, conduct, condition, guidance_scale, batch_size, forward=False)


@public
def interpolate(a: Tensor, b: Tensor, shares: Sequence[float] | Tensor) -> Tensor:
    """Interpolate between latents on the great circle through them (slerp; Shoemake 1985), and between their lengths.

    Independent normal latents are nearly orthogonal and of nearly equal length; points of the straight line between
    them are shorter.

    Args:
        a, b: one latent each, of any shape.
        shares: (K,) positions between a and b, numbers from 0 to 1.

    Returns:
        (K, *shape), in the dtype of a.

    Raises:
        UsageError: latents of different shapes, opposite latents (no unique great circle joins them), or zeros.
    """
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        raise UsageError("interpolate takes two tensors, such as encoding.samples[0] and encoding.samples[1]")
    if a.shape != b.shape:
        raise UsageError(f"the latents must have the same shape, not {tuple(a.shape)} and {tuple(b.shape)}")
    first, last = a.double().flatten(), b.double().flatten()
    lengths = first.norm(), last.norm()
    if not float(lengths[0]) * float(lengths[1]):
        raise UsageError("a latent of zeros has no direction; pass noise latents")
    share = numbers("shares", shares, "(K,), such as [0, 0.5, 1]", dims=(1,)).to(first.device)
    if not bool(share.isfinite().all()):
        raise UsageError(f"shares must be a list of numbers, such as [0, 0.5, 1], not {shown(shares)}")
    share = share[:, None]
    u, v = first / lengths[0], last / lengths[1]
    # 2 atan2(|u - v|, |u + v|) is exact for small angles, unlike acos of the scalar product.
    angle = 2 * torch.atan2((u - v).norm(), (u + v).norm())
    if float(angle) > math.pi - 1e-6:
        raise UsageError(
            "the latents are opposite, so no unique great circle joins them; interpolate by way of a third latent"
        )
    if float(angle) < 1e-8:
        circle = u + share * (v - u)
    else:
        circle = (torch.sin((1 - share) * angle) * u + torch.sin(share * angle) * v) / torch.sin(angle)
    return (circle * ((1 - share) * lengths[0] + share * lengths[1])).view(-1, *a.shape).to(a.dtype)


def solve_ode(
    model: Model,
    x: Any,
    sampler: SamplerLike | None,
    request: Request,
    conduct: Conduct,
    condition: Any,
    guidance_scale: float | None,
    batch_size: int | None,
    *,
    forward: bool,
) -> Encoding:
    """`encode` (forward) or `decode`, with `sampler` or, by default, the request's sampler (`heun`).

    If `sampler` is None, arguments that the request does not set are taken from the recipe of an `Encoding`.
    """
    request = request if sampler is None else replace(request, sampler=sampler)
    if isinstance(x, Encoding):
        check_encoding(model, x, forward=forward)
        condition = x.condition if condition is None else condition
        guidance_scale = x.guidance_scale if guidance_scale is None else guidance_scale
    if isinstance(x, Encoding) and sampler is None:
        recipe, spec = own_recipe(model, x, request)
    else:
        recipe, spec = ode_recipe(model, request)
    check_runnable(model, recipe, spec, forward=forward)
    if isinstance(x, Encoding):
        check_companion(model, x, recipe, spec, forward=forward)
    if guidance_scale is not None:
        conduct = replace(conduct, guidance_scale=guidance_scale)
    return OdeRun(model, recipe, spec, conduct, forward=forward).solve(x, condition, batch_size)
