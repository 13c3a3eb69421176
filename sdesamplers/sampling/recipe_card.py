"""The card of recipes on the Hub: a README.md with their settings and how they are used."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from ..hub.address import Address
from ..hub.cards import code, metadata, quoted, sealed
from ..public import SITE

TITLE = "Recipes for sdesamplers"


def make_card(recipes: Mapping[str, Mapping[str, Any]], address: Address) -> str:
    """The card of recipes, as Markdown.

    Args:
        recipes: path in the repository -> the recipe as plain data.
        address: of the repository.
    """
    rows = [_row(path, recipe) for path, recipe in sorted(recipes.items())]
    source = str(address.inside(min(recipes)))
    described = [f"- {code(path)}: {code(each['description'])}" for path, each in sorted(recipes.items())
                 if each.get("description")]  # fmt: skip
    lines = [
        *metadata("# license: the identifier of the licence under which you share these settings"),
        f"# {TITLE}",
        "",
        f"Settings of samplers for diffusion models, for [sdesamplers]({SITE}sharing.html): the sampler with its",
        "options, the time grid, the coordinates and the noise. A recipe runs on every model that the library loads.",
        "The files are data; nothing in them is run.",
        "",
        "| file | sampler | options | steps | grid | coordinates | noise |",
        "|---|---|---|--:|---|---|---|",
        *rows,
        "",
        *([*described, ""] if described else []),
        "## Use",
        "",
        "```python",
        "import sdesamplers as sds",
        "",
        f"samples = sds.sample(model, {quoted(source)}, num_samples=4).samples  # model: any argument of sds.load",
        f"pipe.scheduler = sds.Scheduler.from_config(pipe.scheduler.config, recipe={quoted(source)})",
        "```",
        "",
        "```",
        f"sdesamplers sample MODEL --sampler {shlex.quote(source)}",
        "```",
        "",
        f"{code(f'hf://{address.repo}@COMMIT/PATH')} pins a commit.",
    ]
    return sealed("\n".join(lines))


def _row(path: str, recipe: Mapping[str, Any]) -> str:
    """A row of the table of settings; what a recipe omits has its default."""
    options = ", ".join(f"{key}={_short(value)}" for key, value in (recipe.get("options") or {}).items())
    grid = recipe.get("spacing") or next((name for name in ("times", "sigmas") if recipe.get(name)), None)
    given = [recipe.get("sampler"), options, recipe.get("steps"), grid, recipe.get("coordinates"), recipe.get("noise")]
    cells = [code(path), *("" if value in (None, "") else code(value) for value in given)]
    return f"| {' | '.join(cells)} |"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
