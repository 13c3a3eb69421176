"""What a check finds, and all findings of a sampler."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..errors import SdesamplersError

Verdict = Literal["pass", "fail", "skip"]


@dataclass(frozen=True)
class Finding:
    """One check's outcome: what was measured, what is required, and the verdict ("skip": it does not apply)."""

    check: str
    measured: str
    required: str
    verdict: Verdict


class ConformanceError(SdesamplersError, AssertionError):
    """A sampler does not keep what it declares or what every sampler promises."""


@dataclass(frozen=True)
class Report:
    """All findings about one sampler."""

    sampler: str
    findings: tuple[Finding, ...]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    @property
    def failed(self) -> list[Finding]:
        """The findings that fail."""
        return [finding for finding in self.findings if finding.verdict == "fail"]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failed

    def require(self) -> Report:
        """This report, or a `ConformanceError` that lists what failed."""
        if self.passed:
            return self
        lines = [f"  {f.check}: measured {f.measured}; required {f.required}" for f in self.failed]
        raise ConformanceError(f"sampler {self.sampler!r} fails {len(lines)} check(s):\n" + "\n".join(lines))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        findings = [asdict(finding) for finding in self.findings]
        return {"sampler": self.sampler, "passed": self.passed, "findings": findings}
