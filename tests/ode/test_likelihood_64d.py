"""Likelihoods on every process against closed forms: a Gaussian in 64 dimensions and a mixture, exact divergence."""

import numpy as np
import pytest
import torch
from exact_models import PROCESSES, density, gaussian, mixture_density, pushed, quick
from lanes import mostly_slow

import sdesamplers as sds

TIGHT = {"rtol": 1e-6, "atol": 1e-6, "divergence": "exact"}


def test_the_quick_model_is_the_gaussian():
    model, x = gaussian(64, PROCESSES["vp"])
    times = np.array([0.01, 0.3, 0.9])
    torch.testing.assert_close(quick(model).predict(x, times), model.score(x, times), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSES)
def test_gaussian_in_64_dimensions_on_every_process(name):
    """`pushed` is the exact flow map; `density` leaves out the prior's mismatch, which only the DDPM table has."""
    model, x = gaussian(64, PROCESSES[name])
    found = sds.log_likelihood(quick(model), x[:1], **TIGHT).nats
    assert np.abs(found - pushed(model, x[:1])[0]).max() / 64 < 1e-4
    if name != "table":
        assert np.abs(found - density(model, x[:1])).max() / 64 < 1e-4


@pytest.mark.parametrize("name", mostly_slow(PROCESSES, keep=["sub-vp", "flow", "table"]))
def test_mixture_on_every_process(name):
    """Through the exact density at both ends, so that the DDPM table's mismatch of the prior does not enter."""
    model = sds.grid_mixture(PROCESSES[name])
    process = model.process
    x = model.sample_data(2, torch.Generator().manual_seed(3))
    exact = mixture_density(model, x)
    found = sds.log_likelihood(model, x, **TIGHT)
    nats = torch.from_numpy(found.nats)
    if name == "table":
        prior = sds.Prior(float(process.sigma(process.t_max)))
        nats = nats - prior.log_prob(found.latents) + model.log_prob(found.latents, process.t_max)
    assert float((nats - exact).abs().max()) / 2 < 1e-4
