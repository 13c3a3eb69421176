"""diffusers' stochastic solvers in the same run, on the same grid and noise; where we differ, which of us converges."""

import importlib
import itertools
import math
import sys
import types

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_sasolver
from scipy.integrate import quad

import sdesamplers as sds
from sdesamplers.path.noise import PATH, NormalSource
from sdesamplers.testing.problems import graded, run

COUNT, SEED = 2, 11
LIMIT = 1e-3 * 2  # of the data range, which is 2 wide
CONFIG = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}


@pytest.fixture(scope="module")
def model():
    return sds.load("fashion-mnist")


NOISE = NormalSource(SEED, range(COUNT), (1, 28, 28))


def theirs(scheduler, model, x, **step):
    """The loop of a diffusers pipeline, on whatever timesteps it has."""
    with torch.no_grad():
        for k, t in enumerate(scheduler.timesteps):
            output = model.unet(scheduler.scale_model_input(x, t), t).sample
            x = scheduler.step(output, t, x, **{name: value(k) for name, value in step.items()}).prev_sample
    return x


def ours(model, name, start, sigmas, **options):
    return sds.sample(model, name, num_samples=COUNT, start=start, seed=SEED, sigmas=sigmas, **options).samples


def grid(scheduler):
    return list(dict.fromkeys(scheduler.sigmas.double().tolist()))


@pytest.mark.parametrize("steps", [10, 25])
@pytest.mark.parametrize(
    ("order", "solver", "name", "options"),
    [
        (1, "midpoint", "sa-solver", {"predictor_order": 1, "corrector_order": 0}),
        (2, "midpoint", "dpmpp-2m-sde", {"solver": "midpoint"}),
        (2, "heun", "dpmpp-2m-sde", {"solver": "heun"}),
    ],
)
def test_sde_dpm_solver_multistep_equals_diffusers(model, order, solver, name, options, steps):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **CONFIG, algorithm_type="sde-dpmsolver++", solver_order=order, solver_type=solver, lower_order_final=False
    )
    scheduler.set_timesteps(steps)
    start = NOISE.draw(0)
    expected = theirs(scheduler, model, start, variance_noise=lambda k: NOISE.draw(PATH, k + 1))
    assert (ours(model, name, start, grid(scheduler), **options) - expected).abs().max() < LIMIT


def sa_scheduler(monkeypatch, steps, tau=1.0, **config):
    draws = (NOISE.draw(PATH, k) for k in itertools.count(1))
    monkeypatch.setattr(scheduling_sasolver, "randn_tensor", lambda *a, **k: next(draws))
    scheduler = diffusers.SASolverScheduler(**CONFIG, **config, tau_func=lambda t: torch.tensor(tau))
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("steps", [10, 25])
@pytest.mark.parametrize("tau", [0.4, 1.0])
@pytest.mark.parametrize(("predictor", "corrector"), [(1, 1), (1, 0)])
def test_sa_solver_of_first_order_equals_diffusers(model, monkeypatch, predictor, corrector, tau, steps):
    scheduler = sa_scheduler(monkeypatch, steps, tau, predictor_order=predictor, corrector_order=max(corrector, 1))
    if not corrector:
        scheduler.stochastic_adams_moulton_update = lambda **words: words["this_sample"]
    start = NOISE.draw(0)
    expected = theirs(scheduler, model, start)
    options = {"predictor_order": predictor, "corrector_order": corrector, "tau": tau}
    assert (ours(model, "sa-solver", start, grid(scheduler), **options) - expected).abs().max() < LIMIT


@pytest.mark.parametrize("steps", [10, 25])
@pytest.mark.parametrize("order", [2, 3])
def test_sa_solver_equals_diffusers_with_its_change_to_order_two_taken_back(model, monkeypatch, order, steps):
    """diffusers adds a term of third order to the weights of order 2, which starting values pass through too.

    It is the line's weight h^2/2 in place of its integral; here order 2 is routed past it, by asking for the weights
    of the line as those of another order.
    """
    scheduler = sa_scheduler(monkeypatch, steps, predictor_order=order, corrector_order=order, lower_order_final=False)
    plain = scheduler.get_coefficients_fn

    class Two(int):
        def __eq__(self, other):
            return False

        __hash__ = int.__hash__

    def coefficients(order, *rest):
        return plain(int(order), *rest)

    scheduler.get_coefficients_fn = coefficients
    for name in ("stochastic_adams_bashforth_update", "stochastic_adams_moulton_update"):
        update = getattr(scheduler, name)
        setattr(scheduler, name, lambda update=update, **words: update(**{**words, "order": Two(words["order"])}))
    start = NOISE.draw(0)
    expected = theirs(scheduler, model, start)
    options = {"predictor_order": order, "corrector_order": order, "lower_order_final": False}
    assert (ours(model, "sa-solver", start, grid(scheduler), **options) - expected).abs().max() < LIMIT


@pytest.mark.parametrize("steps", [10, 25])
def test_dpmpp_sde_equals_diffusers(model, monkeypatch, steps):
    """diffusers needs torchsde for its noise; ours takes its place, correlated as one path makes it."""
    monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
    module = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
    monkeypatch.delitem(sys.modules, "diffusers.schedulers.scheduling_dpmsolver_sde")
    scheduler = module.DPMSolverSDEScheduler(**CONFIG)
    scheduler.set_timesteps(steps)
    sigmas, draws, last = grid(scheduler), itertools.count(1), []

    def noise(start, end):
        fresh = NOISE.draw(PATH, next(draws))
        if not last:  # the first half of a step
            last.append(fresh)
            return fresh
        # sigma_s^2 (1 - e^{-2h}) = carried + fresh, over half steps of lambda of length l = h / 2
        decay = (float(end) / float(start)) ** 0.5  # e^-l
        carried, rest = decay**2 * math.sqrt(1 - decay**2), math.sqrt(1 - decay**2)
        total = math.sqrt(1 - decay**4)
        return (carried / decay * last.pop() + rest * fresh) / total

    scheduler.noise_sampler = noise
    start = NOISE.draw(0)
    first = sigmas[0]
    expected = theirs(scheduler, model, start * first)
    found = ours(model, "dpmpp-sde", start * first / math.hypot(1, first), sigmas)
    assert (found - expected).abs().max() < LIMIT


# --- where diffusers differs ------------------------------------------------------------------------------------------


def silent(start, end, rows=None):
    return torch.zeros(1, 1, dtype=torch.float64)


class Known(sds.Model):
    """x0 = sin(lambda), whatever the state, so that the solution without noise is one integral."""

    prediction, dtype, shape, name = "sample", torch.float64, (1,), "known"

    def __init__(self, process):
        self.process = process

    def predict(self, x, t, condition=None):
        return torch.full_like(x, math.sin(-math.log(self.process.ratio(t))))


FIRST, LAST, START = -2.0, 1.0, 0.8


def exact(rate):
    inside = quad(lambda u: rate * math.exp(rate * (u - LAST)) * math.sin(u), FIRST, LAST, epsrel=1e-13)[0]
    (_, first), (alpha, last) = ((1 / math.hypot(1, r), r / math.hypot(1, r)) for r in np.exp([-FIRST, -LAST]))
    return last / first * math.exp(-(rate - 1) * (LAST - FIRST)) * START + alpha * inside


def their_error(scheduler, steps, rate, **step):
    """With zero noise; the grid's first steps are tiny, so that starting values of low order do not show."""
    scheduler.set_timesteps(steps)
    lams = graded(FIRST, LAST, steps, 3)
    scheduler.sigmas = torch.from_numpy(np.exp(-lams))
    scheduler.timesteps = torch.arange(len(lams) - 1, 0, -1)
    scheduler.num_inference_steps = len(lams) - 1
    x = torch.full((1, 1), START, dtype=torch.float64)
    for k, t in enumerate(scheduler.timesteps):
        x = scheduler.step(torch.full_like(x, math.sin(lams[k])), t, x, **step).prev_sample
    return abs(float(x) - exact(rate))


def our_error(name, steps, rate, **options):
    process = sds.VP()
    times = process.time_at_log_snr(2 * graded(FIRST, LAST, steps, 3))
    start = torch.full((1, 1), START, dtype=torch.float64)
    found = run(Known(process), sds.samplers()[name], start, times=times, options=options, noise=silent)
    return abs(float(found) - exact(rate))


def fitted(errors):
    return -np.polyfit(np.log(COUNTS), np.log(errors), 1)[0]


COUNTS = (256, 512, 1024)


def multistep(algorithm, order):
    return diffusers.DPMSolverMultistepScheduler(
        **CONFIG, algorithm_type=algorithm, solver_order=order, prediction_type="sample", lower_order_final=False
    )


@pytest.mark.parametrize(("algorithm", "rate", "expected"), [("sde-dpmsolver++", 2.0, 1), ("dpmsolver++", 1.0, 2)])
def test_diffusers_third_order_falls_to_first_with_noise_and_second_without(algorithm, rate, expected):
    """Both take half of the second difference's weight, and the SDE form has - 1/2 in it where + 1/2 belongs."""
    noise = {"variance_noise": torch.zeros(1, 1)} if rate == 2 else {}
    errors = [their_error(multistep(algorithm, 3), steps, rate, **noise) for steps in COUNTS]
    second = [their_error(multistep(algorithm, 2), steps, rate, **noise) for steps in COUNTS]
    mine = [our_error("dpmpp-3m-sde", steps, rate, eta=math.sqrt(rate - 1)) for steps in COUNTS]
    assert fitted(errors) == pytest.approx(expected, abs=0.2)
    assert fitted(second) == pytest.approx(2, abs=0.2)
    assert fitted(mine) == pytest.approx(3, abs=0.25)
    assert mine[0] < errors[0] / 50


def test_the_term_that_diffusers_adds_to_sa_solver_of_order_two_leaves_the_order():
    """Its second order and ours approach the same limit."""
    errors = []
    for steps in COUNTS:
        words = {"predictor_order": 2, "corrector_order": 1, "lower_order_final": False, "prediction_type": "sample"}
        scheduler = diffusers.SASolverScheduler(**CONFIG, **words, tau_func=lambda t: torch.tensor(0.0))
        scheduler.stochastic_adams_moulton_update = lambda **words: words["this_sample"]
        errors.append(their_error(scheduler, steps, 1.0))
    mine = [our_error("sa-solver", steps, 1.0, tau=0.0, predictor_order=2, corrector_order=0) for steps in COUNTS]
    assert fitted(errors) == pytest.approx(2, abs=0.2)
    assert fitted(mine) == pytest.approx(2, abs=0.2)
