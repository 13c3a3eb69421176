"""A model's ODE between data and noise, walked either way by any sampler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..checks import flag, number, whole
from ..errors import UsageError
from ..io.datasets import as_states
from ..models.base import Model
from ..models.conditions import cut
from ..models.running import running
from ..path.pairs import PairLedger
from ..path.path import Ledger, Path
from ..path.points import Point, model_state
from ..processes.scalars import expand
from ..processes.sde import GaussianProcess
from ..public import public
from ..registry.plugin import Sampler
from ..registry.registry import default_registry
from ..sampling.arguments import make_recipe
from ..sampling.loop import Callback, Evaluator, Flag, drive
from ..sampling.parts import Part, Recorder, join, join_trajectories
from ..sampling.prepared import check_run_words, warn_if_far
from ..sampling.recipe import Recipe
from ..sampling.result import Result, check_process, process_ends
from ..sampling.runs import count_evaluations, make_path, start_run

NOISIEST = 1e5
"""sigma/alpha where an encoding ends whose model goes on to alpha = 0: there lambda is infinite, and here the data are
a hundred-thousandth of the latent, so that a likelihood misses 1e-5 nats a dimension and standard deviation."""


@public
@dataclass(eq=False, repr=False)
class Encoding(Result):
    """What `encode` and `decode` return: a `Result` whose samples are the other end of the ODE.

    Attributes:
        companion: (N, *shape), the second state of a sampler that walks a pair of them (`bdia-ddim`, `reversible-heun`,
            `reversible-midpoint`); None from any other. With it the way back is exact.
        holds: what `samples` are, "latents" from `encode`, "data" from `decode`.
    """

    companion: Tensor | None = None
    holds: Literal["data", "latents"] = "latents"


def own_recipe(model: Model, x: Encoding, options: dict[str, Any], words: dict[str, Any]) -> tuple[Recipe, Sampler]:
    """An encoding's recipe, with the options and words that are given in place of its own."""
    own = x.recipe
    spec = x.sampler or default_registry().resolve(own.sampler).sampler
    given = {word: value for word, value in words.items() if value is not None}
    if not given and not options:
        return own, spec
    kept: dict[str, Any] = {"coordinates": own.coordinates}
    if own.steps is not None and "spacing" not in given:
        kept |= {"spacing": own.spacing, "spacing_options": own.spacing_options}
    counted = bool({"steps", "nfe"} & {*given})
    if not counted:
        kept["steps"] = own.steps
    # Tolerances are those of free steps, and mean nothing on a grid.
    past = {name: value for name, value in own.options.items() if not (counted and name in spec.control)}
    return ode_recipe(model, spec, {**past, **options}, **{**kept, **given})


def check_encoding(model: Model, x: Encoding, *, forward: bool) -> None:
    """Raise a UsageError where an encoding cannot be taken this way by this model."""
    call, back = ("encode", "decode") if forward else ("decode", "encode")
    if x.holds != ("data" if forward else "latents"):
        raise UsageError(f"these are {x.holds} already; {back} is the way from there, or give {call} their .samples")
    check_process(x, model, f"; {call} it with its own model, or give {call} its .samples")


def check_companion(model: Model, x: Encoding, recipe: Recipe, spec: Sampler, *, forward: bool) -> None:
    """Raise a UsageError where a sampler would take a second state that belongs to another grid or sampler."""
    if x.companion is None or recipe == x.recipe:
        return
    if takes_companion(spec, ode_path(model, recipe, forward=forward), recipe):
        call = "encode" if forward else "decode"
        raise UsageError(
            f"this Encoding carries the second state of {x.recipe.sampler} on its own grid, which another grid, "
            f"option or sampler cannot take back: {call}(model, encoding) goes the way it came, and "
            f"{call}(model, encoding.samples, ...) begins with one state"
        )


def takes_companion(spec: Sampler, path: Path, recipe: Recipe) -> bool:
    """Whether a sampler begins with a second state where it is given one, found by a dry run on zeros."""
    if path.is_free or spec.evaluations is None:
        return False
    given = torch.zeros(1, 1)
    ledger = PairLedger(companion=given)
    path = Path(path.process, path.points, ledger=ledger)
    count_evaluations(start_run(spec, torch.zeros(1, 1), path, recipe.options))
    return ledger.companion is not given


def ode_recipe(
    model: Model, sampler: str | Sampler | Recipe | Mapping[str, Any], options: dict[str, Any], **words: Any
) -> tuple[Recipe, Sampler]:
    """A recipe for the ODE: the sampler's noise turned off, the grid ending at the smallest sigma.

    Raises:
        UsageError: the sampler follows no ODE, or needs what only sampling gives.
    """
    words |= {"process": model.process, "shape": model.shape, "end_to_end": True}
    recipe, spec = make_recipe(sampler, options=options, final="min", **words)
    if spec.stochastic and spec.noiseless is None:
        raise UsageError(f"{spec.name} draws noise and has no ODE inside; take an ODE sampler, such as heun or rk45")
    if set(spec.needs) & {"log_density", "stationary"}:
        raise UsageError(f"{spec.name} does not follow the probability-flow ODE; take heun or rk45")
    noiseless = spec.noiseless or {}
    for name, value in noiseless.items():
        if options.get(name, value) != value:
            raise UsageError(
                f"the probability-flow ODE has no noise, and {spec.name} draws some with {name}={options[name]!r}; "
                f"leave {name} out, which makes it {value!r}"
            )
    return replace(recipe, options={**recipe.options, **noiseless}), spec


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
    x: Any,
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
    """Solve the ODE from x (N, *shape), data or latents, to the other end, on a recipe that can be walked this way."""
    companion = x.companion if isinstance(x, Encoding) else None
    x = as_states(model, x.samples if isinstance(x, Encoding) else x, "data" if forward else "latents")
    check_run_words(callback=callback, cancel=cancel, dtype=dtype)
    guidance_scale = number("guidance_scale", guidance_scale)
    for word, value in (("trajectory", trajectory), ("check_finite", check_finite)):
        flag(word, value)
    count = len(x)
    whole("batch_size", count if batch_size is None else batch_size)
    batch_size = min(batch_size or count, count)
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
            condition=cut(spread, rows),
            guidance_scale=guidance_scale,
            check_finite=check_finite,
            both="unguided" in spec.needs,
            callback=callback,
            cancel=cancel,
            record=recorder,
        )
        with running(model, key=(first,)):
            end = drive(start_run(spec, y, path, recipe.options), evaluator)
            end = from_path(end, path.points[-1], data=not forward)
            left = None if ledger.companion is given else ledger.companion
            companions.append(None if left is None else from_path(left, path.points[-1], data=not forward).cpu())
        parts.append(Part.of(end, evaluator.nfe, path, recorder, y))
    ended = torch.cat([part.samples for part in parts])
    if not forward:
        warn_if_far(ended, model, recipe)
    return Encoding(
        samples=ended,
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
        holds="latents" if forward else "data",
        ends=process_ends(model.process),
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
