"""The finding of a check, and the report of all findings about a sampler or another registered item."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..errors import SdesamplersError

Verdict = Literal["pass", "fail", "skip"]
Kind = Literal["sampler", "spacing", "noise source", "process", "model"]
"""What the conformance kit checks."""
Outcome = tuple[str, str, bool] | None
"""What a check returns: (measured, required, passed), or None if it does not apply."""


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
    """An item violates its own declarations or the requirements on every item of its kind."""


@dataclass(frozen=True)
class Report:
    """All findings about one item.

    Attributes:
        name: the name of the item.
        findings: one finding for each check, in their order.
        kind: what the item is.
    """

    name: str
    findings: tuple[Finding, ...]
    kind: Kind = "sampler"

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
        raise ConformanceError(f"{self.kind} {self.name!r} fails {len(lines)} check(s):\n" + "\n".join(lines))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        findings = [asdict(finding) for finding in self.findings]
        return {"kind": self.kind, "name": self.name, "passed": self.passed, "findings": findings}
