"""`load`: a registered name, a local folder or a Hub repository to a `Model`."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..checks import warn
from ..errors import ModelError, UnknownNameError, UsageError
from ..models.base import Model
from ..models.clipping import ClipLike
from ..public import public
from ..registry.registry import default_registry
from .conventions import Convention, with_zero_snr
from .factories import from_file, is_factory
from .folders import check_unet, class_count, find_parts, sample_shape
from .hub import fetch
from .options import TEXT_OPTIONS, TUNING, LoadOptions
from .pipelines.loading import layout_of, load_pipeline
from .placement import autocast_for, move
from .trained import checked_convention, trained_config
from .trust import read_json
from .unets import DiffusersModel, load_unet


@public
def load(
    source: str | Path,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    size: int | Sequence[int] | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    condition: Any = None,
    null_condition: int | None = None,
    prompt: str | Sequence[str] | None = None,
    negative_prompt: str | None = None,
    embedded_guidance: float | None = None,
    allow_pickle: bool = False,
    mixed_precision: str | None = None,
    round_timesteps: bool = False,
    zero_snr: bool = False,
    scheduler: Any = None,
    prediction: str | None = None,
    clip: ClipLike = None,
    compile: bool = False,
    channels_last: bool = False,
) -> Model:
    """Load a model.

    Args:
        source: a name from the registry ("fashion-mnist" is embedded), a local folder in diffusers' layout (a
            pipeline or a bare UNet), or a Hub repository id. Of whole pipelines, those that `from_pipeline` supports;
            what a model does not use (safety checkers, image encoders) is left out. "FILE.py:NAME" is a model of your
            own, made by the function NAME in the Python file, which is run; it is called with those of the options
            below that are given.
        revision: branch, tag or commit on the Hub.
        subfolder: where the model lies inside the folder or repository.
        variant: weights variant, such as "fp16".
        dtype: of the networks, a torch dtype or its name; float32 by default. The state stays float32 at least.
        device: where the network lives; accelerate's choice by default.
        size: height and width in pixels, where not the network's own sample_size.
        token, cache_dir, local_files_only: as in huggingface_hub.
        condition: class labels, or what else the model takes, to use where a call gives none.
        null_condition: the label that means "no label", for guidance.
        prompt, negative_prompt, embedded_guidance: of text-to-image pipelines, as in `from_pipeline`.
        allow_pickle: also read pickled weights, which can run code. Off by default: safetensors only.
        mixed_precision: "bf16" or "fp16" autocast, through accelerate.
        round_timesteps: ask the network at whole timesteps only, as schedulers usually do.
        zero_snr: rescale its table to zero terminal signal-to-noise ratio (Lin et al. 2024), for a model that was
            trained so and whose configuration does not say it (`rescale_betas_zero_snr`).
        scheduler: how the network was trained, in place of what is found with it: a scheduler of diffusers or ours, its
            configuration, or a folder or file that holds it. A bare UNet below a pipeline's folder, such as
            checkpoint-500/unet_ema, takes the pipeline's by itself.
        prediction: what the network predicts, in place of what the scheduler's configuration says.
        clip: bounds of x0, which samplers meet at each evaluation. By default what the scheduler's configuration says
            (`clip_sample`, `thresholding` and kin), False for none, (low, high), or an `sds.Clip`.
        compile: run the network through torch.compile, which takes a while at the first call of each batch size.
        channels_last: lay the network's weights out channels last, which some devices convolve faster. Both change
            results by rounding.

    Raises:
        ModelError: not found, not readable or of an unsupported kind, in one line.
        UsageError: options that do not fit the model.
    """
    options = LoadOptions(**{word: value for word, value in locals().items() if word != "source"})
    if not isinstance(source, str | Path):
        kind = type(source).__name__
        raise UsageError(f"load takes a name, a folder or a Hub id, not {kind}; from_pipeline takes a loaded pipeline")
    return tuned(found(str(source), options), options)


def found(name: str, options: LoadOptions) -> Model:
    """The model that a name, a file or a folder stands for."""
    if is_factory(name):
        made: Model = from_file(name, Model, options.given())
        return made
    if name.endswith(".py") and Path(name).expanduser().is_file():
        raise UsageError(f"say what makes the model in this file, as {name}:NAME")
    options.check_precision()
    models = default_registry().catalogue.models
    home = home_of(name, options)
    if home.folder is None and name not in models:
        answer = plugins_model(name, options.for_plugins())
        if answer is not None:
            return answer
    if home.folder is not None:
        place, commit = home.place(name), None
    else:
        if not _looks_like_hub_id(home.repo):
            raise UnknownNameError("model", name, models, "; nor is it a local folder or a Hub id owner/name")
        place, commit = fetch(
            home.repo,
            revision=home.revision,
            subfolder=home.subfolder,
            variant=home.variant,
            allow_pickle=options.allow_pickle,
            token=options.token,
            cache_dir=options.cache_dir,
            local_files_only=options.local_files_only,
        )
    return load_folder(place, replace(options, variant=home.variant), name=name, revision=commit)


class Home(NamedTuple):
    """Where a model's files lie.

    Attributes:
        folder: on this machine; None where they are on the Hub.
        repo: the Hub's id of its repository, where there is no folder.
        revision, subfolder, variant: what is meant of it.
    """

    folder: Path | None
    repo: str
    revision: str | None
    subfolder: str | None
    variant: str | None

    def place(self, name: str) -> Path:
        """The folder of the model itself.

        Raises:
            UsageError: a revision was asked for.
            ModelError: there is no such folder.
        """
        assert self.folder is not None
        if self.revision is not None:
            raise UsageError(f"revision applies to Hub repositories, and {name} is a local folder")
        place = self.folder / self.subfolder if self.subfolder else self.folder
        if not place.is_dir():
            raise ModelError(f"{place}: no such folder")
        return place


def home_of(name: str, options: LoadOptions) -> Home:
    """Where a name leads: by its entry in the registry, as a folder that is there, or else as a Hub id."""
    entry = default_registry().catalogue.models.get(name)
    if entry is None:
        folder = Path(name).expanduser()
        place = folder if folder.is_dir() else None
        return Home(place, name, options.revision, options.subfolder, options.variant)
    repo = entry.get("repo")
    return Home(
        None if repo else Path(entry["base"]) / Path(entry["path"]).expanduser(),
        repo or "",
        options.revision or entry.get("revision"),
        options.subfolder or entry.get("subfolder"),
        options.variant or entry.get("variant"),
    )


def plugins_model(name: str, options: dict[str, Any]) -> Model | None:
    """The model that a plugin loads under this name, or None.

    Raises:
        ModelError: a plugin returned something else.
    """
    answer = default_registry().load_model(name, options)
    if answer is not None and not isinstance(answer, Model):
        raise ModelError(f"a plugin answered for {name!r} with {type(answer).__name__}, which is not a Model")
    return answer


def tuned(model: Model, options: LoadOptions) -> Model:
    """The model with its network compiled or laid out anew, in place, if the options say so.

    Raises:
        UsageError: it has no network.
    """
    asked = tuple(word for word in TUNING if getattr(options, word))
    if not asked:
        return model
    if not isinstance(model.network, torch.nn.Module):
        raise UsageError(f"compile and channels_last are for networks, and {model.name!r} has none")
    if options.channels_last:
        network: Any = model.network  # torch's types do not know `memory_format`
        network.to(memory_format=torch.channels_last)
    if options.compile:
        model.network.compile()
    model.tuning = asked
    return model


def _looks_like_hub_id(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(
        p and p.strip(".~") and p.replace("-", "").replace("_", "").replace(".", "").isalnum() for p in parts
    )


def as_model(model: Model | str | pathlib.Path) -> Model:
    """A model as it is, or loaded with its defaults; a UsageError for anything else, such as a pipeline."""
    if isinstance(model, str | pathlib.Path):
        return load(model)
    if not hasattr(model, "process"):
        kind = type(model).__name__
        raise UsageError(
            f"model must be a Model or a name to load, not {kind}; wrap makes one of a network, from_pipeline of a "
            "pipeline, such as DDPMPipeline(unet, scheduler) around a network of diffusers"
        )
    return model


def load_folder(folder: Path, options: LoadOptions, *, name: str, revision: str | None = None) -> Model:
    """A `Model` from a local folder in pipeline layout or of a bare UNet; `revision` is that of the files."""
    layout = layout_of(folder)
    if layout is not None:
        return load_pipeline(folder, layout, options, name=name, revision=revision)
    if given := [word for word in TEXT_OPTIONS if getattr(options, word) is not None]:
        raise UsageError(f"{', '.join(given)}: model {name!r} is a UNet of pixels, which takes no text")
    unet_folder, found = find_parts(folder)
    config = read_json(unet_folder / "config.json")
    convention = unet_convention(folder, unet_folder, found, name, options)
    if options.zero_snr:
        convention = with_zero_snr(convention)
    shape, classes = sample_shape(config, options.size, folder), class_count(config, folder)
    unet = load_unet(unet_folder, options.variant, options.floats, options.allow_pickle)
    context = autocast_for(options.mixed_precision)
    move(unet, options.device)
    return DiffusersModel(
        unet,
        convention,
        shape=shape,
        num_classes=classes,
        autocast=context,
        name=name,
        revision=revision,
        condition=options.condition,
        null_condition=options.null_condition,
        round_timesteps=options.round_timesteps,
        clip=options.clip,
    )


def unet_convention(
    folder: Path, unet_folder: Path, found: dict[str, Any] | None, name: str, options: LoadOptions
) -> Convention:
    """How a UNet of pixels was trained: as its scheduler says, or one given in its place, or else as DDPM's was."""
    scheduler, prediction = options.scheduler, options.prediction
    if found is None and scheduler is None:
        warn(
            f"{name} is a bare UNet without a scheduler_config.json; DDPM's linear table with "
            f"{prediction or 'epsilon'} is assumed (scheduler= and prediction= say otherwise)"
        )
    told = trained_config(found or {"_class_name": "DDPMScheduler", "clip_sample": False}, scheduler, prediction)
    check_unet(unet_folder, told, folder)
    return checked_convention(told, prediction)
