"""The diffusers adapter: a UNet2DModel and its scheduler's configuration as a `Model`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import device_of
from ..errors import ModelError, UsageError
from ..processes import DiscreteVP
from ..sde import Scalar
from .base import Model, Output
from .calling import in_modes, kept
from .clipping import Clip, ClipLike
from .conditions import own
from .conventions import Convention, convention_of
from .quiet import in_dtype, quiet_loading, warn_of_unknown_words
from .trust import read_json, refuse_code, refuse_pointer, refuse_words

SUPPORTED = (
    "supported are pixel pipelines around a UNet2DModel (DDPM, DDIM, PNDM, score-SDE-VE, consistency models), in "
    "pipeline layout or as a bare UNet, and text-to-image and latent pipelines in pipeline layout"
)

LARGEST_SIDE = 2**16
"""Of a picture, in pixels."""


class DiffusersModel(Model):
    """A UNet2DModel at fractional timesteps.

    Args:
        unet: the network, on its device and in its dtype.
        convention: its process, and how it is asked.
        num_classes: how many labels it takes; 0 for unconditional ones.
        round_timesteps: ask at whole timesteps, as most schedulers do, instead of at the exact ones.
        condition: labels used where a call gives none.
        null_condition: the label that means "no label", for classifier-free guidance.
        autocast: a factory of the mixed-precision context.
        clip: bounds of x0; by default the convention's own, False for none.
    """

    pure = True

    def __init__(
        self,
        unet: Any,
        convention: Convention,
        *,
        shape: Sequence[int],
        name: str = "unet",
        revision: str | None = None,
        num_classes: int = 0,
        condition: Any = None,
        null_condition: int | None = None,
        round_timesteps: bool = False,
        autocast: Any = nullcontext,
        clip: ClipLike = None,
    ) -> None:
        self.unet, self.network, self.convention = unet, unet, convention
        self.process, self.prediction, self.data_range = (
            convention.process,
            convention.prediction,
            convention.data_range,
        )
        self.shape, self.name, self.revision = tuple(shape), name, revision
        self.dtype, self.device = unet.dtype, unet.device
        self.num_classes, self.null_condition = num_classes, null_condition
        self.round_timesteps, self.autocast = round_timesteps, autocast
        self.clip = Clip.of(clip, convention.clip)
        self._default = None
        if condition is not None:
            self.condition_for(condition, class_labels(condition, num_classes).size if num_classes else 1)
            self._default = condition
        if null_condition is not None:
            self.condition_for(null_condition, 1)

    def predict(self, x: Tensor, t: Scalar, condition: Any = None) -> Tensor | Output:
        timestep = timesteps_for(self.convention, t, x, rounded=self.round_timesteps)
        context: AbstractContextManager[Any] = self.autocast()
        with context:
            given = self.convention.scale_input(x, t)
            given = given.clone() if given is x else given
            output = in_modes(self.unet, given, timestep, class_labels=own(condition), return_dict=False)[0]
        return self.convention.read(kept(without_variance(output, self.shape[0])), x, t)

    def condition_for(self, condition: Any, count: int) -> Any:
        if condition is None:
            condition = self._default
        if not self.num_classes:
            return super().condition_for(condition, count)
        if condition is None:
            raise UsageError(
                f"model {self.name!r} is class-conditional: give condition=, a label from 0 to {self.num_classes - 1}"
            )
        labels = class_labels(condition, self.num_classes)
        if labels.shape not in ((1,), (count,)):
            raise UsageError(f"condition must be one label or {count}, one a sample, not {labels.size}")
        return torch.from_numpy(np.broadcast_to(labels, (count,)).astype(np.int64)).to(self.device)

    def unconditional(self, count: int) -> Any:
        if not self.num_classes:
            return super().unconditional(count)
        if self.null_condition is None:
            raise UsageError(
                f"guidance needs to know which label means none to model {self.name!r}; load it with null_condition="
            )
        return self.condition_for(self.null_condition, count)


def class_labels(condition: Any, classes: int) -> np.ndarray:
    """A user's labels as a vector of whole numbers.

    Raises:
        UsageError: they are not labels from 0 to `classes` - 1.
    """
    try:
        labels = np.atleast_1d(np.asarray(condition.cpu() if isinstance(condition, Tensor) else condition))
    except ValueError:  # lists of unequal lengths
        labels = np.empty(0)
    if not np.issubdtype(labels.dtype, np.integer) or np.any((labels < 0) | (labels >= classes)):
        raise UsageError(f"condition must be labels from 0 to {classes - 1}, not {condition!r}")
    return labels


def timesteps_for(convention: Convention, t: Scalar, x: Tensor, *, rounded: bool = False) -> Tensor:
    """What a network is told at time t, one float32 number for each sample of x (N, ...)."""
    time = convention.timestep(t)
    time = np.round(time) if rounded and isinstance(convention.process, DiscreteVP) else time
    if np.ndim(time):
        return torch.from_numpy(np.asarray(time, dtype=np.float32)).to(x.device, non_blocking=True)
    return torch.full((len(x),), float(time), dtype=torch.float32, device=x.device)


def without_variance(output: Tensor, channels: int) -> Tensor:
    """A prediction (N, channels, ...) without the variance in the channels behind it (Nichol & Dhariwal 2021)."""
    return output if output.shape[1] == channels else output[:, :channels]


def load_folder(
    folder: Path,
    *,
    name: str,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    size: int | Sequence[int] | None = None,
    condition: Any = None,
    null_condition: int | None = None,
    allow_pickle: bool = False,
    mixed_precision: str | None = None,
    round_timesteps: bool = False,
    zero_snr: bool = False,
    scheduler: Any = None,
    prediction: str | None = None,
    clip: ClipLike = None,
    **text: Any,
) -> Model:
    """A `Model` from a local folder in pipeline layout or of a bare UNet; see `load` for the options."""
    from .pipelines.loading import layout_of, load_pipeline
    from .trained import checked_convention, trained_config

    layout = layout_of(folder)
    if layout is not None:
        return load_pipeline(
            folder,
            layout,
            name=name,
            revision=revision,
            variant=variant,
            dtype=dtype,
            device=device,
            size=size,
            condition=condition,
            null_condition=null_condition,
            allow_pickle=allow_pickle,
            mixed_precision=mixed_precision,
            round_timesteps=round_timesteps,
            zero_snr=zero_snr,
            scheduler=scheduler,
            prediction=prediction,
            clip=clip,
            **text,
        )
    if given := [word for word, value in text.items() if value is not None]:
        raise UsageError(f"{', '.join(given)}: model {name!r} is a UNet of pixels, which takes no text")
    unet_folder, found = find_parts(folder)
    config = read_json(unet_folder / "config.json")
    if found is None and scheduler is None:
        warnings.warn(
            f"{name} is a bare UNet without a scheduler_config.json; DDPM's linear table with "
            f"{prediction or 'epsilon'} is assumed (scheduler= and prediction= say otherwise)",
            stacklevel=3,
        )
    told = trained_config(found or {"_class_name": "DDPMScheduler", "clip_sample": False}, scheduler, prediction)
    check_unet(unet_folder, told, folder)
    convention = checked_convention(told, prediction)
    if zero_snr:
        convention = with_zero_snr(convention)
    shape, classes = sample_shape(config, size, folder), class_count(config, folder)
    unet = load_unet(unet_folder, variant, dtype, allow_pickle)
    context = autocast_for(mixed_precision)
    move(unet, device)
    return DiffusersModel(
        unet,
        convention,
        shape=shape,
        name=name,
        revision=revision,
        num_classes=classes,
        condition=condition,
        null_condition=null_condition,
        round_timesteps=round_timesteps,
        autocast=context,
        clip=clip,
    )


def autocast_for(mixed_precision: str | None) -> Any:
    """A factory of accelerate's mixed-precision context.

    Raises:
        UsageError: this machine cannot do it.
    """
    if mixed_precision in (None, "no"):
        return nullcontext
    try:
        return Autocast(mixed_precision)
    except ValueError as error:
        text = " ".join(str(error).split())
        raise UsageError(f"mixed_precision {mixed_precision!r} cannot be used here: {text}") from None


class Autocast:
    """A factory of accelerate's mixed-precision context, pickled by the name of its precision."""

    def __init__(self, mixed_precision: str) -> None:
        import accelerate

        self.mixed_precision = mixed_precision
        self._accelerator = accelerate.Accelerator(mixed_precision=mixed_precision)

    def __call__(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self._accelerator.autocast()
        return context

    def __reduce__(self) -> Any:
        return Autocast, (self.mixed_precision,)


def move(module: Any, device: torch.device | str | None) -> None:
    """Put a network or a pipeline on a device, accelerate's choice by default.

    Raises:
        UsageError: there is no such device.
    """
    import accelerate

    place = accelerate.PartialState().device if device is None else device_of("device", device)
    try:
        module.to(place)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from None


def pipeline_parts(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The components that a model_index.json names, and their libraries and classes; absent ones are left out."""
    return {
        key: (str(value[0]), str(value[1]))
        for key, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[1] and key.isidentifier() and key[0] != "_"
    }


def is_plain(classes: Mapping[str, str]) -> bool:
    """Whether components are a UNet of pixels and its scheduler and no more."""
    return classes.get("unet") == "UNet2DModel" and set(classes) == {"unet", "scheduler"}


def find_parts(folder: Path) -> tuple[Path, dict[str, Any] | None]:
    """The UNet's folder and the scheduler's configuration, None where a bare UNet has none.

    Raises:
        ModelError: not a model folder, or of a kind that is not supported; says what was found.
    """
    index = folder / "model_index.json"
    if index.is_file():
        parts = read_json(index)
        kinds = {key: kind for key, (_, kind) in pipeline_parts(parts).items()}
        if not is_plain(kinds):
            found = ", ".join(f"{key}: {kind}" for key, kind in kinds.items()) or "no components"
            raise ModelError(f"{folder} holds a {parts.get('_class_name', 'pipeline')} ({found}); {SUPPORTED}")
        # Early Hub repositories keep all parts in the top folder.
        unet = folder / "unet" if (folder / "unet").is_dir() else folder
        beside = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
        refuse_foreign(parts, folder)
        return unet, as_class(read_json(beside / "scheduler_config.json"), kinds["scheduler"])
    if (folder / "config.json").is_file():
        kind = read_json(folder / "config.json").get("_class_name")
        if kind != "UNet2DModel":
            raise ModelError(f"{folder} holds a {kind or 'configuration without a class name'}; {SUPPORTED}")
        file = scheduler_beside(folder)
        return folder, None if file is None else read_json(file)
    held = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
    networks = sorted(p.name for p in folder.iterdir() if (p / "config.json").is_file())
    advice = f"its folders {' and '.join(networks)} hold networks; load one of them" if networks else SUPPORTED
    raise ModelError(f"{folder} has neither model_index.json nor config.json (it holds {held}); {advice}")


LEVELS = 3
"""How far above a network's folder the pipeline may lie that it belongs to; checkpoint-500/unet_ema lies two below."""


def scheduler_beside(folder: Path) -> Path | None:
    """The scheduler_config.json that belongs to a bare network: in its folder, beside it, or of a pipeline above it."""
    place = folder.resolve()
    above = list(place.parents)[:LEVELS]
    pipelines = [each for each in above if each == place.parent or (each / "model_index.json").is_file()]
    files = [each / "scheduler" / "scheduler_config.json" for each in pipelines]
    return next((file for file in (folder / "scheduler_config.json", *files) if file.is_file()), None)


def refuse_foreign(index: dict[str, Any], folder: Path) -> None:
    """Raise ModelError where the parts of a pipeline of pixels are of classes that come with the model."""
    from .pipelines.components import component_class

    refuse_words(index, folder / "model_index.json")
    for key, (library, name) in pipeline_parts(index).items():
        component_class(key, library, name, str(folder))


def as_class(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A scheduler's configuration as of the class that its pipeline names, which is the one that is built of it.

    The folder may have been saved with another class. One of ours names the model's own class itself.
    """
    import diffusers

    return {**config, "_class_name": name} if hasattr(diffusers, name) else config


def check_unet(folder: Path, scheduler: dict[str, Any] | None, label: Path) -> None:
    """Raise where the configurations of a UNet of pixels and its scheduler are not supported, before weights are read.

    Raises:
        ModelError: channels, labels, a scheduler or a network that is refused.
    """
    refuse_code(folder)
    if scheduler is not None:
        convention_of(scheduler)
    config = read_json(folder / "config.json")
    check_channels(config, label)
    class_count(config, label)
    if config.get("sample_size") is not None:
        try:
            sample_shape(config, None, label)
        except UsageError as error:
            raise ModelError(f"{label}: the UNet's sample_size cannot be run: {error}") from None
    refuse_unbuildable("UNet2DModel", config, label)


def refuse_unbuildable(name: str, config: dict[str, Any], label: Path | str) -> None:
    """Raise ModelError where a network cannot be built from its configuration; no memory is taken by the trial."""
    import accelerate
    import diffusers

    cls = getattr(diffusers, name)
    try:
        with accelerate.init_empty_weights(), quiet_loading():
            cls.from_config({key: value for key, value in config.items() if key != "quantization_config"})
    except Exception as error:  # whatever a network raises, its configuration is what is wrong
        text = " ".join(str(error).split())
        raise ModelError(f"{label}: no {name} can be built from its configuration: {text[:300]}") from None


def with_zero_snr(convention: Convention) -> Convention:
    """A table that ends in pure noise, for a network that says something there.

    Raises:
        UsageError: there is no table, or epsilon is predicted, from which x0 does not follow where alpha = 0.
    """
    process = convention.process
    if not isinstance(process, DiscreteVP):
        raise UsageError(f"zero_snr changes a table of alphas_cumprod, and {type(process).__name__} has none")
    if convention.prediction == "epsilon":
        raise UsageError(
            "zero_snr needs a model that predicts v or the sample: at alpha = 0 epsilon is all of the input"
        )
    made = convention.on(process.with_zero_terminal_snr())
    made.process.own_grid = process.own_grid
    return made


def sample_shape(config: dict[str, Any], size: int | Sequence[int] | None, folder: Path) -> tuple[int, int, int]:
    """(channels, height, width) of a UNet, for its own sample size or another one.

    Raises:
        UsageError: a size that the UNet's down-sampling cannot halve; the nearest ones that fit are named.
    """
    wanted = config.get("sample_size") if size is None else size
    if wanted is None:
        raise UsageError(f"{folder}: the UNet's configuration has no sample_size; give size=")
    height, width = size_pair(wanted)
    blocks = config.get("block_out_channels", [0])
    if not isinstance(blocks, (list, tuple)) or not blocks:
        raise ModelError(f"{folder}: the UNet's configuration has block_out_channels {blocks!r}")
    factor = 2 ** (len(blocks) - 1)
    for side in (height, width):
        if isinstance(side, int) and side > LARGEST_SIDE:
            raise UsageError(f"sides reach to {LARGEST_SIDE} pixels, not {side!r:.40}")
        if isinstance(side, bool) or not isinstance(side, int) or side < factor or side % factor:
            near = max(factor, round(side / factor) * factor) if isinstance(side, int) else factor
            raise UsageError(f"this UNet takes sides that are multiples of {factor}, not {side!r} (nearest: {near})")
    return check_channels(config, folder), int(height), int(width)


def check_channels(config: dict[str, Any], folder: Path) -> int:
    """The channels of a UNet's samples; a ModelError where it takes pictures beside them."""
    channels, out = whole(config, "in_channels", 3, folder), whole(config, "out_channels", 3, folder)
    if out not in (channels, 2 * channels) or not channels:
        raise ModelError(f"{folder}: {out} output channels for {channels} input channels; {SUPPORTED}")
    return channels


def size_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width from one number or two."""
    try:
        height, width = (size, size) if isinstance(size, int) else size
    except (TypeError, ValueError):
        raise UsageError(f"size must be a whole number or (height, width), not {size!r}") from None
    return height, width


def whole(config: dict[str, Any], key: str, default: int, folder: Path) -> int:
    """A whole number from a UNet's configuration; a ModelError where it is none."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ModelError(f"{folder}: the UNet's configuration has {key} {value!r}")
    return value


def class_count(config: dict[str, Any], folder: Path) -> int:
    """How many labels a UNet takes, 0 for an unconditional one.

    Raises:
        ModelError: it is conditioned on something that is not a label.
    """
    kind = config.get("class_embed_type")
    if kind == "timestep":
        return 2**31
    if kind is not None:
        raise ModelError(f"{folder}: the UNet is conditioned on {kind!r} embeddings, not on labels; {SUPPORTED}")
    return whole(config, "num_class_embeds", 0, folder) if config.get("num_class_embeds") is not None else 0


def load_unet(folder: Path, variant: str | None, dtype: torch.dtype | None, allow_pickle: bool) -> Any:
    """UNet2DModel.from_pretrained, with its failures in one line each."""
    from diffusers import UNet2DModel
    from safetensors import SafetensorError, safe_open

    stem = "diffusion_pytorch_model" + (f".{variant}" if variant else "")
    index = folder / f"diffusion_pytorch_model.safetensors.index{f'.{variant}' if variant else ''}.json"
    safe = [*folder.glob(f"{stem}.safetensors"), *folder.glob(index.name)]
    pickled = list(folder.glob(f"{stem}.bin"))
    for file in pickled:
        refuse_pointer(file)
    if not safe and pickled and not allow_pickle:
        raise ModelError(
            f"{folder} has only pickled weights ({pickled[0].name}), which can run code when opened; if you trust "
            "their author, pass allow_pickle=True"
        )
    if not safe and not pickled:
        others = ", ".join(sorted(p.name for p in folder.glob("*.safetensors"))) or "none"
        raise ModelError(f"{folder} has no weights {stem}.safetensors (safetensors files there: {others})")
    try:
        for file in folder.glob(f"{stem}*.safetensors"):
            refuse_pointer(file)
            with safe_open(file, "pt"):  # checks the header and the length; diffusers hides why it failed
                pass
        with quiet_loading():
            unet, report = UNet2DModel.from_pretrained(
                folder,
                variant=variant,
                use_safetensors=bool(safe),
                local_files_only=True,
                low_cpu_mem_usage=True,
                output_loading_info=True,
                **in_dtype(dtype or torch.float32),
            )
    except SafetensorError as error:
        raise ModelError(f"{folder}: the weights are truncated or corrupt ({error})") from None
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, EOFError) as error:
        text = " ".join(str(error).split())
        raise ModelError(f"{folder}: the UNet cannot be loaded: {text[:300]}") from None
    if report["missing_keys"]:
        some = ", ".join(sorted(report["missing_keys"])[:3])
        raise ModelError(f"{folder}: {len(report['missing_keys'])} weights are missing from the file ({some}, ...)")
    warn_of_unknown_words(UNet2DModel, read_json(folder / "config.json"), folder)
    return unet
