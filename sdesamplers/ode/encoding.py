"""The probability-flow ODE the other way: data to latents and back, and the way between latents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import numbers, shown
from ..errors import UsageError
from ..io.datasets import Data
from ..models.base import Model
from ..pretrained.loading import as_model
from ..public import public
from ..registry.plugin import Sampler
from ..sampling.loop import Callback, Flag
from ..sampling.recipe import Recipe
from ..sampling.request import Conduct, Request, SamplerLike
from .integration import Encoding, Walk, check_companion, check_encoding, check_walkable, ode_recipe, own_recipe


@public
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
    """Run a model's probability-flow ODE from data to noise, x_0 to x_T, with any registered ODE sampler.

    The sampler is the one that samples, on the same grid walked the other way: from the smallest time that the model
    was trained at, where the data stand as alpha x_0, to the largest. `decode` is the way back; the error of a round
    trip falls at the sampler's order. Exactly invertible samplers come back exactly: give `decode` the `Encoding`
    itself.

    Args:
        model: a `Model`, or what `load` takes.
        x: data (N, *shape) in the model's range, PIL images of the model's size, or what `decode` returned, which is
            taken back as `decode` takes an `Encoding`. Numbers from 0 to 1 for a model of [-1, 1] cannot be told from
            its data and are not noticed.
        sampler: a name or a `Sampler`, `heun` by default; the options that turn a stochastic one's noise off are set.
        guidance_scale: 1 by default.
        steps, nfe, spacing, spacing_options, coordinates, batch_size, condition, callback, cancel, trajectory,
        check_finite, dtype, **options: as in `sample`.

    Returns:
        an `Encoding` whose `samples` (N, *shape) are the latents, in the model's own coordinates, in float32 or in x's
        or the model's float64.

    Raises:
        UsageError: words that do not fit, data of another shape or kind or far outside the model's range, or a sampler
            that follows no ODE or cannot be walked this way.
        NonFiniteError: the model or solver broke down.
        Cancelled: the run was stopped.
    """
    grid = Request("heun", steps, nfe, spacing, spacing_options, coordinates=coordinates, options=options)
    conduct = Conduct(1.0, callback, cancel, trajectory, check_finite=check_finite, dtype=dtype)
    return walk(as_model(model), x, sampler, grid, conduct, condition, guidance_scale, batch_size, forward=True)


@public
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
    """The way back of `encode`: latents to data.

    An `Encoding` goes back as it came. Its sampler, options, grid and coordinates are used, with the words that are
    given in place of its own; its condition and guidance scale too, unless others are given. A `sampler` that is given
    starts afresh, with this call's words alone. Another grid or sampler decodes the same latents a little differently,
    by its own error; a pair of states (`bdia-ddim`, ...) means nothing to another grid and is refused there.

    Args:
        model: a `Model`, or what `load` takes.
        latents: (N, *shape), or what `encode` returned.
        steps, ..., **options: as in `encode`, `heun` being the default for a tensor.

    Returns:
        an `Encoding` whose `samples` are data.

    Raises:
        UsageError: besides what `encode` raises, an `Encoding` that holds data already, or of a model with another
            process, or with a second state that these words cannot take back.
    """
    grid = Request("heun", steps, nfe, spacing, spacing_options, coordinates=coordinates, options=options)
    conduct = Conduct(1.0, callback, cancel, trajectory, check_finite=check_finite, dtype=dtype)
    return walk(as_model(model), latents, sampler, grid, conduct, condition, guidance_scale, batch_size, forward=False)


@public
def interpolate(a: Tensor, b: Tensor, shares: Sequence[float] | Tensor) -> Tensor:
    """Points between latents on the great circle through them (slerp; Shoemake 1985), their lengths interpolated too.

    Independent normal latents are nearly orthogonal and of one length, which the straight line between them leaves.

    Args:
        a, b: one latent each, of any shape.
        shares: how far from a to b, numbers from 0 to 1, (K,).

    Returns:
        (K, *shape), of a's dtype.

    Raises:
        UsageError: latents of different shapes, opposite ones, which no one great circle joins, or zeros.
    """
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        raise UsageError("interpolate takes two tensors, such as encoding.samples[0] and encoding.samples[1]")
    if a.shape != b.shape:
        raise UsageError(f"latents of one shape are needed, not {tuple(a.shape)} and {tuple(b.shape)}")
    first, last = a.double().flatten(), b.double().flatten()
    lengths = first.norm(), last.norm()
    if not float(lengths[0]) * float(lengths[1]):
        raise UsageError("a latent of zeros has no direction; give latents of noise")
    share = numbers("shares", shares, "(K,), such as [0, 0.5, 1]", dims=(1,)).to(first.device)
    if not bool(share.isfinite().all()):
        raise UsageError(f"shares must be a list of numbers, such as [0, 0.5, 1], not {shown(shares)}")
    share = share[:, None]
    u, v = first / lengths[0], last / lengths[1]
    # 2 atan2(|u - v|, |u + v|): exact where the angle is small, unlike acos of the scalar product.
    angle = 2 * torch.atan2((u - v).norm(), (u + v).norm())
    if float(angle) > math.pi - 1e-6:
        raise UsageError("the latents are opposite, and every great circle through one meets the other; go by a third")
    if float(angle) < 1e-8:
        circle = u + share * (v - u)
    else:
        circle = (torch.sin((1 - share) * angle) * u + torch.sin(share * angle) * v) / torch.sin(angle)
    return (circle * ((1 - share) * lengths[0] + share * lengths[1])).view(-1, *a.shape).to(a.dtype)


def walk(
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
    """`encode` (forward) or `decode`, by `heun` or a sampler that is given.

    Without one, an `Encoding` goes as it came where the request leaves it open.
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
    check_walkable(model, recipe, spec, forward=forward)
    if isinstance(x, Encoding):
        check_companion(model, x, recipe, spec, forward=forward)
    if guidance_scale is not None:
        conduct = replace(conduct, guidance_scale=guidance_scale)
    return Walk(model, recipe, spec, conduct, forward=forward).walk(x, condition, batch_size)
