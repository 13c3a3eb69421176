"""`from_denoiser`: closed forms on Gaussian data, k-diffusion's preconditioning, and every mistake in one line."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from other_libraries import k_diffusion

import sdesamplers as sds

VARIANCE = 0.25


def column(sigma: torch.Tensor) -> torch.Tensor:
    return sigma[:, None]


def ve_denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """E[x0 | x] for data N(0, 0.25) and x = x0 + sigma noise."""
    return VARIANCE * x / (VARIANCE + column(sigma) ** 2)


def flow_denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The same for x = (1 - sigma) x0 + sigma noise."""
    s = column(sigma)
    return VARIANCE * (1 - s) * x / (VARIANCE * (1 - s) ** 2 + s**2)


START = torch.tensor([[0.7, -1.2], [2.0, 0.1]], dtype=torch.float64)


def test_a_ve_denoiser_is_integrated_to_the_closed_form():
    """The ODE keeps x / sqrt(variance + sigma^2). The last step, at sigma = 0.002, is off by 0.002^2 / (2 variance)."""
    model = sds.from_denoiser(ve_denoiser, (2,), sigma_max=10.0, dtype=torch.float64)
    found = sds.sample(model, "rk45", start=10 * START, rtol=1e-9, atol=1e-9).samples
    torch.testing.assert_close(found, 10 * START * (VARIANCE / (VARIANCE + 100)) ** 0.5, rtol=1e-5, atol=0)


def test_a_flow_denoiser_is_integrated_to_the_closed_form():
    model = sds.from_denoiser(flow_denoiser, (2,), kind="flow", dtype=torch.float64)
    found = sds.sample(model, "rk45", start=START, rtol=1e-9, atol=1e-9).samples
    torch.testing.assert_close(found, START * VARIANCE**0.5, rtol=1e-5, atol=0)


def test_sigma_is_passed_as_one_number_per_sample_and_in_float32():
    seen = []

    def denoiser(x, sigma):
        seen.append((tuple(sigma.shape), sigma.dtype))
        return torch.zeros_like(x)

    model = sds.from_denoiser(denoiser, (1, 2, 2), sigma_max=5.0, dtype=torch.float16)
    sds.sample(model, "euler", steps=2, num_samples=3)
    assert set(seen) == {((3,), torch.float32)}


class KarrasNetwork(torch.nn.Module):
    """A raw network that receives c_in x and sigma."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2).double()

    def forward(self, x, sigma, shift=0.0):
        return torch.tanh(self.layer(x)) + column(sigma) * 1e-3 + shift


def test_sigma_data_is_the_preconditioning_of_karras_et_al():
    torch.manual_seed(0)
    network, data = KarrasNetwork(), 0.5
    model = sds.from_denoiser(network, (2,), sigma_data=data, extra_args={"shift": 0.25})
    assert model.dtype == torch.float64
    for sigma in (1e-3, 0.5, 80.0):
        total = data**2 + sigma**2
        skip, out, into = data**2 / total, sigma * data / total**0.5, total**-0.5
        inner = network(into * START, torch.full((2,), sigma, dtype=torch.float64), 0.25)
        torch.testing.assert_close(model.predict(START, sigma), skip * START + out * inner, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_preconditioning_is_in_float32_around_a_network_in_half_precision(dtype):
    """The network receives and returns half precision, and x0 = c_skip x + c_out F is not rounded to it."""
    seen, shifts = [], torch.tensor([[0.1], [0.3]])

    def network(x, sigma, shift):
        seen.append((x.dtype, sigma.dtype, shift.dtype))
        return torch.tanh(x + shift)

    model = sds.from_denoiser(network, (2,), sigma_data=0.5, dtype=dtype, conditional=True)
    condition = model.condition_for(shifts, 2)
    for sigma in (0.05, 0.5, 5.0):
        total = 0.5**2 + sigma**2
        x = START.float() * total**0.5
        inner = torch.tanh((x.double() / total**0.5).to(dtype) + shifts.to(dtype)).double()
        expected = 0.25 / total * x.double() + sigma * 0.5 / total**0.5 * inner
        found = model.predict(x, sigma, condition)
        assert found.dtype is torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)
    samples = sds.sample(model, "heun", steps=4, num_samples=2, condition=shifts).samples
    assert set(seen) == {(dtype, torch.float32, dtype)}
    assert not torch.equal(samples, samples.to(dtype).float())


class Network(torch.nn.Module):
    def forward(self, x, t):
        return torch.tanh(0.5 * x) + 1e-3 * column(t).double()


@pytest.mark.parametrize(
    ("wrapper", "prediction"), [("DiscreteEpsDDPMDenoiser", "epsilon"), ("DiscreteVDDPMDenoiser", "v")]
)
def test_k_diffusions_wrappers_of_tables_are_the_networks_that_they_wrap(wrapper, prediction):
    """The same network on its table here, at sigmas of whole timesteps; k-diffusion's state is x / alpha."""
    table = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    wrapped = getattr(k_diffusion("external"), wrapper)(Network(), torch.from_numpy(table), quantize=False)
    model = sds.from_denoiser(wrapped, (2,), dtype=torch.float64)
    own = sds.wrap(Network(), (2,), alphas_cumprod=table, prediction=prediction, dtype=torch.float64)
    sigmas = [float(own.process.ratio(float(t))) for t in (999, 800, 500, 200, 50, 0)]
    assert (model.process.t_min, model.process.t_max) == pytest.approx((sigmas[-1], sigmas[0]), rel=1e-12)
    compare(model, own, sigmas)


def test_k_diffusions_wrapper_of_v_networks_is_trigflow():
    wrapped = k_diffusion("external").VDenoiser(Network())
    own = sds.wrap(
        Network(), (2,), process=sds.TrigFlow(), prediction="v", clock=2 / np.pi, dtype=torch.float64
    )  # its time is 2 / pi times the angle
    compare(sds.from_denoiser(wrapped, (2,), dtype=torch.float64), own, [20.0, 5.0, 1.0, 0.2, 0.05])


def compare(model: sds.Model, own: sds.Model, sigmas: list[float]) -> None:
    """Compare a denoiser with a model whose states have unit variance."""
    first, last = (1 / np.hypot(1, sigma) for sigma in (sigmas[0], sigmas[-1]))
    found = sds.sample(model, "dpmpp-2m", sigmas=sigmas, start=sigmas[0] * START).samples
    expected = sds.sample(own, "dpmpp-2m", sigmas=sigmas, start=first * sigmas[0] * START).samples / last
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_condition_of_keywords_is_divided_between_batches_and_guides():
    def denoiser(x, sigma, *, class_cond):
        assert len(class_cond) == len(x)
        return torch.ones_like(x) * class_cond[:, None]

    model = sds.from_denoiser(denoiser, (2,), conditional=True, null_condition={"class_cond": 0})
    labels = {"class_cond": torch.tensor([1, 2, 3])}
    plain = sds.sample(model, "euler", steps=3, num_samples=3, condition=labels, batch_size=2).samples
    torch.testing.assert_close(plain, torch.tensor([[1.0, 1], [2, 2], [3, 3]]), rtol=1e-4, atol=1e-4)
    guided = sds.sample(model, "euler", steps=3, num_samples=3, condition=labels, guidance_scale=2.0).samples
    torch.testing.assert_close(guided, 2 * plain, rtol=1e-4, atol=1e-4)


def test_a_third_argument_is_a_condition_too():
    model = sds.from_denoiser(lambda x, sigma, y: x * 0 + y[:, None], (2,), conditional=True)
    found = sds.sample(model, "euler", steps=2, num_samples=2, condition=[1.0, -2.0]).samples
    torch.testing.assert_close(found, torch.tensor([[1.0, 1.0], [-2.0, -2.0]]), rtol=1e-4, atol=1e-4)


class Sampling:
    sigma_min, sigma_max = torch.tensor(0.03), torch.tensor(14.6)


class CONST(Sampling):
    """ComfyUI's class of flow models has this name."""


class Held:
    """A denoiser that holds another one as ComfyUI's and k-diffusion's wrappers do."""

    def __init__(self, inner=None, model_sampling=None, **attributes):
        self.inner_model = inner
        if model_sampling is not None:
            self.model_sampling = model_sampling
        vars(self).update(attributes)

    def __call__(self, x, sigma):
        return x * 0


def test_kind_and_range_are_those_of_the_wrapped_model():
    outer = sds.from_denoiser(Held(Held(model_sampling=Sampling())), (2,))
    assert isinstance(outer.process, sds.EDM)
    assert (outer.process.t_min, outer.process.t_max) == pytest.approx((0.03, 14.6))
    own = sds.from_denoiser(Held(Held(sigma_min=0.1, sigma_max=2.0)), (2,), sigma_max=3.0)
    assert (own.process.t_min, own.process.t_max) == (0.1, 3.0)
    assert isinstance(sds.from_denoiser(Held(Held(model_sampling=CONST())), (2,)).process, sds.RectifiedFlow)
    assert isinstance(sds.from_denoiser(Held(Held(model_sampling=CONST())), (2,), kind="ve").process, sds.EDM)


def test_such_a_model_can_be_pickled():
    model = pickle.loads(pickle.dumps(sds.from_denoiser(ve_denoiser, (2,))))
    torch.testing.assert_close(model.predict(START, 0.5), START / 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "vp"}, "kind must be 've' or 'flow', not 'vp'"),
        ({"kind": "flow", "sigma_data": 0.5}, "sigma_data does not apply to kind='flow'"),
        ({"kind": "flow", "sigma_max": 1.0}, "sigma_max does not apply to kind='flow'"),
        ({"sigma_data": 0.0}, "sigma_data must be positive, not 0.0"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "EDM needs 0 < sigma_min < sigma_max"),
        ({"extra_args": [1]}, "extra_args must be a dictionary of keyword arguments"),
        ({"sigma_mix": 2.0}, "sigma_min"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    with pytest.raises(sds.UsageError) as raised:
        sds.from_denoiser(ve_denoiser, (2,), **arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_neither_a_class_nor_a_model_is_a_denoiser():
    with pytest.raises(sds.UsageError, match="denoiser must be a module or a function"):
        sds.from_denoiser(KarrasNetwork, (2,))
    with pytest.raises(sds.UsageError, match="is a model already"):
        sds.from_denoiser(sds.from_denoiser(ve_denoiser, (2,)), (2,))
