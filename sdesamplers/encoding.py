"""The probability-flow ODE the other way: data to latents and back, and the way between latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import UsageError
from .loop import Callback, Evaluator, Flag, count_evaluations, drive, model_state
from .models.base import Model
from .path import Path, Point
from .plugin import Sampler
from .recipe import Recipe, check_count, make_path, make_recipe, start_run
from .result import Part, Recorder, Result, join, join_trajectories
from .sampling import as_model
from .sde import GaussianProcess, expand

NOISIEST = 1e3
"""sigma/alpha where an encoding ends whose model goes on to alpha = 0: there lambda is infinite, and here the data are
a thousandth of the latent."""


def encode(
    model: Model | str,
    x: Tensor,
    sampler: str | Sampler = "heun",
    *,
    steps: int | None = None,
    nfe: int | None = None,
    spacing: str | None = None,
    spacing_options: dict[str, Any] | None = None,
    coordinates: str | None = None,
    batch_size: int | None = None,
    condition: Any = None,
    guidance_scale: float = 1.0,
    callback: Callback | None = None,
    cancel: Flag | None = None,
    trajectory: bool = False,
    check_finite: bool = True,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Result:
    """Run a model's probability-flow ODE from data to noise, x_0 to x_T, with any registered ODE sampler.

    The sampler is the one that samples, on the same grid walked the other way: from the smallest time that the model
    was trained at, where the data stand as alpha x_0, to the largest. `decode` is the way back; the error of a round
    trip falls at the sampler's order (`bdia-ddim` comes back exactly).

    Args:
        model: a `Model`, or what `load` takes.
        x: data (N, *shape) in the model's range.
        sampler: a name or a `Sampler`; the options that turn a stochastic one's noise off are set.
        steps, nfe, spacing, spacing_options, coordinates, batch_size, condition, guidance_scale, callback, cancel,
        trajectory, check_finite, dtype, **options: as in `sample`.

    Returns:
        a `Result` whose `samples` (N, *shape) are the latents, in the model's own coordinates.

    Raises:
        UsageError: words that do not fit, or a sampler that follows no ODE.
    """
    words: dict[str, Any] = {"spacing": spacing, "spacing_options": spacing_options, "coordinates": coordinates}
    shared: dict[str, Any] = {"batch_size": batch_size, "condition": condition, "guidance_scale": guidance_scale}
    shared |= {"callback": callback, "cancel": cancel, "trajectory": trajectory, "check_finite": check_finite}
    model = as_model(model)
    recipe, spec = ode_recipe(model, sampler, options, steps=steps, nfe=nfe, **words)
    return integrate(model, recipe, spec, x, forward=True, dtype=dtype, **shared)


def decode(
    model: Model | str,
    latents: Tensor,
    sampler: str | Sampler = "heun",
    *,
    steps: int | None = None,
    nfe: int | None = None,
    spacing: str | None = None,
    spacing_options: dict[str, Any] | None = None,
    coordinates: str | None = None,
    batch_size: int | None = None,
    condition: Any = None,
    guidance_scale: float = 1.0,
    callback: Callback | None = None,
    cancel: Flag | None = None,
    trajectory: bool = False,
    check_finite: bool = True,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Result:
    """The way back of `encode`, with the same words: latents (N, *shape) to data."""
    words: dict[str, Any] = {"spacing": spacing, "spacing_options": spacing_options, "coordinates": coordinates}
    shared: dict[str, Any] = {"batch_size": batch_size, "condition": condition, "guidance_scale": guidance_scale}
    shared |= {"callback": callback, "cancel": cancel, "trajectory": trajectory, "check_finite": check_finite}
    model = as_model(model)
    recipe, spec = ode_recipe(model, sampler, options, steps=steps, nfe=nfe, **words)
    return integrate(model, recipe, spec, latents, forward=False, dtype=dtype, **shared)


def interpolate(a: Tensor, b: Tensor, shares: Sequence[float] | Tensor) -> Tensor:
    """Points between latents on the great circle through them (slerp; Shoemake 1985), their lengths interpolated too.

    Independent normal latents are nearly orthogonal and of one length, which the straight line between them leaves.

    Args:
        a, b: one latent each, of any shape.
        shares: how far from a to b, numbers from 0 to 1, (K,).

    Returns:
        (K, *shape).
    """
    if a.shape != b.shape:
        raise UsageError(f"latents of one shape are needed, not {tuple(a.shape)} and {tuple(b.shape)}")
    first, last = a.double().flatten(), b.double().flatten()
    lengths = first.norm(), last.norm()
    u, v = first / lengths[0], last / lengths[1]
    # 2 atan2(|u - v|, |u + v|): exact where the angle is small, unlike acos of the scalar product.
    angle = 2 * torch.atan2((u - v).norm(), (u + v).norm())
    share = torch.as_tensor(shares, dtype=torch.float64)[:, None]
    if float(angle) < 1e-8:
        circle = u + share * (v - u)
    else:
        circle = (torch.sin((1 - share) * angle) * u + torch.sin(share * angle) * v) / torch.sin(angle)
    return (circle * ((1 - share) * lengths[0] + share * lengths[1])).view(-1, *a.shape).to(a.dtype)


def ode_recipe(model: Model, sampler: str | Sampler, options: dict[str, Any], **words: Any) -> tuple[Recipe, Sampler]:
    """A recipe for the ODE: the sampler's noise turned off, the grid ending at the smallest sigma.

    Raises:
        UsageError: the sampler follows no ODE, or needs what only sampling gives.
    """
    recipe, spec = make_recipe(sampler, process=model.process, options=options, final="min", shape=model.shape, **words)
    if spec.stochastic and spec.noiseless is None:
        raise UsageError(f"{spec.name} draws noise and has no ODE inside; take an ODE sampler, such as heun or rk45")
    if set(spec.needs) & {"log_density", "stationary"}:
        raise UsageError(f"{spec.name} does not follow the probability-flow ODE; take heun or rk45")
    silent = {name: value for name, value in (spec.noiseless or {}).items() if name not in options}
    return replace(recipe, options={**recipe.options, **silent}), spec


def ode_path(model: Model, recipe: Recipe, *, forward: bool) -> Path:
    """The path of an encoding (forward) or of its way back, between the same two finite ends."""
    path = make_path(model.process, recipe)
    points = [*path.points]
    if points[0].is_pure_noise:
        points = [path.at_ratio(NOISIEST), *(p for p in points if not p.is_pure_noise and p.ratio < NOISIEST)]
    return Path(path.process, points[::-1] if forward else points, is_free=path.is_free)


def check_walkable(model: Model, recipe: Recipe, spec: Sampler, *, forward: bool) -> None:
    """Raise a UsageError where a sampler's coefficients do not exist on a path, found by a dry run on zeros."""
    path = ode_path(model, recipe, forward=forward)
    if path.is_free or spec.evaluations is None:
        return
    try:
        count_evaluations(start_run(spec, torch.zeros(1, 1), path, recipe.options))
    except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        if isinstance(error, UsageError) and "noise source" not in str(error):
            raise
        way = "from data to noise" if forward else "from noise to data"
        raise UsageError(f"{spec.name} cannot be walked {way} on this grid ({error}); heun, rk4 or rk45 can") from None


def integrate(
    model: Model,
    recipe: Recipe,
    spec: Sampler,
    x: Tensor,
    *,
    forward: bool,
    batch_size: int | None = None,
    condition: Any = None,
    guidance_scale: float = 1.0,
    callback: Callback | None = None,
    cancel: Flag | None = None,
    trajectory: bool = False,
    check_finite: bool = True,
    dtype: torch.dtype | None = None,
) -> Result:
    """Solve the ODE from x (N, *shape), data or latents, to the other end."""
    x = torch.as_tensor(x)
    if tuple(x.shape[1:]) != model.shape or not x.is_floating_point() or not len(x):
        what = "data" if forward else "latents"
        raise UsageError(f"{what} must be floating-point numbers of shape (N, {', '.join(map(str, model.shape))})")
    if dtype not in (None, torch.float32, torch.float64):
        raise UsageError(f"dtype is that of the state and must be torch.float32 or torch.float64, not {dtype}")
    count = len(x)
    batch_size = min(batch_size or count, count)
    check_count("batch_size", batch_size)
    check_walkable(model, recipe, spec, forward=forward)
    state = dtype or torch.promote_types(torch.promote_types(x.dtype, torch.float32), model.dtype)
    spread = model.condition_for(condition, count)
    parts = []
    for first in range(0, count, batch_size):
        rows = slice(first, min(first + batch_size, count))
        path = ode_path(model, recipe, forward=forward)
        y = x[rows].to(device=model.device, dtype=state)
        y = to_path(y, path.points[0], data=forward)
        recorder = Recorder(len(y)) if trajectory else None
        evaluator = Evaluator(
            model,
            len(y),
            f"{spec.name} on {model.name}",
            condition=None if spread is None else spread[rows],
            guidance_scale=guidance_scale,
            check_finite=check_finite,
            both="unguided" in spec.needs,
            callback=callback,
            cancel=cancel,
            record=recorder,
        )
        with torch.no_grad():  # not inference mode: a model may differentiate itself
            end = drive(start_run(spec, y, path, recipe.options), evaluator)
            end = from_path(end, path.points[-1], data=not forward)
        parts.append(Part.of(end, evaluator.nfe, path, recorder, y))
    return Result(
        samples=torch.cat([part.samples for part in parts]),
        nfe_per_sample=np.concatenate([part.nfe for part in parts]),
        recipe=recipe,
        seed=0,
        indices=list(range(count)),
        model_name=model.name,
        revision=model.revision,
        data_range=None if forward else model.data_range,
        condition=spread,
        guidance_scale=guidance_scale,
        sampler=spec,
        trajectory=join_trajectories(parts) if trajectory else None,
        **{word: join([getattr(part, word) for part in parts]) for word in Part.OPTIONAL},
    )


def to_path(x: Tensor, point: Point, *, data: bool) -> Tensor:
    """A path's first state: data stand there as alpha x_0, latents as they are in the model's coordinates."""
    gaussian = isinstance(point.process, GaussianProcess)
    factor = point.alpha if data and gaussian else point.scale
    return x * expand(factor, x)


def from_path(x: Tensor, point: Point, *, data: bool) -> Tensor:
    """The inverse of `to_path` at the path's last point."""
    if data and isinstance(point.process, GaussianProcess):
        return x / expand(point.alpha, x)
    return model_state(x, point)
