"""`pytest --sdesamplers NAME`: the conformance kit as tests, one a check. Loaded by pytest; imports nothing heavy."""

from __future__ import annotations

from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --sdesamplers."""
    parser.getgroup("sdesamplers").addoption(
        "--sdesamplers",
        action="append",
        default=[],
        metavar="NAME",
        help="run the sdesamplers conformance kit on the registered sampler NAME; may be repeated",
    )


class ConformanceItem(pytest.Item):
    """One check of one sampler."""

    def __init__(self, *, sampler: str, check: str, **words: Any) -> None:
        super().__init__(**words)
        self.sampler, self.check = sampler, check

    def runtest(self) -> None:
        """Run the check; skip where it does not apply."""
        from . import check_sampler

        finding = next(iter(check_sampler(self.sampler, checks=[self.check]).require()))
        if finding.verdict == "skip":
            pytest.skip(f"{self.check} does not apply to {self.sampler}")

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        """The finding in place of a traceback."""
        from ..errors import SdesamplersError

        return str(excinfo.value) if isinstance(excinfo.value, SdesamplersError) else super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """What failure headings show."""
        return self.path, None, self.name


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add one test for each check of each sampler named."""
    names = config.getoption("--sdesamplers")
    if not names:
        return
    from . import CHECKS

    for name in names:
        for check in CHECKS:
            made = ConformanceItem.from_parent(session, name=f"{name}: {check}", sampler=name, check=check)
            items.append(made)
