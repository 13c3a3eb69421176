"""The finding of a check, and the report of all findings about a sampler or another registered item."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from textwrap import wrap
from typing import Any, Literal

from ..errors import SdesamplersError
from ..html import rows_table
from ..text import one_line, printable
from .explanations import EXPLANATIONS, Kind, explanation

Verdict = Literal["pass", "fail", "skip"]
VERDICTS: dict[Verdict, str] = {"pass": "passed", "fail": "failed", "skip": "skipped"}
WIDTH = 110
"""Characters of a line of a printed report."""
RUNS = "a run that does not raise"
"""The requirement that is reported if an item raises whatever it is used for."""
NO_ERROR = "no error"
"""The requirement that is reported if an item raises in a check."""
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

    @property
    def raised(self) -> bool:
        """True if the check failed because the item raised an exception, whose message is `measured`."""
        return self.verdict == "fail" and self.required in (RUNS, NO_ERROR)

    @property
    def reason(self) -> str:
        """The verdict's reason in one line: what was measured and, unless the check was left out, required."""
        if self.verdict == "skip":
            return one_line(self.measured if self.measured != "-" else self.required)
        return one_line(f"{self.measured}; required: {self.required}")


class ConformanceError(SdesamplersError, AssertionError):
    """An item violates its own declarations or the requirements on every item of its kind."""


@dataclass(frozen=True, repr=False)
class Report:
    """All findings about one item.

    `print(report)` shows each check with its verdict and reason, and for a failed check where to look; notebooks show
    the same as a table.

    Attributes:
        name: the name of the item.
        findings: one finding for each check, in their order.
        kind: what the item is.
    """

    name: str
    findings: tuple[Finding, ...]
    kind: Kind = "sampler"

    def __repr__(self) -> str:
        return f"<Report on {self.summary}>"

    def __str__(self) -> str:
        """A line for each check, and below that of a failed check where to look."""
        width = max((len(finding.check) for finding in self.findings), default=0)
        lines = [self.summary]
        for finding in self.findings:
            opening = f"  {VERDICTS[finding.verdict]:<7}  {finding.check:<{width}}  "
            margin = " " * len(opening)
            lines += wrap(finding.reason, WIDTH, initial_indent=opening, subsequent_indent=margin)
            if look := self.where_to_look(finding):
                lines += wrap(f"look: {look}", WIDTH, initial_indent=margin, subsequent_indent=margin)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """For notebooks: the same as a table."""
        rows = ((f.check, VERDICTS[f.verdict], f.reason, self.where_to_look(f)) for f in self.findings)
        return rows_table(self.summary, ("check", "verdict", "measured; required", "where to look"), rows)

    @property
    def summary(self) -> str:
        """The item and the numbers of verdicts, in one line: "sampler 'heun': 20 passed, 4 skipped"."""
        found = {verdict: [f.check for f in self.findings if f.verdict == verdict] for verdict in VERDICTS}
        parts = [f"{len(found[verdict])} {text}" for verdict, text in VERDICTS.items() if found[verdict]]
        names = f" (failed: {', '.join(found['fail'])})" if found["fail"] else ""
        return f"{self.kind} {printable(repr(self.name))}: {', '.join(parts) or 'no checks'}{names}"

    def where_to_look(self, finding: Finding) -> str:
        """Where the mistake usually is if this check fails; empty for the other verdicts."""
        if finding.verdict != "fail" or finding.check not in EXPLANATIONS[self.kind]:
            return ""
        return explanation(self.kind, finding.check, raised=finding.raised).look

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
