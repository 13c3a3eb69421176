"""Registry files and command lines that nobody vouches for: bounded, without duplicates, and numbers are numbers."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

import sdesamplers as sds
from sdesamplers.cli import main
from sdesamplers.errors import UsageError
from sdesamplers.registry.catalogue import load_catalogue, read
from sdesamplers.registry.options import Option

BOMB = "a: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"b{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 12)
)


def refused(tmp_path: Path, text: str | bytes, match: str) -> str:
    file = tmp_path / "registry.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    began = time.perf_counter()
    with pytest.raises(UsageError, match=match) as caught:
        read(file, allow_plugins=False)
    assert time.perf_counter() - began < 20
    message = str(caught.value)
    assert message.startswith(str(file))
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (BOMB, "more than 100000 nodes"),
        ("models: {a: &a {path: &b x}}\n" + "".join(f"k{k}: *a\n" for k in range(3)), "unknown key"),
        ("[" * 200_000, "nested more than 32 levels deep"),
        ("{a: " * 200_000, "nested more than 32 levels deep"),
        ("".join(" " * k + f"k{k}:\n" for k in range(500)), "nested more than 32 levels deep"),
        ("- " * 100_000, "nested more than 32 levels deep"),
        ("recipes: &a {b: *a}", r"the alias \*a has no anchor"),
        ("recipes: {b: *c}", "alias|not valid YAML"),
        ("x: [" + "a, " * 200_000 + "]", "more than 100000 nodes"),
        ("# " + "x" * (5 * 2**20), "larger than 4 MiB"),
        ("aliases: {a: heun}\nrecipes: {}\naliases: {b: euler}", ":3: duplicate key 'aliases', first in line 1"),
        ("aliases:\n  a: heun\n  b: euler\n  a: ddim", ":4: duplicate key 'a', first in line 2"),
        ("recipes: {x: {sampler: heun, steps: 3, sampler: ddim}}", ":1: duplicate key 'sampler'"),
        ("aliases: {[a, b]: heun}", "a key must be a name"),
        ("aliases: {x: !!python/object/apply:os.system [id]}", "not valid YAML"),
        ("aliases: {x: " + "9" * 5000 + "}", "too many digits"),
        ("aliases: {a: \x07}", "not valid YAML"),
        (b"aliases: {a: \xff\xfe}", "cannot be read"),
        ("\ufeff: [", "not valid YAML"),
        ("%YAML 9.9\n---\n%", "not valid YAML"),
        ("--- a\n--- b\n", "not valid YAML"),
    ],
    ids=range(21),
)
def test_hostile_registry_files(tmp_path: Path, text: str | bytes, match: str) -> None:
    refused(tmp_path, text, match)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_registry_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    for file in (tmp_path / "fifo.yaml", tmp_path, Path("/dev/zero")):
        with pytest.raises(UsageError, match="not a regular file"):
            read(file, allow_plugins=False)


def test_a_bomb_does_not_hang_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "registry.yaml").write_text(BOMB)
    with pytest.raises(SystemExit) as caught:
        main(["--registry", str(tmp_path / "registry.yaml"), "list"])
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_numbers_in_a_registry_file_are_numbers(tmp_path: Path) -> None:
    options = "{a: 010, b: 1e-3, c: 1:30, d: yes, e: 0x10, f: 2001-01-01, g: true, h: .inf, i: ~, j: -.5, k: 1_000}"
    (tmp_path / "registry.yaml").write_text(f"recipes: {{r: {{sampler: heun, options: {options}}}}}")
    found = read(tmp_path / "registry.yaml", allow_plugins=False).recipes["r"]["options"]
    expected = [10, 0.001, "1:30", "yes", "0x10", "2001-01-01", True, float("inf"), None, -0.5, "1_000"]
    assert list(found.values()) == expected
    assert [type(value) for value in found.values()] == [type(value) for value in expected]


@pytest.mark.parametrize("home", ["long", "file", "loop", "missing"])
def test_a_configuration_folder_that_cannot_be_read_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("")
    places = {
        "long": "/" + "x" * 5000,
        "file": tmp_path / "file",
        "loop": tmp_path / "loop",
        "missing": tmp_path / "no",
    }
    monkeypatch.setenv("XDG_CONFIG_HOME", str(places[home]))
    monkeypatch.delenv("SDESAMPLERS_REGISTRY", raising=False)
    if home == "long":
        with pytest.warns(UserWarning, match="registry.yaml is ignored"):
            assert "quality" in load_catalogue().recipes
    else:
        assert "quality" in load_catalogue().recipes


def test_so_is_one_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root may read everything, the refusal is made here."""
    (tmp_path / "sdesamplers").mkdir()
    (tmp_path / "sdesamplers" / "registry.yaml").write_text("aliases: {a: heun}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("SDESAMPLERS_REGISTRY", raising=False)
    assert load_catalogue().aliases["a"] == "heun"

    def forbidden(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    for name in ("is_file", "open"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, forbidden)
            with pytest.warns(UserWarning, match="ignored.*Permission denied"):
                assert "a" not in load_catalogue().aliases


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (float, "010", 10.0),
        (int, "010", 10),
        (float, "1e-3", 0.001),
        (float, "+.5", 0.5),
        (float, "7.", 7.0),
        (bool, "true", True),
        (bool, "False", False),
        (float | None, "none", None),
        (float | None, "null", None),
        (str, "010", "010"),
        (str, "1:30", "1:30"),
        (str, "true", "true"),
        (str, "yes", "yes"),
        (Literal["auto", 3], "3", 3),
        (Literal["auto", 3], "auto", "auto"),
        (Sequence[float], "[1, 010, .5]", [1, 10, 0.5]),
        (Sequence[float], "3,2,1", [3, 2, 1]),
        (Sequence[float], "[12.75,-0.5e1, 2., +4]", [12.75, -5.0, 2.0, 4]),
        (Sequence[Sequence[float]], "[[1,2],[3,+4]]", [[1, 2], [3, 4]]),
    ],
)
def test_words_of_the_command_line(kind: Any, text: str, value: Any) -> None:
    found = Option("k", kind, value).parse(text, "it")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *(
            (float, text)
            for text in ("1:30", "0x10", "1_000", "", "1,5", "yes", "1e400", "nan", "٣", "9" * 5000, "1 2")
        ),
        *((int, text) for text in ("1.5", "1e3", "true", "0b1")),
        *((bool, text) for text in ("1", "yes", "on", "y")),
        (Sequence[float], "[" * 100_000),
        *(
            (Sequence[float], f"[1, {text}]")
            for text in ("true", "3+4", "3-4", "1.2.3", "1_0", "0x1", "1 2", "1:30", "")
        ),
        (Literal["auto", 3], "4"),
    ],
)
def test_words_that_are_no_values(kind: Any, text: str) -> None:
    with pytest.raises(UsageError, match=r"option 'k' must be"):
        Option("k", kind, None).parse(text, "it")


RHO = ("--spacing", "karras", "--spacing-option")


@pytest.mark.parametrize("word", ["1:30", "0x7", "7_0", "yes"])
def test_a_spacings_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str) -> None:
    words = ["sample", "fashion-mnist", "--sampler", "euler", "--steps", "2", "-n", "1", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as caught:
        main([*words, *RHO, f"rho={word}"])
    assert caught.value.code == 2
    assert "rho" in capsys.readouterr().err


HUGE = ("0", "-1", "100000000000000000000", "1" * 4000, "9" * 5000, "nan", "inf", "1e3", "", "x")
COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "sample": (
        ["sample", "fashion-mnist", "--sampler", "euler"],
        ["--steps", "--nfe", "--num-samples", "--first-index", "--batch-size", "--shard-size", "--size", "--seed"],
    ),
    "compare": (
        ["compare", "fashion-mnist"],
        ["--nfe", "--num-samples", "--batch-size", "--reference-samples", "--size"],
    ),
    "likelihood": (
        ["likelihood", "fashion-mnist", "fashion-mnist-test", "--sampler", "euler"],
        ["--steps", "--nfe", "--limit", "--batch-size", "--probes", "--levels", "--seed"],
    ),
    "encode": (["encode", "fashion-mnist", "fashion-mnist-test"], ["--steps", "--nfe", "--limit", "--batch-size"]),
    "statistics": (["statistics", "fashion-mnist"], ["--samples", "--nodes", "--batch-size", "--seed"]),
}
FREE = {"--seed": {"0"}, "--first-index": {"0"}, "--levels": {"0"}, "--reference-samples": {"0"}}
"""What is a good number for some."""


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_absurd_numbers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    """Each by one line and exit code 2, before anything is made."""
    words, options = COMMANDS[command]
    for option in options:
        for number in HUGE:
            if number in FREE.get(option, ()):
                continue
            plain = [] if option in ("--steps", "--nfe") or command in ("compare", "statistics") else ["--steps", "2"]
            with pytest.raises(SystemExit) as caught:
                main([*words, *plain, option, number, "--out", str(tmp_path / "out")])
            said = capsys.readouterr().err
            assert caught.value.code == 2, (option, number[:30], said[:300])
            assert len(said.splitlines()) == 1
            assert "bug" not in said
            assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--steps", "--num-samples", "--first-index", "--batch-size", "--shard-size"])
def test_a_number_too_large_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    plain = [] if option == "--steps" else ["--steps", "2"]
    with pytest.raises(SystemExit) as caught:
        main([*COMMANDS["sample"][0], *plain, option, "1" * 40, "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert caught.value.code == 2, said
    assert "must be a whole number from" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("word", ["steps", "nfe", "num_samples", "first_index", "batch_size"])
@pytest.mark.parametrize("number", [10**20, -1, 2.5, "3", None.__class__])
def test_absurd_numbers_in_python(word: str, number: Any) -> None:
    words = {"steps": 2, word: number}
    if word == "nfe":
        del words["steps"]
    with pytest.raises(UsageError, match=word):
        sds.sample(sds.grid_mixture(sds.VP()), "euler", **words)


def test_too_little_memory_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from sdesamplers.cli import doctor as diagnosis

    def starved() -> Any:
        import torch

        return torch.empty(2**60)

    monkeypatch.setattr(diagnosis, "diagnose", starved)
    with pytest.raises(SystemExit) as caught:
        main(["doctor"])
    assert caught.value.code == 1
    assert "error: out of memory; reduce --batch-size" in capsys.readouterr().err
