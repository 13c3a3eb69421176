"""`steer`: its random numbers, its bookkeeping, its errors; what it does to real samplers and networks."""

import math
import pickle
import re
import threading
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
import torch

import sdesamplers as sds
from sdesamplers.metrics import Scorer
from sdesamplers.path.noise import uniforms
from sdesamplers.steering.resampling import SCHEMES, settled

MODEL, IMAGES = sds.grid_mixture(sds.VP()), sds.load("fashion-mnist")


def right(x0):
    return x0[:, 0]


def steer(reward=right, sampler="ddpm", model=MODEL, **kwargs):
    kwargs = {"steps": 10, "particles": 6, "scale": 3.0, "num_samples": 3, "seed": 4, **kwargs}
    return sds.steer(model, reward, sampler, **kwargs)


def same(a, b):
    """True if two results have the same particles, weights and ancestors, bit for bit."""
    fields = ("samples", "particles", "log_weights", "log_normalizer", "ancestors", "ess", "rewards", "reward_history")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in fields)


# Resampling.


@pytest.mark.parametrize("name", SCHEMES)
def test_each_particle_has_its_expected_number_of_descendants(name):
    """K w_k on average: within 4 standard errors, from 20,000 repeats."""
    generator, weights = np.random.default_rng(0), np.array([0.37, 0.0, 0.05, 0.21, 0.12, 0.25])
    counts = np.array(
        [np.bincount(SCHEMES[name](weights, generator.random(6)), minlength=6) for _ in range(20_000)], dtype=float
    )
    assert np.all(counts.sum(1) == 6)
    error = counts.std(0) / math.sqrt(len(counts))
    assert np.all(np.abs(counts.mean(0) - 6 * weights) <= 4 * error)
    if name == "systematic":
        assert np.all(np.abs(counts - 6 * weights) < 1)
    if name == "residual":
        assert np.all(counts >= np.floor(6 * weights))


@pytest.mark.parametrize("name", SCHEMES)
def test_equal_weights_keep_every_particle_unless_positions_are_independent(name):
    ancestors = SCHEMES[name](np.full(7, 1 / 7), np.random.default_rng(1).random(7))
    assert (sorted(ancestors) == list(range(7))) is (name != "multinomial")


def test_residual_resampling_counts_thirds_as_thirds():
    assert SCHEMES["residual"](np.array([1, 1, 1]) / 3, np.full(3, 0.5)).tolist() == [0, 1, 2]


def test_survivors_keep_their_places():
    assert settled(np.array([1, 1, 1, 4, 4])).tolist() == [1, 1, 1, 4, 4]
    assert settled(np.array([0, 2, 2, 2])).tolist() == [0, 2, 2, 2]
    assert settled(np.array([3, 3, 0, 1])).tolist() == [0, 1, 3, 3]


def test_uniform_numbers_are_uniform_and_keyed_by_all_their_arguments():
    """Moments within 4 standard errors; no argument leaves the numbers as they are."""
    found = uniforms(3, 5, 7, 40_000)
    assert 0 < found.min() < 1e-3
    assert 1 - 1e-3 < found.max() < 1
    assert abs(found.mean() - 1 / 2) < 4 * math.sqrt(1 / 12 / 40_000)
    assert abs((found**2).mean() - 1 / 3) < 4 * math.sqrt(4 / 45 / 40_000)
    others = [uniforms(*key, 4) for key in ((4, 5, 7), (3, 6, 7), (3, 5, 8))]
    assert len({tuple(each) for each in [found[:4], *others]}) == 4
    assert np.array_equal(uniforms(3, 5, 7, 2), found[:2])


# What a sample depends on.


def test_one_particle_is_the_sample_of_sample():
    plain = sds.sample(MODEL, "ddpm", steps=10, num_samples=3, seed=4)
    assert torch.equal(steer(particles=1).samples, plain.samples)


def test_without_resampling_the_particles_are_runs_of_the_sampler_and_do_not_depend_on_their_number():
    few, many = steer(particles=2, ess=0.0), steer(particles=5, ess=0.0)
    assert torch.equal(few.particles, many.particles[:, :2])
    plain = sds.sample(MODEL, "ddpm", steps=10, num_samples=3, seed=4)
    assert torch.equal(many.particles[:, 0], plain.samples)
    assert len(many.particles.flatten(0, 1).unique(dim=0)) == 15


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp-2m-sde", "dpmpp-sde"])
@pytest.mark.parametrize("noise", ["independent", "brownian"])
def test_samples_do_not_depend_on_batches_or_on_their_number(sampler, noise):
    arguments = {"sampler": sampler, "noise": noise, "ess": 0.95}
    whole = steer(**arguments)
    assert (whole.ancestors != torch.arange(6)).any()
    last = steer(**arguments, first_index=2, num_samples=1)
    assert torch.equal(whole.particles[2:], last.particles)
    assert torch.equal(whole.ancestors[2:], last.ancestors)
    small = steer(**arguments, batch_size=4)  # a model in float64, whose rows do not depend on others
    assert same(whole, small)


@pytest.mark.parametrize("sampler", ["dpmpp-2m-sde", "sa-solver", "er-sde", "seeds-2"])
def test_resampling_copies_what_the_sampler_remembers(sampler):
    """Particles that are all replaced by one, whose noise is then that of their own places.

    The first place keeps both its state and its noise, so it ends as without steering, which has another memory if
    the memory of resampled particles is wrong.
    """

    def only_first(x0):
        return torch.where(torch.arange(len(x0)) % 6 == 0, 0.0, -1e6).double()

    result = steer(only_first, sampler, at=[4, 5, 7], ess=1.0)
    assert (result.ancestors == 0).all()
    plain = sds.sample(MODEL, sampler, steps=10, num_samples=3, seed=4)
    torch.testing.assert_close(result.particles[:, 0], plain.samples, rtol=1e-12, atol=1e-12)
    assert len(result.particles.flatten(0, 1).unique(dim=0)) == 18


# What is reported.


def test_lineages_lead_from_the_end_to_the_start():
    result = steer(scale=10.0)
    groups, events, count = result.ancestors.shape
    assert result.lineages.shape == (groups, events + 1, count)
    for group in range(groups):
        for particle in range(count):
            place = particle
            for event in reversed(range(events)):
                place = int(result.ancestors[group, event, place])
                assert int(result.lineages[group, event, particle]) == place


def test_weights_add_up_and_the_effective_size_is_theirs():
    result = steer()
    torch.testing.assert_close(result.weights.sum(1), torch.ones(3).double())
    torch.testing.assert_close(result.ess[:, -1], 1 / result.weights.square().sum(1))
    assert torch.equal(result.rewards, result.particles[..., 0])
    assert torch.equal(result.samples, result.particles[torch.arange(3), result.selected])
    assert torch.equal(result.best[:, 0], result.rewards.amax(1))
    assert result.nfe == 60
    assert len(result.steered_times) == len(result.steered_at) == 9
    assert np.all(np.diff(result.steered_times) < 0)


def test_the_best_particle_can_be_the_sample():
    result = steer(select="reward")
    assert torch.equal(result.samples, result.best)


def test_with_difference_potentials_the_weights_since_the_last_resampling_follow_from_the_rewards():
    """Without resampling, weights are exp(scale reward), normalised, and Z is their mean."""
    result = steer(ess=0.0)
    tilt = torch.exp(3.0 * result.rewards)
    torch.testing.assert_close(result.weights, tilt / tilt.sum(1, keepdim=True))
    torch.testing.assert_close(result.log_normalizer, tilt.mean(1).log())


def test_results_can_be_pickled():
    result = steer()
    assert same(pickle.loads(pickle.dumps(result)), result)
    assert "6 particles each" in repr(result)


# Proposals.


def test_a_twisted_proposal_makes_weights_more_even():
    """Importance sampling alone; the closed form of Z is checked in test_tilted_mixtures."""
    plain, twisted = (steer(ess=0.0, twist=t, particles=100, num_samples=20, steps=20) for t in (0.0, 1.0))
    assert twisted.ess[:, -1].mean() > 2 * plain.ess[:, -1].mean()
    assert twisted.particles[..., 0].mean() > plain.particles[..., 0].mean() + 0.2


def moved(sampler, steps, process=None, **kwargs):
    """How far the twist moves particles on Gaussian data N(0.3, 0.25), all equally far since every step is linear."""
    model = sds.GaussianModel([0.3], 0.25, process or sds.RectifiedFlow(), prediction="flow")
    kwargs = {"model": model, "particles": 1, "scale": 2.0, "at": [], "steps": steps, **kwargs}
    plain, twisted = (steer(sampler=sampler, twist=twist, **kwargs).particles.flatten() for twist in (0.0, 1.0))
    shift = twisted - plain
    torch.testing.assert_close(shift, shift[:1].expand(3), rtol=1e-9, atol=1e-9)
    return float(shift[0])


@pytest.mark.parametrize("sampler", ["ddpm", "euler-maruyama", "dpmpp-2m-sde"])
def test_the_twist_is_the_exact_proposal_for_gaussian_data_in_the_limit_of_small_steps(sampler):
    """N(m, c) tilted by exp(b x) is N(m + c b, c): the twist moves particles by c b, and its error is of order 1."""
    errors = [moved(sampler, steps) - 0.25 * 2.0 for steps in (50, 100)]
    assert abs(errors[1]) < 0.06
    assert 1.7 < errors[0] / errors[1] < 2.3


@pytest.mark.parametrize("coordinates", ["ve", "flow", "angle"])
def test_the_twist_does_not_depend_on_coordinates(coordinates):
    arguments = ("ddpm", 12, sds.VP())
    assert moved(*arguments, coordinates=coordinates) == pytest.approx(moved(*arguments), rel=1e-9)


def test_the_twist_differentiates_in_small_batches():
    whole, small = steer(twist=0.5), steer(twist=0.5, batch_size=5)
    torch.testing.assert_close(whole.particles, small.particles, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole.log_weights, small.log_weights, rtol=1e-10, atol=1e-10)


# Conditions, starts, decoders, networks.


def test_a_conditional_reward_receives_the_rows_of_its_samples():
    seen = []

    def network(x, t, labels):
        return x * 0.1 + labels[:, None]

    model = sds.wrap(network, (2,), process=sds.RectifiedFlow(), prediction="flow", conditional=True)
    labels = torch.tensor([3.0, 0.0, 2.0])

    def reward(x0, condition):
        seen.append(condition.tolist())
        return x0[:, 0]

    sds.steer(
        model, reward, "euler-ancestral", steps=4, particles=2, num_samples=3, condition=labels, conditional=True,
        batch_size=4,
    )  # fmt: skip
    assert seen[0] + seen[1] == [3, 3, 0, 0, 2, 2]


def test_all_particles_of_a_sample_begin_at_its_start():
    start = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    begun = []

    def reward(x0):
        begun.append(x0)
        return x0[:, 0]

    steer(reward, start=start, start_time=0.5, num_samples=None, at=[0], steps=5)
    groups = begun[0].reshape(2, 6, 2)
    assert torch.equal(groups, groups[:, :1].expand(2, 6, 2))


def test_decoded_pictures_are_judged_on_request():
    class Latent(sds.MixtureModel):
        pure = True

        def decode(self, samples):
            return 100 * samples

    model = Latent([1.0], [[0.0, 0.0]], [1.0], sds.VP())
    result = steer(model=model, decode=True, scale=0.01)
    assert torch.equal(result.rewards, 100 * result.particles[..., 0])


def test_a_reward_may_edit_its_argument_and_use_a_network_with_dropout():
    net = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Dropout(0.5)).double().train()

    def reward(x0):
        return net(x0.mul_(2.0))[:, 0]

    assert same(steer(reward), steer(reward))
    assert net.training
    plain = sds.sample(MODEL, "ddpm", steps=10, num_samples=3, seed=4).samples
    assert torch.equal(steer(reward, ess=0.0).particles[:, 0], plain)


def test_no_call_has_more_rows_than_the_batch_size():
    calls = []

    def network(x, t):
        calls.append(len(x))
        return 0.1 * x

    def reward(x0):
        calls.append(len(x0))
        return x0[:, 0]

    model = sds.FunctionModel(network, sds.RectifiedFlow(), "flow", (2,))
    steer(reward, model=model, batch_size=7)  # 18 particles
    assert sorted(set(calls)) == [4, 7]
    assert len(calls) == 3 * (10 + 9 + 1)  # evaluations, rewards on the way, and of the samples


def test_guidance_applies_as_in_sample():
    model = sds.wrap(
        lambda x, t, label: 0.1 * x + label[:, None],
        (2,), process=sds.RectifiedFlow(), prediction="flow", conditional=True, null_condition=torch.tensor(0.0),
    )  # fmt: skip
    arguments = {"condition": torch.tensor([1.0, 2.0, 3.0]), "guidance_scale": 2.5}
    plain = sds.sample(model, "ddpm", steps=10, num_samples=3, seed=4, **arguments)
    steered = steer(model=model, ess=0.0, **arguments)
    torch.testing.assert_close(steered.particles[:, 0], plain.samples, rtol=1e-6, atol=1e-6)
    assert steered.guidance_scale == 2.5


def test_a_call_without_a_sampler_takes_fifty_steps_of_ddpm():
    result = sds.steer(MODEL, right, particles=1, seed=4)
    assert torch.equal(result.samples, sds.sample(MODEL, "ddpm", steps=50, seed=4).samples)
    assert sds.steer(MODEL, right, particles=1, steps=3).recipe.steps == 3


def test_a_run_can_be_cancelled():
    cancel, calls = threading.Event(), []

    def reward(x0):
        calls.append(len(x0))
        if len(calls) == 3:
            cancel.set()
        return x0[:, 0]

    with pytest.raises(sds.Cancelled, match="cancelled after 4 evaluations"):
        steer(reward, cancel=cancel)


# Errors.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "euler"}, "euler draws no noise, so copies of a particle would stay equal; use a stochastic"),
        ({"sampler": "ddim"}, r"ddim draws no noise with eta=0.0"),
        ({"sampler": "rk45", "steps": None}, "rk45 chooses each sample's steps"),
        ({"sampler": "gotta-go-fast", "steps": None}, "gotta-go-fast chooses each sample's steps"),
        ({"particles": 0}, "particles must be a whole number of 1 or more"),
        ({"potential": "maximum"}, "potential must be 'difference' or 'max' or 'sum', not 'maximum'"),
        ({"resample": "systemic"}, "did you mean 'systematic'"),
        ({"ess": 1.5}, r"ess is a fraction of the particles and must lie in \[0, 1\], not 1.5"),
        ({"at": [2, 10]}, "at has numbers of evaluations, from 0 to 9 in this run, not 10"),
        ({"at": 0}, "at must be a whole number of 1 or more"),
        ({"at": 0.5}, "at must be a whole number"),
        ({"scale": math.nan}, "scale must be a number"),
        ({"select": "best"}, "select must be 'weight' or 'reward'"),
        ({"reward": None}, "reward must be a function of estimates of x0, not None"),
        ({"reward": 3}, "reward must be a function of estimates of x0, not 3"),
        ({"reward": lambda x0: x0}, r"one number for each of 18 rows, .*, not torch.float64 of shape \(18, 2\)"),
        ({"reward": lambda x0: x0.mean()}, r"tensor of shape \(18,\), not torch.float64 of shape \(\)"),
        ({"reward": lambda x0: None}, "reward must return a tensor of 18 numbers, not None"),
        ({"twist": 1.0, "reward": lambda x0: x0.detach()[:, 0]}, "twist differentiates the reward"),
        ({"twist": 1.0, "noise": "pyramid", "model": IMAGES}, "twist needs independent normal noise"),
        ({"twist": 1.0, "sampler": "dpmpp-sde"}, "twist needs a sampler that uses the noise of a step in"),
        ({"potentials": "max"}, "did you mean potential="),
        ({"start_time": 0.5}, "pass start as well"),
    ],
)  # fmt: skip
def test_errors_say_what_would_be_right(arguments, message):
    with pytest.raises(sds.UsageError, match=message):
        steer(**arguments)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_refused_with_its_place(bad):
    def reward(x0):
        return torch.where(torch.arange(len(x0)) == 4, bad, 0.0)

    with pytest.raises(sds.NonFiniteError, match=re.escape(f"reward returned {bad} at evaluation 2")):
        steer(reward)


def test_a_process_without_x0_is_refused():
    model = sds.FunnelModel(2)
    with pytest.raises(sds.UsageError, match="has no alpha and sigma"):
        steer(model=model, sampler="euler-maruyama", steps=5)


# The embedded model.


def test_the_classifiers_reward_rises_on_the_embedded_model(classifier):
    """The log-probability of the class 'sneaker' by the embedded classifier, of which the network knows nothing."""

    def sneaker(images):
        return classifier(images).log_softmax(1)[:, 7]

    plain = sneaker(sds.sample(IMAGES, "ddpm", steps=8, num_samples=4, seed=2).samples).mean()
    result = sds.steer(IMAGES, sneaker, "ddpm", steps=8, particles=6, num_samples=4, seed=2, at=2)
    assert sneaker(result.samples).mean() > plain + 2
    selected = result.rewards.gather(1, result.selected[:, None])[:, 0]
    torch.testing.assert_close(sneaker(result.samples).double(), selected)


@pytest.fixture(scope="module")
def classifier():
    return Scorer(files("sdesamplers") / "assets" / "fashion-mnist-metrics").net


def test_evaluations_as_an_array() -> None:
    arguments: dict[str, Any] = {"steps": 5, "particles": 3, "num_samples": 2}
    model = sds.MixtureModel([1.0], torch.zeros(1, 4), [0.25], sds.VP())
    results = [sds.steer(model, lambda x: x.mean(1), "ddpm", at=at, **arguments) for at in ([1, 2], np.array([1, 2]))]
    assert results[0].steered_at == results[1].steered_at == [1, 2]
    assert torch.equal(results[0].samples, results[1].samples)
