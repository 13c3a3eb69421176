"""A stored notebook as Markdown with its outputs, for the site."""

from __future__ import annotations

import html
import json
import re
from typing import Any


def notebook_markdown(text: str) -> str:
    """The cells of a notebook (a file .ipynb) and their stored outputs."""
    return "\n\n".join(part for cell in json.loads(text)["cells"] for part in cell_markdown(cell))


def cell_markdown(cell: dict[str, Any]) -> list[str]:
    """The parts of a cell: its text, or its code and outputs."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    return [f"```python\n{source}\n```", *map(output_html, cell["outputs"])]


def output_html(output: dict[str, Any]) -> str:
    """An output as one block of HTML: its HTML, or else its text."""
    data = output.get("data", {})
    if "text/html" in data:
        shown = "".join(data["text/html"])
    else:
        shown = f"<pre>{html.escape(''.join(output.get('text') or data.get('text/plain', '')))}</pre>"
    # A blank line would end the block of HTML in Markdown; in <pre> the reference to a line feed is one.
    return f'<div class="output">{re.sub(chr(10) + "{2,}", lambda m: "&#10;" * len(m[0]), shown)}</div>'
