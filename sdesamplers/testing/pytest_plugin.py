"""`pytest --sdesamplers NAME`: the conformance kit as tests, one per check. Loaded by pytest; imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ..errors import SdesamplersError

if TYPE_CHECKING:
    from .lookup import Target


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --sdesamplers."""
    parser.getgroup("sdesamplers").addoption(
        "--sdesamplers",
        action="append",
        default=[],
        metavar="NAME",
        help="run the sdesamplers conformance kit on NAME, a registered sampler, spacing, noise source, process or "
        "model; may be repeated",
    )
    parser.getgroup("sdesamplers").addoption(
        "--sdesamplers-plugin",
        action="append",
        default=[],
        metavar="MODULE_OR_FILE.py",
        help="import an sdesamplers plugin from a module or file; may be repeated",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Import the plugins given by --sdesamplers-plugin."""
    plugins = config.getoption("--sdesamplers-plugin")
    if not plugins:
        return
    from ..registry.registry import use_registry  # every run of pytest loads this module

    try:
        use_registry(None, plugins=plugins)
    except SdesamplersError as error:
        raise pytest.UsageError(str(error)) from None


class ConformanceItem(pytest.Item):
    """One check of one item.

    The list `failures` is shared by the checks of an item; it receives the error of an item that raises in every run.
    """

    def __init__(self, *, item: str, target: Target, check: str, failures: list[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.item, self.target, self.check, self.failures = item, target, check, failures

    def runtest(self) -> None:
        """Run the check; skip the test if it does not apply."""
        from .kit import check_target  # every run of pytest loads this module
        from .report import RUNS  # every run of pytest loads this module

        if self.failures and self.check != "declaration":
            pytest.skip(f"not run: {self.failures[0]}")
        report = check_target(self.target, self.item, checks=[self.check])
        (finding,) = report
        if finding.required == RUNS:
            self.failures.append(finding.measured)
        report.require()
        if finding.verdict == "skip":
            pytest.skip(f"{self.check} does not apply to {self.item}")

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        """The finding, in place of a traceback."""
        return str(excinfo.value) if isinstance(excinfo.value, SdesamplersError) else super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """The location and name for failure headings."""
        return self.path, None, self.name


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add a test for each check of each item given by --sdesamplers."""
    names = config.getoption("--sdesamplers")
    if not names:
        return
    from .kit import KITS  # every run of pytest loads this module
    from .lookup import find  # every run of pytest loads this module

    for name in names:
        try:
            target = find(name)
        except SdesamplersError as error:
            raise pytest.UsageError(str(error)) from None
        shared: dict[str, Any] = {"item": name, "target": target, "failures": []}
        for check in KITS[target.kind]:
            items.append(ConformanceItem.from_parent(session, name=f"{name}: {check}", check=check, **shared))
