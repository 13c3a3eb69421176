"""Pipelines from local folders: what they hold, whether it may be opened, and what becomes of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import ModelError
from ..base import Model
from ..conventions import convention_of
from ..diffusers import autocast_for, is_plain, move, pipeline_parts, read_json, size_pair
from .kinds import Kind, from_pipeline, kind_of

LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
"""Components that a `Model` does not use; they are neither fetched nor loaded."""

WITHOUT_WEIGHTS = ("Tokenizer", "TokenizerFast", "Scheduler", "Processor", "Extractor")
STEMS = {"safetensors": ("diffusion_pytorch_model", "model"), "bin": ("diffusion_pytorch_model", "pytorch_model")}


@dataclass(frozen=True)
class Layout:
    """A folder in pipeline layout.

    Attributes:
        kind: what it becomes.
        classes: the components that are used, and their classes.
    """

    kind: Kind
    classes: Mapping[str, str]

    @property
    def weighted(self) -> list[str]:
        """The components that have weights."""
        return [key for key, name in self.classes.items() if not name.endswith(WITHOUT_WEIGHTS)]


def layout_of(folder: Path) -> Layout | None:
    """What a folder with a model_index.json holds; None for a UNet of pixels and its scheduler, or without an index.

    Raises:
        ModelError: a kind that is not supported, or components that are not diffusers' and transformers' own.
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
    kind = kind_of(classes, f"{folder} holds a {title if isinstance(title, str) else 'custom pipeline'}, which")
    for key, (library, name) in named.items():
        if not _is_known(library) or (folder / key / f"{library}.py").exists():
            raise ModelError(f"{folder}: {key} is {library}.{name}, and code that comes with a model is not run")
    if not isinstance(title, str):
        raise ModelError(f"{folder} is a pipeline with code of its own, and code that comes with a model is not run")
    return Layout(kind, {key: name for key, name in classes.items() if key not in LEFT_OUT})


def _is_known(library: str) -> bool:
    import diffusers

    return library in ("diffusers", "transformers", "sdesamplers") or hasattr(diffusers.pipelines, library)


def weight_names(variant: str | None, ending: str) -> list[str]:
    """Patterns of a component's weight files: whole, in pieces, and the index of the pieces."""
    suffix = f".{variant}" if variant else ""
    endings = (f"{suffix}.{ending}", f"{suffix}-*-of-*.{ending}", f".{ending}.index{suffix}.json")
    return [stem + rest for stem in STEMS[ending] for rest in endings]


def weight_files(folder: Path, variant: str | None, ending: str) -> list[Path]:
    """A component's weight files; an index alone is none."""
    names = weight_names(variant, ending)
    return [file for name in names if name.endswith(ending) for file in sorted(folder.glob(name))]


def check_configs(folder: Path, layout: Layout) -> None:
    """Raise ModelError where a scheduler or a network is of a kind that is refused, before weights are read."""
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if scheduler.is_file() and layout.classes.get("scheduler") != "Scheduler":  # one of ours was checked when made
        convention_of(read_json(scheduler))
    model = layout.kind.model
    if model is not None:
        network, autoencoder = (folder / key / "config.json" for key in (model.NETWORK, model.AUTOENCODER))
        if network.is_file():
            model.refuse(read_json(network), read_json(autoencoder) if autoencoder.is_file() else None, str(folder))


def check_weights(folder: Path, layout: Layout, variant: str | None, allow_pickle: bool) -> bool:
    """Whether every component has safetensors; their headers and lengths are read.

    Raises:
        ModelError: a component without weights, with pickled ones only, or with a broken file.
    """
    from safetensors import SafetensorError, safe_open

    complete, found_variant = True, False
    for part in layout.weighted:
        chosen = weight_files(folder / part, variant, "safetensors") if variant else []
        found_variant |= bool(chosen)
        chosen = chosen or weight_files(folder / part, None, "safetensors")
        pickled = [file for v in {variant, None} for file in weight_files(folder / part, v, "bin")]
        if not chosen and pickled and not allow_pickle:
            raise ModelError(
                f"{folder / part} has only pickled weights ({pickled[0].name}), which can run code when opened; if you "
                "trust their author, pass allow_pickle=True"
            )
        if not chosen and not pickled:
            raise ModelError(f"{folder / part} has no weights in safetensors")
        complete &= bool(chosen)
        for file in chosen:
            try:
                with safe_open(file, "pt"):
                    pass
            except SafetensorError as error:
                raise ModelError(f"{file}: the weights are truncated or corrupt ({error})") from None
    if variant and complete and not found_variant:
        raise ModelError(f"{folder} has no weights of the variant {variant!r}")
    return complete


def load_pipeline(
    folder: Path,
    layout: Layout,
    *,
    name: str,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    size: Any = None,
    allow_pickle: bool = False,
    mixed_precision: str | None = None,
    **options: Any,
) -> Model:
    """A `Model` from a local folder in pipeline layout; see `load` for the options."""
    context = autocast_for(mixed_precision)
    height, width = (None, None) if size is None else size_pair(size)
    check_configs(folder, layout)
    safe = check_weights(folder, layout, variant, allow_pickle)
    pipe = read_pipeline(folder, layout, variant, dtype, safe)
    move(pipe, device)
    return from_pipeline(pipe, height=height, width=width, name=name, revision=revision, autocast=context, **options)


def read_pipeline(folder: Path, layout: Layout, variant: str | None, dtype: torch.dtype | None, safe: bool) -> Any:
    """DiffusionPipeline.from_pretrained without the components that are left out, with its failures in one line."""
    from diffusers import DiffusionPipeline

    absent: dict[str, Any] = dict.fromkeys(
        key for key in LEFT_OUT if key in pipeline_parts(read_json(folder / "model_index.json"))
    )
    if "safety_checker" in absent:
        absent["requires_safety_checker"] = False
    try:
        with _silent():
            pipe = DiffusionPipeline.from_pretrained(
                folder,
                torch_dtype=dtype or torch.float32,
                variant=variant,
                use_safetensors=True if safe else None,
                local_files_only=True,
                **absent,
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, EOFError) as error:
        text = " ".join(str(error).split())
        raise ModelError(f"{folder}: the pipeline cannot be loaded: {text[:300]}") from None
    return pipe


@contextmanager
def _silent() -> Any:
    """Without the progress bars and remarks of loading."""
    from diffusers.utils import logging as theirs

    before, bar = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.ERROR)
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(before)
        if bar:
            theirs.enable_progress_bar()
