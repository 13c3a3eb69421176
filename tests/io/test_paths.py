"""Paths with `~`."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from sdesamplers.cli import cli
from sdesamplers.io.paths import expanded


def test_homes_are_replaced(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert expanded("~/models") == Path("/home/someone/models")
    assert expanded("a/~b") == Path("a/~b")


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "~nobody-of-this-name/model"],
        ["sample", "~nobody-of-this-name/model.py"],
        ["sample", "fashion-mnist", "--sampler", "~nobody-of-this-name/table.json"],
        ["sample", "fashion-mnist", "--recipe", "~nobody-of-this-name/recipe.yaml"],
        ["likelihood", "fashion-mnist", "~nobody-of-this-name/data.npy"],
        ["compare", "fashion-mnist", "--samplers", "~nobody-of-this-name/r.yaml"],
    ],
)
def test_the_home_of_an_unknown_user_is_a_missing_path(arguments, tmp_path, monkeypatch):
    """`Path.expanduser` raises a RuntimeError there, which nothing expects."""
    monkeypatch.chdir(tmp_path)
    outcome = CliRunner().invoke(cli, [*arguments, "--device", "cpu"], catch_exceptions=True)
    assert outcome.exit_code != 0
    assert not isinstance(outcome.exception, RuntimeError), outcome.exception
    assert "nobody-of-this-name" in str(outcome.exception) + outcome.output
