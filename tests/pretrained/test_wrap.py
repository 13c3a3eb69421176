"""`wrap`: plain networks of every habit, each an exact model of N(MEAN, STD^2) data, sampled as they are."""

from __future__ import annotations

import pickle
import types

import numpy as np
import pytest
import torch
from own_processes import MEAN, STD, Forwards, mean_and_std, velocity_from_noise_to_data
from process_cases import BETAS
from torch import nn

import sdesamplers as sds
from sdesamplers.processes.table import DiscreteVP

KEPT = torch.from_numpy(np.cumprod(1 - BETAS))


def column(values, x):
    return values.reshape(-1, *(1,) * (x.dim() - 1)).to(x)


def epsilon(x, kept):
    """E[eps | x] at alphas_cumprod `kept`, by linear regression."""
    alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
    return sigma * (x - alpha * MEAN) / ((alpha * STD) ** 2 + sigma**2)


class Ddpm(nn.Module):
    """forward(x, t) with t (N,), as DDPM repositories have it; the table is continued between timesteps."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.log = nn.Buffer(torch.log(KEPT).float()) if hasattr(nn, "Buffer") else torch.log(KEPT).float()
        self.dropout = nn.Dropout(0.5)
        self.seen = []

    def kept(self, t):
        low = t.floor().clamp(0, 998).long()
        share = t - low
        return ((1 - share) * self.log[low] + share * self.log[low + 1]).exp()

    def forward(self, x, t):
        assert t.shape == (len(x),)
        self.seen.append(t)
        return self.gain * self.dropout(torch.ones_like(x)) * epsilon(x, column(self.kept(t.float()), x))


class Embedded(Ddpm):
    """Whole timesteps alone: a table of embeddings."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding.from_pretrained(KEPT.float()[:, None])

    def kept(self, t):
        return self.table(t)[:, 0]

    def forward(self, x, t):
        self.seen.append(t)
        return self.gain * epsilon(x, column(self.kept(t), x))


class Truncating(Embedded):
    """It takes floats, and cuts them."""

    def kept(self, t):
        return super().kept(t.long())


class Column(Ddpm):
    def forward(self, x, t):
        return super().forward(x, torch.cat([x.flatten(1), t], 1)[:, -1])


class Four(Ddpm):
    def forward(self, x, t):
        assert t.dim() == 4
        return super().forward(x, t.flatten())


class One(Ddpm):
    def forward(self, x, t):
        return super().forward(x, torch.full((len(x),), float(t)))


class Swapped(Ddpm):
    def forward(self, t, x):
        return super().forward(x, t)


class Nameless(Ddpm):
    """The order is found by trying."""

    def forward(self, first, second):
        assert first.dim() == 1
        return super().forward(second, first)


class Keyword(Ddpm):
    def forward(self, x, *, timestep):
        return super().forward(x, timestep)


class Attribute(Ddpm):
    def forward(self, sample, timestep):
        return types.SimpleNamespace(sample=super().forward(sample, timestep))


class InTuple(Ddpm):
    def forward(self, x, t):
        return (super().forward(x, t), None)


class InDict(Ddpm):
    def forward(self, x, t):
        return {"sample": super().forward(x, t), "extra": 1}


class WithVariance(Ddpm):
    def forward(self, x, t):
        out = super().forward(x, t)
        return torch.cat([out, torch.full_like(out, 7.0)], 1)


NETWORKS = {
    "(N,)": (Ddpm, "network(x, t) with t of shape (N,), float32"),
    "embedding": (Embedded, "network(x, t) with t of shape (N,), whole numbers"),
    "truncating": (Truncating, "network(x, t) with t of shape (N,), whole numbers"),
    "(N, 1)": (Column, "network(x, t) with t of shape (N, 1), float32"),
    "(N, 1, 1, 1)": (Four, "network(x, t) with t of shape (N, 1, ..., 1), float32"),
    "one number": (One, "network(x, t) with t of shape (), float32"),
    "t first": (Swapped, "network(t, x) with t of shape (N,), float32"),
    "t first, unnamed": (Nameless, "network(t, x) with t of shape (N,), float32"),
    "by keyword": (Keyword, "network(x, timestep=t) with t of shape (N,), float32"),
    ".sample": (Attribute, "network(x, t) with t of shape (N,)"),
    "tuple": (InTuple, "network(x, t) with t of shape (N,)"),
    "dictionary": (InDict, "network(x, t) with t of shape (N,)"),
    "learned variance": (WithVariance, "4 channels, the first 2 are the prediction"),
}
SHAPE = (2, 3, 3)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_taken_as_it_is(name):
    make, found = NETWORKS[name]
    network = make().train()
    flags = [module.training for module in network.modules()]
    state = torch.get_rng_state()
    model = sds.wrap(network, SHAPE, betas=BETAS)
    assert found in model.found
    assert "from 999 (noise) to 0 (data)" in model.found
    assert model.found in repr(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in network.modules()] == flags
    assert network.gain.grad is None
    network.eval()
    samples = sds.sample(model, "ddim", steps=100, spacing="trailing", num_samples=200).samples
    # 3600 numbers: four standard errors are 0.02 and 0.014; DDIM's own error at 100 steps comes on top.
    mean, std = mean_and_std(samples)
    assert (mean, std) == (pytest.approx(MEAN, abs=0.03), pytest.approx(STD, abs=0.025))


def test_the_same_samples_as_by_hand():
    network = Ddpm().eval()
    kept = torch.cumprod(1 - torch.from_numpy(BETAS), 0)
    by_hand = sds.FunctionModel(lambda x, t: network(x, t.flatten()), DiscreteVP(kept), "epsilon", SHAPE)
    words = {"steps": 12, "num_samples": 3, "seed": 4}
    for table in ({"betas": torch.from_numpy(BETAS)}, {"alphas_cumprod": kept}):
        model = sds.wrap(network, SHAPE, **table)
        torch.testing.assert_close(
            sds.sample(model, "heun", **words).samples, sds.sample(by_hand, "heun", **words).samples, rtol=0, atol=1e-6
        )


def test_whole_timesteps_are_told_as_whole_numbers():
    network = Embedded().eval()
    model = sds.wrap(network, SHAPE, betas=BETAS, timesteps="int")
    network.seen.clear()
    sds.sample(model, "ddim", steps=7, spacing="karras")
    assert {t.dtype for t in network.seen} == {torch.int64}
    assert 0 <= min(int(t.min()) for t in network.seen) <= max(int(t.max()) for t in network.seen) == 999


def test_times_that_differ_between_samples():
    """rk45 chooses steps for each sample; also for a network of one time for all."""
    one, each = (sds.wrap(kind().eval(), SHAPE, betas=BETAS) for kind in (One, Ddpm))
    words = {"num_samples": 3, "seed": 1, "rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(
        sds.sample(one, "rk45", **words).samples, sds.sample(each, "rk45", **words).samples, rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("process", [sds.reversed(Forwards()), sds.reversed(sds.RectifiedFlow())])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_flow_networks_from_noise_to_data(process, scale):
    class Flow(nn.Module):
        def forward(self, t, x):  # torchcfm's order
            return velocity_from_noise_to_data(x, column(t / scale, x))

    model = sds.wrap(Flow(), (5,), process=process, clock=scale)
    assert model.prediction == "flow"
    mean, std = mean_and_std(sds.sample(model, "heun", steps=30, num_samples=1000, coordinates="native").samples)
    assert (mean, std) == (pytest.approx(MEAN, abs=0.06), pytest.approx(STD, abs=0.02))  # 5 standard errors


def edm_denoiser(x, sigma):
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def test_edm_denoisers_and_their_raw_networks():
    def denoiser(x, sigma):
        return edm_denoiser(x, column(sigma, x))

    def raw(x, noise_labels, d=0.7):
        """F of Karras et al. 2022, eq. 7: (D(x) - c_skip x) / c_out at x = input / c_in, sigma = e^(4 c_noise)."""
        sigma = column((4 * noise_labels).exp(), x)
        root = (sigma**2 + d**2).sqrt()
        state = x * root
        return (edm_denoiser(state, sigma) - d**2 / root**2 * state) / (sigma * d / root)

    words = {"steps": 18, "num_samples": 500, "seed": 2}
    plain = sds.sample(sds.wrap(denoiser, (4,), process=sds.EDM(), prediction="sample"), "heun", **words).samples
    wrapped = sds.wrap(raw, (4,), sigma_data=0.7)
    assert "sigma_data = 0.7" in wrapped.found
    torch.testing.assert_close(sds.sample(wrapped, "heun", **words).samples, plain, rtol=0, atol=2e-4)
    mean, std = mean_and_std(plain)
    assert (mean, std) == (pytest.approx(MEAN, abs=0.035), pytest.approx(STD, abs=0.03))
    told = sds.wrap(lambda x, t: denoiser(x, (4 * t).exp()), (4,), process=sds.EDM(), prediction="sample",
                    clock=lambda sigma: np.log(sigma) / 4)  # fmt: skip
    torch.testing.assert_close(sds.sample(told, "heun", **words).samples, plain, rtol=0, atol=2e-4)


class Labelled(Ddpm):
    """Label 0 has mean MEAN, label 1 -MEAN, and label 2 stands for none."""

    def forward(self, x, t, y):
        assert y.shape == (len(x),)
        sign = torch.tensor([1.0, -1.0, 0.0])[y].view(-1, *(1,) * (x.dim() - 1))
        shift = column(self.kept(t.float()).sqrt(), x) * MEAN * (1 - sign)
        return super().forward(x + shift, t)


class ByKeyword(Labelled):
    def forward(self, x, t, mask=None, *, y=None):
        return super().forward(x, t, y)


@pytest.mark.parametrize(("kind", "conditional"), [(Labelled, True), (Labelled, "y"), (ByKeyword, "y")])
def test_class_labels(kind, conditional):
    model = sds.wrap(kind().eval(), SHAPE, betas=BETAS, conditional=conditional, null_condition=2)
    for label, mean in ((0, MEAN), (1, -MEAN), (None, 0.0)):
        samples = sds.sample(model, "ddim", steps=50, num_samples=100, condition=label).samples
        assert float(samples.mean()) == pytest.approx(mean, abs=0.045)  # 5 standard errors, and DDIM's error
    guided = sds.sample(model, "ddim", steps=50, num_samples=100, condition=0, guidance_scale=2.0).samples
    assert float(guided.mean()) == pytest.approx(2 * MEAN, abs=0.06)


def test_dtype_device_and_shape_come_from_the_network():
    from diffusers import UNet2DModel

    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    model = sds.wrap(unet, betas=BETAS)
    assert model.shape == (1, 8, 8)
    assert sds.sample(model, "ddim", steps=2).samples.shape == (1, 1, 8, 8)
    half = sds.wrap(Ddpm().to(torch.float64), (2,), betas=BETAS)
    assert half.dtype == torch.float64
    assert sds.wrap(unet, betas=BETAS, name="mine", data_range=(-1, 1)).data_range == (-1, 1)


def test_wrapped_models_can_be_pickled():
    model = sds.wrap(Ddpm().eval(), SHAPE, betas=BETAS)
    again = pickle.loads(pickle.dumps(model))
    words = {"steps": 3, "num_samples": 2}
    assert torch.equal(sds.sample(again, "ddim", **words).samples, sds.sample(model, "ddim", **words).samples)


def test_records_tell_clocks_apart():
    network = Ddpm().eval()
    one, other = (sds.wrap(network, SHAPE, process=sds.reversed(sds.RectifiedFlow()), clock=c) for c in (998, 997))
    assert one.facts() != other.facts()


def broken(x, t):
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def beside(x, t):
    return x - x.mean(0)


def third(x, t, y):
    return x


ERRORS = {
    "no table": (Ddpm(), {}, "one of betas=, alphas_cumprod= and process=; given: none"),
    "two tables": (Ddpm(), {"betas": BETAS, "process": sds.VP()}, "given: betas and process"),
    "alphas_cumprod as betas": (Ddpm(), {"betas": KEPT}, "are they alphas_cumprod?"),
    "betas as alphas_cumprod": (Ddpm(), {"alphas_cumprod": BETAS}, r"numpy.cumprod\(1 - betas\)"),
    "alphas": (Ddpm(), {"alphas_cumprod": 1 - BETAS}, r"np.cumprod\(alphas\)"),
    "words as betas": (Ddpm(), {"betas": ["a"]}, "betas must be a list of numbers"),
    "no prediction": (Ddpm(), {"process": sds.VP()}, "prediction= is required on VP; it is what the network predicts"),
    "a wrong prediction": (Ddpm(), {"betas": BETAS, "prediction": "epsilom"}, "did you mean 'epsilon'"),
    "timesteps": (Ddpm(), {"betas": BETAS, "timesteps": "integer"}, "'int' or 'float', not 'integer'"),
    "clock": (Ddpm(), {"betas": BETAS, "clock": -1}, "clock must be a positive number"),
    "sigma_data elsewhere": (Ddpm(), {"process": sds.VP(), "sigma_data": 0.5}, "on EDM"),
    "hardly any timesteps": (Embedded(), {"process": sds.VP(), "prediction": "epsilon"}, "pass clock=999"),
    "too few embeddings": (Embedded(), {"betas": np.linspace(1e-4, 0.01, 1500)}, "index out of range.*clock= scales"),
    "it raises": (broken, {"betas": BETAS}, "mat1 and mat2.*function of your own"),
    "it needs more": (third, {"betas": BETAS}, "missing 1 required.*conditional='y'"),
    "batch": (beside, {"betas": BETAS}, "depends on the other samples"),
    "answers": (lambda x, t: None, {"betas": BETAS}, "returned NoneType"),
    "another shape": (lambda x, t: x[:, :1], {"betas": BETAS}, r"shape \(\d, 1, 3, 3\) for a state"),
    "whole answers": (lambda x, t: x.long(), {"betas": BETAS}, "torch.int64"),
    "complex answers": (lambda x, t: x * 1j, {"betas": BETAS}, "torch.complex64"),
    "no network": ("unet.pt", {"betas": BETAS}, "wrap takes a network"),
    "a process run backwards": (Ddpm(), {"process": Forwards(), "prediction": "flow"}, r"sds.reversed\(process\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_fit_is_said(name):
    network, words, message = ERRORS[name]
    with pytest.raises(sds.UsageError, match=message):
        sds.wrap(network, SHAPE, **words)


def test_a_shape_is_needed():
    with pytest.raises(sds.UsageError, match=r"shape= is required: the shape of one sample"):
        sds.wrap(Ddpm(), betas=BETAS)
    with pytest.raises(sds.UsageError, match="positive integers"):
        sds.wrap(Ddpm(), "3x32", betas=BETAS)


def test_a_table_of_betas_says_cumprod():
    with pytest.raises(sds.UsageError, match=r"increase, as betas do: pass numpy.cumprod\(1 - betas\)"):
        sds.DiscreteVP(BETAS)
    assert sds.DiscreteVP(KEPT.clone().requires_grad_()).t_max == 999
