"""Where diffusers' stochastic solvers differ from ours: which of us converges, and at what order."""

import math

import diffusers
import numpy as np
import pytest
import torch
from scheduler_configurations import DDPM
from scipy.integrate import quad

import sdesamplers as sds
from sdesamplers.testing.problems import graded, run


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
        **DDPM, algorithm_type=algorithm, solver_order=order, prediction_type="sample", lower_order_final=False
    )


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_term_that_diffusers_adds_to_sa_solver_of_order_two_leaves_the_order():
    """Its second order and ours approach the same limit."""
    errors = []
    for steps in COUNTS:
        words = {"predictor_order": 2, "corrector_order": 1, "lower_order_final": False, "prediction_type": "sample"}
        scheduler = diffusers.SASolverScheduler(**DDPM, **words, tau_func=lambda t: torch.tensor(0.0))
        scheduler.stochastic_adams_moulton_update = lambda **words: words["this_sample"]
        errors.append(their_error(scheduler, steps, 1.0))
    mine = [our_error("sa-solver", steps, 1.0, tau=0.0, predictor_order=2, corrector_order=0) for steps in COUNTS]
    assert fitted(errors) == pytest.approx(2, abs=0.2)
    assert fitted(mine) == pytest.approx(2, abs=0.2)
