"""`Scheduler`: any registered sampler as a diffusers scheduler, inside a pipeline that knows nothing of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from ..checks import flag, shown
from ..errors import UsageError
from ..models.clipping import Clip, ClipLike
from ..path.noise import check_seed
from ..pretrained.configuration import completed
from ..pretrained.conventions import convention_of, with_shift
from ..pretrained.saved_keys import KEY, trained_part
from ..processes.schedules import EDM, VE, RectifiedFlow
from ..processes.table import DiscreteVP
from ..public import public
from ..registry.plugin import Sampler
from ..sampling.recipe import Recipe
from .choice import Choice, option_names
from .configuration import (
    Configuration,
    arguments_from,
    changed,
    explicit,
    models_words,
    says_answers_alone,
    split_words,
    updated,
)
from .grids import GridRequest, requested_grid
from .noising import Noising
from .pending import StepOutput
from .run import PushedRun
from .seeding import Generators
from .step_words import check_grid_words, check_step_words
from .table import MISSING, alphas_cumprod, betas
from .timeline import Timeline
from .timesteps import Passed, read_timestep
from .training_schedule import training_schedule

UNSET: Any = object()

IN_PAIRS = ("LCMScheduler", "TCDScheduler", "SCMScheduler")
"""Schedulers whose pipelines take (sample, x0) from a `step` that returns a tuple."""


@public
class Scheduler(Noising, SchedulerMixin, ConfigMixin):
    """A diffusers scheduler that runs a sampler of this library.

        pipe.scheduler = sds.Scheduler.from_config(pipe.scheduler.config, "dpmpp-2m", spacing="karras")

    The pipeline's latents are the model's own x = alpha x0 + sigma eps. `num_inference_steps` is the number of grid
    intervals, and `timesteps` has an entry for each evaluation. Noise comes from the pipeline's `generator`: a list of
    generators gives each image its own, whatever the batch.

    Args:
        sampler: the name of a sampler, recipe or alias, a `Sampler`, or a `Recipe`; `quality` by default.
        trained: the configuration of the scheduler that the model came with; DDPM's defaults where there is none.
        spacing, spacing_options, coordinates, noise, noise_options, final: as in `sample`.
        seed: of the steps' noise; then image i depends on (seed, i) alone, and the pipeline's generator is not asked.
        adaptive: let an adaptive sampler choose its own steps; `num_inference_steps` then only says where
            image-to-image starts. On by default where one of its control options (rtol, ...) is given.
        round_timesteps: tell networks of DDPM tables whole timesteps, as diffusers mostly does.
        clip: bounds of x0 at each evaluation. By default what `trained` says (`clip_sample`, `thresholding` and kin),
            whatever the sampler; False for none, (low, high), or an `sds.Clip`.
        recipe: another word for `sampler`.
        **options: the sampler's own options.

    Raises:
        UsageError: words that do not fit, or a sampler that needs more than a pipeline gives its scheduler.
        ModelError: `trained` is of a kind that has no score.
    """

    config_name = "scheduler_config.json"
    _internal_dict: Any
    _compatibles: ClassVar[list[str]] = []
    order = 1

    def __init__(
        self,
        sampler: str | Sampler | Recipe | None = None,
        *,
        trained: Mapping[str, Any] | None = None,
        spacing: str | None = None,
        spacing_options: dict[str, Any] | None = None,
        coordinates: str | None = None,
        noise: str | None = None,
        noise_options: dict[str, Any] | None = None,
        final: str | None = None,
        seed: int | None = None,
        adaptive: bool | None = None,
        round_timesteps: bool = False,
        clip: ClipLike = None,
        recipe: str | Recipe | None = None,
        **options: Any,
    ) -> None:
        if sampler is not None and recipe is not None:
            raise UsageError("sampler and recipe are two words for the same thing; give one of them")
        if trained is not None and not isinstance(trained, Mapping):
            raise UsageError(f"trained must be a scheduler's configuration, not {shown(trained)}")
        if adaptive is not None:
            flag("adaptive", adaptive)
        given = sampler if sampler is not None else recipe
        chosen: Any = "quality" if given is None else given
        words: dict[str, Any] = {"spacing": spacing, "spacing_options": spacing_options, "coordinates": coordinates}
        words |= {"noise": noise, "noise_options": noise_options, "final": final}
        self._choice = Choice.read(chosen, words, options)
        self._clip = clip
        self._follow(trained_part(trained or {"_class_name": "DDPMScheduler", "clip_sample": False}))
        self._choice.settle(self.convention.process, adaptive)
        self.spec = self._choice.spec
        self.seed, self.round_timesteps = None if seed is None else check_seed(seed), round_timesteps
        self._timeline = Timeline()
        self._reset()
        choice, kept_clip = self._choice, vars(clip) if isinstance(clip, Clip) else clip
        ours = {"sampler": choice.name, "options": choice.options, **choice.words, "seed": seed, "adaptive": adaptive}
        ours |= {"clip": kept_clip, "round_timesteps": round_timesteps}
        self.register_to_config(**{**models_words(self.trained), KEY: ours})

    # The configuration.

    def _follow(self, trained: Mapping[str, Any]) -> None:
        """Take the model to be what these words say of it."""
        self.trained = completed(trained)
        self._in_pairs = self.trained["_class_name"] in IN_PAIRS
        self.convention = self._unshifted = convention_of(self.trained)
        self.clip = Clip.of(self._clip, self.convention.clip)

    def register_to_config(self, **words: Any) -> None:
        """Set words of the configuration; the model is what they say from then on.

        A run that was laid out before begins anew, with `set_timesteps`, unless only the meaning of the network's
        answer has changed (`prediction_type`, `clip_sample` and kin).
        """
        super().register_to_config(**words)
        self._read_config()

    def _read_config(self) -> None:
        """Follow what has been written to the configuration, as pipelines do past `register_to_config` too."""
        anew = changed(self.trained, self._internal_dict)
        if anew:
            past = self.convention
            self._follow(updated(self.trained, anew))
            if type(past) is type(self.convention) and says_answers_alone(anew):
                self.convention = self.convention.on(past.process)
            else:
                self._reset()
        self._internal_dict = Configuration.of(self._internal_dict, self.trained)

    def to_json_string(self) -> str:
        """The configuration as a file holds it; words that were left at their class's defaults are left out."""
        kept = self._internal_dict
        self._internal_dict = Configuration(explicit(kept))
        try:
            return str(super().to_json_string())
        finally:
            self._internal_dict = kept

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        sampler: str | Sampler | Recipe | None = None,
        *,
        return_unused_kwargs: bool = False,
        **words: Any,
    ) -> Any:
        """A scheduler for the model that `config`, of any diffusers scheduler or of ours, belongs to.

        Where `config` is ours, what it says of sampler and grid holds unless a sampler is given. A scheduler stands for
        its configuration, and says of which class it is where two have the same words.

        Words of the model's own class (`prediction_type=`, `timestep_spacing=`, `shift=`, ...) change the
        configuration, as in diffusers.

        Raises:
            UsageError: a word of diffusers that is written otherwise here; the message says how.
        """
        sampler, words, trained = arguments_from(config, sampler, words)
        known = {*inspect.signature(Scheduler.__init__).parameters, *option_names(sampler or words.get("recipe"))}
        models = split_words(words, known, trained)
        rest = {word: value for word, value in words.items() if word not in models}
        made = cls(sampler, trained=updated(trained, models) if models else trained, **rest)
        return (made, {}) if return_unused_kwargs else made

    def clone(self) -> Scheduler:
        """A scheduler of the same configuration with no run of its own: each thread's pipeline needs one."""
        rest = {key: self.config[key] for key in ("seed", "adaptive", "round_timesteps", "clip")}
        choice = self._choice
        return type(self)(choice.sampler, trained=self.trained, **choice.words, **rest, **choice.options)

    def __deepcopy__(self, memo: Any) -> Scheduler:
        """A clone, with the grid laid out unless a run is under way on it: pipelines of two modalities copy it then."""
        made = self.clone()
        if self._keeps_grid and self._run is not None:
            laid_out = ("convention", "num_inference_steps", "order", "_grid_words")
            made.__dict__.update({name: getattr(self, name) for name in laid_out})
            made._timeline = self._timeline.without_run()
            made._run = PushedRun(self._run.layout, made._timeline)
            made.timesteps = made._timeline.from_step(0)
        return made

    def __copy__(self) -> Scheduler:
        return self.__deepcopy__({})

    def __reduce__(self) -> Any:
        laid_out = self._keeps_grid
        grid = self._grid_words if laid_out else None
        return _unpickled, (type(self), dict(self.config), grid, self.begin_index if laid_out else None)

    @property
    def _keeps_grid(self) -> bool:
        """Whether a copy has the grid: a run that is under way cannot be copied, and its copy must not seem to be."""
        over = self._run is None or self._run.is_over
        return self.num_inference_steps is not None and (self.step_index is None or over)

    def __len__(self) -> int:
        return int(self.trained.get("num_train_timesteps", 1000))

    # The grid.

    def _reset(self) -> None:
        self.num_inference_steps: int | None = None
        self._timesteps: Tensor | None = None
        self._timeline.clear()
        self._run: PushedRun | None = None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        mu: float | None = None,
        strength: float = 1.0,
        original_inference_steps: int | None = None,
        max_timesteps: Any = UNSET,
        intermediate_timesteps: Any = UNSET,
        **others: Any,
    ) -> None:
        """Lay out a run.

        Args:
            num_inference_steps: grid intervals.
            device: of `timesteps`.
            timesteps: your own grid, in what the network is told; sigma = 0 follows it. Whole numbers are indices of
                the training grid for consistency models (CMStochasticIterativeScheduler), as their pipeline has it.
            sigmas: your own grid of sigma/alpha, or for flow models of times before the shift, as their pipelines
                give them; a last 0 may be left out. It is run as it is. Where `spacing=` names another grid, the even
                one that such pipelines pass if their caller says nothing counts as a number of steps.
            mu: the shift of the resolution, for flow models with `use_dynamic_shifting`.
            strength: start the grid at this share of the model's time (pipelines of consistency models).
            original_inference_steps: how many timesteps the model was distilled at, for samplers on the grid
                `distilled`; by default what its configuration says.
            max_timesteps, intermediate_timesteps: of TrigFlow models (SCMScheduler): the first time, 1.5708 at most,
                and the second of two steps. Whoever passes them, or `max_timesteps=None` beside `timesteps`, has the
                clean end as a last timestep, as Sana-Sprint's pipelines expect.
            **others: what other schedulers of diffusers take; refused with the reason.

        Raises:
            UsageError: no grid, or one that cannot be run.
        """
        check_grid_words(others)
        self._read_config()
        self._reset()
        limits = {"max_timesteps": max_timesteps, "intermediate_timesteps": intermediate_timesteps}
        limits = {word: value for word, value in limits.items() if value is not UNSET}
        request = GridRequest(
            num_inference_steps, device, timesteps, sigmas, mu, strength, original_inference_steps, limits
        )
        self._grid_words = request.words()
        self.convention = with_shift(self._unshifted, self.trained, mu)
        grid = requested_grid(request, self.convention, self.trained, self._choice)
        layout = self._choice.layout(self.convention.process, grid.steps, grid.words)
        self.num_inference_steps = layout.steps
        self.order = 1 if grid.is_given or layout.is_adaptive else layout.evaluations_a_step
        stride = 0 if grid.is_given else self.order
        self._timeline.lay_out(
            layout,
            self.convention,
            device,
            rounds=self.round_timesteps,
            order=self.order,
            stride=stride,
            is_closed=grid.is_closed,
        )
        self._run = PushedRun(layout, self._timeline)
        self.timesteps = self._timeline.from_step(0)

    @property
    def timesteps(self) -> Tensor:
        """What the network is told at each evaluation; the training schedule before `set_timesteps`."""
        return training_schedule(self.convention, self.trained)[0] if self._timesteps is None else self._timesteps

    @timesteps.setter
    def timesteps(self, timesteps: Tensor) -> None:
        self._timesteps = timesteps

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Say that the loop starts at timesteps[begin_index], which is where it does if `step` is passed no other."""
        counted = None if self.num_inference_steps is None else self.num_inference_steps * self.order
        self._timeline.set_begin_index(begin_index, counted)

    @property
    def begin_index(self) -> int | None:
        """What `set_begin_index` was passed."""
        return self._timeline.begin_index

    @property
    def step_index(self) -> int | None:
        """How many of the timesteps lie behind; None before the first step."""
        return None if self._run is None else self._run.step_index

    @property
    def init_noise_sigma(self) -> float:
        """What standard normal latents are multiplied by where a run starts.

        1 for models whose states are about as large as their data at all times: tables (alpha^2 + sigma^2 = 1) and
        flows. There it is 1 for a grid that begins in the middle too, where latents that are given have their noise
        already. sigma where the run starts for EDM and VE, whose pipelines give latents divided by it.
        """
        process = self.convention.process
        if isinstance(process, DiscreteVP | RectifiedFlow):
            return 1.0
        if isinstance(process, EDM | VE) and self._run is not None:
            return float(self._run.layout.points[0].native[1])
        return float(process.prior.std)

    @property
    def sigmas(self) -> Tensor:
        """sigma at each timestep and 0 behind, of models whose state is what diffusers' is (flow models, EDM).

        Raises:
            AttributeError: for DDPM tables, where a pipeline that asks expects x / alpha for its latents.
        """
        if isinstance(self.convention.process, DiscreteVP):
            raise AttributeError(MISSING["sigmas"])
        if self._run is None:
            return training_schedule(self.convention, self.trained)[1]
        return torch.tensor([*self._timeline.sigmas(), 0.0], dtype=torch.float32, device="cpu")

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha^2 at a DDPM table's timesteps; fractional ones may be looked up too."""
        return alphas_cumprod(self.convention.process)

    @property
    def alphas(self) -> Tensor:
        """alpha^2 of single steps of a DDPM table: quotients of neighbours."""
        return 1 - self.betas

    @property
    def betas(self) -> Tensor:
        """1 - `alphas`, the variance that each timestep adds."""
        return betas(self.convention.process)

    def __getattr__(self, name: str) -> Any:
        # Python comes here where a property has raised, and diffusers' own answer does not say why.
        if name in MISSING:
            raise AttributeError(MISSING[name])
        return super().__getattr__(name)

    # The loop.

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """What the network is to be given for `sample` at `timestep`; the run's next one if none is passed."""
        if self.convention.is_plain:
            return sample
        passed = read_timestep(timestep)
        time = self._training_time(passed) if self._run is None else self._run.time_of(passed)
        return self.convention.scale_input(sample, time)

    def _training_time(self, passed: Passed) -> float:
        """The model's time that a timestep of the training schedule means, before a run is laid out."""
        schedule = training_schedule(self.convention, self.trained)[0]
        if passed.value is None or not any(passed.means(value) for value in schedule.tolist()):
            raise UsageError("call set_timesteps before step and scale_model_input")
        return float(self.convention.time(passed.value))

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators | float = None,
        return_dict: bool = True,
        eta: float | None = None,
        prev_timestep: Any = None,
        **others: Any,
    ) -> StepOutput | tuple[Tensor, ...]:
        """Hand the sampler the network's answer; get the state to ask it at next.

        A run begins at the timestep that the first `step` is passed, and goes on with one timestep of the grid after
        the other. Samplers that keep nothing from step to step (euler, ddim, ddpm, ...) may be passed the same
        timestep again, or another one of the grid with a state of the caller's own.

        Args:
            model_output: (N, ...) the network's answer, guided where it is, for `sample`.
            timestep: the timestep that it was told, an element of `timesteps` or its value. Elements cost no wait for
                the device. None stands for the next one.
            sample: (N, ...) the state that was evaluated; one that was edited since the last step is respected, and
                gradients are those of this tensor.
            generator: of the noise, one or one an image; read once a run, by stochastic samplers. A number in its place
                is `eta`, as in DDIM's `step`.
            return_dict: return a `StepOutput`, else a tuple with the state (and x0 at the last step, which pipelines
                of one-step models take, and in pipelines that take it at every step).
            eta: DDIM's share of noise, for samplers with an option of this name; 0 leaves them their own.
            prev_timestep: what is passed next, as the pipelines of unCLIP say it; checked.
            **others: what `step` takes elsewhere in diffusers; ignored or refused for a reason.

        Raises:
            UsageError: the run is over, goes on at another timestep, or cannot be run in a pipeline.
        """
        check_step_words(others)
        if isinstance(generator, int | float):
            eta, generator = (generator if eta is None else eta), None
        run, passed, eta = self._run, read_timestep(timestep), float(eta or 0.0)
        if run is None:
            raise UsageError("call set_timesteps before step")
        pending = run.pending_at(passed, sample, generator, eta, self.seed)
        run.note(passed, sample)
        prediction = None if pending.waits else pending.predicted(model_output, sample, self.convention, self.clip)
        state = run.advance(pending, prediction, sample.dtype, prev_timestep)
        if not (return_dict or self._in_pairs or run.is_over):
            return (state,)
        x0 = sample if prediction is None else prediction.x0.to(sample.dtype)
        return StepOutput(state, x0) if return_dict else (state, x0)


def _unpickled(cls: type[Scheduler], config: dict[str, Any], grid: Any, begin_index: int | None) -> Scheduler:
    """A scheduler from its configuration, with its grid laid out as it was."""
    made: Scheduler = cls.from_config(config)
    if grid is not None:
        made.set_timesteps(**grid)
    if begin_index is not None:
        made.set_begin_index(begin_index)
    return made
