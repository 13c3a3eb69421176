"""`export_solver`: a solver on its grid as plain numbers, which a loop in any language can run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import suggest_keywords
from ..errors import UsageError
from ..models.base import Model
from ..path.path import Path
from ..path.points import Point, model_state
from ..path.prediction import Prediction
from ..public import public
from ..registry.plugin import Sampler
from ..sampling.prepared import PreparedRun, prepare
from ..sampling.request import CONDUCT_FIELDS, REQUEST_FIELDS, SamplerLike, split_arguments
from ..sampling.runs import evaluations, start_run

FORMAT, VERSION = "sdesamplers solver as numbers", 1
GRID_ARGUMENTS = REQUEST_FIELDS - {"noise", "noise_options", "start_time"} | {"guidance_scale"}


@public
@suggest_keywords(*sorted(GRID_ARGUMENTS))
def export_solver(model: Model | str, sampler: SamplerLike = "quality", **arguments: Any) -> dict[str, Any]:
    """A deterministic solver for one model and grid as plain numbers: what `sample` computes, without the library.

    Every state at which such a solver evaluates the model, and its sample, is a weighted sum of the start and of the x0
    predictions so far. So this loop is `sample`, for a `network` in any language and runtime:

        history = [start]
        for t, a, b, row in zip(times, x0_from_state, x0_from_output, weights):
            state = sum(w * each for w, each in zip(row, history))
            history.append(a * state + b * network(state, t))
        sample = sum(w * each for w, each in zip(weights[-1], history))

    Args:
        model: a `Model`, or any argument of `load`.
        sampler: the name of a deterministic sampler or recipe, a `SolverTable`, the path of one, or "tuned".
        **arguments: those of `sample` that choose the grid (`steps`, `nfe`, `times`, `sigmas`, `spacing`,
            `spacing_options`, `coordinates`, `final`, and `guidance_scale`, which chooses a table), and the sampler's
            options.

    Returns:
        A dictionary that `json.dump` writes, for N evaluations: "times", N times on the model's clock, as
        `Model.predict` receives them (timesteps of a DDPM table, sigma of `EDM`, t of a flow); "x0_from_state" and
        "x0_from_output", N numbers each, for the model's prediction type, "prediction"; "weights", N + 1 rows of 1, 2,
        ..., N + 1 numbers; "clip", (low, high) to which each x0 is to be clipped, or None; "start_std", the standard
        deviation of the normal start; "format", "version", "model", "process" and "sampler".

    Raises:
        UsageError: the sampler draws noise, needs more than one prediction per evaluation or chooses its steps by the
            states; or the model clips x0 by a percentile.
        ConversionError: the prediction does not determine x0 (epsilon at alpha = 0).

    Example:
        >>> numbers = sds.export_solver("fashion-mnist", "dpmpp-2m", steps=8)
        >>> Path("solver.json").write_text(json.dumps(numbers))
    """
    for name in arguments:
        if name in (REQUEST_FIELDS | CONDUCT_FIELDS | {"seed", "start", "condition", "num_samples"}) - GRID_ARGUMENTS:
            raise UsageError(f"{name}= does not apply to export_solver: it does not change a deterministic solver")
    request, conduct, _ = split_arguments(sampler, arguments)
    prepared = prepare(model, request, conduct)
    spec, path, model = prepared.spec, prepared.path, prepared.model
    _check(prepared)
    count = evaluations(model.process, prepared.recipe, spec, model.shape)
    basis = torch.eye(count + 1, dtype=torch.float64)
    points, states, last = _run(spec, path, prepared.recipe.options, basis)
    # The same run on numbers: a sampler that is not linear gives another result than the weights do.
    history = torch.randn(count + 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    others, _, end = _run(spec, path, prepared.recipe.options, history)
    if [p.t for p in others] != [p.t for p in points] or not torch.allclose(last @ history, end, rtol=1e-9, atol=1e-9):
        raise UsageError(f"{spec.name} is not linear in the model's predictions, so it cannot be written as weights")
    maps = [_clean_map(point, model.prediction) for point in points]
    first, prior = path.points[0], model.gaussian.prior.std
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": model.name,
        "process": type(model.process).__name__,
        "prediction": model.prediction,
        "sampler": prepared.recipe.sampler,
        "start_std": prior if first.t == model.process.t_max else float(first.sigma / first.scale),
        "times": [float(point.t) for point in points],
        "x0_from_state": [state for state, _ in maps],
        "x0_from_output": [output for _, output in maps],
        "weights": [row[: n + 1].tolist() for n, row in enumerate([*states, last])],
        "clip": None if model.clip is None else [model.clip.low, model.clip.high],
    }


def _check(prepared: PreparedRun) -> None:
    """Raise a UsageError for a run that numbers cannot describe."""
    spec, model = prepared.spec, prepared.model
    if prepared.path.is_free:
        raise UsageError(f"{spec.name} chooses its steps by the states; pass steps=, times= or sigmas=")
    if needs := [need for need in spec.needs if need != "marginals"]:
        raise UsageError(f"{spec.name} cannot be written as weights of predictions: it needs {needs[0]}")
    if model.clip is not None and model.clip.percentile is not None:
        raise UsageError(
            f"model {model.name!r} clips x0 by a percentile of each sample, which is not a number; load it with "
            "clip=False, or with fixed bounds such as clip=(-1, 1)"
        )


def _run(
    spec: Sampler, path: Path, options: dict[str, Any], history: Tensor
) -> tuple[list[Point], list[Tensor], Tensor]:
    """Run a sampler from history[0], with history[1 + n] as its x0 prediction at evaluation n.

    Args:
        history: (evaluations + 1, D).

    Returns:
        The points and the states (D,) of the evaluations, and the sample (D,), in the model's coordinates.
    """
    path = path.again()
    points, states = list[Point](), list[Tensor]()

    def predict(x: Tensor, point: Point) -> Prediction:
        if point.rows is not None or point.end is not None:
            raise UsageError(f"{spec.name} cannot be written as weights of predictions")
        points.append(point)
        states.append(model_state(x, point)[0])
        return Prediction(x, point, history[len(points)][None], "sample")

    run = start_run(spec, history[:1] * path.points[0].scale, path, options)
    try:
        request = next(run)
        while True:
            several = [predict(x, p) for x, p in (request if isinstance(request, list) else [request])]
            request = run.send(several if isinstance(request, list) else several[0])
    except StopIteration as stop:
        return points, states, model_state(stop.value, path.points[-1])[0]
    finally:
        run.close()


def _clean_map(point: Point, kind: str) -> tuple[float, float]:
    """The factors (a, b) of x0 = a state + b output, for a state in the model's coordinates."""
    state, output = torch.eye(2, dtype=torch.float64).view(2, 2, 1)
    a, b = Prediction(state * point.scale, point, output, kind).x0.flatten().tolist()
    return a, b
