"""What decides the samples of a job, and the folder that they go to."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..errors import SdesamplersError, UsageError
from ..files import make_folder, write
from ..models.base import Model
from ..sampling import PreparedRun
from ..sde import GaussianProcess
from .formats import FORMATS, SCORES, Format, Labels
from .shards import Shard, cut, describe

Facts = dict[str, Any]

LAYOUT = 1
"""Of the files here; another number is another layout."""
FREE = ("environment",)
"""Facts that may differ where a job is taken up again: they change no more than rounding."""


def facts_of(run: PreparedRun, *, num_samples: int, first_index: int, condition: Sequence[Any]) -> Facts:
    """Everything that decides a job's samples: plain data, the same for the same call."""
    facts = {
        "layout": LAYOUT,
        "model": model_facts(run.model),
        "recipe": run.recipe.as_dict(),
        "guidance_scale": run.guidance_scale,
        "condition": list(condition) if len(condition) <= 16 else fingerprint(json.dumps(list(condition)).encode()),
        "seed": run.seed,
        "first_index": first_index,
        "num_samples": num_samples,
        "state_dtype": str(run.dtype).removeprefix("torch."),
        "environment": environment(run.model),
    }
    plain: Facts = json.loads(json.dumps(facts))  # tuples become lists, as they are read back
    return plain


def model_facts(model: Model) -> Facts:
    """A model's name and what tells its predictions from another's: weights, schedule, and its own facts."""
    facts: Facts = {
        "name": model.name,
        "revision": model.revision,
        "weights_sha256": weights_hash(model.network),
        "prediction": model.prediction,
        "shape": list(model.shape),
        "dtype": str(model.dtype).removeprefix("torch."),
        "process": type(model.process).__name__,
        "schedule": schedule_hash(model),
        "tuning": list(model.tuning) or None,
        **model.facts(),
    }
    return {key: value for key, value in facts.items() if value is not None}


def weights_hash(network: Any) -> str | None:
    """SHA-256 over a network's parameters and buffers, by name; None where the model is no network."""
    if not isinstance(network, torch.nn.Module):
        return None
    whole = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def schedule_hash(model: Model) -> str | None:
    """A fingerprint of sigma and alpha over time; None where the process has none."""
    if not isinstance(model.process, GaussianProcess):
        return None
    times = np.linspace(model.process.t_min, model.process.t_max, 17)
    values = [model.process.sigma(times), model.process.alpha(times)]
    # Twelve digits: libraries of mathematics differ in the last ones.
    return fingerprint(" ".join(f"{v:.12g}" for row in values for v in np.broadcast_to(row, times.shape)).encode())


def environment(model: Model) -> Facts:
    """Versions, and the kind of device."""
    versions = {"sdesamplers": __version__, "torch": torch.__version__, "python": platform.python_version()}
    with suppress(importlib.metadata.PackageNotFoundError):
        versions["diffusers"] = importlib.metadata.version("diffusers")
    return {**versions, "device": model.device.type}


def fingerprint(content: bytes) -> str:
    """A short hash."""
    return hashlib.sha256(content).hexdigest()[:16]


@dataclass(frozen=True)
class JobFolder:
    """A job's folder: samples, `manifest.json` once all is done, and in `.job` what is needed to go on.

    Attributes:
        path: the folder.
        facts: of the job.
    """

    path: Path
    facts: Facts

    @property
    def inside(self) -> Path:
        """Where the job keeps its own files."""
        return self.path / ".job"

    def record_file(self, shard: Shard) -> Path:
        """Says that a shard is finished."""
        return self.inside / "records" / f"{shard.number:05d}.json"

    def batch_file(self, shard: Shard, rows: range) -> Path:
        """A finished batch of an unfinished shard."""
        return self.inside / "batches" / f"{shard.number:05d}-{rows.start:09d}.safetensors"

    def make(self) -> None:
        """Make what is not there."""
        for folder in (self.inside / "records", self.inside / "batches"):
            make_folder(folder)

    def read_record(self, shard: Shard) -> Facts | None:
        """A finished shard's record; None where it is not finished."""
        try:
            record: Facts = json.loads(self.record_file(shard).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record

    def is_whole(self, shard: Shard, formats: dict[str, Format], labels: Labels) -> bool:
        """Whether a shard was finished and its files are still what they were."""
        record = self.read_record(shard)
        if record is None:
            return False
        try:
            found = {name: describe(each.files(self.path, shard, labels)) for name, each in formats.items()}
        except OSError:
            return False
        return bool(found == record.get("files"))

    def finish(self, shard: Shard, record: Facts) -> None:
        """Note that a shard is finished."""
        write(self.record_file(shard), json.dumps(record, indent=1) + "\n")

    def write_manifest(self, shards: Sequence[Shard]) -> Facts | None:
        """Write `manifest.json` if every shard is finished; whoever finishes last does, and two write the same."""
        records = [self.read_record(shard) for shard in shards]
        if any(record is None for record in records):
            return None
        kept = [record for record in records if record is not None]
        total = sum(record["nfe"]["total"] for record in kept)
        nfe = {
            "total": total,
            "mean": total / self.facts["num_samples"],
            "largest": max(record["nfe"]["largest"] for record in kept),
        }
        manifest = {**self.facts, "nfe": nfe, "shards": kept}
        write(self.path / "manifest.json", json.dumps(manifest, indent=1) + "\n")
        return manifest


def stored_facts(folder: Path) -> Facts | None:
    """The facts of the job that a folder holds; None where it holds none.

    Raises:
        SdesamplersError: they cannot be read.
    """
    file = folder / ".job" / "job.json"
    try:
        facts: Facts = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SdesamplersError(f"{file} cannot be read: {error}; begin anew with --overwrite") from None
    return facts


def claim(folder: Path, facts: Facts, *, resume: bool) -> JobFolder:
    """Make a folder this job's, or take up the same job in it again.

    Raises:
        UsageError: the folder holds another job, or the same one and `resume` was not asked for.
    """
    make_folder(folder / ".job")
    file = folder / ".job" / "job.json"
    if not resume and file.exists():
        raise UsageError(taken(folder, facts))
    fresh = write(file.with_name(f"job-{os.getpid()}-{os.urandom(4).hex()}.json"), json.dumps(facts, indent=1) + "\n")
    try:
        os.link(fresh, file)  # of several parts that begin at once, one makes it
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not file.exists():
            os.replace(fresh, file)
    finally:
        fresh.unlink(missing_ok=True)
    stored = stored_facts(folder) or {}
    if changes := list(differences(stored, facts)):
        raise UsageError(f"{folder} holds another job: {'; '.join(changes)}. Choose another --out, or --overwrite it")
    job = JobFolder(folder, stored)
    job.make()
    return job


def taken(folder: Path, facts: Facts) -> str:
    """What to tell of a folder that holds a job already."""
    changes = list(differences(stored_facts(folder) or {}, facts))
    if changes:
        return f"{folder} holds another job: {'; '.join(changes)}. Choose another --out, or --overwrite it"
    done = len(list((folder / ".job" / "records").glob("*.json")))
    total = -(-facts["num_samples"] // facts["shard_size"])
    return f"{folder} holds this job already, {done} of {total} shards done: --resume goes on, --overwrite begins anew"


def differences(there: Facts, here: Facts, prefix: str = "") -> Iterator[str]:
    """How two jobs differ, a line each."""
    for key in dict.fromkeys((*there, *here)):
        if key in FREE or there.get(key) == here.get(key):
            continue
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key} is {shown(old)} there and {shown(new)} here"


def shown(value: Any) -> str:
    """A fact's value, not too long."""
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def discard(folder: Path) -> None:
    """Remove an earlier job's files, by the names that it gave them, and nothing else that lies in its folder.

    Raises:
        SdesamplersError: what the folder holds cannot be read, or removed.
    """
    facts = stored_facts(folder)
    if facts is None:
        return
    try:
        for file in written_by(folder, facts):
            file.unlink(missing_ok=True)
        shutil.rmtree(folder / ".job")
    except OSError as error:
        raise SdesamplersError(f"{folder}: an earlier job's files could not be removed: {error.strerror}") from None


def written_by(folder: Path, facts: Facts) -> Iterator[Path]:
    """The files of a job, made or not."""
    labels = Labels(facts["first_index"], facts["seed"], "", ())
    for shard in cut(facts["num_samples"], facts["shard_size"]):
        for name in facts["formats"]:
            yield from FORMATS[name].files(folder, shard, labels)
    if "scorer" in facts:
        yield folder / SCORES
    yield folder / "manifest.json"
