"""Validation of a YAML file by a JSON Schema, with errors that name file, line and key."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import yaml

from ..checks import shown
from ..errors import UnknownNameError, UsageError
from .plain_yaml import compose


def check_data(data: Any, text: str, file: object, schema: Mapping[str, Any], reasons: Mapping[str, str]) -> None:
    """Raise a UsageError if a file's data are not valid under a schema.

    Args:
        data, text: the file's data, and the text that they were read from.
        file: its path or address, for the message.
        schema: the JSON Schema.
        reasons: keyword of the schema, or `keyword key`, -> the message for it, in which `{value}` is the value;
            jsonschema's own for others.

    Raises:
        UnknownNameError: a key that the schema does not have; the message suggests similar ones.
    """
    from jsonschema import Draft202012Validator  # not needed at start-up: the shipped file is not validated
    from jsonschema.exceptions import best_match  # not needed at start-up: the shipped file is not validated

    error = best_match(Draft202012Validator(schema).iter_errors(data))
    if error is None:
        return
    keys = [str(key) for key in error.absolute_path]
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        known = error.schema.get("properties", {})
        keys.append(next(str(key) for key in error.instance if key not in known))
        place = f"{file}:{line_of(text, keys)}: {'.'.join(keys)}: unknown key"
        raise UnknownNameError("key", keys[-1], known, f" (known: {', '.join(known)})", opening=place)
    if error.validator == "enum" and isinstance(error.instance, str):
        choices = [each for each in error.validator_value if isinstance(each, str)]
        opening = f"{file}:{line_of(text, keys)}: {'.'.join(keys)}: {must_be(error)}"
        raise UnknownNameError("value", error.instance, choices, opening=opening)
    reason = reasons.get(f"{error.validator} {keys[-1] if keys else ''}", reasons.get(str(error.validator)))
    message = must_be(error) if reason is None else reason.replace("{value}", repr(error.instance))
    raise UsageError(f"{file}:{line_of(text, keys)}: {'.'.join(keys) or 'top level'}: {message}")


PLAIN = {
    "object": "a mapping", "array": "a list", "string": "text", "number": "a number", "integer": "a whole number",
    "boolean": "true or false", "null": "null",
}  # fmt: skip
"""The types of JSON Schema in messages."""


def must_be(error: Any) -> str:
    """The message of a jsonschema error: what a value must be; jsonschema's own for the rarer keywords."""
    wanted, found = error.validator_value, shown(error.instance)
    if error.validator == "type":
        kinds = [PLAIN[kind] for kind in ([wanted] if isinstance(wanted, str) else wanted)]
        return f"must be {' or '.join(kinds)}, not {found}"
    if error.validator == "enum":
        return f"must be {' or '.join(repr(each) for each in wanted)}, not {found}"
    if error.validator in ("minimum", "maximum"):
        return f"must be {wanted:g} or {'more' if error.validator == 'minimum' else 'less'}, not {found}"
    if error.validator == "minLength":
        return "must not be empty"
    if error.validator == "minItems":
        return f"must be a list of {wanted} or more, not {found}"
    return str(error.message)


def kind_of(data: Any) -> str:
    """What the data of a file are, for messages: "empty", "a list"."""
    if data is None:
        return "empty"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "a mapping"}
    return kinds.get(type(data), type(data).__name__)


@lru_cache(maxsize=8)
def _tree(text: str) -> Any:
    return compose(text)


NULL = "tag:yaml.org,2002:null"


def is_left_out(text: str, key: str) -> bool:
    """True if a key at the top of a YAML text has nothing after its colon; `null` and `~` are values."""
    node = _tree(text)
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return any(name.value == key and value.tag == NULL and not value.value for name, value in pairs)


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
