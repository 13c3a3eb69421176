"""Noise sources as plugins: their law against theory, their keys, and what they colour."""

import numpy as np
import pytest
import torch
from scipy import stats

import sdesamplers as sds
from sdesamplers.path.noise import START
from sdesamplers.registry.registry import register, use_registry

SHAPE = (2, 8, 12)
COLOURED = ("pyramid", "coloured", "offset")


def source(count=4, seed=5, first=0, shape=SHAPE):
    return sds.NormalSource(seed, range(first, first + count), shape)


def noise(name, count=4, first=0, shape=SHAPE, shortest=1.0, **options):
    return sds.noises()[name](source(count, first=first, shape=shape), shortest, **options)


def pictures(name, count=4000, **options):
    """`count` independent pictures of a noise source, in float64."""
    return noise(name, count, **options)(0.0, 1.0).double().numpy()


def within(measured, expected, error, sigmas=5.5):
    """Whether all means lie within `sigmas` standard errors: one in 10^7 a comparison by chance."""
    np.testing.assert_array_less(
        np.abs(measured - expected), sigmas * np.broadcast_to(error, np.shape(measured)) + 1e-9
    )


# --- the shelf --------------------------------------------------------------------------------------------------------


def test_noise_sources_are_listed_with_what_they_change():
    found = sds.noises()
    assert set(found) >= {"independent", "brownian", *COLOURED}
    for name, kind in found.items():
        assert kind.name == name
        assert kind.summary
        assert kind.plugin == "sdesamplers:noises"
        assert bool(kind.limits) == (name in COLOURED)


def test_independent_and_brownian_are_the_core_ones():
    assert torch.equal(noise("independent")(0.0, 1.0), sds.IndependentNoise(source())(0.0, 1.0))
    deep = sds.noises()["brownian"](source(), 2.0**-9)
    assert torch.equal(deep(0.0, 2.0**-9), sds.BrownianNoise(source(), 9)(0.0, 2.0**-9))
    assert torch.equal(noise("brownian")(0.0, 1.0), sds.BrownianNoise(source(), 5)(0.0, 1.0))


def test_a_noise_source_of_ones_own():
    @sds.noise_source("mine", limits="no noise at all")
    def mine(source, shortest, *, level: float = 0.0):
        """The same number everywhere."""
        return lambda start, end, rows=None: torch.full((len(source.indices), *source.shape), level)

    register(mine)
    try:
        assert sds.noises()["mine"].plugin == "local"
        model = sds.grid_mixture(sds.VP())
        still = sds.sample(model, "ddpm", steps=4, num_samples=3, noise="mine")
        assert still.recipe.as_dict()["noise"] == "mine"
        moved = sds.sample(model, "ddpm", steps=4, num_samples=3, noise="mine", noise_options={"level": 1.0})
        assert moved.recipe.noise_options == {"level": 1.0}
        assert not torch.equal(still.samples, moved.samples)
    finally:
        sds.registry.registry._local.clear()
        use_registry(None)


def test_a_noise_source_needs_a_docstring_and_options_with_defaults():
    with pytest.raises(sds.PluginError, match="docstring"):
        sds.noise_source("x")(lambda source, shortest: None)
    with pytest.raises(sds.PluginError, match="noise source takes 2"):

        @sds.noise_source("x")
        def one(source):
            """One."""


# --- their law --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "variance"),
    [
        ("pyramid", {}, 1.0),
        ("pyramid", {"discount": 0.5, "levels": 2}, 1.0),
        ("coloured", {}, 1.0),
        ("coloured", {"exponent": 2.0}, 1.0),
        ("coloured", {"exponent": -1.0}, 1.0),
        ("offset", {}, 1.01),
        ("offset", {"strength": 0.5}, 1.25),
        ("offset", {"strength": 0.5, "unit": True}, 1.0),
    ],
)
def test_every_element_is_normal_with_the_variance_stated(name, options, variance):
    """Over N pictures an element's mean has standard error sqrt(v/N) and its mean square v sqrt(2/N)."""
    drawn = pictures(name, **options)
    count = len(drawn)
    within(drawn.mean(0), 0.0, np.sqrt(variance / count))
    within((drawn**2).mean(0), variance, variance * np.sqrt(2 / count))
    for element in (drawn[:, 0, 0, 0], drawn[:, 1, 3, 7]):
        assert stats.kstest(element / np.sqrt(variance), "norm").pvalue > 1e-6


@pytest.mark.parametrize(("exponent", "slope"), [(0.0, 0.0), (1.0, -1.0), (2.0, -2.0), (-1.0, 1.0)])
def test_the_power_of_coloured_noise_falls_as_stated(exponent, slope):
    """The mean power at each frequency is that of 1/f^exponent: exponentially distributed (chi-squared where the
    transform is real), so its standard error is at most sqrt(2/N) of it, N pictures times two channels.
    """
    drawn = pictures("coloured", 2000, exponent=exponent)
    power = (np.abs(np.fft.fft2(drawn)) ** 2).mean((0, 1)) / (SHAPE[1] * SHAPE[2])
    y, x = np.meshgrid(np.fft.fftfreq(SHAPE[1]), np.fft.fftfreq(SHAPE[2]), indexing="ij")
    f = np.hypot(x, y)
    f[0, 0] = 1 / 12  # the mean keeps the power of the lowest frequency
    expected = f**slope / np.mean(f**slope)
    within(power / expected, 1.0, np.sqrt(2 / (2 * len(drawn))))


def test_coloured_noise_of_exponent_0_is_white():
    """Then the spectrum is multiplied by 1, and the transform there and back returns the keyed normals."""
    white = source().draw(sds.NormalSource.AUXILIARY, 1)
    assert torch.allclose(noise("coloured", exponent=0.0)(0.0, 1.0), white, atol=2e-6)


@pytest.mark.parametrize("name", COLOURED)
def test_channels_and_samples_are_independent_but_for_what_is_stated(name):
    drawn = pictures(name, where="both")
    channels = (drawn[:, 0] * drawn[:, 1]).mean(0)
    others = (drawn[0::2] * drawn[1::2]).mean(0)
    within(channels, 0.0, 1.02 / np.sqrt(len(drawn)))
    within(others, 0.0, 1.02 / np.sqrt(len(drawn) / 2))


def test_offset_noise_shifts_whole_channels():
    """Two pixels of a channel have covariance strength^2, with standard error sqrt((v^2 + c^2)/N)."""
    drawn = pictures("offset", strength=0.5)
    covariance = (drawn[:, :, 0, 0] * drawn[:, :, 5, 9]).mean(0)
    within(covariance, 0.25, np.sqrt((1.25**2 + 0.25**2) / len(drawn)))


def interpolation(size, small):
    """Linear interpolation between pixel centres, as torch's bilinear mode does it, with rows of length 1."""
    eye = torch.eye(small, dtype=torch.float64)[None]
    rows = torch.nn.functional.interpolate(eye, size=size, mode="linear", align_corners=False)[0].T.numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(("discount", "levels"), [(0.9, None), (0.5, 3), (0.0, None)])
def test_the_covariance_of_pyramid_noise(discount, levels):
    """The sum over levels of d^2k (A A^T) x (B B^T), over the sum of d^2k; an entry's standard error is at most
    sqrt(2/N).
    """
    height, width = SHAPE[1:]
    sizes = [(8, 12), (4, 6), (2, 3), (1, 2)][:levels]
    expected = np.zeros((height * width, height * width))
    for k, (low, across) in enumerate(sizes):
        rise, run = interpolation(height, low), interpolation(width, across)
        expected += discount ** (2 * k) * np.kron(rise @ rise.T, run @ run.T)
    expected /= sum(discount ** (2 * k) for k in range(len(sizes)))
    drawn = pictures("pyramid", discount=discount, levels=levels).reshape(-1, height * width)
    within(drawn.T @ drawn / len(drawn), expected, np.sqrt(2 / len(drawn)), sigmas=6)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 5), (1, 7, 7), (4, 9, 6)])
@pytest.mark.parametrize("name", COLOURED)
def test_pictures_of_any_size(name, shape):
    drawn = noise(name, 3, shape=shape)(0.0, 1.0)
    assert drawn.shape == (3, *shape)
    assert torch.isfinite(drawn).all()


# --- their keys -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COLOURED)
def test_draws_are_keyed_by_seed_sample_and_number(name):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    whole = noise(name, 6)
    first, second = whole(0.0, 1.0), whole(1.0, 2.0)
    assert not torch.equal(first, second)
    again = noise(name, 6)
    assert torch.equal(again(3.0, 4.0), first)  # the number of the draw counts, not the interval
    part = noise(name, 2, first=3)
    assert torch.allclose(part(0.0, 1.0), first[3:5], rtol=0, atol=2e-6)
    assert torch.allclose(part(1.0, 2.0), second[3:5], rtol=0, atol=2e-6)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", COLOURED)
def test_samples_with_steps_of_their_own_get_their_own_draws(name):
    whole = noise(name, 4)
    first, second = whole(0.0, 1.0), whole(0.0, 1.0)
    rows = np.array([2, 0])
    split = noise(name, 4)
    assert torch.allclose(split(0.0, 1.0, rows), first[rows], rtol=0, atol=2e-6)
    mixed = split(0.0, 1.0)
    assert torch.allclose(mixed[rows], second[rows], rtol=0, atol=2e-6)
    assert torch.allclose(mixed[[1, 3]], first[[1, 3]], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", COLOURED)
def test_the_start_the_steps_or_both_are_coloured(name):
    plain_start, plain_step = source().draw(START), sds.IndependentNoise(source())(0.0, 1.0)
    both, start, steps = (noise(name, where=w) for w in ("both", "start", "steps"))
    assert torch.equal(start.start_noise(), both.start_noise())
    assert torch.equal(start(0.0, 1.0), plain_step)
    assert torch.equal(steps.start_noise(), plain_start)
    first = both(0.0, 1.0)
    assert torch.equal(steps(0.0, 1.0), first)
    assert not torch.equal(first, both.start_noise())


# --- in a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    """Independent pixels N(0, 1), of which x_t says that x0 is alpha x_t in the mean."""
    vp = sds.VP()
    return sds.FunctionModel(lambda x, t: torch.exp(-0.5 * vp.integral(t)) * x, vp, "sample", (1, 8, 8))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "euler-maruyama"])
@pytest.mark.parametrize("name", COLOURED)
def test_samples_do_not_depend_on_the_batch(model, name, sampler):
    whole = sds.sample(model, sampler, steps=4, num_samples=5, noise=name, seed=3).samples
    split = sds.sample(model, sampler, steps=4, num_samples=5, noise=name, seed=3, batch_size=2).samples
    assert torch.allclose(whole, split, rtol=0, atol=1e-5)


def test_noise_reaches_the_samples_as_where_says(model):
    run = {"steps": 4, "num_samples": 3, "noise": "offset"}
    plain = {s: sds.sample(model, s, steps=4, num_samples=3).samples for s in ("ddim", "ddpm")}
    for where, moved in {"start": ("ddim", "ddpm"), "steps": ("ddpm",), "both": ("ddim", "ddpm")}.items():
        for sampler in ("ddim", "ddpm"):
            result = sds.sample(model, sampler, noise_options={"where": where, "strength": 1.0}, **run)
            assert torch.equal(result.samples, plain[sampler]) == (sampler not in moved)
            assert result.recipe.noise_options == {"where": where, "strength": 1.0}


def test_coloured_noise_of_exponent_0_samples_what_independent_noise_does(model):
    """The mean square of 25,600 independent pixels each, with standard error v sqrt(2 / 25600)."""
    run = {"steps": 20, "num_samples": 400}
    white = sds.sample(model, "ddpm", noise="coloured", noise_options={"exponent": 0.0}, **run).samples
    plain = sds.sample(model, "ddpm", **run).samples
    one, other = (float(x.double().square().mean()) for x in (white, plain))
    assert abs(one - other) < 5 * other * np.sqrt(2 * 2 / 25600)


def test_vectors_have_no_coloured_noise():
    for name in COLOURED:
        with pytest.raises(sds.UsageError, match=rf"noise '{name}': .*images of shape \(channels, height, width\)"):
            sds.sample(sds.grid_mixture(sds.VP()), "ddpm", steps=3, noise=name)


def test_log_probabilities_are_those_of_independent_noise(model):
    for name in COLOURED:
        with pytest.raises(sds.UsageError, match=f"log_probs.*'{name}'"):
            sds.sample(model, "ddpm", steps=3, noise=name, log_probs=True)
    for name in ("independent", "brownian"):
        assert sds.sample(model, "ddpm", steps=3, noise=name, log_probs=True).log_probs is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"noise": "pyramids"}, "did you mean 'pyramid'"),
        ({"noise": "pyramid", "noise_options": {"discont": 1.0}}, "did you mean 'discount'"),
        ({"noise": "pyramid", "noise_options": {"discount": 2.0}}, "from 0 to 1"),
        ({"noise": "pyramid", "noise_options": {"levels": 0}}, "1 or more"),
        ({"noise": "offset", "noise_options": {"where": "end"}}, "must be"),
        ({"noise": "independent", "noise_options": {"strength": 1.0}}, "has no options"),
        (
            {"noise": "coloured", "noise_options": {"exponent": 1e3}},
            "noise 'coloured': exponent must lie from -10 to 10",
        ),
        ({"noise": "coloured", "noise_options": {"exponent": -11.0}}, "from -10 to 10"),
    ],
)
def test_mistakes_are_told(model, words, message):
    with pytest.raises(sds.UsageError, match=message):
        sds.sample(model, "ddpm", steps=3, **words)


def test_the_other_spelling(model):
    run = {"steps": 3, "noise_options": {"exponent": 2.0}}
    other = sds.sample(model, "ddpm", noise="colored", **run)
    assert other.recipe.noise == "coloured"
    assert torch.equal(other.samples, sds.sample(model, "ddpm", noise="coloured", **run).samples)
