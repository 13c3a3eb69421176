"""`Scheduler`: any registered sampler as a diffusers scheduler, for pipelines that were not written for it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from ..checks import flag, shown, suggest_keywords
from ..errors import SdesamplersError, UsageError
from ..models.clipping import Clip, ClipLike
from ..path.noise import check_seed
from ..path.transition import Reduction
from ..pretrained.configuration import completed
from ..pretrained.conventions import convention_of, with_shift
from ..pretrained.saved_keys import KEY, trained_part
from ..processes.schedules import EDM, VE, RectifiedFlow
from ..processes.table import DiscreteVP
from ..public import public
from ..registry.plugin import Sampler
from ..sampling.recipe import Recipe
from ..sampling.table import SolverTable, TableSet
from .choice import Choice, option_names
from .configuration import (
    Configuration,
    affects_output_only,
    arguments_from,
    changed,
    explicit,
    model_overrides,
    model_values,
    updated,
)
from .grids import GridRequest, requested_grid
from .noising import Noising
from .pending import StepOutput
from .run import PushedRun
from .scored import advance_observed, check_scored
from .seeding import Generators
from .step_arguments import check_grid_arguments, check_step_arguments
from .stored import Stored, _unpickled  # noqa: F401 (pickles refer to it here)
from .table import MISSING, TableAttributes
from .timeline import Timeline
from .timesteps import Passed, read_timestep
from .training_schedule import training_schedule
from .unguided import Unguided, connected

UNSET: Any = object()

PAIR_SCHEDULERS = ("LCMScheduler", "TCDScheduler", "SCMScheduler")
"""Schedulers whose pipelines expect a tuple (sample, x0) from `step(..., return_dict=False)`."""


@public
class Scheduler(Noising, Stored, TableAttributes, SchedulerMixin, ConfigMixin):
    """A diffusers scheduler that runs a sampler of this library.

        pipe.scheduler = sds.Scheduler.from_config(pipe.scheduler.config, "dpmpp-2m", spacing="karras")

    The pipeline's latents are the model's native states x = alpha x0 + sigma eps. `num_inference_steps` is the number
    of grid intervals, and `timesteps` has an entry for each evaluation. Noise comes from the pipeline's `generator`: a
    list of generators gives each image its own noise, whatever the batch.

    Args:
        sampler: the name of a sampler, recipe or alias, a `Sampler`, or a `Recipe`; `quality` by default. Or a
            `SolverTable`, several, the `Tuning` of `tune`, or the path of a file or folder of them or "hf://owner/name"
            (docs/tuning.md): the number of steps of a run then picks the table.
        trained: the configuration of the model's original scheduler; DDPM's defaults if not given.
        spacing, spacing_options, coordinates, noise, noise_options, final: as in `sample`.
        seed: seed of the steps' noise; image i then depends only on (seed, i), and the pipeline's generator is not
            used.
        adaptive: let an adaptive sampler choose its own steps; `num_inference_steps` then only determines where
            image-to-image starts. On by default if one of the sampler's control options (rtol, ...) is given.
        round_timesteps: pass rounded timesteps to networks of DDPM tables, as diffusers mostly does.
        clip: bounds of x0 at each evaluation: False for no clipping, (low, high), or an `sds.Clip`. By default as set
            in `trained` (`clip_sample`, `thresholding` and related keys), whatever the sampler.
        recipe: synonym of `sampler`.
        **options: the sampler's own options.

    Raises:
        UsageError: invalid or conflicting arguments, or a sampler that needs more than a pipeline passes to its
            scheduler.
        ModelError: `trained` describes a type of model that has no score.
    """

    config_name = "scheduler_config.json"
    _internal_dict: Any
    _compatibles: ClassVar[list[str]] = []
    order = 1

    @suggest_keywords(owner="Scheduler")
    def __init__(
        self,
        sampler: str | Sampler | Recipe | SolverTable | TableSet | Sequence[SolverTable] | None = None,
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
        recipe: str | Recipe | SolverTable | TableSet | Sequence[SolverTable] | None = None,
        **options: Any,
    ) -> None:
        if sampler is not None and recipe is not None:
            raise UsageError("pass sampler or recipe, not both: they are the same argument")
        if trained is not None and not isinstance(trained, Mapping):
            raise UsageError(f"trained must be a scheduler's configuration, not {shown(trained)}")
        if adaptive is not None:
            flag("adaptive", adaptive)
        given = sampler if sampler is not None else recipe
        chosen: Any = "quality" if given is None else given
        arguments: dict[str, Any] = {"spacing": spacing, "spacing_options": spacing_options, "coordinates": coordinates}
        arguments |= {"noise": noise, "noise_options": noise_options, "final": final}
        self._choice = Choice.read(chosen, arguments, options)
        self._clip = clip
        self._follow(trained_part(trained or {"_class_name": "DDPMScheduler", "clip_sample": False}))
        self._choice.settle(self.convention.process, adaptive)
        self.spec = self._choice.spec
        self.seed, self.round_timesteps = None if seed is None else check_seed(seed), round_timesteps
        self._timeline, self._unguided = Timeline(), Unguided()
        self._reset()
        choice, kept_clip = self._choice, vars(clip) if isinstance(clip, Clip) else clip
        ours = {"sampler": choice.name, "options": choice.options, **choice.recipe_arguments}
        ours |= {"seed": seed, "adaptive": adaptive, "clip": kept_clip, "round_timesteps": round_timesteps}
        self.register_to_config(**{**model_values(self.trained), KEY: ours})

    # The configuration.

    def _follow(self, trained: Mapping[str, Any]) -> None:
        """Adopt the model described by this configuration, if the sampler is not a solver table for another one."""
        trained = completed(trained)
        convention = convention_of(trained)
        self._choice.check(convention)
        self.trained, self.convention = trained, convention
        self._unshifted = convention
        self._returns_pairs = self.trained["_class_name"] in PAIR_SCHEDULERS
        self.clip = Clip.of(self._clip, self.convention.clip)

    def register_to_config(self, **kwargs: Any) -> None:
        """Set keys of the configuration; they describe the model from then on.

        This discards the current grid, so `set_timesteps` must be called again, unless only the interpretation of the
        network's output has changed (`prediction_type`, `clip_sample` and related keys). Values that are refused change
        nothing.

        Raises:
            UsageError: the sampler is a solver table, which does not fit the model with these values.
            ModelError: a model that is not supported.
        """
        former = getattr(self, "_internal_dict", None)
        super().register_to_config(**kwargs)
        try:
            self._read_config()
        except SdesamplersError:
            if former is not None:
                self._internal_dict = former
            raise

    def _read_config(self) -> None:
        """Adopt changes of the configuration, including those that pipelines make without `register_to_config`."""
        changes = changed(self.trained, self._internal_dict)
        if changes:
            past = self.convention
            self._follow(updated(self.trained, changes))
            if type(past) is type(self.convention) and affects_output_only(changes):
                self.convention = self.convention.on(past.process)
            else:
                self._reset()
        self._internal_dict = Configuration.of(self._internal_dict, self.trained)

    def to_json_string(self) -> str:
        """The configuration as JSON, without the keys left at their class's defaults."""
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
        sampler: str | Sampler | Recipe | SolverTable | TableSet | Sequence[SolverTable] | None = None,
        *,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Create a scheduler for the model of `config`, the configuration of any diffusers scheduler or of ours.

        If `config` is ours, its sampler and grid are used unless `sampler` or `recipe` is given. A scheduler may be
        passed in place of its configuration; this also identifies its class if several classes have the same keys.

        Arguments of the model's own scheduler class (`prediction_type=`, `timestep_spacing=`, `shift=`, ...) change the
        configuration, as in diffusers.

        Raises:
            UsageError: an argument of diffusers that has another name here; the message gives it.
        """
        kwargs.pop("variant", None)  # of weights, passed on by `from_pretrained` when modular pipelines load components
        sampler, kwargs, trained = arguments_from(config, sampler, kwargs)
        known = {*inspect.signature(Scheduler.__init__).parameters, *option_names(sampler or kwargs.get("recipe"))}
        overrides = model_overrides(kwargs, known, trained)
        rest = {name: value for name, value in kwargs.items() if name not in overrides}
        made = cls(sampler, trained=updated(trained, overrides) if overrides else trained, **rest)
        return (made, {}) if return_unused_kwargs else made

    def __len__(self) -> int:
        return int(self.trained.get("num_train_timesteps", 1000))

    # The grid.

    def _reset(self) -> None:
        self.num_inference_steps: int | None = None
        self._timesteps: Tensor | None = None
        self._timeline.clear()
        self._unguided.clear()
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
        """Set the grid of the next run.

        Args:
            num_inference_steps: number of grid intervals.
            device: device of `timesteps`.
            timesteps: a grid of network times; sigma = 0 is appended. For consistency models
                (CMStochasticIterativeScheduler), integers are indices of the training grid, as in their pipeline.
            sigmas: a grid of sigma/alpha, or for flow models of times before the shift, as their pipelines pass them;
                the last 0 may be omitted. It is used unchanged. But if `spacing=` names another grid, the even grid
                that flow pipelines pass by default counts as a number of steps.
            mu: the resolution-dependent shift, for flow models with `use_dynamic_shifting`.
            strength: start the grid at this share of the model's time (pipelines of consistency models).
            original_inference_steps: number of timesteps at which the model was distilled, for samplers on the grid
                `distilled`; by default the value in its configuration.
            max_timesteps, intermediate_timesteps: for TrigFlow models (SCMScheduler): the first time, 1.5708 at most,
                and the second time of two steps. If either is passed, even as None, the clean end is the last
                timestep, as Sana-Sprint's pipelines expect.
            **others: arguments of other diffusers schedulers; refused with the reason.

        Raises:
            UsageError: no grid, or an invalid one.
        """
        check_grid_arguments(others)
        self._read_config()
        self._reset()
        limits = {"max_timesteps": max_timesteps, "intermediate_timesteps": intermediate_timesteps}
        limits = {name: value for name, value in limits.items() if value is not UNSET}
        request = GridRequest(
            num_inference_steps, device, timesteps, sigmas, mu, strength, original_inference_steps, limits
        )
        self._grid_arguments = request.arguments()
        self.convention = with_shift(self._unshifted, self.trained, mu)
        choice = self._choice.for_steps(request.count)
        grid = requested_grid(request, self.convention, self.trained, choice)
        layout = choice.layout(self.convention.process, grid.steps, grid.arguments)
        self.num_inference_steps = layout.steps
        self.order = 1 if grid.is_given or layout.is_adaptive else layout.evaluations_per_step
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
        """The network time of each evaluation; the training schedule before `set_timesteps`."""
        return training_schedule(self.convention, self.trained)[0] if self._timesteps is None else self._timesteps

    @timesteps.setter
    def timesteps(self, timesteps: Tensor) -> None:
        self._timesteps = timesteps

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start the loop at timesteps[begin_index], unless `step` is passed another timestep."""
        counted = None if self.num_inference_steps is None else self.num_inference_steps * self.order
        self._timeline.set_begin_index(begin_index, counted)

    @property
    def begin_index(self) -> int | None:
        """The value passed to `set_begin_index`; None if there is none."""
        return self._timeline.begin_index

    @property
    def step_index(self) -> int | None:
        """The number of timesteps already passed; None before the first step."""
        return None if self._run is None else self._run.step_index

    @property
    def init_noise_sigma(self) -> float:
        """The factor of standard normal latents at the start of a run.

        1 for models whose states are about as large as their data at all times: DDPM tables (alpha^2 + sigma^2 = 1)
        and flows. It is 1 for their grids that begin in the middle too, because given latents already contain noise.
        For EDM and VE it is sigma at the start of the run; their pipelines pass latents divided by it.
        """
        process = self.convention.process
        if isinstance(process, DiscreteVP | RectifiedFlow):
            return 1.0
        if isinstance(process, EDM | VE) and self._run is not None:
            return float(self._run.layout.points[0].native[1])
        return float(process.prior.std)

    @property
    def sigmas(self) -> Tensor:
        """sigma at each timestep, followed by 0, for models whose state is the same as in diffusers (flow models, EDM).

        Raises:
            AttributeError: for DDPM tables; a pipeline that reads sigmas expects latents x / alpha.
        """
        if isinstance(self.convention.process, DiscreteVP):
            raise AttributeError(MISSING["sigmas"])
        if self._run is None:
            return training_schedule(self.convention, self.trained)[1]
        return torch.tensor([*self._timeline.sigmas(), 0.0], dtype=torch.float32, device="cpu")

    def __getattr__(self, name: str) -> Any:
        # Python calls this if a property has raised, and the message of diffusers does not give the reason.
        if name in MISSING:
            raise AttributeError(MISSING[name])
        return super().__getattr__(name)

    # The loop.

    def connect(self, guider: Any) -> Any:
        """A copy of a guider of diffusers that gives this scheduler the unconditional predictions (CFG++ samplers).

            scheduler = sds.Scheduler.from_config(pipe.scheduler.config, "euler-cfgpp")
            guider = scheduler.connect(ClassifierFreeGuidance(guidance_scale=0.6))
            pipe.update_components(scheduler=scheduler, guider=guider)

        The blocks of modular pipelines pass on the guided prediction alone. `guidance_scale` is then the lambda of
        CFG++, in [0, 1]. If the guider is disabled or outside of its `start` and `stop`, nothing is guided.

        The guider also serves copies of the scheduler (`copy.deepcopy`), and both stay connected if they are pickled
        together. A scheduler that was pickled alone has to be connected again.

        Raises:
            UsageError: not a guider. While it runs: its scale is 1, at which guiders skip the unconditional prediction.
        """
        return connected(guider, self._unguided)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The network's input for `sample` at `timestep`; None means the run's next timestep."""
        if self.convention.is_plain:
            return sample
        passed = read_timestep(timestep)
        time = self._training_time(passed) if self._run is None else self._run.time_of(passed)
        return self.convention.scale_input(sample, time)

    def _training_time(self, passed: Passed) -> float:
        """The native time of a timestep of the training schedule, before `set_timesteps`."""
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
        log_prob: bool = False,
        prev_sample: Tensor | None = None,
        reduction: Reduction = "sum",
        unguided: Tensor | None = None,
        **others: Any,
    ) -> StepOutput | tuple[Any, ...]:
        """Pass the network's output to the sampler; return the state at which to evaluate the network next.

        A run begins at the timestep of the first `step`, and continues through the timesteps of the grid in order.
        With samplers that keep nothing from step to step (euler, ddim, ddpm, ...) the same timestep may be passed
        again, or another timestep of the grid together with the caller's own state.

        Args:
            model_output: (N, ...) the network's output for `sample`, after guidance if there is any.
            timestep: the timestep that the network received, an element of `timesteps` or its value. An element needs
                no synchronization with the device. None means the next timestep.
            sample: (N, ...) the state that was evaluated. Edits since the last step are respected, and gradients are
                those of this tensor.
            generator: one generator of the noise, or one per image; read once per run, by stochastic samplers. A number
                in its place is `eta`, as in DDIM's `step`.
            return_dict: return a `StepOutput`; else a tuple with the state, to which x0 is added at the last step
                (pipelines of one-step models need it) and for pipelines that need it at every step.
            eta: DDIM's share of noise, for samplers with an option of this name; 0 leaves the option unchanged.
            prev_timestep: the timestep of the next step, as passed by unCLIP's pipelines; it is checked.
            log_prob: also return the log-probability (N,), the mean and the standard deviation of the step, as
                `log_prob`, `mean` and `std` of the `StepOutput`, or in the tuple (state, log_prob, mean, std).
            prev_sample: (N, ...) the outcome of the step, to score a stored transition: the state returned, and the
                state of `log_prob`, which is then returned too.
            reduction: "sum" over the elements of a sample, the log-density; or their "mean".
            unguided: (N, ...) the network's output for `sample` without guidance, for the samplers that need it
                (CFG++); the same as `model_output` if nothing is guided. A connected guider provides it (`connect`).
            **others: arguments of `step` of other diffusers schedulers; ignored or refused with a reason.

        Raises:
            UsageError: the run is over or continues at another timestep, or the sampler cannot run in a pipeline; it
                needs the unguided output too; or a log-probability is requested of a sampler whose steps have no
                Gaussian density.
        """
        check_step_arguments(others)
        if isinstance(generator, int | float):
            eta, generator = (generator if eta is None else eta), None
        run, passed, eta = self._run, read_timestep(timestep), float(eta or 0.0)
        if run is None:
            raise UsageError("call set_timesteps before step")
        unguided = self._unguided.of_step(self.spec, model_output, unguided)
        scores = log_prob or prev_sample is not None
        outcome = check_scored(run, sample, prev_sample, reduction, eta) if scores else None
        pending = run.pending_at(passed, sample, generator, eta, self.seed, is_scored=outcome is not None)
        prediction = None
        if not pending.discard_next_output:
            prediction = pending.predicted(model_output, sample, self.convention, self.clip, unguided)
        run.note(passed, sample)
        transition = None
        if scores:
            state, transition = advance_observed(run, pending, prediction, sample, prev_timestep, outcome)
        else:
            state = run.advance(pending, prediction, sample.dtype, prev_timestep)
        self._unguided.succeeded()
        density = None if transition is None else transition.log_prob(reduction)
        if transition is not None and not return_dict:
            return state, density, transition.mean, transition.std
        if not (return_dict or self._returns_pairs or run.is_over):
            return (state,)
        x0 = sample if prediction is None else prediction.x0.to(sample.dtype)
        if not return_dict:
            return (state, x0)
        if transition is None:
            return StepOutput(state, x0)
        return StepOutput(state, x0, density, transition.mean, transition.std)
