"""The embedded model's likelihood by two solvers, and the examples on densities, latents and colour, run small."""

import argparse
import csv
import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_sheets import parts
from PIL import Image

import sdesamplers as sds
from sdesamplers.io.datasets import read_data

EXAMPLES = Path(__file__).parents[2] / "examples"
F64 = torch.float64


def run(script, *arguments, folder):
    """An example as a subprocess on one thread, started outside the checkout; what it printed."""
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported(name):
    """An example as a module, for its parts."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ood():
    return imported("out_of_distribution")


@pytest.fixture(scope="module")
def inverse():
    return imported("inverse_problems")


# --- the embedded model's likelihood --------------------------------------------------------------------------------


@pytest.mark.slow
def test_heun_and_rk45_find_the_same_bits_on_test_images():
    """Same probes and dequantisation: Heun's error is a third of what it moved as steps doubled, and here within half.

    That is, the adaptive solver's answer lies where Heun's method goes to.
    """
    model = sds.load("fashion-mnist")
    x, _ = read_data("fashion-mnist-test", model, limit=2)
    words = {"coordinates": "flow", "dequantize": "uniform", "seed": 0}
    free = sds.log_likelihood(model, x, "rk45", rtol=1e-2, atol=1e-2, **words)
    coarse, fine = (sds.log_likelihood(model, x, "heun", steps=n, spacing="logsnr", **words) for n in (24, 48))
    moved = np.abs(fine.bits_per_dim - coarse.bits_per_dim)
    assert np.all(np.abs(fine.bits_per_dim - free.bits_per_dim) < moved / 2)
    assert np.all(moved < 0.2)
    assert fine.nfe == 96


# --- in and out of distribution ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_out_of_distribution_scores_every_set(tmp_path):
    shown = run("out_of_distribution.py", "--images", 2, "--steps", 2, "--against", "flipped", "noise", folder=tmp_path)
    folder = tmp_path / "out_of_distribution"
    with (folder / "bits.csv").open() as file:
        bits = list(csv.DictReader(file))
    assert [line["mean of 2"] for line in bits] == ["test", "flipped", "noise"]
    assert {line["NFE"] for line in bits} == {"8"}
    model = sds.load("fashion-mnist")
    x, _ = read_data("fashion-mnist-test", model, limit=2)
    words = {"steps": 2, "coordinates": "flow", "spacing": "logsnr", "dequantize": "uniform"}
    found = sds.log_likelihood(model, x, "rk4", **words).bits_per_dim
    mean, error = map(float, bits[0]["bits"].split(" ± "))
    assert mean == pytest.approx(found.mean(), abs=2e-3)
    assert error == pytest.approx(found.std(ddof=1) / math.sqrt(2), abs=2e-3)
    with (folder / "auroc.csv").open() as file:
        areas = list(csv.DictReader(file))
    assert [line["AUROC against test"] for line in areas] == ["flipped", "noise"]
    assert all(0 <= float(line["bits"].split(" ± ")[0]) <= 1 for line in areas)
    assert "AUROC against test" in shown
    assert Image.open(folder / "out_of_distribution.png").size == (1260, 456)


def test_out_of_distribution_reads_digits(ood):
    pytest.importorskip("sklearn")
    found = ood.digits(5)
    assert found.shape == (5, 28, 28)
    assert found.dtype == np.uint8
    # The first digit is a nought: ink at the middle of its top, none in its centre.
    assert found[0, :6, 10:18].max() > 150 > 40 > found[0, 14, 14]


def test_digits_without_scikit_learn_are_left_out(ood, monkeypatch, capsys):
    def missing(count):
        raise ImportError

    monkeypatch.setattr(ood, "digits", missing)
    model = sds.load("fashion-mnist")
    assert list(ood.pictures(model, ["digits", "noise"], 2, seed=0)) == ["test", "noise"]
    assert "scikit-learn" in capsys.readouterr().err


def test_the_sets_are_what_they_say(ood):
    model = sds.load("fashion-mnist")
    sets = ood.pictures(model, ["flipped", "noise"], 3, seed=0)
    x, _ = read_data("fashion-mnist-test", model, limit=6)
    whole = np.round((x[:, 0].numpy() + 1) * 127.5)
    np.testing.assert_array_equal(sets["test"], whole[:3])
    np.testing.assert_array_equal(sets["flipped"], whole[3:, ::-1])
    assert sets["noise"].shape == (3, 28, 28)
    assert len(np.unique(sets["noise"])) > 250
    assert ood.png_bits(sets["noise"]).min() > 8 > 6 > ood.png_bits(sets["test"]).max()


def test_auroc_counts_pairs(ood):
    inside, outside = np.array([0.0, 1.0, 2.0]), np.array([0.5, 2.0, 3.0, -1.0])
    pairs = [0.5 if a == b else float(b > a) for a in inside for b in outside]
    assert ood.auroc(inside, outside)[0] == pytest.approx(np.mean(pairs))
    assert ood.auroc(inside, inside + 5) == (1.0, 0.0)
    # At 1/2 the standard error is that of Mann and Whitney's statistic without ties.
    even, odd = np.array([0.0, 3.0]), np.array([1.0, 2.0])
    assert ood.auroc(even, odd) == pytest.approx((0.5, math.sqrt((2 + 2 + 1) / (12 * 2 * 2))))


def test_an_image_is_no_part_of_its_own_reference(ood):
    bits = np.array([1.0, 2.0, 4.0, 8.0])
    without = [abs(b - np.delete(bits, k).mean()) for k, b in enumerate(bits)]
    np.testing.assert_allclose(ood.from_mean(bits, bits), without)
    np.testing.assert_allclose(ood.from_mean(bits[:2].copy(), bits), [2.75, 1.75])


# --- the latent walk --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_latent_walk_draws_and_animates(tmp_path):
    words = ("--images", 0, 13, "--frames", 3, "--steps", 8, "--out", tmp_path / "walk")
    shown = run("latent_walk.py", *words, folder=tmp_path)
    errors = re.search(r"RMS error at the test images ([\d.]+), ([\d.]+)", shown).groups()
    assert all(0 < float(error) < 0.3 for error in errors)
    width, height = Image.open(tmp_path / "walk" / "latent_walk.png").size
    assert width > 4 * 86 + 2 + 50  # the labels
    assert height > 2 * (86 + 2) + 13  # two rows and the note
    film = Image.open(tmp_path / "walk" / "latent_walk.gif")
    assert (film.n_frames, film.size, film.info["loop"]) == (6, (140, 140), 0)


def test_the_walk_is_closed_and_evenly_spaced():
    example = imported("latent_walk")
    latents = torch.randn(3, 1, 16, 16, dtype=F64, generator=torch.Generator().manual_seed(0))
    points = example.walk(latents, 4)
    assert points.shape == (12, 1, 16, 16)
    torch.testing.assert_close(points[::4], latents)
    # The last stretch goes on to the first latent, by the same angle as its steps before.
    units = torch.nn.functional.normalize(torch.cat([points, points[:1]]).flatten(1))
    angles = torch.acos((units[1:] * units[:-1]).sum(1)).view(3, 4)
    torch.testing.assert_close(angles, angles.mean(1, keepdim=True).expand(3, 4))
    assert example.rows(list(range(12)), 4) == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [8, 9, 10, 11, 0]]


# --- colourisation ----------------------------------------------------------------------------------------------------

SIZE = (4, 6)


def small_tinted(inverse, process):
    """`Tinted` around correlated Gaussian pictures, and all of it as one Gaussian of (3 H W,) in red, green, blue."""
    count = math.prod(SIZE)
    factor = torch.randn(count, count, dtype=F64, generator=torch.Generator().manual_seed(1)) / math.sqrt(count)
    covariance, mean = 0.2 * factor @ factor.T, torch.linspace(-0.5, 0.5, count, dtype=F64)
    flat = sds.GaussianModel(mean, covariance, process)
    grey = sds.FunctionModel(
        lambda x, t: flat.predict(x.flatten(1), t[:, 0, 0, 0].numpy()).view_as(x),
        process,
        "epsilon",
        (1, *SIZE),
        dtype=F64,
    )
    tinted = inverse.Tinted(grey, std=0.3, length=3.0)
    mix = torch.kron(inverse.AXES.to(F64), torch.eye(count, dtype=F64))
    light = tinted.light.covariances[0]
    whole = torch.block_diag(covariance, light, light)
    along = torch.cat([mean, torch.zeros(2 * count, dtype=F64)])
    return tinted, sds.GaussianModel(mix.T @ along, mix.T @ whole @ mix, process)


@pytest.mark.parametrize("process", [sds.VP(), sds.EDM(), sds.RectifiedFlow()], ids=["vp", "edm", "flow"])
def test_the_tinted_models_score_is_exact(inverse, process):
    tinted, whole = small_tinted(inverse, process)
    x = torch.randn(3, 3, *SIZE, dtype=F64, generator=torch.Generator().manual_seed(2))
    t = np.array([0.05, 0.4, 0.9])
    torch.testing.assert_close(tinted.predict(x, t).flatten(1), whole.predict(x.flatten(1), t), rtol=1e-6, atol=1e-6)


def test_axes_are_orthonormal_and_the_first_is_grey(inverse):
    x = torch.randn(2, 3, *SIZE, dtype=F64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(inverse.from_axes(inverse.along_axes(x)), x, rtol=0, atol=1e-6)
    torch.testing.assert_close(inverse.along_axes(x)[:, :1], math.sqrt(3) * sds.Grey(3).apply(x), rtol=0, atol=1e-6)


def test_projection_leaves_colours_to_the_prior_where_grey_alone_is_measured(inverse):
    """100 small pictures, seed 1: the squared distance that is reported is 1 within 3 of its standard errors."""
    tinted, whole = small_tinted(inverse, sds.VP())
    truth = whole.sample_data(100, torch.Generator().manual_seed(4)).view(-1, 3, *SIZE)
    operator = sds.Grey(3)
    y = operator.apply(truth)
    posterior = sds.PosteriorSampling(tinted, operator, y, method="projection")
    found = sds.sample(posterior, "heun", steps=60, num_samples=100, seed=1).samples
    assert float((operator.apply(found) - y).abs().max()) < 0.05
    text = tinted.report(found, operator, y, truth)
    ratio, error = map(float, re.search(r"colours ([\d.]+) \(1 ± ([\d.]+)", text).groups())
    assert 0 < error < 0.1
    assert abs(ratio - 1) < 3 * error


@pytest.mark.slow
def test_colourisation_draws_its_picture(inverse, tmp_path, capsys, monkeypatch):
    model = inverse.Tinted(sds.load("fashion-mnist"))
    args = argparse.Namespace(images=1, noise=0.05, seed=3, steps=3, out=tmp_path / "colour.svg")
    monkeypatch.delitem(inverse.METHODS, "DPS")  # three steps are too few for its strength
    inverse.solve(model, {"colourisation": sds.Grey(3)}, model.report, args)
    lines = [line for line in capsys.readouterr().out.splitlines() if "colours" in line]
    assert len(lines) == 1 + 2
    images, texts = parts(tmp_path / "colour.svg")
    assert [image.size for image in images] == [(84 + 4, 84 + 4)] * 4
    assert texts[:2] == ["colourisation: truth", "measured"]
    truth, grey = (np.asarray(image).astype(int)[2:86, 2:86] for image in images[:2])
    assert np.ptp(grey, axis=2).max() == 0 < np.ptp(truth, axis=2).mean()
