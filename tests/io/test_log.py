"""The logger, its verbosity, and the categories of warnings."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import sdesamplers as sds
from sdesamplers.checks import warn
from sdesamplers.io import log
from sdesamplers.io.terminal import console

CATEGORIES = (sds.AccuracyWarning, sds.ReproducibilityWarning, sds.ModelWarning, sds.OutputWarning)


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    """The logger as it was before."""
    level, handlers = log.logger.level, [*log.logger.handlers]
    yield
    log.logger.setLevel(level)
    log.logger.handlers = handlers


def as_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the root's handlers, which pytest adds when a test begins."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])


def run() -> None:
    sds.sample(sds.grid_mixture(sds.VP()), "euler", steps=3, num_samples=2, seed=5)


def test_runs_are_shown_from_info_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    as_a_program(monkeypatch)
    run()
    assert capsys.readouterr() == ("", "")
    sds.set_verbosity("info")
    assert sds.get_verbosity() == logging.INFO == 20
    run()
    assert capsys.readouterr().err == "sdesamplers: INFO: sample: 2 of mixture by euler, 3 evaluations, seed 5\n"
    sds.set_verbosity(logging.ERROR)
    run()
    assert capsys.readouterr().err == ""


def test_a_run_is_planned_only_for_a_message_that_is_shown() -> None:
    started = []

    @sds.sampler("counted", order=1)
    def counted(x: torch.Tensor, path: sds.Path) -> Any:
        """Euler's method, which counts its runs."""
        started.append(len(x))
        for now, then in path.steps:
            out = yield x, now
            x = out.step_to(then)
        return x

    for level, runs in (("warning", 1), ("info", 2)):
        started.clear()
        sds.set_verbosity(level)
        sds.sample(sds.grid_mixture(sds.VP()), counted, steps=3, num_samples=2)
        assert len(started) == runs


def test_messages_are_written_once_if_the_program_has_handlers(capsys: pytest.CaptureFixture[str]) -> None:
    received: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = received.append  # type: ignore[method-assign]
    logging.getLogger().handlers = [handler]
    sds.set_verbosity("INFO")
    sds.set_verbosity("info")
    run()
    assert [record.name for record in received] == ["sdesamplers"]
    assert capsys.readouterr().err == ""


def test_control_characters_of_names_are_escaped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_a_program(monkeypatch)
    sds.set_verbosity("info")
    log.logger.info("load: %s", "a\x1b[2Jb\nsdesamplers: forged")
    assert capsys.readouterr().err == "sdesamplers: INFO: load: a\\x1b[2Jb sdesamplers: forged\n"


def test_messages_go_above_a_live_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.progress import Progress

    as_a_program(monkeypatch)
    sds.set_verbosity("info")
    with Progress(console=console(stderr=True, force_terminal=True, width=80), transient=True) as progress:
        progress.add_task("bar", total=1)
        log.logger.info("message")
    text = capsys.readouterr().err
    assert "\n" in text.partition("sdesamplers: INFO: message")[2]  # a line of its own


@pytest.mark.parametrize("wrong", ["loud", True, None, 1.5])
def test_levels_that_do_not_exist(wrong: Any) -> None:
    with pytest.raises(sds.UsageError, match="verbosity"):
        sds.set_verbosity(wrong)


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_category_can_be_filtered(category: type[Warning]) -> None:
    assert issubclass(category, sds.SdesamplersWarning)
    assert issubclass(sds.SdesamplersWarning, UserWarning)
    assert category.__module__ == "sdesamplers"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", category=category)
        for each in CATEGORIES:
            warn("text", each)
    assert [one.category for one in caught] == [each for each in CATEGORIES if each is not category]


def test_the_library_uses_the_categories() -> None:
    model = sds.grid_mixture(sds.VP())
    noisy = sds.FunctionModel(lambda x, t: x + torch.randn_like(x), sds.VP(), "x0", (2,))
    with pytest.warns(sds.ReproducibilityWarning, match="global generator"):
        sds.sample(noisy, "euler", steps=2)
    with pytest.warns(sds.AccuracyWarning, match="hardly solves"):
        sds.log_likelihood(model, torch.zeros(1, *model.shape), "heun", steps=3)
