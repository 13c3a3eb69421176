"""Score-SDE predictors, the Langevin corrector and annealed Langevin dynamics: formulas, identities, laws, parity."""

import math

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_sde_ve
from lanes import mostly_slow
from process_cases import PROCESSES as ALL
from process_cases import TABLE

import sdesamplers as sds
from sdesamplers.path.grid import given_points
from sdesamplers.path.noise import PATH, NormalSource
from sdesamplers.path.path import Path
from sdesamplers.path.points import path_process
from sdesamplers.sampling.loop import Evaluator, drive
from sdesamplers.testing import measure_weak_order

PROCESSES = {name: ALL[name] for name in ("vp", "sub-vp", "edm", "ve", "table", "flow")}
COORDINATES = ("native", "ve", "flow", "angle")


def step_noise(count, number=1, seed=0):
    """The keyed noise of a path's draw `number`."""
    return NormalSource(seed, range(count), (2,)).draw(PATH, number).double()


def one_step(process, sampler, t, s, **options):
    """A start, its score at t, and one step to s on a mixture, with the step's noise."""
    model = sds.grid_mixture(process)
    x = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    found = sds.sample(model, sampler, times=[t, s], start=x, num_samples=7, **options).samples
    return x, model.score(x, t), step_noise(7), found


def test_reverse_diffusion_is_equation_46_on_the_vp_chain():
    """x_i = (2 - sqrt(1 - beta)) x_{i+1} + beta s + sqrt(beta) z, with 1 - beta = abar_{i+1} / abar_i."""
    x, score, z, found = one_step(PROCESSES["table"], "reverse-diffusion", 600.0, 580.0)
    beta = 1 - TABLE[600] / TABLE[580]
    expected = (2 - math.sqrt(1 - beta)) * x + beta * score + math.sqrt(beta) * z
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_reverse_diffusion_is_equation_46_on_the_ve_chain():
    """x_i = x_{i+1} + (sigma_{i+1}^2 - sigma_i^2) (s + z / sqrt(...))."""
    x, score, z, found = one_step(PROCESSES["edm"], "reverse-diffusion", 3.0, 2.0)
    torch.testing.assert_close(found, x + 5.0 * score + math.sqrt(5.0) * z, rtol=1e-10, atol=1e-10)


def test_the_ancestral_predictor_is_the_papers_on_both_chains():
    """VP: (x + beta s)/sqrt(1 - beta) + sqrt(beta) z. VE: x + (t^2 - s^2) score + sqrt(s^2 (t^2 - s^2)/t^2) z."""
    x, score, z, found = one_step(PROCESSES["table"], "score-ancestral", 600.0, 580.0)
    beta = 1 - TABLE[600] / TABLE[580]
    expected = (x + beta * score) / math.sqrt(1 - beta) + math.sqrt(beta) * z
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    x, score, z, found = one_step(PROCESSES["edm"], "score-ancestral", 3.0, 2.0)
    torch.testing.assert_close(found, x + 5 * score + math.sqrt(4 * 5 / 9) * z, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("name", PROCESSES)
def test_the_ancestral_predictor_is_ddpm_with_one_of_its_variances(name, coordinates):
    if (name, coordinates) == ("flow", "ve"):
        pytest.skip("a flow starts at alpha = 0, which has no ve coordinates")
    process = PROCESSES[name]
    model = sds.grid_mixture(process, prediction="v")
    words = {"steps": 9, "num_samples": 4, "seed": 3, "coordinates": coordinates, "dtype": torch.float64}
    found = sds.sample(model, "score-ancestral", **words).samples
    posterior, forward = (sds.sample(model, "ddpm", variance=v, **words).samples for v in ("posterior", "beta"))
    same, other = (forward, posterior) if name in ("vp", "table") else (posterior, forward)
    torch.testing.assert_close(found, same, rtol=1e-9, atol=1e-9)
    assert (found - other).abs().max() > 1e-3  # the two are different samplers


@pytest.mark.parametrize("process", mostly_slow(["vp", "flow"], keep=["vp"]))
@pytest.mark.parametrize("sampler", mostly_slow(["reverse-diffusion", "score-ancestral"], keep=["reverse-diffusion"]))
def test_the_predictors_converge_weakly_at_their_declared_order(sampler, process):
    spec = sds.samplers()[sampler]
    mean, variance = measure_weak_order(spec, PROCESSES[process], order=1)
    assert variance == pytest.approx(1, abs=0.2)
    # the ancestral mean is exact on Gaussian data
    assert mean == pytest.approx(1, abs=0.2) if sampler == "reverse-diffusion" else mean == math.inf


@pytest.mark.parametrize("predictor", ["reverse-diffusion", "score-ancestral", "euler-maruyama", "ddim", "heun"])
def test_without_corrector_steps_only_the_predictor_is_left(predictor):
    model = sds.grid_mixture(sds.VP())
    words = {"steps": 8, "num_samples": 3, "coordinates": "native", "spacing": "linspace"}
    plain = sds.sample(model, predictor, **words)
    wrapped = sds.sample(model, "predictor-corrector", predictor=predictor, corrector_steps=0, **words)
    assert torch.equal(plain.samples, wrapped.samples)
    assert plain.nfe == wrapped.nfe


def test_a_correction_is_algorithm_4_in_ve_and_algorithm_5_in_vp():
    """e = 2 a^2 (r sqrt(D) / |score|)^2 where it is measured, 2 a^2 r^2 sigma^2 where it is scheduled."""
    r = 0.3
    for name, t, s, ratio in (("edm", 3.0, 2.0, 1.0), ("table", 600.0, 580.0, TABLE[600] / TABLE[580])):
        process = PROCESSES[name]
        model = sds.grid_mixture(process)
        x = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        words = {"times": [t, s], "start": x, "num_samples": 7, "predictor": "none", "snr": r}
        score, z = model.score(x, s), step_noise(7)
        for step in ("measured", "schedule"):
            found = sds.sample(model, "predictor-corrector", step=step, **words).samples
            norm = score.norm(dim=1, keepdim=True) if step == "measured" else math.sqrt(2) / float(process.sigma(s))
            e = 2 * ratio * (r * math.sqrt(2) / norm) ** 2
            torch.testing.assert_close(found, x + e * score + (2 * e) ** 0.5 * z, rtol=1e-9, atol=1e-9)


def test_the_corrector_settles_at_the_variance_that_its_step_has_on_paper():
    """x - e x/v + sqrt(2e) z on N(0, v): v / (1 - e/(2v)). 5,000 samples, 4 standard errors."""
    count, sigma, r = 5_000, 0.8, 0.5
    model = sds.GaussianModel([0.0], 0.36, sds.EDM())
    v, e = 0.36 + sigma**2, 2 * r**2 * sigma**2
    start = torch.zeros(count, 1, dtype=torch.float64)
    words = {"predictor": "none", "corrector_steps": 20, "snr": r}
    found = sds.sample(
        model, "predictor-corrector", times=[1.0, sigma], start=start, num_samples=count, **words
    ).samples
    settled = v / (1 - e / (2 * v))
    assert settled > v * (1 + 8 * math.sqrt(2 / count))  # the bias is there to be seen
    assert abs(float(found.var()) / settled - 1) < 4 * math.sqrt(2 / count)
    assert abs(float(found.mean())) < 4 * math.sqrt(settled / count)


def test_a_measured_step_belongs_to_its_sample():
    """A batch mate far away has a large score norm; it must not shorten the others' steps."""
    model = sds.grid_mixture(sds.VP())
    start = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    far = start.clone()
    far[1:] *= 30
    words = {"steps": 6, "num_samples": 4, "step": "measured"}
    first = sds.sample(model, "predictor-corrector", start=start, **words).samples[0]
    beside = sds.sample(model, "predictor-corrector", start=far, **words).samples[0]
    torch.testing.assert_close(first, beside, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("noise", ["independent", "brownian"])
@pytest.mark.parametrize("step", ["schedule", "measured"])
def test_transitions_of_predictor_and_corrector_are_recorded_and_replayed(step, noise):
    model = sds.grid_mixture(sds.VP())
    words = {"steps": 5, "num_samples": 3, "log_probs": True, "noise": noise, "corrector_steps": 2}
    result = sds.sample(model, "predictor-corrector", step=step, **words)
    assert result.log_probs.shape == (3, 4 * 3)  # the last step is noiseless and has no correction
    torch.testing.assert_close(sds.replay_log_probs(model, result), result.log_probs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        ("predictor-corrector", {"predictor": "langevin"}, "another sampler or 'none', not 'langevin'"),
        ("predictor-corrector", {"predictor": "predictor-corrector"}, "another sampler"),
        ("predictor-corrector", {"predictor": "mala"}, "mala cannot be a predictor here"),
        ("predictor-corrector", {"snr": 0.0}, "snr positive"),
        ("predictor-corrector", {"corrector_steps": -1}, "0 or more"),
        ("annealed-langevin", {"steps_per_level": 0}, "1 or more"),
        ("annealed-langevin", {"step_size": 4.0}, "between 0 and 4"),
    ],
)
def test_options_out_of_range_are_refused_before_the_model_is_asked(sampler, options, message):
    model = sds.FunctionModel(lambda x, t: 1 / 0, sds.VP(), "epsilon", (2,))
    with pytest.raises(sds.UsageError, match=message):
        sds.sample(model, sampler, steps=3, **options)


# --- annealed Langevin dynamics ---------------------------------------------------------------------------------------


def test_annealed_langevin_is_algorithm_1():
    """x <- x + e_i/2 s(x, sigma_i) + sqrt(e_i) z with e_i = epsilon sigma_i^2 / sigma_L^2, T steps at every level."""
    levels, steps, epsilon = (3.0, 1.2, 0.5, 0.2), 3, 0.004
    model = sds.grid_mixture(sds.EDM())
    x = start = 3 * torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    draw = 0
    for sigma in levels:
        e = epsilon * sigma**2 / levels[-1] ** 2
        for _ in range(steps):
            draw += 1
            x = x + e / 2 * model.score(x, sigma) + math.sqrt(e) * step_noise(5, draw)
    words = {"steps_per_level": steps, "step_size": epsilon / levels[-1] ** 2, "start": start, "num_samples": 5}
    found = sds.sample(model, "annealed-langevin", times=levels, **words)
    torch.testing.assert_close(found.samples, x, rtol=1e-9, atol=1e-9)
    assert found.nfe == len(levels) * steps
    ended = sds.sample(model, "annealed-langevin", times=[*levels, 0.0], denoise=False, **words)
    torch.testing.assert_close(ended.samples, x, rtol=1e-9, atol=1e-9)
    denoised = sds.sample(model, "annealed-langevin", times=[*levels, 0.0], **words)
    torch.testing.assert_close(denoised.samples, model.posterior_mean(x, 0.2), rtol=1e-9, atol=1e-9)
    assert denoised.nfe == ended.nfe + 1


@pytest.mark.parametrize("coordinates", ["ve", "flow", "angle"])
def test_annealed_langevin_is_the_same_in_all_coordinates(coordinates):
    model = sds.grid_mixture(sds.VP())
    words = {"steps": 6, "num_samples": 3, "steps_per_level": 2, "spacing": "karras"}
    native = sds.sample(model, "annealed-langevin", coordinates="native", **words).samples
    found = sds.sample(model, "annealed-langevin", coordinates=coordinates, **words).samples
    torch.testing.assert_close(found, native, rtol=1e-9, atol=1e-9)


def test_annealed_langevin_finds_the_distribution_of_the_data():
    """A Gaussian of known moments; what is left is the steps' bias, a few per cent of the variance."""
    count, size = 500, 100  # numbers in all and in one sample: noise is drawn faster for few long samples
    model = sds.GaussianModel([0.7] * size, 0.36, sds.EDM())
    times = [*np.geomspace(5.0, 0.1, 12), 0.0]
    start = 5 * torch.randn(count // size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    words = {"times": times, "start": start, "steps_per_level": 40}
    found = sds.sample(model, "annealed-langevin", num_samples=count // size, **words).samples
    assert float(found.mean()) == pytest.approx(0.7, abs=4 * 0.6 / math.sqrt(count))
    assert float(found.var()) == pytest.approx(0.36, rel=0.2)


@pytest.mark.parametrize(
    "sampler", ["reverse-diffusion", "score-ancestral", "predictor-corrector", "annealed-langevin"]
)
def test_they_start_where_there_is_only_noise(sampler):
    """A flow model begins at alpha = 0, where the score is that of the noise alone."""
    model = sds.MixtureModel([1.0], [[0.7, -0.4]], [0.0], sds.RectifiedFlow(), prediction="flow")
    for steps in (1, 2, 5):
        found = sds.sample(model, sampler, steps=steps, num_samples=3).samples
        torch.testing.assert_close(found, model.means.expand(3, 2), rtol=0, atol=1e-9)


# --- diffusers --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    return sds.load("fashion-mnist")


@pytest.mark.parametrize("steps", mostly_slow([10, 25], keep=[10]))
@pytest.mark.parametrize("corrections", [0, 1])
def test_it_is_diffusers_score_sde_ve_scheduler(network, monkeypatch, corrections, steps):
    """The same chain of predictions and corrections on the model seen in VE coordinates, with the same noise.

    diffusers measures |z| too and averages norms over the batch; with one sample and noise whose norm is sqrt(D) its
    step size is ours. Its pipeline corrects before it predicts, so that its first correction is left out here.
    """
    first, last, size = 80.0, 0.02, 28 * 28
    source = NormalSource(3, [0], (1, 28, 28))
    drawn = [source.draw(PATH, k) for k in range((1 + corrections) * steps)]
    drawn = [z * math.sqrt(size) / z.norm() for z in drawn]
    scheduler = diffusers.ScoreSdeVeScheduler(num_train_timesteps=steps, sigma_min=last, sigma_max=first, snr=0.15)
    scheduler.set_timesteps(steps)
    scheduler.set_sigmas(steps, last, first)
    sigmas = [*reversed(scheduler.discrete_sigmas.double().tolist()), 0.0]
    path = Path(path_process(network.process, "ve"), [])
    path.points = given_points(path.process, None, sigmas)
    start = first * source.draw(0)

    queue = iter(drawn)
    monkeypatch.setattr(scheduling_sde_ve, "randn_tensor", lambda *a, **k: next(queue))

    def score(x, point):
        scale = 1 / math.hypot(1, point.ratio)
        with torch.no_grad():
            return -network.unet(x * scale, torch.tensor(point.t, dtype=torch.float32)).sample / point.ratio

    x = start
    for k, t in enumerate(scheduler.timesteps):
        if k:
            for _ in range(corrections):
                x = scheduler.step_correct(score(x, path.points[k]), x).prev_sample
        out = scheduler.step_pred(score(x, path.points[k]), t, x)
        x = out.prev_sample
    theirs = out.prev_sample_mean

    queue = iter(drawn)
    path.ledger.noise = lambda start, end, rows=None: next(queue)
    spec = sds.samplers()["predictor-corrector"]
    run = spec(start, path, corrector_steps=corrections, snr=0.15, step="measured")
    with torch.inference_mode():
        ours = drive(run, Evaluator(network, 1, "parity"))
    assert (ours - theirs).abs().max() < 1e-3 * 2
