"""The warning about initial states with too little noise: what is mistaken is found, and what is right is not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from process_cases import TABLE

import sdesamplers as sds

PROCESSES: dict[str, Callable[[], Any]] = {
    "edm": sds.EDM,
    "ve": sds.VE,
    "vp": sds.VP,
    "table": lambda: sds.DiscreteVP(TABLE),
    "flow": sds.RectifiedFlow,
    "trigflow": lambda: sds.TrigFlow(0.5),
}


def model_of(name: str) -> Any:
    return sds.grid_mixture(PROCESSES[name](), prediction="v" if name in ("flow", "trigflow") else "eps")


@pytest.mark.parametrize("name", ["edm", "ve"])
@pytest.mark.parametrize("count", [4, 64])
def test_noise_of_unit_variance_is_found(name: str, count: int) -> None:
    model, start = model_of(name), torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    sigma = float(model.process.prior.std)
    with pytest.warns(
        sds.AccuracyWarning, match=rf"the root mean square of start is .* pass {sigma:.3g} \* torch.randn"
    ):
        sds.sample(model, "euler", steps=2, start=start)
    with pytest.warns(sds.AccuracyWarning, match="the root mean square of latents is"):
        sds.decode(model, start, "euler", steps=2)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("count", [1, 2, 100])
def test_states_of_the_process_raise_no_alarm(name: str, count: int) -> None:
    """Prior noise, noised data at every time and latents of `encode`, 20 seeds each; one alarm in 10^4 is expected."""
    model = model_of(name)
    process = model.process
    with warnings.catch_warnings():
        warnings.simplefilter("error", sds.AccuracyWarning)
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            noise = torch.randn(count, 2, generator=generator)
            sds.sample(model, "euler", sigmas=None, steps=1, start=process.prior.std * noise, spacing="linspace")
            data = 0.1 * torch.randn(count, 2, generator=generator)
            for share in (0.95, 0.5, 0.1):
                t = process.t_min + share * (process.t_max - process.t_min)
                noised = process.perturb(data, t, noise)
                sds.sample(model, "euler", steps=1, start=noised, start_time=t, spacing="linspace")
        x = sds.sample(model, "heun", steps=8, num_samples=count, spacing="linspace").samples
        latents = sds.encode(model, x, "heun", steps=16, spacing="linspace")
        sds.decode(model, latents)
        sds.decode(model, latents.samples, "heun", steps=16, spacing="linspace")


def test_zeros_and_the_latents_of_few_steps_raise_no_alarm() -> None:
    """The latents of flat images have a root mean square of 0.2 to 0.4 here, and decode takes them all the same."""
    edm, network = model_of("edm"), sds.load("fashion-mnist")
    encoding = sds.encode(network, torch.zeros(1, *network.shape), "heun", steps=2)
    assert 0.1 < encoding.samples.square().mean().sqrt() < 0.4
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        sds.sample(edm, "euler", steps=2, start=torch.zeros(4, 2))
        sds.decode(network, encoding)
        sds.decode(network, encoding.samples, "heun", steps=2)
    assert not [each for each in raised if "root mean square" in str(each.message)]


def test_a_call_in_batches_warns_once() -> None:
    start = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    with pytest.warns(sds.AccuracyWarning, match="root mean square of start") as raised:
        sds.sample(model_of("edm"), "euler", steps=2, start=start, batch_size=4)
    assert len(raised) == 1


def test_a_pipeline_that_does_not_scale_its_latents_is_told() -> None:
    scheduler = sds.Scheduler.from_config({"_class_name": "EDMEulerScheduler", "sigma_max": 80.0}, "euler")
    scheduler.set_timesteps(3)
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.warns(sds.AccuracyWarning, match="multiply the first latents by scheduler.init_noise_sigma"):
        scheduler.step(torch.zeros_like(noise), scheduler.timesteps[0], noise)
    scheduler.set_timesteps(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step(torch.zeros_like(noise), scheduler.timesteps[0], noise * scheduler.init_noise_sigma)


def test_a_grid_that_begins_late_names_its_spacing() -> None:
    model = sds.load("fashion-mnist")
    with pytest.warns(sds.AccuracyWarning, match="the spacing 'leading' leaves out the noisiest times; pass spacing="):
        sds.sample(model, "euler", steps=1, spacing="leading")
    with pytest.warns(sds.AccuracyWarning, match="pass start="):
        sds.sample(model, "euler", times=[300, 100])
