"""Likelihoods against closed forms: Gaussians, mixtures, discretised data; Hutchinson's estimate; what is refused."""

import math
import threading
import weakref

import numpy as np
import pytest
import torch
from exact_models import PROCESSES, ByClass, density, gaussian, mixture_density, pushed, quick
from lanes import mostly_slow
from scipy.special import ndtr
from torch.distributions import Normal

import sdesamplers as sds
from sdesamplers.ode import integration
from sdesamplers.processes.predictions import PREDICTIONS

TIGHT = {"rtol": 1e-6, "atol": 1e-6}


@pytest.mark.parametrize("name", mostly_slow(PROCESSES, keep=["vp", "flow", "table"]))
def test_gaussian_in_two_dimensions(name):
    model, x = gaussian(2, PROCESSES[name])
    found = sds.log_likelihood(model, x, divergence="exact", **TIGHT)
    exact, end = pushed(model, x)
    assert np.abs(found.nats - exact).max() / 2 < 1e-4
    if name != "table":  # at whose end 0.006 of the data's mean is left
        assert np.abs(found.nats - density(model, x)).max() / 2 < 1e-4
    # sigma/alpha = 1e5 stands for infinity in processes that reach it
    scale = float(model.process.sigma(model.process.t_max))
    torch.testing.assert_close(found.latents / scale, end / scale, rtol=0, atol=1e-4)
    assert found.nats.dtype == np.float64
    assert found.standard_error is None
    assert found.probes == 0


def test_gaussian_in_eight_dimensions():
    """As below, of a full covariance matrix too, in less time."""
    model, x = gaussian(8, PROCESSES["flow"])
    found = sds.log_likelihood(quick(model), x[:1], coordinates="angle", divergence="exact", **TIGHT)
    assert np.abs(found.nats - density(model, x[:1])).max() / 8 < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flow", "table"])
def test_gaussian_in_64_dimensions(name):
    model, x = gaussian(64, PROCESSES[name])
    found = sds.log_likelihood(quick(model), x[:1], coordinates="angle", divergence="exact", **TIGHT)
    exact = pushed(model, x[:1])[0] if name == "table" else density(model, x[:1])
    assert np.abs(found.nats - exact).max() / 64 < 1e-4


@pytest.mark.slow
def test_gaussian_in_64_dimensions_by_a_multistep_sampler():
    model, x = gaussian(64, PROCESSES["vp"])
    found = sds.log_likelihood(quick(model), x[:1], "exp-ab", steps=100, spacing="logsnr", divergence="exact")
    assert np.abs(found.nats - density(model, x[:1])).max() / 64 < 1e-4


@pytest.mark.parametrize("name", mostly_slow(["vp", "flow"], keep=["flow"]))
def test_mixture(name):
    model = sds.grid_mixture(PROCESSES[name])
    x = model.sample_data(4, torch.Generator().manual_seed(3))
    exact = mixture_density(model, x)
    found = sds.log_likelihood(model, x, divergence="exact", **TIGHT)
    assert np.abs(found.nats - exact.numpy()).max() / 2 < 1e-4


@pytest.mark.parametrize("process", [sds.VP(0.1, 50), sds.RectifiedFlow()], ids=["vp", "flow"])
def test_every_prediction_type_says_the_same(process):
    found = {}
    for kind in PREDICTIONS:
        model = sds.grid_mixture(process, prediction=kind)
        x = model.sample_data(2, torch.Generator().manual_seed(3))
        found[kind] = sds.log_likelihood(model, x, "rk4", steps=12, coordinates="flow", divergence="exact").nats
    for kind in PREDICTIONS:
        np.testing.assert_allclose(found[kind], found["epsilon"], rtol=1e-9, err_msg=kind)


# (sampler, coordinates, order): one-step, multistep and exponential, each measured between 60 and 120 steps
WALKS = [
    ("euler", "ve", 1),
    ("heun", "native", 2),
    ("midpoint", "angle", 2),
    ("rk4", "angle", 4),
    ("ab", "angle", 4),
    ("abm", "native", 4),
    ("dpmpp-2m", "native", 2),
    ("dpm-solver-3", "ve", 3),
    ("exp-ab", "native", 3),
    ("deis", "flow", 3),
    ("unipc", "native", 3),
    ("etdrk4", "native", 4),
    ("reversible-heun", "flow", 2),
    ("churn", "native", 2),  # its noise turned off
]


QUICK = ("euler", "heun", "dpmpp-2m", "unipc")


@pytest.mark.parametrize(
    ("sampler", "coordinates", "order"), mostly_slow(WALKS, keep=lambda sampler, *_: sampler in QUICK)
)
def test_any_sampler_integrates_it_at_its_order(sampler, coordinates, order):
    model, x = gaussian(2, sds.VP())
    exact = pushed(model, x)[0]
    words = {"coordinates": coordinates, "spacing": "logsnr", "divergence": "exact"}
    errors = [np.abs(sds.log_likelihood(model, x, sampler, steps=n, **words).nats - exact).max() for n in (60, 120)]
    assert math.log2(errors[0] / errors[1]) > order - 0.3
    assert errors[1] / 2 < (0.06 if order == 1 else 0.01)


@pytest.mark.parametrize("coordinates", ["native", "flow", "angle"])
@pytest.mark.parametrize("process", [sds.VE(0.01, 100), sds.EDM(0.002, 80), sds.VP()], ids=["ve", "edm", "vp"])
def test_the_tolerance_is_that_of_the_log_density_in_all_coordinates(process, coordinates):
    """Coordinates that divide the state by 81 at EDM's noisy end do not let the log-density be 81 times less exact."""
    model, x = gaussian(4, process)
    exact = pushed(model, x)[0]
    found = sds.log_likelihood(model, x, coordinates=coordinates, rtol=1e-3, atol=1e-3)
    assert np.abs(found.nats - exact).max() / 4 < 1e-2
    fine = sds.log_likelihood(model, x, coordinates=coordinates, rtol=1e-7, atol=1e-7)
    assert np.abs(fine.nats - exact).max() / 4 < 1e-6


# --- Hutchinson ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def copies():
    """400 copies of one point of a 4-dimensional mixture, so that only the probes differ, and its exact answer."""
    model = sds.grid_mixture(sds.VP(), dimension=4)
    x = model.sample_data(1, torch.Generator().manual_seed(5)).expand(400, 4)
    words = {"sampler": "heun", "steps": 12}
    return model, x, words, sds.log_likelihood(model, x[:1], divergence="exact", **words).nats[0]


def test_hutchinson_is_unbiased(copies):
    """400 runs with 1 and 4 probes; the next test in small."""
    model, x, words, exact = copies
    runs = {p: sds.log_likelihood(model, x, probes=p, **words).nats for p in (1, 4)}
    for found in runs.values():
        assert abs(found.mean() - exact) < 3 * found.std(ddof=1) / math.sqrt(len(x))
    assert runs[1].var(ddof=1) / runs[4].var(ddof=1) == pytest.approx(4, rel=0.35)


@pytest.mark.slow
@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_with_a_variance_of_one_over_probes(copies, probe):
    """400 runs with 1, 4 and 16 probes, seed 0: a variance's own standard error is 7% and more for heavy tails."""
    model, x, words, exact = copies
    runs = {p: sds.log_likelihood(model, x, probes=p, probe=probe, **words) for p in (1, 4, 16)}
    for probes, found in runs.items():
        assert abs(found.nats.mean() - exact) < 3 * found.nats.std(ddof=1) / math.sqrt(len(x))
        assert found.probes == probes
    variance = {p: found.nats.var(ddof=1) for p, found in runs.items()}
    assert variance[1] / variance[4] == pytest.approx(4, rel=0.35)
    assert variance[4] / variance[16] == pytest.approx(4, rel=0.35)
    # What is reported is that spread, from one run's own probes.
    assert runs[1].standard_error is None
    assert np.mean(runs[16].standard_error ** 2) == pytest.approx(variance[16], rel=0.35)


def test_rademacher_probes_vary_less_than_gaussian_ones(copies):
    model, x, words, _ = copies
    spread = {
        kind: sds.log_likelihood(model, x, probes=1, probe=kind, **words).nats.std()
        for kind in ("rademacher", "gaussian")
    }
    assert 0 < spread["rademacher"] < spread["gaussian"]


def test_one_rademacher_probe_is_exact_in_one_dimension():
    model = sds.GaussianModel([0.3], 0.2, sds.VP())
    x = torch.tensor([[0.1], [0.9]])
    one, exact = (sds.log_likelihood(model, x, "heun", steps=9, divergence=d) for d in ("hutchinson", "exact"))
    np.testing.assert_allclose(one.nats, exact.nats, rtol=1e-12)


def test_few_dimensions_are_exact_unless_probes_are_passed():
    for size, probes in ((16, 0), (17, 1)):
        model = sds.GaussianModel(np.zeros(size), 0.2, sds.VP())
        x = model.sample_data(2, torch.Generator().manual_seed(1))
        assert sds.log_likelihood(model, x, "heun", steps=9).probes == probes
        assert sds.log_likelihood(model, x, "heun", steps=9, probes=2).probes == 2
        with pytest.raises(sds.UsageError, match="uses no probes"):
            sds.log_likelihood(model, x, divergence="exact", probes=2)


def test_seeds_and_indices_choose_the_probes(copies):
    model, x, words, _ = copies
    x = x[:5]
    whole = sds.log_likelihood(model, x, probes=2, seed=4, **words)
    again = sds.log_likelihood(model, x, probes=2, seed=4, **words)
    part = sds.log_likelihood(model, x[2:], probes=2, seed=4, first_index=2, **words)
    np.testing.assert_array_equal(whole.nats, again.nats)
    np.testing.assert_allclose(whole.nats[2:], part.nats, rtol=1e-12)
    assert np.all(whole.nats != sds.log_likelihood(model, x, probes=2, seed=5, **words).nats)
    assert len(set(whole.nats.tolist())) == 5


@pytest.mark.parametrize(
    "words",
    mostly_slow(
        [{"sampler": "heun", "steps": 8}, {"sampler": "rk45", "rtol": 3e-2, "atol": 3e-2}],
        keep=[{"sampler": "heun", "steps": 8}],
    ),
)
def test_batches_change_nothing(words):
    model = sds.grid_mixture(sds.VP())
    x = model.sample_data(5, torch.Generator().manual_seed(1))
    done = []
    runs = [sds.log_likelihood(model, x, probes=2, batch_size=n, advance=done.append, **words) for n in (None, 1, 3)]
    for run in runs[1:]:
        np.testing.assert_allclose(run.nats, runs[0].nats, rtol=1e-10)
        np.testing.assert_allclose(run.standard_error, runs[0].standard_error, rtol=1e-8)
        np.testing.assert_array_equal(run.nfe_per_sample, runs[0].nfe_per_sample)
        torch.testing.assert_close(run.latents, runs[0].latents, rtol=0, atol=1e-10)
    assert done == [5, *[1] * 5, 3, 2]


def test_no_global_random_state_is_read_or_moved(copies):
    model, x, words = *copies[:2], {**copies[2], "probes": 1}
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = sds.log_likelihood(model, x[:2], **words).nats
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    torch.manual_seed(2)
    np.testing.assert_array_equal(sds.log_likelihood(model, x[:2], **words).nats, first)


# --- discrete data --------------------------------------------------------------------------------------------------

SPREAD = 0.3


def picture_model(data_range=(-1.0, 1.0)):
    """2 x 2 pictures of independent pixels N(0, SPREAD^2) on a rectified flow: its epsilon in closed form."""

    def epsilon(x, t):
        return t * x / (((1 - t) * SPREAD) ** 2 + t**2)

    words = {"dtype": torch.float64, "data_range": data_range}
    return sds.FunctionModel(epsilon, sds.RectifiedFlow(), "epsilon", (1, 2, 2), **words)


def test_dequantised_bits_against_the_exact_integral():
    """16 levels, 400 draws of the dequantisation for each of two pictures, seed 0, against quadrature over a level."""
    model, levels = picture_model(), 16
    width = 2 / (levels - 1)
    centres = -1 + width * torch.tensor([[7.0, 8.0, 4.0, 10.0], [7.0, 7.0, 8.0, 13.0]], dtype=torch.float64)
    offsets, weights = np.polynomial.legendre.leggauss(40)
    ratio = float(model.process.ratio(model.process.t_min))
    scale = math.hypot(SPREAD, ratio)
    for picture in centres:
        x = picture.view(1, 1, 2, 2).expand(400, 1, 2, 2)
        words = {"levels": levels, "dequantize": "uniform", "divergence": "exact"}
        found = sds.log_likelihood(model, x, "rk4", steps=25, **words).bits_per_dim
        places = picture.numpy()[:, None] + 0.5 * width * offsets
        logs = -0.5 * (places / scale) ** 2 - math.log(scale * math.sqrt(2 * math.pi))
        bound = -float((logs @ weights / 2 + math.log(width)).mean()) / math.log(2)
        assert abs(found.mean() - bound) < 3 * found.std(ddof=1) / math.sqrt(len(x))
        edges = ndtr(np.stack([picture.numpy() - width / 2, picture.numpy() + width / 2]) / scale)
        discrete = -np.log2(edges[1] - edges[0]).mean()
        assert discrete < bound < discrete + 0.02  # an upper bound (Theis et al. 2016), near here


def test_bits_are_nats_in_levels():
    model = picture_model()
    x = torch.linspace(-0.6, 0.6, 12, dtype=torch.float64).view(3, 1, 2, 2)
    words = {"sampler": "rk4", "steps": 10, "divergence": "exact"}
    found = sds.log_likelihood(model, x, **words)
    np.testing.assert_allclose(found.bits_per_dim, -(found.nats / 4 + math.log(2 / 255)) / math.log(2), rtol=1e-12)
    plain = sds.log_likelihood(model, x, levels=0, **words)
    np.testing.assert_array_equal(plain.nats, found.nats)
    np.testing.assert_allclose(plain.bits_per_dim, -plain.nats / 4 / math.log(2), rtol=1e-12)
    boundless = sds.log_likelihood(picture_model(None), x, **words)
    np.testing.assert_array_equal(boundless.bits_per_dim, plain.bits_per_dim)


def test_dequantisation_is_uniform_over_one_level_and_keyed():
    """The latents of a flow at 2,000 copies, seed 0, are a linear image of x + u: its moments show u's."""
    model = picture_model()
    x = torch.zeros(500, 1, 2, 2, dtype=torch.float64)
    words = {"sampler": "rk4", "steps": 8, "levels": 3}
    moved = sds.log_likelihood(model, x, dequantize="uniform", **words)
    rest = sds.log_likelihood(model, x + 0.5, **words).latents.mean()  # where half a level goes
    u = (moved.latents / rest / 2).flatten()  # levels are 1 apart
    assert float(u.abs().max()) <= 0.5 + 1e-9
    assert abs(float(u.mean())) < 3 * math.sqrt(1 / 12 / 2000)
    assert float(u.var()) == pytest.approx(1 / 12, rel=0.1)
    part = sds.log_likelihood(model, x[3:5], dequantize="uniform", first_index=3, **words)
    torch.testing.assert_close(part.latents, moved.latents[3:5], rtol=0, atol=1e-12)


# --- conditions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", mostly_slow(["rk45", "heun"], keep=["rk45"]))
def test_conditions_go_to_their_samples(sampler):
    labels = torch.tensor([0, 1, 2, 1])
    x = labels[:, None] + 0.4 * torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    words = {"steps": 200} if sampler == "heun" else TIGHT
    found = sds.log_likelihood(ByClass(), x, sampler, condition=labels, divergence="exact", batch_size=3, **words)
    exact = Normal(labels[:, None].double(), math.hypot(0.5, 1e-3 / 0.999)).log_prob(x).sum(1)
    np.testing.assert_allclose(found.nats, exact.numpy(), rtol=0, atol=2e-4)
    one = sds.log_likelihood(ByClass(), x[1:2], sampler, condition=1, divergence="exact", **words)
    np.testing.assert_allclose(one.nats, found.nats[1:2], rtol=1e-9)


def test_guidance_is_part_of_a_guided_models_density():
    """With equal covariances guidance by w moves the class mean m to w m, which the density of N(w m, .) shows."""
    x = torch.tensor([[1.6, 2.2], [1.0, 1.4]], dtype=torch.float64)
    guided = sds.Guided(ByClass(), 2.0)
    found = sds.log_likelihood(guided, x, condition=torch.tensor([1, 1]), divergence="exact", **TIGHT)
    exact = Normal(2.0, math.hypot(0.5, 1e-3 / 0.999)).log_prob(x).sum(1)
    np.testing.assert_allclose(found.nats, exact.numpy(), rtol=0, atol=2e-4)


# --- what it costs, and what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("probes", [3, None])
def test_one_evaluations_graph_at_a_time(probes):
    """When the model is asked, no graph of an earlier evaluation is left, so memory does not grow with steps."""
    saved, left = [], []

    class Held:
        """A tensor saved for the backward pass: it lives as long as the graph does."""

        def __init__(self, tensor):
            self.tensor = tensor
            saved.append(weakref.ref(self))

    def score(x, t):
        left.append(sum(ref() is not None for ref in saved))
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            return -torch.tanh(x) * (1 + t)

    model = sds.FunctionModel(score, sds.VP(), "score", (3,), dtype=torch.float64)
    found = sds.log_likelihood(model, torch.zeros(2, 3), "heun", steps=10, probes=probes)
    assert len(left) == found.nfe == 20
    assert len(saved) >= 20
    assert max(left) == 0
    assert not found.latents.requires_grad


def test_nfe_and_recipe_are_reported():
    model, x = gaussian(2, sds.VP())
    found = sds.log_likelihood(model, x, "heun", nfe=21)
    assert found.nfe == 20
    assert found.recipe.sampler == "heun"
    assert found.recipe.steps == 10
    assert "20 NFE" in repr(found)
    free = sds.log_likelihood(model, x, rtol=1e-3, atol=1e-3)
    assert free.nfe_per_sample.shape == (3,)
    assert free.nfe == free.nfe_per_sample.max() < sds.log_likelihood(model, x, **TIGHT).nfe


def test_the_grid_is_tried_once_whatever_the_batches(monkeypatch):
    """The dry run on zeros, there and back, which shows whether a sampler can be walked."""
    tries = []
    count = integration.count_evaluations
    monkeypatch.setattr(integration, "count_evaluations", lambda run: tries.append(1) or count(run))
    model, x = gaussian(2, sds.VP())
    sds.log_likelihood(model, x, "heun", steps=4, batch_size=1)
    assert len(tries) == 2


def test_step_control_acts_on_the_density_too():
    """Where the state goes straight (in path coordinates) and its density does not, steps must still be controlled."""
    model, x = gaussian(2, sds.VP())
    alone = sds.encode(model, x, "rk45", rtol=1e-6, atol=1e-6)
    both = sds.log_likelihood(model, x, divergence="exact", **TIGHT)
    assert (both.nfe_per_sample != alone.nfe_per_sample).any()
    loose = sds.log_likelihood(model, x, divergence="exact", rtol=1e-2, atol=1e-2)
    exact = pushed(model, x)[0]
    assert np.abs(both.nats - exact).max() < 0.02 * np.abs(loose.nats - exact).max()


def test_it_runs_inside_inference_mode_and_on_float32():
    model, x = gaussian(2, sds.VP(), dtype=torch.float32)
    with torch.inference_mode():
        found = sds.log_likelihood(model, x.float(), "rk4", steps=30, divergence="exact")
    assert found.latents.dtype == torch.float32
    double = sds.log_likelihood(gaussian(2, sds.VP())[0], x, "rk4", steps=30, divergence="exact")
    np.testing.assert_allclose(found.nats, double.nats, atol=1e-4)


def test_cancel():
    flag = threading.Event()
    flag.set()
    model, x = gaussian(2, sds.VP())
    with pytest.raises(sds.Cancelled):
        sds.log_likelihood(model, x, cancel=flag)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"sampler": "euler-maruyama", "steps": 5}, "draws noise"),
        ({"sampler": "euler-cfgpp", "steps": 5}, "does not follow"),
        ({"sampler": "heun"}, "needs steps"),
        ({"sampler": "heunn", "steps": 5}, "did you mean 'heun'"),
        ({"divergence": "trace"}, "'hutchinson' or 'exact'"),
        ({"probe": "uniform"}, "'rademacher' or 'gaussian'"),
        ({"dequantize": "variational"}, "None or 'uniform'"),
        ({"dequantize": "uniform"}, "data_range"),
        ({"probes": 0}, "probes must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"first_index": -1}, "first_index must be"),
        ({"levels": -1}, "levels must be"),
        ({"seed": -1}, "seed must be"),
        ({"condition": 3}, "takes no condition"),
        ({"eta": 1.0}, "eta"),
    ],
)
def test_misuse(words, message):
    model, x = gaussian(2, sds.VP())
    with pytest.raises(sds.UsageError, match=message):
        sds.log_likelihood(model, x, **words)


@pytest.mark.parametrize("x", [torch.zeros(2), torch.zeros(2, 3), torch.zeros(0, 2), torch.zeros(2, 2).int()])
def test_data_of_another_shape_or_kind(x):
    with pytest.raises(sds.UsageError, match=r"data must be floating-point numbers of shape \(N, 2\)"):
        sds.log_likelihood(gaussian(2, sds.VP())[0], x)


def test_one_level_is_none():
    with pytest.raises(sds.UsageError, match="levels must be 0"):
        sds.log_likelihood(picture_model(), torch.zeros(1, 1, 2, 2), levels=1)


def test_a_model_without_a_graph_is_refused():
    model = sds.FunctionModel(lambda x, t: -x.detach(), sds.VP(), "score", (2,))
    with pytest.raises(sds.ModelError, match="cannot be differentiated"):
        sds.log_likelihood(model, torch.zeros(1, 2))
