"""Exact likelihoods: the probability-flow ODE from data to prior, with the change of density along the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..checks import choice, function, warn, whole
from ..errors import ModelError, UsageError
from ..io.datasets import Data, as_states
from ..models.base import Model, Output
from ..models.calling import isolated
from ..models.conditions import take_rows
from ..path.noise import AUXILIARY, NormalSource
from ..path.points import Point
from ..pretrained.loading import as_model
from ..processes.predictions import linear_map, row
from ..processes.scalars import Scalar, as_scalar, expand
from ..processes.sde import SDE, GaussianProcess, Prior
from ..public import public
from ..registry.plugin import Sampler
from ..sampling.loop import Flag
from ..sampling.recipe import Recipe
from ..sampling.request import Conduct, Request, batches
from .integration import Walk, check_walkable, ode_recipe

Divergence = Literal["hutchinson", "exact"]
Probe = Literal["rademacher", "gaussian"]


@public
@dataclass(eq=False, repr=False)
class Likelihood:
    """What `log_likelihood` found.

    Attributes:
        nats: (N,) float64, log p(x) of each sample; a density over the model's data coordinates.
        bits_per_dim: (N,) float64, -(log2 p(x) + D log2 w) / D, with w the width that one of the data's levels has in
            the model's range where there are levels (images: 2/255), else 1. With `dequantize="uniform"` its mean is an
            upper bound of the discrete data's bits per dimension (Theis et al. 2016).
        standard_error: (N,) of `nats` over the probes; None with the exact divergence or a single probe.
        latents: (N, *shape), where the ODE takes the data.
        nfe: model evaluations of each sample; each costs a vector-Jacobian product for each probe besides.
        nfe_per_sample: (N,) whole numbers.
        probes: how many, 0 for the exact divergence.
        recipe: what was run.
    """

    nats: np.ndarray
    bits_per_dim: np.ndarray
    standard_error: np.ndarray | None
    latents: Tensor
    nfe_per_sample: np.ndarray
    probes: int
    recipe: Recipe

    @property
    def nfe(self) -> int:
        """Model evaluations a sample (the largest, where samples differ)."""
        return int(self.nfe_per_sample.max())

    def __repr__(self) -> str:
        mean = self.bits_per_dim.mean()
        return (
            f"<Likelihood of {len(self.nats)} samples by {self.recipe.sampler!r}: {mean:.4g} bits/dim, {self.nfe} NFE>"
        )


@public
def log_likelihood(
    model: Model | str,
    x: Data,
    sampler: str | Sampler | Recipe | Mapping[str, Any] = "rk45",
    *,
    steps: int | None = None,
    nfe: int | None = None,
    spacing: str | None = None,
    spacing_options: dict[str, Any] | None = None,
    coordinates: str | None = None,
    divergence: Divergence = "hutchinson",
    probes: int = 1,
    probe: Probe = "rademacher",
    seed: int = 0,
    first_index: int = 0,
    dequantize: Literal["uniform"] | None = None,
    levels: int = 256,
    batch_size: int | None = None,
    condition: Any = None,
    cancel: Flag | None = None,
    advance: Callable[[int], None] | None = None,
    **options: Any,
) -> Likelihood:
    """log p(x) under the probability-flow ODE (Song et al. 2021, eq. 39; Chen et al. 2018, eq. 8).

        log p_0(x_0) = log p_T(x_T) + int_0^T div v(x_t, t) dt,    dx/dt = v

    The state that the sampler integrates is (x, l_1 ... l_P) with dl_p/dt = -e_p^T (dv/dx) e_p, one probe e_p each
    (Skilling 1989; Hutchinson 1990), so any ODE sampler integrates both, and adaptive steps control the error of both.
    The data stand as alpha x at the smallest time that the model was trained at.

    Args:
        model: a `Model`, or what `load` takes.
        x: data (N, *shape) in the model's range, or PIL images of the model's size. Numbers from 0 to 1 for a model of
            [-1, 1] cannot be told from its data and are not noticed.
        sampler: a name or a `Sampler`; what turns a stochastic one's noise off is set.
        steps, nfe, spacing, spacing_options, coordinates, condition: as in `sample`. Guidance: wrap the model in
            `Guided`.
        divergence: "hutchinson" estimates it without bias at one vector-Jacobian product a probe and evaluation;
            "exact" takes one for each dimension.
        probes: for each sample; their spread gives the standard error.
        probe: "rademacher" (the least variance of all with independent entries) or "gaussian".
        seed, first_index: sample j's probes and dequantisation depend on (seed, first_index + j) alone.
        dequantize: "uniform" adds noise of one level's width first, for data of `levels` whole levels.
        levels: of the data, for bits per dimension; 0 for continuous data.
        batch_size: how many at once. It does not change the result.
        cancel: a `threading.Event`; when set, the run stops with `Cancelled`.
        advance: called with the number of samples done after each batch.
        **options: the sampler's own, such as rtol and atol.

    Raises:
        UsageError: words that do not fit, data of another shape or kind or far outside the model's range, or a sampler
            that follows no ODE.
    """
    model = as_model(model)
    gaussian = isinstance(model.process, GaussianProcess)
    check_choice("divergence", divergence, ("hutchinson", "exact"))
    check_choice("probe", probe, ("rademacher", "gaussian"))
    check_choice("dequantize", dequantize, (None, "uniform"))
    probes, first_index = whole("probes", probes), whole("first_index", first_index, 0)
    function("advance", advance, "a number of samples")
    conduct = Conduct(cancel=cancel)
    x = as_states(model, x, "data")
    all_rows = [range(rows.start, rows.stop) for rows in batches(len(x), batch_size)]
    width = level_width(model, levels)
    if dequantize is not None and width is None:
        raise UsageError("dequantize needs data of whole levels in a known range; this model has no data_range")
    grid = Request(sampler, steps, nfe, spacing, spacing_options, coordinates=coordinates, options=options)
    recipe, spec = ode_recipe(model, grid)
    if "unguided" in spec.needs:
        raise UsageError(f"{spec.name} does not follow the probability-flow ODE; take heun or rk45")
    count, size = len(x), math.prod(model.shape)
    spread = model.condition_for(condition, count)
    columns = 1 if divergence == "exact" else probes
    flow = DensityFlow(model, columns)
    check_walkable(flow, recipe, spec, forward=True)
    way = Walk(flow, recipe, spec, conduct, forward=True)
    first, last = way.path.points[0], way.path.points[-1]
    nats, latents, made = [], [], []
    for rows in all_rows:
        source = NormalSource(seed, [first_index + r for r in rows], model.shape)
        data = x[rows.start : rows.stop].double()
        if dequantize == "uniform":
            data = data + (width or 0.0) * (torch.special.ndtr(source.draw(AUXILIARY).double()) - 0.5).to(data)
        vectors = None if divergence == "exact" else draw_probes(source, probes, probe).to(model.device)
        inside = Probed(take_rows(spread, slice(rows.start, rows.stop)), vectors)
        state = torch.cat([data.flatten(1), data.new_zeros(len(data), columns)], 1)
        run = way.walk(state, inside)
        latent, losses = run.samples[:, :size].view(-1, *model.shape), run.samples[:, size:]
        nats.append((end_log_prob(model, last, latent)[:, None] - losses).numpy())
        latents.append(latent.to(torch.promote_types(x.dtype, torch.float32)))
        made.append(run.nfe_per_sample)
        if advance is not None:
            advance(len(data))
    # Where data stand as alpha x, p_0(x) = alpha^D p(alpha x).
    each = np.concatenate(nats) + (size * math.log(float(first.native[0])) if gaussian else 0.0)
    mean = each.mean(1)
    error = each.std(1, ddof=1) / math.sqrt(columns) if columns > 1 else None
    bits = -(mean / size + math.log(width or 1.0)) / math.log(2)
    warn_if_impossible(bits, width, model.data_range is not None, recipe)
    probed = 0 if divergence == "exact" else probes
    return Likelihood(mean, bits, error, torch.cat(latents), np.concatenate(made), probed, recipe)


FEW = 5
"""Steps below which no method solves the ODE of data that are narrower than the noise: at 1 to 3 steps of Heun's method
the log-density of a Gaussian of standard deviation 0.5 is off by 7, 3.5 and 1.4 nats."""


def warn_if_impossible(bits: np.ndarray, width: float | None, in_a_range: bool, recipe: Recipe) -> None:
    """Warn where whole levels cost less than nothing, or numbers are not finite: too few steps, not good data.

    A density of data spread over levels of width w is a probability over w at most, so that its mean over the levels
    is 0 bits or more (Theis et al. 2016, section 3.1); a numerical solution that leaves it further is none.
    """
    few = f"{recipe.sampler} with {recipe.steps} steps" if recipe.steps else recipe.sampler
    advice = "take more steps, or rk45 with small tolerances"
    if not np.all(np.isfinite(bits)):
        warn(f"{few} does not solve the ODE here, and some likelihoods are not finite; {advice}")
    elif width is not None and in_a_range and float(bits.mean()) < 0:
        warn(
            f"{few} does not solve the ODE here: {bits.mean():.3g} bits per dimension, where data of whole levels have "
            f"0 or more; {advice}, and give data with their levels spread (dequantize)"
        )
    elif recipe.steps is not None and recipe.steps < FEW:
        warn(f"{few} hardly solves the ODE; {advice}, and see whether the number stays")


@dataclass(frozen=True)
class Probed:
    """A batch's condition, and its probes (N, P, *shape), cut to samples together; None for the exact divergence."""

    condition: Any
    vectors: Tensor | None

    def __getitem__(self, rows: Any) -> Probed:
        return Probed(take_rows(self.condition, rows), None if self.vectors is None else self.vectors[rows])


class DensityFlow(Model):
    """A model's velocity beside minus its divergence: the ODE of (x, l_1 ... l_P), in the model's own coordinates.

    As a model that predicts its own time derivative ("flow") it runs on any sampler: l is one more coordinate.
    """

    dtype = torch.float64
    pure = True

    def __init__(self, model: Model, columns: int) -> None:
        self.inner, self.columns = model, columns
        self.size = math.prod(model.shape)
        gaussian = isinstance(model.process, GaussianProcess)
        self.process = model.process if gaussian else GivenVelocity(model.process)
        self.prediction = "flow" if gaussian else "score"
        self.shape, self.device, self.name = (self.size + columns,), model.device, model.name

    def condition_for(self, condition: Any, count: int) -> Any:
        return condition

    def predict(self, x: Tensor, t: Scalar, condition: Any = None) -> Tensor | Output:
        state = x[:, : self.size].view(-1, *self.inner.shape)
        with torch.inference_mode(False), torch.enable_grad():
            z = state.clone().to(self.inner.dtype).requires_grad_()
            answer = isolated(self.inner)(z, t, condition.condition)
            value = answer.value if isinstance(answer, Output) else answer
            if not value.requires_grad:
                raise ModelError(f"model {self.name!r} cannot be differentiated: its output has no autograd graph")
            on_state, on_value, value = self._velocity(z, t, value)
            traces = self._traces(value, z, condition.vectors)
        velocity = expand(on_state, x) * state.flatten(1) + expand(on_value, x) * value.detach().flatten(1).to(x)
        divergence = expand(on_state, x) * self.size + expand(on_value, x) * traces.to(x)
        return torch.cat([velocity, -divergence], 1)

    def _velocity(self, z: Tensor, t: Scalar, value: Tensor) -> tuple[Scalar, Scalar, Tensor]:
        """Coefficients of the velocity on the state and on a function of it, and that function's value at z."""
        process = self.inner.process
        if not isinstance(process, GaussianProcess):
            return 0.0, 1.0, process.velocity(z, t, value)
        alpha, sigma, d_alpha, d_sigma = (as_scalar(v) for v in process.schedule(t))
        kind = row(self.inner.prediction, (alpha, sigma, d_alpha, d_sigma))
        return *linear_map((alpha, sigma), kind, (d_alpha, d_sigma)), value

    def _traces(self, value: Tensor, z: Tensor, vectors: Tensor | None) -> Tensor:
        """Estimates (N, P) of the trace of dvalue/dz, or the trace itself (N, 1)."""
        flat = value.flatten(1)
        if vectors is None:
            rows = (
                torch.autograd.grad(flat[:, k].sum(), z, retain_graph=k + 1 < self.size)[0].flatten(1)[:, k]
                for k in range(self.size)
            )
            return torch.stack(list(rows), 1).double().sum(1, keepdim=True)
        found = []
        for k in range(self.columns):
            probe = vectors[:, k].flatten(1).to(flat)
            (pulled,) = torch.autograd.grad((flat * probe).sum(), z, retain_graph=k + 1 < self.columns)
            found.append((pulled.flatten(1) * probe).double().sum(1))
        return torch.stack(found, 1)


class GivenVelocity(SDE):
    """The ODE whose velocity is given where a score is asked for: for processes that are not Gaussian."""

    def __init__(self, process: SDE) -> None:
        self.t_min, self.t_max, self.preferred_spacing = process.t_min, process.t_max, process.preferred_spacing
        self._prior = process.prior

    def drift(self, x: Tensor, t: Scalar) -> Tensor:
        return torch.zeros_like(x)

    def diffusion(self, t: Scalar) -> Scalar:
        return 0.0 * t

    @property
    def prior(self) -> Prior:
        return self._prior

    def reverse_drift(self, x: Tensor, t: Scalar, score: Tensor, eta: float = 1.0) -> Tensor:
        return score


def end_log_prob(model: Model, end: Point, latent: Tensor) -> Tensor:
    """log density (N,) at the noisy end, where nothing but noise is left of the data."""
    process = model.process
    prior = Prior(float(end.native[1])) if isinstance(process, GaussianProcess) else process.prior
    return prior.log_prob(latent)


def draw_probes(source: NormalSource, count: int, kind: Probe) -> Tensor:
    """Probes (N, count, *shape) with independent entries of mean 0 and variance 1."""
    normals = torch.stack([source.draw(AUXILIARY, k + 1) for k in range(count)], 1)
    return normals if kind == "gaussian" else torch.where(normals < 0, -1.0, 1.0)


def level_width(model: Model, levels: int) -> float | None:
    """The width of one of the data's levels in the model's range; None for continuous data."""
    whole("levels", levels, 0)
    if model.data_range is None or levels == 0:
        return None
    if levels == 1:
        raise UsageError("levels must be 0 for continuous data, or 2 and more")
    low, high = model.data_range
    return (high - low) / (levels - 1)


def check_choice(word: str, value: Any, known: tuple[Any, ...]) -> None:
    """Raise unless `value` is one of those known."""
    choice(word, value, known)
