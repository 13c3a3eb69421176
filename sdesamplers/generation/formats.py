"""Output formats: each determines the names of a shard's files in advance, and their content."""

from __future__ import annotations

import io
import json
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save

from ..errors import UnknownNameError, UsageError
from ..io.files import Draft, draft
from ..io.images import grid
from ..io.sheets import Sheet, Tile
from ..models.base import Model, ModelAround
from .shards import Batch, Shard

if TYPE_CHECKING:
    from ..metrics import FeatureScorer

SCORES = "scores.json"
"""File of a scored job's metrics."""
GRID_LIMIT = 256
"""Maximum number of a shard's samples in its grid picture."""


@dataclass(frozen=True)
class Labels:
    """Metadata that is stored with the samples of a job.

    Attributes:
        first_index: index of the job's first sample.
        seed: seed of all samples.
        facts: the job's facts, as JSON.
        conditions: labels or prompts, one for all or one per sample; empty if there are none.
    """

    first_index: int
    seed: int
    facts: str
    conditions: Sequence[Any]

    def index(self, row: int) -> int:
        """A sample's index."""
        return self.first_index + row

    def condition(self, row: int) -> Any:
        """A sample's prompt or label; None if there is none."""
        if not self.conditions:
            return None
        return self.conditions[row if len(self.conditions) > 1 else 0]


class Format(ABC):
    """An output format."""

    pictures: bool = False
    """True if the format needs samples that are pictures."""

    @staticmethod
    @abstractmethod
    def files(folder: Path, shard: Shard, labels: Labels) -> list[Path]:
        """The paths of a shard's files."""

    @abstractmethod
    def contents(self, batch: Batch, labels: Labels) -> Iterator[bytes]:
        """The content of each file, in order: the same bytes for the same samples."""

    def drafts(self, files: list[Path], batch: Batch, labels: Labels) -> Iterator[Draft]:
        """Write the contents to temporary files beside `files`."""
        for file, content in zip(files, self.contents(batch, labels), strict=True):
            yield draft(file, content)


class Safetensors(Format):
    """`samples` as the model produces them, with `indices` and `nfe`; the job's facts are in the metadata."""

    @staticmethod
    def files(folder: Path, shard: Shard, labels: Labels) -> list[Path]:
        return [folder / f"samples{shard.label}.safetensors"]

    def contents(self, batch: Batch, labels: Labels) -> Iterator[bytes]:
        tensors = {
            "samples": batch.samples.contiguous(),
            "indices": torch.tensor([labels.index(row) for row in batch.rows]),
            "nfe": torch.from_numpy(batch.nfe),
        }
        # A single key: safetensors writes several in an order that changes from run to run.
        yield save(tensors, {"sdesamplers": labels.facts})


class Pictures(Format):
    """One PNG per sample, named after its index."""

    pictures = True

    @staticmethod
    def files(folder: Path, shard: Shard, labels: Labels) -> list[Path]:
        return [folder / f"sample-{labels.index(row):06d}.png" for row in shard.rows]

    def contents(self, batch: Batch, labels: Labels) -> Iterator[bytes]:
        return map(png, pixels_of(batch))


class Grid(Format):
    """One picture of a shard's samples, at most the first 256, with what was run below them."""

    pictures = True

    @staticmethod
    def files(folder: Path, shard: Shard, labels: Labels) -> list[Path]:
        return [folder / f"grid{shard.label}.png"]

    def contents(self, batch: Batch, labels: Labels) -> Iterator[bytes]:
        content = io.BytesIO()
        sheet_of(batch, labels).image().save(content, format="PNG")
        yield content.getvalue()


class VectorGrid(Grid):
    """The same as SVG, whose text stays text."""

    @staticmethod
    def files(folder: Path, shard: Shard, labels: Labels) -> list[Path]:
        return [folder / f"grid{shard.label}.svg"]

    def contents(self, batch: Batch, labels: Labels) -> Iterator[bytes]:
        yield sheet_of(batch, labels).svg().encode()


def sheet_of(batch: Batch, labels: Labels) -> Sheet:
    """A batch's pictures above a line with the model, the sampler, its grid, the seed and the samples' indices."""
    images = [picture(pixels) for pixels in pixels_of(batch)[:GRID_LIMIT]]
    facts = json.loads(labels.facts)
    recipe = facts["recipe"]
    steps = f", {recipe['steps']} steps" if recipe.get("steps") else ""
    spacing = f", {recipe['spacing']}" if recipe.get("spacing") else ""
    indices = f"samples {labels.index(batch.rows[0])} to {labels.index(batch.rows[len(images) - 1])}"
    run = f"{facts['model']['name']}: {recipe['sampler']}{steps}{spacing}, seed {labels.seed}, {indices}"
    return Sheet([("", [Tile(grid(images))])], note=run)


class WebDataset(Format):
    """A tar with each sample's PNG (.npy if it is not a picture) and a .json with its index, seed and condition."""

    @staticmethod
    def files(folder: Path, shard: Shard, labels: Labels) -> list[Path]:
        return [folder / f"samples{shard.label}.tar"]

    def contents(self, batch: Batch, labels: Labels) -> Iterator[bytes]:
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for k, row in enumerate(batch.rows):
                name = f"{labels.index(row):09d}"
                if batch.pixels is None:
                    add(tar, f"{name}.npy", npy(batch.samples[k].numpy()))
                else:
                    add(tar, f"{name}.png", png(batch.pixels[k]))
                facts = {"index": labels.index(row), "seed": labels.seed, "condition": labels.condition(row)}
                add(tar, f"{name}.json", json.dumps(facts).encode())
        yield content.getvalue()


class Features(Format):
    """`features` (N, D) of a shard's pictures, from which the finished job's score is computed.

    Args:
        scorer: computes the features.
    """

    pictures = True

    def __init__(self, scorer: FeatureScorer) -> None:
        self.scorer = scorer

    @staticmethod
    def files(folder: Path, shard: Shard, labels: Labels) -> list[Path]:
        return [folder / f"features{shard.label}.safetensors"]

    def contents(self, batch: Batch, labels: Labels) -> Iterator[bytes]:
        pictures = torch.from_numpy(pixels_of(batch)).permute(0, 3, 1, 2) / 127.5 - 1
        tensors = {"features": torch.from_numpy(self.scorer.features(pictures))}
        yield save(tensors)


FORMATS: dict[str, type[Format]] = {
    "safetensors": Safetensors,
    "png": Pictures,
    "webdataset": WebDataset,
    "grid": Grid,
    "svg": VectorGrid,
    "features": Features,
}
CHOICES = ("safetensors", "png", "webdataset", "grid", "svg")
"""Names of the formats that users can choose; `features` is added by a scorer."""


def formats_for(names: Sequence[str], model: Model, scorer: FeatureScorer | None = None) -> dict[str, Format]:
    """The formats with these names, and `features` if there is a scorer.

    Raises:
        UsageError: no format, an unknown or repeated one, one that needs pictures while the model produces none, or a
            scorer that cannot process the samples.
    """
    for name in names:
        if name not in CHOICES:
            raise UnknownNameError("format", name, CHOICES, f" (known: {', '.join(CHOICES)})")
    if not names or len(set(names)) < len(names):
        raise UsageError(f"formats must be one or more of {', '.join(CHOICES)}, without repetition")
    made: dict[str, Format] = {name: FORMATS[name]() for name in names}
    if scorer is not None:
        made["features"] = Features(scorer)
    check_pictures(made, model)
    if scorer is not None and type(model).decode is Model.decode:
        try:
            scorer.features(torch.zeros(1, *model.shape))
        except (RuntimeError, UsageError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"the scorer cannot process samples of {model.name!r} {model.shape}: {reason}") from None
    return made


def check_pictures(made: dict[str, Format], model: Model) -> None:
    """Raise UsageError if a format needs pictures and the model produces none."""
    if not makes_pictures(model) and (picture_formats := [name for name, each in made.items() if each.pictures]):
        raise UsageError(
            f"{model.name!r} produces samples of shape {tuple(model.shape)}, not pictures of 1, 3 or 4 channels: "
            f"{', '.join(picture_formats)} cannot hold them; use safetensors or webdataset"
        )


def makes_pictures(model: Model) -> bool:
    """True if a model's samples are pictures, by their shape or after decoding if they are latents."""
    while isinstance(model, ModelAround):
        model = model.model
    decodes = type(model).decode is not Model.decode and model.decoded_range is not None
    return decodes or (len(model.shape) == 3 and model.shape[0] in (1, 3, 4))


def pixels_of(batch: Batch) -> np.ndarray:
    """A batch's pixels, which every batch passed to a picture format has."""
    assert batch.pixels is not None
    return batch.pixels


def picture(pixels: np.ndarray) -> Any:
    """A PIL image of (H, W, C) bytes."""
    from PIL import Image  # only pictures need it

    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def png(pixels: np.ndarray) -> bytes:
    """(H, W, C) bytes as a PNG file."""
    content = io.BytesIO()
    picture(pixels).save(content, format="PNG")
    return content.getvalue()


def npy(array: np.ndarray) -> bytes:
    """An array as a .npy file."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a member without owner and time stamp, so that the same samples give the same bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
