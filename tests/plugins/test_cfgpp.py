"""CFG++: plain samplers without guidance, hand-worked guided steps, and how often the model is asked."""

import itertools
import math

import numpy as np
import pytest
import torch
from lanes import mostly_slow
from process_cases import TABLE

import sdesamplers as sds
from sdesamplers.path.noise import PATH

PLAIN = {"euler-cfgpp": "ddim", "euler-ancestral-cfgpp": "euler-ancestral", "dpmpp-2m-cfgpp": "dpmpp-2m"}
PROCESSES = {
    "vp": (sds.VP(), "epsilon"),
    "edm": (sds.EDM(), "sample"),
    "table": (sds.DiscreteVP(TABLE), "epsilon"),
    "zero-snr": (sds.DiscreteVP(np.append(np.cumprod(1 - np.linspace(1e-4, 0.02, 999)), 0.0)), "v"),
    "flow": (sds.RectifiedFlow(), "flow"),
}
MEANS, SPREAD = (0.7, -0.2), 0.6


class Guided(sds.Model):
    """Two classes of data: everything (class 0, the unconditional input), or the part that class 1 stands for."""

    def __init__(self, process, prediction="epsilon", models=None):
        self.process, self.prediction, self.shape, self.dtype = process, prediction, (1,), torch.float64
        self.name, self.asked = "guided", []
        self.models = models or [
            sds.GaussianModel([mean], SPREAD**2, process, prediction=prediction) for mean in reversed(MEANS)
        ]

    def predict(self, x, t, condition=None):
        classes = torch.zeros(len(x), dtype=torch.long) if condition is None else condition
        self.asked.append((float(np.max(t)), classes.tolist()))
        answers = torch.stack([model.predict(x, t) for model in self.models])
        return answers[classes, torch.arange(len(x))]

    def condition_for(self, condition, count):
        return None if condition is None else torch.full((count,), int(condition))

    def unconditional(self, count):
        return torch.zeros(count, dtype=torch.long)


def mixtures(process, prediction):
    """A lopsided mixture as everything, its components 1 and 3 as the class."""
    whole = sds.grid_mixture(process, prediction=prediction)
    chosen = torch.tensor([1, 3])
    part = sds.MixtureModel(
        whole.weights[chosen], whole.means[chosen], whole.covariances[chosen], process, prediction=prediction
    )
    model = Guided(process, prediction, [whole, part])
    model.shape = (2,)
    return model


def draw(name, case, **words):
    return sds.sample(mixtures(*PROCESSES[case]), name, **{"steps": 10, "num_samples": 6, "seed": 2, **words})


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# --- identities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("case", PROCESSES)
def test_without_guidance_each_is_its_plain_sampler(case, name):
    """No condition, or guidance_scale 0, where x0 is the unguided one too."""
    plain = draw(PLAIN[name], case)
    free = draw(name, case)
    close(free.samples, plain.samples)
    assert free.nfe == plain.nfe
    close(draw(name, case, condition=1, guidance_scale=0.0).samples, plain.samples)


@pytest.mark.parametrize("case", PROCESSES)
def test_the_ancestral_one_without_noise_is_eulers(case):
    words = {"condition": 1, "guidance_scale": 0.6}
    close(draw("euler-ancestral-cfgpp", case, eta=0.0, **words).samples, draw("euler-cfgpp", case, **words).samples)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("case", mostly_slow(PROCESSES, keep=["vp", "zero-snr"]))
def test_a_guided_run_is_the_same_in_all_coordinates(case, name):
    words = {"condition": 1, "guidance_scale": 0.6}
    native = draw(name, case, **words).samples
    for coordinates in ("flow", "angle", *(() if case in ("zero-snr", "flow") else ("ve",))):
        close(draw(name, case, coordinates=coordinates, **words).samples, native, 1e-9)
    assert not torch.allclose(native, draw(PLAIN[name], case, **words).samples, atol=1e-3)


@pytest.mark.parametrize("name", PLAIN)
def test_every_prediction_type_gives_the_same_guided_sample(name):
    process = sds.VP()
    found = [
        sds.sample(mixtures(process, kind), name, steps=8, num_samples=4, condition=1, guidance_scale=0.7).samples
        for kind in sds.PREDICTIONS
    ]
    for other in found[1:]:
        close(other, found[0], 1e-8)


# --- steps worked by hand ---------------------------------------------------------------------------------------------


def denoise(x, sigma, mean):
    return (SPREAD**2 * x + sigma**2 * mean) / (SPREAD**2 + sigma**2)


def estimates(x, sigma, scale):
    """The guided and the unguided clean estimate, in sigma with alpha = 1."""
    unguided, conditional = denoise(x, sigma, MEANS[1]), denoise(x, sigma, MEANS[0])
    return unguided + scale * (conditional - unguided), unguided


@pytest.mark.parametrize("scale", [0.6, 1.0, 3.0])
def test_guided_steps_by_hand_in_edm(scale):
    """3 -> 1.7 -> 0.9 -> 0.4 with Chung et al.'s x_i = x0_c + a x0_u + b x0_u(last) + c x + d z."""
    model = Guided(sds.EDM())
    sigmas = [3.0, 1.7, 0.9, 0.4]
    start = torch.tensor([[1.9], [-3.0]], dtype=torch.float64)
    source = sds.NormalSource(0, range(2), (1,))
    euler = ancestral = multistep = start
    last = None
    for k, (sigma, target) in enumerate(itertools.pairwise(sigmas)):
        guided, unguided = estimates(euler, sigma, scale)
        euler = guided + target * (euler - unguided) / sigma

        guided, unguided = estimates(ancestral, sigma, scale)
        up = 0.8 * target * math.sqrt(1 - target**2 / sigma**2)
        z = source.draw(PATH, k + 1).double()
        ancestral = guided + math.sqrt(target**2 - up**2) * (ancestral - unguided) / sigma + 0.9 * up * z

        guided, unguided = estimates(multistep, sigma, scale)
        ratio = target / sigma
        multistep = guided + ratio * (multistep - unguided)
        if last is not None:
            h, h_last = math.log(sigma / target), math.log(sigmas[k - 1] / sigma)
            multistep = multistep + (1 - ratio) * h / (2 * h_last) * (unguided - last)
        last = unguided
    words = {"sigmas": sigmas, "start": start, "condition": 1, "guidance_scale": scale}
    close(sds.sample(model, "euler-cfgpp", **words).samples, euler, 1e-12)
    close(sds.sample(model, "euler-ancestral-cfgpp", eta=0.8, s_noise=0.9, **words).samples, ancestral, 1e-12)
    close(sds.sample(model, "dpmpp-2m-cfgpp", **words).samples, multistep, 1e-12)


def test_a_guided_step_by_hand_in_a_flow_model():
    """0.8 -> 0.5: alpha_s x0 + sigma_s eps of the unguided model, which is (x - 0.2 x0_u) / 0.8."""
    model = Guided(sds.RectifiedFlow(), "flow")
    x = torch.tensor([[0.9], [-0.4]], dtype=torch.float64)
    guided, unguided = estimates(x / 0.2, 4.0, 0.6)
    expected = 0.5 * guided + 0.5 * (x - 0.2 * unguided) / 0.8
    words = {"times": [0.8, 0.5], "start": x, "condition": 1, "guidance_scale": 0.6}
    for name in ("euler-cfgpp", "dpmpp-2m-cfgpp"):
        close(sds.sample(model, name, **words).samples, expected, 1e-12)


@pytest.mark.parametrize("name", PLAIN)
def test_the_last_step_ends_on_the_guided_estimate(name):
    model = Guided(sds.EDM())
    x = torch.tensor([[0.4], [1.3]], dtype=torch.float64)
    result = sds.sample(model, name, sigmas=[0.5, 0.0], start=x, condition=1, guidance_scale=0.6)
    close(result.samples, estimates(x, 0.5, 0.6)[0], 1e-12)


# --- how often the model is asked -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.6])
@pytest.mark.parametrize("name", PLAIN)
def test_the_model_is_asked_once_for_each_class_and_point(name, scale):
    """At guidance_scale 1, too, where classifier-free guidance has no use for the unconditional input."""
    model = Guided(sds.VP())
    result = sds.sample(model, name, steps=7, num_samples=3, condition=1, guidance_scale=scale)
    assert result.nfe == 7
    assert [classes for _, classes in model.asked] == [[1, 1, 1], [0, 0, 0]] * 7
    assert len({t for t, _ in model.asked}) == 7
    free = Guided(sds.VP())
    assert sds.sample(free, name, steps=7, num_samples=3).nfe == 7
    assert len(free.asked) == 7


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("case", PROCESSES)
def test_short_runs_and_both_ends(case, name):
    for words in ({"steps": 1}, {"steps": 2}, {"steps": 3, "final": "min"}):
        assert torch.isfinite(draw(name, case, condition=1, guidance_scale=0.8, **words).samples).all()


def test_guidance_moves_samples_to_the_class():
    """Guided by lambda = 1 over 20 steps, more samples are nearest to one of the class's means than without."""
    model = mixtures(sds.VP(), "epsilon")
    means = model.models[0].means

    def share(name, **words):
        samples = sds.sample(model, name, steps=20, num_samples=400, **words).samples
        nearest = torch.cdist(samples, means).argmin(1)
        return float(((nearest == 1) | (nearest == 3)).double().mean())

    for name in PLAIN:
        assert share(name, condition=1, guidance_scale=1.0) > 0.95 > 0.6 > share(name)


@pytest.mark.parametrize("options", [{"eta": -0.1}, {"s_noise": -1.0}])
def test_amounts_of_noise_are_checked(options):
    with pytest.raises(sds.UsageError, match=f"{next(iter(options))} scales the noise"):
        draw("euler-ancestral-cfgpp", "vp", **options)
