"""A conformance report, printed and in notebooks."""

from __future__ import annotations

import sdesamplers as sds
from sdesamplers.testing import Finding, Report, check_sampler, check_spacing

REPORT = Report(
    "my-heun",
    (
        Finding("evaluations", "2 per step", "2 per step", "pass"),
        Finding("ODE order", "vp 1.00,\nflow 1.00", "2 +- 0.2", "fail"),
        Finding("strong order", "-", "does not apply", "skip"),
        Finding("tolerance", "not run", "-", "skip"),
    ),
)


def test_each_check_is_a_line_with_verdict_and_reason_and_a_failure_has_where_to_look() -> None:
    lines = str(REPORT).splitlines()
    assert lines[0] == "sampler 'my-heun': 1 passed, 1 failed, 2 skipped (failed: ODE order)"
    assert lines[1:3] == [
        "  passed   evaluations   2 per step; required: 2 per step",
        "  failed   ODE order     vp 1.00, flow 1.00; required: 2 +- 0.2",
    ]
    assert lines[3].strip().startswith("look: If it is lower, compare coefficients with the paper")
    assert lines[-2:] == ["  skipped  strong order  does not apply", "  skipped  tolerance     not run"]
    assert max(map(len, lines)) <= 110


def test_the_repr_is_one_line() -> None:
    assert repr(REPORT) == "<Report on sampler 'my-heun': 1 passed, 1 failed, 2 skipped (failed: ODE order)>"
    assert repr(Report("x", (), "model")) == "<Report on model 'x': no checks>"


def test_a_notebook_shows_a_table_in_which_names_and_messages_are_escaped() -> None:
    hostile = Report("<img src=x>", (Finding("size", "<script>", "&", "fail"),), "spacing")
    html = hostile._repr_html_()
    assert "<img" not in html
    assert "<script" not in html
    assert "&lt;script&gt;; required: &amp;" in html
    assert "Return `count` values" in html


def test_control_characters_of_a_plugin_do_not_reach_the_terminal() -> None:
    text = str(Report("a\x1b[2J", (Finding("size", "\x1b[2J", "", "fail"),), "spacing"))
    assert "\x1b" not in text


def test_reports_of_all_kinds_are_printed() -> None:
    assert str(check_spacing("karras", checks=["size"])).startswith("spacing 'karras': 1 passed\n  passed   size  ")
    broken = sds.sampler("broken", order=1, reference="none")(_broken)
    lines = str(check_sampler(broken, checks=["finite", "edits"])).splitlines()
    assert "ZeroDivisionError" in lines[1]
    assert lines[-1] == "  skipped  edits   not run"


def _broken(x, path):  # type: ignore[no-untyped-def]
    """Divides by zero."""
    yield x, path.points[0]
    return x / (1 // 0)
