"""Inverse problems and partial noising: closed forms, every sampler and process, and the embedded model's images."""

import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from lanes import mostly_slow
from process_cases import TABLE
from scipy.integrate import solve_ivp

import sdesamplers as sds
from sdesamplers import UsageError
from sdesamplers.inverse import METHODS
from sdesamplers.inverse.posterior import Measured

F64 = torch.float64
PROCESSES = {
    "vp": (sds.VP(), "epsilon"),
    "edm": (sds.EDM(), "sample"),
    "ve": (sds.VE(), "score"),
    "sub-vp": (sds.SubVP(), "v"),
    "flow": (sds.RectifiedFlow(), "flow"),
}
SAMPLERS = {"euler-maruyama": 60, "ddim": 40, "heun": 20, "dpmpp-2m": 30, "unipc": 30, "rk45": None}


def normals(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def posterior(mean, covariance, matrix, y, noise_std):
    """Mean and covariance of a Gaussian given y = A x + noise."""
    gram = matrix @ covariance @ matrix.mT + noise_std**2 * torch.eye(len(matrix), dtype=F64)
    gain = covariance @ matrix.mT @ torch.linalg.inv(gram)
    return mean + gain @ (y - matrix @ mean), covariance - gain @ matrix @ covariance


def moments(model, sampler="rk45", **words):
    """Exact moments of an ODE sampler's output where its run is affine: from runs on 0 and on unit vectors."""
    std, size = model.process.prior.std, model.shape[0]
    start = torch.cat([torch.zeros(1, size, dtype=F64), std * torch.eye(size, dtype=F64)])
    out = sds.sample(model, sampler, start=start, **words).samples
    return out[0], (out[1:] - out[0]).mT @ (out[1:] - out[0])


class Shaped(sds.Model):
    """A model of vectors as one of pictures."""

    def __init__(self, inner, shape):
        self.inner, self.shape = inner, tuple(shape)
        self.process, self.prediction, self.dtype = inner.process, inner.prediction, inner.dtype

    def predict(self, x, t, condition=None):
        return self.inner.predict(x.flatten(1), t).view_as(x)


# --- operators --------------------------------------------------------------------------------------------------------

RANK_ONE = [[1.0, 2.0, 0.0], [2.0, 4.0, 0.0]]
OPERATORS = {
    "mask": (sds.Mask(torch.tensor([[1, 0, 1], [0, 0, 1]]), (2, 2, 3)), (2, 2, 3)),
    "downsample": (sds.Downsample(2), (3, 4, 6)),
    "grey": (sds.Grey(3), (3, 2, 5)),
    "matrix": (sds.Matrix(normals(3, 5)), (5,)),
    "tall matrix": (sds.Matrix(normals(5, 3)), (3,)),
    "singular matrix": (sds.Matrix(RANK_ONE), (3,)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_linear_maps_with_their_adjoint_and_inverse(name):
    operator, shape = OPERATORS[name]
    x = normals(4, *shape)
    y = operator.apply(x)
    other = normals(*y.shape, seed=1)
    torch.testing.assert_close((y * other).flatten(1).sum(1), (x * operator.adjoint(other)).flatten(1).sum(1))
    variance, s2 = np.array([0.3, 1.0, 2.0, 0.1]), 0.2
    solved = operator.solve(other, variance, s2)
    v = torch.from_numpy(variance).view(-1, *(1,) * (y.dim() - 1))
    torch.testing.assert_close(v * operator.apply(operator.adjoint(solved)) + s2 * solved, other)
    back = operator.pseudo_inverse(y)
    torch.testing.assert_close(operator.apply(back), y)
    assert bool((back.flatten(1).norm(dim=1) <= x.flatten(1).norm(dim=1) + 1e-12).all())


def test_an_operator_of_ones_own_says_its_gain():
    class Twice(sds.LinearOperator):
        def apply(self, x):
            return 2 * x

        adjoint = apply

    with pytest.raises(UsageError, match="gain"):
        Twice().pseudo_inverse(normals(1, 2))
    Twice.gain = 4.0
    assert torch.equal(Twice().pseudo_inverse(2 * normals(1, 2)), normals(1, 2))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: sds.Mask(torch.zeros(2, 2)), "keeps nothing"),
        (lambda: sds.Mask(torch.ones(2, 2), (1, 3, 3)), "does not match"),
        (lambda: sds.Mask(torch.ones(2)).apply(normals(1, 3)), "not"),
        (lambda: sds.Downsample(0), "factor"),
        (lambda: sds.Downsample(3).apply(normals(1, 1, 4, 4)), "divisible by 3"),
        (lambda: sds.Grey(0), "channels"),
        (lambda: sds.Grey(3).apply(normals(1, 1, 4, 4)), "3 channels"),
        (lambda: sds.Matrix([1.0, 2.0]), "shape"),
        (lambda: sds.Matrix([[1.0, 2.0]]).apply(normals(1, 3)), "shape"),
    ],
)
def test_operators_refuse_what_does_not_fit(make, word):
    with pytest.raises(UsageError, match=word):
        make()


# --- Gaussian data: everything is known -------------------------------------------------------------------------------

MEAN, STD, NOISE = torch.tensor([0.3, -0.2, 0.1], dtype=F64), 0.6, 0.3
A = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]], dtype=F64)
Y = torch.tensor([0.8, -0.5], dtype=F64)


def centred(process, prediction="epsilon"):
    """PiGDM's assumption holds for N(m, data_std^2 I) whatever m is."""
    return sds.GaussianModel(MEAN, STD**2, process, prediction=prediction)


KEPT = [("vp", "pigdm"), ("sub-vp", "projection"), ("ve", "projection"), ("flow", "pigdm")]


@pytest.mark.parametrize(
    ("name", "method"), mostly_slow(itertools.product(PROCESSES, ("pigdm", "projection")), keep=KEPT)
)
def test_isotropic_gaussian_data_get_their_exact_posterior(name, method):
    process, prediction = PROCESSES[name]
    model = sds.PosteriorSampling(centred(process, prediction), sds.Matrix(A), Y, NOISE, method, data_std=STD)
    words = {"rtol": 1e-7, "atol": 1e-7}
    if name == "flow":  # whose very start, alpha = 0, is not guided by "pigdm"
        words = {"sampler": "rk4", "times": [1 - 1e-3, *np.linspace(0.99, 0.01, 99), 0.0]}
    mean, covariance = moments(model, **words)
    exact_mean, exact_covariance = posterior(MEAN, STD**2 * torch.eye(3, dtype=F64), A, Y, NOISE)
    # What alpha leaves of the data at t_max, and the clean end's first-order step, are of this size.
    torch.testing.assert_close(mean, exact_mean, rtol=0, atol=8e-3)
    torch.testing.assert_close(covariance, exact_covariance, rtol=0, atol=8e-3)


@pytest.mark.parametrize("sampler", mostly_slow(["euler-maruyama", "ddpm", "dpmpp-2m-sde"], keep=["ddpm"]))
def test_stochastic_samplers_reach_the_posterior_within_statistical_error(sampler):
    count = 1500
    model = sds.PosteriorSampling(centred(sds.VP()), sds.Matrix(A), Y, NOISE, "pigdm", data_std=STD)
    found = sds.sample(model, sampler, steps=100, num_samples=count, seed=3).samples
    mean, covariance = posterior(MEAN, STD**2 * torch.eye(3, dtype=F64), A, Y, NOISE)
    variance = covariance.diagonal()
    bias = 0.02  # of 100 steps of first order
    assert bool(((found.mean(0) - mean).abs() < 4 * (variance / count).sqrt() + bias).all())
    error = 4 * (variance[:, None] * variance + covariance**2).div(count).sqrt() + bias
    assert bool(((torch.cov(found.mT) - covariance).abs() < error).all())


@pytest.mark.slow
def test_pigdm_on_data_that_are_not_isotropic_has_the_bias_that_theory_says():
    """Measured entry of variance c, taken for d: dx/ds = -s score in one dimension, integrated by hand."""
    c, d, y, s = 0.64, 0.09, 0.7, 0.4

    def slope(sigma, x):
        v = d * sigma**2 / (d + sigma**2)
        clean = c * x / (c + sigma**2)
        score = -x / (c + sigma**2) + c / (c + sigma**2) * (y - clean) / (v + s**2)
        return -sigma * score

    words = {"rtol": 1e-10, "atol": 1e-12, "method": "DOP853"}
    zero, one = (solve_ivp(slope, (80.0, 1e-4), [x], **words).y[0, -1] for x in (0.0, 80.0))
    prior = sds.GaussianModel(torch.zeros(2), [c, 0.25], sds.EDM())
    model = sds.PosteriorSampling(prior, sds.Mask([True, False]), torch.tensor([y]), s, "pigdm", data_std=math.sqrt(d))
    mean, covariance = moments(model, "rk45", rtol=1e-8, atol=1e-8)
    assert float(mean[0]) == pytest.approx(zero, abs=1e-3)
    assert float(covariance[0, 0]) == pytest.approx((one - zero) ** 2, abs=1e-3)
    assert float(covariance[1, 1]) == pytest.approx(0.25, abs=1e-3)  # what is not measured is left alone
    exact_mean, exact_variance = c * y / (c + s**2), c * s**2 / (c + s**2)
    assert zero - exact_mean > 0.05  # too small a variance of x0 trusts the measurement too much
    assert exact_variance - (one - zero) ** 2 > 0.02


@pytest.mark.slow
def test_dps_pulls_the_error_to_nought_whatever_the_noise():
    """Its known bias: stronger guidance takes the samples past the posterior, to A x = y, narrower than it should."""
    y, s = 0.9, 0.6
    prior = sds.GaussianModel(torch.zeros(2), [1.0, 0.25], sds.EDM())
    start = 80 * torch.cat([torch.erfinv(torch.linspace(-0.99, 0.99, 101, dtype=F64))[:, None] * math.sqrt(2)] * 2, 1)
    exact_mean, exact_std = y / (1 + s**2), math.sqrt(s**2 / (1 + s**2))
    found = []
    for scale in (0.0, 1.0, 3.0, 30.0):
        model = sds.PosteriorSampling(prior, sds.Mask([True, False]), torch.tensor([y]), s, scale=scale)
        measured = sds.sample(model, "rk45", start=start, rtol=1e-5, atol=1e-5).samples[:, 0]
        found.append((float(measured.mean()), float(measured.std())))
    means, stds = zip(*found, strict=True)
    assert means[0] == pytest.approx(0, abs=1e-3)
    assert stds[0] == pytest.approx(1, abs=0.05)
    assert list(stds) == sorted(stds, reverse=True)
    assert means[-1] == pytest.approx(y, abs=0.02)
    assert means[-1] - exact_mean > 0.15
    assert stds[-1] < 0.2 * exact_std


@pytest.mark.parametrize("timestep", [950, 500, 50])
def test_a_dps_step_is_that_of_the_papers_algorithm(timestep):
    """One ancestral step of the paper's table, guided less unguided, is -zeta'/|e| grad |e|^2 to the size of beta."""
    variance, zeta = torch.tensor([0.5, 0.2, 0.9], dtype=F64), 0.7
    prior = sds.GaussianModel(torch.zeros(3), variance, sds.DiscreteVP(TABLE))
    model = sds.PosteriorSampling(prior, sds.Matrix(A), Y, scale=zeta * math.sqrt(3 * 256 * 256 / 3))
    x = normals(4, 3, seed=2)
    words = {"times": [timestep, timestep - 1], "start": x}
    moved = sds.sample(model, "ddpm", **words).samples - sds.sample(prior, "ddpm", **words).samples
    z = x.clone().requires_grad_()
    alpha, sigma = math.sqrt(TABLE[timestep]), math.sqrt(1 - TABLE[timestep])
    error = Y - (alpha * variance * z / (alpha**2 * variance + sigma**2)) @ A.mT
    (gradient,) = torch.autograd.grad(error.square().sum(), z)
    expected = -zeta * gradient / error.detach().norm(dim=1, keepdim=True)
    torch.testing.assert_close(moved, expected, rtol=0.025, atol=1e-6)


# --- a mixture --------------------------------------------------------------------------------------------------------

CENTRES = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=F64)


@pytest.mark.parametrize(
    ("method", "sampler", "words"),
    [
        ("pigdm", "ddpm", {"steps": 100}),
        ("pigdm", "dpmpp-2m-sde", {"steps": 60}),
        ("projection", "repaint", {"steps": 30, "resamples": 6}),
    ],
)
def test_inpainting_a_mixture_finds_the_posterior_weights(method, sampler, words):
    """Of four modes the measurement allows two, four to one."""
    share, mean = inpainted_shares(method, sampler, data_std=1.0, **words)
    assert share[0] + share[1] > 0.99
    assert abs(share[0] - 0.8) < 0.08  # 4 standard errors of 400 draws
    assert abs(mean - 1.0) < 0.05


def test_dps_inpaints_a_mixture_with_too_much_of_the_likelier_mode():
    share, mean = inpainted_shares("dps", "ddpm", steps=100, scale=10.0)
    assert share[0] + share[1] > 0.99
    assert 0.88 < share[0] < 0.99
    assert abs(mean - 1.0) < 0.05


def inpainted_shares(method, sampler, *, scale=1.0, data_std=1.0, **words):
    """Shares of the four modes where the first entry was measured to be 1, and that entry's mean."""
    mixture = sds.MixtureModel([0.4, 0.1, 0.1, 0.4], CENTRES, [0.02] * 4, sds.VP())
    options = {"scale": scale, "data_std": data_std}
    model = sds.PosteriorSampling(mixture, sds.Mask([1, 0]), torch.tensor([1.0]), 0.1, method, **options)
    found = sds.sample(model, sampler, num_samples=400, seed=1, **words).samples
    nearest = torch.cdist(found, CENTRES).argmin(1)
    return (torch.bincount(nearest, minlength=4) / 400).tolist(), float(found[:, 0].mean())


def test_colourisation_of_an_analytic_mixture():
    """Colours of one grey value share the posterior; the others are left out."""
    colours = torch.tensor([[0.9, -0.3, 0.0], [-0.3, 0.9, 0.0], [-0.6, -0.6, 0.6], [0.8, 0.8, 0.8]], dtype=F64)
    grey = colours.mean(1)
    model = Shaped(sds.MixtureModel([0.3, 0.3, 0.2, 0.2], colours, [0.004] * 4, sds.EDM()), (3, 1, 1))
    operator = sds.Grey(3)
    y = torch.full((1, 1, 1), float(grey[0]), dtype=F64)
    guided = sds.PosteriorSampling(model, operator, y, 0.02, "pigdm", data_std=0.6)
    found = sds.sample(guided, "ddpm", steps=60, num_samples=200, seed=4).samples
    nearest = torch.cdist(found.flatten(1), colours).argmin(1)
    share = torch.bincount(nearest, minlength=4) / 200
    assert float(share[:2].sum()) > 0.9
    assert abs(float(share[0]) - 0.5) < 0.15
    assert float((operator.apply(found) - y).square().mean().sqrt()) < 0.06


# --- any sampler, process and prediction ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "method"),
    mostly_slow(
        itertools.product(SAMPLERS, METHODS),
        keep=lambda sampler, method: sampler != "rk45" or method == "projection",
    ),
)
def test_samplers_take_it_and_meet_the_measurement(sampler, method):
    prior = sds.grid_mixture(sds.VP())
    y = prior.sample_data(20, torch.Generator().manual_seed(6))[:, :1]
    scale = 3.0 if method == "dps" else 1.0
    model = sds.PosteriorSampling(prior, sds.Mask([1, 0]), y, 0.05, method, scale=scale)
    words = {"steps": SAMPLERS[sampler]} if SAMPLERS[sampler] else {}
    plain = sds.sample(prior, sampler, num_samples=20, **words)
    result = sds.sample(model, sampler, num_samples=20, **words)
    assert result.samples.shape == (20, 2)
    if SAMPLERS[sampler]:
        assert result.nfe == plain.nfe
    else:
        assert result.nfe > 6
    before, after = ((r.samples[:, :1] - y).abs().mean() for r in (plain, result))
    assert float(after) < (0.8 if method == "dps" else 0.5) * float(before)


@pytest.mark.parametrize("sampler", [*SAMPLERS, "ddpm", "repaint"])
def test_projection_without_noise_ends_on_the_measurement(sampler):
    operator = sds.Matrix([[1.0, -2.0]])
    y = torch.tensor([0.7], dtype=F64)
    model = sds.PosteriorSampling(sds.grid_mixture(sds.VP()), operator, y, method="projection")
    steps = SAMPLERS.get(sampler, 10)
    words = {"steps": steps} if steps else {}
    result = sds.sample(model, sampler, num_samples=3, coordinates="ve", **words)  # whose last step lands on x0
    torch.testing.assert_close(operator.apply(result.samples), y.expand(3, 1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("process", [sds.VP(), sds.RectifiedFlow(), sds.EDM()], ids=["vp", "flow", "edm"])
def test_prediction_types_give_the_same_samples(process, method):
    start = float(process.sigma(0.95 * process.t_max)) * normals(3, 2)
    found = []
    for kind in sds.PREDICTIONS:
        model = sds.PosteriorSampling(
            sds.grid_mixture(process, prediction=kind), sds.Mask([1, 0]), torch.tensor([0.5]), 0.1, method
        )
        times = [0.95 * process.t_max, 0.5 * process.t_max, 0.1 * process.t_max, 0.02 * process.t_max]
        found.append(sds.sample(model, "heun", times=times, start=start).samples)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["flow", "sample", "v"])
def test_flow_models_start_at_alpha_0(kind, method):
    prior, scale = sds.grid_mixture(sds.RectifiedFlow(), prediction=kind), 3.0 if method == "dps" else 1.0
    y = prior.sample_data(20, torch.Generator().manual_seed(6))[:, :1]
    model = sds.PosteriorSampling(prior, sds.Mask([1, 0]), y, 0.05, method, scale=scale)
    before, after = (sds.sample(m, "euler", steps=40, num_samples=20).samples[:, :1] for m in (prior, model))
    assert float((after - y).abs().mean()) < 0.4 * float((before - y).abs().mean())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sampler", mostly_slow(["rk45", "ddpm", "dpmpp-2m"], keep=["ddpm", "dpmpp-2m"]))
def test_a_sample_does_not_depend_on_its_batch(sampler, method):
    y = normals(4, 1, seed=8)
    model = sds.PosteriorSampling(sds.grid_mixture(sds.EDM()), sds.Mask([1, 0]), y, 0.1, method)
    words = {} if sampler == "rk45" else {"steps": 12}
    whole = sds.sample(model, sampler, num_samples=4, seed=2, **words).samples
    parts = sds.sample(model, sampler, num_samples=4, batch_size=3, seed=2, **words).samples
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-11)
    alone = sds.PosteriorSampling(sds.grid_mixture(sds.EDM()), sds.Mask([1, 0]), y[2], 0.1, method)
    one = sds.sample(alone, sampler, num_samples=1, first_index=2, seed=2, **words).samples
    torch.testing.assert_close(one, whole[2:3], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_through_a_guided_run(method):
    """d(samples)/d(start) against central differences."""
    model = sds.PosteriorSampling(sds.grid_mixture(sds.EDM()), sds.Mask([1, 0]), torch.tensor([0.5]), 0.2, method)
    x, way = normals(1, 2, seed=1), normals(1, 2, seed=3)

    def end(start, **words):
        return sds.sample(model, "heun", times=[2.0, 1.0, 0.5], start=start, **words).samples

    start = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(end(start, gradients=True).sum(), start)
    h = 1e-5
    numeric = float((end(x + h * way) - end(x - h * way)).sum()) / (2 * h)
    assert float((gradient * way).sum()) == pytest.approx(numeric, rel=1e-6)


def test_dps_takes_any_differentiable_function():
    model = sds.PosteriorSampling(
        sds.grid_mixture(sds.VP()), lambda x: x.norm(dim=1, keepdim=True), torch.tensor([1.2]), 0.02, scale=3.0
    )
    found = sds.sample(model, "ddpm", steps=100, num_samples=50).samples
    assert float((found.norm(dim=1) - 1.2).abs().mean()) < 0.1
    with pytest.raises(UsageError, match="LinearOperator"):
        sds.PosteriorSampling(sds.grid_mixture(sds.VP()), torch.square, torch.zeros(2), method="pigdm")


# --- as a model -------------------------------------------------------------------------------------------------------


class Classes(sds.Model):
    """Two Gaussian classes, and both of them where no label is given."""

    def __init__(self):
        self.process, self.prediction, self.shape, self.dtype = sds.VP(), "epsilon", (2,), F64
        self.name, self.custom = "classes", "kept"
        centres = torch.tensor([[0.8, 0.8], [-0.8, -0.8]], dtype=F64)
        self.models = [sds.GaussianModel(c, 0.04, self.process) for c in centres]
        self.models.append(sds.MixtureModel([0.5, 0.5], centres, [0.04, 0.04], self.process))

    def predict(self, x, t, condition=None):
        return torch.stack([m.predict(x, t) for m in self.models])[condition, torch.arange(len(x))]

    def condition_for(self, condition, count):
        return torch.from_numpy(np.broadcast_to(condition, (count,)).copy())

    def unconditional(self, count):
        return torch.full((count,), 2)


def test_it_is_a_model_like_the_one_inside():
    model = sds.PosteriorSampling(Classes(), sds.Mask([1, 0]), torch.tensor([0.8]), 0.1, "pigdm", data_std=0.2)
    assert model.custom == "kept"
    assert (model.shape, model.prediction, model.dtype) == ((2,), "epsilon", F64)
    given = model.condition_for([0, 1, 1], 3)
    assert isinstance(given, Measured)
    assert given.tolist() == [0, 1, 1]
    assert given[np.array([2, 0])].condition.tolist() == [1, 0]
    assert torch.equal(model.condition_for(given, 3).condition, given.condition)
    result = sds.sample(model, "heun", steps=10, num_samples=3, condition=[0, 0, 1], batch_size=2)
    assert result.condition.tolist() == [0, 0, 1]
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(sds.sample(again, "heun", steps=10, num_samples=3, condition=[0, 0, 1]).samples, result.samples)
    assert torch.equal(model.predict(normals(2, 2), 0.5, torch.tensor([0, 1])).isfinite(), torch.ones(2, 2) > 0)


def test_guidance_goes_inside():
    plain = sds.PosteriorSampling(sds.Guided(Classes(), 1.0), sds.Mask([1, 0]), torch.tensor([0.8]), 0.1)
    guided = sds.PosteriorSampling(sds.Guided(Classes(), 3.0), sds.Mask([1, 0]), torch.tensor([0.8]), 0.1)
    words = {"steps": 20, "num_samples": 3, "condition": 0}
    assert not torch.equal(sds.sample(plain, "heun", **words).samples, sds.sample(guided, "heun", **words).samples)
    assert bool(sds.sample(guided, "euler-cfgpp", **words).samples.isfinite().all())  # it asks for the unguided one
    by_scale = sds.PosteriorSampling(Classes(), sds.Mask([1, 0]), torch.tensor([0.8]), 0.1, "projection")
    inside = sds.PosteriorSampling(sds.Guided(Classes(), 3.0), sds.Mask([1, 0]), torch.tensor([0.8]), 0.1, "projection")
    asked = sds.sample(by_scale, "heun", guidance_scale=3.0, **words).samples
    torch.testing.assert_close(asked, sds.sample(inside, "heun", **words).samples)  # projection is linear in x0


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"method": "ddrm"}, "'dps', 'pigdm' or 'projection'"),
        ({"noise_std": -1.0}, "noise_std"),
        ({"scale": math.inf}, "scale"),
        ({"data_std": 0.0}, "data_std"),
        ({"method": "projection", "scale": 2.0}, "no scale"),
        ({"y": torch.zeros(3)}, "shape"),
        ({"y": torch.zeros(1, dtype=torch.long)}, "floating-point"),
        ({"model": "fashion-mnist"}, "Model"),
        ({"model": sds.FunnelModel(2)}, "alpha and sigma"),
        ({"operator": sds.Downsample(2)}, "Downsample"),
    ],
)
def test_it_says_what_does_not_fit(words, match):
    given = {"model": sds.grid_mixture(sds.VP()), "operator": sds.Mask([1, 0]), "y": torch.zeros(1), **words}
    with pytest.raises(UsageError, match=match):
        sds.PosteriorSampling(**given)


def test_measurements_and_samples_are_counted():
    model = sds.PosteriorSampling(sds.grid_mixture(sds.VP()), sds.Mask([1, 0]), torch.zeros(3, 1))
    with pytest.raises(UsageError, match="3 measurements for 2 samples"):
        sds.sample(model, "ddim", steps=2, num_samples=2)
    with pytest.raises(UsageError, match="not conditioned"):
        sds.PosteriorSampling(model, sds.Mask([1, 0]), torch.zeros(1))


# --- RePaint ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "length", "resamples"), [(10, 1, 4), (10, 3, 5), (12, 20, 3), (6, 2, 1)])
def test_repaint_walks_every_stretch_so_many_times(steps, length, resamples):
    """Evaluations by hand: `steps` once, and `resamples` - 1 times `jump_length` for each place that goes back up."""
    times = []
    model = sds.grid_mixture(sds.VP())
    words = {"steps": steps, "jump_length": length, "resamples": resamples}
    result = sds.sample(model, "repaint", callback=lambda event: times.append(event.point.time), **words)
    places = len(range(0, steps - length, length))  # 0 is the last noisy point of `steps`
    assert result.nfe == steps + places * length * (resamples - 1)
    ups = [(a, b) for a, b in itertools.pairwise(times) if b >= a]
    assert len(ups) == places * (resamples - 1)


@pytest.mark.parametrize("word", ["jump_length", "resamples"])
def test_repaint_refuses_no_jumps(word):
    with pytest.raises(UsageError, match=word):
        sds.sample(sds.grid_mixture(sds.VP()), "repaint", steps=4, **{word: 0})


def test_repaint_keeps_the_known_part_at_its_noised_measurement():
    """RePaint's known region is alpha y + sigma z at every visit, in mean and variance."""
    count, y = 1000, 1.5
    prior = sds.GaussianModel(torch.zeros(2), [[1.0, 0.8], [0.8, 1.0]], sds.VP())
    model = sds.PosteriorSampling(prior, sds.Mask([1, 0]), torch.tensor([y]), method="projection")
    seen = []

    def note(event):
        seen.append((event.point.alpha, event.point.sigma, event.x[:, 0].clone()))

    sds.sample(model, "repaint", steps=6, jump_length=2, resamples=3, num_samples=count, callback=note)
    for alpha, sigma, x in seen[1:]:
        assert abs(float(x.mean()) - alpha * y) < 4.5 * sigma / math.sqrt(count) + 0.01 * y
        assert float(x.std()) == pytest.approx(sigma, rel=0.12)


def test_repaint_with_eta_1_and_no_resamples_is_ddpm():
    words = {"steps": 8, "num_samples": 3, "seed": 2}
    found = sds.sample(sds.grid_mixture(sds.VP()), "repaint", resamples=1, eta=1.0, **words).samples
    torch.testing.assert_close(found, sds.sample(sds.grid_mixture(sds.VP()), "ddpm", **words).samples)


def test_resampling_brings_the_rest_into_line_with_the_known_part():
    """Correlated Gaussian data: plain replacement falls short of E[b | a] = rho a, and resampling closes the gap."""
    rho, y, count, pairs = 0.9, 1.5, 4000, 100  # in one sample, as noise is drawn faster for few long ones
    covariance = torch.kron(torch.eye(pairs), torch.tensor([[1.0, rho], [rho, 1.0]]))
    prior = sds.GaussianModel(torch.zeros(2 * pairs), covariance, sds.VP())
    model = sds.PosteriorSampling(prior, sds.Mask([1, 0] * pairs), torch.full((pairs,), y), method="projection")
    gaps = []
    for resamples in (1, 4, 12):
        words = {"steps": 20, "spacing": "linspace", "resamples": resamples, "num_samples": count // pairs, "seed": 5}
        found = sds.sample(model, "repaint", **words).samples[:, 1::2]
        gaps.append(abs(float(found.mean()) - rho * y))
    assert gaps[0] > 0.1
    assert gaps[1] < 0.6 * gaps[0]
    assert gaps[2] < 0.1  # of which 0.03 are 4 standard errors


# --- partial noising --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_partial_noising_of_gaussian_data_has_its_closed_form(name):
    """From x at time t the ODE ends at m + k (x_t - alpha m), k^2 = c / (alpha^2 c + sigma^2): mean and variance."""
    process, prediction = PROCESSES[name]
    mean, c, count = torch.tensor([0.5, -0.5], dtype=F64), 0.3, 3000
    model = sds.GaussianModel(mean, c, process, prediction=prediction)
    x, t = torch.tensor([1.0, 0.2], dtype=F64), float(process.time_at_ratio(0.8))
    words = sds.noised(model, x.expand(count, 2), t, seed=4)
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    assert words["start_time"] == t
    z = (words["start"] - alpha * x) / sigma
    assert bool((z.mean(0).abs() < 4 / math.sqrt(count)).all())
    assert bool(((torch.cov(z.mT) - torch.eye(2)).abs() < 4 * math.sqrt(2 / count)).all())
    found = sds.sample(model, "heun", steps=40, **words).samples
    k = math.sqrt(c / (alpha**2 * c + sigma**2))
    torch.testing.assert_close(found, mean + k * (words["start"] - alpha * mean), rtol=0, atol=5e-3)
    expected_mean, expected_std = mean + k * alpha * (x - mean), k * sigma
    assert bool(((found.mean(0) - expected_mean).abs() < 4 * expected_std / math.sqrt(count) + 5e-3).all())
    assert bool(((found.std(0) / expected_std - 1).abs() < 0.06).all())


def test_partial_noising_is_keyed_by_sample():
    model = sds.grid_mixture(sds.VP())
    x = normals(5, 2)
    whole = sds.noised(model, x, 0.4, seed=7)["start"]
    assert torch.equal(sds.noised(model, x[2:4], 0.4, seed=7, first_index=2)["start"], whole[2:4])
    assert not torch.equal(sds.noised(model, x, 0.4, seed=8)["start"], whole)
    assert sds.noised(model, x.half(), 0.4)["start"].dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "time", "match"),
    [
        (normals(2, 3), 0.5, "shape"),
        (torch.zeros(2, 2, dtype=torch.long), 0.5, "floating"),
        (normals(2, 2), 1.5, "t_max"),
    ],
)
def test_partial_noising_says_what_does_not_fit(x, time, match):
    with pytest.raises(UsageError, match=match):
        sds.noised(sds.grid_mixture(sds.VP()), x, time)


# --- the embedded model's images --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images():
    """The embedded model, and two of its own samples as ground truth."""
    model = sds.load("fashion-mnist", device="cpu")
    return model, sds.sample(model, "fast", num_samples=2, seed=2).samples


def psnr(found, truth):
    """In dB, for data in [-1, 1], the mean over images."""
    return float((10 * torch.log10(4 / (found.clamp(-1, 1) - truth).square().mean((1, 2, 3)))).mean())


@pytest.mark.parametrize("task", mostly_slow(["inpainting", "super-resolution"], keep=["inpainting"]))
@pytest.mark.parametrize(
    ("method", "sampler", "words", "options"),
    mostly_slow(
        [
            ("dps", "ddpm", {"steps": 40}, {"scale": 1.5}),
            ("pigdm", "ddpm", {"steps": 40}, {"scale": 3.0, "data_std": 100.0}),
            ("projection", "repaint", {"steps": 15, "resamples": 4}, {}),
        ],
        keep=lambda method, *_: method == "projection",
    ),
    ids=["dps", "pigdm", "repaint"],
)
def test_images_are_restored(images, task, method, sampler, words, options):
    model, truth = images
    keep = torch.zeros(28, 28)
    keep[:14] = 1
    operator = sds.Mask(keep, model.shape) if task == "inpainting" else sds.Downsample(4)
    y = operator.apply(truth)
    y = y + 0.05 * normals(*y.shape, seed=1).float()
    guided = sds.PosteriorSampling(model, operator, y, 0.05, method, **options)
    found = sds.sample(guided, sampler, num_samples=2, seed=3, **words).samples
    assert psnr(found, truth) > psnr(operator.pseudo_inverse(y), truth) + 0.5
    assert float((operator.apply(found) - y).square().mean().sqrt()) < 0.12
    assert float(found.abs().max()) < 2
