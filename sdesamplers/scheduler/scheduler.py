"""`Scheduler`: any registered sampler as a diffusers scheduler, inside a pipeline that knows nothing of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from ..checks import flag, shown
from ..errors import UsageError
from ..models.clipping import Clip, ClipLike
from ..path.noise import check_seed
from ..pretrained.configuration import completed
from ..pretrained.conventions import Convention, convention_of, with_shift
from ..pretrained.saved_words import KEY, OURS, own_part, trained_part
from ..processes.coordinates import view
from ..processes.scalars import as_scalar, expand
from ..processes.schedules import EDM, VE, RectifiedFlow, TrigFlow
from ..processes.sde import GaussianProcess
from ..processes.table import DiscreteVP
from ..public import public
from ..registry.names import Preset
from ..registry.plugin import Sampler
from ..registry.registry import default_registry
from ..sampling.arguments import make_recipe
from ..sampling.recipe import Recipe
from .configuration import Configuration, changed, explicit, split_words, updated
from .layout import Layout
from .pending import StepOutput
from .run import PushedRun
from .seeding import Generators
from .step_words import check_grid_words, check_step_words
from .table import Table
from .timeline import Timeline
from .timesteps import Passed, read_timestep
from .training_schedule import training_schedule

REFUSED = {
    "unguided": "needs the unguided prediction beside the guided one, and a pipeline passes on the guided one alone; "
    "sds.sample(sds.from_pipeline(pipe), ...) gives it both",
    "log_density": "needs the model's density, which a diffusion pipeline does not have",
    "stationary": "runs on a density, not on a diffusion model",
}
"""Needs of samplers that a pipeline cannot meet, and what then."""

MISSING = {
    "sigmas": "an sdesamplers.Scheduler has no sigmas on a DDPM table: its latents are alpha x0 + sigma eps, and a "
    "pipeline that reads sigmas expects them divided by alpha",
    "alphas_cumprod": "this model was not trained on a table of alphas_cumprod",
    "betas": "this model was not trained on a table of alphas_cumprod, so that it has no betas",
    "alphas": "this model was not trained on a table of alphas_cumprod, so that it has no alphas of single steps",
    "final_alpha_cumprod": "an sdesamplers.Scheduler has no final_alpha_cumprod; its runs end at sigma = 0",
    "_get_variance": "an sdesamplers.Scheduler has no variance of single steps; sample(..., 'paradigms') is parallel",
}
"""Attributes that some models' schedulers do not have, and why."""

UNSET: Any = object()
CONSISTENCY = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
"""Defaults of a consistency model's training grid."""

ANSWERS = {
    *("prediction_type", "clip_sample", "clip_sample_range", "clip_denoised"),
    *("thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
}
"""Words of a configuration that say what a network's answer means, and nothing of time."""

IN_PAIRS = ("LCMScheduler", "TCDScheduler", "SCMScheduler")
"""Schedulers whose pipelines take (sample, x0) from a `step` that returns a tuple."""


@public
class Scheduler(SchedulerMixin, ConfigMixin):
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
        if isinstance(chosen, Recipe):
            if chosen.times or chosen.sigmas or chosen.start_time is not None:
                raise UsageError("this Recipe has a grid of its own; give a pipeline its timesteps= or sigmas= instead")
            words = {word: getattr(chosen, word) if value is None else value for word, value in words.items()}
            chosen, options = chosen.sampler, {**chosen.options, **options}
        if not isinstance(chosen, str | Sampler):
            raise UsageError(f"sampler must be a name, a Sampler or a Recipe, not {chosen!r}")
        self._sampler: str | Sampler = chosen
        self._words, self._options = words, options
        self._clip = clip
        self._follow(trained_part(trained or {"_class_name": "DDPMScheduler", "clip_sample": False}))
        self.spec, self._is_free = self._checked(adaptive)
        self.seed, self.round_timesteps = None if seed is None else check_seed(seed), round_timesteps
        self._timeline = Timeline()
        self._reset()
        name = chosen.name if isinstance(chosen, Sampler) else chosen
        kept_clip = vars(clip) if isinstance(clip, Clip) else clip
        ours = {"sampler": name, "options": options, **words, "seed": seed, "adaptive": adaptive, "clip": kept_clip}
        ours["round_timesteps"] = round_timesteps
        self.register_to_config(**{**self._models_words(), KEY: ours})

    # The configuration.

    def _follow(self, trained: Mapping[str, Any]) -> None:
        """Take the model to be what these words say of it."""
        self.trained = completed(trained)
        self._in_pairs = self.trained["_class_name"] in IN_PAIRS
        self.convention = self._unshifted = convention_of(self.trained)
        self.clip = Clip.of(self._clip, self.convention.clip)

    def _models_words(self) -> dict[str, Any]:
        """The model's words, with the list of those that were left at their class's defaults."""
        return {word: value for word, value in self.trained.items() if word != "_class_name"}

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
            if type(past) is type(self.convention) and not set(anew) - ANSWERS:
                self.convention = self.convention.on(past.process)
            else:
                self._reset()
        words = self._models_words()
        defaults = {word: words[word] for word in words["_use_default_values"]}
        ours = {**self._internal_dict.get(KEY, {}), "trained_class": self.trained["_class_name"], "defaults": defaults}
        self._internal_dict = Configuration({**self._internal_dict, **words, KEY: ours})

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
        if isinstance(config, SchedulerMixin):
            config = {"_class_name": type(config).__name__, **cast(Any, config).config}
        if not isinstance(config, Mapping):
            kind = type(config).__name__
            raise UsageError(f"config must be a scheduler's configuration, such as pipe.scheduler.config, not {kind}")
        words = {key: value for key, value in words.items() if not key.startswith("_")}
        own, trained = own_part(config), trained_part(config)
        if own and sampler is None and "recipe" not in words:
            own = {word: value for word, value in own.items() if word in OURS}
            sampler = own.pop("sampler", None)
            words = {**(own.pop("options", None) or {}), **own, **words}
        models = split_words(words, known_words(sampler or words.get("recipe")), trained)
        rest = {word: value for word, value in words.items() if word not in models}
        made = cls(sampler, trained=updated(trained, models) if models else trained, **rest)
        return (made, {}) if return_unused_kwargs else made

    def clone(self) -> Scheduler:
        """A scheduler of the same configuration with no run of its own: each thread's pipeline needs one."""
        rest = {key: self.config[key] for key in ("seed", "adaptive", "round_timesteps", "clip")}
        return type(self)(self._sampler, trained=self.trained, **self._words, **rest, **self._options)

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

    def _checked(self, adaptive: bool | None) -> tuple[Sampler, bool]:
        """The sampler, and whether it is to choose its own steps."""
        spec = make_recipe(self._sampler, process=self.convention.process, steps=1, **self._words)[1]
        preset = default_registry().resolve(self._sampler) if isinstance(self._sampler, str) else Preset(spec)
        steered = any(name in spec.control for name in (*preset.options, *self._options))
        is_free = steered if adaptive is None else bool(adaptive)
        if is_free and not spec.adaptive:
            raise UsageError(f"{spec.name} does not choose its own steps, so adaptive=True does not apply to it")
        self._recipe(None if is_free else 1)
        for need in spec.needs:
            if need in REFUSED:
                raise UsageError(f"{spec.name} {REFUSED[need]}")
        return spec, is_free

    def _recipe(self, steps: int | None, **words: Any) -> Recipe:
        words = {"process": self.convention.process, **self._words, **words}
        return make_recipe(self._sampler, steps=steps, **words, options=self._options)[0]

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
        self._grid_words = {"num_inference_steps": num_inference_steps, "device": device, "mu": mu}
        self._grid_words |= {"timesteps": plain_list(timesteps), "sigmas": plain_list(sigmas), "strength": strength}
        self._grid_words["original_inference_steps"] = original_inference_steps
        limits = {"max_timesteps": max_timesteps, "intermediate_timesteps": intermediate_timesteps}
        self._grid_words |= {word: value for word, value in limits.items() if value is not UNSET}
        self.convention = with_shift(self._unshifted, self.trained, mu)
        process = self.convention.process
        is_closed = is_trig(process, **limits)
        if is_closed:
            if timesteps is None:
                timesteps, num_inference_steps = trig_times(num_inference_steps, **limits), None
            num_inference_steps = None if timesteps is not None else num_inference_steps
        words: dict[str, Any] = {}
        if sigmas is not None:
            levels = numbers(sigmas, "sigmas")
            num_inference_steps = even_steps(levels) if self._replaces_even_grids() else None
            if num_inference_steps is None:
                words = {"times": own_times(self.convention, levels)}
        elif timesteps is not None:
            own = consistency_times(self.trained, timesteps)
            own = np.asarray(self.convention.time(numbers(timesteps, "timesteps"))) if own is None else own
            words = {"times": to_the_end(process, own)}
        elif num_inference_steps is None:
            raise UsageError("set_timesteps needs num_inference_steps, timesteps or sigmas")
        if words:
            words |= {"spacing": None, "spacing_options": None}
        else:
            words |= self._distilled_words(original_inference_steps)
        if strength != 1.0:
            words["start_time"] = self._start_time(strength, words.get("spacing_options") or {})
        grid = make_recipe(
            "euler" if self._is_free else self._sampler,
            steps=num_inference_steps,
            **{"process": process, **self._words, **words},
            options={} if self._is_free else self._options,
            end_to_end=self._is_free,  # it starts where `sample` does; a makers' grid may begin in the middle
        )[0]
        recipe = self._recipe(None) if self._is_free else grid
        layout = Layout(process, self.spec, recipe, grid)
        self.num_inference_steps = layout.steps
        # Where a pipeline gave a grid it takes the number of timesteps for the number of steps.
        counted = sigmas is not None or timesteps is not None
        self.order = 1 if counted or layout.is_adaptive else layout.evaluations_a_step
        words = {"rounds": self.round_timesteps, "order": self.order, "stride": 0 if counted else self.order}
        self._timeline.lay_out(layout, self.convention, device, **words, is_closed=is_closed)
        self._run = PushedRun(layout, self._timeline)
        self.timesteps = self._timeline.from_step(0)

    @property
    def timesteps(self) -> Tensor:
        """What the network is told at each evaluation; the training schedule before `set_timesteps`."""
        return training_schedule(self.convention, self.trained)[0] if self._timesteps is None else self._timesteps

    @timesteps.setter
    def timesteps(self, timesteps: Tensor) -> None:
        self._timesteps = timesteps

    def _replaces_even_grids(self) -> bool:
        """Whether an even grid of a flow model stands for a number of steps: where a grid is named that is to replace
        it, or its class would lay out other sigmas in its place."""
        if not isinstance(self.convention.process, RectifiedFlow):
            return False
        name = self._sampler if isinstance(self._sampler, str) else ""
        label = " " in name and any(name.endswith(f" {grid}") for grid in default_registry().grid_names())
        grid = self.convention.grid
        return self._words["spacing"] is not None or label or (grid is not None and grid.sigmas is not None)

    def _distilled_words(self, teacher_steps: int | None) -> dict[str, Any]:
        """The word of the grid `distilled` that a pipeline may pass, where the sampler runs on that grid."""
        named = self._words["spacing"]
        if teacher_steps is None or self.spec.spacing != "distilled" or named not in (None, "distilled"):
            return {}
        if self.trained["_class_name"] == "TCDScheduler":  # whose timesteps may then be any
            teacher_steps = len(self)
        options = {**(self._words["spacing_options"] or {}), "teacher_steps": teacher_steps}
        return {"spacing": "distilled", "spacing_options": options}

    def _start_time(self, strength: float, options: Mapping[str, Any]) -> float:
        """Where a run begins that has this share of the model's time before it."""
        process = self.convention.process
        if self.spec.spacing != "distilled" or not isinstance(process, DiscreteVP):
            return process.t_min + strength * (process.t_max - process.t_min)
        makers = process.own_grid
        teacher = options.get("teacher_steps") or (makers.teacher_steps if makers is not None else None) or 50
        return float(int(teacher * strength) * (round(process.t_max + 1) // teacher) - 1)

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
        return self._table("alphas_cumprod")

    @property
    def alphas(self) -> Tensor:
        """alpha^2 of single steps of a DDPM table: quotients of neighbours."""
        return 1 - self.betas

    @property
    def betas(self) -> Tensor:
        """1 - `alphas`, the variance that each timestep adds."""
        whole = torch.from_numpy(self._process_table("betas"))
        return torch.cat([1 - whole[:1], 1 - whole[1:] / whole[:-1]]).float()

    def _process_table(self, name: str) -> np.ndarray:
        if not isinstance(self.convention.process, DiscreteVP):
            raise AttributeError(MISSING[name])
        return self.convention.process.alphas_cumprod

    def _table(self, name: str) -> Table:
        made = torch.from_numpy(self._process_table(name)).float().as_subclass(Table)
        made.process = cast(DiscreteVP, self.convention.process)  # a table's, or it would have raised
        return made

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

    # Noising, for image-to-image, inpainting and training.

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """alpha x0 + sigma noise at `timesteps`, one or one for each sample; none leave the samples as they are.

        Whole timesteps of a table are looked up on their device, and elements of `timesteps` know their values; others
        are read to the host.
        """
        levels = self._levels(timesteps, original_samples)
        return original_samples if levels is None else levels[0] * original_samples + levels[1] * noise

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        """`add_noise` by the name and order of flow pipelines."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """What a network of this kind is to answer at `timesteps` for the state that `add_noise` makes.

        On a table it is alpha noise - sigma x0 (Salimans & Ho 2022), whatever the network predicts, as in diffusers'
        schedulers of tables; elsewhere the network's own target: noise - x0 for flow models, F of Karras et al. (2022),
        eq. 7, for EDM's preconditioning, cos(t) noise - sin(t) x0 for TrigFlow, the score for VE.
        """
        levels = self._levels(timesteps, sample, target=True)
        return sample if levels is None else levels[1] * noise + levels[0] * sample

    def _levels(self, timesteps: Any, like: Tensor, *, target: bool = False) -> tuple[Any, Any] | None:
        """Coefficients (on x0, on noise) of the state, or of the target; None where there are no timesteps."""
        if whole_on_device(timesteps) and isinstance(self.convention.process, DiscreteVP):
            table = self._table_levels(like)[:, timesteps.to(like.device).long().flatten()].to(like.dtype)
            if not table.shape[1]:
                return None
            alpha, sigma = table.view(2, -1, *(1,) * (like.dim() - 1))
            return (-sigma, alpha) if target else (alpha, sigma)
        place = getattr(timesteps, "sdesamplers_place", None)
        asked: Any = as_scalar(timesteps) if place is None else read_timestep(timesteps).value
        times = self.convention.time(asked)
        if not np.size(times):
            return None
        times = np.clip(times, 0.0, self.convention.process.t_max)
        first, second = (as_scalar(value) for value in self._row(times, target))
        return expand(first, like), expand(second, like)

    def _row(self, times: Any, target: bool) -> tuple[Any, Any]:
        process = self.convention.process
        return self.convention.target(times) if target else (process.alpha(times), process.sigma(times))

    def _table_levels(self, like: Tensor) -> Tensor:
        """alpha and sigma of a table, (2, T), in the precision of a state, but float32 at least, on its device."""
        assert isinstance(self.convention.process, DiscreteVP)
        table = self.convention.process.alphas_cumprod
        levels = torch.from_numpy(np.sqrt(np.stack([table, 1 - table])))
        # Some devices have no float64, so that the dtype changes before the device does.
        return levels.to(torch.promote_types(like.dtype, torch.float32)).to(like.device)


def _unpickled(cls: type[Scheduler], config: dict[str, Any], grid: Any, begin_index: int | None) -> Scheduler:
    """A scheduler from its configuration, with its grid laid out as it was."""
    made: Scheduler = cls.from_config(config)
    if grid is not None:
        made.set_timesteps(**grid)
    if begin_index is not None:
        made.set_begin_index(begin_index)
    return made


def known_words(sampler: str | Sampler | Recipe | None) -> set[str]:
    """The names of our own arguments and of a sampler's options."""
    chosen = sampler.sampler if isinstance(sampler, Recipe) else sampler or "quality"
    spec = default_registry().resolve(chosen).sampler if isinstance(chosen, str) else chosen
    return {*inspect.signature(Scheduler.__init__).parameters, *getattr(spec, "options", ())}


def even_steps(sigmas: np.ndarray) -> int | None:
    """N where sigmas are the even grid 1, 1 - 1/N, ..., 1/N, which flow pipelines pass if they are told nothing."""
    count = len(sigmas)
    return count if np.allclose(sigmas, np.linspace(1.0, 1.0 / count, count), atol=1e-6) else None


def whole_on_device(timesteps: Any) -> bool:
    """Whether timesteps are whole numbers in a tensor, which can be looked up where they are."""
    return isinstance(timesteps, Tensor) and not timesteps.is_floating_point()


def plain_list(values: Any) -> Any:
    """A grid as a list, so that it can be kept."""
    return values.tolist() if isinstance(values, Tensor | np.ndarray) else values


def is_trig(process: GaussianProcess, **limits: Any) -> bool:
    """Whether a grid is given in TrigFlow's way.

    Raises:
        UsageError: its words are for a model of another kind.
    """
    given = [word for word, value in limits.items() if value is not UNSET and value is not None]
    if given and not isinstance(process, TrigFlow):
        raise UsageError(f"{' and '.join(given)}: these are of TrigFlow models (SCMScheduler), and this is another one")
    return isinstance(process, TrigFlow) and any(value is not UNSET for value in limits.values())


def trig_times(steps: int | None, max_timesteps: Any, intermediate_timesteps: Any) -> list[float]:
    """The grid of SCMScheduler (Lu & Song 2025, appendix): even from the first time to 0, or of two steps as given.

    Raises:
        UsageError: no number of steps, or an intermediate time for another number than 2.
    """
    if steps is None or isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
        raise UsageError(f"steps must be a whole number of 1 or more, not {steps!r}")
    first = float(np.pi / 2) if max_timesteps in (None, UNSET) else float(max_timesteps)
    if intermediate_timesteps in (None, UNSET):
        return np.linspace(first, 0.0, int(steps) + 1).tolist()
    if steps != 2:
        raise UsageError(f"intermediate_timesteps is the second of 2 steps, and there are {steps}; pass None with it")
    return [first, float(intermediate_timesteps), 0.0]


def consistency_times(trained: Mapping[str, Any], timesteps: Any) -> np.ndarray | None:
    """Times of whole numbers that a consistency model's pipeline gives: indices of its training grid, 0 the noisiest.

    The pipeline of `CMStochasticIterativeScheduler` gives them falling, and the scheduler runs them rising:
    sigma_i = (sigma_max^(1/rho) + i/(N-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho (Karras et al. 2022, eq. 5).

    Raises:
        UsageError: they lie outside of the grid or do not fall.
    """
    if trained.get("_class_name") != "CMStochasticIterativeScheduler":
        return None
    array = np.atleast_1d(np.asarray(plain_list(timesteps)))
    if not array.size or not np.issubdtype(array.dtype, np.integer):
        return None
    count = int(trained.get("num_train_timesteps") or 40)
    if np.any(np.diff(array) >= 0) or array[0] >= count or array[-1] < 0:
        raise UsageError(f"timesteps must fall strictly within 0 to {count - 1}, indices of the training grid")
    low, high, rho = (float(trained.get(word) or value) for word, value in CONSISTENCY.items())
    share = array[::-1] / (count - 1)
    ends = high ** (1 / rho), low ** (1 / rho)
    times: np.ndarray = (ends[0] + share * (ends[1] - ends[0])) ** rho
    return times


def numbers(values: Any, word: str) -> np.ndarray:
    """A list, array or tensor of numbers as a float64 array."""
    try:
        found = np.atleast_1d(np.asarray(as_scalar(values), dtype=np.float64))
    except (TypeError, ValueError):
        raise UsageError(f"{word} must be a list of numbers, not {values!r}") from None
    if not found.size:
        raise UsageError(f"{word} must be a list of numbers, and it is empty")
    return found


def clean_time(process: GaussianProcess) -> float:
    """Where the model's clock reaches sigma = 0."""
    time = view(process).clean_time
    assert time is not None
    return time


def own_times(convention: Convention, sigmas: np.ndarray) -> list[float]:
    """Times of a grid of sigma/alpha, or of a flow's times before its shift, ended by the clean end.

    A flow whose makers stretch their grids to a terminal time (`shift_terminal`) has this grid stretched too.
    """
    process, body = convention.process, sigmas[:-1] if sigmas[-1] == 0 else sigmas
    if isinstance(process, RectifiedFlow):
        times = process.shift * body / (1 + (process.shift - 1) * body)
        terminal = None if convention.grid is None else convention.grid.shift_terminal
        if terminal:
            times = 1 - (1 - times) * (1 - terminal) / (1 - times[-1])
    else:
        times = np.asarray(process.time_at_ratio(body))
    return to_the_end(process, np.asarray(times, dtype=float))


def to_the_end(process: GaussianProcess, times: np.ndarray) -> list[float]:
    """A grid of times with the clean end behind it; ends that float32 has rounded out of the process are put back."""
    above = (times > process.t_max) & (times < process.t_max * (1 + 1e-4))
    below = (times < 0) & (times > -1e-6 * process.t_max)
    grid: list[float] = np.select([above, below], [process.t_max, 0.0], times).tolist()
    clean = clean_time(process)
    return grid if grid[-1:] == [clean] else [*grid, clean]
