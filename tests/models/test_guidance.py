"""Guidance: closed forms on Gaussian classes, parity with guidance_scale and with diffusers, and what it costs."""

import itertools
import math
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from lanes import mostly_slow
from process_cases import TABLE
from tiny_models import save_pipeline, tiny_unet

import sdesamplers as sds
from sdesamplers import UsageError
from sdesamplers.models.guidance import GuidedCondition, join_conditions

PROCESSES = {
    "vp": (sds.VP(), "epsilon"),
    "edm": (sds.EDM(), "sample"),
    "table": (sds.DiscreteVP(TABLE), "epsilon"),
    "zero-snr": (sds.DiscreteVP(np.append(TABLE[:-1], 0.0)), "v"),
    "flow": (sds.RectifiedFlow(), "flow"),
    "score": (sds.VE(), "score"),
}
MEANS, VARIANCE = torch.tensor([[0.1, -0.3], [0.6, 0.2], [-0.4, 0.4]], dtype=torch.float64), 0.3**2

# Strong guidance, few steps and untrained networks are meant to go far.
pytestmark = pytest.mark.filterwarnings("ignore:.*lie far outside the data range:UserWarning")


class Classes(sds.Model):
    """Gaussian classes of one variance; class 0 stands for none. It keeps a record of what it was asked."""

    data_range = (-1.0, 1.0)
    revision = "abc"

    def __init__(self, process, prediction="epsilon", dtype=torch.float64):
        self.process, self.prediction, self.shape, self.dtype = process, prediction, (2,), dtype
        self.name, self.asked = "classes", []
        self.models = [sds.GaussianModel(m, VARIANCE, process, prediction=prediction) for m in MEANS]

    def predict(self, x, t, condition=None):
        self.asked.append(condition.tolist())
        answers = torch.stack([model.predict(x, t) for model in self.models])
        return answers[condition, torch.arange(len(x))]

    def condition_for(self, condition, count):
        if condition is None:
            raise UsageError("classes needs a label")
        return torch.from_numpy(np.broadcast_to(condition, (count,)).copy())

    def unconditional(self, count):
        return torch.zeros(count, dtype=torch.long)


def classes(case="vp", **words):
    return Classes(*PROCESSES[case], **words)


def extrapolated(case, scale, label=1, away=0):
    """The guided model in closed form: a Gaussian of the same variance, since its score is linear in the mean."""
    process, prediction = PROCESSES[case]
    mean = (1 - scale) * MEANS[away] + scale * MEANS[label]
    return sds.GaussianModel(mean, VARIANCE, process, prediction=prediction)


def close(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def states(count=3, seed=0, dtype=torch.float64):
    return torch.randn(count, 2, dtype=dtype, generator=torch.Generator().manual_seed(seed))


WORDS = {"steps": 8, "num_samples": 4, "seed": 3}
GUIDED = {**WORDS, "condition": [1, 2, 1, 2]}


# --- the guided model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "name"),
    mostly_slow(
        itertools.product(PROCESSES, ("heun", "dpmpp-2m-sde", "rk45")),
        keep=lambda case, name: name != "rk45" or case in ("vp", "flow"),
    ),
)
def test_guidance_of_gaussian_classes_in_closed_form(case, name):
    """rk45 has times and rows of its own for each sample."""
    words = {"num_samples": 4, "seed": 3} if name == "rk45" else WORDS
    found = sds.sample(sds.Guided(classes(case), 2.5), name, condition=1, **words)
    expected = sds.sample(extrapolated(case, 2.5), name, **words)
    close(found.samples, expected.samples, 1e-7)
    assert found.nfe_per_sample.tolist() == expected.nfe_per_sample.tolist()


def test_a_negative_condition_takes_the_place_of_none():
    found = sds.sample(sds.Guided(classes(), 2.5, negative=2), "heun", condition=1, **WORDS).samples
    close(found, sds.sample(extrapolated("vp", 2.5, away=2), "heun", **WORDS).samples)
    each = sds.Guided(classes(), 2.5, negative=[2, 0, 2, 0])
    mixed = sds.sample(each, "heun", condition=1, batch_size=3, **WORDS).samples
    close(mixed[::2], found[::2])
    close(mixed[1::2], sds.sample(extrapolated("vp", 2.5), "heun", **WORDS).samples[1::2])


FIT = {"unguided", "marginals"}  # the others need a density
SAMPLERS = [name for name, spec in sds.samplers().items() if {*spec.needs} <= FIT and name != "dpm-solver-v3"]


QUICK = ("ab", "abm", "annealed-langevin", "bosh3", "churn", "ddim", "ddpm", "deis", "dpm2-ancestral", "dpmpp-2m")
QUICK += ("dpmpp-2m-sde", "dpmpp-2s", "er-sde", "etdrk2", "euler", "euler-cfgpp", "euler-maruyama", "exp-ab", "heun")
QUICK += ("lms", "odeint", "paradigms", "pndm", "repaint", "restart", "reversible-heun", "rk45", "sra1", "unipc")
"""Some of each kind."""


@pytest.mark.parametrize("name", mostly_slow(SAMPLERS, keep=QUICK))
def test_every_sampler_runs_it_as_with_guidance_scale(name):
    model, words = classes(), {**GUIDED, "steps": 3}
    expected = sds.sample(model, name, guidance_scale=0.7, **words)
    calls = len(model.asked)
    found = sds.sample(sds.Guided(model, 0.7), name, **words)
    close(found.samples, expected.samples)
    assert found.nfe_per_sample.tolist() == expected.nfe_per_sample.tolist()
    assert len(model.asked) - calls == calls / 2  # one call for both halves


@pytest.mark.parametrize("name", ["euler-cfgpp", "dpmpp-2m-cfgpp"])
@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0])
def test_cfgpp_has_the_unguided_prediction_without_asking_again(name, scale):
    model = classes("edm")
    expected = sds.sample(model, name, guidance_scale=scale, **GUIDED)
    calls = len(model.asked)
    found = sds.sample(sds.Guided(model, scale), name, **GUIDED)
    close(found.samples, expected.samples)
    assert len(model.asked) - calls == (calls if scale == 1 else calls / 2)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A class-conditional pipeline of 5 labels, the last of which means none."""
    return save_pipeline(tmp_path_factory.mktemp("labelled"), DDPMScheduler(), tiny_unet(num_class_embeds=5))


def words_of(name):
    return {"seed": 1, **({"rtol": 1e-2, "atol": 1e-2} if name == "rk45" else {"steps": 4})}


@pytest.mark.parametrize(
    "name",
    mostly_slow(["dpmpp-2m", "euler-ancestral-cfgpp", "rk45"], keep=["dpmpp-2m", "euler-ancestral-cfgpp"]),
)
def test_a_network_guided_is_the_network_with_guidance_scale(labelled, name):
    model, words = sds.load(labelled, null_condition=4), {**words_of(name), "num_samples": 3, "condition": [0, 3, 1]}
    expected = sds.sample(model, name, guidance_scale=3.0, **words)
    for batched in (None, True, False):
        found = sds.sample(sds.Guided(model, 3.0, batched=batched), name, **words)
        close(found.samples, expected.samples, 1e-4)
        assert found.nfe == expected.nfe
    assert not torch.allclose(expected.samples, sds.sample(model, name, **words).samples, atol=1e-2)


OPTIONS = {"rescale": 0.7, "threshold": 0.9, "interval": (0.1, 5.0)}


@pytest.mark.parametrize("name", mostly_slow(["dpmpp-2m-sde", "rk45", "paradigms"], keep=["dpmpp-2m-sde", "paradigms"]))
def test_a_sample_is_the_same_alone_and_in_any_batch(labelled, name):
    guided, words = sds.Guided(sds.load(labelled, null_condition=4), 3.0, **OPTIONS), words_of(name)
    whole = sds.sample(guided, name, num_samples=3, condition=[0, 3, 1], **words).samples
    close(sds.sample(guided, name, num_samples=3, condition=[0, 3, 1], batch_size=2, **words).samples, whole, 1e-4)
    close(sds.sample(guided, name, num_samples=1, condition=1, first_index=2, **words).samples, whole[2:], 1e-4)


def test_scale_1_asks_once_and_only_for_the_condition():
    model = classes()
    plain = sds.Guided(model, 1.0, rescale=0.5, interval=(1.0, 2.0))
    assert type(plain.predict(states(), 0.4, torch.tensor([1, 2, 0]))) is torch.Tensor
    assert model.asked == [[1, 2, 0]]
    result = sds.sample(plain, "heun", condition=1, **WORDS)
    close(result.samples, sds.sample(extrapolated("vp", 1.0), "heun", **WORDS).samples)
    assert result.nfe == 15
    assert len(model.asked) == 1 + 15


def test_log_probs_are_replayed_and_gradients_flow():
    model = classes()
    guided = sds.Guided(model, 2.0, threshold=0.99, interval=(0.0, math.inf))
    result = sds.sample(guided, "euler-maruyama", log_probs=True, **GUIDED)
    close(sds.replay_log_probs(guided, result), result.log_probs)
    other = sds.replay_log_probs(sds.Guided(model, 2.5, threshold=0.99), result)
    assert not torch.allclose(other, result.log_probs)
    again = sds.sample(guided, "euler-maruyama", condition=result.condition, **WORDS)
    close(again.samples, result.samples)
    assert again.condition.tolist() == [1, 2, 1, 2]
    x = states().requires_grad_()
    guided.predict(x, 0.5, guided.condition_for(1, 3)).value.square().sum().backward()
    assert x.grad.abs().min() > 0


def test_it_is_the_wrapped_model_in_all_else():
    model = classes("edm")
    guided = sds.Guided(model)
    for word in ("process", "prediction", "shape", "dtype", "device", "data_range", "name", "revision", "models"):
        assert getattr(guided, word) is getattr(model, word), word
    assert pickle.loads(pickle.dumps(guided)).scale == 7.5
    model.decode = lambda samples, *, factor=1: factor * samples + 5
    assert guided.decode(torch.ones(1), factor=2).item() == 7
    assert guided.decoded_range == (-1.0, 1.0)
    with pytest.raises(AttributeError, match="colour"):
        guided.colour  # noqa: B018


# --- the ways to combine ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phi", [0.3, 1.0])
@pytest.mark.parametrize("case", ["table", "zero-snr"])
def test_rescaling_is_diffusers(case, phi):
    model, x, labels = classes(case), states(), torch.tensor([1, 2, 1])
    conditional, unconditional = model.predict(x, 400.0, labels), model.predict(x, 400.0, 0 * labels)
    expected = rescale_noise_cfg(unconditional + 4.0 * (conditional - unconditional), conditional, phi)
    found = sds.Guided(model, 4.0, rescale=phi).predict(x, 400.0, labels)
    close(found.value, expected, 1e-12)
    close(found.unguided, unconditional, 0)
    if phi == 1:
        close(found.value.std(1), conditional.std(1), 1e-12)


def test_rescaling_leaves_a_constant_prediction_alone():
    """A sample whose guided prediction has no spread has nothing to be brought back."""
    constant = sds.Guided(classes(), 2.0, rescale=1.0, combine=lambda c, u, s: torch.ones_like(c))
    close(constant.predict(states(), 0.5, torch.tensor([1, 1, 2])).value, torch.ones(3, 2, dtype=torch.float64))


@pytest.mark.parametrize("percentile", [0.7, 0.995, 1.0])
@pytest.mark.parametrize("shape", [(5, 3, 4, 4), (3, 1, 2, 1), (2, 1, 1, 1)])
def test_dynamic_thresholding_is_diffusers(percentile, shape):
    x0 = 1.5 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    x0[0] *= 0.1  # one sample with nothing to clip
    peer = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=percentile, sample_max_value=1e9)
    model = sds.FunctionModel(lambda x, t: x0, sds.VP(), "sample", shape[1:], data_range=(-1, 1))
    guided = sds.Guided(model, 1.0, threshold=percentile)
    close(guided.predict(torch.zeros(shape), 0.5), peer._threshold_sample(x0), 1e-6)


@pytest.mark.parametrize("kind", sds.PREDICTIONS)
@pytest.mark.parametrize("t", [0.3, np.array([0.1, 0.5, 0.9])])
def test_every_prediction_type_is_thresholded_at_its_x0(kind, t):
    """In a data range of (0, 4), whose middle is 2 and whose half width is 2."""
    process, labels, found = sds.VP(), torch.tensor([1, 2, 1]), []
    for prediction in (kind, "sample"):
        model = Classes(process, prediction)
        model.data_range = (0.0, 4.0)
        value = sds.Guided(model, 9.0, threshold=0.8).predict(states(), t, labels).value
        found.append(sds.convert(value, prediction, "sample", states(), process, t))
    close(found[0], found[1])
    assert float(found[0].min()) >= -1e-9
    assert float(found[0].max()) <= 4 + 1e-9
    free = sds.Guided(Classes(process, "sample"), 9.0).predict(states(), t, labels).value
    assert float(free.min()) < -0.5


@pytest.mark.parametrize(
    ("case", "kind", "t", "clipped"),
    [
        ("zero-snr", "v", 999.0, True),  # v = -x0 where alpha = 0
        ("zero-snr", "epsilon", 999.0, False),  # says nothing of x0 there
        ("flow", "flow", 1.0, True),
        ("flow", "flow", 0.0, False),  # x0 is the state
        ("flow", "score", 0.0, False),
        ("edm", "sample", 0.0, True),  # x0 is predicted as such
    ],
)
def test_thresholding_at_the_ends_of_a_path(case, kind, t, clipped):
    model, labels, x = Classes(PROCESSES[case][0], kind), torch.tensor([1, 2, 1]), 3 * states()
    middle = 300.0 if case == "zero-snr" else 0.5
    for time in (t, np.array([t, middle, t])):
        free = sds.Guided(model, 9.0).predict(x, time, labels).value
        found = sds.Guided(model, 9.0, threshold=0.9).predict(x, time, labels).value
        changed = (found != free).any(1)
        assert bool(torch.isfinite(found).all())
        assert changed[[0, 2]].tolist() == [clipped] * 2
        assert np.ndim(time) == 0 or bool(changed[1])


def test_guidance_in_an_interval_of_sigma():
    """With alpha = 1, Euler's steps by hand: guided where 0.5 < sigma <= 2 alone, and half-sized calls elsewhere."""
    model, sigmas = classes("edm"), [3.0, 2.0, 1.0, 0.5, 0.2]
    guided = sds.Guided(model, 3.0, interval=(0.5, 2.0))
    found = sds.sample(guided, "euler", sigmas=sigmas, condition=1, start=states(2))
    assert [len(labels) for labels in model.asked] == [2, 4, 4, 2]
    assert found.nfe == 4
    x = states(2)
    for now, then in itertools.pairwise(sigmas):
        x0 = extrapolated("edm", 3.0 if now in (2.0, 1.0) else 1.0).predict(x, now)
        x = x0 + then / now * (x - x0)
    close(found.samples, x)


@pytest.mark.parametrize("batched", [True, False])
def test_samples_inside_and_outside_the_interval_at_once(batched):
    model, labels, times = classes(), torch.tensor([1, 2, 1]), np.array([0.1, 0.5, 0.9])
    ratios = model.process.ratio(times)
    guided = sds.Guided(model, 3.0, interval=(ratios[0], ratios[1]), batched=batched, rescale=0.5, threshold=0.9)
    found = guided.predict(states(), times, labels)
    assert model.asked == ([[0, 1, 2, 1]] if batched else [[1, 2, 1], [0]])  # the second alone is inside
    for k in range(3):
        alone = guided.predict(states()[k : k + 1], float(times[k]), labels[k : k + 1])
        close(found.value[k], alone.value[0], 1e-12)
        close(found.unguided[k], alone.unguided[0], 1e-12)
    close(found.unguided[[0, 2]], model.predict(states(), times, labels)[[0, 2]], 1e-12)


@pytest.mark.parametrize("name", ["euler-cfgpp", "heun"])
def test_an_interval_that_is_never_met_is_no_guidance(name):
    guided = sds.Guided(classes(), 3.0, interval=(1e8, math.inf))
    plain = sds.sample(extrapolated("vp", 1.0), name, **WORDS).samples
    close(sds.sample(guided, name, condition=1, **WORDS).samples, plain)


def projected(conditional, unconditional, scale):
    """Adaptive projected guidance (Sadat et al. 2024) without its momentum: the part across the prediction alone."""
    difference = conditional - unconditional
    dims = tuple(range(1, difference.dim()))
    along = (difference * conditional).sum(dims, keepdim=True) / conditional.square().sum(dims, keepdim=True)
    return conditional + (scale - 1) * (difference - along * conditional)


def test_a_users_combination():
    model, labels = classes("edm"), torch.tensor([1, 2, 1])
    guided = sds.Guided(model, 5.0, combine=projected)
    found, conditional = guided.predict(states(), 0.7, labels).value, model.predict(states(), 0.7, labels)
    close((found * conditional).sum(1), conditional.square().sum(1), 1e-12)
    usual = sds.Guided(model, 5.0).predict(states(), 0.7, labels).value
    across = torch.stack([-conditional[:, 1], conditional[:, 0]], 1)
    close((found * across).sum(1), (usual * across).sum(1), 1e-12)


def test_a_users_combination_is_asked_at_scale_1_too():
    guided = sds.Guided(classes(), 1.0, combine=lambda conditional, unconditional, scale: unconditional)
    expected = sds.sample(extrapolated("vp", 0.0), "heun", **WORDS).samples
    close(sds.sample(guided, "heun", condition=1, **WORDS).samples, expected)


@pytest.mark.parametrize("wrong", [lambda c, u, s: c[:1], lambda c, u, s: None])
def test_a_users_combination_that_returns_something_else(wrong):
    with pytest.raises(UsageError, match=r"combine must return a tensor of shape \(3, 2\)"):
        sds.Guided(classes(), combine=wrong).predict(states(), 0.5, torch.tensor([1, 1, 1]))


# --- memory, conditions, precision ------------------------------------------------------------------------------------


class Small(Classes):
    """A network whose memory holds three samples at once."""

    def predict(self, x, t, condition=None):
        if len(x) > 3:
            self.asked.append("too much")
            raise torch.cuda.OutOfMemoryError("out of memory")
        return super().predict(x, t, condition)


def test_two_passes_where_the_doubled_batch_does_not_fit_and_from_then_on():
    model, words = Small(sds.VP()), {"steps": 3, "num_samples": 3, "condition": [1, 2, 1]}
    guided = sds.Guided(model, 2.5)
    found = sds.sample(guided, "euler", **words)
    close(found.samples, sds.sample(classes(), "euler", guidance_scale=2.5, **words).samples)
    assert model.asked.count("too much") == 1
    assert len(model.asked) == 1 + 2 * 3
    with pytest.raises(torch.cuda.OutOfMemoryError):
        sds.sample(sds.Guided(model, 2.5, batched=True), "euler", **words)
    with pytest.raises(torch.cuda.OutOfMemoryError):  # nor do two calls help here
        sds.sample(guided, "euler", **{**words, "num_samples": 4, "condition": 1})


@dataclass(frozen=True)
class Prompt:
    tokens: dict

    def __getitem__(self, rows):
        return Prompt({key: value[rows] for key, value in self.tokens.items()})

    @classmethod
    def cat(cls, parts):
        return cls({key: torch.cat([part.tokens[key] for part in parts]) for key in parts[0].tokens})


class Prompted(Classes):
    """Conditions that are objects which can be joined, or arrays, which are not."""

    joins = True

    def predict(self, x, t, condition=None):
        labels = condition.tokens["label"] if self.joins else torch.from_numpy(condition)
        return super().predict(x, t, labels)

    def condition_for(self, condition, count):
        labels = super().condition_for(condition, count)
        return Prompt({"label": labels}) if self.joins else labels.numpy()

    def unconditional(self, count):
        return self.condition_for(0, count)


@pytest.mark.parametrize("joins", [True, False])
def test_conditions_of_other_kinds(joins):
    model, words = Prompted(sds.VP()), {"num_samples": 3, "batch_size": 2, "seed": 3, "condition": [1, 2, 1]}
    words |= {"rtol": 1e-2, "atol": 1e-2}
    model.joins = joins
    guided = sds.Guided(model, 2.5, interval=(0.05, 5.0))
    expected = sds.sample(sds.Guided(classes(), 2.5, interval=(0.05, 5.0)), "rk45", **words)
    close(sds.sample(guided, "rk45", **words).samples, expected.samples)
    model.asked.clear()
    guided.predict(states(), 0.5, guided.condition_for(1, 3))
    assert len(model.asked) == (1 if joins else 2)
    if not joins:
        with pytest.raises(UsageError, match=r"ndarray and ndarray cannot be joined.*batched=False"):
            sds.Guided(model, 2.5, batched=True).predict(states(), 0.5, model.condition_for(1, 3))


def test_joining_conditions():
    a, b = torch.tensor([1, 2]), torch.tensor([3])
    assert join_conditions(a, b).tolist() == [1, 2, 3]
    assert join_conditions(Prompt({"k": a}), Prompt({"k": b})).tokens["k"].tolist() == [1, 2, 3]
    assert join_conditions(None, None) is None
    with pytest.raises(UsageError, match=r"shapes \(2, 7\) and \(2, 9\)"):
        join_conditions(torch.zeros(2, 7), torch.zeros(2, 9))
    for other in (None, "text", Prompt({"k": b})):
        with pytest.raises(UsageError, match=f"Tensor and {type(other).__name__} cannot be joined"):
            join_conditions(a, other)


class Optional(Classes):
    """A model whose way to say "no condition" is None."""

    def predict(self, x, t, condition=None):
        return super().predict(x, t, torch.zeros(len(x), dtype=torch.long) if condition is None else condition)

    def condition_for(self, condition, count):
        return None if condition is None else super().condition_for(condition, count)

    def unconditional(self, count):
        return None


@pytest.mark.parametrize("condition", [None, 1])
def test_a_model_whose_condition_may_be_none(condition):
    guided = sds.Guided(Optional(sds.VP()), 2.5)
    found = sds.sample(guided, "rk45", num_samples=3, condition=condition).samples
    expected = sds.sample(extrapolated("vp", 2.5, label=condition or 0), "rk45", num_samples=3).samples
    close(found, expected, 1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_guidance_adds_no_rounding_to_a_half_precision_network(dtype):
    model, labels, x = classes("table", dtype=dtype), torch.tensor([1, 2, 1]), states(dtype=dtype)
    conditional, unconditional = model.predict(x, 300.0, labels), model.predict(x, 300.0, 0 * labels)
    assert conditional.dtype == dtype
    found = sds.Guided(model, 8.0).predict(x, 300.0, labels)
    assert found.value.dtype == torch.float32
    exact = unconditional.double() + 8.0 * (conditional.double() - unconditional.double())
    close(found.value.double(), exact, 1e-6)
    samples = sds.sample(sds.Guided(model, 3.0, threshold=0.99), "dpmpp-2m", **GUIDED).samples
    assert samples.dtype == torch.float32


class OnMeta(Classes):
    """On the meta device, where any read of a value fails."""

    def predict(self, x, t, condition=None):
        return x * condition[:, None]


@pytest.mark.parametrize("t", [0.001, 0.4, np.array([0.001, 0.4, 0.999])])
def test_nothing_is_read_back_from_a_device(t):
    labels, x = torch.ones(3, dtype=torch.long, device="meta"), states().to("meta")
    found = sds.Guided(OnMeta(sds.VP()), 3.0, **OPTIONS).predict(x, t, GuidedCondition(labels, labels))
    for value in (found.value, found.unguided):
        assert value.device.type == "meta"
        assert value.shape == (3, 2)


# --- misuse -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"scale": math.nan}, "scale must be a number"),
        ({"rescale": 1.5}, "rescale must be from 0 to 1, not 1.5"),
        ({"rescale": -0.1}, "rescale must be from 0 to 1"),
        ({"interval": (2.0, 0.5)}, "0 <= low < high"),
        ({"interval": (-1.0, 0.5)}, "0 <= low < high"),
        ({"interval": 0.3}, r"interval must be \(low, high\) of sigma/alpha"),
        ({"interval": (0.1, 0.2, 0.3)}, r"interval must be \(low, high\)"),
        ({"threshold": 0.5}, "percentile above 0.5 and at most 1"),
        ({"threshold": 99.5}, "such as 0.995, not 99.5"),
    ],
)
def test_options_that_are_refused(words, message):
    with pytest.raises(UsageError, match=message):
        sds.Guided(classes(), **words)


def test_models_that_are_refused():
    with pytest.raises(UsageError, match="not guided yet"):
        sds.Guided(sds.Guided(classes()))
    with pytest.raises(UsageError, match="must be a Model"):
        sds.Guided("fashion-mnist")
    with pytest.raises(UsageError, match="no data_range"):
        sds.Guided(extrapolated("vp", 1.0), threshold=0.9)
    with pytest.raises(UsageError, match="no alpha and sigma"):
        sds.Guided(sds.FunnelModel(), interval=(0.1, 0.2))


def test_calls_that_are_refused():
    guided, unconditional = sds.Guided(classes()), extrapolated("vp", 1.0)
    with pytest.raises(UsageError, match=r"already guided, with scale 7\.5; leave guidance_scale at 1"):
        sds.sample(guided, "euler", steps=2, condition=1, guidance_scale=2.0)
    with pytest.raises(UsageError, match="needs a label"):
        sds.sample(guided, "euler", steps=2)
    with pytest.raises(UsageError, match="no unconditional input"):
        sds.sample(sds.Guided(unconditional), "euler", steps=2)
    with pytest.raises(UsageError, match="unconditional and takes no condition"):
        sds.sample(sds.Guided(unconditional, negative=1), "euler", steps=2)


def test_the_page_runs_as_written(labelled, tmp_path, monkeypatch):
    """docs/guidance.md, with a tiny network of other labels in place of its model."""
    page = (Path(__file__).parents[2] / "docs" / "guidance.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-digits").symlink_to(labelled)
    names = {}
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(snippet.replace("null_condition=10", "null_condition=4").replace("condition=7", "condition=1"), names)
    assert names["result"].samples.shape == (4, 1, 8, 8)
