"""`sdesamplers check`: the conformance kit on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from ..errors import UsageError
from .conditions import Condition
from .group import cli
from .options import pairs
from .streams import say
from .tables import emit, show, styled, table

if TYPE_CHECKING:
    from rich.table import Table

    from ..testing.lookup import Target
    from ..testing.report import Report

KINDS = {"sampler": "sampler", "spacing": "spacing", "noise": "noise source", "process": "process", "model": "model"}
"""Kinds on the command line -> kinds of the conformance kit."""


@cli.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--kind", type=click.Choice(list(KINDS)), help="Kind of the items, for names that several kinds have.")
@click.option("--check", "checks", multiple=True, help="Run only this check; may be repeated.")
@click.option("--option", "-o", multiple=True, metavar="KEY=VALUE", help="Option of the item; may be repeated.")
@click.option("--condition", type=Condition(), help="Condition of a model: class labels or other numbers, or FILE.npy.")
@click.option("--explain", is_flag=True, help="Explain each failed check; without NAME, every check.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--junit", type=click.Path(), metavar="FILE", help="Write a JUnit XML report, for CI.")
@click.option("--badge", type=click.Path(), metavar="FILE", help="Write a badge: SVG, or shields.io's JSON.")
def check(
    names: tuple[str, ...],
    kind: str | None,
    checks: tuple[str, ...],
    option: tuple[str, ...],
    condition: Any,
    explain: bool,
    as_json: bool,
    junit: str | None,
    badge: str | None,
) -> None:
    """Check registered items; exit with code 1 if a check fails.

    NAME is a sampler, recipe, spacing, noise source, process or model, by any of its names; or an object in a Python
    file, which is run: process.py:MyVP.
    """
    from ..testing.lookup import find
    from ..testing.records import write_badge, write_junit

    if not names:
        if not explain:
            raise UsageError("name what to check: sdesamplers check NAME..., or --explain for a list of all checks")
        show_explanations(kind, checks, as_json)
        return
    for file in (junit, badge):
        if file is not None and not Path(file).absolute().parent.is_dir():
            raise UsageError(f"{file}: there is no folder {Path(file).absolute().parent}")
    targets = {name: find(name, KINDS[kind] if kind else None) for name in names}  # type: ignore[arg-type]
    reports = []
    for name, target in targets.items():
        reports.append(made := report_of(name, target, checks, option, condition))
        if not as_json:
            show(report_table(made))
            if explain:
                show_failures(made)
    if as_json:
        emit([explained(report) if explain else report.as_dict() for report in reports])
    if junit is not None:
        write_junit(reports, junit)
    if badge is not None:
        write_badge(reports, badge)
    if not all(report.passed for report in reports):
        raise click.exceptions.Exit(1)


def report_of(name: str, target: Target, checks: tuple[str, ...], option: tuple[str, ...], condition: Any) -> Report:
    """Run the kit on one item, with a status line."""
    from ..io.terminal import console
    from ..testing.kit import check_target

    options = options_of(name, target, option) if option else None
    with console(stderr=True).status(styled(f"checking {name}")) as status:
        return check_target(
            target,
            name,
            checks=checks or None,
            options=options,
            condition=condition,
            progress=lambda text: status.update(styled(f"checking {name}: {text}")),
        )


def options_of(name: str, target: Target, option: tuple[str, ...]) -> dict[str, Any]:
    """Parse the options of an item; UsageError if its kind has none."""
    from ..registry.plugin import Registered
    from ..registry.registry import default_registry

    registry, (kind, item) = default_registry(), target
    finders: dict[str, Callable[[str], Any]] = {
        "sampler": lambda each: registry.resolve(each).sampler,
        "spacing": lambda each: registry.grid(each)[0],
        "noise source": lambda each: registry.noise(each)[0],
    }
    spec: Any = finders[kind](item) if isinstance(item, str) else item
    if not isinstance(spec, Registered):
        raise UsageError(f"--option is for samplers, spacings and noise sources, and {name!r} is a {kind}")
    return pairs(option, spec.options, f"{kind} {spec.name!r}")


def report_table(report: Report) -> Table:
    """The table of a report."""
    made = table(f"Conformance of the {report.kind} {report.name}", "check", "measured", "required", "verdict")
    colours = {"pass": "green", "fail": "bold red", "skip": "dim"}
    for finding in report:
        colour = colours[finding.verdict]
        made.add_row(finding.check, finding.measured, finding.required, styled(finding.verdict, colour))
    return made


def show_failures(report: Report) -> None:
    """Print what each failed check means and where to look."""
    from ..testing.explanations import explanation

    if not report.failed:
        return
    made = table("What the failed checks mean", "check", "meaning", "where to look")
    for finding in report.failed:
        made.add_row(finding.check, *explanation(report.kind, finding.check, raised=finding.raised))
    show(made)
    say("All of them are described in docs/writing-samplers.md; frequent mistakes in docs/mistakes.md.")


def explained(report: Report) -> dict[str, Any]:
    """A report as plain data, with the explanation of each failed check."""
    from ..testing.explanations import explain

    data = report.as_dict()
    for finding, found in zip(data["findings"], report.findings, strict=True):
        if found.verdict == "fail":
            finding["explanation"] = explain(report.kind, found.check, raised=found.raised)
    return data


def show_explanations(kind: str | None, checks: tuple[str, ...], as_json: bool) -> None:
    """Print what every check is about, of one kind or of all."""
    from ..testing.explanations import EXPLANATIONS, Kind

    kinds = [each for each in get_args(Kind) if kind is None or each == KINDS[kind]]
    texts = {
        each: {name: text for name, text in EXPLANATIONS[each].items() if not checks or name in checks}
        for each in kinds
    }
    if checks and not any(texts.values()):
        raise UsageError(f"there is no check {checks[0]!r}; `sdesamplers check --explain` lists all")
    if as_json:
        emit({each: {name: text._asdict() for name, text in found.items()} for each, found in texts.items()})
        return
    for each, found in texts.items():
        if found:
            made = table(f"Checks of a {each}", "check", "what a failure means", "where to look")
            for name, text in found.items():
                made.add_row(name, *text)
            show(made)
