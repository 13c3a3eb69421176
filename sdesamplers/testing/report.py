"""The finding of a check, and the report of all findings about a sampler."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..errors import SdesamplersError

Verdict = Literal["pass", "fail", "skip"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check: the measured value, the requirement, and the verdict.

    The verdict is "skip" if the check does not apply or was not run.
    """

    check: str
    measured: str
    required: str
    verdict: Verdict


class ConformanceError(SdesamplersError, AssertionError):
    """A sampler violates its own declarations or the requirements on every sampler."""


@dataclass(frozen=True)
class Report:
    """All findings about one sampler."""

    sampler: str
    findings: tuple[Finding, ...]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    @property
    def failed(self) -> list[Finding]:
        """The findings of failed checks."""
        return [finding for finding in self.findings if finding.verdict == "fail"]

    @property
    def passed(self) -> bool:
        """True if no check failed."""
        return not self.failed

    def require(self) -> Report:
        """Return this report, or raise a `ConformanceError` that lists the failed checks."""
        if self.passed:
            return self
        lines = [f"  {f.check}: measured {f.measured}; required {f.required}" for f in self.failed]
        raise ConformanceError(f"sampler {self.sampler!r} fails {len(lines)} check(s):\n" + "\n".join(lines))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        findings = [asdict(finding) for finding in self.findings]
        return {"sampler": self.sampler, "passed": self.passed, "findings": findings}
