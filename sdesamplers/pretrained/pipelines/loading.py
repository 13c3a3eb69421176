"""Load pipelines from local folders, after checking that their files are complete, supported and safe to open."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ...errors import ModelError
from ...models.base import Model
from ..components import component_class, pipeline_class
from ..conventions import convention_of
from ..folders import as_class, is_plain, pipeline_parts, refuse_unbuildable, size_pair
from ..options import LoadOptions
from ..placement import autocast_for, move
from ..quiet import in_dtype, quiet_loading
from ..trust import closed_prompt, read_json, refuse_code, refuse_code_in, refuse_index, refuse_pickles, refuse_pointer
from .kinds import CONVERTED, Kind, from_pipeline, kind_of

LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder", "caption_processor", "caption_generator")
"""Components that a `Model` does not use; they are neither downloaded nor loaded."""

WITHOUT_WEIGHTS = ("Tokenizer", "TokenizerFast", "Scheduler", "Processor", "Extractor")
STEMS = {"safetensors": ("diffusion_pytorch_model", "model"), "bin": ("diffusion_pytorch_model", "pytorch_model")}


@dataclass(frozen=True)
class Layout:
    """A folder in pipeline layout.

    Attributes:
        kind: the kind of pipeline, which determines the model's class.
        classes: the class name of each component that is used.
        pipeline: the pipeline class of diffusers.
        types: the class of each component; None for our `Scheduler`.
    """

    kind: Kind
    classes: Mapping[str, str]
    pipeline: Any
    types: Mapping[str, Any]

    @property
    def weighted(self) -> list[str]:
        """The components that have weights."""
        return [key for key, name in self.classes.items() if not name.endswith(WITHOUT_WEIGHTS)]


def layout_of(folder: Path) -> Layout | None:
    """Return the layout of a folder with a model_index.json; None without one, or for a pixel-space UNet and scheduler.

    Raises:
        ModelError: an unsupported kind, or components that do not come from diffusers or transformers.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        return None
    parts = read_json(index)
    named = pipeline_parts(parts)
    classes = {key: name for key, (_, name) in named.items()}
    if is_plain(classes):
        return None
    title = parts.get("_class_name", "pipeline")
    label = title if isinstance(title, str) else "custom pipeline"
    for key, (library, name) in named.items():
        if (folder / key / f"{library}.py").exists():
            raise ModelError(f"{folder}: {key} is {library}.{name}, and code that comes with a model is not run")
    kind = kind_of(classes, f"{folder}: {label}")
    whole = pipeline_class(title, str(folder))
    types = {key: component_class(key, *named[key], str(folder)) for key in named if key not in LEFT_OUT}
    return Layout(kind, {key: classes[key] for key in types}, whole, types)


def required_parts(pipeline: Any) -> list[str]:
    """Return the components that a pipeline class requires."""
    optional = getattr(pipeline, "_optional_components", [])
    given = list(inspect.signature(pipeline.__init__).parameters.values())[1:]
    return [p.name for p in given if p.default is p.empty and p.name not in optional]


def unneeded_parts(layout: Layout) -> list[str]:
    """Return the components that a pipeline's encoder replaces by zeros, if its folder has none of them."""
    optional = () if layout.kind.model is None else layout.kind.model.OPTIONAL
    networks = [key for key in optional if key not in layout.classes]
    return [key for key in networks if "tokenizer" not in key or key.replace("tokenizer", "text_encoder") in networks]


def weight_names(variant: str | None, ending: str) -> list[str]:
    """Return patterns for a component's weight files: a single file, shards, and the index of the shards."""
    suffix = f".{variant}" if variant else ""
    endings = (f"{suffix}.{ending}", f"{suffix}-*-of-*.{ending}", f".{ending}.index{suffix}.json")
    return [stem + rest for stem in STEMS[ending] for rest in endings]


def weight_files(folder: Path, variant: str | None, ending: str) -> list[Path]:
    """Return a component's weight files, without indices of shards."""
    names = weight_names(variant, ending)
    return [file for name in names if name.endswith(ending) for file in sorted(folder.glob(name))]


def check_configs(folder: Path, layout: Layout) -> None:
    """Raise ModelError for unsupported or unsafe configurations, before weights are read."""
    index = folder / "model_index.json"
    refuse_code_in(read_json(index), index)
    for key in pipeline_parts(read_json(index)):
        refuse_code(folder / key)
    scheduler = place_of(folder, "scheduler") / "scheduler_config.json"
    if scheduler.is_file():
        convention_of(as_class(read_json(scheduler), str(layout.classes.get("scheduler"))))
    check_networks(folder, layout)
    there = {*layout.classes, *LEFT_OUT, *unneeded_parts(layout)}
    if missing := [key for key in required_parts(layout.pipeline) if key not in there]:
        title = layout.pipeline.__name__
        raise ModelError(f"{folder}: its model_index.json lacks {', '.join(missing)}, which {title} needs")
    if not scheduler.is_file():
        raise ModelError(f"{folder}: there is no {scheduler.name}, so it is unknown how the network was trained")


def check_networks(folder: Path, layout: Layout) -> None:
    """Raise ModelError if a network's configuration does not match its kind, or cannot be constructed."""
    model = layout.kind.model
    if model is None:
        return
    network = model.NETWORK
    if not (place_of(folder, network) / "config.json").is_file():
        raise ModelError(f"{folder}: the {network} has no config.json")
    configs = {key: config for key in layout.weighted if (config := component_config(folder, layout, key)) is not None}
    model.refuse(configs, str(folder))
    for key in (network, model.AUTOENCODER):
        kind: Any = layout.types.get(key)
        if key in configs and kind.__name__ != CONVERTED and kind.__module__.startswith("diffusers.models."):
            refuse_unbuildable(kind.__name__, configs[key], str(folder / key))


def place_of(folder: Path, key: str) -> Path:
    """Return a component's folder; like diffusers, the pipeline's own folder if the component has none."""
    return folder / key if (folder / key).is_dir() else folder


def component_config(folder: Path, layout: Layout, key: str) -> dict[str, Any] | None:
    """Return a network's configuration, completed with its class's defaults; None if there is no config.json."""
    file = place_of(folder, key) / "config.json"
    if not file.is_file():
        return None
    given = inspect.signature(layout.types[key].__init__).parameters.values()
    defaults = {p.name: p.default for p in given if p.default is not p.empty}
    return {**defaults, **read_json(file)}


def check_weights(folder: Path, layout: Layout, variant: str | None, allow_pickle: bool) -> bool:
    """Return True if every component has safetensors; checks the headers and lengths of these files.

    Raises:
        ModelError: a component without weights, with a corrupt file, or with pickled weights only, unless
            `allow_pickle`.
    """
    complete, found_variant = True, False
    for part in layout.weighted:
        chosen = weight_files(folder / part, variant, "safetensors") if variant else []
        found_variant |= bool(chosen)
        chosen = chosen or weight_files(folder / part, None, "safetensors")
        pickled = [file for v in {variant, None} for file in weight_files(folder / part, v, "bin")]
        if not chosen:
            refuse_pickles(folder / part, pickled, allowed=allow_pickle)
        if not chosen and not pickled:
            raise ModelError(f"{folder / part} has no weights in safetensors")
        complete &= bool(chosen)
        refuse_missing_pieces(folder / part, chosen)
        for file in chosen:
            refuse_pointer(file)
            try:
                with safe_open(file, "pt"):
                    pass
            except SafetensorError as error:
                raise ModelError(f"{file}: the weights are truncated or corrupt ({error})") from None
    if variant and complete and not found_variant:
        raise ModelError(f"{folder} has no weights of the variant {variant!r}")
    return complete


def refuse_missing_pieces(folder: Path, chosen: list[Path]) -> None:
    """Raise ModelError if sharded weights are incomplete."""
    present = {file.name for file in chosen}
    for index in sorted({*folder.glob("*.safetensors.index.json"), *folder.glob("*.safetensors.index.*.json")}):
        names = refuse_index(index)
        if present & set(names) and (missing := [name for name in names if name not in present]):
            raise ModelError(f"{folder} lacks {missing[0]}, one of {len(names)} shards listed in {index.name}")


def load_pipeline(folder: Path, layout: Layout, options: LoadOptions, *, name: str, revision: str | None) -> Model:
    """Load a `Model` from a local folder in pipeline layout; `revision` is that of the files."""
    context = autocast_for(options.mixed_precision)
    height, width = (None, None) if options.size is None else size_pair(options.size)
    check_configs(folder, layout)
    safe = check_weights(folder, layout, options.variant, options.allow_pickle)
    pipe = read_pipeline(folder, layout, options.variant, options.floats, safe)
    move(pipe, options.device)
    return from_pipeline(
        pipe,
        height=height,
        width=width,
        prompt=options.prompt if options.prompt is None or isinstance(options.prompt, str) else [*options.prompt],
        condition=options.condition,
        negative_prompt=options.negative_prompt,
        embedded_guidance=options.embedded_guidance,
        name=name,
        revision=revision,
        null_condition=options.null_condition,
        round_timesteps=options.round_timesteps,
        zero_snr=options.zero_snr,
        scheduler=options.scheduler,
        prediction=options.prediction,
        autocast=context,
        clip=options.clip,
    )


def read_pipeline(folder: Path, layout: Layout, variant: str | None, dtype: torch.dtype | None, safe: bool) -> Any:
    """Load a pipeline with DiffusionPipeline.from_pretrained, without unused components; failures are one-line errors.

    Tokenizers are loaded separately, since diffusers does not pass `trust_remote_code` on to transformers, which would
    then prompt for it.
    """
    from diffusers import DiffusionPipeline  # diffusers takes seconds to import

    parameters = inspect.signature(layout.pipeline.__init__).parameters
    given: dict[str, Any] = {key: None for key in (*LEFT_OUT, *unneeded_parts(layout)) if key in parameters}
    if "requires_safety_checker" in parameters:
        given["requires_safety_checker"] = False
    try:
        with quiet_loading(), closed_prompt():
            for key in layout.types:
                if "tokenizer" in key and key in parameters:
                    place = place_of(folder, key)
                    given[key] = layout.types[key].from_pretrained(
                        place, trust_remote_code=False, local_files_only=True
                    )
            pipe = without_nulls(DiffusionPipeline, layout.pipeline).from_pretrained(
                folder,
                **in_dtype(dtype or torch.float32),
                variant=variant,
                use_safetensors=True if safe else None,
                local_files_only=True,
                trust_remote_code=False,
                **given,
            )
    except Exception as error:  # tokenizers, transformers and diffusers each raise their own errors
        text = " ".join(str(error).split())
        raise ModelError(f"{folder}: the pipeline cannot be loaded: {text[:300]}") from None
    return pipe


def without_nulls(pipeline: Any, kind: Any) -> Any:
    """`DiffusionPipeline` that reads absent components of a model_index.json also if they are null, not [null, null].

    It has the name and module of the class itself, by which diffusers recognises it and creates the pipeline's class.

    Args:
        pipeline: `DiffusionPipeline`.
        kind: the pipeline's class, which determines the keys that are components.
    """
    given = inspect.signature(kind.__init__).parameters.values()
    components = {p.name for p in given if p.default is p.empty} | {*kind._optional_components, *LEFT_OUT}

    def load_config(cls: Any, *arguments: Any, **options: Any) -> Any:
        found = pipeline.load_config(*arguments, **options)
        if not isinstance(found, dict):
            return found
        absent = {key: [None, None] for key, value in found.items() if value is None and key in components}
        return {**found, **absent}

    members = {"load_config": classmethod(load_config), "__module__": pipeline.__module__}
    return type(pipeline.__name__, (pipeline,), members)
