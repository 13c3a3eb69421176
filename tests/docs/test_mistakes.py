"""docs/mistakes.md: every change of its plugin that it lists gives the message that it lists."""

from __future__ import annotations

import fnmatch
import re
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import sdesamplers as sds
from sdesamplers.registry.registry import Registry
from sdesamplers.testing import check

PAGE = Path(__file__).parents[2] / "docs" / "mistakes.md"
TEXT = PAGE.read_text(encoding="utf-8")
PLUGIN = TEXT.split("```python\n")[1].split("```")[0]
LEFT_OUT = "(left out)"
CODE = re.compile(r"(`+)( ?)(.+?)\2\1(?!`)")
ITEM = re.compile(r'^@(sampler|spacing|noise_source)\("([\w-]+)"|^(class) MyProcess', re.M)


class Row(NamedTuple):
    """A row of a table: its section, the mistake, the texts in code, and the message."""

    section: str
    mistake: str
    codes: list[str]
    message: str

    @property
    def plugin(self) -> str:
        """The plugin with the row's change."""
        before, after = self.codes
        assert PLUGIN.count(before) == 1, before
        return PLUGIN.replace(before, "" if after == LEFT_OUT else after)

    @property
    def item(self) -> tuple[str, str]:
        """The kind and name of the item that is changed."""
        place = PLUGIN.index(self.codes[0])
        found = [match for match in ITEM.finditer(self.plugin) if match.start() <= place][-1]
        return found[1] or "process", found[2] or "my-process"


def rows() -> list[Row]:
    found = []
    for section in TEXT.split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        for line in body.splitlines():
            if line.startswith("|") and not line.startswith(("|---", "| mistake")):
                mistake, change, message = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
                sides = [
                    "\n".join(code for *_, code in CODE.findall(side)) if "`" in side else side.strip()
                    for side in change.split("<br>→ ")
                ]
                found.append(Row(title, mistake, sides, CODE.fullmatch(message)[3]))  # type: ignore[index]
    return found


ROWS = rows()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes the registry with a plugin, and makes it that of the process."""
    monkeypatch.chdir(tmp_path)

    def build(text: str) -> Registry:
        (tmp_path / "my_plugin.py").write_text(text, encoding="utf-8")
        monkeypatch.delitem(sys.modules, "my_plugin", raising=False)
        made = Registry(plugins=["my_plugin.py"])
        monkeypatch.setattr(sds.registry.registry, "_default", made)
        return made

    yield build
    sys.modules.pop("my_plugin", None)


def run(kind: str, name: str, registry: Registry) -> None:
    """Sample with an item, four steps."""
    model: sds.Model = sds.grid_mixture(sds.VP())
    chosen: dict[str, Any] = {"sampler": "ddpm", "steps": 4}
    if kind == "process":
        model = sds.FunctionModel(lambda x, t: x, registry.sdes[name](), "epsilon", (2,))
    else:
        chosen[{"noise_source": "noise"}.get(kind, kind)] = name
    sds.sample(model, **chosen)


def make_mistake(row: Row, registry: Any) -> None:
    """Do what a row's section is about, with the row's change."""
    if row.section == "When it is called":
        registry(PLUGIN)
        eval(row.codes[0], {"sds": sds, "model": sds.grid_mixture(sds.VP())})
        return
    made = registry(row.plugin)
    if row.section == "When it runs":
        run(*row.item, made)
    elif row.section == "When it is checked":
        check(row.item[1], checks=[row.message.partition(":")[0]]).require()


def message_of(row: Row, registry: Any) -> str:
    """The message of a row's error or warning; of a failed check its line in the report."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", sds.AccuracyWarning)
        with pytest.raises((sds.SdesamplersError, sds.AccuracyWarning)) as caught:
            make_mistake(row, registry)
    found = str(caught.value)
    return found.splitlines()[-1].strip() if row.section == "When it is checked" else found


def test_there_are_thirty_mistakes_at_least() -> None:
    assert len({(row.section, row.mistake) for row in ROWS}) == len(ROWS) >= 30


SLOW = ("the wrong order is declared",)
"""Mistakes that take the kit more than a second."""


@pytest.mark.filterwarnings("ignore:ddpm's samples lie far outside")
@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=row.mistake, marks=[pytest.mark.slow] * (row.mistake in SLOW)) for row in ROWS],
)
def test_a_mistake_has_its_message(row: Row, registry: Any) -> None:
    found = message_of(row, registry)
    pattern = re.sub(r"([\[\]*?])", r"[\1]", row.message).replace("...", "*")
    assert fnmatch.fnmatchcase(found, pattern), f"\n{found}\n{row.message}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["my-midpoint", "my-ancestral", "my-angles", "my-noise", "my-process"])
def test_the_plugin_without_mistakes_passes(name: str, registry: Any) -> None:
    registry(PLUGIN)
    check(name).require()
