"""Finished runs in a folder, by their identity: everything that determines their numbers."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..categories import OutputWarning
from ..checks import warn
from ..errors import SdesamplersError
from ..generation.code import is_own, top_package, used_by, uses
from ..generation.conditions import first_of
from ..generation.identity import Facts, environment, fingerprint, plain, scorer_facts, tensor_bytes
from ..io.files import make_folder, read, write
from ..metrics import FeatureScorer
from ..models.base import Model
from ..sampling.calls import sample

LAYOUT = 1
"""Version of the files; files of another version are not used."""
ENDING = ".safetensors"


class Cache:
    """Finished runs in a folder, a file for each; without a folder, nothing is kept.

    A file is used only if the whole identity in it is equal to the one that is looked for, and if its checksum is
    right. Files are written atomically, so a run is there completely or not at all, and several processes may share a
    folder.

    Args:
        folder: created when the first run is stored; None for no cache.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def load(self, identity: Facts | None) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """The data and the tensors of a finished run, or None; a damaged file is ignored with a warning."""
        if self.folder is None or identity is None:
            return None
        file = self.file(identity)
        try:
            content = read(file)
        except FileNotFoundError:
            return None
        except OSError as error:
            warn(f"{file} cannot be read ({error.strerror}); the run is made again", OutputWarning)
            return None
        try:
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
            tensors = load(content)
            if header["sha256"] != checksum(header["data"], tensors):
                raise ValueError("wrong checksum")
            stored, data = json.loads(header["identity"]), json.loads(header["data"])
        except Exception:  # a damaged file may fail anywhere, also inside safetensors
            warn(f"{file} is damaged; the run is made again", OutputWarning)
            return None
        return (data, tensors) if stored == as_stored(identity) else None

    def store(self, identity: Facts | None, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Keep a finished run. A full or read-only disk is a warning: the comparison continues without its cache."""
        if self.folder is None or identity is None:
            return
        text = json.dumps(data)
        kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        stored = {"identity": json.dumps(as_stored(identity)), "data": text, "sha256": checksum(text, kept)}
        try:
            make_folder(self.folder)
            write(self.file(identity), save(kept, stored))
        except SdesamplersError as error:
            warn(f"finished runs are not kept: {error}", OutputWarning)
            self.folder = None

    def file(self, identity: Facts) -> Path:
        """The file of a run."""
        assert self.folder is not None
        key = hashlib.sha256(json.dumps(as_stored(identity), sort_keys=True).encode()).hexdigest()[:24]
        return self.folder / f"{key}{ENDING}"


def as_stored(identity: Facts) -> Facts:
    """An identity as it is read back from JSON."""
    read_back: Facts = json.loads(json.dumps({"layout": LAYOUT, **identity}))
    return read_back


def checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a run's data and tensors."""
    whole = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        whole.update(name.encode() + tensor_bytes(tensors[name]))
    return whole.hexdigest()


def model_identity(model: Model, facts: Facts, guidance_scale: float, condition: Any) -> Facts:
    """What determines a model's predictions: its facts, and a probe of the predictions themselves.

    The probe recognises what has no weights to compare: functions, and the code of models.

    Args:
        model, guidance_scale, condition: as in `sample`.
        facts: the `model_facts`, which read all weights.
    """
    versions = {key: value for key, value in environment(model).items() if key != "python"}
    return {
        "model": facts,
        "probe": probe(model, guidance_scale, condition),
        "guidance_scale": guidance_scale,
        "condition": plain(condition),
        "environment": versions,
    }


def probe(model: Model, guidance_scale: float, condition: Any) -> list[str] | None:
    """Five digits of the means of two samples after three steps, and of their squares; None if Euler cannot run."""
    try:
        result = sample(
            model,
            "euler",
            steps=3,
            num_samples=2,
            condition=first_of(condition, 2),
            guidance_scale=guidance_scale,
            check_finite=False,
        )
    except SdesamplersError:
        return None
    found = result.samples.double().flatten(1)
    return [f"{float(value):.5g}" for value in torch.cat([found.mean(1), found.square().mean(1)])]


def scorer_identity(scorer: FeatureScorer) -> Facts | None:
    """What determines a scorer's numbers: its class with its code, its attribute `identity`, or all of its attributes.

    None if an attribute holds what cannot be compared.
    """
    kind = type(scorer)
    code = dict(uses(kind))
    facts: Facts = {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "code": fingerprint("\n".join(f"{name}: {code[name]}" for name in sorted(code)).encode()),
        **scorer_facts(scorer),
    }
    if top_package(kind.__module__) == "sdesamplers":
        return facts
    given = getattr(scorer, "identity", None)
    if isinstance(given, str):
        return {**facts, "identity": given}
    try:
        return {**facts, "attributes": {name: content(value) for name, value in sorted(vars(scorer).items())}}
    except (ValueError, TypeError):
        return None


def content(value: Any) -> Any:
    """`plain` of a value.

    Raises:
        ValueError: a part of its content cannot be determined.
    """
    if isinstance(value, Mapping):
        return {str(key): content(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [content(entry) for entry in value]
    found = plain(value)
    if found is None and value is not None:
        raise ValueError(type(value).__name__)
    return found


def function_identity(function: Any) -> str | None:
    """A fingerprint of a metric: its attribute `identity`, or its code with everything that the code uses.

    None if it uses objects whose content cannot be compared, or if it is not a plain function.
    """
    given = getattr(function, "identity", None)
    if isinstance(given, str):
        return given
    if not isinstance(function, FunctionType):
        return None
    package, seen = top_package(function.__module__), set[int]()
    texts, waiting = [f"{name}: {text}" for name, text in uses(function)], [function]
    while waiting:
        current = waiting.pop()
        seen.add(id(current))
        defaults = [*(current.__defaults__ or ()), *(current.__kwdefaults__ or {}).values()]
        for name, value in [*used_by(current, package), *((f"{current.__name__} default", each) for each in defaults)]:
            if isinstance(value, FunctionType) and is_own(value, package):
                waiting += [value] if id(value) not in seen else []
                continue
            try:
                texts.append(f"{name}: {described(value, package)}")
            except ValueError:
                return None
    return fingerprint("\n".join(sorted(texts)).encode())


def described(value: Any, package: str) -> str:
    """A text that changes with an object that a metric uses.

    Raises:
        ValueError: its content cannot be determined.
    """
    bound = getattr(value, "__self__", None)
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, type) and is_own(value, package):
        raise ValueError(value.__name__)  # its objects may hold anything
    if isinstance(value, type) or (inspect.isroutine(value) and (bound is None or isinstance(bound, ModuleType))):
        return f"{value.__module__}.{value.__qualname__}"  # of an installed library, whose version identifies it
    if isinstance(value, torch.nn.Module):
        kinds = dict.fromkeys(type(part) for part in value.modules())
        return repr([content(value), *(sorted(uses(kind)) for kind in kinds), str(value)])
    return repr(content(value))
