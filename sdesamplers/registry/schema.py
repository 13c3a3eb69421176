"""The JSON Schema of registry.yaml and of a recipe's file, by which both are validated."""

from __future__ import annotations

from typing import Any

from ..checks import MAXIMA
from ..public import SITE

_NAME = {"type": "string", "minLength": 1}
_OPTIONS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean", "null", "array"]}}
_SETTINGS: dict[str, Any] = {
    "description": {"type": "string", "description": "What the recipe is for, in a sentence."},
    "sampler": {**_NAME, "description": "Name of the sampler."},
    "options": {**_OPTIONS, "description": "Options of the sampler; others have their defaults."},
    "steps": {"type": "integer", "minimum": 1, "maximum": MAXIMA["steps"], "description": "Number of grid intervals."},
    "spacing": {**_NAME, "description": "Rule that makes the time grid."},
    "spacing_options": {**_OPTIONS, "description": "Options of the spacing."},
    "coordinates": {
        "enum": ["native", "ve", "flow", "angle"],
        "description": "Variables in which the solver works: native are the model's own, ve has alpha = 1, flow has "
        "alpha + sigma = 1, angle has alpha = cos and sigma = sin.",
    },
    "noise": {**_NAME, "description": "Noise source of stochastic samplers."},
    "noise_options": {**_OPTIONS, "description": "Options of the noise source."},
    "final": {
        "enum": ["zero", "min"],
        "description": "End of the grid: zero is sigma = 0, min is the smallest sigma on which the model was trained.",
    },
}
_RECIPE = {
    "type": "object",
    "required": ["sampler"],
    "additionalProperties": False,
    "properties": _SETTINGS,
}
_GRID = {"type": "array", "minItems": 2, "items": {"type": "number"}}
_SCHEMA_KEY = {"type": "string", "description": "Address of the schema of this file, for editors."}
RECIPE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["sampler"],
    "additionalProperties": False,
    "properties": {
        "$schema": _SCHEMA_KEY,
        **_SETTINGS,
        "times": {**_GRID, "description": "The whole grid in the model's native time, instead of steps and spacing."},
        "sigmas": {
            **_GRID,
            "description": "The whole grid in sigma/alpha, instead of steps and spacing; a final 0 is the clean end.",
        },
        "start_time": {"type": "number", "description": "Native time of a partly noised input, where the grid begins."},
        "requires": {
            "type": "object",
            "propertyNames": _NAME,
            "additionalProperties": {"type": "string"},
            "description": "Packages whose plugins provide the sampler, the spacing or the noise: name and version.",
        },
    },
}
"""Of a recipe's file."""
_NAMED_RECIPE = {
    "type": ["object", "string"],
    "description": "A recipe, or the path of its file relative to this one, or hf://owner/name@revision/path.",
    "if": {"type": "object"},
    "then": RECIPE_SCHEMA,
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
        "$schema": _SCHEMA_KEY,
        "models": {"type": ["object", "null"], "propertyNames": _NAME, "additionalProperties": _MODEL},
        "recipes": {"type": ["object", "null"], "propertyNames": _NAME, "additionalProperties": _NAMED_RECIPE},
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
"""Of a registry file."""
ADDRESSES = {name: f"{SITE}schemas/{name}.json" for name in ("recipe", "registry")}
"""Where the documentation site serves the schemas, with the names of the built-in samplers for editors."""
