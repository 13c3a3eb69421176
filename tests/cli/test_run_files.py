"""Run files: where their relative paths lead, and errors that are found only when the run starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from click.testing import CliRunner

import sdesamplers as sds
from sdesamplers.cli import cli
from sdesamplers.errors import SdesamplersError, UsageError
from sdesamplers.io.datasets import read_data

NETWORK = "import sdesamplers as sds\n\n\ndef build(**options):\n    return sds.grid_mixture(sds.VP())\n"


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working folder with a folder `sub` of files."""
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    Path("sub/net.py").write_text(NETWORK)
    sds.Recipe("ddim", steps=3).save("sub/mine.yaml")
    return tmp_path


def run(*arguments: str) -> Any:
    done = CliRunner().invoke(cli, ["run", *arguments, "--json", "--quiet"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def dump(text: str) -> dict[str, Any]:
    Path("sub/run.yaml").write_text(text)
    done = CliRunner().invoke(cli, ["run", "sub/run.yaml", "--dump-config"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = sds.registry.plain_yaml.parse(done.stdout, "dump")
    return found


def refusal(*arguments: str) -> str:
    with pytest.raises(SdesamplersError) as caught:
        cli.main(args=[*arguments], standalone_mode=False)
    return str(caught.value)


def test_inputs_are_beside_the_file_and_outputs_in_the_present_folder(place: Path) -> None:
    Path("sub/run.yaml").write_text("model: net.py:build\nrecipe: mine.yaml\nnum_samples: 4\nout: here\n")
    facts = run("sub/run.yaml")
    assert facts["recipe"]["steps"] == 3
    assert facts["files"] == ["here/samples.safetensors", "here/manifest.json"]  # vectors, without --format
    assert (place / "here" / "samples.safetensors").is_file()


def test_every_input_of_the_commands(place: Path) -> None:
    Path("sub/checkpoint").mkdir()
    data = dump(
        "command: compare\nmodels: [checkpoint, fashion-mnist, some/model]\nsamplers: 'heun,mine.yaml,none.yaml'\n"
        "nfe: 5\nbaseline: b\nmetrics: m\nreference: /r\njunit: j.xml\ncache_dir: c\n"
    )
    assert data["models"] == ["sub/checkpoint", "fashion-mnist", "some/model"]
    assert data["samplers"] in ("heun,sub/mine.yaml,none.yaml", ["heun,sub/mine.yaml,none.yaml"])
    assert (data["baseline"], data["metrics"], data["reference"]) == ("sub/b", "sub/m", "/r")
    assert (data["junit"], data["cache_dir"]) == ("j.xml", "c")
    Path("sub/mine, too").mkdir()  # no sampler's name has this option, and no list of several
    for given, found in {"mine, too": "sub/mine, too", "tuned": "tuned", "hf://me/tables": "hf://me/tables"}.items():
        assert dump(f"command: tune\nmodel: m\nwarm_start: '{given}'\n")["warm_start"] == found
    Path("sub/stats.safetensors").write_bytes(b"")
    options = "options: {statistics: stats.safetensors, order: 2}\n"
    assert dump("model: m\nsampler: dpm-solver-v3\n" + options)["options"]["statistics"] == "sub/stats.safetensors"


MISTAKES = {
    "sampler: dimm\nsteps: 3": "run.yaml:1: sampler: unknown sampler 'dimm'; did you mean 'ddim'",
    "steps: 3\nsampler: 'ddim '": "run.yaml:2: sampler: unknown sampler 'ddim '; did you mean 'ddim'",
    "sampler: ddim\nsteps: 0": "run.yaml:2: steps must be a whole number of 1 or more",
    "sampler: ddim\nsteps: 3\noptions:\n  et: 1": "run.yaml:4: options.et: sampler 'ddim' has no option 'et'; did",
    "steps: 3\nsampler: ddim\noptions: {eta: big}": "run.yaml:3: options.eta: sampler 'ddim': option 'eta' must",
    "steps: 3\nspacing: karas": "run.yaml:2: spacing: unknown spacing 'karas'; did you mean 'karras'",
    "steps: 3\nspacing: karras\nspacing_options: {roh: 1}": "run.yaml:3: spacing_options.roh: ",
    "steps: 3\nnoise: brownain": "run.yaml:2: noise: unknown noise source",
    "steps: 3\nsigmas: [3, 0]": "run.yaml:2: sigmas: contradicts steps",
    "sampler: ./none.yaml": "run.yaml:1: sampler: none.yaml: cannot be read",
    "sampler:\nsteps: 3": "run.yaml:1: sampler: has no value",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_that_a_run_finds_have_their_line(text: str) -> None:
    Path("run.yaml").write_text(f"{text}\nmodel: fashion-mnist\n")
    assert MISTAKES[text] in refusal("run", "run.yaml")
    if "no value" not in MISTAKES[text]:  # --config too, of another command
        Path("run.yaml").write_text(f"{text}\n")
        assert MISTAKES[text] in refusal("sample", "fashion-mnist", "--config", "run.yaml")


@pytest.mark.parametrize("text", ["spacing: null\nnoise: ~\n", '{"spacing": null, "noise": null}'])
def test_null_is_the_default(text: str) -> None:
    Path("run.yaml").write_text(text)
    arguments = ["sample", "fashion-mnist", "--nfe", "2", "--config", "run.yaml", "--dump-config"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "spacing" not in done.stdout


def test_a_missing_model_and_an_unknown_one() -> None:
    Path("run.yaml").write_text("sampler: ddim\nsteps: 3\n")
    message = refusal("run", "run.yaml")
    assert message.startswith("run.yaml: model is missing: add a line such as `model: fashion-mnist`")
    assert "sdesamplers run run.yaml MODEL" in message
    assert run("run.yaml", "fashion-mnist", "-n", "1")["recipe"]["steps"] == 3
    Path("run.yaml").write_text("steps: 3\nmodel: fashin-mnist\n")
    assert "run.yaml:2: model: unknown model 'fashin-mnist'; did you mean 'fashion-mnist'" in refusal("run", "run.yaml")
    Path("run.yaml").write_text("command: compare\nsamplers: [heun]\nnfe: 3\n")
    assert "run.yaml: models is missing" in refusal("run", "run.yaml")


@pytest.mark.parametrize("content", [b"", b"\0", b"\xff\xfe", b"- a", b"5", b"a: *b", b"\ta: 1", b"[" * 999, b"{a: 1"])
def test_files_that_are_no_mapping(content: bytes) -> None:
    Path("run.yaml").write_bytes(content)
    for arguments in (["run", "run.yaml"], ["likelihood", "m", "d", "--config", "run.yaml"]):
        with pytest.raises(UsageError) as caught:
            cli.main(args=arguments, standalone_mode=False)
        assert str(caught.value).startswith("run.yaml:")


def test_the_likelihood_of_what_sample_wrote() -> None:
    """The densities of a folder's samples are those of its tensors, in the order of the samples."""
    sample = ["sample", "sub/net.py:build", "--steps", "9", "--sampler", "heun", "-n", "6", "--quiet", "--out"]
    done = CliRunner().invoke(cli, [*sample, "job", "--shard-size", "2", "--batch-size", "2"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert len(list(Path("job").glob("samples-*.safetensors"))) == 3
    CliRunner().invoke(cli, [*sample, "whole"], catch_exceptions=False)
    found = []
    for data in ("job", "whole/samples.safetensors"):
        options = ["--sampler", "heun", "--steps", "9", "--divergence", "exact", "--out", "lik"]
        done = CliRunner().invoke(cli, ["likelihood", "sub/net.py:build", data, *options], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        found.append(Path("lik/likelihood.csv").read_text())
    assert found[0] == found[1]
    Path("job/manifest.json").write_text("{}")
    assert "job/manifest.json is not the manifest of samples" in refusal("likelihood", "sub/net.py:build", "job")


def test_the_likelihood_of_pictures_that_sample_wrote() -> None:
    for kind in ("png", "grid"):
        done = CliRunner().invoke(
            cli, ["sample", "fashion-mnist", "--nfe", "3", "-n", "2", "--format", kind, "--out", kind, "--quiet"]
        )
        assert done.exit_code == 0, done.output
    likelihood = ["likelihood", "fashion-mnist", "--sampler", "heun", "--steps", "2", "--out", "lik", "--quiet"]
    assert CliRunner().invoke(cli, [*likelihood, "png"]).exit_code == 0
    assert len(Path("lik/likelihood.csv").read_text().splitlines()) == 3
    assert "holds its samples as grid" in refusal(*likelihood, "grid")


@pytest.mark.parametrize("content", ['{"name": "a web page", "icons": []}', "[]"])
def test_a_manifest_of_another_program_in_a_folder_of_pictures(content: str) -> None:
    Path("web").mkdir()
    for k in range(2):
        PIL.Image.new("L", (28, 28), 100 * k).save(f"web/icon{k}.png")
    Path("web/manifest.json").write_text(content)
    data, names = read_data("web", sds.load("fashion-mnist"))
    assert names == ["icon0.png", "icon1.png"]
    assert data[:, 0, 0, 0].tolist() == pytest.approx([-1, 200 / 255 - 1])


def test_size_is_named_to_those_who_look_for_height() -> None:
    with pytest.raises(Exception, match=r"--height") as caught:
        cli.main(args=["sample", "fashion-mnist", "--height", "32"], standalone_mode=False)
    assert "it is --size here" in sds.cli.with_option_of_samplers(caught.value)
