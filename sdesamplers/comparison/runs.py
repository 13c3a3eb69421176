"""The runs of a comparison: one setting at one budget and seed, measured against the ODE and real data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import shown, warn
from ..errors import Cancelled, SdesamplersError, last_place
from ..generation.identity import Facts, code_facts, file_facts, plain, recipe_facts
from ..metrics import FeatureScorer
from ..models.base import Model
from ..processes.sde import GaussianProcess
from ..sampling.calls import sample
from ..sampling.prepared import prepare
from ..sampling.request import split_arguments
from ..sampling.result import Result, Trajectory
from ..sampling.runs import make_path
from .cache import Cache, content, function_identity, model_identity, scorer_identity
from .scoring import Metric, numbers_of
from .settings import Setting
from .trajectories import first_samples, trajectory

REFERENCE_TOLERANCE = 1e-5
KEPT_NUMBERS = 2**20
"""Numbers of a cell's samples that are kept by default; at least `KEPT_SAMPLES` samples."""
KEPT_SAMPLES = 16
NOT_REQUESTS = ("num_samples", "batch_size", "condition", "start", "first_index", "progress", "seed")
"""Arguments of `sample` that concern neither the sampler nor how it is run."""


@dataclass
class Run:
    """What was measured in one run.

    Attributes:
        seed: of the run.
        problem: the reason if it could not be run; then all other values are None.
        errors: the root-mean-square difference of each sample from the reference.
        metrics, per_sample: values of the caller's metrics, and those of each sample.
        samples: the first ones, decoded.
        others: see `Cell`.
    """

    seed: int
    problem: str | None = None
    nfe: int | None = None
    steps: int | None = None
    seconds: float | None = None
    errors: list[float] | None = None
    drew_noise: bool | None = None
    frechet: float | None = None
    frechet_error: float | None = None
    sliced_wasserstein: float | None = None
    scoring_problem: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    per_sample: dict[str, list[float]] = field(default_factory=dict)
    recipe: dict[str, Any] | None = None
    times: list[float] | None = None
    ratios: list[float | None] | None = None
    samples: Tensor | None = None

    @property
    def error(self) -> float | None:
        """The root-mean-square difference over all samples that have a reference."""
        return None if self.errors is None else float(np.sqrt(np.square(self.errors).mean()))


@dataclass(frozen=True)
class Plan:
    """What all runs of a comparison share; see `compare` for the attributes."""

    num_samples: int
    batch_size: int | None
    reference_samples: int
    keep_samples: int | None
    metrics: Mapping[str, Metric]
    options: Mapping[str, Any]

    @property
    def metric_identities(self) -> dict[str, str | None]:
        """The identity of each metric; None if it cannot be determined."""
        return {name: function_identity(function) for name, function in self.metrics.items()}


@dataclass
class Reference:
    """Samples of the probability-flow ODE: in the model's space (N, *shape), float64, and evaluations for each."""

    samples: Tensor
    nfe: int


class Runner:
    """Runs settings of one model at one guidance scale.

    Args:
        model, guidance_scale: of all runs.
        facts: the `model_facts` of the model.
        plan: what all runs share.
        scorer: the features in which distances are measured; None for no distances.
        cache: finished runs.
        report: called with a line before a run that takes time.
    """

    def __init__(
        self,
        model: Model,
        guidance_scale: float,
        facts: Facts,
        plan: Plan,
        scorer: FeatureScorer | None,
        cache: Cache,
        report: Callable[[str], None],
    ) -> None:
        self.model, self.guidance_scale, self.plan, self.scorer = model, guidance_scale, plan, scorer
        self.facts, self.cache, self.report = facts, cache, report
        self.common = {**plan.options, "guidance_scale": guidance_scale}
        self.references: dict[int, Reference] = {}
        self.shared = self._shared_facts() if cache.folder is not None else None

    def _shared_facts(self) -> Facts | None:
        """The part of the identity that all runs share; None if the runs cannot be identified."""
        plan, scored = self.plan, None if self.scorer is None else scorer_identity(self.scorer)
        identities = plan.metric_identities
        if plan.options.get("callback") is not None or None in identities.values():
            return None
        if self.scorer is not None and scored is None:
            return None
        try:
            model = model_identity(self.model, self.facts, self.guidance_scale, plan.options.get("condition"))
            start = content(plan.options.get("start"))
        except ValueError as part:
            warn(f"model {self.model.name!r} or its condition has a part whose content cannot be compared with that of "
                 f"earlier runs, which are made again: {part}; give it an attribute `identity`, a text that changes "
                 "with what it computes")  # fmt: skip
            return None
        return {
            **model,
            "fields": sorted(entry.name for entry in fields(Run)),
            "num_samples": plan.num_samples,
            "batch_size": plan.batch_size,
            "first_index": plan.options.get("first_index", 0),
            "start": start,
            "reference": {
                "samples": plan.reference_samples,
                "tolerance": REFERENCE_TOLERANCE,
                **{key: plain(plan.options.get(key)) for key in ("final", "start_time")},
            },
            "scorer": scored,
            "metrics": identities,
            "keep_samples": plan.keep_samples,
        }

    def run(self, setting: Setting, budget: int, seed: int) -> tuple[Run, bool]:
        """The run of a setting, and True if it was finished before; a refusal is its `problem`."""
        arguments = setting.beside(self.common)
        try:
            identity = self.identity(setting, arguments, budget, seed)
            if (found := self.cache.load(identity)) is not None:
                data, tensors = found
                return Run(**data, samples=tensors["samples"]), True
            self.report(f"{setting.label}, {budget} evaluations")
            began = time.perf_counter()
            result = sample(
                self.model, setting.sampler, nfe=budget, seed=seed, num_samples=self.plan.num_samples,
                batch_size=self.plan.batch_size, **arguments,
            )  # fmt: skip
        except Cancelled:
            raise
        except SdesamplersError as refusal:
            return Run(seed, problem=str(refusal)), False
        made = self.measured(result, seed, time.perf_counter() - began)
        data = {key: value for key, value in asdict(replace(made, samples=None)).items() if key != "samples"}
        assert made.samples is not None
        self.cache.store(identity, data, {"samples": made.samples})
        return made, False

    def identity(self, setting: Setting, arguments: Mapping[str, Any], budget: int, seed: int) -> Facts | None:
        """Everything that determines a run's numbers; None without a cache.

        Raises:
            SdesamplersError: the setting cannot be run.
        """
        if self.shared is None:
            return None
        kwargs = {key: value for key, value in arguments.items() if key not in NOT_REQUESTS}
        request, conduct, _ = split_arguments(setting.sampler, {**kwargs, "nfe": budget})
        run = prepare(self.model, request, conduct, seed)
        facts = {**self.shared, "recipe": recipe_facts(run.recipe), "code": code_facts(run), "seed": seed}
        facts["dtype"] = str(run.dtype)
        facts["check_finite"] = conduct.check_finite
        return {**facts, "files": file_facts(run)}

    def reference(self, seed: int) -> Reference:
        """The probability-flow ODE solved to `REFERENCE_TOLERANCE` from the seed's starting noise, in float64."""
        if seed not in self.references:
            identity = None
            if self.shared is not None:
                own = {
                    key: value for key, value in self.shared.items() if key not in ("scorer", "metrics", "keep_samples")
                }
                identity = {**own, "reference of": seed}
            found = self.cache.load(identity)
            if found is None:
                made = self._solved(seed)
                self.cache.store(identity, {"nfe": made.nfe}, {"samples": made.samples})
                self.references[seed] = made
            else:
                self.references[seed] = Reference(found[1]["samples"], int(found[0]["nfe"]))
        return self.references[seed]

    def _solved(self, seed: int) -> Reference:
        plan = self.plan
        count = plan.reference_samples
        self.report(f"reference: rk45 at tolerance {REFERENCE_TOLERANCE:g} for {count} samples")
        wanted = ("condition", "guidance_scale", "final", "first_index", "start", "start_time")
        kept = first_samples({key: value for key, value in self.common.items() if key in wanted}, count)
        common: dict[str, Any] = {"rtol": REFERENCE_TOLERANCE, "atol": REFERENCE_TOLERANCE, "max_nfe": 100_000}
        size = None if plan.batch_size is None else min(plan.batch_size, count)
        result = sample(
            self.model, "rk45", coordinates="angle", dtype=torch.float64, num_samples=count, seed=seed, batch_size=size,
            **common, **kept,
        )  # fmt: skip
        return Reference(result.samples, result.nfe)

    def decoded_reference(self, seed: int) -> Tensor:
        """The reference's samples, decoded if they are latents; float32."""
        samples, model = self.reference(seed).samples, self.model
        return (samples if type(model).decode is Model.decode else model.decode(samples.float())).float()

    def trajectory(self, setting: Setting, budget: int, seed: int, count: int) -> Trajectory:
        """The states of a setting's first samples on the way; finished ones are kept as runs are."""
        arguments = setting.beside(self.common)
        identity = self.identity(setting, arguments, budget, seed)
        identity = None if identity is None else {**identity, "trajectories": count}
        if (found := self.cache.load(identity)) is not None:
            return Trajectory(found[1]["times"].numpy(), found[1]["states"])
        common = {**arguments, "seed": seed, "batch_size": self.plan.batch_size}
        made = trajectory(self.model, setting.sampler, budget, count, common)
        self.cache.store(identity, {}, {"times": torch.from_numpy(made.times), "states": made.states})
        return made

    def measured(self, result: Result, seed: int, seconds: float) -> Run:
        """Everything that is measured on a result."""
        errors = None
        if self.plan.reference_samples and not result.drew_noise:
            reference = self.reference(seed).samples
            residual = (result.samples[: len(reference)].double() - reference).flatten(1)
            errors = residual.square().mean(1).sqrt().tolist()
        process = self.model.process
        points = make_path(process, result.recipe).points
        gaussian = isinstance(process, GaussianProcess)
        made = Run(
            seed,
            nfe=result.nfe,
            steps=result.recipe.steps,
            seconds=seconds,
            errors=errors,
            drew_noise=result.drew_noise,
            recipe=result.recipe.as_dict(),
            times=[float(point.t) for point in points],
            ratios=[finite_or_none(point.ratio) for point in points] if gaussian else None,
        )
        self.score(result, made)
        return made

    def score(self, result: Result, made: Run) -> None:
        """Decode the samples batch by batch, score them, and keep the first."""
        size = self.plan.batch_size or len(result.samples)
        features, parts, kept, problems = list[np.ndarray](), list[Tensor](), 0, list[str]()
        scorer = self.scorer if len(result.samples) > 1 else None
        for part in torch.split(result.samples, size):
            decoded = part if result.decoder is None else result.decoder(part)
            if scorer is not None and not problems:
                with noting(problems):
                    features.append(np.asarray(scorer.features(decoded)))
            wanted = self.plan.num_samples if self.plan.metrics else self.kept(decoded)
            if kept < wanted:
                parts.append(decoded[: wanted - kept])
                kept += len(parts[-1])
        samples = torch.cat(parts)
        if scorer is not None and not problems:
            with noting(problems):
                set_distances(made, scorer, np.concatenate(features))
        for name, function in self.plan.metrics.items():
            with noting(problems):
                value = measured_by(name, function, samples)
                made.metrics[name] = float(np.mean(value))
                if isinstance(value, list):
                    made.per_sample[name] = value
        made.scoring_problem = "; ".join(problems) or None
        made.samples = samples[: self.kept(samples)].clone()

    def kept(self, decoded: Tensor) -> int:
        """The number of samples of a cell that are kept."""
        limit = self.plan.keep_samples
        if limit is None:
            limit = max(KEPT_NUMBERS // max(math.prod(decoded.shape[1:]), 1), KEPT_SAMPLES)
        return min(limit, self.plan.num_samples)


def set_distances(made: Run, scorer: FeatureScorer, features: np.ndarray) -> None:
    """Set the distances of a run's features, and the standard error of the first if the scorer has it."""
    frechet, sliced = numbers_of(scorer.score_features(features))
    spread = getattr(scorer, "frechet_error", None)
    made.frechet_error = None if spread is None else spread(features)
    made.frechet, made.sliced_wasserstein = frechet, sliced


def measured_by(name: str, function: Metric, samples: Tensor) -> float | list[float]:
    """A metric's value for samples: a number, or a number for each sample.

    Raises:
        ValueError: it returned something else, or a number that is not finite.
    """
    found = function(samples)
    values = found.detach().cpu().double().numpy() if isinstance(found, Tensor) else np.asarray(found)
    if values.dtype.kind not in "fiub" or values.shape not in ((), (len(samples),)):
        raise ValueError(f"metric {name!r} must return a number or {len(samples)} numbers, not {shown(found)}")
    if not np.isfinite(values).all():
        raise ValueError(f"metric {name!r} returned a number that is not finite")
    return float(values) if values.shape == () else [float(value) for value in values]


@contextmanager
def noting(problems: list[str]) -> Iterator[None]:
    """Add an error of the body to `problems`: a scorer is the user's code, whose failure must not lose samples."""
    try:
        yield
    except Exception as error:
        problems.append(f"{type(error).__name__}: {error}{last_place(error)}")


def finite_or_none(value: Any) -> Any:
    """A number for JSON, which has no infinity; None if it is not finite."""
    return float(value) if np.isfinite(value) else None
