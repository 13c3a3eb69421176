"""The card of a registry file on the Hub: what it defines, and how it is used."""

from __future__ import annotations

import shlex

from ..hub.address import Address
from ..hub.cards import code, metadata, quoted, sealed
from ..public import SITE
from ..registry.catalogue import Catalogue

TITLE = "A registry of sdesamplers"


def make_card(catalogue: Catalogue, address: Address) -> str:
    """The card of a registry file, as Markdown.

    Args:
        catalogue: the content of the file.
        address: of the file.
    """
    models = [
        f"| {code(name)} | {code(entry['repo'])} | {code(entry['revision'])} | {_text(entry)} |"
        for name, entry in catalogue.models.items()
    ]
    recipes = [
        f"| {code(name)} | {code(entry['sampler'])} | {_text(entry)} |" for name, entry in catalogue.recipes.items()
    ]
    lines = [
        *metadata("# license: the identifier of the licence under which you share this file"),
        f"# {TITLE}",
        "",
        f"Names of models and recipes for [sdesamplers]({SITE}sharing.html), in {code(address.path)}.",
        "The file is data; nothing in it is run, and it cannot import plugins.",
        "",
        "```python",
        f"sds.use_registry({quoted(str(address))})",
        "```",
        "",
        "```",
        f"sdesamplers --registry {shlex.quote(str(address))} models",
        "```",
        "",
        *_section("Models", "| name | repository | revision | description |", models),
        *_section("Recipes", "| name | sampler | description |", recipes),
    ]
    return sealed("\n".join(lines))


def _text(entry: dict[str, str]) -> str:
    return code(entry["description"]) if entry.get("description") else ""


def _section(title: str, head: str, rows: list[str]) -> list[str]:
    return [f"## {title}", "", head, "|" + "---|" * (head.count("|") - 1), *rows, ""] if rows else []
