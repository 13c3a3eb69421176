"""The names of a new plugin's distribution, module and items, all from one name."""

from __future__ import annotations

import builtins
import keyword
import re
from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError

Part = Literal["sampler", "spacing", "noise", "process", "model"]
"""What a plugin may contain; each is a file of its package."""

PREFIX = "sdesamplers-"
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
LONGEST = 30
TAKEN = ("sds", "np", "math", "network", "x", "path", "process", "source", "span")
"""Names that the templates use."""
OWN = ("sdesamplers", "plugins")
"""Names of the library's own packages: sdesamplers and sdesamplers_plugins."""


@dataclass(frozen=True)
class PluginName:
    """The name of a plugin, such as two-stage, and what follows from it."""

    name: str

    @property
    def distribution(self) -> str:
        """The name of the distribution and its folder: sdesamplers-two-stage."""
        return PREFIX + self.name

    @property
    def module(self) -> str:
        """The import name: sdesamplers_two_stage."""
        return self.distribution.replace("-", "_")

    def item(self, part: Part) -> str:
        """The name under which an item is registered: two-stage for the sampler, two-stage-spacing for the spacing."""
        return self.name if part == "sampler" else f"{self.name}-{part}"

    def function(self, part: Part) -> str:
        """The name of an item's function: two_stage."""
        return self.item(part).replace("-", "_")

    def class_name(self, part: Part) -> str:
        """The name of an item's class: TwoStageProcess."""
        return "".join(each.capitalize() for each in self.item(part).split("-"))


def plugin_name(text: str) -> PluginName:
    """Check the name of a new plugin. The prefix "sdesamplers-" may be included.

    Raises:
        UsageError: not lower-case letters and digits with hyphens, too long, or a name of Python or of the templates.
    """
    name = text.removeprefix(PREFIX)
    cleaned = re.sub(r"[^a-z0-9]+", "-", _parted(name)).strip("-0123456789").removeprefix(PREFIX)
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        usable = NAME.fullmatch(cleaned) and len(cleaned) <= LONGEST and cleaned != name
        advice = f"; did you mean {cleaned!r}?" if usable else ""
        raise UsageError(
            "the name of a plugin has lower-case letters and digits, and hyphens between them, such as 'two-stage', "
            f"and at most {LONGEST} characters; not {text[:80]!r}{advice}"
        )
    function = name.replace("-", "_")
    of_python = keyword.iskeyword(function) or keyword.issoftkeyword(function) or hasattr(builtins, function)
    if of_python or function in TAKEN or name in OWN:
        raise UsageError(
            f"{name!r} cannot be the name of the plugin and its function; choose another, such as 'my-{name}'"
        )
    return PluginName(name)


def _parted(name: str) -> str:
    """CamelCase as lower-case letters with hyphens."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
