"""azula's denoisers in and out, against its own samplers. They are installed by benchmarks/requirements.txt."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sdesamplers as sds

azula = pytest.importorskip("azula")
denoise = pytest.importorskip("azula.denoise")
noise = pytest.importorskip("azula.noise")
azula_sample = pytest.importorskip("azula.sample")

SCHEDULES = {
    "ve": noise.VESchedule(0.01, 50.0),
    "vp": noise.VPSchedule(),
    "cosine": noise.CosineSchedule(),
    "rectified": noise.RectifiedSchedule(),
    "decay": noise.DecaySchedule(),
}
MEAN, VARIANCE = torch.tensor([0.3, -0.8], dtype=torch.float64), 0.25


class Backbone(torch.nn.Module):
    """A network of azula's preconditioning, which receives log(sigma/alpha) and a label."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2).double()

    def forward(self, x, t, label=None):
        shift = 0.0 if label is None else 0.1 * label[:, None]
        return torch.tanh(self.layer(x)) + 0.05 * t.reshape(-1, 1) + shift


def karras(schedule: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return denoise.KarrasDenoiser(Backbone(), SCHEDULES[schedule]).requires_grad_(False)


START = torch.tensor([[1.0, -0.5], [0.2, 2.0], [-1.5, 0.7]], dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_is_a_process_that_passes_the_check(schedule):
    model = sds.from_azula(karras(schedule), (2,))
    sds.check_process(model.process)
    for t in (0.001, 0.3, 0.9, 1.0):
        alpha, sigma = SCHEDULES[schedule](torch.tensor(t, dtype=torch.float64))
        assert (model.process.alpha(t), model.process.sigma(t)) == pytest.approx(
            (float(alpha), float(sigma)), rel=1e-12
        )
        assert float(model.process.time_at_ratio(float(sigma / alpha))) == pytest.approx(t, rel=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_is_azulas(schedule):
    denoiser = karras(schedule)
    theirs = azula_sample.DDIMSampler(denoiser, steps=12, silent=True, dtype=torch.float64)
    start = START * float(SCHEDULES[schedule](torch.tensor(1.0))[1])
    expected = theirs(start)
    times = np.linspace(1.0, 0.0, 13)
    found = sds.sample(sds.from_azula(denoiser, (2,)), "ddim", times=times, start=start).samples
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["quality", "dpmpp-2m", "er-sde"])
def test_other_samplers_reach_the_data(name):
    """Data N(mean, 0.25): the marginals of a schedule are known."""
    covariance = azula.linalg.covariance.IsotropicCovariance(torch.tensor(VARIANCE, dtype=torch.float64))
    denoiser = denoise.GaussianDenoiser(MEAN, covariance, SCHEDULES["rectified"])
    model = sds.from_azula(denoiser, (2,), dtype=torch.float64)
    samples = sds.sample(model, name, num_samples=4000, steps=100).samples
    error = VARIANCE**0.5 / 4000**0.5
    assert (samples.mean(0) - MEAN).abs().max() < 5 * error
    assert (samples.var(0) / VARIANCE - 1).abs().max() < 5 * (2 / 4000) ** 0.5 + 0.02


def test_samples_at_their_own_times():
    """`rk45` gives each sample its steps."""
    model = sds.from_azula(karras("rectified"), (2,))
    whole = sds.sample(model, "rk45", start=START).samples
    for j in range(3):
        alone = sds.sample(model, "rk45", start=START[j : j + 1]).samples
        torch.testing.assert_close(whole[j : j + 1], alone, rtol=1e-9, atol=1e-9)


def test_a_condition_is_a_dictionary_of_keywords():
    model = sds.from_azula(karras("vp"), (2,), conditional=True, null_condition={"label": 0.0})
    condition = {"label": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)}
    found = sds.sample(model, "ddim", times=[1.0, 0.5, 0.0], start=START, condition=condition).samples
    sampler = azula_sample.DDIMSampler(karras("vp"), steps=2, silent=True, dtype=torch.float64)
    torch.testing.assert_close(found, sampler(START, **condition), rtol=1e-9, atol=1e-10)
    guided = sds.sample(model, "ddim", steps=4, num_samples=3, condition=condition, guidance_scale=3.0)
    assert guided.samples.isfinite().all()
    with pytest.raises(sds.UsageError, match="must be a dictionary of keywords"):
        sds.sample(model, "ddim", steps=4, condition=3)


MODELS = {
    "vp": (sds.VP(), "epsilon"),
    "edm": (sds.EDM(), "sample"),
    "flow": (sds.RectifiedFlow(), "flow"),
    "table": (sds.DiscreteVP(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))), "v"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_runs_in_azulas_samplers(name):
    process, prediction = MODELS[name]
    model = sds.FunctionModel(
        lambda x, t: torch.tanh(0.4 * x) + 0.01 * torch.cos(t), process, prediction, (2,), dtype=torch.float64
    )
    denoiser = sds.as_azula(model)
    assert isinstance(denoiser, denoise.Denoiser)
    theirs = azula_sample.DDIMSampler(denoiser, start=0.9, steps=9, silent=True, dtype=torch.float64)
    times = process.t_min + np.linspace(0.9, 0.0, 10) * (process.t_max - process.t_min)
    found = sds.sample(model, "ddim", times=times, start=START).samples
    torch.testing.assert_close(theirs(START), found, rtol=1e-9, atol=1e-9)


def test_a_denoiser_in_and_out_again_is_the_same():
    denoiser = karras("cosine")
    again = sds.as_azula(sds.from_azula(denoiser, (2,)))
    for t in (torch.tensor(0.4, dtype=torch.float64), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)):
        inner = 1e-3 + t * (1 - 1e-3)  # its own t_min
        torch.testing.assert_close(again(START, t).mean, denoiser(START, inner).mean, rtol=1e-9, atol=1e-10)
    assert list(again.parameters())


def test_what_is_no_denoiser_and_no_model_is_refused():
    with pytest.raises(sds.UsageError, match="one of azula's, with a schedule"):
        sds.from_azula(torch.nn.Linear(2, 2), (2,))
    with pytest.raises(sds.UsageError, match="model must be a Model"):
        sds.as_azula(torch.nn.Linear(2, 2))
