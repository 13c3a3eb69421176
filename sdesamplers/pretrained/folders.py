"""A folder of a pipeline of pixels: what its configurations say, read and checked before any weights are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelError, UsageError
from .components import component_class
from .conventions import convention_of
from .quiet import quiet_loading
from .trust import read_json, refuse_code, refuse_code_in

SUPPORTED = (
    "supported are pixel pipelines around a UNet2DModel (DDPM, DDIM, PNDM, score-SDE-VE, consistency models), in "
    "pipeline layout or as a bare UNet, and text-to-image and latent pipelines in pipeline layout"
)


LARGEST_SIDE = 2**16
"""Of a picture, in pixels."""


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
    refuse_code_in(index, folder / "model_index.json")
    for key, (library, name) in pipeline_parts(index).items():
        component_class(key, library, name, str(folder))


def as_class(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A scheduler's configuration as of the class that its pipeline names, which is the one that is built of it.

    The folder may have been saved with another class. One of ours names the model's own class itself.
    """
    import diffusers  # diffusers takes seconds to import

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
    import accelerate  # accelerate takes a second to import
    import diffusers  # diffusers takes seconds to import

    cls = getattr(diffusers, name)
    try:
        with accelerate.init_empty_weights(), quiet_loading():
            cls.from_config({key: value for key, value in config.items() if key != "quantization_config"})
    except Exception as error:  # whatever a network raises, its configuration is what is wrong
        text = " ".join(str(error).split())
        raise ModelError(f"{label}: no {name} can be built from its configuration: {text[:300]}") from None


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
