"""FILE.py:NAME as a model, in `load` and on the command line."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

import sdesamplers as sds
from sdesamplers.cli import cli
from sdesamplers.pretrained.factories import is_factory

FILE = """
import torch
import sdesamplers as sds
import beside

MEAN = beside.MEAN

def velocity(x, t):
    t = t[:, None]
    variance = 0.25 * (1 - t) ** 2 + t**2
    return -MEAN + (t - 0.25 * (1 - t)) * (x - (1 - t) * MEAN) / variance

def build(device=None):
    return sds.wrap(velocity, (2,), process=sds.RectifiedFlow(), device=device or "cpu")

ready = build()
number = 5

def network():
    return torch.nn.Linear(2, 2)

def needy(size):
    return build()

def broken():
    raise ZeroDivisionError("nothing to divide by")

def leaves():
    raise SystemExit(3)
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    (tmp_path / "beside.py").write_text("MEAN = 2.0\n")
    path = tmp_path / "factory_of_tests.py"
    path.write_text(FILE)
    return path


def test_a_function_of_a_file_makes_a_model(file):
    for name in ("build", "ready"):
        model = sds.load(f"{file}:{name}")
        samples = sds.sample(model, "heun", steps=20, num_samples=500).samples
        assert float(samples.mean()) == pytest.approx(2.0, abs=0.08)  # five standard errors of 0.5 / sqrt(1000)
        assert float(samples.std()) == pytest.approx(0.5, abs=0.06)


def test_options_are_passed_to_it(file):
    assert sds.load(f"{file}:build", device="cpu").device == torch.device("cpu")
    with pytest.raises(sds.UsageError, match="dtype"):
        sds.load(f"{file}:build", dtype="bfloat16")
    with pytest.raises(sds.UsageError, match="is an object and takes no device"):
        sds.load(f"{file}:ready", device="cpu")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("buidl", sds.UnknownNameError, "defines no 'buidl'; did you mean 'build'"),
        ("number", sds.UsageError, "is int; it must be a function"),
        ("network", sds.ModelError, r"returned Linear, but must return a Model; wrap a network with sds.wrap"),
        ("needy", sds.UsageError, "missing a required argument: 'size'"),
        ("broken", sds.ModelError, r"ZeroDivisionError: nothing to divide by \(factory_of_tests.py, line \d+\)"),
        ("leaves", sds.ModelError, "SystemExit: 3"),
    ],
)
def test_what_is_wrong_is_said(file, name, error, message):
    with pytest.raises(error, match=message):
        sds.load(f"{file}:{name}")


def test_no_such_file():
    with pytest.raises(sds.UsageError, match=r"there is no file nowhere\.py"):
        sds.load("nowhere.py:build")


def test_a_file_alone_is_not_enough(file):
    with pytest.raises(sds.UsageError, match=r"factory_of_tests\.py:NAME"):
        sds.load(str(file))


def test_a_network_in_place_of_a_model_is_told_of_wrap():
    with pytest.raises(sds.UsageError, match=r"not Linear; wrap\(network, ...\) makes one from a network"):
        sds.sample(torch.nn.Linear(2, 2), "euler", steps=2)


def test_a_file_that_cannot_be_imported(tmp_path):
    path = tmp_path / "cannot_be_imported.py"
    path.write_text("x = 1 +\n")
    with pytest.raises(sds.ModelError, match="SyntaxError"):
        sds.load(f"{path}:build")


@pytest.mark.parametrize("name", ["a/b", "fashion-mnist", "folder/net.py", "net.py:", "net.py:a-b", "dist:name", ":x"])
def test_other_names_are_no_factories(name):
    assert not is_factory(name)


def test_on_the_command_line(file, tmp_path):
    out = tmp_path / "out"
    words = ["--steps", "10", "--sampler", "heun", "-n", "32", "--format", "safetensors", "--out", str(out), "--json"]
    done = CliRunner().invoke(cli, ["sample", f"{file}:build", *words])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["complete"]
    from safetensors.torch import load_file

    samples = torch.cat([load_file(found)["samples"] for found in sorted(out.glob("*.safetensors"))])
    assert samples.shape == (32, 2)
    assert float(samples.mean()) == pytest.approx(2.0, abs=0.4)  # six standard errors


def test_a_label_of_zero_is_an_option_that_is_given(tmp_path):
    (tmp_path / "net.py").write_text(
        "import sdesamplers as sds\n\n\n"
        "def build(null_condition=None, zero_snr=None):\n"
        "    assert zero_snr is None\n"
        "    model = sds.grid_mixture(sds.VP())\n"
        "    model.name = repr(null_condition)\n"
        "    return model\n"
    )
    assert sds.load(f"{tmp_path}/net.py:build", null_condition=0).name == "0"
    assert sds.load(f"{tmp_path}/net.py:build").name == "None"
