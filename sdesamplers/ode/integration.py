"""A model's ODE between data and noise, solved in either direction by any sampler."""

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
from ..sampling.arguments import make_recipe, refers_to_table
from ..sampling.parts import Part, join
from ..sampling.prepared import PreparedRun, warn_if_far
from ..sampling.recipe import Recipe
from ..sampling.request import Conduct, Request
from ..sampling.result import Result, check_process
from ..sampling.runs import count_evaluations, make_path, start_run
from ..sampling.sampler_files import recipe_or_name
from ..sampling.start_check import warn_if_unscaled
from ..sampling.table import is_path

LEAST_SHARE = 0.1
"""Root mean square of latents, as a share of the noise's, below which they have another scale. That of a single flat
image, encoded in few steps, is down to 0.18."""
NOISIEST = 1e5
"""sigma/alpha at which an encoding ends if the model's process continues to alpha = 0, where lambda is infinite. The
data are then a hundred-thousandth of the latent, so a likelihood is off by 1e-5 nats per dimension and standard
deviation."""


@public
@dataclass(eq=False, repr=False)
class Encoding(Result):
    """The return value of `encode` and `decode`: a `Result` whose samples are the other end of the ODE.

    Attributes:
        companion: (N, *shape), the second state of a sampler that carries a pair of states (`bdia-ddim`,
            `reversible-heun`, `reversible-midpoint`), with which the inverse is exact; None from other samplers.
        holds: the contents of `samples`: "latents" from `encode`, "data" from `decode`.
    """

    companion: Tensor | None = None
    holds: Literal["data", "latents"] = "latents"


def own_recipe(model: Model, x: Encoding, request: Request) -> tuple[Recipe, Sampler]:
    """An encoding's recipe, with the request's arguments in place of its own."""
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
    # Options of step control, such as tolerances, apply only to adaptive steps.
    past = {name: value for name, value in own.options.items() if not (counted and name in spec.control)}
    return ode_recipe(model, Request(spec, **{**kept, **given}, options={**past, **request.options}))


def check_encoding(model: Model, x: Encoding, *, forward: bool) -> None:
    """Raise a UsageError if this model cannot take an encoding in this direction."""
    call, back = ("encode", "decode") if forward else ("decode", "encode")
    if x.holds != ("data" if forward else "latents"):
        raise UsageError(f"this Encoding already contains {x.holds}; pass it to {back}, or pass its .samples to {call}")
    check_process(x, model, f"; {call} it with its own model, or pass its .samples to {call}")


def check_companion(model: Model, x: Encoding, recipe: Recipe, spec: Sampler, *, forward: bool) -> None:
    """Raise a UsageError if a sampler would use a second state that belongs to another grid or sampler."""
    if x.companion is None or recipe == x.recipe:
        return
    if takes_companion(spec, ode_path(model, recipe, forward=forward), recipe):
        call = "encode" if forward else "decode"
        raise UsageError(
            f"this Encoding has a second state of {x.recipe.sampler} on its own grid, which another grid, option or "
            f"sampler cannot use: {call}(model, encoding) repeats its own recipe, and "
            f"{call}(model, encoding.samples, ...) begins with a single state"
        )


def takes_companion(spec: Sampler, path: Path, recipe: Recipe) -> bool:
    """True if a sampler begins with a second state when it is given one; found by a dry run on zeros."""
    if path.is_free or spec.evaluations is None:
        return False
    given = torch.zeros(1, 1)
    ledger = PairLedger(companion=given)
    path = Path(path.process, path.points, ledger=ledger)
    count_evaluations(start_run(spec, torch.zeros(1, 1), path, recipe.options))
    return ledger.companion is not given


def ode_recipe(model: Model, request: Request) -> tuple[Recipe, Sampler]:
    """A recipe for the ODE: the sampler's noise is turned off, and the grid ends at the smallest sigma.

    Raises:
        UsageError: the sampler does not follow the ODE, or an option turns its noise on.
    """
    sampler = recipe_or_name(request.sampler)
    if refers_to_table(sampler) or (isinstance(sampler, str) and is_path(sampler)):
        raise UsageError(
            "a solver table leads from noise to data on its own grid and has no inverse; use an ODE sampler, such as "
            "heun or rk45"
        )
    request = replace(request, sampler=sampler, final="min")
    recipe, spec = make_recipe(request, process=model.process, shape=model.shape, end_to_end=True)
    if spec.stochastic and spec.noiseless is None:
        raise UsageError(f"{spec.name} draws noise and has no noiseless form; use an ODE sampler, such as heun or rk45")
    if set(spec.needs) & {"log_density", "stationary"}:
        raise UsageError(f"{spec.name} does not follow the probability-flow ODE; use heun or rk45")
    noiseless, options = spec.noiseless or {}, request.options
    for name, value in noiseless.items():
        if options.get(name, value) != value:
            raise UsageError(
                f"the probability-flow ODE has no noise, and {spec.name} draws noise with {name}={options[name]!r}; "
                f"omit {name}, which sets it to {value!r}"
            )
    return replace(recipe, options={**recipe.options, **noiseless}), spec


def ode_path(model: Model, recipe: Recipe, *, forward: bool, ledger: Ledger | None = None) -> Path:
    """The path of an encoding (forward) or of a decoding, between the same two finite ends."""
    path = make_path(model.process, recipe)
    points = [*path.points]
    if points[0].is_pure_noise:
        points = [path.at_ratio(NOISIEST), *(p for p in points if not p.is_pure_noise and p.ratio < NOISIEST)]
    return Path(path.process, points[::-1] if forward else points, is_free=path.is_free, ledger=ledger)


def check_runnable(model: Model, recipe: Recipe, spec: Sampler, *, forward: bool) -> None:
    """Raise a UsageError if a sampler's coefficients do not exist on a path; found by a dry run on zeros.

    The backward direction is checked too: a sampler that draws noise only there (ddim with eta = 1) would encode to
    latents that it cannot decode.
    """
    path = ode_path(model, recipe, forward=forward)
    if path.is_free or spec.evaluations is None:
        return
    if forward:
        check_runnable(model, recipe, spec, forward=False)
    try:
        count_evaluations(start_run(spec, torch.zeros(1, 1), path, recipe.options))
    except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        if not forward:
            raise
        raise UsageError(
            f"{spec.name} cannot run from data to noise on this grid ({error}); heun, rk4 or rk45 can"
        ) from None


class OdeRun(PreparedRun):
    """A run of the ODE, from data (forward) or latents to the other end, on a recipe checked for this direction.

    It draws no noise, turns the model's clipping off, and carries the second state of samplers that have one.
    """

    def __init__(self, model: Model, recipe: Recipe, spec: Sampler, conduct: Conduct, *, forward: bool) -> None:
        super().__init__(model, recipe, spec, ode_path(model, recipe, forward=forward), conduct, clips=False)
        self.forward = forward
        self.state = self.conduct.dtype or torch.float32
        self.companions: Tensor | None = None  # the second states of all samples at the start
        self.batch_companion: Tensor | None = None  # those of the current batch
        self.final_companions: list[Tensor | None] = []  # the second states at the end, by batch

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the state."""
        return self.state

    def solve(self, x: Any, condition: Any = None, batch_size: int | None = None) -> Encoding:
        """Solve the ODE from x: data or latents (N, *shape), or an `Encoding`."""
        self.companions, self.final_companions = x.companion if isinstance(x, Encoding) else None, []
        encoded = isinstance(x, Encoding)
        x = as_states(self.model, x.samples if isinstance(x, Encoding) else x, "data" if self.forward else "latents")
        if not self.forward and not encoded:
            t, advice = self.path.points[0].t, "pass the samples of encode"
            warn_if_unscaled(x, self.model.process, t, "latents", advice, share=LEAST_SHARE)
        at_least = torch.promote_types(torch.promote_types(x.dtype, torch.float32), self.model.dtype)
        self.state = self.conduct.dtype or at_least
        spread, indices = self.model.condition_for(condition, len(x)), range(len(x))
        return self.result(self.run_all(indices, spread, x, batch_size), indices, spread)

    def new_path(self) -> Path:
        """A path whose ledger can hold a second state."""
        return Path(self.path.process, self.path.points, is_free=self.path.is_free, ledger=PairLedger())

    def check_start(self, start: Tensor) -> None:
        """Nothing: data have no noise, and `solve` checks latents."""

    def begin(self, path: Path, indices: Sequence[int], start: Tensor | None) -> Tensor:
        """A batch's initial state in path coordinates; its second state is stored in the ledger."""
        assert start is not None
        given = None if self.companions is None else self.companions[indices[0] : indices[-1] + 1]
        self.batch_companion = pairs(path).companion = None if given is None else self._on(path, given)
        return self._on(path, start)

    def _on(self, path: Path, x: Tensor) -> Tensor:
        return to_path(x.to(device=self.model.device, dtype=self.dtype), path.points[0], data=self.forward)

    def end(self, path: Path, end: Tensor) -> Tensor:
        """A batch's final state in the model's coordinates; its second state is stored for the result."""
        # The ledger's companion is None after the sampler has taken it, and the final second state at the end.
        final = pairs(path).companion
        if final is not None and final is not self.batch_companion:
            self.final_companions.append(from_path(final, path.points[-1], data=not self.forward).cpu())
        else:
            self.final_companions.append(None)
        return from_path(end, path.points[-1], data=not self.forward)

    def result(self, parts: Sequence[Part], indices: Sequence[int], condition: Any = None) -> Encoding:
        """The batches joined to the `Encoding` that `encode` and `decode` return."""
        facts = self.facts(parts, indices, condition)
        if self.forward:  # latents have no range and are not images
            facts |= {"data_range": None, "decoder": None, "decoded_range": None}
        else:
            warn_if_far(facts["samples"], self.model, self.recipe)
        return Encoding(**facts, companion=join(self.final_companions), holds="latents" if self.forward else "data")


def pairs(path: Path) -> PairLedger:
    """The ledger of the path of an `OdeRun`."""
    return cast("PairLedger", path.ledger)


def to_path(x: Tensor, point: Point, *, data: bool) -> Tensor:
    """A path's initial state: alpha x_0 for data; latents are converted from the model's coordinates."""
    gaussian = isinstance(point.process, GaussianProcess)
    factor = point.alpha if data and gaussian else point.scale
    return x * expand(factor, x)


def from_path(x: Tensor, point: Point, *, data: bool) -> Tensor:
    """The inverse of `to_path` at the path's last point."""
    if data and isinstance(point.process, GaussianProcess):
        return x / expand(point.alpha, x)
    return model_state(x, point)
