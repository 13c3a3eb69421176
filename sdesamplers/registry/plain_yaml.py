"""Reading untrusted YAML: limited in size, depth and nodes, without duplicate keys, with YAML 1.2 scalars."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from ..errors import UsageError

LARGEST = 4 * 2**20
"""The largest file size in bytes. The shipped registry has 24 thousand."""

DEEPEST = 32
MOST_NODES = 100_000
"""The largest number of nodes after expanding aliases. The shipped registry has three thousand."""

BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

INTEGER = re.compile(r"[-+]?[0-9]+\Z")
FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)


class Loader(BASE):  # type: ignore[misc]  # the base is known only at run time: libyaml may be missing
    """YAML loader with the scalars of the YAML 1.2 core schema: 010 is ten; 1:30, yes, off and dates are strings."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


def _integer(loader: Any, node: Any) -> int:
    try:
        return int(loader.construct_scalar(node))
    except ValueError:  # Python converts at most 4300 digits
        raise yaml.constructor.ConstructorError(None, None, "a number with too many digits", node.start_mark) from None


def _float(loader: Any, node: Any) -> float:
    return float(loader.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))


for tag, pattern, first in (
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), "tTfF"),
    ("int", INTEGER, "-+0123456789"),
    ("float", FLOAT, "-+0123456789."),
    ("merge", re.compile(r"<<\Z"), "<"),
    ("null", re.compile(r"(?:~|null|Null|NULL|)\Z"), "~nN\0"),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", pattern, [*first, ""] if tag == "null" else list(first))
Loader.add_constructor("tag:yaml.org,2002:int", _integer)
Loader.add_constructor("tag:yaml.org,2002:float", _float)


class Dumper(yaml.SafeDumper):
    """YAML writer that quotes strings that YAML 1.1 or 1.2 would read as another type, such as 1e5, yes and 010.

    The outermost mapping has a key per line.
    """

    def represent(self, data: Any) -> None:
        """Write a document."""
        node = self.represent_data(data)
        if isinstance(node, yaml.MappingNode):
            node.flow_style = False
        self.serialize(node)
        self.represented_objects = {}
        self.object_keeper = []
        self.alias_key = None


def _text(dumper: Any, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if LINE_BREAKS.search(text) else None)


LINE_BREAKS = re.compile("[\x85\u2028\u2029\ufeff]")
"""Characters that are line breaks in YAML 1.1, and nothing to PyYAML's reader, unless they are escaped."""
Dumper.add_representer(str, _text)
for _first, _resolvers in Loader.yaml_implicit_resolvers.items():
    for _tag, _pattern in _resolvers:
        Dumper.add_implicit_resolver(_tag, _pattern, [_first])


def dump(data: Any) -> str:
    """Plain data as a YAML text that `parse` reads back equal; lists of numbers are on one line."""
    text: str = yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
    return text


def read_text(file: Path) -> str:
    """Return a file's text.

    Raises:
        UsageError: unreadable, not a regular file, not UTF-8, or too large.
    """
    try:
        if file.exists() and not file.is_file():
            raise UsageError(f"{file}: cannot be read: not a regular file")
        if file.stat().st_size > LARGEST:
            raise UsageError(f"{file}: cannot be read: larger than {LARGEST >> 20} MiB")
        return file.read_text(encoding="utf-8-sig")  # editors of Windows write a byte order mark
    except (OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def parse(text: str, file: object) -> Any:
    """Return the data of a YAML text.

    Raises:
        UsageError: not valid, or too deep or large after expanding aliases, or with a duplicate key; with file and
            line.
    """
    try:
        text, found = as_json(text)
        _measure(text, file)
        tree = yaml.compose(text, Loader=Loader)
        _refuse_duplicate_keys(tree, file)
        return yaml.load(text, Loader=Loader) if found is None else found
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else text.count("\n", 0, getattr(error, "position", 0)) + 1
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        if mark and "\n".join(text.split("\n")[mark.line : mark.line + 1])[mark.column :].startswith("\t"):
            reason = "a tab; YAML is indented by spaces"
        raise UsageError(f"{file}:{line}: not valid YAML: {reason}") from None


def compose(text: str) -> Any:
    """Return the node tree of a text that `_measure` has accepted."""
    return yaml.compose(as_json(text)[0], Loader=Loader)


def as_json(text: str) -> tuple[str, Any]:
    """A text for readers of YAML, and its data if it is JSON, otherwise None.

    JSON is YAML except for tabs between its parts, which become spaces here, and for escaped pairs of surrogates,
    which become the character.
    """
    if text.lstrip()[:1] not in ("{", "["):
        return text, None
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text, None
    return ESCAPE.sub(_joined, text.replace("\t", " ")), found


ESCAPE = re.compile(r"\\(?:u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|.)")
"""An escaped pair of surrogates, or any other escape."""


def _joined(escape: re.Match[str]) -> str:
    """The character of an escaped pair of surrogates; another escape unchanged."""
    if escape[1] is None:
        return escape[0]
    return chr(0x10000 + ((int(escape[1], 16) - 0xD800) << 10) + int(escape[2], 16) - 0xDC00)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _measure(text: str, file: object) -> None:
    """Raise UsageError if a text is too deep or has too many nodes. Works on parser events, without recursion."""
    open_nodes: list[tuple[str | None, int]] = []  # (anchor, number of nodes before it) of each open collection
    sizes: dict[str, int] = {}
    count = 0
    for event in yaml.parse(text, Loader=BASE):
        line = event.start_mark.line + 1 if event.start_mark else 1
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            name, before = open_nodes.pop()
            if name is not None:
                sizes[name] = count - before
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise UsageError(f"{file}:{line}: not valid YAML: the alias *{event.anchor} has no anchor before it")
            count += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if anchor is not None:
                sizes[anchor] = 1
        if len(open_nodes) > DEEPEST:
            raise UsageError(f"{file}:{line}: not allowed here: YAML nested more than {DEEPEST} levels deep")
        if count > MOST_NODES:
            raise UsageError(
                f"{file}:{line}: not allowed here: YAML with more than {MOST_NODES} nodes after expanding aliases"
            )


def _refuse_duplicate_keys(tree: Any, file: object) -> None:
    """Raise UsageError if a mapping has a duplicate key."""
    waiting, seen = [tree], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)
        if isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, str], int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    raise UsageError(f"{file}:{line}: a key must be a name, not a list or a mapping")
                if (same := (key.tag, key.value)) in lines:
                    raise UsageError(f"{file}:{line}: duplicate key {key.value!r}, first in line {lines[same]}")
                lines[same] = line
                waiting.append(value)
