"""The examples, run as a user runs them but small; and the example plugin, imported and installed."""

import csv
import gzip
import importlib.util
import json
import math
import os
import re
import runpy
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_sheets import parts
from lanes import mostly_slow
from PIL import Image

import sdesamplers as sds
from sdesamplers.testing import check_sampler

EXAMPLES = Path(__file__).parents[2] / "examples"
IMAGES = 256


def run(script, *arguments, folder, check=True, **environment):
    """An example as a subprocess on one thread, started outside the checkout."""
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr or not check, done.stderr
    assert done.returncode == 0 or not check, done.stderr
    return done


@pytest.fixture
def run_here(monkeypatch, capsys, tmp_path):
    """Runs an example in this process, which has imported what takes another one seconds; an exception fails the test.

    Returns its exit code and what it printed.
    """

    def run_script(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        try:
            runpy.run_path(str(EXAMPLES / script), run_name="__main__")
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        out, err = capsys.readouterr()
        # Python prints a code that is a text to standard error, and ends with 1.
        err, code = (err + code, 1) if isinstance(code, str) else (err, code)
        return subprocess.CompletedProcess([script, *arguments], code, out, err)

    return run_script


def write_idx(file, array):
    """An IDX file of unsigned bytes, gzipped where its name says so."""
    raw = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
    file.write_bytes(gzip.compress(raw) if file.suffix == ".gz" else raw)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Random pictures and labels in Fashion-MNIST's files: the training split gzipped, the test split not."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, suffix in (("train", ".gz"), ("t10k", "")):
        images = rng.integers(0, 256, (IMAGES, 28, 28), np.uint8)
        write_idx(folder / f"{split}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte{suffix}", rng.integers(0, 10, IMAGES, np.uint8))
    return folder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A DDPM pipeline with an untrained network of a few thousand parameters, 3 channels of 8 by 8."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    folder = tmp_path_factory.mktemp("pipeline")
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_load_hub_model_samples_a_local_pipeline(pipeline, tmp_path):
    out = tmp_path / "new" / "samples.svg"
    done = run(
        "load_hub_model.py",
        pipeline,
        "--sampler",
        "ddim",
        "--steps",
        3,
        "--num-samples",
        4,
        "--out",
        out,
        folder=tmp_path,
    )
    assert "3 NFE" in done.stdout
    [image], texts = parts(out)
    picture = np.asarray(image)
    # Two by two samples of 8 pixels, magnified twelve times, with gaps of 2.
    assert picture.shape == (2 * 98 + 2, 2 * 98 + 2, 3)
    assert ": ddim, 3 steps, 3 NFE, seed 0" in " ".join(texts)
    assert len(np.unique(picture)) > 2


def test_load_hub_model_samples_the_embedded_model(run_here, tmp_path):
    done = run_here("load_hub_model.py", "fashion-mnist", "--steps", 2, "--num-samples", 1)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "samples.png").size[1] > 28 * 3 + 4 + 13  # the picture and what was run


@pytest.mark.slow
def test_load_hub_model_says_in_a_line_that_the_hub_cannot_be_reached(tmp_path):
    done = run("load_hub_model.py", folder=tmp_path, check=False, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "cache"))
    assert done.returncode == 1
    assert "google/ddpm-cat-256" in done.stderr
    assert "fashion-mnist" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "samples.png").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["fashion-mnist", "--sampler", "huen"], "heun"),
        (["fashion-mnist", "--steps", "0"], "steps"),
        (["fashion-minst"], "fashion-mnist"),
    ],
)
def test_load_hub_model_explains_a_mistyped_word(arguments, word, run_here):
    done = run_here("load_hub_model.py", *arguments)
    assert done.returncode == 1
    assert word in done.stderr


@pytest.mark.slow
def test_compare_samplers_writes_picture_and_tables(run_here, tmp_path):
    arguments = ["--samplers", "euler,heun", "--nfe", "1,3", "--num-samples", 4, "--reference-samples", 0]
    done = run_here("compare_samplers.py", *arguments, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"compare.png", "compare.json", "compare.csv"}
    facts = json.loads((tmp_path / "out" / "compare.json").read_text())
    asked = [(c["sampler"], c["budget"], c["nfe"]) for c in facts["cells"]]
    assert asked == [("euler", 1, 1), ("euler", 3, 3), ("heun", 1, 1), ("heun", 3, 3)]
    rows = list(csv.DictReader((tmp_path / "out" / "compare.csv").open()))
    assert [(r["sampler"], int(r["nfe"])) for r in rows] == [(s, n) for s, _, n in asked]
    assert all(math.isfinite(float(r["frechet"])) for r in rows)
    assert Image.open(tmp_path / "out" / "compare.png").size[0] > 100
    lines = [line for line in done.stdout.splitlines() if "NFE" in line]
    assert [line.split()[0] for line in lines] == ["euler", "euler", "heun", "heun"]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A first training run of 64 images."""
    out = tmp_path_factory.mktemp("trained")
    done = train(data, out, 64)
    assert "continuing" not in done.stdout
    return out


def train(data, out, images):
    """The training example on `images` images in all; in a process of its own, as accelerate keeps a global state."""
    words = ["--images", images, "--batch-size", 32, "--mixed-precision", "no"]
    return run("train_fashion_mnist.py", "--data", data, "--out", out, *words, folder=out)


@pytest.mark.slow
def test_training_writes_a_pipeline_and_continues_where_it_stopped(trained, data):
    assert json.loads((trained / "training.json").read_text())["images"] == 64
    weights = trained / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    done = train(data, trained, 128)
    assert "continuing at 64 images" in done.stdout
    assert json.loads((trained / "training.json").read_text())["images"] == 128
    assert weights.read_bytes() != before
    model = sds.load(trained / "pipeline", device="cpu")
    assert model.shape == (1, 28, 28)
    result = sds.sample(model, "ddim", steps=2, num_samples=2)
    assert result.samples.shape == (2, 1, 28, 28)
    assert bool(torch.isfinite(result.samples).all())


@pytest.mark.slow
def test_training_with_labels_begins_from_a_network_without(trained, data, tmp_path):
    words = ["--images", 32, "--batch-size", 32, "--mixed-precision", "no", "--labels"]
    words += ["--begin-from", trained / "pipeline", "--learning-rate", 1e-3]
    run("train_fashion_mnist.py", "--data", data, "--out", tmp_path / "out", *words, folder=tmp_path)
    model = sds.load(tmp_path / "out" / "pipeline", null_condition=10, device="cpu")
    assert model.num_classes == 11
    common = {"steps": 2, "num_samples": 1, "seed": 0}
    before = sds.sample(sds.load(trained / "pipeline", device="cpu"), "ddim", **common).samples
    one, other = (sds.sample(model, "ddim", condition=label, **common).samples for label in (1, 7))
    assert float((one - before).abs().mean()) < 0.2 * float(before.abs().mean())  # one step of training away
    assert not torch.equal(one, other)
    guided = sds.sample(model, "ddim", condition=1, guidance_scale=2.0, **common).samples
    assert bool(guided.isfinite().all())


def test_training_without_data_says_what_is_missing(run_here, tmp_path):
    from accelerate.state import AcceleratorState

    try:
        done = run_here("train_fashion_mnist.py", "--data", tmp_path, "--out", tmp_path / "out")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert done.returncode == 1
    assert "train-images-idx3-ubyte" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_feature_classifier_becomes_a_scorer(run_here, data, tmp_path):
    from sdesamplers.metrics import Scorer

    words = ["--data", data, "--out", tmp_path / "metrics", "--epochs", 1, "--limit", IMAGES]
    done = run_here("train_feature_classifier.py", *words)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    scorer = Scorer(tmp_path / "metrics")
    assert scorer.reference.shape == scorer.second.shape == (IMAGES, 64)
    score = scorer.score(torch.rand(32, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    floor = scorer.floor(32)
    for value in (score.frechet, score.sliced_wasserstein, floor.frechet, floor.sliced_wasserstein):
        assert math.isfinite(value)
        assert value >= 0


@pytest.fixture
def plugin():
    """The example plugin's module, its sampler and spacing registered for one test."""
    file = EXAMPLES / "third_party_plugin" / "sdesamplers_two_stage.py"
    spec = importlib.util.spec_from_file_location("example_plugin", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sds.register(*module.sdesamplers_samplers(), *module.sdesamplers_spacings())
    yield module
    sds.use_registry(None)


MEAN = torch.tensor([0.7, -0.4], dtype=torch.float64)
STD = 0.5
PROCESSES = {"vp": (sds.VP(0.1, 7.0), 0.05), "flow": (sds.RectifiedFlow(), 0.05)}


def flow_map_error(process, end, sampler, steps, coordinates):
    """Largest error at `end`: along the exact flow (x - alpha m) / sqrt(alpha^2 s^2 + sigma^2) stays what it was."""
    model = sds.GaussianModel(MEAN, STD**2, process, prediction="flow")
    z = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def state(t):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        return alpha * MEAN + math.hypot(alpha * STD, sigma) * z

    start = process.t_max
    times = np.linspace(start, end, steps + 1)
    words = {"times": times, "final": "min", "coordinates": coordinates, "num_samples": 6}
    result = sds.sample(model, sampler, start=state(start), **words)
    assert result.samples.dtype == torch.float64
    assert result.nfe == 2 * steps
    return float((result.samples - state(end)).abs().max())


def test_two_stage_is_of_second_order_where_steps_are_doubled_once(plugin):
    process, end = PROCESSES["vp"]
    coarse, fine = (flow_map_error(process, end, "two-stage", n, "angle") for n in (64, 128))
    assert math.log2(coarse / fine) == pytest.approx(2, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("coordinates", ["native", "angle"])
@pytest.mark.parametrize("name", PROCESSES)
def test_two_stage_is_of_second_order(plugin, name, coordinates):
    process, end = PROCESSES[name]
    counts = (128, 256, 512)
    errors = [flow_map_error(process, end, "two-stage", n, coordinates) for n in counts]
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(2, abs=0.15)
    assert errors[-1] < 1e-3


def test_two_stage_with_its_default_is_ralstons_published_step(plugin):
    """By hand for data N(0, 1/4): dx/dsigma = sigma x / (1/4 + sigma^2), from sigma = 3 to 1."""

    def slope(x, sigma):
        return sigma * x / (0.25 + sigma**2)

    asked = []
    model = sds.GaussianModel(torch.zeros(1), 0.25, sds.EDM(), prediction="epsilon")
    start = torch.tensor([[2.0]], dtype=torch.float64)
    words = {"times": [3.0, 1.0], "start": start, "callback": lambda event: asked.append(event.point.time)}
    result = sds.sample(model, "two-stage", **words)
    first = slope(2.0, 3.0)
    second = slope(2.0 - 4 / 3 * first, 5 / 3)
    assert float(result.samples) == pytest.approx(2.0 - 2 * (0.25 * first + 0.75 * second), abs=1e-12)
    assert asked == pytest.approx([3.0, 5 / 3], abs=1e-12)


@pytest.mark.parametrize("process", [sds.VP(), sds.RectifiedFlow()], ids=["vp", "flow"])
@pytest.mark.parametrize("spacing", ["linspace", "cosine-lambda"])
def test_two_stage_runs_to_the_clean_end(plugin, process, spacing):
    model = sds.grid_mixture(process, prediction="flow")  # which flow models predict: alpha is 0 where theirs start
    if spacing == "cosine-lambda" and process.ratio(process.t_max) == math.inf:
        with pytest.raises(sds.UsageError, match="alpha = 0"):
            sds.sample(model, "two-stage", steps=8, num_samples=4, spacing=spacing)
        return
    result = sds.sample(model, "two-stage", steps=8, num_samples=4, spacing=spacing)
    assert result.nfe == 2 * 8 - 1
    assert bool(torch.isfinite(result.samples).all())
    assert float(result.samples.abs().max()) < 5
    assert sds.sample(model, "two-stage", nfe=16, num_samples=1, spacing=spacing).nfe == 15


def test_two_stage_passes_the_quick_checks(plugin):
    quick = ["declaration", "evaluations", "push = pull", "reproducible", "edits", "point mass", "states left alone"]
    check_sampler("two-stage", checks=quick).require()


@pytest.mark.slow
def test_two_stage_conforms_for_any_node(plugin):
    check_sampler("two-stage").require()
    check_sampler("two-stage", checks=["ODE order"], options={"node": 0.3}).require()


@pytest.mark.parametrize("process", [sds.VP(), sds.EDM(), sds.SubVP()], ids=["vp", "edm", "sub-vp"])
def test_cosine_lambda_is_even_in_angle(plugin, process):
    points = sds.sample(
        sds.grid_mixture(process), "euler", steps=6, spacing="cosine-lambda", final="min", trajectory=True
    ).trajectory.times[:6]
    lam = 0.5 * process.log_snr(points)
    last = 0.5 * process.log_snr(process.t_min)
    angle = np.arccos(1 - 2 * (lam - lam[0]) / (last - lam[0]))
    assert points[0] == process.t_max
    np.testing.assert_allclose(angle, np.pi * np.arange(6) / 6, atol=1e-5)


def test_the_readme_shows_the_sampler_as_it_is():
    folder = EXAMPLES / "third_party_plugin"
    shown = (folder / "README.md").read_text().split("```python\n@sampler")[1].split("```")[0]
    source = (folder / "sdesamplers_two_stage.py").read_text()
    body = shown[shown.index("    if not 0") :].rstrip()
    assert body in source


@pytest.mark.slow
def test_the_plugin_installs_and_runs(tmp_path):
    """A venv that sees the running environment's packages (the checkout too) finds the plugin by its entry point."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    paths = {"base": str(home), "platbase": str(home)}
    packages = Path(sysconfig.get_path("purelib", "venv", paths))
    commands = Path(sysconfig.get_path("scripts", "venv", paths))
    # addsitedir also follows the .pth files there, among them that of an editable checkout.
    outside = [p for p in site.getsitepackages() if Path(p).is_dir()]
    lines = [f"import site; site.addsitedir({p!r})" for p in outside]
    (packages / "outside.pth").write_text("\n".join(lines) + "\n")
    source = shutil.copytree(EXAMPLES / "third_party_plugin", tmp_path / "source")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    env.pop("PYTHONPATH", None)

    def do(*command):
        done = subprocess.run([*map(str, command)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    python = commands / "python"
    do(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", source)
    assert (packages / "sdesamplers_two_stage.py").is_file()
    command = (python, "-m", "sdesamplers")
    facts = json.loads(do(*command, "info", "two-stage", "--json"))
    assert facts["order"] == 2
    assert "two-stage" in facts["plugin"]
    assert "Ralston" in do(*command, "info", "two-stage")
    assert "cosine-lambda" in do(*command, "list")
    words = ["--sampler", "two-stage", "--steps", 2, "--spacing", "cosine-lambda", "-n", 2, "--out", tmp_path / "out"]
    assert "3 NFE" in do(*command, "sample", "fashion-mnist", *words, "--quiet")
    assert Image.open(tmp_path / "out" / "grid.png").size[0] > 100


def test_in_a_pipeline_runs_samplers_in_the_embedded_pipeline(run_here, tmp_path):
    words = ("--samplers", "heun,dpmpp-2m-sde", "--steps", 3, "--images", 2, "--out", tmp_path / "p.svg")
    done = run_here("in_a_pipeline.py", *words)
    assert done.returncode == 0, done.stderr
    assert "heun: 5 evaluations" in done.stdout
    assert "dpmpp-2m-sde: 3 evaluations" in done.stdout
    images, texts = parts(tmp_path / "p.svg")
    assert [image.size for image in images] == [(2 * 86 + 2, 86 + 2)] * 2
    assert texts[:2] == ["heun", "dpmpp-2m-sde"]
    assert "DDPMPipeline, 3 steps, seeds 0 to 1" in texts


def test_in_a_pipeline_explains_what_a_pipeline_cannot_run(run_here):
    done = run_here("in_a_pipeline.py", "--samplers", "euler-cfgpp", "--steps", 2)
    assert done.returncode == 1
    assert "unguided" in done.stderr


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("toy_2d")


@pytest.mark.parametrize("name", ["moons", "swiss-roll", "ring"])
def test_toy_data_have_mean_0_and_deviation_1(toy, name):
    points = toy.make_data(name, 20_000, seed=3)
    assert points.shape == (20_000, 2)
    assert float(points.mean(0).abs().max()) < 0.05
    assert float(points.std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", mostly_slow(["ddpm", "ve", "sub-vp", "flow"], keep=["flow"]))
def test_toy_models_learn_the_data(toy, name):
    """200 steps of training lower the loss on 4000 fresh points, at common times and noises, by 5 standard errors."""
    setup, data, test = toy.SETUPS[name], toy.make_data("moons", 5000), toy.make_data("moons", 4000, seed=1)
    values = []
    for steps in (2, 200):
        words = {"prediction": setup.prediction, "weighting": setup.weighting, "times": setup.times}
        model = toy.train(setup, data, steps=steps, batch=256)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            loss = sds.losses.denoising_loss(model.function, setup.process, test, generator=generator, **words)
        values.append(loss)
    drop = values[0] - values[1]
    assert float(drop.mean()) > 5 * float(drop.std()) / math.sqrt(4000)


def test_toy_models_are_seeded(toy):
    data = toy.make_data("ring", 500)
    first, second = (sds.sample(toy.train(toy.SETUPS["ve"], data, steps=5), "ddpm", steps=5) for _ in range(2))
    assert torch.equal(first.samples, second.samples)


@pytest.mark.slow
def test_toy_2d_draws_pictures_and_animations(run_here, tmp_path):
    words = ("--models", "flow", "--steps", 20, "--samples", 80, "--frames", 3, "--out", tmp_path / "toy")
    done = run_here("toy_2d.py", *words)
    assert done.returncode == 0, done.stderr
    assert "rectified flow: trained in" in done.stdout
    assert Image.open(tmp_path / "toy" / "samplers.png").size[0] > 1000
    assert Image.open(tmp_path / "toy" / "flow.png").size == (1240, 512)
    assert Image.open(tmp_path / "toy" / "flow.gif").n_frames == 3


def test_toy_2d_names_its_models(toy, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["toy_2d.py", "--models", "edm"])
    with pytest.raises(SystemExit):
        toy.main()
    assert "unknown model 'edm' (known: ddpm, ve, sub-vp, flow)" in capsys.readouterr().err


@pytest.mark.slow
def test_ddpo_raises_the_reward(run_here, tmp_path):
    """The mean reward of 1000 samples rises by five standard errors and more (20 were measured)."""
    small = ("--train-steps", 300, "--epochs", 15, "--batch", 96, "--lr", 2e-3, "--steps", 8)
    done = run_here("ddpo_toy.py", *small, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    numbers = re.search(r"reward ([\d.]+) -> ([\d.]+) .*difference ([\d.]+)\)", done.stdout)
    first, last, error = map(float, numbers.groups())
    assert 0 < error < 0.02
    assert last > first + 5 * error
    assert Image.open(tmp_path / "ddpo.png").size == (840, 336)


@pytest.mark.slow
def test_inverse_problems_solves_both_problems_and_draws_them(run_here, tmp_path):
    words = ("--images", 2, "--steps", 4, "--out", tmp_path / "inverse.svg")
    done = run_here("inverse_problems.py", *words)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "PSNR" in line]
    assert len(lines) == 2 * (1 + 3)
    assert [line.split(" by ")[1].split(",")[0] for line in lines if " by " in line] == ["DPS", "PiGDM", "RePaint"] * 2
    images, texts = parts(tmp_path / "inverse.svg")
    assert [image.size for image in images] == [(2 * 86 + 2, 86 + 2)] * 10
    assert texts[0] == "inpainting: truth"
    assert texts[5] == "super-resolution x4: truth"
    assert texts[1] == texts[6] == "measured"
    assert all(text.startswith(name) for text, name in zip(texts[2:5], ("DPS", "PiGDM", "RePaint"), strict=True))


@pytest.mark.slow
def test_steering_prints_both_tables_and_draws_its_rows(run_here, tmp_path):
    words = ("--particles", 1, 3, "--samples", 3, "--steps", 4, "--groups", 20, "--out", tmp_path / "steering.svg")
    done = run_here("steering.py", *words)
    assert done.returncode == 0, done.stderr
    estimates = [float(z) for z in re.findall(r"particles: Z ([\d.]+) ±", done.stdout)]
    assert len(estimates) == 2
    assert "Z = 1.6992" in done.stdout  # sum of w exp(m + v/2), by hand
    assert len(re.findall(r" of 3, -\d", done.stdout)) == 3  # 1 and 3 particles, and 3 with a twist
    images, texts = parts(tmp_path / "steering.svg")
    assert [image.size for image in images] == [(3 * 86 + 2, 86 + 2)] * 3
    assert texts[:3] == ["1 particles", "3 particles", "3 particles, twisted"]
