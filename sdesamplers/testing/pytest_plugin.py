"""`pytest --sdesamplers NAME`: the conformance kit as tests, one per check. Loaded by pytest; imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ..errors import SdesamplersError

if TYPE_CHECKING:
    from ..registry.names import Preset


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --sdesamplers."""
    parser.getgroup("sdesamplers").addoption(
        "--sdesamplers",
        action="append",
        default=[],
        metavar="NAME",
        help="run the sdesamplers conformance kit on the registered sampler NAME; may be repeated",
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
    """One check of one sampler.

    The list `failures` is shared by the checks of a sampler; it receives the error of a sampler that raises in every
    run.
    """

    def __init__(self, *, sampler: str, preset: Preset, check: str, failures: list[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sampler, self.preset, self.check, self.failures = sampler, preset, check, failures

    def runtest(self) -> None:
        """Run the check; skip the test if it does not apply."""
        from . import check_sampler  # every run of pytest loads this module
        from .kit import RUNS  # every run of pytest loads this module

        if self.failures and self.check != "declaration":
            pytest.skip(f"not run: {self.failures[0]}")
        report = check_sampler(self.preset.sampler, checks=[self.check], options=self.preset.options)
        (finding,) = report
        if finding.required == RUNS:
            self.failures.append(finding.measured)
        report.require()
        if finding.verdict == "skip":
            pytest.skip(f"{self.check} does not apply to {self.sampler}")

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        """The finding, in place of a traceback."""
        return str(excinfo.value) if isinstance(excinfo.value, SdesamplersError) else super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """The location and name for failure headings."""
        return self.path, None, self.name


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add a test for each check of each sampler given by --sdesamplers."""
    names = config.getoption("--sdesamplers")
    if not names:
        return
    from ..registry.registry import default_registry  # every run of pytest loads this module
    from . import CHECKS  # every run of pytest loads this module

    for name in names:
        try:
            shared: dict[str, Any] = {"sampler": name, "preset": default_registry().resolve(name), "failures": []}
        except SdesamplersError as error:
            raise pytest.UsageError(str(error)) from None
        for check in CHECKS:
            items.append(ConformanceItem.from_parent(session, name=f"{name}: {check}", check=check, **shared))
