"""Download model folders from the Hugging Face Hub; each error is one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ModelError
from ..hub.download import is_offline, snapshot
from .folders import LEVELS, check_unet, find_parts
from .hub_files import TABLES
from .pipelines.loading import Layout, check_configs, layout_of, weight_files, weight_names
from .trust import refuse_index

CONFIGS = ("model_index.json", "config.json", "scheduler_config.json")
PART_CONFIGS = ("*config.json", "*.safetensors.index.json", "*.safetensors.index.*.json")
VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
    "*tokens_map.json",
    "*.model",
)
"""Files that tokenizers are read from; none of them can contain code or a pickle."""

WEIGHTS = "diffusion_pytorch_model"
SCHEDULER = "scheduler/scheduler_config.json"


def fetch(
    repo: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> tuple[Path, str]:
    """Download the files of a pipeline or a UNet, or find them in the cache.

    Configurations are downloaded first, so unsupported models are refused before their weights are downloaded.
    huggingface_hub resumes broken downloads; with a complete cache no connection is needed.

    Returns:
        The local folder and the commit hash.

    Raises:
        ModelError: no connection, no such repository, revision or file, or no permission; in one line.
    """
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    endings = ("safetensors", "bin") if allow_pickle else ("safetensors",)
    indices = [_index(variant, ending) for ending in endings]
    configs = [prefix + place + name for place in ("", "unet/") for name in (*CONFIGS, *indices)]
    configs += [f"{prefix}scheduler/{name}" for name in CONFIGS]
    configs.append(f"{prefix}{TABLES}/nfe-*.json")
    if subfolder:  # a bare UNet: its scheduler is beside its folder, or in a pipeline folder above it
        above = list(PurePosixPath(prefix).parents)[:LEVELS]
        configs += [(each / name).as_posix() for each in above for name in (SCHEDULER, "model_index.json")]
    access: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    folder = snapshot(repo, configs, revision=revision, **access)
    label, place = f"{repo}@{revision or 'main'}", folder / prefix if prefix else folder
    if not place.is_dir():
        where = f"the folder {subfolder!r}" if subfolder else "the repository"
        raise ModelError(f"{label}: no model_index.json or config.json in {where}")
    source = Source(repo, label, folder, place, variant, endings, access)
    try:
        layout = layout_of(place)
        source.fetch_unet() if layout is None else source.fetch_parts(layout)
    except ModelError as error:  # blame the repository, not the folder in the cache
        message = str(error).replace(str(folder), label)
        raise ModelError(message if label in message else f"{label}: {message}") from None
    return place, folder.name


def _index(variant: str | None, ending: str) -> str:
    """Return the file name of the index of a UNet's sharded weights."""
    return f"{WEIGHTS}.{ending}.index{f'.{variant}' if variant else ''}.json"


@dataclass(frozen=True)
class Source:
    """A repository whose configurations have been downloaded.

    Attributes:
        repo, label: the repository's id, and its name in messages.
        folder: the snapshot's folder, whose name is the commit hash.
        place: the model's folder inside it.
        variant: of the weights.
        endings: the endings of weight files that may be read, in order of preference.
        access: options of huggingface_hub.
    """

    repo: str
    label: str
    folder: Path
    place: Path
    variant: str | None
    endings: Sequence[str]
    access: Mapping[str, Any]

    def fetch_unet(self) -> None:
        """Download the weights of a pixel-space UNet, after checking that its configurations are supported."""
        unet, scheduler = find_parts(self.place)
        check_unet(unet, scheduler, self.place)
        stem = f"{WEIGHTS}.{self.variant}" if self.variant else WEIGHTS
        for ending in self.endings:
            index = unet / _index(self.variant, ending)
            self.fetch([unet], refuse_index(index) if index.is_file() else [f"{stem}.{ending}"])
            if any(unet.glob(f"{stem}*.{ending}")):
                return
        raise ModelError(f"{self.label}: no weights {stem}.safetensors{self.advice()}")

    def fetch_parts(self, layout: Layout) -> None:
        """Download a pipeline's components: configurations, then vocabularies, then missing weights."""
        parts = [self.place / key for key in layout.classes]
        self.fetch(parts, PART_CONFIGS)
        check_configs(self.place, layout)
        missing = [self.place / key for key in layout.weighted]
        self.refuse_absent(missing)
        self.fetch(parts, VOCABULARIES)
        for ending in self.endings:
            for chosen in dict.fromkeys((self.variant, None)):
                if missing:
                    self.fetch(missing, weight_names(chosen, ending))
                    missing = [part for part in missing if not weight_files(part, chosen, ending)]
        self.refuse_unweighted(missing)

    def fetch(self, parts: Sequence[Path], names: Sequence[str]) -> None:
        """Download the files with these names (or patterns) from some folders."""
        inside = [part.relative_to(self.folder).as_posix() for part in parts]
        patterns = [name if part == "." else f"{part}/{name}" for part in inside for name in names]
        snapshot(self.repo, patterns, revision=self.folder.name, **self.access)

    def refuse_absent(self, parts: Sequence[Path]) -> None:
        """Raise ModelError if the repository has no weights for a component, before other weights are downloaded.

        Nothing is requested if all weights are in the cache, or if the Hub is offline. If the listing cannot be
        obtained, the subsequent download reports the error.
        """
        choices = [name for end in self.endings for v in {self.variant, None} for name in weight_names(v, end)]
        absent = [part for part in parts if not any(file for name in choices for file in part.glob(name))]
        if not absent or self.access["local_files_only"] or is_offline():
            return
        from huggingface_hub import HfApi  # needed only for models from the Hub

        try:
            listed = HfApi().list_repo_files(self.repo, revision=self.folder.name, token=self.access["token"])
        except Exception:  # the download that follows reports the problem
            return
        found = [self.folder / name for name in listed]
        held = {file.parent for file in found if any(fnmatch(file.name, choice) for choice in choices)}
        self.refuse_unweighted([part for part in absent if part not in held])

    def refuse_unweighted(self, parts: Sequence[Path]) -> None:
        """Raise ModelError if any components have no readable weights; `parts` are their folders."""
        if parts:
            names = ", ".join(part.name for part in parts)
            raise ModelError(f"{self.label}: no weights in safetensors for {names}{self.advice()}")

    def advice(self) -> str:
        """Return the advice for repositories whose weights may be pickled."""
        pickled = "pickled ones, which can run code when opened, are read only with allow_pickle=True"
        return "" if "bin" in self.endings else f"; {pickled}"
