"""The formulas of guidance by name: diffusers' own guiders on the same predictions, closed forms, and mistakes."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

import sdesamplers as sds
from sdesamplers.generation.identity import model_facts
from sdesamplers.models.guidance_methods import METHODS, OF_DIFFUSERS, from_pyramid, laplacian_pyramid, method

guiders = pytest.importorskip("diffusers.guiders", reason="this version of diffusers has no guiders")

SCALE = 4.5


def predictions(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A conditional and an unconditional prediction, of which one is close to the other and one is not."""
    generator = torch.Generator().manual_seed(3)
    first, second = (torch.randn(3, 4, 16, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    far = torch.tensor([0.05, 0.4, 2.0], dtype=torch.float64).view(3, 1, 1, 1)
    return first.to(dtype), (0.8 * first + far * second).to(dtype)


def of_diffusers(kind: str, **options) -> Tensor:
    """A guider's result, for predictions of sequences (N, tokens, channels): one of them takes no images."""
    guider = getattr(guiders, kind)(**options)
    guider.set_state(step=5, num_inference_steps=20, timestep=torch.tensor(400))
    flat = kind != "FrequencyDecoupledGuidance"
    both = (each.flatten(2) if flat else each for each in predictions())
    return guider.forward(*both).pred.view(predictions()[0].shape)


CASES = {
    # diffusers' "original formulation" counts the scale from the conditional prediction, as the paper of APG does not.
    "apg, unlimited": (
        ("apg", {"eta": 0.3, "norm": 0.0}),
        ("AdaptiveProjectedGuidance", {"eta": 0.3, "adaptive_projected_guidance_rescale": 0.0}),
        True,
    ),
    "apg, limited": (
        ("apg", {"norm": 9.0}),
        ("AdaptiveProjectedGuidance", {"eta": 0.0, "adaptive_projected_guidance_rescale": 9.0}),
        True,
    ),
    "cfg-zero-star": (("cfg-zero-star", {}), ("ClassifierFreeZeroStarGuidance", {"zero_init_steps": 0}), False),
    "tangential": (("tangential", {}), ("TangentialClassifierFreeGuidance", {}), False),
    "magnitude-aware": (("magnitude-aware", {"alpha": 3.0}), ("MagnitudeAwareGuidance", {"alpha": 3.0}), False),
}


@pytest.mark.parametrize("case", CASES)
def test_formulas_are_those_of_diffusers(case):
    """diffusers computes the factors of two of them in float32."""
    (name, options), (kind, given), original = CASES[case]
    scale = SCALE - 1 if original else SCALE
    expected = of_diffusers(kind, guidance_scale=scale, use_original_formulation=original, **given)
    found = method(name, options)(*predictions(), SCALE)
    close = 1e-5 if name in ("cfg-zero-star", "tangential") else 1e-12
    torch.testing.assert_close(found, expected, rtol=close, atol=close)
    plain = predictions()[1] + SCALE * (predictions()[0] - predictions()[1])
    assert (found - plain).abs().max() > 0.05


def test_frequency_decoupled_is_diffusers_on_the_same_pyramid(monkeypatch):
    """diffusers takes the pyramid from kornia; here it is ours, and the next test is about kornia's."""
    module = pytest.importorskip("diffusers.guiders.frequency_decoupled_guidance")
    monkeypatch.setattr(module, "_CAN_USE_KORNIA", True)
    monkeypatch.setattr(module, "build_laplacian_pyramid_func", laplacian_pyramid)
    monkeypatch.setattr(
        module,
        "upsample_and_blur_func",
        lambda image: from_pyramid([torch.zeros_like(image).repeat(1, 1, 2, 2), image]),
    )
    expected = of_diffusers("FrequencyDecoupledGuidance", guidance_scales=[SCALE, 3.0, 2.0])
    found = method("frequency-decoupled", {"lower": [3.0, 2.0]})(*predictions(), SCALE)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_pyramid_is_kornias():
    kornia = pytest.importorskip("kornia")
    image = predictions()[0]
    expected = kornia.geometry.transform.build_laplacian_pyramid(image, 3)
    for found, level in zip(laplacian_pyramid(image, 3), expected, strict=True):
        torch.testing.assert_close(found, level, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(16, 8), (15, 9), (4, 4)])
def test_a_pyramid_adds_up_and_separates_frequencies(size):
    image = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    levels = laplacian_pyramid(image, 2)
    torch.testing.assert_close(from_pyramid(levels), image, rtol=1e-13, atol=1e-13)
    fine, coarse = laplacian_pyramid(torch.full((1, 1, *size), 2.5, dtype=torch.float64), 2)
    assert fine.abs().max() < 1e-13
    assert (coarse - 2.5).abs().max() < 1e-13


def test_the_blur_is_scipys():
    from scipy.ndimage import convolve

    image = predictions()[0]
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
    blurred = np.stack([[convolve(channel, kernel, mode="mirror") for channel in each] for each in image.numpy()])
    smaller = torch.nn.functional.interpolate(torch.from_numpy(blurred), size=(8, 4), mode="bilinear")
    torch.testing.assert_close(laplacian_pyramid(image, 2)[1], smaller, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_every_formula_keeps_samples_apart_and_the_dtype(name, dtype):
    conditional, unconditional = predictions(dtype)
    formula = method(name, {})
    whole = formula(conditional, unconditional, SCALE)
    assert whole.dtype == dtype
    for j in range(3):
        alone = formula(conditional[j : j + 1], unconditional[j : j + 1], SCALE)
        torch.testing.assert_close(whole[j : j + 1], alone, rtol=1e-5, atol=1e-5)
    exact = method(name, {"lower": [1.0]} if name == "frequency-decoupled" else {})
    torch.testing.assert_close(exact(conditional, unconditional, 1.0), conditional, rtol=1e-5, atol=1e-5)
    zero = formula(conditional * 0, unconditional * 0, SCALE)
    assert zero.abs().max() == 0


@pytest.mark.parametrize("name", METHODS)
def test_predictions_that_are_equal_are_not_changed(name):
    conditional, _ = predictions()
    torch.testing.assert_close(method(name, {})(conditional, conditional, SCALE), conditional, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*OF_DIFFUSERS])
def test_names_of_diffusers_are_known(name):
    assert hasattr(guiders, name)
    assert method(name, {}) == method(OF_DIFFUSERS[name], {}) == pickle.loads(pickle.dumps(method(name, {})))


def classes(shape=(1, 8, 8), rate=1.0) -> sds.FunctionModel:
    """A model of classes; class 0 is none."""

    def network(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        wave = torch.arange(x[0].numel(), dtype=x.dtype).view(x.shape[1:])
        return torch.tanh(rate * x + t) + 0.3 * label.view(-1, 1, 1, 1) * torch.sin(wave)

    options = {"conditional": True, "null_condition": 0, "dtype": torch.float64}
    return sds.FunctionModel(network, sds.VP(), "epsilon", shape, name="classes", **options)


@pytest.mark.parametrize("name", METHODS)
def test_guided_applies_a_formula_in_the_models_own_type(name):
    model, label = classes(), torch.tensor([2, 1, 3])
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    guided = sds.Guided(model, SCALE, combine=name)
    found = guided.predict(x, 0.5, guided.condition_for(label, 3)).value
    both = model.predict(x, 0.5, label), model.predict(x, 0.5, label * 0)
    torch.testing.assert_close(found, method(name, {})(*both, SCALE), rtol=1e-12, atol=1e-12)
    samples = sds.sample(guided, "dpmpp-2m", steps=4, num_samples=3, condition=label).samples
    assert samples.isfinite().all()
    plain = sds.sample(model, "dpmpp-2m", steps=4, num_samples=3, condition=label, guidance_scale=SCALE).samples
    assert (samples - plain).abs().max() > 1e-3


def test_options_and_formulas_distinguish_jobs():
    """A resumed job is recognised by these facts."""
    layers = [torch.nn.Conv2d(1, 1, 1).double() for _ in range(2)]
    networks = [sds.FunctionModel(layer, sds.VP(), "epsilon", (1, 8, 8), name="classes") for layer in layers]
    models = [
        sds.Guided(classes(), SCALE, combine="apg"),
        sds.Guided(classes(), SCALE, combine="apg", eta=0.5),
        sds.Guided(classes(), SCALE, combine="tangential"),
        sds.Guided(classes(), SCALE, weak=networks[0]),
        sds.Guided(classes(), SCALE, weak=networks[1]),
        sds.Guided(classes(), SCALE),
    ]
    facts = [json.dumps(model_facts(model), default=str, sort_keys=True) for model in models]
    assert len(set(facts)) == len(facts)
    again = sds.Guided(classes(), SCALE, combine="apg", eta=0.5)
    assert json.dumps(model_facts(again), default=str, sort_keys=True) == facts[1]


# --- guidance by a weaker model ---------------------------------------------------------------------------------------


def test_autoguidance_guides_away_from_a_weak_model():
    """Karras et al. 2024 (arXiv:2406.02507), and diffusers' guider of this name on the same predictions."""
    model, weak, label = classes(), classes(rate=0.4), torch.tensor([2, 1])
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    guided = sds.Guided(model, 2.0, weak=weak)
    found = guided.predict(x, 0.5, guided.condition_for(label, 2))
    good, bad = model.predict(x, 0.5, label), weak.predict(x, 0.5, label)
    torch.testing.assert_close(found.value, bad + 2.0 * (good - bad), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found.unguided, bad, rtol=0, atol=0)
    guider = guiders.AutoGuidance(guidance_scale=2.0, dropout=0.1, auto_guidance_layers=[0])
    guider.set_state(step=5, num_inference_steps=20, timestep=torch.tensor(400))
    torch.testing.assert_close(found.value, guider.forward(good, bad).pred, rtol=1e-13, atol=1e-13)
    # At scale 1 it is the good model alone.
    alone = sds.Guided(model, 1.0, weak=weak)
    torch.testing.assert_close(alone.predict(x, 0.5, alone.condition_for(label, 2)), good, rtol=0, atol=0)


def test_autoguidance_of_unconditional_models_and_in_an_interval():
    def network(rate):
        return lambda x, t: rate * x / (1 + t)

    good, bad = (
        sds.FunctionModel(network(rate), sds.EDM(), "sample", (2,), dtype=torch.float64) for rate in (0.9, 0.5)
    )
    guided = sds.Guided(good, 3.0, weak=bad, interval=(1.0, 10.0))
    x, t = torch.ones(3, 2, dtype=torch.float64), np.array([0.5, 5.0, 20.0])
    found = guided.predict(x, t, guided.condition_for(None, 3)).value[:, 0]
    expected = [0.9 / 1.5, (0.5 + 3 * 0.4) / 6, 0.9 / 21]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    assert sds.sample(guided, "heun", steps=4, num_samples=2).samples.isfinite().all()


def test_a_weak_models_modules_are_evaluated_in_evaluation_mode():
    seen = []

    class Net(torch.nn.Module):
        def forward(self, x, t):
            seen.append(self.training)
            return x * 0.1

    good, bad = Net().train(), Net().train()
    models = [sds.FunctionModel(each, sds.VP(), "epsilon", (2,)) for each in (good, bad)]
    sds.sample(sds.Guided(models[0], 2.0, weak=models[1]), "euler", steps=2)
    assert seen
    assert not any(seen)
    assert good.training
    assert bad.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"combine": "agp"}, "did you mean 'apg'"),
        ({"combine": "apg", "etta": 0.5}, "did you mean eta="),
        ({"combine": "tangential", "eta": 0.5}, "combine='tangential' has no argument 'eta'"),
        ({"combine": "apg", "norm": -1}, "norm must be 0, for no limit, or positive, not -1"),
        ({"combine": "apg", "eta": "much"}, "eta must be a number"),
        ({"combine": "frequency-decoupled", "lower": []}, "lower must have the scale of one or more"),
        ({"combine": "frequency-decoupled", "lower": "low"}, "lower must be numbers"),
        ({"eta": 0.5}, "Guided has no argument 'eta'"),
        ({"treshold": 0.99}, "did you mean threshold="),
        ({"weak": 3}, "weak must be a Model, not int"),
        ({"weak": classes((1, 4, 4))}, "weak must have the shape of the model"),
        ({"weak": classes(), "batched": True}, "two networks need two calls"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    with pytest.raises(sds.UsageError) as raised:
        sds.Guided(classes(), 2.0, **arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_weak_model_of_another_process_is_refused():
    def made(process, prediction="epsilon"):
        return sds.FunctionModel(lambda x, t: x, process, prediction, (2,))

    with pytest.raises(sds.UsageError, match="weak must have the process of the model"):
        sds.Guided(made(sds.VP()), weak=made(sds.VP(0.1, 10.0)))
    with pytest.raises(sds.UsageError, match="weak must have the prediction of the model"):
        sds.Guided(made(sds.VP()), weak=made(sds.VP(), "v"))


def test_frequencies_need_images():
    guided = sds.Guided(classes((64,)), 2.0, combine="frequency-decoupled")
    with pytest.raises(sds.UsageError, match=r"is for images \(N, C, H, W\), not for shape \(2, 64\)"):
        guided._guide(torch.zeros(2, 64), torch.zeros(2, 64))
    with pytest.raises(sds.UsageError, match="an image of 2 x 2 has too few pixels"):
        method("frequency-decoupled", {"lower": [2.0, 3.0]})(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), 2.0)
