"""--config, --dump-config and `run`: what a file sets, what is typed over it, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import sdesamplers as sds
from sdesamplers.cli import cli
from sdesamplers.cli.config import Configured
from sdesamplers.errors import UsageError

ALL = sorted(name for name, command in cli.commands.items() if isinstance(command, Configured))


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dump(*arguments: str) -> dict[str, Any]:
    """What --dump-config prints for arguments."""
    done = CliRunner().invoke(cli, [*arguments, "--dump-config"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    data = yaml.safe_load(done.stdout)  # YAML 1.1, which must have the same values as our 1.2
    assert isinstance(data, dict)
    return data


def write(text: str, name: str = "file.yaml") -> str:
    """A file in the working folder."""
    Path(name).write_text(text, encoding="utf-8")
    return name


def refusal(*arguments: str) -> str:
    """The message with which a command is refused."""
    with pytest.raises(UsageError) as caught:
        cli.main(args=[*arguments], standalone_mode=False)
    return str(caught.value)


def test_the_commands_with_configurations() -> None:
    assert ALL == ["compare", "encode", "likelihood", "sample", "statistics", "tune"]


def test_a_dump_has_what_was_typed_and_the_defaults() -> None:
    typed = ["--sampler", "ddim", "-o", "eta=0.5", "--nfe", "7", "--no-clip", "--sigmas", "3,1,0", "--prompt", "1e3"]
    data = dump("sample", "some/model", *typed)
    assert data["command"] == "sample"
    assert data["model"] == "some/model"
    assert (data["sampler"], data["options"], data["nfe"]) == ("ddim", {"eta": 0.5}, 7)
    assert data["no_clip"] is True
    assert data["sigmas"] == "3,1,0"
    assert data["prompt"] == ["1e3"]
    assert (data["num_samples"], data["seed"], data["out"]) == (16, 0, "out")
    assert "steps" not in data


@pytest.mark.parametrize("command", ALL)
def test_a_dump_is_a_configuration_with_the_same_dump(command: str) -> None:
    positional = ["some/model", "data"] if command in ("encode", "likelihood") else ["some/model"]
    text = CliRunner().invoke(cli, [command, *positional, "--dump-config"], catch_exceptions=False).stdout
    file = write(text)
    assert CliRunner().invoke(cli, ["run", file, "--dump-config"], catch_exceptions=False).stdout == text
    assert CliRunner().invoke(cli, [command, "--config", file, "--dump-config"]).stdout == text


def test_a_command_with_several_models_has_a_list_of_them() -> None:
    file = write("command: compare\nmodels: [one, two]\nsamplers: [heun]")
    assert dump("run", file)["models"] == ["one", "two"]
    assert dump("compare", "three", "--config", file)["models"] == ["three"]
    assert dump("run", write("command: compare\nmodels: one"))["models"] == ["one"]


def test_a_flag_that_was_turned_off_stays_off() -> None:
    write(yaml.safe_dump(dump("likelihood", "m", "d", "--no-dequantize")))
    assert dump("run", "file.yaml")["dequantize"] is False


def test_several_prompts_set_the_number_of_samples() -> None:
    assert dump("sample", "m", "--prompt", "a", "--prompt", "b")["num_samples"] == 2


def test_secrets_are_neither_written_nor_read() -> None:
    data = dump("sample", "m", "--token", "hf_secret", "--allow-pickle")
    assert "hf_secret" not in str(data)
    assert not {"token", "allow_pickle"} & set(data)
    for key in ("token: x", "allow-pickle: true", "allow_pickle: true"):
        assert f"file.yaml:1: {key.partition(':')[0]}: must be typed" in refusal("run", write(key))


FILE = "model: m\nsampler: ddim\noptions: {eta: 0.5}\nspacing: karras\nspacing_options: {rho: 5}\nsteps: 20\nseed: 3\n"


@pytest.mark.parametrize(
    ("typed", "changed", "gone"),
    [
        (["--seed", "4"], {"seed": 4}, ()),
        (["--nfe", "9"], {"nfe": 9}, ("steps",)),
        (["--sigmas", "9,1"], {"sigmas": "9,1"}, ("steps",)),
        (["--sampler", "heun"], {"sampler": "heun"}, ("options",)),
        (["--recipe", "r.json"], {"recipe": "r.json"}, ("options", "sampler")),
        (["--spacing", "trailing"], {"spacing": "trailing"}, ("spacing_options",)),
        (["-o", "eta=1"], {"options": {"eta": 1}}, ()),
        (["--prompt", "p"], {"prompt": ["p"]}, ()),
        (["other"], {"model": "other"}, ()),
    ],
)
def test_what_is_typed_takes_precedence(typed: list[str], changed: dict[str, Any], gone: tuple[str, ...]) -> None:
    write(FILE)
    before, after = dump("run", "file.yaml"), dump("run", "file.yaml", *typed)
    assert after == {**{k: v for k, v in before.items() if k not in gone}, **changed}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: m\nstpes: 3", "file.yaml:2: stpes: `sdesamplers sample` has no such option; did you mean 'steps'"),
        ("steps: x", "file.yaml:1: steps: 'x' is not a valid integer"),
        ("steps: {a: 1}", "file.yaml:1: steps: must be text, a number or a list"),
        ("options: [1]", "file.yaml:1: options: must be a mapping"),
        ("quiet: 1", "file.yaml:1: quiet: must be true or false, not 1"),
        ("- a", "file.yaml: a configuration is a mapping"),
        (
            "requires: {none-such: '1'}",
            "file.yaml:1: requires: the recipe requires the plugin none-such 1",
        ),
        ("requires: 3", "file.yaml:1: requires: must be a mapping"),
        ("a: 1\na: 2", "file.yaml:2: duplicate key 'a'"),
        ("command: smaple", "unknown command 'smaple'; did you mean 'sample'?"),
        ("command: list", "unknown command 'list'"),
        ("command: [sample]", "unknown command"),
        ("num-samples: 1\nnum_samples: 2", "file.yaml:2: num_samples: is given twice"),
    ],
)
def test_files_that_are_refused(text: str, message: str) -> None:
    assert message in refusal("run", write(text))


def test_files_of_other_commands_and_no_files() -> None:
    assert "of `sdesamplers tune`, not of sample" in refusal("sample", "m", "--config", write("command: tune"))
    assert "none.yaml: cannot be read" in refusal("run", "none.yaml")
    assert "--config does not apply" in refusal("run", write("model: m"), "--config", "x")


def test_run_takes_a_file_that_a_recipe_wrote() -> None:
    settings = sds.sample("fashion-mnist", "ddim", steps=3, eta=0.5).recipe.as_text()
    data = dump("run", write(settings + "requires: {}\nmodel: fashion-mnist\n"))
    assert (data["sampler"], data["options"], data["steps"]) == ("ddim", {"eta": 0.5}, 3)


def test_run_samples_as_the_typed_command_does() -> None:
    write("model: fashion-mnist\nsampler: ddim\noptions: {eta: 0.5}\nsteps: 2\nseed: 3\nnum_samples: 2\nformat: grid\n")
    outputs = []
    typed = ["sample", "fashion-mnist", "--sampler", "ddim", "-o", "eta=0.5", "--steps", "2", "--seed", "3", "-n", "2"]
    for number, words in enumerate((["run", "file.yaml"], typed)):
        out = Path(f"out{number}")
        done = CliRunner().invoke(cli, [*words, "--json", "--quiet", "--out", str(out)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        facts = json.loads(done.stdout)
        outputs.append((facts["recipe"], hashlib.sha256((out / "grid.png").read_bytes()).hexdigest()))
    assert outputs[0] == outputs[1]
    assert outputs[0][0]["options"] == {"eta": 0.5}
