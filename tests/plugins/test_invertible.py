"""Samplers that walk a pair of states: their runs undone to rounding, their equations, and what carries the pair."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from exact_models import gaussian
from lanes import mostly_slow

import sdesamplers as sds
from sdesamplers.path.pairs import PairLedger, leave_companion, take_companion
from sdesamplers.path.path import Path

RUNS = [
    ("bdia-ddim", {}),
    ("bdia-ddim", {"gamma": 0.9}),
    ("reversible-heun", {}),
    ("reversible-midpoint", {}),
    ("reversible-midpoint", {"coupling": 0.9}),
]
MODELS = {
    "vp": sds.grid_mixture(sds.VP()),
    "edm": sds.grid_mixture(sds.EDM()),
    "flow": sds.grid_mixture(sds.RectifiedFlow(), prediction="flow"),
}


def worst(a, b):
    return float((a - b).abs().max())


@pytest.mark.parametrize("coordinates", mostly_slow(["native", "flow", "angle"], keep=["native"]))
@pytest.mark.parametrize("process", mostly_slow(MODELS, keep=["vp"]))
@pytest.mark.parametrize(("sampler", "options"), RUNS)
def test_a_round_trip_is_exact(sampler, options, process, coordinates):
    """Data to latents and back at 20 steps, in float64; without the companion the way back is not exact."""
    model = MODELS[process]
    x = model.sample_data(4, torch.Generator().manual_seed(0))
    words = {"steps": 20, "coordinates": coordinates, **options}
    code = sds.encode(model, x, sampler, **words)
    assert code.companion.shape == code.samples.shape
    assert worst(sds.decode(model, code, sampler, **words).samples, x) < 1e-10
    assert worst(sds.decode(model, code.samples, sampler, **words).samples, x) > 1e-6


@pytest.mark.parametrize(("sampler", "options"), RUNS)
def test_the_other_round_trip_is_exact_too(sampler, options):
    """Latents to data and back."""
    model = MODELS["vp"]
    z = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    words = {"steps": 20, **options}
    data = sds.decode(model, z, sampler, **words)
    assert worst(sds.encode(model, data, sampler, **words).samples, z) < 1e-10


@pytest.mark.parametrize(
    "sampler", mostly_slow(["bdia-ddim", "reversible-heun", "reversible-midpoint"], keep=["bdia-ddim"])
)
def test_a_garment_comes_back_exactly(sampler):
    """The embedded network, in float32 itself, with a float64 state, at 20 steps."""
    model = sds.load("fashion-mnist")
    x = torch.linspace(-1, 1, 784, dtype=torch.float64).view(1, 1, 28, 28)
    code = sds.encode(model, x, sampler, steps=20)
    assert code.samples.dtype == torch.float64
    assert worst(sds.decode(model, code, sampler, steps=20).samples, x) < 1e-10


def test_float32_comes_back_to_its_own_rounding():
    model = sds.grid_mixture(sds.VP(), dtype=torch.float32)
    x = model.sample_data(4, torch.Generator().manual_seed(0)).float()
    for sampler, options in RUNS:
        code = sds.encode(model, x, sampler, steps=20, **options)
        assert code.companion.dtype == torch.float32
        assert worst(sds.decode(model, code, sampler, steps=20, **options).samples, x) < 1e-3


def test_a_whole_batch_or_parts_of_it():
    model = MODELS["vp"]
    x = model.sample_data(5, torch.Generator().manual_seed(0))
    for sampler, options in RUNS:
        code = sds.encode(model, x, sampler, steps=9, batch_size=2, **options)
        assert code.companion.shape == (5, 2)
        assert worst(sds.decode(model, code, sampler, steps=9, batch_size=3, **options).samples, x) < 1e-10


def test_bdia_by_its_equation():
    """Three steps on a Gaussian, the DDIM steps written out by hand from epsilon."""
    model, _ = gaussian(2, sds.VP())
    process = model.process
    times, gamma = [0.9, 0.6, 0.4, 0.2], 0.7
    levels = [(float(process.alpha(t)), float(process.sigma(t))) for t in times]

    def ddim(x, here, there):
        eps = model.predict(x, times[here])
        x0 = (x - levels[here][1] * eps) / levels[here][0]
        return levels[there][0] * x0 + levels[there][1] * eps

    states = [torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))]
    states.append(ddim(states[0], 0, 1))
    for i in (1, 2):
        forwards, backwards = ddim(states[i], i, i + 1) - states[i], ddim(states[i], i, i - 1) - states[i]
        # gamma of the last stretch is what the backward step says it was, the rest what was taken.
        states.append(states[i - 1] - (1 - gamma) * (states[i - 1] - states[i]) - gamma * backwards + forwards)
    found = sds.sample(model, "bdia-ddim", times=times, start=states[0], gamma=gamma)
    torch.testing.assert_close(found.samples, states[-1], rtol=1e-12, atol=0)


def test_reversible_heun_by_its_equation():
    model, _ = gaussian(2, sds.RectifiedFlow(), prediction="flow")
    times = [0.9, 0.7, 0.4, 0.3]
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    found = sds.sample(model, "reversible-heun", times=times, start=x)
    z, slope = x, model.predict(x, times[0])
    for now, then in pairwise(times):
        z = 2 * x - z + (then - now) * slope
        ahead = model.predict(z, then)
        x, slope = x + (then - now) * (slope + ahead) / 2, ahead
    torch.testing.assert_close(found.samples, x, rtol=1e-12, atol=0)
    assert found.nfe == 4


def test_reversible_midpoint_by_its_equation():
    model, _ = gaussian(2, sds.RectifiedFlow(), prediction="flow")
    times, c = [0.9, 0.7, 0.4], 0.8
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    found = sds.sample(model, "reversible-midpoint", times=times, start=x, coupling=c)

    def gain(y, start, h):
        return h * model.predict(y + h / 2 * model.predict(y, start), start + h / 2)

    z = x
    for now, then in pairwise(times):
        x = c * x + (1 - c) * z + gain(z, now, then - now)
        z = z - gain(x, then, now - then)
    torch.testing.assert_close(found.samples, x, rtol=1e-12, atol=0)
    assert found.nfe == 8


def test_small_gammas_damp_and_grow_on_the_way_back():
    """gamma^-20 = 1e6 at 0.5: what DDIM misses at each step grows in the latents, and rounding with it."""
    model = MODELS["vp"]
    x = model.sample_data(4, torch.Generator().manual_seed(0))
    sizes = {g: float(sds.encode(model, x, "bdia-ddim", steps=20, gamma=g).samples.std()) for g in (1.0, 0.5)}
    assert sizes[1.0] < 1.5
    assert sizes[0.5] > 1e3


def test_only_samplers_of_pairs_have_a_companion():
    model = MODELS["vp"]
    x = model.sample_data(2, torch.Generator().manual_seed(0))
    pair = sds.encode(model, x, "reversible-heun", steps=4)
    plain = sds.decode(model, pair, "heun", steps=4)
    assert plain.companion is None
    assert torch.equal(plain.samples, sds.decode(model, pair.samples, "heun", steps=4).samples)
    ledger = PairLedger(companion=x)
    path = Path(model.process, [], ledger=ledger)
    assert take_companion(path) is x
    assert take_companion(path) is None
    leave_companion(path, x)
    assert ledger.companion is x
    bare = Path(model.process, [])
    leave_companion(bare, x)
    assert take_companion(bare) is None


def test_likelihoods_run_on_them():
    model, x = gaussian(2, sds.VP())
    words = {"divergence": "exact", "spacing": "logsnr", "coordinates": "flow"}
    exact = sds.log_likelihood(model, x, "rk4", steps=60, **words).nats
    found = sds.log_likelihood(model, x, "reversible-heun", steps=100, **words).nats
    np.testing.assert_allclose(found, exact, atol=5e-3)
