"""Training objectives: stationary at the exact score, one objective for all prediction types, the papers' own forms."""

import itertools
import math

import numpy as np
import pytest
import torch
from lanes import mostly_slow
from process_cases import PROCESSES as ALL
from process_cases import TABLE, ZERO_TABLE
from scipy import integrate, stats
from torch.autograd import forward_ad

import sdesamplers as sds
from sdesamplers import losses

PROCESSES = {name: ALL[name] for name in ("vp", "ve", "sub-vp", "edm", "flow", "cosine", "table")}
TIMES = {
    "uniform": losses.UniformTimes(),
    "log-normal": losses.LogNormalSigma(),
    "logit-normal": losses.LogitNormalTimes(),
    "importance": losses.ImportanceTimes("likelihood", "v"),
    "importance under log-normal": losses.ImportanceTimes("edm", "sample", losses.LogNormalSigma()),
}
OBJECTIVES = (PROCESSES, sds.PREDICTIONS, losses.WEIGHTINGS)
EXACT = torch.tensor([0.5, -0.3, math.log(0.6)], dtype=torch.float64)


def data(count, seed=0):
    """Exact draws of N((0.5, -0.3), 0.6^2)."""
    normal = torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return EXACT[:2] + EXACT[2].exp() * normal


def gaussian_network(process, prediction, parameters, seen=None):
    """The exact prediction for data N(parameters[:2], exp(parameters[2])^2), written out."""

    def network(x, t):
        if seen is not None:
            seen.append(t)
        clock = t.double().numpy()
        alpha, sigma, d_alpha, d_sigma = (torch.from_numpy(np.array(v))[:, None] for v in process.schedule(clock))
        mean, variance = parameters[:2], (2 * parameters[2]).exp()
        whole = alpha**2 * variance + sigma**2
        x0 = mean + alpha * variance * (x - alpha * mean) / whole
        eps = sigma * (x - alpha * mean) / whole
        return {
            "epsilon": eps,
            "sample": x0,
            "v": alpha * eps - sigma * x0,
            "score": -eps / sigma,
            "flow": d_alpha * x0 + d_sigma * eps,
        }[prediction]

    return network


def z_scores(process, prediction, weighting, parameters, count):
    """The loss's gradient in each parameter over its standard error.

    The error takes draws for independent, which stratified ones are not: theirs varies less, so it errs upwards.
    """
    x0, scores = data(count), []
    for direction in torch.eye(3, dtype=torch.float64):
        words = {"times": losses.LogNormalSigma(-0.5, 1.0), "generator": torch.Generator().manual_seed(1)}
        with forward_ad.dual_level():
            network = gaussian_network(process, prediction, forward_ad.make_dual(parameters, direction))
            loss = losses.denoising_loss(network, process, x0, prediction=prediction, weighting=weighting, **words)
            slope = forward_ad.unpack_dual(loss).tangent
        scores.append(float(slope.mean() / slope.std() * math.sqrt(count)))
    return np.array(scores)


def one_in_thirty(name, prediction, weighting):
    """Each process and each weighting, and each prediction type, in other combinations."""
    case = zip(OBJECTIVES, (name, prediction, weighting), strict=True)
    process, kind, weight = (list(values).index(value) for values, value in case)
    return weight == (3 * process + 1) % 7 and kind == process % 5


@pytest.mark.parametrize(
    ("name", "prediction", "weighting"), mostly_slow(itertools.product(*OBJECTIVES), keep=one_in_thirty)
)
def test_the_gradient_vanishes_at_the_exact_score_and_nowhere_near(name, prediction, weighting):
    """2^13 samples: within 4 standard errors of 0 at the exact mean and width, more than 6 away at wrong ones."""
    process, off = PROCESSES[name], torch.tensor([0.3, 0.0, 0.3], dtype=torch.float64)
    exact = z_scores(process, prediction, weighting, EXACT, 1 << 13)
    wrong = z_scores(process, prediction, weighting, EXACT + off, 1 << 13)
    assert np.abs(exact).max() < 4
    assert np.abs(wrong[[0, 2]]).min() > 6


@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
@pytest.mark.parametrize("name", PROCESSES)
def test_all_prediction_types_have_the_same_loss(name, weighting):
    process, x0 = PROCESSES[name], data(64)
    off = EXACT + torch.tensor([0.4, -0.2, 0.3], dtype=torch.float64)
    share = losses.stratified_shares(64, torch.Generator().manual_seed(3))
    t, noise = losses.UniformTimes().quantile(process, share), torch.randn_like(x0)
    values = [
        losses.denoising_loss(
            gaussian_network(process, kind, off), process, x0, prediction=kind, weighting=weighting, t=t, noise=noise
        )
        for kind in sds.PREDICTIONS
    ]
    assert float(values[0].min()) > 0
    for other in values[1:]:
        torch.testing.assert_close(other, values[0], rtol=1e-6, atol=0)


# --- the likelihood bound ---------------------------------------------------------------------------------------------

BOUNDED = {
    "vp": sds.VP(0.1, 5.0),
    "constant vp": sds.ConstantVP(2.0),
    "sub-vp": sds.SubVP(0.1, 5.0),
    "ve": sds.VE(0.05, 5.0),
    "edm": sds.EDM(0.05, 5.0),
}
MEAN, STD = 0.5, 0.6


class Closed:
    """Everything of Song, Durkan, Murray & Ermon (2021) for data N(MEAN, STD^2) in one dimension.

    The score model is that of N(mean, std^2), and time runs from t_min, where the data stand noised a little.
    """

    def __init__(self, process, mean, std):
        self.process, self.mean, self.std = process, mean, std
        self.first, self.last = process.t_min, process.t_max

    def parts(self, t):
        alpha, sigma, d_alpha, d_sigma = (float(v) for v in self.process.schedule(t))
        f = d_alpha / alpha
        return alpha, sigma, f, 2 * sigma * (d_sigma - f * sigma), alpha**2 * self.std**2 + sigma**2

    def integral(self, function):
        middle = float(self.process.time_at_ratio(0.2))
        pieces = ((self.first, middle), (middle, self.last))
        return sum(integrate.quad(function, a, b, epsabs=1e-11, epsrel=1e-11, limit=400)[0] for a, b in pieces)

    def j_dsm(self):
        """J_DSM(theta; g^2) = 1/2 int g^2 E |s_theta(x_t, t) + eps/sigma|^2 dt (their eq. 7 with lambda = g^2)."""

        def rate(t):
            alpha, sigma, _, g2, whole = self.parts(t)
            spread = STD**2 + (MEAN - self.mean) ** 2
            return 0.5 * g2 * (alpha**2 * spread / whole**2 + (1 / sigma - sigma / whole) ** 2)

        return self.integral(rate)

    def constant(self):
        """C_2 of corollary 1: -E log pi(x_T) - 1/2 int (g^2 / sigma^2 + 2 f) dt (theorem 3, averaged over the data)."""

        def rate(t):
            _, sigma, f, g2, _ = self.parts(t)
            return 0.5 * g2 / sigma**2 + f

        return self.end_entropy() - self.integral(rate)

    def end_entropy(self):
        """-E log pi(x_T)."""
        alpha, sigma, *_ = self.parts(self.last)
        prior = self.process.prior.std
        return math.log(prior * math.sqrt(2 * math.pi)) + (alpha**2 * (STD**2 + MEAN**2) + sigma**2) / (2 * prior**2)

    def negative_log_likelihood(self):
        """-E log p_theta under the reverse SDE from the prior, whose mean and variance solve linear equations."""

        def slope(t, y):
            alpha, _, f, g2, whole = self.parts(t)
            return [f * y[0] + g2 * (y[0] - alpha * self.mean) / whole, 2 * (f + g2 / whole) * y[1] - g2]

        begin = [0.0, self.process.prior.std**2]
        end = integrate.solve_ivp(slope, (self.last, self.first), begin, rtol=1e-10, atol=1e-12, method="DOP853").y[
            :, -1
        ]
        alpha, sigma, *_ = self.parts(self.first)
        squares = alpha**2 * STD**2 + sigma**2 + (alpha * MEAN - end[0]) ** 2
        return 0.5 * math.log(2 * math.pi * end[1]) + 0.5 * squares / end[1]


@pytest.mark.parametrize("name", BOUNDED)
def test_the_likelihood_weighting_bounds_the_negative_log_likelihood(name):
    """Corollary 1 with its constant; the loss's mean over 2^17 samples is J_DSM within 4 standard errors."""
    process, count = BOUNDED[name], 1 << 17
    x0 = MEAN + STD * torch.randn(count, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for mean, std in ((MEAN, STD), (0.2, 0.8), (0.9, 0.45)):
        closed = Closed(process, mean, std)
        network = sds.GaussianModel([mean], std**2, process, prediction="score")
        words = {"prediction": "score", "weighting": "likelihood", "importance": losses.ImportanceTimes()}
        each = losses.denoising_loss(
            lambda x, t, model=network: model.predict(x, t.numpy()),
            process,
            x0,
            generator=torch.Generator().manual_seed(1),
            **words,
        ) * (process.t_max - process.t_min)
        assert abs(float(each.mean()) - closed.j_dsm()) < 4 * float(each.std()) / math.sqrt(count)
        bound, nats = closed.j_dsm() + closed.constant(), closed.negative_log_likelihood()
        if (mean, std) != (MEAN, STD):
            assert nats < bound - 5e-4
            assert bound < nats + 0.5
            continue
        # Exact: the bound is the data's entropy and KL(p_T || pi), which no score can change (theorem 1).
        alpha, sigma, *_ = closed.parts(closed.first)
        entropy = 0.5 * math.log(2 * math.pi * math.e * (alpha**2 * STD**2 + sigma**2))
        alpha, sigma, *_ = closed.parts(closed.last)
        end = 0.5 * math.log(2 * math.pi * math.e * (alpha**2 * STD**2 + sigma**2))
        assert bound == pytest.approx(entropy + closed.end_entropy() - end, abs=1e-8)
        assert entropy <= nats < bound


# --- times ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TIMES)
@pytest.mark.parametrize("name", PROCESSES)
def test_quantiles_and_densities_agree(name, kind):
    process, times = PROCESSES[name], TIMES[kind]
    shares = np.linspace(0, 1 - 1e-12, 41)
    marks = times.quantile(process, shares)
    assert process.t_min <= marks[0] <= marks[-1] <= process.t_max
    assert np.all(np.diff(marks) > 0)
    for low, high, gained in zip(marks[:-1], marks[1:], np.diff(shares), strict=True):
        # Substituted so that nodes crowd at both ends, where densities may be steep.
        u = (np.arange(4000) + 0.5) / 4000
        t, slope = low + (high - low) * u * u * (3 - 2 * u), (high - low) * 6 * u * (1 - u)
        assert float((times.density(process, t) * slope).mean()) == pytest.approx(gained, rel=5e-3)
    outside = np.array([process.t_max * 1.01, process.t_min - 0.01 * process.t_max])
    np.testing.assert_array_equal(times.density(process, outside), [0, 0])


def test_log_normal_sigma_is_the_normal_cut_to_the_process():
    shares = np.linspace(0.001, 0.999, 101)
    for process in PROCESSES.values():
        with np.errstate(divide="ignore"):
            low, high = (np.log(process.ratio(t)) for t in (process.t_min, process.t_max))
        cut = stats.truncnorm((low + 1.2) / 1.2, (high + 1.2) / 1.2, -1.2, 1.2)
        t = losses.LogNormalSigma().quantile(process, shares)
        np.testing.assert_allclose(np.log(process.ratio(t)), cut.ppf(shares), atol=1e-8)
        slope = losses.LogNormalSigma().slope(process, t)
        np.testing.assert_allclose(losses.LogNormalSigma().density(process, t), cut.pdf(cut.ppf(shares)) * slope)
    wide = losses.LogNormalSigma(0.3, 0.7).quantile(sds.EDM(1e-8, 1e8), shares)
    np.testing.assert_allclose(np.log(wide), stats.norm(0.3, 0.7).ppf(shares), atol=1e-9)


def test_logit_normal_times_are_those_of_diffusers():
    from diffusers.training_utils import compute_density_for_timestep_sampling

    torch.manual_seed(0)
    theirs = compute_density_for_timestep_sampling("logit_normal", 20000, 0.4, 0.8).numpy()
    shares = np.random.default_rng(0).random(20000)
    ours = losses.LogitNormalTimes(0.4, 0.8).quantile(sds.RectifiedFlow(), shares)
    assert stats.ks_2samp(theirs, ours).pvalue > 0.01
    assert stats.ks_2samp(theirs, losses.LogitNormalTimes(0.3, 0.8).quantile(sds.RectifiedFlow(), shares)).pvalue < 1e-4


def likelihood_losses(process, prediction, importance, count=1 << 16, seed=0):
    """Likelihood-weighted losses of a network that is somewhat wrong, at independent times."""
    times = importance or losses.UniformTimes()
    t = times.quantile(process, np.random.default_rng(seed).random(count))
    off = EXACT + torch.tensor([0.2, -0.1, 0.2], dtype=torch.float64)
    network = gaussian_network(process, prediction, off)
    words = {"prediction": prediction, "weighting": "likelihood", "importance": importance}
    noise = torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    return losses.denoising_loss(network, process, data(count, seed + 2), t=t, noise=noise, **words)


@pytest.mark.parametrize(
    ("name", "prediction", "gain"),
    [
        ("vp", "epsilon", 5),
        ("sub-vp", "epsilon", 5),
        ("table", "epsilon", 5),
        ("edm", "epsilon", 100),
        ("flow", "flow", 5),
    ],
)
def test_importance_sampling_keeps_the_expectation_and_lowers_the_variance(name, prediction, gain):
    """2^16 samples each: the same mean within 4 standard errors, the variance at most 1/gain."""
    process = PROCESSES[name]
    plain = likelihood_losses(process, prediction, None)
    sampled = likelihood_losses(process, prediction, losses.ImportanceTimes("likelihood", prediction), seed=10)
    error = math.sqrt(float(plain.var() + sampled.var()) / len(plain))
    assert abs(float(plain.mean() - sampled.mean())) < 4 * error
    assert float(sampled.var()) * gain < float(plain.var())


def test_importance_sampling_of_another_objective_than_the_uniform_one():
    process, times = sds.EDM(), losses.LogNormalSigma()
    network = gaussian_network(process, "sample", EXACT + 0.2)
    words = {"prediction": "sample", "weighting": "edm", "times": times}
    values = []
    for importance in (None, losses.ImportanceTimes("edm", "sample", times), losses.LogNormalSigma(-0.8, 1.6)):
        generator = torch.Generator().manual_seed(2)
        values.append(
            losses.denoising_loss(network, process, data(1 << 16), importance=importance, generator=generator, **words)
        )
    for other in values[1:]:
        error = math.sqrt(float(values[0].var() + other.var()) / len(other))
        assert abs(float(other.mean() - values[0].mean())) < 4 * error
    uniform = losses.denoising_loss(network, process, data(1 << 16), prediction="sample", weighting="edm")
    assert float(uniform.mean()) > 1.2 * float(values[0].mean())  # `times` belong to the objective


def test_importance_weights_are_even_where_the_error_is():
    """An error of epsilon of constant size has constant weight under the importance density."""
    process = sds.VP()
    importance = losses.ImportanceTimes()
    t = importance.quantile(process, np.linspace(0.001, 0.999, 301))
    weights = losses.weights_on("likelihood", "epsilon", process, t)
    np.testing.assert_allclose(
        weights / importance.density(process, t), weights[0] / importance.density(process, t)[0], rtol=1e-2
    )
    other = sds.VP(0.2, 10.0)  # a table is kept for one process and made anew for another
    assert importance.quantile(other, np.array([0.5])) != importance.quantile(process, np.array([0.5]))


def test_shares_are_stratified_uniform_and_in_random_order():
    generator = torch.Generator().manual_seed(0)
    many = np.stack([losses.stratified_shares(8, generator) for _ in range(4000)])
    assert many.dtype == np.float64
    np.testing.assert_array_equal(np.sort((many * 8).astype(int), 1), np.broadcast_to(np.arange(8), (4000, 8)))
    for column in (0, 7):
        assert stats.kstest(many[:, column], "uniform").pvalue > 0.01
    # Each part holds 1/8 of the range: the mean's variance falls from 1/(12 N) to 1/(12 N^3).
    assert many.mean(1).var() == pytest.approx(1 / 12 / 8**3, rel=0.1)
    assert 0 <= losses.stratified_shares(1, generator)[0] < 1


def test_times_are_drawn_stratified():
    seen = []
    process = sds.VP()
    losses.denoising_loss(gaussian_network(process, "epsilon", EXACT, seen), process, data(16))
    places = (seen[0].flatten().numpy() - process.t_min) / (process.t_max - process.t_min) * 16
    np.testing.assert_array_equal(np.sort(places.astype(int)), np.arange(16))


# --- the papers' own forms --------------------------------------------------------------------------------------------


def case(process, shape=(5, 3, 4, 4), seed=0):
    """Data, noise, times and a network's raw answer, whatever it means."""
    generator = torch.Generator().manual_seed(seed)
    x0, noise, answer = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(3))
    u = torch.rand(shape[0], dtype=torch.float64, generator=generator).numpy()
    return x0, noise, answer, process.t_min + (process.t_max - process.t_min) * u


def column(values):
    return torch.as_tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


def by_hand(weight, error):
    return (column(weight) * error.square()).mean((1, 2, 3))


def test_edm_is_karras_et_al():
    """lambda(sigma) |D(y + n; sigma) - y|^2, lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2."""
    process = sds.EDM()
    y, normal, answer, sigma = case(process)
    asked = []

    def network(x, t):
        asked.append((x, t))
        return answer

    words = {"prediction": "sample", "t": sigma, "noise": normal}
    for weighting, d in (("edm", 0.5), (losses.edm(1.3), 1.3)):
        found = losses.denoising_loss(network, process, y, weighting=weighting, **words)
        torch.testing.assert_close(found, by_hand((sigma**2 + d**2) / (sigma * d) ** 2, answer - y))
    torch.testing.assert_close(asked[0][0], y + column(sigma) * normal)
    torch.testing.assert_close(asked[0][1], column(sigma))


def test_ddpm_is_ho_et_al():
    x0, noise, answer, _ = case(sds.DiscreteVP(TABLE))
    t = np.array([0, 17, 500, 998, 999])
    asked = []

    def network(x, when):
        asked.append(x)
        return answer

    found = losses.denoising_loss(network, sds.DiscreteVP(TABLE), x0, t=t, noise=noise)
    torch.testing.assert_close(found, by_hand(np.ones(5), noise - answer))
    root = column(np.sqrt(TABLE[t]))
    torch.testing.assert_close(asked[0], root * x0 + (1 - root**2).sqrt() * noise)


def test_score_matching_is_song_et_al():
    """lambda(t) |s(x_t, t) - grad log p_0t|^2 with lambda = sigma^2 and g^2 / 2, for VP with its own formulas."""
    process = sds.VP()
    x0, noise, answer, t = case(process)
    big_b = 0.1 * t + 9.95 * t**2
    variance, beta = 1 - np.exp(-big_b), 0.1 + 19.9 * t
    error = answer + noise / column(np.sqrt(variance))
    words = {"prediction": "score", "t": t, "noise": noise}
    found = losses.denoising_loss(lambda x, t: answer, process, x0, **words)
    torch.testing.assert_close(found, by_hand(variance, error))
    found = losses.denoising_loss(lambda x, t: answer, process, x0, weighting="likelihood", **words)
    torch.testing.assert_close(found, by_hand(beta / 2, error))


def test_flow_matching_is_liu_et_al():
    """|v - (noise - data)|^2, and as a weighting of x0 the sigma^-2 of diffusers' "sigma_sqrt"; also at pure noise."""
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    process = sds.RectifiedFlow()
    x0, noise, answer, t = case(process)
    t[0] = 1.0
    found = losses.denoising_loss(
        lambda x, t: answer, process, x0, prediction="flow", weighting="flow", t=t, noise=noise
    )
    torch.testing.assert_close(found, by_hand(np.ones(5), answer - (noise - x0)))
    theirs = compute_loss_weighting_for_sd3("sigma_sqrt", torch.from_numpy(t)).numpy()
    np.testing.assert_allclose(losses.weights_on("flow", "sample", process, t), theirs, rtol=1e-6)


@pytest.mark.parametrize("gamma", [5.0, 1.0])
@pytest.mark.parametrize("kind", ["epsilon", "v"])
def test_min_snr_is_the_training_scripts_of_diffusers(kind, gamma):
    """min(SNR, gamma)/SNR on epsilon, min(SNR, gamma)/(SNR + 1) on v, the target from `get_velocity`."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    scheduler = DDPMScheduler(1000)
    process = sds.DiscreteVP(scheduler.alphas_cumprod.double().numpy())
    x0, noise, answer, _ = case(process)
    steps = torch.tensor([0, 100, 250, 600, 999])
    snr = compute_snr(scheduler, steps).double()
    weight = snr.clamp(max=gamma) / (snr if kind == "epsilon" else snr + 1)
    target = noise if kind == "epsilon" else scheduler.get_velocity(x0, noise, steps)
    theirs = (weight * (answer - target).square().flatten(1).mean(1)).double()
    words = {"prediction": kind, "weighting": losses.min_snr(gamma), "t": steps, "noise": noise}
    found = losses.denoising_loss(lambda x, t: answer, process, x0, **words)
    torch.testing.assert_close(found, theirs, rtol=2e-4, atol=0)  # their table is float32
    if gamma == 5.0:
        named = losses.weights_on("min-snr", kind, process, steps.numpy())
        np.testing.assert_allclose(named, weight.numpy(), rtol=2e-4)


def test_weights_by_name_on_other_types():
    """SNR + 1 on x0 is 1 on v; 1 on x0 is sigma^2/alpha^2 on epsilon (Salimans & Ho 2022, section 4)."""
    process, t = sds.CosineVP(), np.array([0.1, 0.5, 0.9])
    snr = np.exp(process.log_snr(t))
    np.testing.assert_allclose(losses.weights_on("v", "sample", process, t), snr + 1, rtol=1e-10)
    np.testing.assert_allclose(losses.weights_on("x0", "epsilon", process, t), 1 / snr, rtol=1e-10)
    np.testing.assert_allclose(losses.weights_on("min-snr", "sample", process, t), np.minimum(snr, 5), rtol=1e-10)
    g = process.diffusion(t)
    np.testing.assert_allclose(losses.weights_on("likelihood", "score", process, t), g**2 / 2, rtol=1e-10)
    own = losses.Weighting("score", lambda process, t: process.sigma(t) ** 2)
    np.testing.assert_allclose(losses.weights_on(own, "epsilon", process, t), np.ones(3), rtol=1e-10)
    assert losses.weights_on("simple", "epsilon", process, 0.3).shape == (1,)


@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
@pytest.mark.parametrize("process", [sds.RectifiedFlow(), sds.CosineVP(), sds.DiscreteVP(ZERO_TABLE)])
def test_weights_at_pure_noise_are_the_limits(process, weighting):
    """Where alpha = 0, v and flow carry every weighting; epsilon says nothing of x0 there, and that is said."""
    near = process.t_max - 1e-7 * process.t_max
    for kind in ("v", "flow", "sample"):
        limit = losses.weights_on(weighting, kind, process, near)
        at = losses.weights_on(weighting, kind, process, process.t_max)
        np.testing.assert_allclose(at, limit, rtol=1e-4, atol=1e-4)
    if weighting in ("simple", "min-snr"):
        np.testing.assert_array_equal(losses.weights_on(weighting, "epsilon", process, process.t_max), [1.0])
        return
    with pytest.raises(sds.UsageError, match=r"on the squared error of epsilon at t = .*v or flow"):
        losses.weights_on(weighting, "epsilon", process, process.t_max)


# --- the call ---------------------------------------------------------------------------------------------------------


def test_condition_dtype_device_and_gradients():
    process, told = sds.VP(), []
    weight = torch.nn.Parameter(torch.tensor(0.5))

    def network(x, t, labels):
        told.append((x.dtype, t.dtype, labels))
        return weight * x

    labels = torch.arange(6)
    x0 = torch.randn(6, 3, 2, 2)
    kept = x0.clone()
    loss = losses.denoising_loss(network, process, x0, condition=labels)
    assert loss.shape == (6,)
    assert loss.dtype == torch.float32
    loss.mean().backward()
    assert float(weight.grad) != 0
    assert torch.equal(x0, kept)
    losses.denoising_loss(network, process, x0.bfloat16(), condition=labels)
    assert [entry[:2] for entry in told] == [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)]
    assert all(torch.equal(entry[2], labels) for entry in told)


def test_a_generator_decides_everything_and_nothing_else_moves():
    process, x0 = sds.VP(), data(32)
    network = gaussian_network(process, "epsilon", EXACT + 0.3)

    def loss(generator=None):
        return losses.denoising_loss(network, process, x0, generator=generator)

    torch.manual_seed(7)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = loss(torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)
    assert torch.equal(loss(torch.Generator().manual_seed(3)), first)
    generator = torch.Generator().manual_seed(3)
    assert not torch.equal(loss(generator), loss(generator))
    drawn = loss()  # torch's global generator
    torch.set_rng_state(before)
    assert torch.equal(loss(), drawn)
    assert not torch.equal(drawn, first)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"weighting": "simpel"}, "unknown weighting 'simpel'; did you mean 'simple'"),
        ({"weighting": lambda process, t: t}, "losses.Weighting"),
        ({"weighting": losses.Weighting("v", lambda process, t: -t)}, "this weighting is -"),
        ({"prediction": "epsilom"}, "unknown prediction type"),
        ({"t": np.zeros(3)}, r"t must be one time or 4.*\(3,\)"),
        ({"noise": torch.zeros(4, 3)}, r"noise must have x0's shape \(4, 2\), not \(4, 3\)"),
        ({"times": losses.LogNormalSigma(40.0, 0.5)}, "has almost no probability within the range"),
        ({"t": 1.5}, "t must lie from 0 to 1 on this process, not 1.5"),
        ({"importance": losses.ImportanceTimes(), "t": 1e-7}, "importance has density 0 at t = 1e-07"),
        ({"weighting": "v", "t": 0.0, "prediction": "sample"}, "inf on the squared error of sample at t = 0"),
    ],
)
def test_words_that_do_not_fit(words, message):
    with pytest.raises(sds.UsageError, match=message):
        losses.denoising_loss(lambda x, t: x, sds.VP(), data(4), **words)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.LogNormalSigma(0.0, 0.0), "positive std"),
        (lambda: losses.LogitNormalTimes(math.nan), "finite mean"),
        (lambda: losses.edm(0.0), "sigma_data must be positive"),
        (lambda: losses.min_snr(-1.0), "gamma must be positive"),
        (lambda: losses.unit("epsilom"), "unknown prediction type"),
        (lambda: losses.ImportanceTimes(nodes=2), "nodes must be a whole number of 8 or more"),
        (lambda: losses.ImportanceTimes("likelihood", "epsilom"), "unknown prediction type"),
        (lambda: losses.ImportanceTimes().quantile(sds.RectifiedFlow(), np.array([0.5])), "predict v or flow"),
        (lambda: losses.denoising_loss(lambda x, t: x, sds.VP(), torch.zeros(3)), r"\(N, ...\)"),
        (lambda: losses.denoising_loss(lambda x, t: x, sds.VP(), torch.zeros(3, 2, dtype=torch.int64)), "floating"),
    ],
)
def test_errors(make, message):
    with pytest.raises(sds.UsageError, match=message):
        make()


def test_score_prediction_at_the_data_is_refused():
    with pytest.raises(sds.ConversionError, match="does not determine the score at sigma = 0"):
        losses.denoising_loss(lambda x, t: x, sds.EDM(), data(2), prediction="score", t=0.0)
