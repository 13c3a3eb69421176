"""Langevin Monte Carlo on plain densities: exact moments, closed-form biases, exact stationarity, refusals."""

import math

import numpy as np
import pytest
import torch
from lanes import mostly_slow
from scipy.linalg import expm

import sdesamplers as sds
from sdesamplers.path.noise import PATH, NormalSource
from sdesamplers.testing.problems import Counter, run

MEAN, VARIANCE = 0.7, 0.36


class Density(sds.Model):
    """N(MEAN, VARIANCE I) as a plain density."""

    prediction = "score"
    dtype = torch.float64
    name = "density"

    def __init__(self, duration=10.0, dimension=1):
        self.shape = (dimension,)
        self.process = sds.LangevinSDE(self.score, duration)

    def score(self, x):
        return (MEAN - x) / VARIANCE

    def log_prob(self, x):
        return -0.5 * ((x - MEAN) ** 2 / VARIANCE).sum(1) - 0.5 * x.shape[1] * math.log(2 * math.pi * VARIANCE)

    def predict(self, x, t, condition=None):
        return sds.Output(self.score(x), None, self.log_prob(x))


def moments(sampler, times, start_variance, **options):
    """Exact mean and variance at the end, from N(0, start_variance): runs on unit vectors of start and noises."""
    spec, model = sds.samplers()[sampler], Density(max(times))
    words = {"times": times, "options": options}
    dry = Counter(1)
    run(model, spec, torch.zeros(1, 1, dtype=torch.float64), noise=dry, **words)
    start = torch.zeros(dry.draws + 2, 1, dtype=torch.float64)
    start[1] = 1.0
    out = run(model, spec, start, noise=Counter(len(start)), **words).flatten()
    gains = out[1:] - out[0]
    return float(out[0]), float(gains[0] ** 2 * start_variance + gains[1:].square().sum())


def slope(counts, errors):
    """Order of convergence: minus the slope of log error against log steps."""
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


def uneven(steps, duration):
    """From `duration` down to 0 in steps that alternate 1 : 1.5."""
    shares = np.cumsum(np.tile([1.0, 1.5], steps)[:steps])
    return duration * (1 - np.concatenate([[0.0], shares]) / shares[-1])


def test_ula_is_euler_maruyama_to_the_bit():
    words = {"steps": 12, "num_samples": 5, "seed": 4}
    for model in (Density(2.0), sds.FunnelModel(duration=0.5)):
        found, expected = (sds.sample(model, name, **words).samples for name in ("ula", "euler-maruyama"))
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)


def test_ula_converges_to_the_langevin_equation_at_order_one():
    """dx = (m - x)/(2v) dt + dw from N(0, 1): x(T) has mean m (1 - e^{-T/2v}) and variance v + (1 - v) e^{-T/v}."""
    counts, duration = (16, 32, 64, 128), 1.0
    found = np.array([moments("ula", uneven(n, duration), 1.0) for n in counts])
    decay = math.exp(-duration / (2 * VARIANCE))
    exact = MEAN * (1 - decay), VARIANCE + (1 - VARIANCE) * decay**2
    for k in (0, 1):
        assert slope(counts, abs(found[:, k] - exact[k])) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("h", [0.05, 0.3, 0.7])
def test_ula_settles_at_the_variance_that_its_step_has_on_paper(h):
    """v / (1 - h/(4v)); in the form x + e s + sqrt(2e) z with e = h/2 that is v / (1 - e/(2v))."""
    mean, variance = moments("ula", h * np.arange(120.0 if h > 0.1 else 480.0)[::-1], 1.0)
    assert mean == pytest.approx(MEAN, rel=1e-9)
    assert variance == pytest.approx(VARIANCE / (1 - h / (4 * VARIANCE)), rel=1e-9)


def kinetic_moments(duration, friction, start_variance):
    """Exact mean and variance of x(T) for dx = p dt, dp = (m - x)/v dt - friction p dt + sqrt(2 friction) dw."""
    flow = expm(duration * np.array([[0.0, 1.0], [-1 / VARIANCE, -friction]]))
    settled = np.diag([VARIANCE, 1.0])
    spread = settled + flow @ (np.diag([start_variance, 1.0]) - settled) @ flow.T
    return MEAN - flow[0, 0] * MEAN, spread[0, 0]


@pytest.mark.parametrize("friction", [0.5, 3.0])
def test_underdamped_langevin_converges_to_its_equation_at_order_two(friction):
    counts, duration = (16, 32, 64, 128), 1.5
    exact = kinetic_moments(duration, friction, 1.0)
    found = [moments("underdamped-langevin", uneven(n, duration), 1.0, friction=friction) for n in counts]
    errors = abs(np.array(found) - exact)
    for k in (0, 1):
        assert slope(counts, errors[:, k]) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("h", [0.1, 0.5, 1.0])
def test_underdamped_langevin_settles_at_the_exact_variance_of_a_gaussian(h):
    """BAOAB's x-marginal has no bias on a quadratic potential below its limit h = 2 sqrt(v) (Leimkuhler & Matthews)."""
    mean, variance = moments("underdamped-langevin", h * np.arange(40.0 / h + 80)[::-1], 1.0, friction=1.5)
    assert mean == pytest.approx(MEAN, rel=1e-6)
    assert variance == pytest.approx(VARIANCE, rel=1e-6)


def test_one_step_of_baoab_by_hand():
    x = torch.tensor([[0.2], [-1.0]], dtype=torch.float64)
    h, friction = 0.4, 2.0
    source = NormalSource(0, range(2), (1,))
    velocity, kick = source.draw(PATH, 1).double(), source.draw(PATH, 2).double()
    velocity = velocity + h / 2 * (MEAN - x) / VARIANCE
    y = x + h / 2 * velocity
    c = math.exp(-friction * h)
    velocity = c * velocity + math.sqrt(1 - c * c) * kick
    words = {"times": [h, 0.0], "start": x, "num_samples": 2, "friction": friction}
    found = sds.sample(Density(1.0), "underdamped-langevin", **words)
    torch.testing.assert_close(found.samples, y + h / 2 * velocity, rtol=1e-12, atol=1e-12)
    assert found.nfe == 1


def mala_by_hand(model, x, h, steps, source):
    """The textbook's loop, sample by sample in plain numbers; also how many proposals were accepted."""
    accepted = 0
    for k in range(steps):
        z, chance = (source.draw(PATH, 2 * k + j).double() for j in (1, 2))
        mean = x + h / 2 * model.score(x)
        y = mean + math.sqrt(h) * z
        back = y + h / 2 * model.score(y)
        for j in range(len(x)):
            log_ratio = model.log_prob(y[j : j + 1]) - model.log_prob(x[j : j + 1])
            log_ratio += ((y[j] - mean[j]).square().sum() - (x[j] - back[j]).square().sum()) / (2 * h)
            u = 0.5 * math.erfc(-float(chance[j].flatten()[0]) / math.sqrt(2))
            if u < math.exp(min(float(log_ratio), 0.0)):
                x[j], accepted = y[j], accepted + 1
    return x, accepted / steps / len(x)


def test_mala_is_the_metropolis_hastings_algorithm():
    model, h, steps = sds.FunnelModel(4, duration=10.0), 0.4, 20
    x = model.sample_data(12, torch.Generator().manual_seed(3))
    times = [h * k for k in range(steps, -1, -1)]
    found = sds.sample(model, "mala", times=times, start=x, num_samples=12)
    expected, rate = mala_by_hand(model, x.clone(), h, steps, NormalSource(0, range(12), (4,)))
    assert 0.2 < rate < 0.95  # both branches are taken
    torch.testing.assert_close(found.samples, expected, rtol=1e-9, atol=1e-9)
    assert found.nfe == steps + 1


@pytest.mark.parametrize("noise", mostly_slow(["independent", "brownian"], keep=["independent"]))
def test_mala_is_exact_at_a_step_where_ula_is_far_off(noise):
    """From a far start, N(MEAN, VARIANCE) within 4 standard errors; ULA's variance there is 1.9 times too large."""
    count, h = 1_500 if noise == "independent" else 150, 0.7
    words = {"steps": 40, "num_samples": count, "noise": noise, "start": torch.full((count, 2), 3.0).double()}
    model = Density(40 * h, 2)
    found = sds.sample(model, "mala", **words).samples
    assert float((found.mean(0) - MEAN).abs().max()) < 4 * math.sqrt(VARIANCE / count)
    assert float((found.var(0) / VARIANCE - 1).abs().max()) < 4 * math.sqrt(2 / count)
    biased = sds.sample(model, "ula", **words).samples
    settled = VARIANCE / (1 - h / (4 * VARIANCE))
    assert float((biased.var(0) / settled - 1).abs().max()) < 4 * math.sqrt(2 / count)


def test_mala_leaves_the_funnel_as_it_is():
    """Exact draws go in, exact draws come out: v ~ N(0, 9) and x e^{-v/2} ~ N(0, 1), 4 standard errors."""
    count = 3_000
    model = sds.FunnelModel(5, duration=6.0)
    start = model.sample_data(count, torch.Generator().manual_seed(8))
    found = sds.sample(model, "mala", steps=20, start=start, num_samples=count).samples
    moved = (found != start).any(1).double().mean()
    assert 0.5 < float(moved) <= 1
    v, rest = found[:, 0] / 3, found[:, 1:] * torch.exp(-0.5 * found[:, :1])
    for z in (v, *rest.unbind(1)):
        assert abs(float(z.mean())) < 4 / math.sqrt(count)
        assert abs(float(z.square().mean()) - 1) < 4 * math.sqrt(2 / count)


def test_a_sample_of_mala_does_not_depend_on_its_batch():
    model = sds.FunnelModel(3, duration=4.0)
    words = {"steps": 15, "seed": 2}
    together = sds.sample(model, "mala", num_samples=6, **words).samples
    parts = sds.sample(model, "mala", num_samples=6, batch_size=2, **words).samples
    assert torch.equal(together, parts)


@pytest.mark.parametrize("sampler", ["ula", "mala", "underdamped-langevin"])
def test_a_noise_schedule_is_refused_with_advice(sampler):
    model = sds.grid_mixture(sds.VP())
    with pytest.raises(sds.UsageError, match=r"without a noise schedule.*annealed-langevin"):
        sds.sample(model, sampler, steps=4)


def test_a_model_without_a_log_density_is_refused():
    model = sds.FunctionModel(lambda x, t: -x, sds.LangevinSDE(lambda x: -x), "score", (2,))
    with pytest.raises(sds.UsageError, match="log-density"):
        sds.sample(model, "mala", steps=4)


def test_what_they_declare():
    for name in ("ula", "mala", "underdamped-langevin"):
        spec = sds.samplers()[name]
        assert spec.order is None
        assert "stationary" in spec.needs
        assert bool(spec.limits) == (name != "mala")


def test_friction_must_be_positive():
    with pytest.raises(sds.UsageError, match="friction must be positive"):
        sds.sample(Density(), "underdamped-langevin", steps=3, friction=0.0)


def test_a_log_density_alone_is_enough():
    """In the funnel autograd's score is the one that was worked out, and so are the samples."""
    funnel = sds.FunnelModel(4, scale=1.5)
    alone = sds.DensityModel(funnel.log_prob, (4,))
    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, known = alone.predict(x, 0.0), funnel.predict(x, 0.0)
    torch.testing.assert_close(found.value, known.value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.log_density, known.log_density, rtol=0, atol=0)
    same = [sds.sample(m, "mala", steps=20, num_samples=5, seed=1).samples for m in (alone, funnel)]
    torch.testing.assert_close(*same, rtol=1e-9, atol=1e-9)


def test_a_log_density_is_one_number_a_sample():
    model = sds.DensityModel(lambda x: -x.square() / 2, (2,))
    with pytest.raises(sds.UsageError, match=r"shape \(3,\), one per sample, not \(3, 2\)"):
        sds.sample(model, "ula", steps=2, num_samples=3)
