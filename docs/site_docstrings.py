"""Docstrings as the site's parser wants them: a list of parameter names that fills several lines becomes one line."""

from __future__ import annotations

import re
from typing import Any

import griffe

NAMES = re.compile(r"^( +(?:\*{0,2}\w+, )*\*{0,2}\w+,)\n +(?=(?:\*{0,2}\w+, )*\*{0,2}\w+[:,])", re.MULTILINE)


class JoinedNames(griffe.Extension):
    """Join the lines of entries such as `steps, nfe,` and `**options: as in sample`."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite an object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = NAMES.sub(r"\1 ", obj.docstring.value)
