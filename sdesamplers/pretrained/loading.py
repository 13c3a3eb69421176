"""`load`: a `Model` from a registered name, a local folder or a Hub repository."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..categories import ModelWarning
from ..checks import known_keywords, warn
from ..errors import ModelError, UnknownNameError, UsageError
from ..hub.address import is_address
from ..io.log import logger
from ..io.paths import expanded
from ..models.base import Model
from ..models.clipping import ClipLike
from ..public import public
from ..registry.foreign import OTHER_NAMES
from ..registry.registry import default_registry
from .conventions import Convention, with_zero_snr
from .factories import from_file, is_factory
from .folders import check_unet, class_count, find_parts, sample_shape
from .hub import fetch
from .hub_files import TABLES, HubAccess
from .options import TEXT_OPTIONS, TUNING, LoadOptions
from .pipelines.loading import layout_of, load_pipeline
from .placement import autocast_for, move
from .trained import checked_convention, trained_config
from .trust import read_json
from .unets import DiffusersModel, load_unet


@public
@known_keywords(synonyms=OTHER_NAMES)
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
            pipeline or a bare UNet), or a Hub repository id. The supported pipelines are those of `from_pipeline`;
            components that a model does not use (safety checkers, image encoders) are not loaded. "FILE.py:NAME" is a
            model of your own: the Python file is run, and NAME is a model or a function that returns one, which is
            called with the options below that are set.
        revision: branch, tag or commit on the Hub.
        subfolder: the model's folder inside the folder or repository.
        variant: weights variant, such as "fp16".
        dtype: of the networks, a torch dtype or its name; float32 by default. States remain float32 or wider.
        device: of the networks; accelerate's choice by default.
        size: height and width in pixels; the network's own sample_size by default.
        token, cache_dir, local_files_only: as in huggingface_hub.
        condition: default condition for calls without one: class labels, or whatever the model takes.
        null_condition: the label that means "no label", for guidance; by default that of the registry entry.
        prompt, negative_prompt, embedded_guidance: for text-conditioned pipelines, as in `from_pipeline`.
        allow_pickle: also read pickled weights, which can run code. Off by default: safetensors only.
        mixed_precision: "bf16" or "fp16" autocast, through accelerate.
        round_timesteps: evaluate the network at integer timesteps only, as most schedulers do.
        zero_snr: rescale the noise schedule to zero terminal signal-to-noise ratio (Lin et al. 2024), for a model that
            was trained that way but whose configuration does not set `rescale_betas_zero_snr`.
        scheduler: how the network was trained, in place of the scheduler found with it: a scheduler of diffusers or
            ours, its configuration, or a folder or file that contains it. By default, a bare UNet below a pipeline's
            folder, such as checkpoint-500/unet_ema, uses the pipeline's scheduler.
        prediction: what the network predicts, in place of the prediction type in the scheduler's configuration.
        clip: bounds of x0, applied at each evaluation by a sampler. By default those of the scheduler's configuration
            (`clip_sample`, `thresholding` and related keys); False for none, (low, high), or an `sds.Clip`.
        compile: run the network through torch.compile, which is slow at the first call of each batch size.
        channels_last: store the network's weights in channels-last format, with which some devices convolve faster.
            `compile` and `channels_last` change results by rounding errors.

    Raises:
        ModelError: not found, not readable or of an unsupported kind; the message is one line.
        UsageError: invalid options, or options that do not apply to the model.
    """
    options = LoadOptions(**{name: value for name, value in locals().items() if name != "source"})
    if not isinstance(source, str | Path):
        kind = type(source).__name__
        raise UsageError(f"load takes a name, a folder or a Hub id, not {kind}; from_pipeline takes a loaded pipeline")
    return tuned(found(str(source), options), options)


def found(name: str, options: LoadOptions) -> Model:
    """Return the model that a name, a file or a folder refers to."""
    if is_factory(name):
        made: Model = from_file(name, Model, options.given())
        return made
    if name.endswith(".py") and expanded(name).is_file():
        raise UsageError(f"add the model, or the function that creates it, to the file's name, as in {name}:NAME")
    options.check_precision()
    models = default_registry().catalogue.models
    home, registered = home_of(name, options), registered_tables(name)
    if home.folder is None and name not in models:
        model = plugins_model(name, options.for_plugins())
        if model is not None:
            return model
    if home.folder is not None:
        place, commit = home.place(name), None
    else:
        if name not in models and expanded(name).is_file():
            raise ModelError(
                f"{name} is a file, and load takes a folder with the network's configuration: for the weights of a "
                "network of your own, call its load_state_dict and pass it to sds.wrap"
            )
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
    options = replace(options, variant=home.variant)
    if options.null_condition is None:
        options = replace(options, null_condition=models.get(name, {}).get("null_condition"))
    model = load_folder(place, options, name=name, revision=commit)
    logger.info("load: %s from %s: %s on %s", name, place, model.prediction, type(model.process).__name__)
    if sources := (*registered, *([str(place / TABLES)] if (place / TABLES).is_dir() else [])):
        process = model.gaussian
        process.table_sources = sources
        process.table_access = HubAccess(options.token, options.cache_dir, options.local_files_only)
    return model


class Home(NamedTuple):
    """The location of a model's files.

    Attributes:
        folder: a local folder; None if the files are on the Hub.
        repo: the id of the Hub repository, if `folder` is None.
        revision, subfolder, variant: of the folder or repository.
    """

    folder: Path | None
    repo: str
    revision: str | None
    subfolder: str | None
    variant: str | None

    def place(self, name: str) -> Path:
        """Return the folder of the model itself, including the subfolder.

        Raises:
            UsageError: a revision is set, which local folders do not have.
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
    """Return the location of a model, by its registry entry, else as an existing folder, else as a Hub id."""
    entry = default_registry().catalogue.models.get(name)
    if entry is None:
        folder = expanded(name)
        place = folder if folder.is_dir() else None
        return Home(place, name, options.revision, options.subfolder, options.variant)
    repo = entry.get("repo")
    return Home(
        None if repo else Path(entry["base"]) / expanded(entry["path"]),
        repo or "",
        options.revision or entry.get("revision"),
        options.subfolder or entry.get("subfolder"),
        options.variant or entry.get("variant"),
    )


def registered_tables(name: str) -> tuple[str, ...]:
    """Return the source of the solver tables that the registry names for a model, if any.

    Raises:
        UsageError: it is a folder that does not exist; the message has the file, the line and the key.
    """
    catalogue = default_registry().catalogue
    source = catalogue.tables(name)
    if source is None:
        return ()
    if not is_address(source) and not Path(source).is_dir():
        raise UsageError(f"{catalogue.where('models', name, 'tables')}: {source}: no such folder")
    return (source,)


def plugins_model(name: str, options: dict[str, Any]) -> Model | None:
    """Return the model that a plugin loads under this name, or None.

    Raises:
        ModelError: a plugin returned something other than a model.
    """
    model = default_registry().load_model(name, options)
    if model is not None and not isinstance(model, Model):
        raise ModelError(
            f"a plugin returned {type(model).__name__} for {name!r}, which is not a Model; "
            "wrap a network with sds.FunctionModel or sds.wrap"
        )
    return model


def tuned(model: Model, options: LoadOptions) -> Model:
    """Apply `compile` and `channels_last`, if set, to the model's network, in place; return the model.

    Raises:
        UsageError: the model has no network.
    """
    tuning = tuple(name for name in TUNING if getattr(options, name))
    if not tuning:
        return model
    if not isinstance(model.network, torch.nn.Module):
        raise UsageError(f"compile and channels_last apply to networks, and {model.name!r} has none")
    if options.channels_last:
        network: Any = model.network  # torch's types do not know `memory_format`
        network.to(memory_format=torch.channels_last)
    if options.compile:
        model.network.compile()
    model.tuning = tuning
    return model


def _looks_like_hub_id(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(
        p and p.strip(".~") and p.replace("-", "").replace("_", "").replace(".", "").isalnum() for p in parts
    )


def as_model(model: Model | str | pathlib.Path) -> Model:
    """Return a model unchanged, or load it by name with defaults; raise UsageError for anything else."""
    if isinstance(model, str | pathlib.Path):
        return load(model)
    if not hasattr(model, "process"):
        kind = type(model).__name__
        raise UsageError(
            f"model must be a Model or a name to load, not {kind}; wrap(network, ...) makes one from a network, "
            "from_pipeline from a pipeline, such as DDPMPipeline(unet, scheduler) for a diffusers network"
        )
    return model


def load_folder(folder: Path, options: LoadOptions, *, name: str, revision: str | None = None) -> Model:
    """Load a `Model` from a local folder with a pipeline or a bare UNet; `revision` is that of the files."""
    layout = layout_of(folder)
    if layout is not None:
        return load_pipeline(folder, layout, options, name=name, revision=revision)
    if given := [option for option in TEXT_OPTIONS if getattr(options, option) is not None]:
        raise UsageError(f"{', '.join(given)}: model {name!r} is a pixel-space UNet, which takes no text")
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
    """Return a pixel-space UNet's convention: of its scheduler, or of `scheduler=`, or else of DDPM with a warning."""
    scheduler, prediction = options.scheduler, options.prediction
    if found is None and scheduler is None:
        warn(
            f"{name} is a bare UNet without a scheduler_config.json; DDPM's linear schedule with "
            f"{prediction or 'epsilon'} prediction is assumed (pass scheduler= and prediction= to change this)",
            ModelWarning,
        )
    config = trained_config(found or {"_class_name": "DDPMScheduler", "clip_sample": False}, scheduler, prediction)
    check_unet(unet_folder, config, folder)
    return checked_convention(config, prediction)
