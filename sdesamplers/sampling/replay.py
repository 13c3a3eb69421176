"""Replay of a run from its stored draws, for their log-probabilities under other weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import one_of_types, whole_numbers
from ..errors import UsageError
from ..models.base import Model
from ..models.conditions import take_rows
from ..models.running import running
from ..path.path import Path
from ..path.points import Point
from ..path.prediction import Prediction, ScorePrediction
from ..path.transition import Draw, normal_log_prob
from ..pretrained.loading import as_model
from ..processes.sde import GaussianProcess
from ..public import public
from ..registry.plugin import Sampler
from ..registry.registry import default_registry
from .loop import Evaluator, Run, drive, well_formed
from .memory import prediction_bit, requested_bit, sources_of_means
from .parts import stack
from .records import forgotten
from .request import batches
from .result import Result, by_step, check_process, chosen_steps
from .runs import make_path, start_run


@public
def replay_log_probs(
    model: Model,
    result: Result,
    rows: slice | Sequence[int] = slice(None),
    *,
    steps: Sequence[int] | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Log-probabilities of a stored run's transitions under a model's current weights.

    The sampler runs again over the stored states and draws no new ones. Gradients flow to the model's parameters if
    autograd is enabled, as policy-gradient fine-tuning needs (DDPO, Black et al. 2024). The network runs in evaluation
    mode, as in the original run, so the probability ratio to the original run is 1 under the same weights.

    States that a callback of `sample` or the caller of a `Stepper` has set are those of the stored run.

        old = result.step_log_probs([3, 4])[rows]
        new = sds.replay_log_probs(model, result, rows, steps=[3, 4])
        ratio = (new - old).exp()

    Args:
        model: the model, with the same or other weights.
        result: the result of `sample(..., log_probs=True)`.
        rows: a slice of its samples, or their positions; all by default. Parts allow accumulating gradients with less
            memory.
        steps: steps of the grid, from 0; by default the whole run is replayed. Samplers with one evaluation per step
            are evaluated only at these steps, from the stored states, and for multistep methods at the steps before on
            which the transition depends. Other samplers run as a whole.
        batch_size: evaluate this number of samples at a time; by default all of them.

    Returns:
        (N, transitions), float64, in nats; with `steps`, (N, number of steps), in which the transitions of a step are
        summed and a step without noise has log-probability 0, as in `Result.step_log_probs`.

    Raises:
        UsageError: the result was stored without its transitions, is of another process or shape than the model's, has
            no such step, or `rows` selects no sample.
    """
    one_of_types("result", result, Result, "a Result of sample")
    if result.draws is None or result.start is None:
        raise UsageError("this result was stored without its transitions; sample with log_probs=True")
    model = as_model(model)
    shape = tuple(result.start.shape[1:])
    if shape != model.shape:
        raise UsageError(f"{model.name!r} has samples of shape {model.shape}, but this result has shape {shape}")
    check_process(result, model)
    if result.edited and result.visited is None:
        raise UsageError(
            f"states of this run of {result.recipe.sampler} were edited, and those of samples that take their own "
            "steps are not stored; sample without the edits to replay it"
        )
    chosen = _positions(rows, len(result.start))
    places = None if steps is None else chosen_steps(result.number_of_steps, steps)
    if places is not None and result.transition_steps is None:
        raise UsageError("this result was stored without the steps of its transitions; sample again to replay steps")
    spec = result.sampler or default_registry().resolve(result.recipe.sampler).sampler
    with running(model, key=(result.seed,), gradients=torch.is_grad_enabled()):
        parts = [_Replay(model, result, spec, chosen[part], places) for part in batches(len(chosen), batch_size)]
        return torch.cat([each.log_probs() for each in parts])


def _positions(rows: Any, count: int) -> np.ndarray:
    """The positions of the samples that `rows` selects, out of `count`."""
    if isinstance(rows, slice):
        found = np.arange(count)[rows]
    else:
        expected = "a slice, such as slice(0, 16), or a sequence of positions"
        found = np.array(whole_numbers("rows", rows, expected), dtype=np.int64)
        if len(found) and found.max() >= count:
            raise UsageError(f"this result has the samples 0 to {count - 1}, not {found.max()}")
    if not len(found):
        raise UsageError(f"{rows} selects none of the {count} samples of this result")
    return found


class _Replay:
    """The replay of some samples of a run.

    Args:
        model, result, spec: the model, the stored run and its sampler.
        rows: positions of the samples.
        steps: the steps to replay; None for the whole run.
    """

    def __init__(
        self, model: Model, result: Result, spec: Sampler, rows: np.ndarray, steps: Sequence[int] | None
    ) -> None:
        assert result.draws is not None
        assert result.start is not None
        pick = torch.from_numpy(rows)
        self.result, self.spec, self.steps = result, spec, steps
        self.start = result.start[pick].to(model.device)
        self.draws = result.draws[pick].unbind(1)
        self.edited = {
            k: None if result.edited_rows is None else result.edited_rows[pick, place]
            for place, k in enumerate(result.edited or ())
        }
        reads_states = steps is not None or self.edited
        self.visited = result.visited[pick].unbind(1) if reads_states and result.visited is not None else None
        self.evaluator = Evaluator(
            model,
            len(rows),
            f"replay of {spec.name} on {model.name}",
            condition=take_rows(result.condition, rows),
            guidance_scale=result.guidance_scale,
            both="unguided" in spec.needs,
            clip=model.clip if result.clip is None else result.clip,
        )
        self.path = make_path(model.process, result.recipe)
        self.path.ledger.replayed = self.draws

    def log_probs(self) -> Tensor:
        """The log-probabilities that `replay_log_probs` returns."""
        places, steps = self.result.transition_steps or [], self.steps
        if steps is None:
            return self._of_all()
        wanted = [d for d, step in enumerate(places) if step in set(steps)]
        sources = self._sources(wanted)
        if sources is None:
            return by_step(self._of_all(), places, steps)
        found = self._of_some(wanted, sources)
        return by_step(stack(found, len(self.start)).to(self.start.device), [places[d] for d in wanted], steps)

    def _of_all(self) -> Tensor:
        ledger = self.path.ledger
        ledger.log_probs = []
        run = self._run()
        drive(self._edited(run) if self.edited else run, self.evaluator)
        return stack(ledger.log_probs, len(self.start))

    def _edited(self, run: Run) -> Run:
        """A run whose states are those that the caller set, at the evaluations where it did."""
        count = 0
        try:
            request = next(run)
            while True:
                pairs = request if isinstance(request, list) else [request]
                pairs = [(self._state(k, *well_formed(each)), each[1]) for k, each in enumerate(pairs, count)]
                count += len(pairs)
                request = run.send((yield pairs if isinstance(request, list) else pairs[0]))
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            run.close()

    def _state(self, k: int, x: Tensor, point: Point[Any]) -> Tensor:
        """The state of evaluation k: the requested one, or what the caller set in its place."""
        if k not in self.edited:
            return x
        assert self.visited is not None
        stored, rows = self.visited[k].to(x), self.edited[k]
        return stored if rows is None else torch.where(rows.to(x.device).view(-1, *(1,) * (x.dim() - 1)), stored, x)

    def _run(self) -> Any:
        return start_run(self.spec, self.start, self.path, self.result.recipe.options)

    def _sources(self, wanted: Sequence[int]) -> int | None:
        """What the means of these draws depend on; None if the run has to be replayed as a whole.

        That is the case if a step has several evaluations: its later ones are at states that depend on the weights.
        """
        path, visited = self.path, self.visited
        if self.spec.evaluations != 1 or visited is None or len(visited) != len(path.steps):
            return None
        like = torch.empty(self.start.shape, dtype=self.start.dtype, device="meta")
        means = sources_of_means(self.spec, Path(path.process, path.points), self.result.recipe.options, like)
        if means is None or len(means) != len(self.draws):
            return None
        found = 0
        for d in wanted:
            found |= means[d]
        return found

    def _of_some(self, wanted: Sequence[int], sources: int) -> list[Tensor]:
        """The log-probabilities of these draws, from evaluations at the stored states on which they depend."""
        assert self.visited is not None
        make = Prediction if isinstance(self.path.process, GaussianProcess) else ScorePrediction
        watched: list[Draw] = []
        self.path.ledger.watched = watched
        run = self._run()
        try:
            request = next(run)
            for k, state in enumerate(self.visited):
                if not wanted or len(watched) > wanted[-1]:
                    break
                x, point = well_formed(request)
                stored = state.to(x)
                if sources & requested_bit(k):
                    with torch.no_grad():
                        x.copy_(stored)
                known = self.evaluator if sources & prediction_bit(k) else None
                request = run.send(forgotten(stored, point, make) if known is None else known(stored, point))
        except StopIteration:
            pass
        finally:
            run.close()
        return [normal_log_prob(watched[d].outcome, watched[d].mean, watched[d].std) for d in wanted]
