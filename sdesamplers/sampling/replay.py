"""Replay of a run from its stored draws, for their log-probabilities under other weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import one_of_types
from ..errors import UsageError
from ..models.base import Model
from ..models.conditions import take_rows
from ..models.running import running
from ..pretrained.loading import as_model
from ..public import public
from ..registry.registry import default_registry
from .loop import Evaluator, drive
from .parts import stack
from .result import Result, check_process
from .runs import make_path, start_run


@public
def replay_log_probs(model: Model, result: Result, rows: slice = slice(None)) -> Tensor:
    """Log-probabilities of a stored run's transitions under a model's current weights.

    The sampler runs again over the stored states and draws no new ones. Gradients flow to the model's parameters if
    autograd is enabled, as policy-gradient fine-tuning needs (DDPO, Black et al. 2024). The network runs in evaluation
    mode, as in the original run, so the probability ratio to the original run is 1 under the same weights.

    Args:
        model: the model, with the same or other weights.
        result: the result of `sample(..., log_probs=True)`.
        rows: a slice of its samples; all by default. Slices allow accumulating gradients with less memory.

    Returns:
        (N, transitions), float64, in nats.

    Raises:
        UsageError: the result was stored without its transitions, is of another process or shape than the model's, or
            `rows` selects no sample.
    """
    one_of_types("result", result, Result, "a Result of sample")
    one_of_types("rows", rows, slice, "a slice, such as slice(0, 16)")
    if result.draws is None or result.start is None:
        raise UsageError("this result was stored without its transitions; sample with log_probs=True")
    model = as_model(model)
    shape = tuple(result.start.shape[1:])
    if shape != model.shape:
        raise UsageError(f"{model.name!r} has samples of shape {model.shape}, but this result has shape {shape}")
    check_process(result, model)
    start, draws, condition = result.start[rows], result.draws[rows], result.condition
    if not len(start):
        raise UsageError(f"{rows} selects none of the {len(result.start)} samples of this result")
    recipe = result.recipe
    spec = result.sampler or default_registry().resolve(recipe.sampler).sampler
    path = make_path(model.process, recipe)
    path.ledger.log_probs, path.ledger.replayed = [], list(draws.unbind(1))
    evaluator = Evaluator(
        model,
        len(start),
        f"replay of {spec.name} on {model.name}",
        condition=take_rows(condition, rows),
        guidance_scale=result.guidance_scale,
        both="unguided" in spec.needs,
        clip=model.clip,
    )
    with running(model, key=(result.seed,), gradients=torch.is_grad_enabled()):
        drive(start_run(spec, start.to(model.device), path, recipe.options), evaluator)
    return stack(path.ledger.log_probs, len(start))
