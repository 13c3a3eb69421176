"""`steer`: samples of a model's distribution tilted by a reward, by sequential Monte Carlo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..checks import choice, flag, function, number, sample_range, shown, suggest_keywords, whole, whole_numbers
from ..errors import UsageError
from ..models.base import Model
from ..public import public
from ..registry.plugin import NoiseSource, Sampler, Spacing
from ..sampling.loop import Flag
from ..sampling.prepared import PreparedRun, as_start, prepare
from ..sampling.recipe import Recipe, noise_of
from ..sampling.request import Conduct, Request, batches
from ..sampling.runs import draw_clocks, evaluations
from .resampling import SCHEMES
from .result import Steered
from .rewards import Reward, RewardFunction
from .run import SteeredRun
from .weights import POTENTIALS, Potential, Weights

DEFAULT = {"sampler": "ddpm", "steps": 50}
"""The recipe of a call without a sampler."""


@public
@suggest_keywords()
def steer(
    model: Model | str,
    reward: RewardFunction,
    sampler: str | Sampler | Recipe | Mapping[str, Any] | None = None,
    *,
    particles: int = 4,
    potential: str = "difference",
    scale: float = 1.0,
    resample: str = "systematic",
    ess: float = 0.5,
    at: int | Sequence[int] = 1,
    twist: float = 0.0,
    decode: bool = False,
    conditional: bool = False,
    select: str = "weight",
    steps: int | None = None,
    nfe: int | None = None,
    spacing: str | Spacing | None = None,
    spacing_options: dict[str, Any] | None = None,
    times: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    coordinates: str | None = None,
    seed: int = 0,
    num_samples: int | None = None,
    batch_size: int | None = None,
    first_index: int = 0,
    noise: str | NoiseSource | None = None,
    noise_options: dict[str, Any] | None = None,
    final: str | None = None,
    start: Tensor | None = None,
    start_time: float | None = None,
    condition: Any = None,
    guidance_scale: float = 1.0,
    cancel: Flag | None = None,
    check_finite: bool = True,
    dtype: torch.dtype | None = None,
    progress: bool = False,
    **options: Any,
) -> Steered:
    """Draw samples from p(x) exp(scale reward(x)) / Z, where p is the distribution of a stochastic sampler's samples.

        def reward(x0):  # (M, *shape) -> (M,)
            return x0.mean((1, 2, 3))

        result = sds.steer(model, reward, particles=8, scale=50.0, num_samples=4, steps=50)
        result.samples, result.rewards, result.ess

    Feynman-Kac steering (Singhal et al. 2025), a sequential Monte Carlo method. Each sample has its own group of K
    particles. At chosen evaluations every particle receives a weight from the reward of its present estimate of x0,
    and if the weights have become uneven, the group is resampled: particles of low weight are replaced by copies of
    others. Weights at the end correct for all earlier ones, so the weighted particles are right for any reward of the
    estimates as K grows, and exp(log_normalizer) is an unbiased estimate of Z for each K. The reward need not be
    differentiable.

    Sample j depends on (seed, first_index + j), on K and the other arguments, but not on the number of samples or
    `batch_size`. Its first particle has the noise of sample j in `sample`, and the noise of a particle does not depend
    on K.

    Args:
        model: a `Model`, or any argument of `load`; on a Gaussian process.
        reward: called with estimates of x0 (M, *shape) in the model's data range, on its device, later with the
            samples; returns M finite numbers. A row's reward must not depend on the other rows.
        sampler: as in `sample`, any sampler that draws noise; by default `ddpm` in 50 steps.
        particles: K, the number of particles for each sample.
        potential: the factor of the weight at evaluation k, for rewards r_1, ..., r_k on the way of the particle:
            "difference", exp(scale (r_k - r_{k-1})) with r_0 = 0; "max", exp(scale max(r_1, ..., r_k)); "sum",
            exp(scale (r_1 + ... + r_k)). For each of them the last factor is such that all multiply to exp(scale
            reward) of the sample. "max" and "sum" select more strongly on the way, and leave less even weights.
        scale: of the reward, lambda in the paper; larger is a stronger tilt.
        resample: "systematic", "stratified", "multinomial" or "residual".
        ess: resample a group if its effective sample size is below this fraction of K; 1 to resample each time, 0
            never (importance sampling).
        at: the evaluations before which particles are reweighted: every `at`-th, or a list of numbers, from 0 for the
            first one. The rewards of the estimates are computed only there.
        twist: 0 for the sampler's own transitions; else they are moved by std^2 times the gradient of twist scale
            reward(x0 estimate), a proposal that the weights correct (Wu et al. 2023; 1 for theirs, which agrees in the
            limit of small steps). It differentiates reward and network at each evaluation.
        decode: call the reward with `model.decode` of the estimates, for models in a latent space.
        conditional: call the reward with the rows of the condition as a second argument.
        select: the particle that becomes the sample: "weight", drawn with the final weights; "reward", the best one
            (which is no sample of the tilted distribution).
        steps, nfe, spacing, spacing_options, times, sigmas, coordinates, noise, noise_options, final, start_time: as in
            `sample`; nfe is the budget of each particle.
        seed, first_index, num_samples: of the groups, see above.
        batch_size: particles in one call of the network and of the reward, so that the memory of both is bounded; by
            default all.
        start: initial states (num_samples, *shape), from which all particles of a group start.
        condition: one for all samples, or one per sample.
        guidance_scale, cancel, check_finite, dtype, progress: as in `sample`.
        **options: the sampler's own options.

    Returns:
        A `Steered` result.

    Raises:
        UsageError: invalid or conflicting arguments, a sampler that draws no noise, or a reward of another shape.
        NonFiniteError: a reward, an output of the model or a sample is not finite.
        Cancelled: the run was stopped.
    """
    request = Request(
        DEFAULT if sampler is None else sampler, steps, nfe, spacing, spacing_options, times, sigmas, coordinates,
        noise, noise_options, final, start_time, options,
    )  # fmt: skip
    conduct = Conduct(guidance_scale, None, cancel, check_finite=check_finite, dtype=dtype)
    prepared = prepare(model, request, conduct, seed)
    model = prepared.model
    if not callable(function("reward", reward, "estimates of x0")):
        raise UsageError("reward must be a function of estimates of x0, not None")
    count = whole("particles", particles)
    scale, twist = number("scale", scale), number("twist", twist)
    potential = choice("potential", potential, POTENTIALS)
    scheme = SCHEMES[choice("resample", resample, list(SCHEMES))]
    choice("select", select, ("weight", "reward"))
    threshold = number("ess", ess)
    if not 0 <= threshold <= 1:
        raise UsageError(f"ess is a fraction of the particles and must lie in [0, 1], not {shown(ess)}")
    total, draws = _planned(prepared)
    if twist and noise_of(prepared.recipe).limits:
        raise UsageError(f"twist needs independent normal noise, and noise={prepared.recipe.noise!r} is coloured")
    if start is not None:
        start = as_start(start, check_finite)
    num_samples = num_samples if num_samples is not None else 1 if start is None else len(start)
    num_samples, first_index = sample_range(num_samples, first_index)
    if start is not None and tuple(start.shape) != (num_samples, *model.shape):
        raise UsageError(f"start must have shape {(num_samples, *model.shape)}, not {tuple(start.shape)}")
    if start is None and prepared.recipe.start_time is not None:
        raise UsageError("start_time is the time of start; pass start as well")
    indices = range(first_index, first_index + num_samples)
    calls = len([*batches(num_samples * count, batch_size)]) * total
    with _progress(flag("progress", progress), prepared, calls) as advance:
        run = SteeredRun(
            prepared,
            indices,
            count,
            Reward(reward, model, flag("decode", decode), flag("conditional", conditional)),
            Weights(
                Potential(potential, scale, (num_samples, count)),
                scheme,
                threshold,
                [(prepared.seed, index) for index in indices],
            ),
            _evaluations_at(at, total),
            draws,
            twist,
            select,
            batch_size,
            model.condition_for(condition, num_samples),
            advance,
        )
        return run.run(start)


def _planned(prepared: PreparedRun) -> tuple[int, int]:
    """The number of evaluations of a particle, and of its transitions.

    Raises:
        UsageError: the sampler chooses its own steps, draws no noise, or the process has no x0 estimates.
    """
    spec, path, recipe, model = prepared.spec, prepared.path, prepared.recipe, prepared.model
    suited = "a stochastic sampler, such as ddpm, euler-ancestral, dpmpp-2m-sde or ddim with eta=1"
    if path.is_free:
        raise UsageError(
            f"{spec.name} chooses each sample's steps by itself, so particles cannot be compared on the way; pass "
            f"steps=..., with {suited}"
        )
    draws = len(draw_clocks(spec, path, recipe.options, model.shape)) // 2
    if not draws:
        named = ("eta", *(spec.noiseless or ()))  # options that turn the noise off
        given = ", ".join(f"{name}={value!r}" for name, value in recipe.options.items() if name in named)
        raise UsageError(
            f"{spec.name} draws no noise{f' with {given}' if given else ''}, so copies of a particle would stay equal; "
            f"use {suited}"
        )
    return evaluations(model.gaussian, recipe, spec, model.shape), draws


def _evaluations_at(at: Any, total: int) -> list[int]:
    """The numbers of the evaluations before which particles are reweighted.

    Raises:
        UsageError: not a whole number, or no list of evaluations of the run.
    """
    at = at.tolist() if hasattr(at, "tolist") else at  # an array may be a single number
    if not isinstance(at, Sequence) or isinstance(at, str):
        every = whole("at", at)
        return list(range(every, total, every))
    found = sorted(set(whole_numbers("at", at)))
    if found and found[-1] >= total:
        raise UsageError(f"at has numbers of evaluations, from 0 to {total - 1} in this run, not {found[-1]}")
    return found


def _progress(show: bool, prepared: PreparedRun, calls: int) -> Any:
    if not show:
        return nullcontext(None)
    from ..io.terminal import evaluation_bar  # imports rich, which only a progress bar needs

    return evaluation_bar(f"{prepared.spec.name} on {prepared.model.name}, steered", calls)
