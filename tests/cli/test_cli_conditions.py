"""Prompts and other conditions on the command line: several are several conditions, one a sample."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import sdesamplers as sds
from sdesamplers.cli import cli
from sdesamplers.cli.conditions import read_prompts
from sdesamplers.errors import UsageError

SHORT = ("--sampler", "euler", "--steps", "2", "--format", "safetensors", "--device", "cpu", "--quiet", "--json")


def call(*words: object) -> dict[str, Any]:
    done = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def refused(*words: object) -> str:
    """The sentence with which a command refuses its words."""
    try:
        done = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    except UsageError as error:
        return str(error)
    assert done.exit_code == 2, done.output
    return " ".join(done.output.split())


def samples_in(folder: Path) -> torch.Tensor:
    return torch.cat([load_file(file)["samples"] for file in sorted(folder.glob("samples*.safetensors"))])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("saved") / "sd"
    tiny.BUILDERS["stable-diffusion"]().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def two(folder: Path) -> torch.Tensor:
    """What the library makes of two prompts, one a sample."""
    model = sds.load(folder, device="cpu")
    return sds.sample(model, "euler", steps=2, num_samples=2, condition=["a cat", "b dog"]).samples


def test_several_prompts_are_one_a_sample(folder: Path, two: torch.Tensor, tmp_path: Path) -> None:
    call("sample", folder, "--prompt", "a cat", "--prompt", "b dog", *SHORT, "--out", tmp_path)
    torch.testing.assert_close(samples_in(tmp_path), two, rtol=1e-5, atol=1e-5)
    assert (two[0] - two[1]).abs().max() > 0.1
    facts = json.loads((tmp_path / "manifest.json").read_text())
    assert (facts["num_samples"], facts["condition"]) == (2, ["a cat", "b dog"])


def test_a_file_of_prompts_is_the_same_job(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa cat\r\nb dog\r\n\n".encode())
    out = tmp_path / "out"
    assert call("sample", folder, "--prompt", "a cat", "--prompt", "b dog", *SHORT, "--out", out)["made"] == 2
    assert call("sample", folder, "--prompts", file, *SHORT, "--out", out, "--resume")["made"] == 0
    file.write_text("a cat\nanother\n", encoding="utf-8")
    with pytest.raises(UsageError, match="condition"):
        call("sample", folder, "--prompts", file, *SHORT, "--out", out, "--resume")


def test_compare_takes_several(folder: Path, two: torch.Tensor, tmp_path: Path) -> None:
    words = ("--prompt", "a cat", "--prompt", "b dog", "--samplers", "euler", "--nfe", 2, "--reference-samples", 0)
    found = call("compare", folder, *words, "--device", "cpu", "--quiet", "--json", "--out", tmp_path)
    assert (found["num_samples"], found["arguments"]["condition"]) == (2, ["a cat", "b dog"])


def test_encode_takes_several(folder: Path, tmp_path: Path) -> None:
    x = 0.3 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "x.npy", x.numpy())
    words = ("--prompt", "a cat", "--prompt", "b dog", "--steps", 2, "--device", "cpu", "--json", "--out", tmp_path)
    call("encode", folder, tmp_path / "x.npy", *words)
    model = sds.load(folder, device="cpu")
    expected = sds.encode(model, x, "heun", steps=2, condition=["a cat", "b dog"]).samples
    torch.testing.assert_close(load_file(tmp_path / "latents.safetensors")["samples"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--prompt", "a", "--prompt", "b", "-n", "3"), "2 prompts for 3 samples"),
        (("--condition", "1", "--condition", "2", "-n", "3"), "2 conditions for 3 samples"),
        (("--prompt", "a", "--prompts", "x.txt"), "not both"),
        (("--prompt", "a", "--prompt", "b", "--condition", "1"), "not both"),
        (("--prompts", "absent.txt"), "not a regular file"),
        (("--negative-prompt", "a", "--negative-prompt", "b"), "given 2 times"),
        (("--condition", "a cat"), "pass text with --prompt"),
        (("--condition", "1,nan"), "neither"),
        (("--condition", "1_0"), "neither"),
        (("--condition", "absent.npy"), "not a readable .npy file"),
    ],
)
def test_contradictions_are_refused_before_anything_is_loaded(words: tuple[str, ...], part: str) -> None:
    assert part in refused("sample", "no-such-model", *SHORT, *words)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "the file is empty"),
        (b"a\n\nb\n", "line 2 is blank"),
        (b"  \na\n", "line 1 is blank"),
        (b"a\xff", "not UTF-8"),
    ],
)
def test_a_file_of_prompts_is_read_whole_or_refused(content: bytes, part: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(UsageError, match=part):
        read_prompts(str(tmp_path / "p.txt"))


def test_only_ends_of_lines_end_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("a\u2028b\x0bc\nd".encode())
    assert read_prompts(str(tmp_path / "p.txt")) == ["a\u2028b\x0bc", "d"]


NETWORK = """
import torch
import sdesamplers as sds

def build(device="cpu"):
    # The flow that carries noise to the condition: x0 = c exactly, whatever the noise.
    def flow(x, t, c):
        time = torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1)
        return (x - c.reshape(len(x), -1).expand_as(x)) / time
    return sds.FunctionModel(flow, sds.RectifiedFlow(), "flow", (2,), conditional=True)
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("--condition", "0.5,-1.25"), [[0.5, 0.5], [-1.25, -1.25]]),
        (("--condition", "0.5", "--condition", "2"), [[0.5, 0.5], [2.0, 2.0]]),
        (("--condition", "0.75", "-n", "3"), [[0.75, 0.75]] * 3),
        (("--condition", "rows.npy"), [[0.25, 3.0], [-2.0, 1.0]]),
    ],
)
def test_conditions_need_not_be_whole_numbers(
    given: tuple[str, ...], expected: list[list[float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK)
    np.save(tmp_path / "rows.npy", np.array([[0.25, 3.0], [-2.0, 1.0]]))
    call("sample", "net.py:build", *given, *SHORT, "--out", tmp_path / "out")
    torch.testing.assert_close(samples_in(tmp_path / "out"), torch.tensor(expected), rtol=1e-5, atol=1e-5)
