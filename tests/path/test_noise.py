"""Random numbers: keyed draws, their law, Brownian paths, and no global state."""

import itertools
import math

import numpy as np
import pytest
import torch
from lanes import mostly_slow
from scipy import stats

import sdesamplers as sds
from sdesamplers.path.noise import AUXILIARY, BROWNIAN, PATH, START, brownian_levels

STREAMS = (START, PATH, BROWNIAN, AUXILIARY)


def draw(seed=0, index=0, stream=PATH, position=1, block=0, size=4000):
    return sds.NormalSource(seed, [index], (size,)).draw(stream, position, block)[0].double().numpy()


# --- the keyed source -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 5, 7), (), (4, 4)])
@pytest.mark.parametrize("split", [[8], [1] * 8, [3, 5], [5, 2, 1]])
def test_a_draw_does_not_depend_on_how_samples_are_batched(shape, split):
    whole = sds.NormalSource(7, range(8), shape)
    for stream, position, block in ((START, 0, 0), (PATH, 3, 0), (BROWNIAN, 130, 9)):
        expected = whole.draw(stream, position, block)
        assert expected.shape == (8, *shape)
        assert expected.dtype == torch.float32
        starts = np.cumsum([0, *split[:-1]])
        parts = [
            sds.NormalSource(7, range(a, a + n), shape).draw(stream, position, block)
            for a, n in zip(starts, split, strict=True)
        ]
        assert torch.equal(torch.cat(parts), expected)


def test_a_draw_does_not_depend_on_the_draws_before_it():
    source = sds.NormalSource(3, [5, 9], (6,))
    first = source.draw(PATH, 4)
    for position in (9, 1, 4000, 2):
        source.draw(START, position)
    assert torch.equal(source.draw(PATH, 4), first)


def test_chosen_rows_get_the_numbers_that_they_have_in_the_whole_batch():
    source = sds.NormalSource(3, range(10, 16), (5,))
    rows = np.array([4, 0, 3])
    assert torch.equal(source.draw(PATH, 2, rows=rows), source.draw(PATH, 2)[rows])


def test_seeds_up_to_64_bits_are_distinct():
    draws = [draw(seed=s, size=8) for s in (0, 1, 2**32, 2**63, 2**64 - 1)]
    for a, b in itertools.combinations(draws, 2):
        assert not np.array_equal(a, b)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "1", None])
def test_a_wrong_seed_is_refused(seed):
    with pytest.raises(sds.UsageError, match="seed must be a whole number from 0"):
        sds.NormalSource(seed, [0], (1,))


NEIGHBOURS = [
    {"seed": 1},
    {"seed": 2**40},
    {"index": 1},
    {"index": 2**33},
    {"stream": START},
    {"stream": BROWNIAN},
    {"stream": AUXILIARY},
    {"position": 0},
    {"position": 2},
    {"position": 1 + 2**32},
    {"block": 1},
]


@pytest.mark.parametrize("change", NEIGHBOURS)
def test_draws_that_differ_in_any_key_are_uncorrelated(change):
    """Correlation, of values and of squares, within 4 standard errors n^-1/2 of 0; at shifts too."""
    count = 4000
    here, there = draw(size=count), draw(size=count, **change)
    assert not np.array_equal(here, there)
    for shift in (0, 1, -1, 2, count // 2):
        moved = np.roll(there, shift)
        assert abs(np.corrcoef(here, moved)[0, 1]) < 4 / math.sqrt(count)
        assert abs(np.corrcoef(here**2, moved**2)[0, 1]) < 4 / math.sqrt(count)


@pytest.mark.parametrize(
    "direction",
    mostly_slow(
        ["along one draw", "across samples", "across positions", "across seeds"],
        keep=["along one draw", "across samples"],
    ),
)
def test_draws_are_standard_normal(direction):
    """Mean, variance, skewness and kurtosis within 4 standard errors, and Kolmogorov & Smirnov's test at 1e-4."""
    count = 20_000
    if direction == "along one draw":
        x = draw(size=count)
    elif direction == "across samples":
        x = sds.NormalSource(0, range(count), (1,)).draw(PATH, 1).flatten().double().numpy()
    elif direction == "across positions":
        source = sds.NormalSource(0, [0], (2,))
        x = np.concatenate([source.draw(PATH, k).flatten().double().numpy() for k in range(count // 2)])
    else:
        x = np.array([float(sds.NormalSource(seed, [0], (1,)).draw(PATH, 1)) for seed in range(count // 4)])
    n = len(x)
    assert abs(x.mean()) < 4 / math.sqrt(n)
    assert abs(x.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs(stats.skew(x)) < 4 * math.sqrt(6 / n)
    assert abs(stats.kurtosis(x)) < 4 * math.sqrt(24 / n)
    assert stats.kstest(x, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 4 / math.sqrt(n)


def test_the_tails_are_those_of_a_normal():
    """P(|z| > 3) = 0.0027 and P(|z| > 4) = 6.3e-5 of a million numbers, within 4 standard errors."""
    count = 1_000_000
    x = np.abs(draw(size=count))
    for edge in (3.0, 4.0):
        p = 2 * stats.norm.sf(edge)
        assert abs((x > edge).sum() - count * p) < 4 * math.sqrt(count * p)
    assert np.isfinite(x).all()
    assert 4.5 < x.max() < 7


def test_the_two_halves_of_a_draw_are_independent_normals():
    """Box & Muller's pairs share a radius: a wrong angle would show in squares."""
    x = draw(size=40_000)
    a, b = x[:20_000], x[20_000:]
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(20_000)
    assert abs(np.corrcoef(a**2, b**2)[0, 1]) < 4 / math.sqrt(20_000)
    assert stats.kstest(np.arctan2(b, a) / (2 * math.pi) + 0.5, "uniform").pvalue > 1e-4
    assert stats.kstest((a + b) / math.sqrt(2), "norm").pvalue > 1e-4


def test_independent_noise_is_a_fresh_draw_every_time_but_the_same_on_every_run():
    def run():
        noise = sds.IndependentNoise(sds.NormalSource(5, range(3), (4,)))
        return [noise(0.0, 1.0), noise(0.0, 1.0), noise(1.0, 2.0)]

    first, second = run(), run()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(first, 2))


@pytest.mark.parametrize("noise", ["independent", "brownian"])
@pytest.mark.parametrize("sampler", ["euler-maruyama", "ddpm"])
def test_sampling_touches_no_global_generator(sampler, noise):
    model = sds.grid_mixture(sds.VP())
    run = {"steps": 5, "num_samples": 2, "noise": noise}
    before = sds.sample(model, sampler, **run).samples
    torch.manual_seed(1)
    np.random.seed(1)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    again = sds.sample(model, sampler, **run).samples
    assert torch.equal(torch.get_rng_state(), torch_state)
    after = np.random.get_state()
    assert np.array_equal(after[1], numpy_state[1])
    assert after[2:] == numpy_state[2:]
    assert torch.equal(again, before)


# --- Brownian motion --------------------------------------------------------------------------------------------------


def motion(count=3, size=4, seed=2, levels=7):
    return sds.BrownianNoise(sds.NormalSource(seed, range(count), (size,)), levels)


@pytest.mark.parametrize("levels", [7, 12])
@pytest.mark.parametrize(
    "cuts", [(-3.2, 5.7), (0.1, 0.9), (0.0, 1.0), (-1.0, 2.0), (0.25, 0.26), (-31.9, 31.9), (2.5, 2.5 + 2**-6)]
)
def test_increments_add_up_over_any_cut(cuts, levels):
    low, high = cuts
    noise = motion(levels=levels)
    whole, _ = noise.increment(low, high)
    rng = np.random.default_rng(0)
    for pieces in (2, 3, 11):
        ends = np.concatenate([[low], np.sort(rng.uniform(low, high, pieces - 1)), [high]])
        total = sum(noise.increment(a, b)[0].double() for a, b in itertools.pairwise(ends))
        torch.testing.assert_close(total.float(), whole, rtol=0, atol=4e-6 * max(1.0, math.sqrt(high - low)))


def test_an_increment_backwards_is_minus_the_one_forwards():
    noise = motion()
    forwards, std = noise.increment(-0.3, 1.9)
    backwards, same = noise.increment(1.9, -0.3)
    assert torch.equal(forwards, -backwards)
    assert std == same


@pytest.mark.parametrize(
    ("low", "high"), [(-3.2, 5.7), (0.1, 0.9), (0.0, 1.0), (0.3, 0.31), (-0.01, 0.01), (7.0, 7.125), (0.999, 12.001)]
)
def test_the_variance_of_an_increment_is_its_length_in_lambda(low, high):
    """Exactly by its weights, and measured over 40 000 samples within 4 standard errors."""
    count = 40_000
    increment, std = motion(count=4, size=count // 4).increment(low, high)
    assert std == pytest.approx(math.sqrt(high - low), rel=1e-12)
    x = increment.flatten().double().numpy()
    assert abs(x.mean()) < 4 * math.sqrt((high - low) / count)
    assert abs(x.var() / (high - low) - 1) < 4 * math.sqrt(2 / count)
    unit = motion(count=4, size=count // 4)(low, high).flatten().double().numpy()
    assert stats.kstest(unit, "norm").pvalue > 1e-4


@pytest.mark.parametrize(
    "ends",
    [
        (0.1, 0.4, 0.9, 1.7),
        (0.0, 0.5, 1.0, 2.0),
        (0.30, 0.32, 0.34, 0.36),
        (-1.3, -0.2, 0.2, 0.71),
        (0.2, 0.25, 0.75, 0.8),
    ],
)
def test_disjoint_increments_are_independent(ends):
    count = 20_000
    noise = motion(count=2, size=count // 2)
    parts = [noise.increment(a, b)[0].flatten().double().numpy() for a, b in itertools.pairwise(ends)]
    for a, b in itertools.combinations(parts, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(count)
        assert abs(np.corrcoef(a**2, b**2)[0, 1]) < 4 / math.sqrt(count)


def test_overlapping_increments_have_the_covariance_of_their_overlap():
    count = 40_000
    noise = motion(count=2, size=count // 2)
    a, _ = noise.increment(0.1, 1.3)
    b, _ = noise.increment(0.7, 2.2)
    product = (a * b).flatten().double().numpy()
    assert abs(product.mean() - 0.6) < 4 * product.std() / math.sqrt(count)


def test_samples_have_motions_of_their_own_whatever_the_batch():
    whole = motion(count=5)(0.2, 0.7)
    alone = sds.BrownianNoise(sds.NormalSource(2, [3], (4,)), levels=7)(0.2, 0.7)
    assert torch.equal(whole[3:4], alone)
    assert not torch.equal(whole[2], whole[3])
    with pytest.raises(sds.UsageError, match="all samples take together"):
        motion(count=5)(0.2, 0.7, np.array([4, 1]))


def test_independent_noise_counts_each_samples_own_draws():
    """Steps of one's own: sample 1's second draw is the same whether or not sample 0 has drawn in between."""
    together = sds.IndependentNoise(sds.NormalSource(2, range(2), (4,)))
    together(0, 1, np.array([0]))
    together(0, 1, np.array([0, 1]))
    second = together(0, 1, np.array([1]))
    alone = sds.IndependentNoise(sds.NormalSource(2, [1], (4,)))
    alone(0, 1)
    assert torch.equal(alone(0, 1), second)


def test_the_motion_is_the_same_in_whatever_order_it_is_asked_for():
    ends = np.linspace(-2, 2, 41)
    forwards, backwards = motion(), motion()
    first = [forwards(a, b) for a, b in itertools.pairwise(ends)]
    second = [backwards(a, b) for a, b in reversed(list(itertools.pairwise(ends)))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_ends_that_are_off_by_rounding_are_fine():
    noise = motion()
    exact, _ = noise.increment(0.0, 1.0)
    for low, high in ((-1e-16, 1 + 3e-16), (np.nextafter(0, -1), np.nextafter(1, 2)), (1e-16, 1 - 3e-16)):
        moved, std = noise.increment(low, high)
        assert std == pytest.approx(1, rel=1e-6)
        torch.testing.assert_close(moved, exact, rtol=0, atol=1e-5)
    with pytest.raises(sds.UsageError, match="finite"):
        noise.increment(-math.inf, 0.0)


def test_an_empty_interval_has_no_noise():
    with pytest.raises(sds.UsageError, match="step of positive length"):
        motion().increment(0.5, 0.5)


def test_finer_grids_get_a_deeper_construction():
    assert brownian_levels([0.0, 1.0, 2.0]) == 5
    assert brownian_levels([0.0, 1.0, 1.0 + 2.0**-10]) == 10
    assert brownian_levels([1.0]) == 5
    low, high = 0.4001, 0.4001 + 2.0**-12
    assert motion(levels=brownian_levels([low, high])).increment(low, high)[1] == pytest.approx(2.0**-6, rel=1e-9)


def test_a_deeper_construction_passes_through_the_points_of_a_coarser_one():
    """Levels 5 and 9 agree wherever level 5 has a piece's end or its middle: at multiples of 2^-6."""
    coarse, fine = motion(levels=5), motion(levels=9)
    for a, b in itertools.pairwise(np.arange(-40, 60, 7) / 2**6):
        first, second = coarse.increment(a, b)[0], fine.increment(a, b)[0]
        torch.testing.assert_close(first, second, rtol=0, atol=2e-6)


def test_brownian_samples_stay_put_when_the_step_count_doubles():
    """64 against 128 steps of Euler-Maruyama: the same path, hence nearly the same sample; fresh noise is far off."""
    model = sds.grid_mixture(sds.VP())
    run = {"num_samples": 40, "seed": 4, "spacing": "logsnr", "final": "min"}

    def distance(noise):
        coarse, fine = (sds.sample(model, "euler-maruyama", steps=n, noise=noise, **run).samples for n in (64, 128))
        return float((coarse - fine).norm(dim=1).median())

    assert distance("brownian") < 0.2 * distance("independent")


@pytest.mark.parametrize("sampler", ["ddpm", "euler-maruyama"])
def test_brownian_noise_runs_from_alpha_zero_to_sigma_zero(sampler):
    """lambda is infinite at both ends of rectified flow; the steps there are finite all the same."""
    model = sds.grid_mixture(sds.RectifiedFlow(), prediction="flow")
    samples = sds.sample(model, sampler, steps=20, num_samples=4, noise="brownian").samples
    assert torch.isfinite(samples).all()


def test_brownian_noise_runs_for_any_length_of_langevin_dynamics():
    model = sds.FunnelModel(3, duration=100.0)
    samples = sds.sample(model, "euler-maruyama", steps=500, num_samples=2, noise="brownian").samples
    assert torch.isfinite(samples).all()


def test_brownian_noise_is_exact_in_law_where_an_option_places_a_stage_close_to_a_steps_end():
    """dpmpp-sde with r = 0.1 draws on two stretches of a step, one nine times the other, as if independently.

    120 samples of 100 numbers: a deviation's relative standard error is 1/sqrt(24,000), a ratio's sqrt(2) times it.
    """
    process, count = sds.VP(), 120
    model = sds.GaussianModel([0.0] * 100, 1.0, process)
    times = process.time_at_log_snr(2 * np.array([-0.03, 0.02, 0.07]))
    run = {"times": times, "num_samples": count, "start": torch.zeros(count, 100, dtype=torch.float64), "r": 0.1}
    brownian, independent = (
        float(sds.sample(model, "dpmpp-sde", noise=noise, seed=4, **run).samples.std())
        for noise in ("brownian", "independent")
    )
    assert brownian / independent == pytest.approx(1, abs=4 * math.sqrt(2 / 24_000))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bfloat16, torch.float64])
def test_a_source_may_return_another_dtype(dtype):
    """Two-point noise, of weak methods, is often made of integers (Kloeden & Platen 1992, section 14.1)."""

    def coins(kind):
        def source(normals, shortest):
            """1 or -1."""
            return lambda start, end, rows=None: normals.draw(normals.PATH).sign().to(kind)

        return sds.noise_source("coins", limits="two-point", reference="Kloeden & Platen 1992")(source)

    model = sds.grid_mixture(sds.VP())
    found, expected = (
        sds.sample(model, "ddpm", steps=4, num_samples=3, noise=coins(kind)).samples for kind in (dtype, torch.float32)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_noise_that_is_no_number_per_entry_is_refused(dtype):
    def source(normals, shortest):
        """Normals without their decimals."""
        return lambda start, end, rows=None: normals.draw(normals.PATH).to(dtype)

    noise = sds.noise_source("cut", limits="whole numbers", reference="none")(source)
    with pytest.raises(sds.PluginError, match=f"noise of {dtype}; it must be floating-point"):
        sds.sample(sds.grid_mixture(sds.VP()), "ddpm", steps=4, num_samples=3, noise=noise)
