"""Finished runs in a folder, by their identity: everything that determines their numbers."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..categories import OutputWarning
from ..checks import warn
from ..errors import SdesamplersError
from ..generation.code import is_own, top_package, used_by, uses
from ..generation.conditions import first_of
from ..generation.identity import (
    NOT_SETTINGS,
    Facts,
    environment,
    fingerprint,
    plain,
    scorer_facts,
    tensor_bytes,
)
from ..io.files import make_folder, read, write
from ..metrics import FeatureScorer
from ..models.base import Model
from ..processes.sde import SDE
from ..sampling.calls import sample

LAYOUT = 2
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

    The probe recognises what the facts miss, such as a changed library of the user's network.

    Args:
        model, guidance_scale, condition: as in `sample`.
        facts: the `model_facts`, which read all weights.

    Raises:
        ValueError: the model or the condition has a part whose content cannot be determined.
    """
    own = code_of_model(model)  # before the probe, which may change attributes of a user's model
    versions = {key: value for key, value in environment(model).items() if key != "python"}
    return {
        "model": facts,
        "code of the model": own,
        "probe": probe(model, guidance_scale, condition),
        "guidance_scale": guidance_scale,
        "condition": content(condition),
        "environment": versions,
    }


def code_of_model(model: Model) -> Any:
    """The code of a model's class, function and network, as far as it is the user's, and what the code refers to.

    An attribute `identity` of a user's class, or its own `facts`, replaces its attributes.

    Raises:
        ValueError: a part whose content cannot be determined.
    """
    kind = type(model)
    found: Facts = {"class": [f"{kind.__module__}.{kind.__qualname__}", sorted(uses(kind))]}
    is_ours = top_package(kind.__module__) == "sdesamplers"
    given = getattr(model, "identity", None)
    if not is_ours and isinstance(given, str):
        return {**found, "identity": given}
    describes_itself = top_package(kind.facts.__module__) != "sdesamplers"
    for name, value in sorted(vars(model).items()):
        if value is model.network and isinstance(value, torch.nn.Module):
            found[name] = code_of_network(value)  # the facts have its weights
        elif isinstance(value, Model):
            found[name] = code_of_model(value)
        elif name in NOT_SETTINGS or (is_ours and name.startswith("_")):
            continue
        elif isinstance(value, FunctionType | MethodType | partial) or (callable(value) and is_own(type(value), "")):
            found[name] = content_of_callable(value)
        elif not (is_ours or describes_itself):
            found[name] = content(value)
    return found


def code_of_network(network: torch.nn.Module) -> list[Any]:
    """The structure of a network, and the code of those of its classes that are not of an installed library."""
    kinds = dict.fromkeys(type(part) for part in network.modules())
    return [*(sorted(uses(kind)) for kind in kinds), str(network)]


def content_of_callable(value: Any) -> str:
    """The content of a model's function or network.

    Raises:
        ValueError: it cannot be determined.
    """
    if isinstance(value, torch.nn.Module):
        return described(value, "")
    if (found := function_identity(value)) is None:
        raise ValueError(getattr(value, "__name__", type(value).__name__))
    return found


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
    if isinstance(value, SDE):
        return [
            type(value).__qualname__,
            content({key: vars(value)[key] for key in sorted(vars(value)) if key[0] != "_"}),
        ]
    found = plain(value)
    if found is None and value is not None:
        raise ValueError(type(value).__name__)
    return found


def function_identity(function: Any) -> str | None:
    """A fingerprint of a function: its attribute `identity`, or its code with everything that the code uses.

    None if it uses objects whose content cannot be compared, or if it is not a plain function.
    """
    given = getattr(function, "identity", None)
    if isinstance(given, str):
        return given
    if isinstance(function, partial):
        inner = function_identity(function.func)
        try:
            given = content([function.args, function.keywords])
        except ValueError:
            return None
        return None if inner is None else fingerprint(json.dumps([inner, given]).encode())
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
    """A text that changes with an object that a function uses.

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
        return repr([content(value), *code_of_network(value)])
    return repr(content(value))
