"""Rules for continuous integration: which cells of a comparison fail, against a baseline or against numbers."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np

from ..errors import UsageError
from ..metrics.intervals import interval
from ..text import printable
from .recommendation import isfinite, known_metric
from .scoring import OWN

if TYPE_CHECKING:
    from .cell import Cell
    from .result import Comparison

RULE = re.compile(r"\s*([A-Za-z_][\w-]*)\s*(>=|<=|>|<)\s*((?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(x?)\s*")
COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le
}  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """A condition under which a cell fails: METRIC OP NUMBER, or METRIC OP NUMBERx, a multiple of the baseline's value.

    Example:
        >>> Rule.parse("error > 1.1x")
        Rule(metric='error', operation='>', number=1.1, relative=True)
    """

    metric: str
    operation: str
    number: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> Rule:
        """The rule in a text.

        Raises:
            UsageError: another form.
        """
        match = RULE.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise UsageError(
                "a rule is METRIC OP NUMBER or METRIC OP NUMBERx (a multiple of the baseline); OP is >, >=, < or <=, "
                f"as in 'error>1.1x' or 'frechet>0.5'; not {text!r}"
            )
        return cls(match[1].replace("-", "_"), match[2], float(match[3]), bool(match[4]))

    def __str__(self) -> str:
        return f"{self.metric}{self.operation}{self.number:g}{'x' if self.relative else ''}"


@dataclass(frozen=True)
class Check:
    """A rule applied to a cell.

    Attributes:
        rule: the rule's text.
        model, guidance_scale, sampler, budget: the cell.
        outcome: "passed"; "failed"; "uncertain", which passes, if the value is worse, but the number of samples or
            repeats cannot tell; or "skipped", if there is no value.
        message: the numbers, or the reason.
    """

    rule: str
    model: str
    guidance_scale: float
    sampler: str
    budget: int
    outcome: str
    message: str

    def __str__(self) -> str:
        scale = "" if self.guidance_scale == 1.0 else f", guidance {self.guidance_scale:g}"
        place = f"{self.model}{scale}, {self.sampler}, {self.budget} evaluations"
        return f"{self.outcome} {self.rule}: {place}: {self.message}"


def check_cells(comparison: Comparison, rules: Iterable[Rule], baseline: Comparison | None) -> list[Check]:
    """Every rule applied to every cell; see `Comparison.check`."""
    rules = list(rules)
    if not rules:
        raise UsageError("pass one rule or more, such as 'error>1.1x'")
    for rule in rules:
        if rule.relative and baseline is None:
            raise UsageError(f"rule {str(rule)!r} is relative to a baseline, and there is none")
        cells = [*comparison.cells, *([] if baseline is None else baseline.cells)]
        if rule.metric not in OWN or not any(cell.problem for cell in comparison.cells):
            known_metric(cells, rule.metric)  # cells that cannot be run fail, also if no other has the metric
    former = {} if baseline is None else {key_of(cell): cell for cell in baseline.cells}
    if baseline is not None:
        require_same_samples(comparison, baseline)
        if any(rule.relative and rule.metric in ("frechet", "sliced_wasserstein") for rule in rules):
            require_same_scorer(comparison, baseline)
    found = []
    for rule in rules:
        for cell in comparison.cells:
            before = former.get(key_of(cell))
            found.append(_relative(rule, cell, before) if rule.relative else _absolute(rule, cell))
        if rule.relative:
            own = {key_of(cell) for cell in comparison.cells}
            missing = [cell for key, cell in former.items() if key not in own]
            found += [_check(rule, cell, "failed", "in the baseline, but not in this comparison") for cell in missing]
    return found


def key_of(cell: Cell) -> tuple[str, float, str, int]:
    """What a cell and its cell in the baseline have in common."""
    return cell.model, cell.guidance_scale, cell.sampler, cell.budget


def require_same_numbers(own: Mapping[str, int], baseline: Comparison) -> None:
    """Raise a UsageError if a comparison with other samples than the baseline's is asked for.

    Args:
        own: its seed, num_samples and repeats.
        baseline: an earlier comparison.
    """
    for name, number in own.items():
        former = getattr(baseline, name)
        if number != former:
            raise UsageError(
                f"the baseline has {name}={former} and this comparison {number}, so their values differ by chance; "
                f"use the same {name}, or make a new baseline"
            )


def require_same_samples(comparison: Comparison, baseline: Comparison) -> None:
    """Raise a UsageError if two comparisons have other samples, so that their values differ by chance."""
    require_same_numbers({name: getattr(comparison, name) for name in ("seed", "num_samples", "repeats")}, baseline)
    groups, theirs = ({group.model_name: group for group in each.all_groups} for each in (comparison, baseline))
    shared = set(groups) & set(theirs)
    if not shared:
        raise UsageError(f"the baseline is of {', '.join(theirs)}, and this comparison of {', '.join(groups)}")
    for name in sorted(shared):
        own, former = groups[name], theirs[name]
        for key in ("condition", "start", "first_index"):
            if own.facts.get(key) != former.facts.get(key):
                raise UsageError(f"the baseline of {name} has another {key}, so its values cannot be compared")
        if own.reference_count and former.reference_count and own.reference_count != former.reference_count:
            raise UsageError(
                f"the baseline has the errors of {former.reference_count} samples, and this comparison those of "
                f"{own.reference_count}; use the same reference_samples"
            )


def require_same_scorer(comparison: Comparison, baseline: Comparison) -> None:
    """Raise a UsageError if the distances of two comparisons are in other features."""
    theirs = {group.model_name: group.metrics for group in baseline.all_groups}
    for group in comparison.all_groups:
        former = theirs.get(group.model_name, group.metrics)
        if former and group.metrics and former != group.metrics:
            raise UsageError(
                f"the baseline of {group.model_name} has other distances ({former}) than this one ({group.metrics})"
            )


def remarks(comparison: Comparison, baseline: Comparison) -> list[str]:
    """Differences from the baseline that do not prevent the comparison, one line each."""
    found = []
    theirs = {group.model_name: group for group in baseline.all_groups}
    for name, own in {group.model_name: group for group in comparison.all_groups}.items():
        if name not in theirs:
            found.append(f"{name} is not in the baseline")
            continue
        one, other = (each.facts.get("model", {}) for each in (own, theirs[name]))
        for key, what in (
            ("weights_sha256", "other weights"),
            ("revision", "another revision"),
            ("schedule", "another noise schedule"),
        ):
            if one.get(key) != other.get(key):
                found.append(f"{name} has {what} than in the baseline")
    return found


def _check(rule: Rule, cell: Cell, outcome: str, message: str) -> Check:
    return Check(str(rule), cell.model, cell.guidance_scale, cell.sampler, cell.budget, outcome, message)


def _absolute(rule: Rule, cell: Cell) -> Check:
    """A cell compared with a number."""
    value = cell.value(rule.metric)
    if value is None:
        return _check(rule, cell, "failed" if cell.problem else "skipped", _reason(rule, cell))
    text = f"{rule.metric} {value:.4g}"
    if not isfinite(value):
        return _check(rule, cell, "failed", text)
    return _judged(rule, cell, value, cell.draws(rule.metric), text)


def _relative(rule: Rule, cell: Cell, before: Cell | None) -> Check:
    """A cell compared with its cell in the baseline."""
    former = None if before is None else before.value(rule.metric)
    value = cell.value(rule.metric)
    if before is None:
        return _check(rule, cell, "skipped", "not in the baseline")
    if former is None:
        return _check(rule, cell, "skipped", f"the baseline has no {rule.metric} here")
    if value is None:
        return _check(rule, cell, "failed", _reason(rule, cell))
    text = f"{rule.metric} {value:.4g}, baseline {former:.4g}"
    if not isfinite(former):
        return _check(rule, cell, "skipped", text)
    if former < 0:
        raise UsageError(
            f"rule {str(rule)!r} is a multiple of the baseline, which has the negative {rule.metric} {former:.4g} at "
            f"{cell.sampler}; multiples of it have no order, so use a rule with a number"
        )
    if not isfinite(value):
        return _check(rule, cell, "failed", text)
    if former == 0:
        changed = value != former
        return _check(rule, cell, "failed" if changed and COMPARE[rule.operation](value, 0.0) else "passed", text)
    own, theirs = cell.draws(rule.metric), before.draws(rule.metric)
    quotients = None
    if own is not None and theirs is not None and float(theirs.min()) > 0:
        quotients = own / theirs
    elif own is not None:
        quotients = own / former
    return _judged(rule, cell, value / former, quotients, f"{text} ({value / former:.3g}x)")


def _judged(rule: Rule, cell: Cell, value: float, draws: np.ndarray | None, text: str) -> Check:
    """Failed if the value and its whole interval fulfil the rule."""
    fulfilled = COMPARE[rule.operation]
    if not fulfilled(value, rule.number):
        return _check(rule, cell, "passed", text)
    if draws is None:
        return _check(rule, cell, "failed", text)
    low, high = interval(draws)
    near = low if rule.operation.startswith(">") else high
    unit = "x" if rule.relative else ""
    text += f", interval [{low:.3g}{unit}, {high:.3g}{unit}]"
    return _check(rule, cell, "failed" if fulfilled(near, rule.number) else "uncertain", text)


def _reason(rule: Rule, cell: Cell) -> str:
    """Why a cell has no value of a rule's metric."""
    return cell.problem or cell.scoring_problem or f"no {rule.metric}"


LISTED = 4
"""The largest number of settings that a folded line names."""


def folded(checks: Iterable[Check]) -> list[str]:
    """A line for each check that did not pass; one line for all with the same outcome for the same reason.

    So a baseline with more settings, budgets, models or guidance scales than a comparison, or fewer, takes one line.
    """
    groups: dict[tuple[str, str], list[Check]] = {}
    for check in checks:
        if check.outcome != "passed":
            groups.setdefault((check.outcome, check.message), []).append(check)
    return [str(same[0]) if len(same) == 1 else _folded(same) for same in groups.values()]


def _folded(checks: Sequence[Check]) -> str:
    """Checks with the same outcome and message in one line."""
    first, budgets = checks[0], dict[str, dict[int, None]]()
    several = len({(check.model, check.guidance_scale) for check in checks}) > 1
    for check in checks:
        scale = "" if check.guidance_scale == 1.0 else f", guidance {check.guidance_scale:g}"
        setting = f"{check.model}{scale}, {check.sampler}" if several else check.sampler
        budgets.setdefault(setting, {})[check.budget] = None
    listed = [f"{setting} at {', '.join(map(str, each))}" for setting, each in budgets.items()]
    if len(listed) > LISTED:
        more = len(listed) - LISTED
        listed = [*listed[:LISTED], f"and {more} more setting{'s' if more > 1 else ''}"]
    rules = ", ".join(dict.fromkeys(check.rule for check in checks))
    count = sum(map(len, budgets.values()))
    cells = f"{count} cell{'s' if count > 1 else ''}"
    return f"{first.outcome} {rules}: {cells}: {first.message}: {'; '.join(listed)}"


NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot contain, even escaped."""


def for_xml(text: str) -> str:
    """Printable text with every character that XML cannot contain written as its code."""
    return NOT_XML.sub(lambda match: f"\\u{ord(match[0]):04x}", printable(text))


def junit(checks: Sequence[Check], name: str = "sdesamplers compare") -> str:
    """The checks as JUnit XML: a test suite for each rule, a test case for each cell."""
    root = ElementTree.Element("testsuites", name=name)
    for rule in dict.fromkeys(check.rule for check in checks):
        own = [check for check in checks if check.rule == rule]
        counts = {key: sum(check.outcome == value for check in own) for key, value in
                  (("failures", "failed"), ("skipped", "skipped"))}  # fmt: skip
        suite = ElementTree.SubElement(root, "testsuite", {"name": rule, "tests": str(len(own)), "errors": "0"})
        for key, count in counts.items():
            suite.set(key, str(count))
        for check in own:
            scale = "" if check.guidance_scale == 1.0 else f", guidance {check.guidance_scale:g}"
            case = ElementTree.SubElement(
                suite,
                "testcase",
                classname=for_xml(f"{check.model}{scale}"),
                name=for_xml(f"{check.sampler}, {check.budget} evaluations"),
            )
            message = for_xml(check.message)
            if check.outcome == "failed":
                ElementTree.SubElement(case, "failure", message=message, type=rule)
            elif check.outcome == "skipped":
                ElementTree.SubElement(case, "skipped", message=message)
            else:
                ElementTree.SubElement(case, "system-out").text = f"{check.outcome}: {message}"
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
