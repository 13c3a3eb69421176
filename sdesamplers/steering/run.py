"""The run of all particles: evaluate, reweight, resample, step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import PluginError, UsageError
from ..models.conditions import take_rows
from ..models.running import evaluating, networks_in, running
from ..path.noise import NormalSource, branch_seed
from ..path.points import Point, model_state
from ..path.prediction import Prediction
from ..sampling.loop import Callback, Evaluator
from ..sampling.memory import draw_bit
from ..sampling.parts import Part
from ..sampling.prepared import PreparedRun, make_noise, start_state
from ..sampling.recorded import RecordedRun
from ..sampling.records import Keys, Setup
from ..sampling.request import batches
from ..sampling.start_check import warn_if_unscaled
from .result import Steered
from .rewards import Reward
from .twist import Twist
from .weights import Weights


@dataclass
class SteeredRun:
    """One run of N groups of K particles.

    The particles are the rows of one `RecordedRun`, group after group, so resampling copies their states and all that
    the sampler remembers. Each place keeps the keys of its noise.

    Args:
        prepared: the checked call.
        indices: of the samples, one for each group.
        particles: K.
        reward, weights: the checked reward function, and the weights of all particles.
        at: the numbers of the evaluations before which particles are reweighted.
        draws: the number of transitions of the run.
        twist: the factor of the gradient in the proposals; 0 for the sampler's own transitions.
        select: "weight" to draw one particle of each group with the final weights, "reward" for the best one.
        batch_size: rows of a call of the network.
        condition: of the groups, as returned by `Model.condition_for`.
        advance: called with an `Event` before each call of the network.
    """

    prepared: PreparedRun
    indices: Sequence[int]
    particles: int
    reward: Reward
    weights: Weights
    at: Sequence[int]
    draws: int
    twist: float = 0.0
    select: str = "weight"
    batch_size: int | None = None
    condition: Any = None
    advance: Callback | None = None
    _evaluators: list[tuple[slice, Evaluator]] = field(init=False)
    _history: list[Tensor] = field(default_factory=list)
    _times: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = len(self.indices) * self.particles
        groups = np.repeat(np.arange(len(self.indices)), self.particles)
        conditions = take_rows(self.condition, groups)
        self._evaluators = [
            (rows, self.prepared.evaluator(rows.stop - rows.start, take_rows(conditions, rows), self.advance))
            for rows in batches(count, self.batch_size)
        ]

    def run(self, start: Tensor | None = None) -> Steered:
        """Run all particles from `start` (N, *shape), in the model's coordinates, or from draws of the prior."""
        prepared = self.prepared
        classifiers = evaluating(networks_in(self.reward.function))  # and all other networks of the reward
        with running(prepared.model, key=(prepared.seed, self.indices[0])), classifiers:
            run, evaluations = self._begin(start), 0
            while not run.is_over:
                run = self._step(run, evaluations)
                evaluations += 1
            states = self._end(run)
            rewards = self._grouped(self._final_rewards(states))
        return self._result(states, rewards, evaluations)

    # The steps of the run.

    def _begin(self, start: Tensor | None) -> RecordedRun:
        """The run before its first evaluation."""
        prepared, keys, recipe = self.prepared, self._keys(), self.prepared.recipe
        setup = Setup(
            prepared.spec,
            recipe.options,
            prepared.new_path,
            lambda source: make_noise(recipe, source, prepared.shortest, prepared.noise),
            f"{prepared.spec.name} on {prepared.model.name}",
        )
        model, path = prepared.model, setup.new_path()
        source = NormalSource([seed for seed, _ in keys], [index for _, index in keys], model.shape)
        path.ledger.noise = setup.new_noise(source)
        start = None if start is None else start.repeat_interleave(self.particles, 0)
        if start is not None:
            warn_if_unscaled(start, model.process, path.points[0].t, "start")
        x = start_state(model.process, path, source, start, prepared.dtype, model.device, prepared.recipe.spacing)
        run = RecordedRun(setup, x, keys)
        if self.twist and not run.is_over:
            self._check_twist(run)
        return run

    def _keys(self) -> Keys:
        """The keys of the particles' noise; the first particle of a group has the noise of the sample in `sample`."""
        seed = self.prepared.seed
        return [
            (branch_seed(seed, index, particle) if particle else seed, index)
            for index in self.indices
            for particle in range(self.particles)
        ]

    def _check_twist(self, run: RecordedRun) -> None:
        """Raise a UsageError if a copy of the run would draw a changed noise again, without the change."""
        noises, memory = sum(map(draw_bit, range(self.draws))), run.memory
        if memory is None or any(needed & noises for needed in memory.needed):
            raise UsageError(
                f"twist needs a sampler that uses the noise of a step in that step only, and {self.prepared.spec.name} "
                "keeps it or cannot be followed; use twist=0, or ddpm, euler-ancestral or dpmpp-2m-sde"
            )

    def _step(self, run: RecordedRun, evaluation: int) -> RecordedRun:
        """Evaluate the network, reweight and resample if it is time, and advance the sampler to the next evaluation."""
        request = run.request
        if isinstance(request, list) or request[1].rows is not None:
            raise UsageError(
                f"steer needs a sampler that evaluates all particles at one time, and {self.prepared.spec.name} "
                "evaluates at several; use ddpm, euler-ancestral or dpmpp-2m-sde"
            )
        x, point = request
        steered = evaluation in self.at
        prediction, rewards, gradient = self._evaluated(x, point, steered, evaluation)
        if steered:
            self._history.append(rewards)
            self._times.append(point.t)
            ancestors = self.weights.resample(self._grouped(rewards), evaluation)
            if ancestors is not None:
                rows = (ancestors + self.particles * np.arange(len(self.indices))[:, None]).flatten()
                run = run.taken(rows.tolist(), run.keys)
                pick = torch.from_numpy(rows).to(x.device)
                prediction = _taken(prediction, run.request[0], pick)
                gradient = None if gradient is None else gradient[pick]
        if gradient is None:
            run.send(prediction)
        else:
            twist = run.path.ledger.proposal = Twist(gradient, point)
            run.send(prediction)
            self.weights.add(self._grouped(twist.log_weights))
        return run

    def _evaluated(
        self, x: Tensor, point: Point[Any], steered: bool, evaluation: int
    ) -> tuple[Prediction, Tensor, Tensor | None]:
        """The prediction at a point, the rewards (M,) of its x0 if they are needed, and the gradient of the twist."""
        predictions, rewards, gradients = [], [], []
        place = f"at evaluation {evaluation + 1}, for estimates of x0"
        twisted = bool(self.twist) and not point.is_pure_noise  # pure noise has no information on x0: no gradient
        for rows, evaluator in self._evaluators:
            with torch.set_grad_enabled(twisted):
                part = x[rows].detach().requires_grad_(twisted)
                prediction = evaluator(part, point)
                if steered or twisted:
                    found = self.reward(prediction.x0, evaluator.condition, place)
                    rewards.append(found.detach())
                    if twisted:
                        gradients.append(self._gradient(found, part))
            predictions.append(prediction)
        factor = self.twist * self.weights.potential.scale
        return (
            _joined(predictions, x, point),
            torch.cat(rewards) if rewards else x.new_zeros(0),
            factor * torch.cat(gradients) if gradients else None,
        )

    def _gradient(self, rewards: Tensor, states: Tensor) -> Tensor:
        """The gradient of each reward by its own state."""
        if not rewards.requires_grad:
            raise UsageError(
                "twist differentiates the reward, and this reward (or the model's decoder) does not keep the graph of "
                "its input; use twist=0"
            )
        (gradient,) = torch.autograd.grad(rewards.sum(), states)
        return gradient

    def _end(self, run: RecordedRun) -> Tensor:
        """The final states (M, *shape) in the model's coordinates, checked."""
        end, spec, record = run.end, self.prepared.spec, run.record
        assert end is not None
        if end.shape != record.shape or end.dtype is not record.dtype:
            raise PluginError(
                f"{spec.name} returned {end.dtype} of shape {tuple(end.shape)} for a state of {record.dtype} and shape "
                f"{tuple(record.shape)}; a sampler must keep both"
            )
        for rows, evaluator in self._evaluators:
            evaluator.finish(end[rows])
        return model_state(end, run.path.points[-1])

    def _final_rewards(self, states: Tensor) -> Tensor:
        place = "at the end, for samples"
        found = [self.reward(states[rows], evaluator.condition, place) for rows, evaluator in self._evaluators]
        return torch.cat(found).detach()

    def _grouped(self, values: Tensor) -> np.ndarray:
        """Numbers (M,) of all particles as (N, K)."""
        grouped: np.ndarray = values.detach().double().cpu().numpy().reshape(len(self.indices), self.particles)
        return grouped

    def _result(self, states: Tensor, rewards: np.ndarray, evaluations: int) -> Steered:
        groups, count = len(self.indices), self.particles
        weights = self.weights
        log_weights = weights.finish(rewards)
        selected = rewards.argmax(1) if self.select == "reward" else weights.drawn(log_weights, evaluations)
        particles = states.cpu().reshape(groups, count, *states.shape[1:])
        samples = particles[torch.arange(groups), torch.from_numpy(selected)]
        part = Part(samples, np.full(groups, count * evaluations), True, None, None, None)
        history = [self._grouped(each) for each in self._history]
        return Steered(
            **self.prepared.facts([part], self.indices, self.condition),
            selected=torch.from_numpy(selected),
            particles=particles,
            rewards=torch.from_numpy(rewards),
            log_weights=torch.from_numpy(log_weights),
            log_normalizer=torch.from_numpy(weights.log_normalizer),
            ess=torch.from_numpy(np.stack(weights.ess, 1)),
            reward_history=_stacked(history, (groups, 0, count), np.float64),
            ancestors=_stacked(weights.ancestors, (groups, 0, count), np.int64),
            steered_at=[*self.at],
            steered_times=np.array(self._times),
        )


def _joined(parts: list[Prediction], x: Tensor, point: Point[Any]) -> Prediction:
    """The predictions of micro-batches as one for all particles, without their graphs."""
    joined = Prediction(x, point, torch.cat([part.raw.detach() for part in parts]), parts[0].kind)
    plain = [part.unguided for part in parts if part.unguided is not None]
    if plain:
        joined.unguided = Prediction(x, point, torch.cat([part.raw.detach() for part in plain]), plain[0].kind)
    return joined


def _taken(prediction: Prediction, x: Tensor, rows: Tensor) -> Prediction:
    """The prediction of resampled particles, whose states are `x`."""
    taken = Prediction(x, prediction.point, prediction.raw[rows], prediction.kind)
    if prediction.unguided is not None:
        taken.unguided = Prediction(x, prediction.point, prediction.unguided.raw[rows], prediction.unguided.kind)
    return taken


def _stacked(arrays: list[np.ndarray], empty: tuple[int, ...], dtype: type) -> Tensor:
    """(N, E, K) of E arrays (N, K)."""
    return torch.from_numpy(np.stack(arrays, 1) if arrays else np.zeros(empty, dtype))
