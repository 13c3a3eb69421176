"""`Scheduler`: any registered sampler as a diffusers scheduler, inside a pipeline that knows nothing of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor

from .coordinates import view
from .errors import UsageError
from .layout import Layout
from .loop import Run, model_state
from .models.conventions import class_of, convention_of, with_shift
from .models.diffusers import without_variance
from .noise import NormalSource, check_seed
from .path import Path, Point
from .plugin import Sampler
from .prediction import Prediction
from .processes import DiscreteVP, RectifiedFlow
from .recipe import Recipe, make_recipe, start_run
from .registry import Preset, default_registry
from .sampling import make_noise, shortest_draw
from .sde import GaussianProcess, as_scalar, expand
from .seeding import Generators, seeds_of
from .timesteps import Timesteps

OURS = (
    *("sampler", "options", "spacing", "spacing_options", "coordinates", "noise", "noise_options", "final"),
    *("seed", "adaptive", "round_timesteps"),
)
"""What our configuration says beside what the model came with."""

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
    "alphas": "an sdesamplers.Scheduler has alphas_cumprod on a DDPM table, and no alphas of single steps",
    "_get_variance": "an sdesamplers.Scheduler has no variance of single steps; sample(..., 'paradigms') is parallel",
}
"""Attributes that some models' schedulers do not have, and why."""

IN_PAIRS = ("LCMScheduler", "TCDScheduler", "SCMScheduler")
"""Schedulers whose pipelines take (sample, x0) from a `step` that returns a tuple."""


@dataclass
class StepOutput(SchedulerOutput):  # type: ignore[misc]
    """What `step` returns.

    Attributes:
        prev_sample: the state that the pipeline is to ask the network at next, or the finished sample.
        pred_original_sample: x0 as predicted at the state just evaluated.
    """

    pred_original_sample: Tensor | None = None


@dataclass
class Asking:
    """A run in progress: the sampler's generator, and where it wants the model now.

    Attributes:
        x, point: the state and point asked for, in the path's coordinates.
        given: the tensor that the pipeline was handed for it, and its version then (None where torch keeps none).
        waits: whether the network's next answer is for the run's start, before the sampler has asked anything.
    """

    run: Run
    path: Path
    x: Tensor
    point: Point
    given: Tensor | None = None
    version: int | None = None
    waits: bool = False

    def __deepcopy__(self, memo: Any) -> Asking:
        raise UsageError(
            "a run in progress cannot be copied, as panorama pipelines do with every view's; use their own schedulers "
            "there, and elsewhere a scheduler.clone() for each run"
        )


class Scheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
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
        recipe: another word for `sampler`.
        **options: the sampler's own options.

    Raises:
        UsageError: words that do not fit, or a sampler that needs more than a pipeline gives its scheduler.
        ModelError: `trained` is of a kind that has no score.
    """

    config_name = "scheduler_config.json"
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
        recipe: str | Recipe | None = None,
        **options: Any,
    ) -> None:
        if sampler is not None and recipe is not None:
            raise UsageError("sampler and recipe are two words for the same thing; give one of them")
        chosen: Any = sampler or recipe or "quality"
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
        self.trained = trained_part(trained or {"_class_name": "DDPMScheduler"})
        self.trained["_class_name"] = class_of(self.trained)
        self._in_pairs = self.trained["_class_name"] in IN_PAIRS
        self.convention = self._unshifted = convention_of(self.trained)
        self.spec, self._is_free = self._checked(adaptive)
        self.seed, self.round_timesteps = None if seed is None else check_seed(seed), round_timesteps
        self._reset()
        name = chosen.name if isinstance(chosen, Sampler) else chosen
        ours = {"sampler": name, "options": options, **words, "seed": seed, "adaptive": adaptive}
        kept = {key: value for key, value in self.trained.items() if not key.startswith("_")}
        self.register_to_config(
            **kept, **ours, round_timesteps=round_timesteps, trained_class=self.trained["_class_name"]
        )

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
        """
        if isinstance(config, SchedulerMixin):
            config = {"_class_name": type(config).__name__, **config.config}  # type: ignore[attr-defined]
        if not isinstance(config, Mapping):
            kind = type(config).__name__
            raise UsageError(f"config must be a scheduler's configuration, such as pipe.scheduler.config, not {kind}")
        words = {key: value for key, value in words.items() if not key.startswith("_")}
        if "trained_class" in config and sampler is None and "recipe" not in words:
            kept = {key: config[key] for key in OURS if key in config}
            sampler = kept.pop("sampler", None)
            words = {**(kept.pop("options", None) or {}), **kept, **words}
        made = cls(sampler, trained=config, **words)
        return (made, {}) if return_unused_kwargs else made

    def clone(self) -> Scheduler:
        """A scheduler of the same configuration with no run of its own: each thread's pipeline needs one."""
        rest = {key: self.config[key] for key in ("seed", "adaptive", "round_timesteps")}
        return type(self)(self._sampler, trained=self.trained, **self._words, **rest, **self._options)

    def __deepcopy__(self, memo: Any) -> Scheduler:
        """A clone, with the grid laid out where no run has begun on it: pipelines of two modalities copy it then."""
        made = self.clone()
        if self.num_inference_steps is not None and self.step_index is None:
            laid_out = ("convention", "num_inference_steps", "order", "_layout", "_stride", "_device")
            made.__dict__.update({name: getattr(self, name) for name in laid_out})
            made.timesteps = made._from_step(0)
        return made

    def __reduce__(self) -> Any:
        return type(self).from_config, (dict(self.config),)

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
        self.timesteps: Tensor = torch.zeros(0)
        self.told: list[Tensor] | None = None  # the timesteps so far of a run that has begun and grows
        self._asking: Asking | None = None
        self._ended = False
        self._begin_index: int | None = None
        self._begin: int | None = None  # the grid step that the loop is known to start from
        self._evaluation = 0

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        mu: float | None = None,
        strength: float = 1.0,
        original_inference_steps: int | None = None,
    ) -> None:
        """Lay out a run.

        Args:
            num_inference_steps: grid intervals.
            device: of `timesteps`.
            timesteps: your own grid, in what the network is told; sigma = 0 follows it.
            sigmas: your own grid of sigma/alpha, or for flow models of times before the shift, as their pipelines
                give them; a last 0 may be left out. The even grid that such pipelines pass where their caller says
                nothing is taken for what it is, a number of steps.
            mu: the shift of the resolution, for flow models with `use_dynamic_shifting`.
            strength: start the grid at this share of the model's time (pipelines of consistency models).
            original_inference_steps: of the teacher's grid, which samplers here do not need; not used.

        Raises:
            UsageError: no grid, or one that cannot be run.
        """
        self._reset()
        self._device = device
        self.convention = with_shift(self._unshifted, self.trained, mu)
        process = self.convention.process
        words: dict[str, Any] = {}
        if sigmas is not None:
            levels = numbers(sigmas, "sigmas")
            num_inference_steps = even_steps(levels) if isinstance(process, RectifiedFlow) else None
            if num_inference_steps is None:
                words = {"times": own_times(process, levels)}
        elif timesteps is not None:
            words = {"times": to_the_end(process, self.convention.time(numbers(timesteps, "timesteps")))}
        elif num_inference_steps is None:
            raise UsageError("set_timesteps needs num_inference_steps, timesteps or sigmas")
        if words:
            words |= {"spacing": None, "spacing_options": None}
        if strength != 1.0:
            words["start_time"] = process.t_min + strength * (process.t_max - process.t_min)
        grid = make_recipe(
            "euler" if self._is_free else self._sampler,
            steps=num_inference_steps,
            **{"process": process, **self._words, **words},
            options={} if self._is_free else self._options,
        )[0]
        recipe = self._recipe(None) if self._is_free else grid
        self._layout = Layout(process, self.spec, recipe, grid)
        self.num_inference_steps = self._layout.steps
        # Where a pipeline gave a grid it takes the number of timesteps for the number of steps.
        counted = sigmas is not None or timesteps is not None
        self.order = 1 if counted or self._layout.grows else max(1, self.spec.evaluations or 1)
        self._stride = 0 if counted else self.order
        self.timesteps = self._from_step(0)

    def _from_step(self, begin: int) -> Timesteps:
        """The timesteps of the run from a grid step on."""
        told = self._tell(self._layout.plan(begin).points[: 1 if self.grows else None])
        return Timesteps.of(self, told.to(self._device), begin)

    @property
    def grows(self) -> bool:
        """Whether the run's timesteps depend on the values that it meets."""
        return self._layout.grows

    def _tell(self, points: Sequence[Point]) -> Tensor:
        """What the network is told at points, (K,) on the CPU."""
        values = np.asarray(self.convention.timestep(np.array([np.max(point.t) for point in points], dtype=float)))
        if self.round_timesteps and isinstance(self.convention.process, DiscreteVP):
            return torch.from_numpy(np.rint(values).astype(np.int64))
        return torch.from_numpy(values.astype(np.float32))

    def from_position(self, begin: int, position: int) -> Timesteps:
        """What a slice `timesteps[position:]` of the run from grid step `begin` stands for."""
        return self._from_step(self._layout.step_at(begin, position, self._stride))

    def counted(self) -> None:
        """The pipeline counts timesteps, one an evaluation, to find its begin, not grid steps of `order` each."""
        self._stride = 0

    def iterated(self, begin: int, stop: int | None) -> None:
        """A loop over the timesteps of the run from grid step `begin` has begun, over `stop` of them if not all.

        Raises:
            UsageError: the run is to be cut short, and how many timesteps it has is not known.
        """
        if stop is not None and self.grows:
            raise UsageError(
                f"{self.spec.name} chooses its own steps here, so a loop cannot stop after {stop} of them (as with "
                "denoising_end=); run it on a fixed grid: adaptive=False, and no tolerances"
            )
        if self._asking is None:
            self._begin = begin

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Say that the loop starts at timesteps[begin_index]."""
        self._begin_index = begin_index
        self._begin = self._layout.step_at(0, begin_index, self._stride)

    @property
    def begin_index(self) -> int | None:
        """What `set_begin_index` was told."""
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        """How many of the timesteps lie behind; None before the first step."""
        return None if self._asking is None and not self._ended else (self._begin_index or 0) + self._evaluation

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the latents that a run starts from."""
        process = self.convention.process
        first = self._layout.points[0] if self.num_inference_steps else None
        return float(process.prior.std if first is None or first.t == process.t_max else first.native[1])

    @property
    def sigmas(self) -> Tensor:
        """sigma at each timestep and 0 behind, of models whose state is what diffusers' is (flow models, EDM).

        Raises:
            AttributeError: for DDPM tables, where a pipeline that asks expects x / alpha for its latents.
        """
        if isinstance(self.convention.process, DiscreteVP):
            raise AttributeError(MISSING["sigmas"])
        if self.told is not None:  # of a run that grows, as far as it has come
            times = self.convention.time(as_scalar(torch.stack(self.told)))
            levels = np.atleast_1d(self.convention.process.sigma(times)).tolist()
        else:
            levels = [float(np.max(point.native[1])) for point in self._layout.plan(0).points]
        return torch.tensor([*levels, 0.0], dtype=torch.float32, device="cpu")

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha^2 at a DDPM table's timesteps."""
        if not isinstance(self.convention.process, DiscreteVP):
            raise AttributeError(MISSING["alphas_cumprod"])
        return torch.from_numpy(self.convention.process.alphas_cumprod).float()

    def __getattr__(self, name: str) -> Any:
        # Python comes here where a property has raised, and diffusers' own answer does not say why.
        if name in MISSING:
            raise AttributeError(MISSING[name])
        return super().__getattr__(name)

    # The loop.

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """What the network is to be given for `sample`."""
        if self.convention.is_plain:
            return sample
        point = self._start_point(timestep) if self._asking is None else self._asked_at
        return self.convention.scale_input(sample, point.t)

    def _start_point(self, timestep: Any) -> Point:
        begin = self._find_begin(timestep)
        return self._layout.plan(begin).points[0]

    @property
    def _asked_at(self) -> Point:
        assert self._asking is not None
        return self._asking.path.points[0] if self._asking.waits else self._asking.point

    def _find_begin(self, timestep: Any) -> int:
        """The grid step that a run starts from, by its timestep where nothing else says it."""
        if self.num_inference_steps is None:
            raise UsageError("call set_timesteps before step")
        if self._begin is None:
            told = self._tell(self._layout.points[:-1]).tolist()
            near = int(np.argmin(np.abs(np.asarray(told) - float(timestep))))
            if abs(told[near] - float(timestep)) > 1e-3 * max(1.0, abs(told[near])):
                raise UsageError(
                    f"no step of this run starts at timestep {float(timestep):g}; the nearest starts at {told[near]:g}"
                )
            self._begin = near
        return self._begin

    def _start(self, timestep: Any, sample: Tensor, generator: Generators) -> Asking:
        begin = self._find_begin(timestep)
        layout, recipe = self._layout, self._layout.recipe
        path = layout.path(begin)
        shape = tuple(sample.shape[1:])
        if self.seed is None and self.spec.stochastic:
            seeds, indices = seeds_of(generator, sample)
        else:
            seeds, indices = [self.seed or 0] * len(sample), list(range(len(sample)))
        source = NormalSource(seeds, indices, shape)
        path.ledger.noise = make_noise(recipe, source, shortest_draw(path, recipe, self.spec, (1,)))
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        scale = path.points[0].scale
        x = x if isinstance(scale, float) and scale == 1.0 else x * expand(scale, x)
        run = start_run(self.spec, x, path, recipe.options)
        first, point = layout.single(next(run))
        self._check_rows(point, len(sample))
        if self.grows:
            self.told = [self._tell(path.points[:1])[0].to(self._device)]
        return Asking(run, path, first, point, waits=layout.plan(begin).waits)

    def _check_rows(self, point: Point, count: int) -> None:
        if point.rows is not None and count > 1:
            raise UsageError(
                f"{self.spec.name} gives each image its own times, and a pipeline tells its network one for all (some, "
                "as DiT's, step the guided and unguided halves as two images); make one image at a time, or use "
                "sds.sample(sds.from_pipeline(pipe), ...)"
            )

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[Tensor, ...]:
        """Hand the sampler the network's answer; get the state to ask it at next.

        Args:
            model_output: (N, ...) the network's answer, guided where it is, for `sample`.
            timestep: the timestep that it was told; read at the start of a run, where nothing else says which it is.
            sample: (N, ...) the state that was evaluated; one that was edited since the last step is respected.
            generator: of the noise, one or one an image; read once a run, by stochastic samplers.
            return_dict: return a `StepOutput`, else a tuple with the state (and x0 at the last step, which pipelines
                of one-step models take, and in pipelines that take it at every step).

        Raises:
            UsageError: the run is over, or cannot be run in a pipeline.
        """
        asking = self._asking
        if asking is None:
            if self._ended:
                raise UsageError(f"this run ended after {self._evaluation} evaluations; call set_timesteps for another")
            asking = self._asking = self._start(timestep, sample, generator)
        self._evaluation += 1
        if asking.waits:
            asking.waits, prediction = False, None
        else:
            prediction = self._predicted(asking, model_output, sample)
            try:
                asking.x, asking.point = self._layout.single(asking.run.send(prediction))
            except StopIteration as stop:
                return self._end(stop.value, asking, prediction, sample, return_dict)
            except Exception:
                self._asking, self._ended = None, True
                raise
        if self.told is not None:
            self.told.append(self._tell([asking.point])[0].to(self._device))
        given = model_state(asking.x, asking.point)
        if given.dtype is not sample.dtype:
            given = given.to(sample.dtype)
        asking.given = given
        if given is not asking.x:
            asking.version = None if given.is_inference() else given._version
        return self._output(given, prediction, sample, return_dict)

    def _predicted(self, asking: Asking, model_output: Tensor, sample: Tensor) -> Prediction:
        x = asking.x if asking.given is None else evaluated(asking, asking.given, sample)
        output = model_output
        if output.dtype is not x.dtype or output.shape != x.shape:
            output = without_variance(output, x.shape[1]).to(x.dtype)
            if output.shape != x.shape:
                raise UsageError(
                    f"the network answered with shape {tuple(model_output.shape)} for a state of {tuple(x.shape)}"
                )
        if not self.convention.is_plain:
            output = self.convention.read(output, model_state(x, asking.point), asking.point.t)
        return Prediction(x, asking.point, output, self.convention.prediction)

    def _end(
        self, x: Tensor, asking: Asking, prediction: Prediction, sample: Tensor, return_dict: bool
    ) -> StepOutput | tuple[Tensor, ...]:
        self._asking, self._ended = None, True
        clean = model_state(x, asking.path.points[-1]).to(sample.dtype)
        return self._output(clean, prediction, sample, return_dict)

    def _output(
        self, state: Tensor, prediction: Prediction | None, sample: Tensor, return_dict: bool
    ) -> StepOutput | tuple[Tensor, ...]:
        if not (return_dict or self._in_pairs or self._ended):
            return (state,)
        x0 = sample if prediction is None else prediction.x0.to(sample.dtype)
        return StepOutput(state, x0) if return_dict else (state, x0)

    # Noising, for image-to-image, inpainting and training.

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """alpha x0 + sigma noise at `timesteps`, one or one for each sample; none leave the samples as they are.

        Whole timesteps of a table are looked up on their device; others are read to the host.
        """
        alpha, sigma = self._levels(timesteps, original_samples)
        return original_samples if alpha is None else alpha * original_samples + sigma * noise

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        """`add_noise` by the name and order of flow pipelines."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """alpha noise - sigma x0, the target of v prediction (Salimans & Ho 2022)."""
        alpha, sigma = self._levels(timesteps, sample)
        return sample if alpha is None else alpha * noise - sigma * sample

    def _levels(self, timesteps: Any, like: Tensor) -> tuple[Any, Any]:
        process = self.convention.process
        if isinstance(timesteps, Tensor) and not timesteps.is_floating_point() and isinstance(process, DiscreteVP):
            table = self.alphas_cumprod.double().to(like.device)[timesteps.to(like.device).long().flatten()]
            alpha, sigma = (v.sqrt().to(like.dtype) for v in (table, 1 - table))
            shape = (-1, *(1,) * (like.dim() - 1))
            return (alpha.view(shape), sigma.view(shape)) if len(table) else (None, None)
        times = self.convention.time(as_scalar(timesteps))
        if np.ndim(times) and not len(times):
            return None, None
        times = np.clip(times, 0.0, process.t_max)
        return expand(as_scalar(process.alpha(times)), like), expand(as_scalar(process.sigma(times)), like)


def evaluated(asking: Asking, given: Tensor, sample: Tensor) -> Tensor:
    """The state that the network was asked at, in the path's coordinates.

    It is the run's own, unrounded, wherever the pipeline hands back what it was given; where it has edited something
    the edited values are taken, number by number, so that nothing is read from the device to find out.
    """
    x, scale = asking.x, asking.point.scale
    if sample is x:
        return x
    if sample is given and asking.version is not None and sample._version == asking.version:
        return x
    theirs = sample.to(x.dtype)
    theirs = theirs if isinstance(scale, float) and scale == 1.0 else theirs * expand(scale, x)
    echo = model_state(x, asking.point).to(given.dtype)  # which the pipeline may have cast since
    return torch.where(sample == echo.to(sample.dtype), x, theirs)


def trained_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says of the model, without what ours adds to it.

    Nor does it keep the list of its words that were left at their defaults: diffusers drops these words when it builds
    a scheduler of another class, and that class's defaults are another table.
    """
    trained = {key: value for key, value in config.items() if key not in OURS and not key.startswith("_")}
    kind = config.get("trained_class", config.get("_class_name"))
    trained.pop("trained_class", None)
    return trained if kind is None else {**trained, "_class_name": kind}


def even_steps(sigmas: np.ndarray) -> int | None:
    """N where sigmas are the even grid 1, 1 - 1/N, ..., 1/N, which flow pipelines pass for "N steps"; else None."""
    count = len(sigmas)
    return count if np.allclose(sigmas, np.linspace(1.0, 1.0 / count, count), atol=1e-6) else None


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


def own_times(process: GaussianProcess, sigmas: np.ndarray) -> list[float]:
    """Times of a grid of sigma/alpha, or of a flow's times before its shift, ended by the clean end."""
    body = sigmas[:-1] if sigmas[-1] == 0 else sigmas
    if isinstance(process, RectifiedFlow):
        times = process.shift * body / (1 + (process.shift - 1) * body)
    else:
        times = process.time_at_ratio(body)
    return to_the_end(process, np.asarray(times, dtype=float))


def to_the_end(process: GaussianProcess, times: np.ndarray) -> list[float]:
    """A grid of times with the clean end behind it; ends that float32 has rounded out of the process are put back."""
    above = (times > process.t_max) & (times < process.t_max * (1 + 1e-4))
    below = (times < 0) & (times > -1e-6 * process.t_max)
    grid: list[float] = np.select([above, below], [process.t_max, 0.0], times).tolist()
    clean = clean_time(process)
    return grid if grid[-1:] == [clean] else [*grid, clean]
