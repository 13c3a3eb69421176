"""The facts of a job: everything that determines its samples, as plain data, by which a resumed job is recognised."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..models.base import Model
from ..processes.sde import SDE, GaussianProcess
from ..registry.plugin import Registered
from ..sampling.prepared import PreparedRun
from ..sampling.recipe import Recipe, noise_of, spacing_of
from ..version import __version__
from .code import code_of, files_in
from .conditions import Conditions

if TYPE_CHECKING:
    from ..metrics import FeatureScorer

Facts = dict[str, Any]

LAYOUT = 2
"""Version of the layout of a job's files."""
NOT_SETTINGS = (
    "process",
    "prediction",
    "shape",
    "dtype",
    "device",
    "name",
    "revision",
    "network",
    "tuning",
    "autocast",
)
"""Model attributes that are not settings: facts of their own, or without influence on the samples."""
LONGEST_LIST = 16
"""Longest list that is written out; a longer one is replaced by a hash."""


def recipe_facts(recipe: Recipe) -> dict[str, Any]:
    """A recipe without what does not change the samples: its description, and its address."""
    return {key: value for key, value in recipe.as_dict().items() if key not in ("description", "source")}


def facts_of(run: PreparedRun, conditions: Conditions, *, num_samples: int, first_index: int) -> Facts:
    """Everything that determines a job's samples, except its formats and sizes of batches and shards."""
    facts = {
        "layout": LAYOUT,
        "model": model_facts(run.model),
        "recipe": recipe_facts(run.recipe),
        "code": code_facts(run),
        "files": file_facts(run) or None,
        "guidance_scale": run.conduct.guidance_scale,
        "condition": plain(conditions.recorded or conditions.given),
        "seed": run.seed,
        "first_index": first_index,
        "num_samples": num_samples,
        "state_dtype": str(run.dtype).removeprefix("torch."),
        "environment": environment(run.model),
    }
    if facts["files"] is None:
        del facts["files"]
    if run.recipe.source is not None:
        facts["recipe_source"] = run.recipe.source
    read_back: Facts = json.loads(json.dumps(facts))  # tuples become lists
    return read_back


def code_facts(run: PreparedRun) -> Facts:
    """Fingerprints of the code of the sampler, the spacing and the noise source."""
    recipe = run.recipe
    plugins: dict[str, Registered] = {"sampler": run.spec, "noise": noise_of(recipe)}
    if recipe.spacing is not None:
        plugins["spacing"] = spacing_of(recipe)
    return {kind: code_of(plugin) for kind, plugin in plugins.items()}


def file_facts(run: PreparedRun) -> Facts:
    """SHA-256 of the files that options name, by option name."""
    recipe = run.recipe
    found = {**files_in(recipe.options, run.spec.options)}
    if recipe.spacing is not None:
        found |= files_in(recipe.spacing_options, spacing_of(recipe).options)
    return found | files_in(recipe.noise_options, noise_of(recipe).options)


def model_facts(model: Model) -> Facts:
    """A model's name and what determines its predictions: weights, schedule, settings, and `Model.facts`."""
    weak = getattr(model, "weak", None)  # the second model of a guided one
    narrow = model.network_dtype
    facts: Facts = {
        "name": model.name,
        "revision": model.revision,
        "weights_sha256": weights_hash(model.network),
        "prediction": model.prediction,
        "shape": list(model.shape),
        "dtype": str(model.dtype).removeprefix("torch."),
        "network_dtype": None if narrow is model.dtype else str(narrow).removeprefix("torch."),
        "process": type(model.process).__name__,
        "schedule": schedule_hash(model),
        "tuning": list(model.tuning) or None,
        "autocast": autocast_dtype(model),
        "settings": settings(model),
        "weak": model_facts(weak) if isinstance(weak, Model) else None,
        **model.facts(),
    }
    return {key: value for key, value in facts.items() if value is not None}


def autocast_dtype(model: Model) -> str | None:
    """The dtype that autocast uses while the model's network runs; None without autocast."""
    with model.autocast():
        kind = model.device.type
        return str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None


def settings(thing: Any) -> Facts | None:
    """An object's public attributes, which for classes of this library are their constructor arguments.

    None for classes of users and of other libraries, whose attributes may change from run to run; they describe
    themselves in `Model.facts`.
    """
    if type(thing).__module__.partition(".")[0] != "sdesamplers":
        return None
    network = getattr(thing, "network", None)
    found = {
        key: plain(value)
        for key, value in sorted(vars(thing).items())
        if not (key.startswith("_") or key in NOT_SETTINGS or value is None or value is network)
    }
    return {key: value for key, value in found.items() if value is not None} or None


def plain(value: Any) -> Any:
    """A value as JSON data, large values as a hash; None if its content cannot be determined."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | range):
        entries = [plain(entry) for entry in value]
        return entries if len(entries) <= LONGEST_LIST else fingerprint(json.dumps(entries).encode())
    if isinstance(value, np.ndarray | np.generic):
        return plain(torch.as_tensor(value))
    if isinstance(value, Tensor):
        return fingerprint(tensor_bytes(value))
    if isinstance(value, torch.nn.Module):
        return weights_hash(value)
    if isinstance(value, SDE):
        return type(value).__name__
    return settings(value) if hasattr(value, "__dict__") and not callable(value) else None


def weights_hash(network: Any) -> str | None:
    """SHA-256 over a network's parameters and buffers, sorted by name.

    None if the argument is not a module, or if its weights are offloaded ("meta" tensors).
    """
    if not isinstance(network, torch.nn.Module):
        return None
    whole = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if not isinstance(value, Tensor):
            continue  # a module's extra state
        if value.is_meta:
            return None
        whole.update(f"{name} ".encode())
        whole.update(tensor_bytes(value))
    return whole.hexdigest()


def tensor_bytes(tensor: Tensor) -> bytes:
    """A tensor's dtype, shape and bytes."""
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{tensor.dtype} {tuple(tensor.shape)}\n".encode() + content.tobytes()


def schedule_hash(model: Model) -> str | None:
    """A fingerprint of sigma and alpha over time; None if the process has none."""
    if not isinstance(model.process, GaussianProcess):
        return None
    times = np.linspace(model.process.t_min, model.process.t_max, 17)
    values = [model.process.sigma(times), model.process.alpha(times)]
    # Twelve digits: math libraries differ in the last ones.
    return fingerprint(" ".join(f"{v:.12g}" for row in values for v in np.broadcast_to(row, times.shape)).encode())


def scorer_facts(scorer: FeatureScorer) -> Facts:
    """What determines a scorer's numbers, as far as it is known: its description, network and reference."""
    seen = {key: content_of(getattr(scorer, key, None)) for key in ("net", "reference")}
    return {"description": scorer.description, **{key: value for key, value in seen.items() if value is not None}}


def content_of(thing: Any) -> Any:
    """`plain` of a value; for a path, a hash of the file's content, or of a folder's file names and sizes."""
    if not isinstance(thing, os.PathLike):
        return plain(thing)
    place = Path(thing)
    try:
        if place.is_file():
            return fingerprint(place.read_bytes())
        files = sorted(file for file in place.rglob("*") if file.is_file())
        return fingerprint("".join(f"{f.relative_to(place)} {f.stat().st_size}\n" for f in files).encode())
    except OSError as error:
        raise UsageError(f"{thing} cannot be read: {error.strerror}") from None


def environment(model: Model) -> Facts:
    """Versions and the device type, which may differ when a job is resumed."""
    versions = {"sdesamplers": __version__, "torch": torch.__version__, "python": platform.python_version()}
    with suppress(importlib.metadata.PackageNotFoundError):
        versions["diffusers"] = importlib.metadata.version("diffusers")
    return {**versions, "device": model.device.type}


def fingerprint(content: bytes) -> str:
    """The first 16 hexadecimal digits of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]
