"""Folders of pixel-space pipelines: their configurations, read and checked before any weights are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelError, UsageError, with_article
from .components import component_class
from .conventions import convention_of
from .quiet import quiet_loading
from .trust import read_json, refuse_code, refuse_code_in

SUPPORTED = (
    "supported are pixel pipelines around a UNet2DModel (DDPM, DDIM, PNDM, score-SDE-VE, consistency models), in "
    "pipeline layout or as a bare UNet, and text-to-image and latent pipelines in pipeline layout"
)


LARGEST_SIDE = 2**16
"""Maximum height and width of an image, in pixels."""


def pipeline_parts(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the components in a model_index.json with their libraries and classes, without absent components."""
    return {
        key: (str(value[0]), str(value[1]))
        for key, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[1] and key.isidentifier() and key[0] != "_"
    }


def is_plain(classes: Mapping[str, str]) -> bool:
    """Return True if the only components are a pixel-space UNet and its scheduler."""
    return classes.get("unet") == "UNet2DModel" and set(classes) == {"unet", "scheduler"}


def find_parts(folder: Path) -> tuple[Path, dict[str, Any] | None]:
    """Return the UNet's folder and the scheduler's configuration, or None in its place for a UNet without one.

    Raises:
        ModelError: not a model folder, or an unsupported kind of model; the message lists what was found.
    """
    index = folder / "model_index.json"
    if index.is_file():
        parts = read_json(index)
        kinds = {key: kind for key, (_, kind) in pipeline_parts(parts).items()}
        if not is_plain(kinds):
            found = ", ".join(f"{key}: {kind}" for key, kind in kinds.items()) or "no components"
            pipeline = with_article(str(parts.get("_class_name", "pipeline")))
            raise ModelError(f"{folder} contains {pipeline} ({found}); {SUPPORTED}")
        # Early Hub repositories keep all components in the top folder.
        unet = folder / "unet" if (folder / "unet").is_dir() else folder
        beside = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
        refuse_foreign(parts, folder)
        return unet, as_class(read_json(beside / "scheduler_config.json"), kinds["scheduler"])
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        if config.get("_class_name") != "UNet2DModel":
            raise ModelError(f"{folder} contains {network_in(config)}; {SUPPORTED}")
        file = scheduler_beside(folder)
        return folder, None if file is None else read_json(file)
    held = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
    networks = sorted(p.name for p in folder.iterdir() if (p / "config.json").is_file())
    advice = f"its folders {' and '.join(networks)} contain networks; load one of them" if networks else SUPPORTED
    raise ModelError(f"{folder} has neither model_index.json nor config.json (it contains {held}); {advice}")


def network_in(config: Mapping[str, Any]) -> str:
    """Describe the network of a configuration by its class, as diffusers or as transformers store it."""
    if kind := config.get("_class_name"):
        return with_article(str(kind))
    classes = config.get("architectures")
    if isinstance(classes, list) and classes and isinstance(classes[0], str):
        return f"{with_article(classes[0])} of transformers"
    if isinstance(kind := config.get("model_type"), str):
        return f"a configuration of model type {kind!r} without a class name"
    return "a configuration without a class name"


LEVELS = 3
"""How many levels above a network's folder its pipeline is searched for; checkpoint-500/unet_ema is two below."""


def scheduler_beside(folder: Path) -> Path | None:
    """Find a bare network's scheduler_config.json: in its folder, beside it, or in a pipeline folder above it."""
    place = folder.resolve()
    above = list(place.parents)[:LEVELS]
    pipelines = [each for each in above if each == place.parent or (each / "model_index.json").is_file()]
    files = [each / "scheduler" / "scheduler_config.json" for each in pipelines]
    return next((file for file in (folder / "scheduler_config.json", *files) if file.is_file()), None)


def refuse_foreign(index: dict[str, Any], folder: Path) -> None:
    """Raise ModelError if components of a pixel-space pipeline have classes that come with the model."""
    refuse_code_in(index, folder / "model_index.json")
    for key, (library, name) in pipeline_parts(index).items():
        component_class(key, library, name, str(folder))


def as_class(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a scheduler's configuration with the class named in model_index.json, which diffusers would construct.

    The scheduler's folder may have been saved with another class. A configuration whose class diffusers does not
    have, such as that of our `Scheduler`, is returned unchanged: it contains the model's own class.
    """
    import diffusers  # diffusers takes seconds to import

    return {**config, "_class_name": name} if hasattr(diffusers, name) else config


def check_unet(folder: Path, scheduler: dict[str, Any] | None, label: Path) -> None:
    """Check the configurations of a pixel-space UNet and its scheduler before weights are read.

    Raises:
        ModelError: unsupported channels, conditioning, scheduler or network.
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
            raise ModelError(f"{label}: the UNet's sample_size is invalid: {error}") from None
    refuse_unbuildable("UNet2DModel", config, label)


def refuse_unbuildable(name: str, config: dict[str, Any], label: Path | str) -> None:
    """Raise ModelError if a network cannot be constructed from its configuration; allocates no weights."""
    import accelerate  # accelerate takes a second to import
    import diffusers  # diffusers takes seconds to import

    cls = getattr(diffusers, name)
    try:
        with accelerate.init_empty_weights(), quiet_loading():
            cls.from_config({key: value for key, value in config.items() if key != "quantization_config"})
    except Exception as error:  # whatever a network raises, its configuration is the cause
        text = " ".join(str(error).split())
        raise ModelError(f"{label}: no {name} can be constructed from its configuration: {text[:300]}") from None


def sample_shape(config: dict[str, Any], size: int | Sequence[int] | None, folder: Path) -> tuple[int, int, int]:
    """Return (channels, height, width) for a UNet, with its own sample_size unless `size` is given.

    Raises:
        UsageError: no size, or a size that is not a multiple of the UNet's down-sampling factor; the message has the
            nearest multiple.
        ModelError: invalid block_out_channels, or unsupported channels.
    """
    wanted = config.get("sample_size") if size is None else size
    if wanted is None:
        raise UsageError(f"{folder}: the UNet's configuration has no sample_size; pass size=")
    height, width = size_pair(wanted)
    blocks = config.get("block_out_channels", [0])
    if not isinstance(blocks, (list, tuple)) or not blocks:
        raise ModelError(f"{folder}: the UNet's configuration has block_out_channels {blocks!r}, not a list of numbers")
    factor = 2 ** (len(blocks) - 1)
    for side in (height, width):
        if isinstance(side, int) and side > LARGEST_SIDE:
            raise UsageError(f"height and width must be at most {LARGEST_SIDE} pixels, not {side!r:.40}")
        if isinstance(side, bool) or not isinstance(side, int) or side < factor or side % factor:
            near = max(factor, round(side / factor) * factor) if isinstance(side, int) else factor
            raise UsageError(f"this UNet's height and width are multiples of {factor}, not {side!r} (nearest: {near})")
    return check_channels(config, folder), int(height), int(width)


def check_channels(config: dict[str, Any], folder: Path) -> int:
    """Return the number of channels of a UNet's samples; raise ModelError if it takes other image inputs as well."""
    channels, out = whole(config, "in_channels", 3, folder), whole(config, "out_channels", 3, folder)
    if out not in (channels, 2 * channels) or not channels:
        raise ModelError(f"{folder}: {out} output channels for {channels} input channels; {SUPPORTED}")
    return channels


def size_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width) from one number or two; raise UsageError for anything else."""
    try:
        height, width = (size, size) if isinstance(size, int) else size
    except (TypeError, ValueError):
        raise UsageError(f"size must be an integer or (height, width), not {size!r}") from None
    return height, width


def whole(config: dict[str, Any], key: str, default: int, folder: Path) -> int:
    """Return a non-negative integer from a UNet's configuration; raise ModelError for any other value."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ModelError(f"{folder}: the UNet's configuration has {key} {value!r}, not a whole number")
    return value


def class_count(config: dict[str, Any], folder: Path) -> int:
    """Return the number of class labels that a UNet accepts; 0 for an unconditional UNet.

    Raises:
        ModelError: the UNet is conditioned on something other than labels.
    """
    kind = config.get("class_embed_type")
    if kind == "timestep":
        return 2**31
    if kind is not None:
        raise ModelError(f"{folder}: the UNet is conditioned on {kind!r} embeddings, not on labels; {SUPPORTED}")
    return whole(config, "num_class_embeds", 0, folder) if config.get("num_class_embeds") is not None else 0
