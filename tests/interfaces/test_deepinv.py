"""deepinv's SDEs as models and models as its SDEs: closed forms on Gaussian data, and deepinv's own runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lanes import mostly_slow

import sdesamplers as sds

theirs = pytest.importorskip("deepinv.sampling", reason="deepinv, the extra of this name, is not installed")
from deepinv_cases import KINDS, MEAN, START, VARIANCE, Gaussian, close, grid, sde, start  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


# Their SDEs as models.


@pytest.mark.parametrize("kind", KINDS)
def test_an_sde_is_a_process_that_passes_the_check(kind):
    given = sde(kind)
    process = sds.from_deepinv(given, (2,)).process
    sds.check_process(process)
    for t in (0.01, 0.3, 0.9):
        scale, ratio = float(given.scale_t(t)), float(given.sigma_t(t))
        assert (process.alpha(t), process.sigma(t)) == pytest.approx((scale, scale * ratio), rel=1e-12)
        assert float(process.time_at_ratio(ratio)) == pytest.approx(t, rel=1e-9)
        forward = float(given.forward_diffusion(t))
        assert float(process.diffusion(t)) == pytest.approx(forward, rel=1e-9)
        close(process.drift(START, t), given.forward_drift(START, t), 1e-9)


@pytest.mark.parametrize("minus_one_one", mostly_slow([False, True], keep=[True]))
@pytest.mark.parametrize("kind", mostly_slow(KINDS, keep=["ve"]))
def test_gaussian_data_are_integrated_to_the_closed_form(kind, minus_one_one):
    """The ODE is linear: x0 - m = (x - alpha m) (v / (alpha^2 v + sigma^2))^(1/2), for the whole way to sigma = 0.

    A `minus_one_one` SDE has its states in [-1, 1] and its denoiser in [0, 1], where the data are N(m', v').
    """
    mean, variance = ((MEAN + 1) / 2, VARIANCE / 4) if minus_one_one else (MEAN, VARIANCE)
    model = sds.from_deepinv(sde(kind, Gaussian(mean, variance), minus_one_one=minus_one_one), (2,))
    assert model.data_range == ((-1.0, 1.0) if minus_one_one else None)
    x, process = start(model.process), model.process
    found = sds.sample(model, "rk45", start=x, rtol=1e-5, atol=1e-5, dtype=torch.float64).samples
    alpha, sigma = float(process.alpha(process.t_max)), float(process.sigma(process.t_max))
    expected = MEAN + (x - alpha * MEAN) * (VARIANCE / (alpha**2 * VARIANCE + sigma**2)) ** 0.5
    close(found, expected, 2e-3)  # the last step, from the smallest noise level, is of first order


@pytest.mark.parametrize("kind", mostly_slow(KINDS, keep=["vp", "flow"]))
def test_ddim_on_their_sde_is_their_ddim(kind):
    given = sde(kind, minus_one_one=True)
    model, times = sds.from_deepinv(given, (2,)), grid(given.T)
    x = start(model.process)
    given.solver = theirs.DDIMSolver(timesteps=times)
    found = sds.sample(model, "ddim", times=times.tolist(), start=x, dtype=torch.float64).samples
    close((found + 1) / 2, given.sample(x), 1e-6)  # deepinv returns pictures in [0, 1]; denoisers compute in float32


def test_a_condition_is_a_dictionary_of_the_denoisers_keywords():
    given = sde("vp", Gaussian())
    model = sds.from_deepinv(given, (2,), conditional=True, null_condition={"shift": 0.0})
    shift, times = torch.tensor([0.1, -0.2, 0.3]), grid(1.0)
    given.solver = theirs.DDIMSolver(timesteps=times)
    arguments = {"times": times.tolist(), "start": START, "dtype": torch.float64}
    found = sds.sample(model, "ddim", condition={"shift": shift}, **arguments).samples
    close(found, given.sample(START, shift=shift), 1e-6)
    assert (
        sds.sample(model, "ddim", condition={"shift": shift}, guidance_scale=2.0, **arguments).samples.isfinite().all()
    )
    with pytest.raises(sds.UsageError, match="must be a dictionary of keywords"):
        sds.sample(model, "ddim", steps=3, condition=3)


def test_their_denoisers_are_denoisers_of_from_denoiser():
    """On data in [0, 1], without an SDE of theirs."""
    model = sds.from_denoiser(Gaussian(), (2,), sigma_min=0.01, sigma_max=10.0, dtype=torch.float64)
    found = sds.sample(model, "rk45", start=10 * START, rtol=1e-9, atol=1e-9).samples
    close(found, MEAN + (10 * START - MEAN) * (VARIANCE / (VARIANCE + 100)) ** 0.5, 1e-3)


# Our models as their SDEs.

MODELS = {
    "vp": (sds.VP(), "epsilon"),
    "edm": (sds.EDM(), "sample"),
    "flow": (sds.RectifiedFlow(), "flow"),
    "trig": (sds.TrigFlow(), "v"),
    "table": (sds.DiscreteVP(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))), "v"),
}


def model(name: str, **options: Any) -> sds.Model:
    process, prediction = MODELS[name]
    return sds.FunctionModel(
        lambda x, t: torch.tanh(0.4 * x) + 0.01 * torch.cos(t), process, prediction, (2,), **options
    )


@pytest.mark.parametrize("name", MODELS)
def test_their_solvers_run_on_a_model(name):
    ours = model(name)
    given = sds.as_deepinv(ours, alpha=0.0)
    assert isinstance(given, theirs.EDMDiffusionSDE)
    last = ours.process.t_min + 0.01 * (ours.process.t_max - ours.process.t_min)
    times = grid(0.9 * given.T, 9, last)
    for solver, method, options in (
        (theirs.DDIMSolver, "ddim", {}),
        (theirs.EulerSolver, "euler", {"coordinates": "native"}),
    ):
        given.solver = solver(timesteps=times)
        arguments = {"times": times.tolist(), "start": START, "dtype": torch.float64}
        close(given.sample(START), sds.sample(ours, method, **arguments, **options).samples, 2e-4)  # float32 networks


@pytest.mark.parametrize("name", MODELS)
def test_its_drift_and_diffusion_are_those_of_the_process(name):
    ours = model(name)
    process, given = ours.process, sds.as_deepinv(ours, alpha=0.25)
    t = 0.3 * process.t_max
    assert float(given.forward_diffusion(t)) == pytest.approx(float(process.diffusion(t)), rel=1e-9)
    close(given.forward_drift(START, t), process.drift(START, t), 1e-9)
    assert float(given.diffusion(t)) == pytest.approx(0.5 * float(process.diffusion(t)), rel=1e-9)
    assert np.isfinite(float(given.sigma_t(given.T)))


@pytest.mark.parametrize("ours", [False, True])
def test_measurements_of_a_models_pictures(ours):
    """Diffusion posterior sampling (Chung et al. 2023) takes gradients through the denoiser of the model.

    The two solvers make the same run, and its samples are nearer to the measurements than those of the model alone.
    """
    import deepinv

    exact = sds.FunctionModel(
        lambda x, t: torch.tanh(0.6 * x) + 0.1 * torch.cos(t), sds.VP(), "epsilon", (1, 4, 4), data_range=(-1, 1)
    )
    physics = deepinv.physics.Inpainting((1, 4, 4), mask=0.5)
    y = physics(torch.full((2, 1, 4, 4), 0.8))
    times, given = grid(1.0, 30, 0.01), sds.as_deepinv(exact, alpha=0.0)
    fidelity, denoiser = theirs.DPSDataFidelity(denoiser=given.denoiser.model), given.denoiser.model
    given.solver = sds.as_deepinv_solver("ddim", times, rng=torch.Generator()) if ours else None
    solver = given.solver or theirs.DDIMSolver(timesteps=times, rng=torch.Generator())
    posterior = theirs.PosteriorDiffusion(fidelity, denoiser, given, solver)
    found = posterior(y, physics, seed=0).detach()
    alone = theirs.PosteriorDiffusion(None, denoiser, given, solver)(y, physics, seed=0).detach()
    error, before = (float((physics.A(x) - y).abs().mean()) for x in (found, alone))
    assert error < 0.7 * before
    if ours:
        posterior.solver = theirs.DDIMSolver(timesteps=times, rng=torch.Generator())
        close(found, posterior(y, physics, seed=0).detach(), 1e-5)


def test_their_reverse_sde_on_an_exact_model_has_the_right_moments():
    """The closed form of Gaussian data as a model, by their Euler-Maruyama."""
    exact = sds.FunctionModel(
        lambda x, t: Gaussian()(x, t.reshape(-1)), sds.EDM(0.02, 10.0), "sample", (1, 1, 1), dtype=torch.float64
    )
    times = torch.from_numpy(np.geomspace(10.0, 0.02, 150))
    solver = theirs.EulerSolver(timesteps=times, rng=torch.Generator())
    found = sds.as_deepinv(exact, solver=solver).sample((4000, 1, 1, 1), seed=0)
    error = VARIANCE**0.5 / 4000**0.5
    assert abs(float(found.mean()) - MEAN) < 5 * error
    assert abs(float(found.var()) / VARIANCE - 1) < 5 * (2 / 4000) ** 0.5 + 0.03


def test_data_in_minus_one_one_are_in_their_range():
    """Denoisers and samples of deepinv are in [0, 1]; at sigma there, the noise in [-1, 1] is twice as large."""
    exact = sds.FunctionModel(
        lambda x, t: Gaussian()(x, t.reshape(-1)), sds.EDM(), "sample", (2,), dtype=torch.float64, data_range=(-1, 1)
    )
    given = sds.as_deepinv(exact, alpha=0.0)
    denoiser = given.denoiser.model  # inside of their wrapper
    x, sigma = (START + 1) / 2, 0.3
    close(denoiser(x, sigma), (Gaussian()(START, 2 * sigma) + 1) / 2, 1e-6)
    close(denoiser(x, torch.tensor([0.1, 0.2, 0.3])), (Gaussian()(START, torch.tensor([0.2, 0.4, 0.6])) + 1) / 2, 1e-6)
    times = grid(80.0, 8, 0.002)
    given.solver = theirs.DDIMSolver(timesteps=times)
    arguments = {"times": times.tolist(), "start": 80 * START, "dtype": torch.float64}
    samples = sds.sample(exact, "ddim", **arguments).samples  # x0 is in the range, so that clipping changes nothing
    close(given.sample(80 * START), (samples + 1) / 2, 1e-5)
    again = sds.from_deepinv(given, (2,))
    assert again.data_range == (-1.0, 1.0)
    close(again.predict(START.float(), 0.7), Gaussian()(START, 0.7), 1e-5)


def test_guidance_and_conditions_reach_the_model():
    process = sds.VP()
    conditional = sds.FunctionModel(
        lambda x, t, c: torch.tanh(x + c[:, None]), process, "sample", (2,), conditional=True, null_condition=0.0
    )
    given = sds.as_deepinv(conditional, alpha=0.0, solver=theirs.DDIMSolver(timesteps=grid(1.0, 6)))
    arguments = {"times": grid(1.0, 6).tolist(), "start": START, "condition": 0.5, "dtype": torch.float64}
    close(given.sample(START, condition=0.5), sds.sample(conditional, "ddim", **arguments).samples, 1e-5)
    guided = sds.as_deepinv(sds.Guided(conditional, 2.0), alpha=0.0, solver=given.solver)
    expected = sds.sample(conditional, "ddim", guidance_scale=2.0, **arguments).samples
    close(guided.sample(START, condition=0.5), expected, 1e-5)


def test_what_is_no_model_and_noise_beyond_the_model_are_refused():
    with pytest.raises(sds.UsageError, match="model must be a Model"):
        sds.as_deepinv(torch.nn.Linear(2, 2))
    with pytest.raises(sds.UsageError, match="alpha must be 0, for the ODE, or positive"):
        sds.as_deepinv(model("vp"), alpha=-1.0)
    with pytest.raises(sds.UsageError, match="was trained up to 80"):
        sds.as_deepinv(model("edm")).denoiser(START, torch.tensor(90.0))
