"""A model's ODE between data and noise, walked either way by any sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..io.datasets import as_states
from ..models.base import Model
from ..path.pairs import PairLedger
from ..path.path import Ledger, Path
from ..path.points import Point, model_state
from ..processes.scalars import expand
from ..processes.sde import GaussianProcess
from ..public import public
from ..registry.plugin import Sampler
from ..registry.registry import default_registry
from ..sampling.arguments import make_recipe
from ..sampling.loop import Callback, Evaluator
from ..sampling.parts import Part, join
from ..sampling.prepared import PreparedRun, warn_if_far
from ..sampling.recipe import Recipe
from ..sampling.request import Conduct, Request
from ..sampling.result import Result, check_process
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


def own_recipe(model: Model, x: Encoding, request: Request) -> tuple[Recipe, Sampler]:
    """An encoding's recipe, with what is requested in place of its own."""
    own, given = x.recipe, request.given()
    spec = x.sampler or default_registry().resolve(own.sampler).sampler
    if not given and not request.options:
        return own, spec
    kept: dict[str, Any] = {"coordinates": own.coordinates}
    if own.steps is not None and "spacing" not in given:
        kept |= {"spacing": own.spacing, "spacing_options": own.spacing_options}
    counted = bool({"steps", "nfe"} & {*given})
    if not counted:
        kept["steps"] = own.steps
    # Tolerances are those of free steps, and mean nothing on a grid.
    past = {name: value for name, value in own.options.items() if not (counted and name in spec.control)}
    return ode_recipe(model, Request(spec, **{**kept, **given}, options={**past, **request.options}))


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


def ode_recipe(model: Model, request: Request) -> tuple[Recipe, Sampler]:
    """A recipe for the ODE: the sampler's noise turned off, the grid ending at the smallest sigma.

    Raises:
        UsageError: the sampler follows no ODE, or needs what only sampling gives.
    """
    request = replace(request, final="min")
    recipe, spec = make_recipe(request, process=model.process, shape=model.shape, end_to_end=True)
    if spec.stochastic and spec.noiseless is None:
        raise UsageError(f"{spec.name} draws noise and has no ODE inside; take an ODE sampler, such as heun or rk45")
    if set(spec.needs) & {"log_density", "stationary"}:
        raise UsageError(f"{spec.name} does not follow the probability-flow ODE; take heun or rk45")
    noiseless, options = spec.noiseless or {}, request.options
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


class Walk(PreparedRun):
    """A run of the ODE, from data (forward) or latents to the other end, on a recipe that can be walked this way.

    Nothing is drawn, the model's clipping is off, and a second state is carried where there is one.
    """

    def __init__(self, model: Model, recipe: Recipe, spec: Sampler, conduct: Conduct, *, forward: bool) -> None:
        super().__init__(model, recipe, spec, ode_path(model, recipe, forward=forward), conduct)
        self.forward = forward
        self.state = self.conduct.dtype or torch.float32
        self.given: Tensor | None = None  # the second states that the walk begins with, and a batch's own
        self.taken: Tensor | None = None
        self.left: list[Tensor | None] = []

    @property
    def dtype(self) -> torch.dtype:
        """Of the state."""
        return self.state

    def walk(self, x: Any, condition: Any = None, batch_size: int | None = None) -> Encoding:
        """Solve the ODE from x, data or latents (N, *shape) or an `Encoding`."""
        self.given, self.left = x.companion if isinstance(x, Encoding) else None, []
        x = as_states(self.model, x.samples if isinstance(x, Encoding) else x, "data" if self.forward else "latents")
        at_least = torch.promote_types(torch.promote_types(x.dtype, torch.float32), self.model.dtype)
        self.state = self.conduct.dtype or at_least
        spread, indices = self.model.condition_for(condition, len(x)), range(len(x))
        return self.result(self.run_all(indices, spread, x, batch_size), indices, spread)

    def new_path(self) -> Path:
        """The grid with room for a second state."""
        return Path(self.path.process, self.path.points, is_free=self.path.is_free, ledger=PairLedger())

    def evaluator(self, count: int, condition: Any = None, advance: Callback | None = None) -> Evaluator:
        """A batch's connection to the model, whose ODE is that of its predictions as they are."""
        evaluator = super().evaluator(count, condition, advance)
        evaluator.clip = None
        return evaluator

    def begin(self, path: Path, indices: Sequence[int], start: Tensor | None) -> Tensor:
        """A batch's first state in path coordinates; the second one lies in the ledger."""
        assert start is not None
        given = None if self.given is None else self.given[indices[0] : indices[-1] + 1]
        self.taken = pairs(path).companion = None if given is None else self._on(path, given)
        return self._on(path, start)

    def _on(self, path: Path, x: Tensor) -> Tensor:
        return to_path(x.to(device=self.model.device, dtype=self.dtype), path.points[0], data=self.forward)

    def end(self, path: Path, end: Tensor) -> Tensor:
        """A batch's last state in the model's coordinates; the second one is kept."""
        # Once the sampler has taken its companion the ledger holds None, and at the end what the sampler leaves.
        left = pairs(path).companion
        if left is not None and left is not self.taken:
            self.left.append(from_path(left, path.points[-1], data=not self.forward).cpu())
        else:
            self.left.append(None)
        return from_path(end, path.points[-1], data=not self.forward)

    def result(self, parts: Sequence[Part], indices: Sequence[int], condition: Any = None) -> Encoding:
        """Batches, one behind the other, as what `encode` and `decode` return."""
        facts = self.facts(parts, indices, condition)
        if self.forward:  # latents have no range and no pictures
            facts |= {"data_range": None, "decoder": None, "decoded_range": None}
        else:
            warn_if_far(facts["samples"], self.model, self.recipe)
        return Encoding(**facts, companion=join(self.left), holds="latents" if self.forward else "data")


def pairs(path: Path) -> PairLedger:
    """The ledger of a walk's path."""
    return cast("PairLedger", path.ledger)


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
