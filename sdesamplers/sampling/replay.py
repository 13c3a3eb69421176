"""A run made again from its stored draws, for the log-probabilities that another network gives them."""

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
    """Log-probabilities of a stored run's transitions under a model's present weights.

    The sampler is run again over the states that were drawn, not over new ones; gradients flow to the model's
    parameters where they are enabled, which is what policy-gradient fine-tuning needs (DDPO, Black et al. 2024). The
    network is evaluated as in the run, in evaluation mode, so that under the same weights the ratio to the run is 1.

    Args:
        model: the model, with the same or other weights.
        result: of `sample(..., log_probs=True)`.
        rows: of its samples, so that gradients can be gathered a part at a time where memory is short; all by default.

    Returns:
        (N, transitions), float64, in nats.

    Raises:
        UsageError: the result was stored without its transitions, or `rows` has none of its samples.
    """
    one_of_types("result", result, Result, "a Result of sample")
    one_of_types("rows", rows, slice, "a slice, such as slice(0, 16)")
    if result.draws is None or result.start is None:
        raise UsageError("this result was stored without its transitions; sample with log_probs=True")
    model = as_model(model)
    shape = tuple(result.start.shape[1:])
    if shape != model.shape:
        raise UsageError(f"{model.name!r} has samples of shape {model.shape}, and this result of shape {shape}")
    check_process(result, model)
    start, draws, condition = result.start[rows], result.draws[rows], result.condition
    if not len(start):
        raise UsageError(f"{rows} has none of the {len(result.start)} samples of this result")
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
