"""`sdesamplers likelihood` and `encode`, and the data they read."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import save_pipeline, tiny_unet

import sdesamplers as sds
from sdesamplers.cli import cli
from sdesamplers.errors import UsageError
from sdesamplers.io.datasets import read_data


@pytest.fixture(scope="module")
def model() -> sds.Model:
    return sds.load("fashion-mnist")


def call(*words: object) -> str:
    done = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_likelihood_command_agrees_with_the_function(model, tmp_path):
    words = ("--limit", 2, "--sampler", "heun", "--steps", 2, "--probes", 2, "--seed", 5, "--batch-size", 1)
    words += ("--spacing", "power", "--spacing-option", "rho=1.5")
    facts = json.loads(call("likelihood", "fashion-mnist", "fashion-mnist-test", *words, "--out", tmp_path, "--json"))
    x, _ = read_data("fashion-mnist-test", model, limit=2)
    grid = {"spacing": "power", "spacing_options": {"rho": 1.5}}
    expected = sds.log_likelihood(model, x, "heun", steps=2, probes=2, seed=5, dequantize="uniform", **grid)
    assert facts["bits_per_dim"] == pytest.approx(expected.bits_per_dim.mean(), rel=1e-4)
    assert facts["standard_error"] == pytest.approx(expected.bits_per_dim.std(ddof=1) / np.sqrt(2), rel=1e-3)
    assert facts["nfe"] == 4
    with (tmp_path / "likelihood.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["nats"]) for row in rows] == pytest.approx(expected.nats, rel=1e-4)
    assert expected.standard_error is not None
    assert [float(row["standard_error_nats"]) for row in rows] == pytest.approx(expected.standard_error, rel=1e-2)
    of_probes = expected.standard_error.mean() / (np.log(2) * x[0].numel())
    assert facts["standard_error_of_probes"] == pytest.approx(of_probes, rel=1e-2)
    assert Image.open(tmp_path / "likelihood.png").size == (720, 408)


def test_encode_command_comes_back(model, tmp_path):
    words = ("--limit", 2, "--steps", 4, "--check", "--out", tmp_path, "--json")
    words += ("--spacing", "karras", "--spacing-option", "rho=5")
    facts = json.loads(call("encode", "fashion-mnist", "fashion-mnist-test", *words))
    x, _ = read_data("fashion-mnist-test", model, limit=2)
    grid = {"spacing": "karras", "spacing_options": {"rho": 5.0}}
    expected = sds.encode(model, x, "heun", steps=4, **grid)
    latents = load_file(tmp_path / "latents.safetensors")["samples"]
    torch.testing.assert_close(latents, expected.samples, rtol=1e-4, atol=1e-4)
    back = sds.decode(model, latents, "heun", steps=4, **grid).samples
    assert facts["round_trip_rms"] == pytest.approx(float((back - x).square().mean().sqrt()), rel=1e-3)


def test_encode_command_keeps_the_second_state(model, tmp_path):
    words = ("--limit", 1, "--steps", 3, "--sampler", "reversible-heun", "--check", "--out", tmp_path, "--json")
    facts = json.loads(call("encode", "fashion-mnist", "fashion-mnist-test", *words))
    assert facts["round_trip_rms"] < 1e-4  # rounding of float32; from one state alone it is 0.1 and more
    stored = load_file(tmp_path / "latents.safetensors")
    x, _ = read_data("fashion-mnist-test", model, limit=1)
    expected = sds.encode(model, x, "reversible-heun", steps=3)
    torch.testing.assert_close(stored["companion"], expected.companion, rtol=1e-4, atol=1e-4)
    alone = sds.decode(model, stored["samples"], "reversible-heun", steps=3).samples
    assert float((alone - x).square().mean().sqrt()) > 0.1


def test_errors_speak_the_command_lines_words(tmp_path):
    folder = save_pipeline(tmp_path / "labelled", unet=tiny_unet(num_class_embeds=5))
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 8, 8), np.float32))
    for words, part in (((), "pass --condition, a label"), (("--condition", "1", "--guidance-scale", "2"), "--null-c")):
        with pytest.raises(UsageError) as caught:
            call("encode", folder, tmp_path / "x.npy", "--steps", 2, "--out", tmp_path / "out", *words)
        assert "condition=" in str(caught.value)  # as Python has it
        assert part in caught.value.in_options
        assert "condition=" not in caught.value.in_options


def test_the_embedded_set_is_fashion_mnist(model):
    x, names = read_data("fashion-mnist-test", model)
    assert x.shape == (256, 1, 28, 28)
    assert names[-1] == "255"
    assert (float(x.min()), float(x.max())) == (-1.0, 1.0)
    # The first test image is an ankle boot: dark above, its sole along the bottom rows.
    assert float(x[0, 0, :6].max()) == -1.0
    assert float(x[0, 0, 18:22].mean()) > -0.2


def test_pictures_arrays_and_tensors_are_the_same_data(model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 1, 28, 28), dtype=np.uint8)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k, image in enumerate(pixels):
        Image.fromarray(image[0]).save(folder / f"{k}.png")
    np.save(tmp_path / "x.npy", pixels)
    expected = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1)
    save_file({"samples": expected, "indices": torch.arange(3)}, tmp_path / "x.safetensors")
    for source in (folder, tmp_path / "x.npy", tmp_path / "x.safetensors"):
        torch.testing.assert_close(read_data(source, model)[0], expected, rtol=0, atol=1e-6)
    assert read_data(folder, model, limit=2)[1] == ["0.png", "1.png"]
    torch.testing.assert_close(read_data(folder / "1.png", model)[0], expected[1:2], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda p: p / "absent", "fashion-mnist-test"),
        (lambda p: p, "no pictures"),
        (lambda p: (p / "x.txt").write_text("x") and p / "x.txt", "safetensors"),
        (lambda p: (np.save(p / "x.npy", np.zeros((2, 3, 28, 28))), p / "x.npy")[1], "(N, 1, 28, 28)"),
        (lambda p: ((p / "x.npy").write_bytes(b"no"), p / "x.npy")[1], "not a readable"),
        (lambda p: ((p / "x.safetensors").write_bytes(b"no"), p / "x.safetensors")[1], "not a readable"),
        (lambda p: (Image.new("L", (5, 7)).save(p / "x.png"), p / "x.png")[1], "5x7"),
        (lambda p: ((p / "x.png").write_bytes(b"no"), p / "x.png")[1], "not a readable picture"),
    ],
)
def test_data_that_do_not_fit_are_explained(make, word, model, tmp_path: Path):
    with pytest.raises(UsageError, match=word.replace("(", r"\(").replace(")", r"\)")):
        read_data(make(tmp_path), model)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("likelihood", "fashion-mnist", "nothing"), "nor is it"),
        (("likelihood", "fashion-mnist", "fashion-mnist-test", "--limit", "0"), "limit"),
        (("likelihood", "fashion-mnist", "fashion-mnist-test", "--limit", "1", "--sampler", "er-sdee"), "er-sde"),
        (
            ("likelihood", "fashion-mnist", "fashion-mnist-test", "--limit", "1", "--sampler", "mala", "--steps", "3"),
            "ODE",
        ),
        (("encode", "fashion-mnist", "fashion-mnist-test", "--limit", "1"), "--steps"),
        (("encode", "fashion-mnist", "fashion-mnist-test", "--spacing-option", "rho=5"), "--spacing"),
    ],
)
def test_misuse_is_an_error_of_one_line(words, part, tmp_path):
    with pytest.raises(UsageError, match=part):
        CliRunner().invoke(cli, [*words, "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert not (tmp_path / "out").exists()
