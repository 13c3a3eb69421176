"""Exact likelihoods: the probability-flow ODE from data to prior, with the change of density along it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..categories import AccuracyWarning
from ..checks import choice, function, suggest_keywords, warn, whole
from ..errors import ModelError, UsageError
from ..html import facts_table, rows_table
from ..io.datasets import Data, as_states
from ..models.base import Model, Output
from ..models.calling import isolated
from ..models.conditions import take_rows
from ..path.noise import AUXILIARY, NormalSource
from ..path.points import Point
from ..pretrained.loading import as_model
from ..processes.coordinates import view
from ..processes.predictions import linear_map, row
from ..processes.scalars import Scalar, as_scalar, expand
from ..processes.sde import SDE, GaussianProcess, Prior
from ..public import public
from ..registry.plugin import Sampler
from ..report.inline import histogram, inline
from ..sampling.loop import Callback, Flag
from ..sampling.parts import Part
from ..sampling.recipe import Recipe
from ..sampling.request import Conduct, Request
from .integration import OdeRun, check_runnable, ode_recipe

Divergence = Literal["hutchinson", "exact"]
Probe = Literal["rademacher", "gaussian"]


@public
@dataclass(eq=False, repr=False)
class Likelihood:
    """The result of `log_likelihood`.

    Attributes:
        nats: (N,) float64, log p(x) of each sample; a density over the model's data coordinates.
        bits_per_dim: (N,) float64, -(log2 p(x) + D log2 w) / D, where w is the width of one of the data's discrete
            levels in the model's range (images: 2/255), or 1 for continuous data. With `dequantize="uniform"` its mean
            is an upper bound of the discrete data's bits per dimension (Theis et al. 2016).
        standard_error: (N,) standard error of `nats` over the probes; None with the exact divergence or a single probe.
        latents: (N, *shape), the solutions of the ODE at the noisy end.
        nfe: model evaluations per sample; each evaluation also costs a vector-Jacobian product for each probe.
        nfe_per_sample: (N,) integers.
        probes: number of probes, 0 for the exact divergence.
        recipe: the recipe of the run.
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
        """The number of model evaluations per sample; the maximum if samples differ."""
        return int(self.nfe_per_sample.max())

    def __repr__(self) -> str:
        mean = self.bits_per_dim.mean()
        return (
            f"<Likelihood of {len(self.nats)} samples by {self.recipe.sampler!r}: {mean:.4g} bits/dim, {self.nfe} NFE>"
        )

    def _repr_html_(self) -> str:
        """For notebooks: the mean and the range of the likelihoods, and their histogram."""
        rows = []
        for name, values in (("nats", self.nats), ("bits per dimension", self.bits_per_dim)):
            error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else None
            rows.append((name, *map(float, (values.mean(), np.median(values), values.min(), values.max())), error))
        columns = ("", "mean", "median", "smallest", "largest", "standard error of the mean")
        kind = f"{self.probes} probe{'s' * (self.probes > 1)}" if self.probes else "exact"
        facts = {"sampler": self.recipe.sampler, "evaluations": f"{self.nfe} per sample", "divergence": kind}
        if self.standard_error is not None:
            facts["standard error of nats over the probes"] = f"{self.standard_error.mean():.3g} on average"
        title = f"log p of {len(self.nats)} sample{'s' * (len(self.nats) != 1)}"
        picture = inline(lambda: histogram(self.bits_per_dim, "bits per dimension", title))
        return facts_table("Likelihood", facts) + rows_table(title, columns, rows) + picture


@public
@suggest_keywords()
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
    divergence: Divergence | None = None,
    probes: int | None = None,
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

    The sampler integrates the state (x, l_1 ... l_P) with dl_p/dt = -e_p^T (dv/dx) e_p, one probe e_p each (Skilling
    1989; Hutchinson 1990), so any ODE sampler integrates both parts, and adaptive steps control the error of both. The
    initial state is alpha x at the smallest time on which the model was trained.

    Args:
        model: a `Model`, or any argument of `load`.
        x: data (N, *shape) in the model's range, or PIL images of the model's size. Data in [0, 1] for a model of
            [-1, 1] cannot be distinguished from valid data and are not detected.
        sampler: a name or a `Sampler`; for a stochastic sampler, the options that turn its noise off are set.
        steps, nfe, spacing, spacing_options, coordinates, condition: as in `sample`. For guidance, wrap the model in
            `Guided`.
        divergence: "hutchinson" is an unbiased estimate at the cost of one vector-Jacobian product per probe and
            evaluation; "exact" needs one for each dimension. By default exact in up to 16 dimensions, where the error
            of one probe is large and the product cheap, unless `probes` is passed.
        probes: number of probes per sample of "hutchinson", 1 by default; their spread gives the standard error.
        probe: "rademacher" (the smallest variance of all probes with independent entries) or "gaussian".
        seed, first_index: the probes and dequantization of sample j depend only on (seed, first_index + j).
        dequantize: "uniform" first adds uniform noise of one level's width, for data with `levels` discrete levels.
        levels: number of levels of the data, for bits per dimension; 0 for continuous data.
        batch_size: samples per batch; by default all of them. It does not change the result.
        cancel: a `threading.Event`; when set, the run stops with `Cancelled`.
        advance: called after each batch with the number of samples in it.
        **options: the sampler's own options, such as rtol and atol.

    Returns:
        a `Likelihood` with log p(x) of each sample.

    Raises:
        UsageError: invalid or conflicting arguments, data of another shape or type or far outside the model's range, or
            a sampler that does not follow the ODE.
        ModelError: the model cannot be differentiated.
        NonFiniteError: the model's output is not finite.
        Cancelled: the run was stopped.
    """
    model = as_model(model)
    gaussian = isinstance(model.process, GaussianProcess)
    check_choice("divergence", divergence, (None, "hutchinson", "exact"))
    check_choice("probe", probe, ("rademacher", "gaussian"))
    check_choice("dequantize", dequantize, (None, "uniform"))
    probes, first_index = probe_count(divergence, probes, math.prod(model.shape)), whole("first_index", first_index, 0)
    function("advance", advance, "a number of samples")
    conduct = Conduct(cancel=cancel)
    x = as_states(model, x, "data")
    width = level_width(model, levels)
    if dequantize is not None and width is None:
        raise UsageError("dequantize needs data of discrete levels: levels= of at least 2 and a model with data_range")
    grid = Request(sampler, steps, nfe, spacing, spacing_options, coordinates=coordinates, options=options)
    recipe, spec = ode_recipe(model, grid)
    if "unguided" in spec.needs:
        raise UsageError(f"{spec.name} does not follow the probability-flow ODE; use heun or rk45")
    count, size = len(x), math.prod(model.shape)
    spread = model.condition_for(condition, count)
    columns = max(probes, 1)
    flow = DensityFlow(model, columns, recipe.coordinates)
    check_runnable(flow, recipe, spec, forward=True)
    noise = DataNoise(probes, probe, (width or 0.0) if dequantize == "uniform" else None)
    ode = DensityRun(flow, recipe, spec, conduct, noise, seed, advance)
    parts = ode.run_all(range(first_index, first_index + count), spread, x, batch_size)
    first, last = ode.path.points[0], ode.path.points[-1]
    ends = torch.cat([part.samples for part in parts])
    latents, losses = ends[:, :size].view(-1, *model.shape), ends[:, size:] * last.scale
    nats = (end_log_prob(model, last, latents)[:, None] - losses).numpy()
    # The initial state is alpha x, and the log-densities are those of unit_scale(t) x.
    each = nats + (size * (math.log(first.native[0]) + log_unit_scale(first) - log_unit_scale(last)) if gaussian else 0)
    mean = each.mean(1)
    error = each.std(1, ddof=1) / math.sqrt(columns) if columns > 1 else None
    bits = -(mean / size + math.log(width or 1.0)) / math.log(2)
    warn_if_impossible(bits, width, model.data_range is not None, recipe)
    latents = latents.to(torch.promote_types(x.dtype, torch.float32))
    return Likelihood(mean, bits, error, latents, np.concatenate([part.nfe for part in parts]), probes, recipe)


FEW_DIMENSIONS = 16
"""The largest number of dimensions in which the exact divergence is the default."""
FEW = 5
"""With fewer steps no method solves the ODE of data that are narrower than the noise: with 1, 2 and 3 steps of Heun's
method the log-density of a Gaussian of standard deviation 0.5 is off by 7, 3.5 and 1.4 nats."""


def warn_if_impossible(bits: np.ndarray, width: float | None, in_a_range: bool, recipe: Recipe) -> None:
    """Warn if discrete levels cost less than 0 bits, or numbers are not finite: signs of too few steps.

    For dequantized data, the mean log-density over a level of width w and probability P is at most log(P / w), so the
    mean is at least 0 bits (Theis et al. 2016, section 3.1); a negative mean shows that the ODE was not solved.
    """
    few = f"{recipe.sampler} with {recipe.steps} steps" if recipe.steps else recipe.sampler
    advice = "use more steps, or rk45 with small tolerances"
    if not np.all(np.isfinite(bits)):
        warn(f"{few} does not solve the ODE here, and some likelihoods are not finite; {advice}", AccuracyWarning)
    elif width is not None and in_a_range and float(bits.mean()) < 0:
        warn(
            f"{few} does not solve the ODE here: {bits.mean():.3g} bits per dimension, but data of discrete levels "
            f"have 0 or more; {advice}, and dequantize the data (dequantize=)",
            AccuracyWarning,
        )
    elif recipe.steps is not None and recipe.steps < FEW:
        warn(f"{few} hardly solves the ODE; {advice}, and check that the result does not change", AccuracyWarning)


@dataclass(frozen=True)
class Probed:
    """A batch's condition and its probes (N, P, *shape), indexed together; probes are None for exact divergence."""

    condition: Any
    vectors: Tensor | None

    def __getitem__(self, rows: Any) -> Probed:
        return Probed(take_rows(self.condition, rows), None if self.vectors is None else self.vectors[rows])


class DensityFlow(Model):
    """The ODE of (x, l_1 ... l_P), in the model's coordinates: a model's velocity, and minus its divergence.

    It is a model that predicts its own time derivative ("flow"), so it runs with any sampler; the l are additional
    coordinates of the state. Two scales make the l easy to integrate. They are the change of the log-density of
    u(t) x with u = (alpha^2 + sigma^2)^(-1/2), which is small where the data or the noise fill the state: in x itself,
    VE's density falls by D log(sigma_T / sigma_0). And the model's coordinates contain l / c(t), where the path's are
    c(t) x: the path multiplies all coordinates by c, so that errors in l count as they are.
    """

    dtype = torch.float64
    pure = True

    def __init__(self, model: Model, columns: int, coordinates: str) -> None:
        self.inner, self.columns = model, columns
        self.size = math.prod(model.shape)
        process = model.process
        self.view = view(process, coordinates) if isinstance(process, GaussianProcess) else None
        self.process = process if self.view is not None else GivenVelocity(process)
        self.prediction = "flow" if self.view is not None else "score"
        self.shape, self.device, self.name = (self.size + columns,), model.device, model.name

    def condition_for(self, condition: Any, count: int) -> Any:
        return condition

    def predict(self, x: Tensor, t: Scalar, condition: Any = None) -> Tensor | Output:
        state = x[:, : self.size].view(-1, *self.inner.shape)
        with torch.inference_mode(False), torch.enable_grad():
            z = state.clone().to(self.inner.dtype).requires_grad_()
            output = isolated(self.inner)(z, t, condition.condition)
            value = output.value if isinstance(output, Output) else output
            if not value.requires_grad:
                raise ModelError(f"model {self.name!r} cannot be differentiated: its output has no autograd graph")
            on_state, on_value, value = self._velocity(z, t, value)
            traces = self._traces(value, z, condition.vectors)
        velocity = expand(on_state, x) * state.flatten(1) + expand(on_value, x) * value.detach().flatten(1).to(x)
        divergence = expand(on_state, x) * self.size + expand(on_value, x) * traces.to(x)
        scale, scale_rate, unit_rate = (expand(value, x) for value in self._scales(t))
        change = -(divergence + unit_rate * self.size) / scale - scale_rate * x[:, self.size :]
        return torch.cat([velocity, change], 1)

    def _scales(self, t: Scalar) -> tuple[Scalar, Scalar, Scalar]:
        """The path's scale c, (dc/dt) / c, and (du/dt) / u."""
        if self.view is None:
            return 1.0, 0.0, 0.0
        alpha, sigma, d_alpha, d_sigma = self.view.native.schedule(t)
        own = self.view.schedule(self.view.clock(t, sigma / alpha))
        # The speed of the view's clock is the ratio of the derivatives of log(sigma/alpha).
        speed = (d_sigma / sigma - d_alpha / alpha) / (own[3] / own[1] - own[2] / own[0])
        scale_rate = speed * own[2] / own[0] - d_alpha / alpha
        unit_rate = -(alpha * d_alpha + sigma * d_sigma) / (alpha**2 + sigma**2)
        return as_scalar(own[0] / alpha), as_scalar(scale_rate), as_scalar(unit_rate)

    def _velocity(self, z: Tensor, t: Scalar, value: Tensor) -> tuple[Scalar, Scalar, Tensor]:
        """Coefficients of the velocity on the state and on a function of the state, and the function's value at z."""
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


@dataclass(frozen=True)
class DataNoise:
    """The random numbers of each sample: its probes and its dequantization.

    Attributes:
        count, kind: number and distribution of the probes; 0 for the exact divergence.
        width: of the uniform noise added to the data; None for none.
    """

    count: int
    kind: Probe
    width: float | None

    def probes(self, source: NormalSource) -> Tensor | None:
        """Probes (N, count, *shape) with independent entries of mean 0 and variance 1, or None."""
        if not self.count:
            return None
        normals = torch.stack([source.draw(AUXILIARY, k + 1) for k in range(self.count)], 1)
        return normals if self.kind == "gaussian" else torch.where(normals < 0, -1.0, 1.0)

    def dequantized(self, x: Tensor, source: NormalSource) -> Tensor:
        """Data (N, *shape) with their uniform noise."""
        if self.width is None:
            return x
        return x + self.width * (torch.special.ndtr(source.draw(AUXILIARY).double()) - 0.5).to(x)


class DensityRun(OdeRun):
    """The run of a `DensityFlow`: a batch starts at data with their random numbers and log-densities of 0."""

    model: DensityFlow

    def __init__(
        self,
        flow: DensityFlow,
        recipe: Recipe,
        spec: Sampler,
        conduct: Conduct,
        noise: DataNoise,
        seed: int,
        report: Callable[[int], None] | None,
    ) -> None:
        super().__init__(flow, recipe, spec, conduct, forward=True)
        self.data_noise, self.seed, self.report = noise, seed, report
        self.state = torch.float64

    def run(
        self,
        indices: Sequence[int],
        condition: Any = None,
        start: Tensor | None = None,
        advance: Callback | None = None,
    ) -> Part:
        """Run one batch from its data `start` (N, *shape); its samples are (N, D + P), latents and log-densities."""
        assert start is not None
        inner = self.model.inner
        source = NormalSource(self.seed, list(indices), inner.shape)
        vectors = self.data_noise.probes(source)
        data = self.data_noise.dequantized(start.double(), source).flatten(1)
        state = torch.cat([data, data.new_zeros(len(data), self.model.columns)], 1)
        probed = Probed(condition, None if vectors is None else vectors.to(inner.device))
        part = super().run(indices, probed, state, advance)
        if self.report is not None:
            self.report(len(indices))
        return part


class GivenVelocity(SDE):
    """An ODE whose velocity is passed in place of the score, for processes that are not Gaussian."""

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
    """The log density (N,) at the noisy end, where the state is pure noise."""
    process = model.process
    prior = Prior(float(end.native[1])) if isinstance(process, GaussianProcess) else process.prior
    return prior.log_prob(latent)


def log_unit_scale(point: Point) -> float:
    """log u at a point; see `DensityFlow`."""
    alpha, sigma = point.native[:2]
    return -math.log(math.hypot(alpha, sigma))


def level_width(model: Model, levels: int) -> float | None:
    """The width of one discrete level of the data in the model's range; None for continuous data or unknown range."""
    whole("levels", levels, 0)
    if model.data_range is None or levels == 0:
        return None
    if levels == 1:
        raise UsageError("levels must be 0 for continuous data, or at least 2")
    low, high = model.data_range
    return (high - low) / (levels - 1)


def probe_count(divergence: Divergence | None, probes: int | None, size: int) -> int:
    """The number of probes for data of `size` dimensions; 0 for the exact divergence."""
    if divergence == "exact" and probes is not None:
        raise UsageError("divergence='exact' uses no probes; omit probes, or use divergence='hutchinson'")
    if divergence == "exact" or (divergence is None and probes is None and size <= FEW_DIMENSIONS):
        return 0
    return whole("probes", 1 if probes is None else probes)


def check_choice(argument: str, value: Any, known: tuple[Any, ...]) -> None:
    """Raise unless `value` is in `known`."""
    choice(argument, value, known)
