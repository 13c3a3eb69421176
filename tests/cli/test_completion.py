"""Shell completion: what each place on the command line offers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from sdesamplers.cli import cli


def offered(*words: str) -> list[str]:
    """The completions of the last word; "file:" before a word whose completions are files."""
    found = BashComplete(cli, {}, "sdesamplers", "_SDESAMPLERS_COMPLETE").get_completions([*words[:-1]], words[-1])
    return [item.value if item.type == "plain" else f"{item.type}:{item.value}" for item in found]


def test_names() -> None:
    assert offered("li") == ["likelihood", "list"]
    assert offered("sample", "fash") == ["fashion-mnist", "fashion-mnist-labels"]
    assert offered("sample", "./fash") == ["file:./fash"]
    assert offered("compare", "fash") == offered("compare", "m", "fash") == ["fashion-mnist", "fashion-mnist-labels"]
    assert {"dpmpp-2m", "dpmpp-2m-sde"} <= set(offered("sample", "m", "--sampler", "dpmpp-2m"))
    assert "quality" in offered("sample", "m", "--sampler", "q")
    assert offered("sample", "m", "--spacing", "karr") == ["karras"]
    assert offered("sample", "m", "--noise", "bro") == ["brownian"]
    assert offered("sample", "m", "--coordinates", "") == ["native", "ve", "flow", "angle"]
    assert "heun,ddim" in offered("compare", "m", "--samplers", "heun,ddi")
    assert "heun" in offered("info", "heu")
    assert offered("list", "--family", "exponen") == ["exponential"]
    assert "--spacing-option" in offered("sample", "m", "--sp")
    assert all(" " not in name for name in offered("info", ""))


def test_options_of_the_chosen_sampler() -> None:
    assert offered("sample", "m", "--sampler", "ddim", "-o", "") == ["eta="]
    assert offered("sample", "m", "--sampler", "odeint", "-o", "method=rk") == ["method=rk4"]
    assert offered("sample", "m", "--spacing", "karras", "--spacing-option", "r") == ["rho="]
    assert offered("sample", "m", "--sampler", "ddim", "-o", "no=") == []


def test_nothing_is_offered_or_said_where_nothing_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert offered("sample", "m", "--sampler", "no-such-one", "-o", "") == []
    assert offered("smaple", "x", "--sam") == []
    assert offered("--registry", "none.yaml", "info", "h") == []
    assert capsys.readouterr() == ("", "")


def test_completion_imports_no_plugin(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert "heun" in offered("--plugin", str(file), "info", "heu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts(shell: str) -> None:
    text = CliRunner().invoke(cli, ["completion", shell]).stdout
    assert f"_SDESAMPLERS_COMPLETE={shell}_complete" in text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_itself_completes(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("sdesamplers")
    if not command.exists():
        pytest.skip("the command is not installed beside the interpreter")
    script = f"""
source <({command} completion bash)
COMP_WORDS=({command} info kar); COMP_CWORD=2; _sdesamplers_completion {command}
echo "${{COMPREPLY[@]}}"
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.split() == ["karras"], done.stderr
