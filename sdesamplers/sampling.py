"""`sample`: a model, a sampler and a seed to samples; and the replay of a stored run under other weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .errors import UsageError
from .grid import given_points, spaced_points
from .loop import Callback, Evaluator, Flag, Run, count_evaluations, drive
from .models.base import Model
from .noise import NOISES, START, BrownianNoise, IndependentNoise, Noise, NormalSource, brownian_levels
from .options import check_options
from .path import Path, Point, path_process
from .plugin import Sampler
from .prediction import Prediction
from .registry import default_registry
from .sde import SDE, GaussianProcess, expand

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_SPACING = "linspace"


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a run but the model and the seed; checked, with nothing left open.

    Attributes:
        sampler, options: the sampler's name and its options, defaults filled in.
        steps: grid intervals; None for an adaptive run or a given grid.
        spacing, spacing_options: the time grid.
        times, sigmas: the user's own grid instead.
        coordinates, noise, final: as in `sample`.
        start_time: where a partly noised input stands on the model's clock; None for the prior.
    """

    sampler: str
    options: dict[str, Any]
    steps: int | None
    spacing: str | None
    spacing_options: dict[str, Any]
    times: tuple[float, ...] | None
    sigmas: tuple[float, ...] | None
    coordinates: str
    noise: str
    final: str
    start_time: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON and metadata; fields that do not apply are left out."""
        return {k: v for k, v in vars(self).items() if v not in (None, {}, ())}


@dataclass
class Trajectory:
    """States at the evaluations of a run, and the sample last.

    Attributes:
        times: the model's time of each entry, shape (K,), or (K, N) where samples choose their own steps; NaN for
            the sample.
        states: (K, N, *shape), in the state's dtype and the model's own coordinates, on the CPU.
    """

    times: np.ndarray
    states: Tensor


@dataclass
class Result:
    """What a run made.

    Attributes:
        samples: (N, *shape), float32 (float64 on request), in the model's data range, on the CPU.
        nfe: model evaluations a sample; for adaptive samplers the largest over the samples.
        nfe_per_sample: (N,) whole numbers.
        recipe: what was run.
        seed, indices: sample j is a function of (seed, indices[j]).
        model_name, revision: what it was run on.
        trajectory: with `trajectory=True`.
        accepted, rejected: (N,) steps of an adaptive sampler.
        log_probs: with `log_probs=True`, the log-probability (nats) of every transition, (N, transitions), float64.
        start, draws: first states (N, *shape) and transitions' outcomes (N, transitions, *shape) in the path's
            coordinates, kept with the log-probabilities for `replay_log_probs`.
        sampler: the sampler itself.
    """

    samples: Tensor
    nfe_per_sample: np.ndarray
    recipe: Recipe
    seed: int
    indices: list[int]
    model_name: str
    revision: str | None
    data_range: tuple[float, float] | None
    trajectory: Trajectory | None = None
    log_probs: Tensor | None = None
    start: Tensor | None = None
    draws: Tensor | None = None
    accepted: np.ndarray | None = None
    rejected: np.ndarray | None = None
    condition: Any = None
    guidance_scale: float = 1.0
    sampler: Sampler | None = field(default=None, repr=False)

    @property
    def nfe(self) -> int:
        """Model evaluations a sample actually made (the largest, where samples differ)."""
        return int(self.nfe_per_sample.max())

    @property
    def images(self) -> list[Image]:
        """The samples as PIL images, clipped to the data range.

        Raises:
            UsageError: the samples are not (channels, height, width) with 1, 3 or 4 channels.
        """
        from .images import to_images

        return to_images(self.samples, self.data_range)


def make_recipe(
    sampler: str | Sampler,
    *,
    process: SDE,
    steps: int | None = None,
    nfe: int | None = None,
    spacing: str | None = None,
    spacing_options: dict[str, Any] | None = None,
    times: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    coordinates: str | None = None,
    noise: str | None = None,
    final: str | None = None,
    start_time: float | None = None,
    options: dict[str, Any] | None = None,
) -> tuple[Recipe, Sampler]:
    """Check a call's words and fill in what it leaves open; see `sample` for them.

    Raises:
        UsageError: a name, number or combination that cannot be run.
    """
    given = default_registry().resolve(sampler) if isinstance(sampler, str) else None
    spec = given.sampler if given is not None else sampler
    if not isinstance(spec, Sampler):
        raise UsageError(f"sampler must be a name or a Sampler, not {sampler!r}")
    base = dict(given.options) if given is not None else {}
    own_grid = [word for word, value in (("times", times), ("sigmas", sigmas)) if value is not None]
    counts = [word for word, value in (("steps", steps), ("nfe", nfe)) if value is not None]
    if len(own_grid) + len(counts) > 1:
        raise UsageError(f"give one of steps, nfe, times and sigmas, not {' and '.join(counts + own_grid)}")
    for word, value in (("steps", steps), ("nfe", nfe)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1):
            raise UsageError(f"{word} must be a whole number of 1 or more, not {value!r}")
    if not own_grid and not counts and given is not None:
        steps = given.steps
    fixed = bool(own_grid) or steps is not None or nfe is not None
    if not fixed and not spec.adaptive:
        raise UsageError(f"{spec.name} needs steps=... (grid intervals) or nfe=... (a budget of model evaluations)")
    set_options = check_options({**base, **(options or {})}, spec.options, f"sampler {spec.name!r}")
    if fixed and spec.adaptive:
        stray = [name for name in set_options if name in spec.control]
        if stray:
            word = (own_grid + counts + ["steps"])[0]
            raise UsageError(
                f"{spec.name} takes either {word} (a fixed grid) or {', '.join(stray)} (its own steps), not both"
            )
    if start_time is not None and own_grid:
        raise UsageError(f"start_time and {own_grid[0]} contradict each other: the grid's first entry is the start")
    if start_time is not None and (isinstance(start_time, bool) or not isinstance(start_time, float | int)):
        raise UsageError(f"start_time must be a number on the model's clock, not {start_time!r}")
    if spacing is not None and own_grid:
        raise UsageError(f"spacing and {own_grid[0]} contradict each other")
    name = spacing or (given.spacing if given is not None else None) or spec.spacing or DEFAULT_SPACING
    grid = default_registry().spacing(name)
    from_recipe = dict(given.spacing_options) if given is not None and spacing in (None, given.spacing) else {}
    grid_options = check_options({**from_recipe, **(spacing_options or {})}, grid.options, f"spacing {name!r}")
    defaults = {o.name: o.default for o in spec.options.values() if not (fixed and o.name in spec.control)}

    def pick(word: str, value: str | None, fallback: str, known: Sequence[str]) -> str:
        value = value or (getattr(given, word) if given is not None else None) or fallback
        if value not in known:
            raise UsageError(f"{word} must be {' or '.join(repr(k) for k in known)}, not {value!r}")
        return value

    if coordinates is None:
        coordinates = (given.coordinates if given is not None else None) or spec.coordinates
        if not isinstance(process, GaussianProcess):
            coordinates = "native"
    recipe = Recipe(
        sampler=spec.name,
        options={**defaults, **set_options},
        steps=int(steps) if steps is not None else None,
        spacing=name if fixed and not own_grid else None,
        spacing_options=grid_options if fixed and not own_grid else {},
        times=None if times is None else tuple(float(t) for t in _numbers(times, "times")),
        sigmas=None if sigmas is None else tuple(float(s) for s in _numbers(sigmas, "sigmas")),
        coordinates=coordinates,
        noise=pick("noise", noise, "independent", NOISES),
        final=pick("final", final, "zero", ("zero", "min")),
        start_time=start_time,
    )
    if nfe is not None:
        recipe = replace(recipe, steps=steps_for_budget(process, recipe, spec, int(nfe)))
    return recipe, spec


def _numbers(values: Any, word: str) -> list[float]:
    try:
        return [float(v) for v in values]
    except (TypeError, ValueError):
        raise UsageError(f"{word} must be a list of numbers, not {values!r}") from None


def make_path(process: SDE, recipe: Recipe, noise: Noise | None = None) -> Path:
    """The path of a recipe on a model's process."""
    viewed = path_process(process, recipe.coordinates)
    if recipe.times is not None or recipe.sigmas is not None:
        return Path(viewed, given_points(viewed, recipe.times, recipe.sigmas), noise=noise)
    if recipe.steps is None:
        linear = default_registry().spacing("linspace")
        intervals = 2 if recipe.final == "zero" and isinstance(process, GaussianProcess) else 1
        ends = spaced_points(viewed, linear, {}, intervals, recipe.start_time, recipe.final)
        return Path(viewed, ends, is_free=True, noise=noise)
    assert recipe.spacing is not None
    try:
        grid = default_registry().spacing(recipe.spacing)
        options, begin = recipe.spacing_options, recipe.start_time
        points = spaced_points(viewed, grid, options, recipe.steps, begin, recipe.final)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"spacing {recipe.spacing!r}: {error}") from None
    return Path(viewed, points, noise=noise)


def start_run(spec: Sampler, x: Tensor, path: Path, options: dict[str, Any]) -> Run:
    """A sampler's generator; a ValueError that it raises about its options becomes a UsageError."""

    def run() -> Run:
        try:
            return (yield from spec(x, path, **options))
        except UsageError as error:
            raise type(error)(f"{spec.name}: {error}") if type(error) is UsageError else error from None
        except ValueError as error:
            raise UsageError(f"{spec.name}: {error}") from error

    return run()


def evaluations(process: SDE, recipe: Recipe, spec: Sampler) -> int:
    """Model evaluations that a fixed-grid recipe makes, counted by a dry run."""
    dry = _DryNoise()
    path = make_path(process, recipe, dry)
    return count_evaluations(start_run(spec, torch.zeros(1, 1, dtype=torch.float64), path, recipe.options))


class _DryNoise:
    def __call__(self, start: float, end: float, rows: np.ndarray | None = None) -> Tensor:
        return torch.zeros(1, 1)


def steps_for_budget(process: SDE, recipe: Recipe, spec: Sampler, nfe: int) -> int:
    """The largest number of steps whose evaluations fit in `nfe`.

    Raises:
        UsageError: not even one step fits.
    """

    def cost(steps: int) -> int:
        return evaluations(process, replace(recipe, steps=steps), spec)

    low = max(1, nfe // max(spec.evaluations, 1))
    while cost(low) > nfe:
        if low == 1:
            raise UsageError(f"{spec.name} needs {cost(1)} evaluations for its first step; nfe={nfe} is too few")
        low = max(1, low - max(1, low // 8))
    while cost(low + 1) <= nfe:
        low += 1
    return low


class _Recorder:
    """Keeps the trajectory of one batch: the state of every sample at every evaluation."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.times: list[np.ndarray] = []
        self.states: list[Tensor] = []

    def __call__(self, prediction: Prediction) -> None:
        point = prediction.point
        state = prediction.x / expand(point.scale, prediction.x)
        times = np.broadcast_to(np.asarray(point.t, dtype=float), (len(state),))
        if point.rows is not None:
            whole = self.states[-1].clone() if self.states else state.new_zeros(self.count, *state.shape[1:])
            clock = self.times[-1].copy() if self.times else np.zeros(self.count)
            whole[torch.from_numpy(point.rows)] = state.to(whole)
            clock[point.rows] = times
            state, times = whole, clock
        self.times.append(np.array(times))
        self.states.append(state.detach().clone())


def as_model(model: Model | str) -> Model:
    """A model as it is, or loaded with its defaults."""
    if isinstance(model, str):
        from .models.loading import load

        return load(model)
    return model


@torch.no_grad()
def sample(
    model: Model | str,
    sampler: str | Sampler = "heun",
    *,
    steps: int | None = None,
    nfe: int | None = None,
    spacing: str | None = None,
    spacing_options: dict[str, Any] | None = None,
    times: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    coordinates: str | None = None,
    seed: int = 0,
    num_samples: int = 1,
    batch_size: int | None = None,
    first_index: int = 0,
    noise: str | None = None,
    final: str | None = None,
    start: Tensor | None = None,
    start_time: float | None = None,
    condition: Any = None,
    guidance_scale: float = 1.0,
    callback: Callback | None = None,
    cancel: Flag | None = None,
    trajectory: bool = False,
    log_probs: bool = False,
    check_finite: bool = True,
    dtype: torch.dtype | None = None,
    progress: bool = False,
    **options: Any,
) -> Result:
    """Draw samples from a model.

    Args:
        model: a `Model`, or what `load` takes.
        sampler: the name of a sampler, recipe or alias.
        steps: grid intervals. Give exactly one of `steps`, `nfe`, `times` and `sigmas`; adaptive samplers may be
            given none and then choose their own steps.
        nfe: budget of model evaluations a sample: the largest step count that fits is taken.
        spacing, spacing_options: the time grid and its options.
        times: your own grid on the model's clock, run exactly as given.
        sigmas: your own grid of sigma/alpha (plain sigma where alpha = 1); a last 0 is the clean end.
        coordinates: "native", "ve", "flow" or "angle".
        seed, first_index: sample j depends on (seed, first_index + j) alone.
        num_samples: how many.
        batch_size: how many at once; all of them by default. It does not change the samples.
        noise: "independent", or "brownian" for step noise that stays the same path when the grid changes.
        final: "zero" ends at sigma = 0, "min" at the smallest sigma that the model was trained at.
        start: begin from these states (num_samples, *shape) in the model's coordinates instead of from the prior.
        start_time: the model's time of `start`; the grid then runs from there. Default: the grid's first time.
        condition: class labels or what the model takes; one for all or one a sample.
        guidance_scale: classifier-free guidance weight, 1 for none.
        callback: called with an `Event` before each evaluation; may replace its `x`; may raise `Cancelled`.
        cancel: a `threading.Event`; when set, the run stops with `Cancelled`.
        trajectory: record the states at all evaluations.
        log_probs: record the exact log-probability of each stochastic transition, and what `replay_log_probs` needs.
        check_finite: raise where the model's output or the sample is NaN or infinite.
        dtype: of the state; float32 by default, float64 on request, never below float32.
        progress: show a progress bar.
        **options: the sampler's own options.

    Raises:
        UsageError: words that do not fit; its message says what would.
        NonFiniteError: the model or solver broke down, with sampler, evaluation and time.
        Cancelled: the run was stopped.
    """
    model = as_model(model)
    recipe, spec = make_recipe(
        sampler,
        process=model.process,
        steps=steps,
        nfe=nfe,
        spacing=spacing,
        spacing_options=spacing_options,
        times=times,
        sigmas=sigmas,
        coordinates=coordinates,
        noise=noise,
        final=final,
        start_time=start_time,
        options=options,
    )
    _check_counts(num_samples, batch_size, first_index)
    if dtype not in (None, torch.float32, torch.float64):
        raise UsageError(f"dtype is that of the state and must be torch.float32 or torch.float64, not {dtype}")
    state_dtype = dtype or (torch.float64 if model.dtype == torch.float64 else torch.float32)
    if start is not None and tuple(start.shape) != (num_samples, *model.shape):
        raise UsageError(f"start must have shape {(num_samples, *model.shape)}, not {tuple(start.shape)}")
    if start_time is not None and start is None:
        raise UsageError("start_time says where start stands in time; give start as well")
    spread = model.condition_for(condition, num_samples)
    batch_size = min(batch_size or num_samples, num_samples)
    batches = []
    bar = _progress(progress, recipe, spec, model, num_samples, batch_size)
    with bar as advance:
        for first in range(0, num_samples, batch_size):
            rows = range(first, min(first + batch_size, num_samples))
            source = NormalSource(seed, [first_index + r for r in rows], model.shape)
            path = make_path(model.process, recipe, _noise(recipe, model.process, source))
            if log_probs:
                path.log_probs = []
            x = start_state(model, path, source, start[first : rows.stop] if start is not None else None, state_dtype)
            recorder = _Recorder(len(rows)) if trajectory else None
            evaluator = Evaluator(
                model,
                len(rows),
                f"{spec.name} on {model.name}",
                condition=None if spread is None else spread[first : rows.stop],
                guidance_scale=guidance_scale,
                check_finite=check_finite,
                callback=_both(callback, advance),
                cancel=cancel,
                record=recorder,
            )
            with torch.inference_mode():
                final_state = drive(start_run(spec, x, path, recipe.options), evaluator)
                last = path.points[-1]
                clean = final_state if last.scale == 1.0 else final_state / expand(last.scale, final_state)
            batches.append((clean.clone(), evaluator.nfe, path, recorder, x))
    return _collect(batches, recipe, spec, seed, first_index, num_samples, model, log_probs, spread, guidance_scale)


def _check_counts(num_samples: int, batch_size: int | None, first_index: int) -> None:
    counts = (("num_samples", num_samples, 1), ("batch_size", batch_size, 1), ("first_index", first_index, 0))
    for word, value, least in counts:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least):
            raise UsageError(f"{word} must be a whole number of {least} or more, not {value!r}")


def _noise(recipe: Recipe, process: SDE, source: NormalSource) -> Noise:
    if recipe.noise == "independent":
        return IndependentNoise(source)
    points: list[Point] = make_path(process, recipe).points
    gaussian = isinstance(process, GaussianProcess)
    return BrownianNoise(source, brownian_levels([p.lam if gaussian else p.time for p in points]))  # type: ignore[misc]


def start_state(model: Model, path: Path, source: NormalSource, start: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The first state of a batch in path coordinates: `start`, or prior noise scaled to the first point."""
    first = path.points[0]
    if start is not None:
        x = start.to(device=model.device, dtype=dtype)
        return x * expand(first.scale, x)
    normal = source.draw(START).to(device=model.device, dtype=dtype, non_blocking=True)
    if isinstance(model.process, GaussianProcess):
        return normal * float(first.sigma)
    return model.process.prior.sample(normal)


def _both(callback: Callback | None, advance: Callback | None) -> Callback | None:
    if callback is None or advance is None:
        return callback or advance

    def call(event: Any) -> None:
        callback(event)
        advance(event)

    return call


def _progress(show: bool, recipe: Recipe, spec: Sampler, model: Model, count: int, batch_size: int) -> Any:
    from contextlib import nullcontext

    if not show:
        return nullcontext(None)
    from .terminal import evaluation_bar

    total = None if recipe.steps is None and recipe.times is None and recipe.sigmas is None else 0
    if total == 0:
        total = evaluations(model.process, recipe, spec) * -(-count // batch_size)
    return evaluation_bar(f"{spec.name} on {model.name}", total)


def _collect(
    batches: list[tuple[Tensor, np.ndarray, Path, _Recorder | None, Tensor]],
    recipe: Recipe,
    spec: Sampler,
    seed: int,
    first_index: int,
    num_samples: int,
    model: Model,
    log_probs: bool,
    condition: Any,
    guidance_scale: float,
) -> Result:
    samples = torch.cat([clean for clean, *_ in batches]).cpu()
    result = Result(
        samples=samples,
        nfe_per_sample=np.concatenate([nfe for _, nfe, *_ in batches]),
        recipe=recipe,
        seed=seed,
        indices=list(range(first_index, first_index + num_samples)),
        model_name=model.name,
        revision=model.revision,
        data_range=model.data_range,
        condition=condition,
        guidance_scale=guidance_scale,
        sampler=spec,
    )
    paths = [path for _, _, path, _, _ in batches]
    if batches[0][3] is not None:
        result.trajectory = _join_trajectories([b[3] for b in batches if b[3] is not None], samples)
    if all(path.accepted is not None for path in paths):
        result.accepted = np.concatenate([path.accepted for path in paths if path.accepted is not None])
        result.rejected = np.concatenate([path.rejected for path in paths if path.rejected is not None])
    if log_probs:
        if not paths[0].log_probs:
            raise UsageError(f"{recipe.sampler} drew no noise with these options, so there are no log_probs")
        result.log_probs = torch.cat([torch.stack(p.log_probs or [], 1) for p in paths]).cpu()
        result.draws = torch.cat([torch.stack(p.draws, 1) for p in paths]).cpu()
        result.start = torch.cat([x for *_, x in batches]).cpu()
    return result


def _join_trajectories(recorders: list[_Recorder], samples: Tensor) -> Trajectory:
    """Put batches side by side; batches of an adaptive run differ in length and rest at their last state."""
    longest = max(len(r.states) for r in recorders)
    times, states = [], []
    for recorder in recorders:
        pad = longest - len(recorder.states)
        states.append(torch.stack(recorder.states + [recorder.states[-1]] * pad).cpu())
        times.append(np.stack(recorder.times + [recorder.times[-1]] * pad))
    clock = np.concatenate(times, axis=1)
    clock = np.concatenate([clock, np.full((1, clock.shape[1]), np.nan)])
    joined = torch.cat([torch.cat(states, 1), samples[None]])
    same = bool(np.all(clock[:-1] == clock[:-1, :1]))
    return Trajectory(clock[:, 0] if same else clock, joined)


def replay_log_probs(model: Model, result: Result) -> Tensor:
    """Log-probabilities of a stored run's transitions under a model's present weights.

    The sampler is run again over the states that were drawn, not over new ones; gradients flow to the model's
    parameters where they are enabled, which is what policy-gradient fine-tuning needs (DDPO, Black et al. 2024).

    Args:
        model: the model, with the same or other weights.
        result: of `sample(..., log_probs=True)`.

    Returns:
        (N, transitions), float64, in nats.
    """
    if result.draws is None or result.start is None:
        raise UsageError("this result was stored without its transitions; sample with log_probs=True")
    recipe = result.recipe
    spec = result.sampler or default_registry().resolve(recipe.sampler).sampler
    path = make_path(model.process, recipe)
    path.log_probs, path.replayed = [], list(result.draws.unbind(1))
    evaluator = Evaluator(
        model,
        len(result.start),
        f"replay of {spec.name} on {model.name}",
        condition=result.condition,
        guidance_scale=result.guidance_scale,
    )
    drive(start_run(spec, result.start.to(model.device), path, recipe.options), evaluator)
    return torch.stack(path.log_probs, 1)
