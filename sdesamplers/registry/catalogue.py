"""registry.yaml: the catalogue of models, recipes and names, validated, with errors that name file, line and key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml

from ..checks import warn
from ..errors import UsageError
from ..public import public
from .plain_yaml import Loader, compose, parse, read_text

SHIPPED = Path(__file__).parent.parent / "registry.yaml"
HUB_PREFIX = "hf://"
"""The beginning of a Hub repository's name, where a folder may be named too."""
PEER_KINDS = ("samplers", "spacings")

_NAME = {"type": "string", "minLength": 1}
_OPTIONS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean", "null", "array"]}}
_RECIPE = {
    "type": "object",
    "required": ["sampler"],
    "additionalProperties": False,
    "properties": {
        "sampler": {"type": "string"},
        "options": _OPTIONS,
        "spacing": {"type": "string"},
        "spacing_options": _OPTIONS,
        "coordinates": {"enum": ["native", "ve", "flow", "angle"]},
        "steps": {"type": "integer", "minimum": 1},
        "noise": {"type": "string"},
        "noise_options": _OPTIONS,
        "final": {"enum": ["zero", "min"]},
        "description": {"type": "string"},
    },
}
_REASON = {
    "type": "object",
    "required": ["reason"],
    "additionalProperties": False,
    "properties": {"reason": {"type": "string", "minLength": 1}},
}
_PEER_SAMPLER = {
    "type": ["string", "object"],
    "if": {"type": "object"},
    "then": {"if": {"required": ["reason"]}, "then": _REASON, "else": _RECIPE},
}


def _choice(key: str) -> dict[str, Any]:
    """The schema of an alias of a spacing or noise source as a mapping: its name under `key`, and options."""
    return {
        "type": "object",
        "required": [key],
        "additionalProperties": False,
        "properties": {key: {"type": "string"}, "options": _OPTIONS, "description": {"type": "string"}},
    }


def _renamed(key: str, *, reasons: bool = False) -> dict[str, Any]:
    """The schema of an alias: a name, a `_choice` or, in `peers`, the reason why there is no equivalent."""
    mapping = {"if": {"required": ["reason"]}, "then": _REASON, "else": _choice(key)} if reasons else _choice(key)
    return {"type": ["string", "object"], "if": {"type": "object"}, "then": mapping}


_PEER = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "samplers": {"type": "object", "propertyNames": _NAME, "additionalProperties": _PEER_SAMPLER},
        "spacings": {
            "type": "object",
            "propertyNames": _NAME,
            "additionalProperties": _renamed("spacing", reasons=True),
        },
        "methods": {"type": "object", "propertyNames": _NAME, "additionalProperties": {"type": "string"}},
    },
}
_MODEL = {
    "type": "object",
    "additionalProperties": False,
    "minProperties": 1,
    "properties": {
        "repo": {"type": "string", "pattern": "^[^/\\s]+/[^/\\s]+$"},
        "revision": {"type": "string"},
        "path": {"type": "string"},
        "subfolder": {"type": "string"},
        "variant": {"type": "string"},
        "metrics": {"type": "string"},
        "null_condition": {"type": "integer", "minimum": 0},
        "tables": {"type": "string", "pattern": "^(?!hf://).|^hf://[^/@\\s]+/[^/@\\s]+@[^@\\s]+$"},
        "description": {"type": "string"},
    },
    "oneOf": [{"required": ["repo", "revision"]}, {"required": ["path"]}],
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "models": {"type": ["object", "null"], "propertyNames": _NAME, "additionalProperties": _MODEL},
        "recipes": {"type": ["object", "null"], "propertyNames": _NAME, "additionalProperties": _RECIPE},
        "aliases": {"type": ["object", "null"], "propertyNames": _NAME, "additionalProperties": {"type": "string"}},
        "spacing_aliases": {
            "type": ["object", "null"],
            "propertyNames": _NAME,
            "additionalProperties": _renamed("spacing"),
        },
        "noise_aliases": {
            "type": ["object", "null"],
            "propertyNames": _NAME,
            "additionalProperties": _renamed("noise"),
        },
        "peers": {"type": ["object", "null"], "propertyNames": _NAME, "additionalProperties": _PEER},
        "plugins": {"type": "array", "items": {"type": "string", "pattern": r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"}},
    },
}


@public
@dataclass
class Catalogue:
    """The merged catalogue of all registry files.

    Attributes:
        models: name -> entry, with the folder of the file that contains the entry under "base". "tables" is a folder of
            solver tables, relative to that folder, or "hf://owner/name@revision".
        recipes: name -> sampler with options, grid and so on.
        aliases, spacing_aliases, noise_aliases: other names of samplers and recipes, of spacings and of noise sources.
        peers: names in other libraries: peer -> "samplers" or "spacings" -> name -> the equivalent here, or the reason
            why there is none; and peer -> "methods" -> our sampler -> how the peer selects it by options.
        plugins: modules to import.
        origins: (section, name) -> the file that an entry comes from.
    """

    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    spacing_aliases: dict[str, str | dict[str, Any]] = field(default_factory=dict)
    noise_aliases: dict[str, str | dict[str, Any]] = field(default_factory=dict)
    peers: dict[str, dict[str, dict[str, str | dict[str, Any]]]] = field(default_factory=dict)
    plugins: list[str] = field(default_factory=list)
    origins: dict[tuple[str, str], Path] = field(default_factory=dict)

    def overlay(self, other: Catalogue) -> Catalogue:
        """Return this catalogue with the entries of `other` added; they replace entries of the same name."""
        return Catalogue(
            {**self.models, **other.models},
            {**self.recipes, **other.recipes},
            {**self.aliases, **other.aliases},
            {**self.spacing_aliases, **other.spacing_aliases},
            {**self.noise_aliases, **other.noise_aliases},
            {
                peer: {
                    kind: {**self.peers.get(peer, {}).get(kind, {}), **other.peers.get(peer, {}).get(kind, {})}
                    for kind in PEER_KINDS
                }
                for peer in {**self.peers, **other.peers}
            },
            self.plugins + other.plugins,
            {**self.origins, **other.origins},
        )

    def tables(self, model: str) -> str | None:
        """Return the source of the solver tables that a model's entry names: a folder, or hf://owner/name@revision."""
        entry = self.models.get(model, {})
        named: str | None = entry.get("tables")
        if named is None or named.startswith(HUB_PREFIX):
            return named
        return str(Path(entry["base"]) / Path(named).expanduser())

    def where(self, section: str, name: str, *keys: str) -> str:
        """Return `file:line: section.name.key`, for errors in an entry that are found only when it is used."""
        file = self.origins[section, name]
        try:
            line = str(line_of(read_text(file), [*section.split("."), name, *keys]))
        except (OSError, ValueError, yaml.YAMLError):
            line = "?"
        return f"{file}:{line}: {'.'.join((section, name, *keys))}"


def read(file: Path, *, allow_plugins: bool, check: bool = True) -> Catalogue:
    """Read and validate one registry file.

    Args:
        allow_plugins: True if the user named this file, so that its `plugins` may be imported.
        check: False to skip the validation (of the shipped file, which the tests validate).

    Raises:
        UsageError: unreadable, not YAML, or not valid under the schema; with file, line and key.
    """
    text = read_text(file)
    data = parse(text, file) if check else yaml.load(text, Loader=Loader)
    data = {} if data is None else data
    if check:
        _validate(data, text, file)
    if data.get("plugins") and not allow_plugins:
        line = line_of(text, ["plugins"])
        raise UsageError(
            f"{file}:{line}: plugins: only a file named by --registry or $SDESAMPLERS_REGISTRY may import plugins"
        )
    models = {name: {**entry, "base": str(file.parent)} for name, entry in (data.get("models") or {}).items()}
    keys = ("recipes", "aliases", "spacing_aliases", "noise_aliases", "peers")
    sections: dict[str, dict[str, Any]] = {"models": models, **{key: data.get(key) or {} for key in keys}}
    origins = {(section, name): file for section, entries in sections.items() for name in entries}
    for peer, kinds in sections["peers"].items():
        origins |= {(f"peers.{peer}.{kind}", name): file for kind, names in kinds.items() for name in names}
    origins |= {("plugins", name): file for name in data.get("plugins", [])}
    return Catalogue(**sections, plugins=data.get("plugins", []), origins=origins)


def _validate(data: Any, text: str, file: Path) -> None:
    from jsonschema import Draft202012Validator  # not needed at start-up: the shipped file is not validated
    from jsonschema.exceptions import best_match  # not needed at start-up: the shipped file is not validated

    error = best_match(Draft202012Validator(SCHEMA).iter_errors(data))
    if error is None:
        return
    keys = [str(k) for k in error.absolute_path]
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        unknown = [k for k in error.instance if k not in error.schema.get("properties", {})]
        keys.append(str(unknown[0]))
        message = f"unknown key (known: {', '.join(error.schema['properties'])})"
    elif error.validator == "oneOf":
        message = "a model needs either repo and revision (a pinned commit or tag), or path"
    elif error.validator == "pattern" and keys[-1] == "tables":
        message = f"{error.instance!r} must be a folder, or hf://owner/name@revision with a pinned commit or tag"
    else:
        message = error.message
    raise UsageError(f"{file}:{line_of(text, keys)}: {'.'.join(keys) or 'top level'}: {message}")


@lru_cache(maxsize=8)
def _tree(text: str) -> Any:
    return compose(text)


def line_of(text: str, keys: list[str]) -> int:
    """The line number (from 1) of a nested key in a YAML text."""
    node = _tree(text)
    line = 0 if node is None else node.start_mark.line
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                if name.value == key:
                    line, node = name.start_mark.line, value
        elif isinstance(node, yaml.SequenceNode) and key.isdigit():
            node = node.value[int(key)]
            line = node.start_mark.line
    return int(line) + 1


def user_file() -> tuple[Path, bool] | None:
    """The user's registry file and whether the user named it: $SDESAMPLERS_REGISTRY, else that in the config folder."""
    named = os.environ.get("SDESAMPLERS_REGISTRY")
    if named:
        return Path(named), True
    config = os.environ.get("XDG_CONFIG_HOME") or (os.environ.get("APPDATA") if os.name == "nt" else None)
    try:
        found = Path(config or Path.home() / ".config") / "sdesamplers" / "registry.yaml"
        if found.is_file():
            with found.open("rb"):
                return found, False
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: there is no home folder
        reason = getattr(error, "strerror", None) or error
        warn(f"your registry.yaml is ignored, since your configuration folder cannot be read: {reason}")
    return None


def load_catalogue(named: str | Path | None = None) -> Catalogue:
    """The shipped catalogue, overlaid with the user's file and then with the file `named`."""
    catalogue = _shipped()
    user = user_file()
    if user is not None:
        catalogue = catalogue.overlay(read(user[0], allow_plugins=user[1]))
    if named is not None:
        catalogue = catalogue.overlay(read(Path(named), allow_plugins=True))
    return catalogue


@cache
def _shipped() -> Catalogue:
    return read(SHIPPED, allow_plugins=False, check=False)
