"""The probability-flow ODE the other way: data to latents and back, and the way between latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import UsageError
from .loop import Callback, Evaluator, Flag, count_evaluations, drive, model_state
from .models.base import Model
from .pairs import PairLedger
from .path import Ledger, Path, Point
from .plugin import Sampler
from .recipe import Recipe, check_count, make_path, make_recipe, start_run
from .result import Part, Recorder, Result, join, join_trajectories
from .sampling import as_model
from .sde import GaussianProcess, expand

NOISIEST = 1e5
"""sigma/alpha where an encoding ends whose model goes on to alpha = 0: there lambda is infinite, and here the data are
a hundred-thousandth of the latent, so that a likelihood misses 1e-5 nats a dimension and standard deviation."""


@dataclass(eq=False, repr=False)
class Encoding(Result):
    """What `encode` and `decode` return: a `Result` whose samples are the other end of the ODE.

    Attributes:
        companion: (N, *shape), the second state of a sampler that walks a pair of them (`bdia-ddim`, `reversible-heun`,
            `reversible-midpoint`); None from any other. With it the way back is exact.
    """

    companion: Tensor | None = None


def encode(
    model: Model | str,
    x: Tensor | Encoding,
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
) -> Encoding:
    """Run a model's probability-flow ODE from data to noise, x_0 to x_T, with any registered ODE sampler.

    The sampler is the one that samples, on the same grid walked the other way: from the smallest time that the model
    was trained at, where the data stand as alpha x_0, to the largest. `decode` is the way back; the error of a round
    trip falls at the sampler's order. Exactly invertible samplers come back exactly: give `decode` the `Encoding`
    itself, and the same grid.

    Args:
        model: a `Model`, or what `load` takes.
        x: data (N, *shape) in the model's range, or what `decode` returned.
        sampler: a name or a `Sampler`; the options that turn a stochastic one's noise off are set.
        steps, nfe, spacing, spacing_options, coordinates, batch_size, condition, guidance_scale, callback, cancel,
        trajectory, check_finite, dtype, **options: as in `sample`.

    Returns:
        an `Encoding` whose `samples` (N, *shape) are the latents, in the model's own coordinates, in float32 or in x's
        or the model's float64.

    Raises:
        UsageError: words that do not fit, or a sampler that follows no ODE or cannot be walked this way.
        NonFiniteError: the model or solver broke down.
        Cancelled: the run was stopped.
    """
    words: dict[str, Any] = {"steps": steps, "nfe": nfe, "spacing": spacing, "spacing_options": spacing_options}
    shared: dict[str, Any] = {"batch_size": batch_size, "condition": condition, "guidance_scale": guidance_scale}
    shared |= {"callback": callback, "cancel": cancel, "trajectory": trajectory, "check_finite": check_finite}
    model = as_model(model)
    recipe, spec = ode_recipe(model, sampler, options, coordinates=coordinates, **words)
    return integrate(model, recipe, spec, x, forward=True, dtype=dtype, **shared)


def decode(
    model: Model | str,
    latents: Tensor | Encoding,
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
) -> Encoding:
    """The way back of `encode`, with the same words: latents (N, *shape), or an `Encoding`, to data."""
    words: dict[str, Any] = {"steps": steps, "nfe": nfe, "spacing": spacing, "spacing_options": spacing_options}
    shared: dict[str, Any] = {"batch_size": batch_size, "condition": condition, "guidance_scale": guidance_scale}
    shared |= {"callback": callback, "cancel": cancel, "trajectory": trajectory, "check_finite": check_finite}
    model = as_model(model)
    recipe, spec = ode_recipe(model, sampler, options, coordinates=coordinates, **words)
    return integrate(model, recipe, spec, latents, forward=False, dtype=dtype, **shared)


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
    if a.shape != b.shape:
        raise UsageError(f"latents of one shape are needed, not {tuple(a.shape)} and {tuple(b.shape)}")
    first, last = a.double().flatten(), b.double().flatten()
    lengths = first.norm(), last.norm()
    if not float(lengths[0]) * float(lengths[1]):
        raise UsageError("a latent of zeros has no direction; give latents of noise")
    share = torch.as_tensor(shares, dtype=torch.float64, device=first.device)
    if share.dim() != 1:
        raise UsageError(f"shares must be a list of numbers, such as [0, 0.5, 1], not {shares!r}")
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


def ode_path(model: Model, recipe: Recipe, *, forward: bool, ledger: Ledger | None = None) -> Path:
    """The path of an encoding (forward) or of its way back, between the same two finite ends."""
    path = make_path(model.process, recipe)
    points = [*path.points]
    if points[0].is_pure_noise:
        points = [path.at_ratio(NOISIEST), *(p for p in points if not p.is_pure_noise and p.ratio < NOISIEST)]
    return Path(path.process, points[::-1] if forward else points, is_free=path.is_free, ledger=ledger)


def check_walkable(model: Model, recipe: Recipe, spec: Sampler, *, forward: bool) -> None:
    """Raise a UsageError where a sampler's coefficients do not exist on a path, found by a dry run on zeros.

    One that draws noise on the way back (ddim with eta = 1) draws none forwards, and would make latents that it cannot
    decode.
    """
    path = ode_path(model, recipe, forward=forward)
    if path.is_free or spec.evaluations is None:
        return
    if forward:
        check_walkable(model, recipe, spec, forward=False)
    try:
        count_evaluations(start_run(spec, torch.zeros(1, 1), path, recipe.options))
    except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        if not forward:
            raise
        raise UsageError(
            f"{spec.name} cannot be walked from data to noise on this grid ({error}); heun, rk4 or rk45 can"
        ) from None


def integrate(
    model: Model,
    recipe: Recipe,
    spec: Sampler,
    x: Tensor | Encoding,
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
) -> Encoding:
    """Solve the ODE from x (N, *shape), data or latents, to the other end."""
    companion = x.companion if isinstance(x, Encoding) else None
    x = as_states(model, x.samples if isinstance(x, Encoding) else x, "data" if forward else "latents")
    if dtype not in (None, torch.float32, torch.float64):
        raise UsageError(f"dtype is that of the state and must be torch.float32 or torch.float64, not {dtype}")
    count = len(x)
    check_count("batch_size", count if batch_size is None else batch_size)
    batch_size = min(batch_size or count, count)
    check_walkable(model, recipe, spec, forward=forward)
    state = dtype or torch.promote_types(torch.promote_types(x.dtype, torch.float32), model.dtype)
    spread = model.condition_for(condition, count)
    parts, companions = [], []
    for first in range(0, count, batch_size):
        rows = slice(first, min(first + batch_size, count))
        given = None if companion is None else companion[rows].to(device=model.device, dtype=state)
        ledger = PairLedger()
        path = ode_path(model, recipe, forward=forward, ledger=ledger)
        y = to_path(x[rows].to(device=model.device, dtype=state), path.points[0], data=forward)
        # Once the sampler has taken its companion the ledger holds None, and at the end what the sampler leaves.
        ledger.companion = None if given is None else to_path(given, path.points[0], data=forward)
        given = ledger.companion
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
            left = None if ledger.companion is given else ledger.companion
            companions.append(None if left is None else from_path(left, path.points[-1], data=not forward).cpu())
        parts.append(Part.of(end, evaluator.nfe, path, recorder, y))
    return Encoding(
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
        decoder=None if forward or type(model).decode is Model.decode else model.decode,
        decoded_range=None if forward else model.decoded_range,
        companion=join(companions),
        **{word: join([getattr(part, word) for part in parts]) for word in Part.OPTIONAL},
    )


def as_states(model: Model, x: Any, what: str) -> Tensor:
    """x as floating-point states (N, *shape) of a model, or a UsageError that says what it should have been."""
    x = torch.as_tensor(x)
    if tuple(x.shape[1:]) != model.shape or not x.is_floating_point() or not len(x):
        wanted = ", ".join(map(str, ("N", *model.shape)))
        found = f"{x.dtype} of shape {tuple(x.shape)}"
        raise UsageError(f"{what} must be floating-point numbers of shape ({wanted}), N at least 1, not {found}")
    return x


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
