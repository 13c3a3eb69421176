"""`wrap`: plain networks of every habit, each an exact model of N(MEAN, STD^2) data, sampled as they are."""

from __future__ import annotations

import inspect
import math
import pickle
import re
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from own_processes import MEAN, STD, Forwards, mean_and_std, velocity_from_noise_to_data
from process_cases import BETAS
from torch import nn

import sdesamplers as sds
from sdesamplers.pretrained.call_styles import NOISY_NAMES, TIME_NAMES
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


class RawHalf(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.75))

    def forward(self, x, t, shift=None):
        self.seen = (x.dtype, t.dtype, None if shift is None else shift.dtype)
        return torch.tanh(self.factor * x + (0 if shift is None else shift)) + 0 * t.to(x.dtype).view(-1, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_preconditioning_is_in_float32_around_a_network_in_half_precision(dtype):
    """Karras et al. 2022, eq. 7: the network's input and output are rounded, and c_skip x + c_out F is not."""
    network = RawHalf().to(dtype)
    model = sds.wrap(network, (4,), sigma_data=0.5, conditional=True, null_condition=torch.zeros(1, 4))
    assert (model.dtype, model.network_dtype) == (torch.float32, dtype)
    noise, shift = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([[0.1] * 4, [0.3] * 4])
    condition = model.condition_for(shift, 2)
    for sigma in (0.05, 0.5, np.array([5.0, 0.01])):
        each = torch.as_tensor(sigma).expand(2)[:, None]
        total = 0.25 + each**2
        x = (noise * total**0.5).float()
        inner = torch.tanh(0.75 * (x.double() / total**0.5).to(dtype) + shift.to(dtype)).double()
        found = model.predict(x, sigma, condition)
        assert found.dtype is torch.float32
        expected = 0.25 / total * x + each * 0.5 / total**0.5 * inner
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
        assert network.seen == (dtype, torch.float32, dtype)
    samples = sds.sample(model, "heun", steps=4, num_samples=2, condition=shift).samples
    assert not torch.equal(samples, samples.to(dtype).float())
    assert pickle.loads(pickle.dumps(model)).network_dtype is dtype
    assert sds.Guided(model, 2.0).network_dtype is dtype


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
    "no table": (Ddpm(), {}, "one of betas=, alphas_cumprod= and process=, or sigma_data= alone; given: none"),
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


class Labels(nn.Module):
    """A convolution of three channels and ten labels."""

    def __init__(self):
        super().__init__()
        self.first, self.labels = nn.Conv2d(3, 3, 3, padding=1), nn.Embedding(10, 3)

    def forward(self, x, t, labels=None):
        shift = 0 if labels is None else self.labels(labels)[:, :, None, None]
        return self.first(x) + shift + t.view(-1, 1, 1, 1)


class Required(Labels):
    def forward(self, x, t, labels):
        return super().forward(x, t, labels)


class LabelsFirst(Labels):
    def forward(self, labels, t, x_t):
        return super().forward(x_t, t, labels)


class LabelsSecond(Labels):
    def forward(self, t, labels, x_t):
        return super().forward(x_t, t, labels)


class Unclear(Labels):
    def forward(self, labels, t, x):
        return super().forward(x, t, labels)


class PositionalOnly(Labels):
    def forward(self, labels, t, x, /):
        return super().forward(x, t, labels)


class Two(Labels):
    def forward(self, x, t, labels, mask):
        return super().forward(x * mask[:, None, None, None], t, labels)


class KeywordOnly(Labels):
    def forward(self, x, t, *, labels):
        return super().forward(x, t, labels)


PICTURE = (3, 8, 8)
UNCALLABLE = {
    "channels": (Labels, (1, 8, 8), {}, r"shape of one sample, without the batch: perhaps \(3, 8, 8\)"),
    "one number": (Labels, 3, {}, r"shape of one sample, without the batch: 3 numbers, such as \(3, 32, 32\)"),
    "with the batch": (Labels, (4, *PICTURE), {}, r"without the batch: perhaps \(3, 8, 8\)"),
    "no condition": (Required, PICTURE, {}, r"pass conditional=True, or by keyword conditional='labels'"),
    "no condition by keyword": (KeywordOnly, PICTURE, {}, r"is a condition, pass conditional='labels'"),
    "keyword alone": (KeywordOnly, PICTURE, {"conditional": True}, "by keyword: conditional='labels'"),
    "no parameter for it": (Ddpm, SHAPE, {"conditional": True}, "takes no condition: omit conditional="),
    "labels first": (LabelsFirst, PICTURE, {}, "If 'x_t' is the state and 'labels' a condition, pass conditional='lab"),
    "unclear": (Unclear, PICTURE, {"conditional": True}, "If 'x' is the state and 'labels' a condition, pass cond"),
    "positional": (PositionalOnly, PICTURE, {"conditional": True}, r"lambda x, t, labels: network\(labels, t, x\)"),
    "two conditions": (Two, PICTURE, {"conditional": True}, r"one dictionary of them, \{'labels': ..., 'mask': ...\}"),
    "the state": (Required, PICTURE, {"conditional": "x"}, "Is 'x' the state"),
    "fractions": (Required, PICTURE, {"conditional": True, "example": 0.5}, "Labels must be whole numbers"),
    "a label too many": (Required, PICTURE, {"conditional": True, "example": 10}, "index out of range.*beyond the net"),
    "no time": (nn.Sequential, SHAPE, {}, r"takes no time; if it needs none, pass lambda x, t: network\(x\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNCALLABLE)
def test_a_cause_is_given_once_and_with_its_advice(name):
    make, shape, words, message = UNCALLABLE[name]
    with pytest.raises(sds.UsageError, match=message) as raised:
        sds.wrap(make(), shape, betas=BETAS, **words)
    text = str(raised.value)
    assert "forward(" in text
    assert re.search(r"all \d+ ways tried, such as network\(", text)
    assert len(text) < 560
    assert text.count("Error:") == 1


def test_errors_that_differ_in_numbers_alone_are_one_cause():
    def network(a, b):
        raise ValueError(f"not {tuple(a.shape)}" if a.dim() > 1 else f"too few dimensions: {a.dim()}")

    with pytest.raises(sds.UsageError, match=r"of 16 ways tried, .*not \(.*\(12, such as .*: \d \(4, such") as raised:
        sds.wrap(network, SHAPE, betas=BETAS)
    assert str(raised.value).count("ValueError") == 2
    assert str(raised.value).startswith("network(a, b) could not be called")


@pytest.mark.parametrize("conditional", [True, "labels"])
@pytest.mark.parametrize("kind", [LabelsFirst, LabelsSecond])
def test_a_state_after_the_condition_is_found(kind, conditional):
    network = kind().eval()
    usual = sds.wrap(lambda x, t, y: Labels.forward(network, x, t, y), PICTURE, betas=BETAS, conditional=True)
    words = {"steps": 3, "num_samples": 2, "condition": [1, 2]}
    model = sds.wrap(network, PICTURE, betas=BETAS, conditional=conditional)
    assert "x_t=x" in model.found
    assert torch.equal(sds.sample(model, "ddim", **words).samples, sds.sample(usual, "ddim", **words).samples)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(sds.sample(again, "ddim", **words).samples, sds.sample(usual, "ddim", **words).samples)


def test_the_known_names_are_documented():
    page = (Path(__file__).parents[2] / "docs" / "own-network.md").read_text(encoding="utf-8")
    for start, names in (("of the time", TIME_NAMES), ("of the state, if it comes after a condition", NOISY_NAMES)):
        listed = re.search(rf"^- {start}: ([^;.]*)[;.]", page, re.MULTILINE)
        assert set(re.findall(r"`(\w+)`", listed[1])) == names


def test_the_state_is_known_if_the_condition_is_named():
    model = sds.wrap(Unclear(), PICTURE, betas=BETAS, conditional="labels")
    assert "called as network(x=x, t=t, labels=condition) with t" in model.found


def test_a_noisy_condition_is_not_the_state():
    def network(x, t, noisy_image):
        return x + 0 * noisy_image

    model = sds.wrap(network, SHAPE, betas=BETAS, conditional=True, example=torch.zeros(1, *SHAPE))
    assert "called as network(x, t, condition) with t" in model.found


def test_two_conditions_are_a_dictionary():
    example = {"labels": 1, "mask": 1.0}
    model = sds.wrap(Two(), PICTURE, betas=BETAS, conditional=True, example=example)
    assert sds.sample(model, "ddim", steps=2, condition=example).samples.shape == (1, *PICTURE)


@pytest.mark.parametrize(
    ("conditional", "call"),
    [(False, "(x, t)"), (True, "(x, t, condition)"), ("labels", "(x, t, labels=condition)")],
)
def test_what_is_found_contains_the_condition(conditional, call):
    model = sds.wrap(Labels(), PICTURE, betas=BETAS, conditional=conditional)
    assert model.found.startswith(f"called as network{call} with t of shape (N,), float32, from 999")


CONDITION_NAMES = {
    "label": r"'label' is not a parameter of forward\(x, t, labels=None\); did you mean 'labels'\?",
    "klass": r"'klass' is not a parameter of forward\(x, t, labels=None\)",
    "t": r"'t' is the time in forward\(x, t, labels=None\)",
}


@pytest.mark.parametrize("name", CONDITION_NAMES)
def test_the_name_of_the_condition_is_checked(name):
    with pytest.raises(sds.UsageError, match=CONDITION_NAMES[name]):
        sds.wrap(Labels(), PICTURE, betas=BETAS, conditional=name)
    for network, given, near in (
        (LabelsFirst(), "label", "labels"),
        (third, "Y", "y"),
        (lambda y, t, x_t: x_t, "Y", "y"),
    ):
        with pytest.raises(sds.UsageError, match=f"{given!r} is not a parameter of .*did you mean {near!r}"):
            sds.wrap(network, PICTURE, betas=BETAS, conditional=given)
    with pytest.raises(sds.UsageError, match="it takes no condition: omit conditional="):
        sds.wrap(Ddpm(), SHAPE, betas=BETAS, conditional="y")


CLOCKS = {
    "torch": (lambda s: torch.log(s), r"clock= failed at the float 80\.0: TypeError.*float or a NumPy array"),
    "floats alone": (lambda s: math.log(s), r"clock= failed at the NumPy array .*np\.log\(sigma\)"),
    "None": (lambda s: None, "clock= failed at the float"),
    "two arguments": (lambda s, t: s, "missing 1 required positional argument: 't'"),
    "three numbers": (lambda s: [1.0, 2.0, 3.0], "returned 3 numbers for the float"),
    "not a number": (lambda s: math.nan * s, "returned NaN at the float"),
}


@pytest.mark.parametrize("name", CLOCKS)
def test_a_clock_that_fails_is_named(name):
    clock, message = CLOCKS[name]
    with pytest.raises(sds.UsageError, match=message):
        sds.wrap(Labels(), PICTURE, process=sds.EDM(), prediction="sample", clock=clock)


def test_a_clock_may_be_infinite_at_an_end():
    """log t of a time that starts at 0 used to be an OverflowError, from the search for rounded times."""
    process = sds.reversed(sds.RectifiedFlow())
    with np.errstate(divide="ignore"):
        model = sds.wrap(lambda x, t: x * t.exp().view(-1, 1, 1, 1), SHAPE, process=process, clock=np.log)
        assert "from -inf (noise)" in model.found


MISTYPED = {
    "predicton": "wrap has no argument 'predicton'; did you mean prediction=",
    "sigma_dta": "wrap has no argument 'sigma_dta'; did you mean sigma_data=",
    "beta": "wrap has no argument 'beta'; did you mean betas=",
    "datarange": "wrap has no argument 'datarange'; did you mean data_range=",
    "function": r"wrap has no argument 'function' \(its arguments: network, shape, betas",
}


@pytest.mark.parametrize("name", MISTYPED)
def test_a_mistyped_argument_gets_the_nearest(name):
    with pytest.raises(sds.UsageError, match=MISTYPED[name]):
        sds.wrap(Ddpm(), SHAPE, **{name: 1})


def test_every_further_argument_of_a_function_model_is_taken():
    named = inspect.signature(sds.FunctionModel.__init__).parameters
    values = {"data_range": (-1, 1), "name": "mine", "clip": False}
    assert {*values} == {*named} - {*inspect.signature(sds.wrap).parameters} - {"self", "function"}
    assert sds.wrap(Ddpm(), SHAPE, betas=BETAS, **values).name == "mine"


VALUES = {
    "prediction": ({"betas": BETAS, "prediction": "velocty"}, r"did you mean 'velocity'\? \(known: epsilon"),
    "class": ({"process": sds.RectifiedFlow}, r"not the class RectifiedFlow: pass RectifiedFlow\(\)$"),
    "class with arguments": ({"process": sds.ShiftedFlow}, r"pass ShiftedFlow\(shift\)"),
    "a word for it": ({"process": "flow"}, r"not 'flow'; did you mean RectifiedFlow\(\)\?"),
    "name": ({"process": "rectified-flow"}, r"not 'rectified-flow'; did you mean RectifiedFlow\(\)\?"),
    "unknown name": ({"process": "zzz"}, r"not 'zzz'$"),
    "scheduler": ({"process": types.SimpleNamespace(alphas_cumprod=KEPT)}, "pass alphas_cumprod=scheduler.alphas_cum"),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_wrong_value_gets_the_right_one(name):
    words, message = VALUES[name]
    with pytest.raises(sds.UsageError, match=message):
        sds.wrap(Ddpm(), SHAPE, **words)


def test_classes_of_processes_are_refused_everywhere():
    with pytest.raises(sds.UsageError, match=r"reversed takes .*: pass RectifiedFlow\(\)"):
        sds.reversed(sds.RectifiedFlow)
    with pytest.raises(sds.UsageError, match=r"the class VP: pass VP\(\)"):
        sds.FunctionModel(Ddpm(), sds.VP, "epsilon", SHAPE)


def test_networks_that_are_no_networks():
    with pytest.raises(sds.UsageError, match=r"not the class Ddpm: pass Ddpm\(\.\.\.\)"):
        sds.wrap(Ddpm, SHAPE, betas=BETAS)
    with pytest.raises(sds.UsageError, match="this is a model already"):
        sds.wrap(sds.wrap(Ddpm(), SHAPE, betas=BETAS), SHAPE, betas=BETAS)


def test_a_shape_is_needed():
    with pytest.raises(sds.UsageError, match=r"shape= is required: the shape of one sample"):
        sds.wrap(Ddpm(), betas=BETAS)
    with pytest.raises(sds.UsageError, match="positive integers"):
        sds.wrap(Ddpm(), "3x32", betas=BETAS)


def test_a_table_of_betas_says_cumprod():
    with pytest.raises(sds.UsageError, match=r"increase, as betas do: pass numpy.cumprod\(1 - betas\)"):
        sds.DiscreteVP(BETAS)
    assert sds.DiscreteVP(KEPT.clone().requires_grad_()).t_max == 999


class Denoiser(torch.nn.Module):
    """D(x, sigma) of data N(0, 0.25), as preconditioned networks are passed round."""

    def forward(self, x, sigma):
        return 0.25 * x / (0.25 + sigma.view(-1, 1) ** 2)


class Raw(torch.nn.Module):
    """A network F with the constant of its training among its attributes; it refuses times of no training."""

    sigma_data = 0.5

    def forward(self, x, c_noise):
        if bool((c_noise - 0.002).abs().min() < 1e-6):
            raise ValueError("no such time")
        return 0.1 * x


class Preconditioned(Denoiser):
    sigma_data = 0.5


class OnlyPositive(Denoiser):
    """As `Denoiser`, of log(sigma): asked at c_noise = log(sigma)/4 < 0 it returns NaN."""

    def forward(self, x, sigma):
        return super().forward(x, sigma.log().exp())


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: sds.wrap(Denoiser(), (4,), sigma_data=0.5), "returns its input at the smallest sigma, as a denoiser"),
        (lambda: sds.wrap(Preconditioned(), (4,), sigma_data=0.5), "returns its input at the smallest sigma"),
        (lambda: sds.from_denoiser(Preconditioned(), (4,), sigma_data=0.5), "has a sigma_data of its own"),
    ],
)
def test_a_network_that_is_preconditioned_already_is_noticed(call, match):
    with pytest.warns(sds.ModelWarning, match=match):
        call()


def test_a_raw_network_with_a_sigma_data_of_its_own_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sds.wrap(Raw(), (4,), sigma_data=0.5)


class LogTime(torch.nn.Module):
    """An embedding of log(t), which is -inf at timestep 0."""

    def forward(self, x, t):
        return 0.1 * x * t.view(-1, 1).log().cos()


class NotFinite(torch.nn.Module):
    def forward(self, x, t):
        return x * math.nan


def test_a_network_that_is_not_finite_at_an_end_of_its_times_gives_a_warning():
    with pytest.warns(sds.ModelWarning, match=r"not finite at its time -1.55, an end of its times from -1.55 to 1.1"):
        sds.wrap(OnlyPositive(), (4,), sigma_data=0.5)
    with pytest.warns(sds.ModelWarning, match=r"LogTime: .* not finite at its time 0, an end of its times from 0 to 9"):
        model = sds.wrap(
            LogTime(), (4,), process=sds.DiscreteVP(np.cumprod(1 - np.linspace(1e-4, 0.2, 100))), prediction="epsilon"
        )
    assert sds.sample(model, "ddim", steps=5, spacing="trailing", num_samples=2).samples.isfinite().all()
    with pytest.raises(sds.UsageError, match=r"its output is not finite at its times from 0.001 to 1"):
        sds.wrap(NotFinite(), (4,), process=sds.VP(), prediction="epsilon")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sds.wrap(OnlyPositive(), (4,), process=sds.EDM(), prediction="sample")
