"""The embedded model: what ships, and that its samples are garments by the numbers."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import sdesamplers as sds
from sdesamplers.comparison.comparison import find_scorer
from sdesamplers.metrics import frechet_distance, sliced_wasserstein

ASSETS = Path(sds.__file__).parent / "assets"
COUNT = 128


@pytest.fixture(scope="module")
def scorer():
    return find_scorer("fashion-mnist")


@pytest.mark.parametrize("name", ["fashion-mnist", "fashion-mnist-labels"])
def test_the_weights_are_safetensors_under_eight_megabytes(name):
    files = [f for f in (ASSETS / name).rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 8e6
    assert {f.suffix for f in files} == {".json", ".safetensors", ".md"}


@pytest.mark.parametrize("name", ["fashion-mnist", "fashion-mnist-labels"])
def test_the_model_card_states_data_recipe_time_and_scores(name):
    card = (ASSETS / name / "README.md").read_text()
    for word in ("MIT", "train_fashion_mnist.py", "hours", "Fréchet", "real"):
        assert word in card, word
    assert len(re.findall(r"\d+\.\d+", card)) > 6


@pytest.mark.slow
def test_samples_score_far_nearer_to_real_images_than_noise_does(scorer):
    """Bounds: an eighth of the way from real images to Gaussian noise, which blurred or broken garments exceed."""
    samples = sds.sample("fashion-mnist", "edm", num_samples=COUNT, seed=5, batch_size=64).samples
    noise = torch.randn(COUNT, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    real, ours, worst = scorer.floor(COUNT), scorer.score(samples), scorer.score(noise)
    for word in ("frechet", "sliced_wasserstein"):
        low, value, high = (getattr(s, word) for s in (real, ours, worst))
        assert value < low + (high - low) / 8, (word, low, value, high)


def test_the_classifier_knows_real_images(scorer):
    config = json.loads((ASSETS / "fashion-mnist-metrics" / "config.json").read_text())
    assert config["test_accuracy"] > 0.9
    assert scorer.reference.shape == (10_000, 64)


def test_frechet_distance_of_gaussians_in_closed_form():
    """Commuting covariances: |m1 - m2|^2 + sum (sqrt l1 - sqrt l2)^2; and a general pair against scipy's sqrtm."""
    from scipy.linalg import sqrtm

    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))[0]
    a, b = np.array([1.0, 2.0, 3.0, 0.5, 0.0]), np.array([2.0, 2.0, 1.0, 0.1, 0.3])
    first = (np.ones(5), rotation @ np.diag(a) @ rotation.T)
    second = (np.zeros(5), rotation @ np.diag(b) @ rotation.T)
    assert frechet_distance(first, second) == pytest.approx(5 + np.square(np.sqrt(a) - np.sqrt(b)).sum(), abs=1e-6)
    third = (np.zeros(5), np.cov(np.random.default_rng(1).standard_normal((5, 40))))
    expected = 5 + np.trace(first[1] + third[1] - 2 * sqrtm(first[1] @ third[1]).real)
    assert frechet_distance(first, third) == pytest.approx(expected, abs=1e-6)


def test_sliced_wasserstein_of_a_shift_is_the_shift_over_root_dimension():
    """A shift by v moves every projection by v . d, whose mean square over directions is |v|^2 / D."""
    points = np.random.default_rng(2).standard_normal((500, 8))
    shift = np.full(8, 0.7)
    measured = sliced_wasserstein(points, points + shift, projections=20_000)
    # The standard error of the mean of |v . d|^2 over 20,000 directions is about 1 % of it.
    assert measured**2 == pytest.approx(shift @ shift / 8, rel=0.04)


PLAIN = ("euler", "heun", "euler-maruyama", "ddim", "ddpm", "rk45")


def test_two_samples_do_not_depend_on_the_batch():
    """The next test in small: one by one, in float64."""
    model = sds.load("fashion-mnist", dtype="float64")
    words = {"sampler": "ddpm", "steps": 3, "seed": 3}
    whole = sds.sample(model, num_samples=2, **words)
    single = [sds.sample(model, num_samples=1, first_index=k, **words).samples for k in range(2)]
    assert (whole.samples - torch.cat(single)).abs().max() < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "dtype", "limit"),
    [
        (name, dtype, limit)
        for dtype, limit, names in (("float64", 1e-9, (*PLAIN, "abm", "er-sde")), ("float32", 2e-4, PLAIN))
        for name in names
    ],
)
def test_samples_do_not_depend_on_the_batch(sampler, dtype, limit):
    """0..7 as one batch of 8, as 8 of 1 and as 3 + 5, on a network; the conformance kit asks it of every sampler.

    In float64, where nothing but the library could couple samples, they agree to 1e-9. In float32 a convolution
    rounds differently in batches of other sizes, by about 1e-6, which the steps amplify to 2e-6 ... 6e-5; the limit
    is 1e-4 of the data range. (The long first steps of `abm` amplify it to 3e-4, so it is asked in float64.)
    """
    model = sds.load("fashion-mnist", dtype=dtype)
    steps = 18 if dtype == "float32" else 6
    words = {"rtol": 1e-2, "atol": 1e-2} if sds.samplers()[sampler].adaptive else {"steps": steps}
    whole = sds.sample(model, sampler, num_samples=8, seed=3, **words)
    single = sds.sample(model, sampler, num_samples=8, seed=3, batch_size=1, **words)
    first = sds.sample(model, sampler, num_samples=3, seed=3, **words)
    rest = sds.sample(model, sampler, num_samples=5, seed=3, first_index=3, **words)
    for other in (single.samples, torch.cat([first.samples, rest.samples])):
        assert (whole.samples - other).abs().max() < limit
    assert whole.nfe_per_sample.tolist() == single.nfe_per_sample.tolist()


@pytest.mark.parametrize("nfe", [4, 5, 6, 8, 10, 12, 15, 20])
def test_its_solver_tables_are_its_own_and_their_figures_are_on_the_pages(nfe):
    model = sds.load("fashion-mnist")
    table = sds.SolverTable.load(*model.process.table_sources, nfe)
    table.check_model(model)  # raises an error if the weights are others
    assert (table.facts["model"], table.facts["returned"]) == ("fashion-mnist", "tuned")
    own, fixed = table.facts["errors"], table.facts["errors"]["fixed"]
    text = " ".join((Path(__file__).parents[2] / "docs/tuning.md").read_text(encoding="utf-8").split())
    pairs = [f"{errors['rms']:.3g} / {errors['median']:.2g}" for errors in (own, fixed)]
    assert f"| {nfe} | {pairs[0]} | {pairs[1]} | `{fixed['setting']}` |" in text


@pytest.mark.slow
@pytest.mark.parametrize("nfe", [5, 8])
def test_its_solver_tables_are_ahead_of_fixed_settings_on_new_starts(nfe):
    run = {"num_samples": 48, "seed": 3, "first_index": 500}
    exact = sds.sample("fashion-mnist", "quality", nfe=96, **run).samples

    def median(sampler, **arguments):
        found = sds.sample("fashion-mnist", sampler, nfe=nfe, **run, **arguments).samples
        return float((found - exact).square().flatten(1).mean(1).sqrt().median())

    fixed = [median("unipc", spacing="power"), median("fast"), median("quality"), median("dpmpp-2m", spacing="karras")]
    assert median("tuned") < 0.75 * min(fixed)


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "least"), [(1.0, 0.75), (2.0, 0.93)])
def test_labels_decide_what_is_shown(scorer, scale, least):
    """The classifier recognises the class of the label: of 1,000 images 83 % without and 98 % with guidance 2.

    Of 200 images the standard errors are 2.6 % and 1.0 %; the bounds are three and five of them below.
    """
    labels = torch.arange(200) % 10
    samples = sds.sample(
        "fashion-mnist-labels", nfe=12, num_samples=200, seed=8, batch_size=50, condition=labels, guidance_scale=scale
    ).samples
    assert (scorer.net(samples.clamp(-1, 1)).argmax(1) == labels).float().mean() > least


def test_the_null_condition_is_label_ten():
    """Guidance 0 is the network without a label, on two samples of other labels."""
    run = {"sampler": "ddim", "steps": 2, "num_samples": 2, "seed": 3}
    model = sds.load("fashion-mnist-labels")
    assert model.null_condition == 10
    guided = sds.sample(model, condition=[3, 8], guidance_scale=0.0, **run).samples
    plain = sds.sample(model, condition=10, **run).samples
    assert (guided - plain).abs().max() < 1e-5
    assert (sds.sample(model, condition=[3, 8], **run).samples - plain).abs().max() > 0.1


@pytest.mark.parametrize("scale", [2.0, 4.0])
@pytest.mark.parametrize("nfe", [5, 6, 8, 10, 15, 20])
def test_tables_of_the_guided_network_are_its_own(nfe, scale):
    """Each is for its guidance scale alone, and was better than the best fixed setting on starts of the report."""
    model = sds.load("fashion-mnist-labels")
    run = {"num_samples": 1, "nfe": nfe, "condition": 3}
    facts = sds.sample(model, "tuned", guidance_scale=scale, **run).recipe
    assert facts.sampler == "table"
    table = sds.SolverTable.load(ASSETS / "fashion-mnist-labels/sdesamplers" / f"nfe-{nfe}-guidance-{scale:g}.json")
    table.check_model(model)
    errors = table.facts["errors"]
    assert errors["median"] < errors["fixed"]["median"]
    with pytest.raises(sds.UsageError, match="guidance"):
        sds.sample(model, "tuned", guidance_scale=3.0, **run)
