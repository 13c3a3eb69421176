"""Reports for other programs: JUnit XML, which CI systems display, and badges for a README."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from ..io.files import write
from ..text import printable
from .explanations import explain
from .report import Report


def junit_xml(reports: Sequence[Report]) -> str:
    """Reports as JUnit XML: a test suite for each item, a test case for each check.

    A failure's message has what was measured and required; its text explains the check. Control characters, which XML
    cannot contain, are escaped.
    """
    root = ElementTree.Element("testsuites")
    for report in reports:
        counts = {verdict: sum(f.verdict == verdict for f in report) for verdict in ("fail", "skip")}
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=printable(f"{report.kind} {report.name}"),
            tests=str(len(report.findings)),
            failures=str(counts["fail"]),
            errors="0",
            skipped=str(counts["skip"]),
        )
        for finding in report:
            where = printable(f"sdesamplers.{report.kind}.{report.name}")
            case = ElementTree.SubElement(suite, "testcase", classname=where, name=finding.check)
            text = printable(f"measured {finding.measured}; required {finding.required}")
            if finding.verdict == "fail":
                failure = ElementTree.SubElement(case, "failure", message=text)
                failure.text = explain(report.kind, finding.check, raised=finding.raised)
            elif finding.verdict == "skip":
                ElementTree.SubElement(case, "skipped", message=text)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def write_junit(reports: Sequence[Report], file: str | Path) -> None:
    """Write reports as JUnit XML; an existing file is replaced.

    Raises:
        SdesamplersError: the file cannot be written.
    """
    write(Path(file), junit_xml(reports))


def verdict(reports: Sequence[Report]) -> tuple[str, bool]:
    """("31 checks passed", True) or ("2 of 31 checks failed", False). Checks that were not run are not counted."""
    made = [finding for report in reports for finding in report if finding.verdict != "skip"]
    failed = sum(finding.verdict == "fail" for finding in made)
    checks = f"{len(made)} check{'' if len(made) == 1 else 's'}"
    return (f"{failed} of {checks} failed" if failed else f"{checks} passed"), not failed


def badge_json(reports: Sequence[Report]) -> str:
    """A badge as shields.io's endpoint JSON."""
    message, good = verdict(reports)
    colour = "brightgreen" if good else "red"
    return json.dumps({"schemaVersion": 1, "label": LABEL, "message": message, "color": colour}, indent=2) + "\n"


LABEL = "sdesamplers"
WIDTH, PAD, HEIGHT = 6.6, 10, 20
"""Pixels of a letter, beside a text, and of a badge's height."""


def badge_svg(reports: Sequence[Report]) -> str:
    """A badge as SVG, in the flat style of README badges."""
    message, good = verdict(reports)
    left, right = (round(WIDTH * len(text) + PAD) for text in (LABEL, message))
    title = f"{LABEL}: {message}"
    svg = ElementTree.Element(
        "svg",
        {"xmlns": "http://www.w3.org/2000/svg", "width": str(left + right), "height": str(HEIGHT), "role": "img"},
        **{"aria-label": title},
    )
    ElementTree.SubElement(svg, "title").text = title
    for x, width, colour, text in ((0, left, "#555", LABEL), (left, right, "#2a7d2a" if good else "#c0392b", message)):
        box = {"x": str(x), "width": str(width), "height": str(HEIGHT), "fill": colour}
        ElementTree.SubElement(svg, "rect", box)
        place = {"x": str(x + width / 2), "y": "14", "fill": "#fff", "text-anchor": "middle", "font-size": "11"}
        family = {"font-family": "Verdana,DejaVu Sans,sans-serif", "textLength": str(width - PAD)}
        ElementTree.SubElement(svg, "text", {**place, **family}).text = text
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def write_badge(reports: Sequence[Report], file: str | Path) -> None:
    """Write a badge: SVG if the file's name ends in .svg, else shields.io's endpoint JSON.

    Raises:
        SdesamplersError: the file cannot be written.
    """
    text = badge_svg(reports) if Path(file).suffix.lower() == ".svg" else badge_json(reports)
    write(Path(file), text)
