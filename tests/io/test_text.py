"""What files, plugins and models say is text; and standard output may be closed, full, or ASCII."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdesamplers.cli import main
from sdesamplers.registry.registry import use_registry
from sdesamplers.text import one_line, printable

EVIL = "see [1], [bold]x[/bold] [/nope] :warning: \x1b[31mred\x1b]0;title\x07 \u202eback"
SEEN = "see [1], [bold]x[/bold] [/nope] :warning: \\x1b[31mred\\x1b]0;title\\x07 \\u202eback"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain é ± 日本 🙂", "plain é ± 日本 🙂"),
        (EVIL, SEEN),
        ("a\r\x08b\x00\x9b", "a\\r\\x08b\\x00\\x9b"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        ("\ud800\u2028", "\\ud800\\u2028"),
        (ValueError("x\x1b"), "x\\x1b"),
    ],
)
def test_printable(text: object, seen: str) -> None:
    assert printable(text) == seen
    seen.encode("utf-8")


def test_one_line() -> None:
    assert one_line("a\n\t b\x1b") == "a b\\x1b"
    assert printable("a\n\tb") == "a\n\tb"


PLUGIN = """
from sdesamplers import hookimpl, sampler
EVIL = {evil!r}

def evil(x, path, *, word: str = EVIL):
    for now, then in path.steps:
        out = yield x, now
        x = out.step_to(then)
    raise ValueError(EVIL)

evil.__doc__ = EVIL + "\\n\\n" + EVIL
evil = sampler("evil", order=1, reference=EVIL, limits=EVIL)(evil)

@hookimpl
def sdesamplers_samplers():
    return [evil]
"""


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A registry file and plugins, one of them broken, that say what a terminal would obey."""
    (tmp_path / "evil_plugin.py").write_text(PLUGIN.format(evil=EVIL), encoding="utf-8")
    (tmp_path / "evil_broken.py").write_text(f"raise RuntimeError({EVIL!r})", encoding="utf-8")
    text = json.dumps(EVIL)
    (tmp_path / "registry.yaml").write_text(
        f"models: {{{text}: {{path: {text}, description: {text}}}}}\n"
        f"recipes: {{{text}: {{sampler: euler, description: {text}}}}}\n"
        "plugins: [evil_plugin, evil_broken]\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("COLUMNS", "2000")
    yield ["--registry", str(tmp_path / "registry.yaml")]
    use_registry(None)
    for name in ("evil_plugin", "evil_broken"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["list"], 0),
        (["models"], 0),
        (["info", "evil"], 0),
        (["info", EVIL], 0),
        (["doctor"], 1),
        (["check", "evil", "--check", "ODE order"], 1),
        (["sample", "fashion-mnist", "--sampler", "evil", "--steps", "1", "-n", "1"], 1),
        (["info", "no-such" + EVIL], 2),
        (["list", EVIL + "x"], 2),
        (["--plugin", EVIL, "list"], 1),
        ([EVIL], 2),
        (["sample", EVIL + "?", "--steps", "1"], 2),
        (["sample", "fashion-mnist", "--steps", EVIL], 2),
        (["sample", "fashion-mnist", "--steps", "1", "--spacing-option", EVIL], 2),
    ],
    ids=lambda value: " ".join(value)[:20] if isinstance(value, list) else str(value),
)
def test_nothing_that_a_plugin_or_a_file_says_is_obeyed(
    evil: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], code: int
) -> None:
    if words[0] == "sample":
        words = [*words, "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as caught:
        main([*evil, *words])
    written = capfd.readouterr()
    said = written.out + written.err
    assert caught.value.code == code, said
    assert not {"\x1b", "\x07", "\u202e"} & set(said)
    if code == 0:
        assert SEEN in said
    if code == 2:  # one line, and one about broken plugins, if names of theirs may be meant
        lines = written.err.splitlines()
        assert len([line for line in lines if line != "broken plugins: evil_broken; see sdesamplers doctor"]) == 1


def run(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A shell command in which $S is the command line."""
    kept = {k: v for k, v in os.environ.items() if k not in ("LANG", "LC_ALL", "LC_CTYPE", "PYTHONIOENCODING")}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command.replace("$S", f"{sys.executable} -m sdesamplers")],
        env={**kept, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
COMMANDS = ("list", "list --json", "models", "info heun", "info dpm-solver-v3", "--help", "compare --help", "doctor")
SAMPLE = "sample fashion-mnist --steps 1 -n 1 --quiet --out "


def complaint(done: subprocess.CompletedProcess[str], code: int, lines: int) -> None:
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == lines, done.stderr
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr


@pytest.mark.parametrize(("kind", "codes"), [("full", {1}), ("closed", {0}), ("left", {0, 1})])
def test_standard_output_of_this_process_that_is_full_closed_or_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, codes: set[int]
) -> None:
    if kind == "full" and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as left, open("/dev/full" if kind == "full" else os.devnull, "w") as full:
        monkeypatch.setattr(sys, "stdout", {"full": full, "closed": None, "left": left}[kind])
        with pytest.raises(SystemExit) as caught:
            main(["list"])
        monkeypatch.undo()
    assert int(caught.value.code or 0) in codes
    told = ["error: standard output could not be written: No space left on device"] if kind == "full" else []
    assert capsys.readouterr().err.splitlines() == told


def test_standard_output_in_ascii(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "registry.yaml"
    file.write_text("recipes: {mine: {sampler: euler, description: caf\u00e9}}\n", encoding="utf-8")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setenv("COLUMNS", "2000")
    try:
        with pytest.raises(SystemExit) as caught:
            main(["--registry", str(file), "list"])
    finally:
        use_registry(None)
    assert not caught.value.code
    assert b"caf\\xe9" in written.getvalue()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("command", ["list", "rest"])
def test_standard_output_that_is_full_closed_or_left(command: str, tmp_path: Path) -> None:
    for each in COMMANDS[1:] if command == "rest" else [command]:
        done = run(f"$S {each} >/dev/full")
        complaint(done, 1, 1)
        assert "standard output could not be written: No space left on device" in done.stderr
        complaint(run(f"$S {each} >&-"), 0, 0)
        done = run(f"$S {each} | head -c 10 >/dev/null")
        assert done.returncode in (0, 1)
        assert not done.stderr
        complaint(run(f"$S {each} >/dev/null 2>&-"), 0, 0)
    if command == "rest":
        for sink, code in ((">/dev/full", 1), (">&-", 0), ("2>/dev/full", 0)):
            folder = tmp_path / str(len(list(tmp_path.iterdir())))
            assert run(f"$S {SAMPLE} {folder} {sink}").returncode == code
            assert (folder / "grid.png").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("command", ["info dpm-solver-v3", "rest"])
def test_ascii_locales(command: str) -> None:
    for each in COMMANDS if command == "rest" else [command]:
        for environment in (ASCII, {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}):
            done = run(f"$S {each}", **environment)
            complaint(done, 0, 0)
            assert len(done.stdout) > 50
    done = run("$S info $'gr\\u00fc\\xdf\\x1b'", **ASCII)
    complaint(done, 2, 1)
    assert "\x1b" not in done.stderr
