"""Encoding and decoding: the flow map of a Gaussian, round trips at the sampler's order, and what is refused."""

import math
import threading

import numpy as np
import pytest
import torch
from exact_models import PROCESSES, TABLE, ByClass, gaussian, pushed
from lanes import mostly_slow
from PIL import Image

import sdesamplers as sds
from sdesamplers.testing.problems import Transport

SPECS = sds.samplers()
NO_ODE = sorted(
    name
    for name, s in SPECS.items()
    if (s.stochastic and s.noiseless is None) or {"log_density", "stationary"} & {*s.needs}
)
# From data to noise their coefficients are square roots of negative numbers.
NOT_FORWARDS = ["dpm-solver-3m"]
WALKERS = sorted({*SPECS} - {*NO_ODE, *NOT_FORWARDS})
ONE_OF_EACH = ("euler", "ddim", "heun", "ab", "dpmpp-2m", "exp-ab", "unipc", "churn", "bdia-ddim", "reversible-heun")


@pytest.fixture(scope="module")
def quantiles():
    """A one-dimensional mixture on VP, data at even quantiles, and their exact latents: the ODE keeps quantiles."""
    problem = Transport(sds.VP())
    early, late = problem.ends([problem.process.t_min, problem.process.t_max], count=9)
    return problem.model, early / float(problem.process.alpha(problem.process.t_min)), late


def worst(a, b):
    return float((a - b).abs().max())


# --- accuracy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mostly_slow(WALKERS, keep=ONE_OF_EACH))
def test_errors_fall_at_the_samplers_order(name, quantiles):
    """Latents against quantile transport, and the way back from them, as steps double."""
    model, data, latents = quantiles
    # Two claim no order: ab-2m mixes methods of order 2 and 4, and table without weights is DDIM, of order 1.
    order = SPECS[name].ode_order or {"ab-2m": 2, "table": 1}[name]
    there, back = [], []
    for steps in (12, 24) if order > 4 else (48, 96) if order == 4 else (24, 48):
        words = {"steps": steps, "spacing": "logsnr"}
        code = sds.encode(model, data, name, **words)
        there.append(worst(code.samples, latents))
        back.append(worst(sds.decode(model, code.samples, name, **words).samples, data))
    assert math.log2(there[0] / there[1]) > order - 0.5
    assert math.log2(back[0] / back[1]) > order - 0.5


@pytest.mark.parametrize("name", NO_ODE)
def test_samplers_that_follow_no_ode_are_refused(name):
    with pytest.raises(sds.UsageError, match=r"has no noiseless form|does not follow the probability-flow ODE"):
        sds.encode(sds.grid_mixture(sds.VP()), torch.zeros(1, 2), name, steps=8)


@pytest.mark.parametrize("name", NOT_FORWARDS)
def test_samplers_that_cannot_be_walked_forwards_say_so(name):
    with pytest.raises(sds.UsageError, match=rf"{name}(: math domain error| cannot run from data to noise)"):
        sds.encode(sds.grid_mixture(sds.VP()), torch.zeros(1, 2), name, steps=8)


@pytest.mark.parametrize("name", mostly_slow(PROCESSES, keep=["flow"]))
def test_the_flow_map_of_a_gaussian(name):
    """All processes, the flow's alpha = 0 and the table among them: latents, and back, at 80 steps of rk4."""
    model, x = gaussian(2, PROCESSES[name])
    words = {"steps": 80, "coordinates": "angle", "spacing": "angle" if name in ("flow", "cosine") else "logsnr"}
    code = sds.encode(model, x, "rk4", **words)
    scale = float(model.process.sigma(model.process.t_max))
    # Where alpha reaches 0 the encoding stops at sigma/alpha = 1e5.
    assert worst(code.samples / scale, pushed(model, x)[1] / scale) < 3e-5
    assert worst(sds.decode(model, code.samples, "rk4", **words).samples, x) < 1e-4


def test_decode_is_what_sample_does_from_the_same_start():
    model = sds.grid_mixture(sds.VP())
    start = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    words = {"steps": 10, "coordinates": "flow"}
    sampled = sds.sample(model, "heun", start=start, final="min", **words)
    decoded = sds.decode(model, start, "heun", **words)
    alpha = float(model.process.alpha(model.process.t_min))
    torch.testing.assert_close(decoded.samples, sampled.samples / alpha, rtol=1e-12, atol=0)
    assert decoded.nfe == sampled.nfe


def test_adaptive_steps_come_back_within_their_tolerance(quantiles):
    model, data, latents = quantiles
    for tolerance, bound in ((1e-3, 0.1), (1e-7, 3e-6)):  # the tolerance is a step's, not the run's
        words = {"rtol": tolerance, "atol": tolerance}
        code = sds.encode(model, data, "rk45", **words)
        assert worst(code.samples, latents) < bound
        assert worst(sds.decode(model, code.samples, "rk45", **words).samples, data) < bound
    assert code.accepted.shape == (9,)
    assert code.recipe.steps is None


@pytest.mark.parametrize(
    ("data", "model", "state"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.float16, torch.float32, torch.float32),
        (torch.float64, torch.float32, torch.float64),
        (torch.float32, torch.float64, torch.float64),
    ],
)
def test_dtypes(data, model, state):
    gauss = sds.GaussianModel([0.3, -0.2], 0.2, sds.VP(), dtype=model)
    x = torch.tensor([[0.5, 0.25], [-0.25, 1.0]]).to(data)
    code = sds.encode(gauss, x, "rk4", steps=40, coordinates="angle")
    assert code.samples.dtype == state
    back = sds.decode(gauss, code.samples, "rk4", steps=40, coordinates="angle")
    assert back.samples.dtype == state
    assert worst(back.samples, x.to(state)) < 1e-4
    assert sds.encode(gauss, x, "heun", steps=2, dtype=torch.float64).samples.dtype == torch.float64


@pytest.mark.slow
def test_round_trip_of_garments():
    """The embedded model's own samples, by Heun's method: the error falls fourfold and more as steps double."""
    model = sds.load("fashion-mnist")
    x = sds.sample(model, "dpmpp-2m", steps=8, num_samples=1, seed=0).samples
    errors = []
    for steps in (8, 16):
        code = sds.encode(model, x, steps=steps)
        errors.append(float((sds.decode(model, code.samples, steps=steps).samples - x).square().mean().sqrt()))
    assert errors[1] < 0.25 * errors[0] < 0.02
    assert 0.8 < float(code.samples.std()) < 1.1


# --- what is carried along --------------------------------------------------------------------------------------------


def test_conditions_and_guidance():
    labels = torch.tensor([0, 1, 2])
    x = labels[:, None] + torch.tensor([[0.1, 0.2], [0.0, -0.3], [0.4, 0.0]], dtype=torch.float64)
    words = {"steps": 50, "coordinates": "angle", "spacing": "angle"}
    code = sds.encode(ByClass(), x, "rk4", condition=labels, batch_size=2, **words)
    # The flow map of N(label, 0.25 I): what is left of x is (x - label) over its standard deviation.
    torch.testing.assert_close(code.samples, (x - labels[:, None]) / 0.5, rtol=0, atol=1e-4)
    assert torch.equal(code.condition, labels)
    assert worst(sds.decode(ByClass(), code.samples, "rk4", condition=labels, **words).samples, x) < 1e-4
    assert worst(sds.decode(ByClass(), code.samples, "rk4", condition=labels + 1, **words).samples, x + 1) < 1e-4
    # Guided by 2, the label's mean counts twice.
    guided = sds.encode(ByClass(), x, "rk4", condition=labels, guidance_scale=2.0, **words)
    torch.testing.assert_close(guided.samples, (x - 2 * labels[:, None]) / 0.5, rtol=0, atol=2e-4)
    assert guided.guidance_scale == 2.0


@pytest.mark.parametrize(
    "words", [{"sampler": "heun", "steps": 6}, {"sampler": "rk45", "rtol": 1e-2}, {"sampler": "bdia-ddim", "steps": 6}]
)
def test_batches_change_nothing(words):
    model = sds.grid_mixture(sds.VP())
    x = model.sample_data(5, torch.Generator().manual_seed(1))
    whole, parts = (sds.encode(model, x, batch_size=n, trajectory=True, **words) for n in (None, 2))
    torch.testing.assert_close(parts.samples, whole.samples, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(parts.nfe_per_sample, whole.nfe_per_sample)
    assert parts.trajectory.states.shape[1:] == (5, 2)
    back, halves = (sds.decode(model, whole, batch_size=n, **words) for n in (None, 2))
    torch.testing.assert_close(halves.samples, back.samples, rtol=0, atol=1e-12)


def test_callbacks_see_the_way_there_and_may_edit_it():
    model, x = gaussian(2, sds.VP())
    ratios = []
    code = sds.encode(model, x, "euler", steps=6, callback=lambda event: ratios.append(event.point.ratio))
    assert len(ratios) == code.nfe == 6
    assert ratios == sorted(ratios)

    def shift(event):
        if event.evaluation == 3:
            event.x = event.x + 1.0

    assert worst(sds.encode(model, x, "euler", steps=6, callback=shift).samples, code.samples) > 0.1


def test_cancel():
    flag = threading.Event()
    flag.set()
    model, x = gaussian(2, sds.VP())
    for call in (sds.encode, sds.decode):
        with pytest.raises(sds.Cancelled):
            call(model, x, steps=3, cancel=flag)


def test_the_result_says_what_was_run():
    model, x = gaussian(2, TABLE)
    code = sds.encode(model, x, "heun", nfe=12, trajectory=True)
    assert isinstance(code, sds.Result)
    assert code.nfe == 12
    assert code.nfe_per_sample.tolist() == [12] * 3
    assert (code.recipe.sampler, code.recipe.steps, code.recipe.final) == ("heun", 6, "min")
    assert code.model_name == "gaussian"
    assert code.indices == [0, 1, 2]
    assert not code.drew_noise
    assert code.data_range is None
    assert code.companion is None
    alpha = float(TABLE.alpha(0.0))
    torch.testing.assert_close(code.trajectory.states[0], alpha * x)
    torch.testing.assert_close(code.trajectory.states[-1], code.samples)
    assert code.trajectory.times[0] == 0.0


def test_decoded_pictures_are_pictures():
    model = sds.FunctionModel(lambda x, t: x, sds.VP(), "epsilon", (1, 4, 4), data_range=(-1.0, 1.0))
    result = sds.decode(model, torch.zeros(2, 1, 4, 4), steps=2)
    assert result.data_range == (-1.0, 1.0)
    assert len(result.images) == 2


# --- what an Encoding brings along ------------------------------------------------------------------------------------

WAYS = [
    ("rk4", {"steps": 7, "coordinates": "flow", "spacing": "karras", "spacing_options": {"rho": 5.0}}),
    ("exp-ab", {"nfe": 9, "order": 2}),
    ("rk45", {"rtol": 1e-4, "atol": 1e-4}),
    ("churn", {"steps": 5}),  # its noise turned off
    ("reversible-heun", {"steps": 6}),
]


@pytest.mark.parametrize(("sampler", "words"), WAYS, ids=[name for name, _ in WAYS])
def test_an_encoding_goes_back_as_it_came(sampler, words):
    """Without words: the same sampler, options, grid and coordinates, there and back and there again."""
    model, x = gaussian(2, sds.VP())
    code = sds.encode(model, x, sampler, **words)
    back = sds.decode(model, code)
    assert back.recipe == code.recipe
    assert torch.equal(back.samples, sds.decode(model, code, sampler, **words).samples)
    assert (code.holds, back.holds) == ("latents", "data")
    assert torch.equal(sds.encode(model, back).samples, sds.encode(model, back, sampler, **words).samples)


def test_words_replace_an_encodings_own_and_a_sampler_starts_afresh():
    model, x = gaussian(2, sds.VP())
    code = sds.encode(model, x, "exp-ab", steps=8, coordinates="flow", spacing="logsnr", order=2)

    def recipe(*arguments, **words):
        return sds.decode(model, code, *arguments, **words).recipe

    assert recipe(steps=8) == recipe(order=2) == code.recipe
    finer = recipe(nfe=20)
    assert (finer.sampler, finer.steps, finer.spacing, finer.coordinates) == ("exp-ab", 20, "logsnr", "flow")
    assert finer.options["order"] == 2
    assert recipe(order=3).options["order"] == 3
    assert recipe(spacing="linspace").spacing == "linspace"
    assert recipe("exp-ab", steps=8) == sds.decode(model, code.samples, "exp-ab", steps=8).recipe != code.recipe
    with pytest.raises(sds.UsageError, match="needs steps"):
        recipe("heun")
    free = sds.encode(model, x, "rk45", rtol=1e-3)
    assert sds.decode(model, free, atol=1e-5).recipe.options == {**free.recipe.options, "atol": 1e-5}
    assert sds.decode(model, free, steps=4).recipe.steps == 4


def test_condition_and_guidance_go_back_too():
    labels = torch.tensor([0, 1, 2])
    x = labels[:, None] + torch.tensor([[0.1, 0.2], [0.0, -0.3], [0.4, 0.0]], dtype=torch.float64)
    words = {"steps": 50, "coordinates": "angle", "spacing": "angle"}
    code = sds.encode(ByClass(), x, "rk4", condition=labels, guidance_scale=2.0, **words)
    assert worst(sds.decode(ByClass(), code).samples, x) < 1e-4
    # Guided by 2, the label's mean counts twice.
    assert worst(sds.decode(ByClass(), code, guidance_scale=1.0).samples, x - labels[:, None]) < 2e-4
    assert worst(sds.decode(ByClass(), code, condition=labels + 1).samples, x + 2) < 2e-4


@pytest.mark.parametrize("words", [{"steps": 9}, {"coordinates": "flow"}, {"sampler": "bdia-ddim", "steps": 8}])
def test_a_second_state_is_no_use_to_another_grid(words):
    model, x = gaussian(2, sds.VP())
    code = sds.encode(model, x, "reversible-heun", steps=8)
    with pytest.raises(sds.UsageError, match=r"second state of reversible-heun.*encoding\.samples"):
        sds.decode(model, code, **words)
    sds.decode(model, code.samples, **{"sampler": "reversible-heun", "steps": 8, **words})
    sds.decode(model, code, "heun", steps=9)  # takes one state alone


@pytest.mark.parametrize("other", [sds.SubVP(), sds.VP(0.1, 19.0), sds.EDM(), sds.RectifiedFlow(), TABLE])
def test_latents_of_another_process_are_refused(other):
    model, x = gaussian(2, sds.VP())
    code = sds.encode(model, x, "heun", steps=3)
    with pytest.raises(sds.UsageError, match="which has another process than"):
        sds.decode(gaussian(2, other)[0], code)
    same = sds.grid_mixture(sds.VP())  # other weights on the same process are no mistake
    assert sds.decode(same, code).samples.shape == x.shape


def test_an_encoding_goes_one_way():
    model, x = gaussian(2, sds.VP())
    code = sds.encode(model, x, "heun", steps=3)
    with pytest.raises(sds.UsageError, match="already contains latents; pass it to decode"):
        sds.encode(model, code)
    with pytest.raises(sds.UsageError, match="already contains data; pass it to encode"):
        sds.decode(model, sds.decode(model, code))


def test_nothing_is_random_and_no_graph_is_kept():
    model, x = gaussian(2, sds.VP())
    state = torch.get_rng_state()
    runs = [sds.encode(model, x.requires_grad_(), "churn", steps=4).samples for _ in range(2)]
    assert torch.equal(*runs)
    assert torch.equal(torch.get_rng_state(), state)
    assert not runs[0].requires_grad
    assert not runs[0].is_inference()


# --- misuse -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x", [torch.zeros(2), torch.zeros(2, 3), torch.zeros(0, 2), torch.zeros(1, 2).int()])
def test_states_of_another_shape_or_kind(x):
    model = gaussian(2, sds.VP())[0]
    for call, what in ((sds.encode, "data"), (sds.decode, "latents")):
        with pytest.raises(sds.UsageError, match=rf"{what} must be floating-point numbers of shape \(N, 2\)"):
            call(model, x, steps=3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({}, "needs steps"),
        ({"steps": 0}, "steps must be"),
        ({"steps": 3, "nfe": 4}, "not steps and nfe"),
        ({"steps": 3, "batch_size": 0}, "batch_size must be"),
        ({"steps": 3, "dtype": torch.float16}, "dtype is the dtype of the state"),
        ({"steps": 3, "condition": 1}, "takes no condition"),
        ({"steps": 3, "guidance_scale": 2.0}, "no unconditional input"),
        ({"steps": 3, "coordinates": "polar"}, "coordinates"),
        ({"sampler": "bdia-ddim", "steps": 3, "gamma": 0.0}, "gamma must lie"),
        ({"sampler": "reversible-midpoint", "steps": 3, "coupling": 1.5}, "coupling must lie"),
        ({"sampler": "churn", "steps": 3, "s_churn": 5.0}, "with s_churn=5.0; omit s_churn"),
        ({"sampler": "ddim", "steps": 3, "eta": 1.0}, "turn it off, for example with eta=0"),
    ],
)
def test_misuse(words, message):
    model, x = gaussian(2, sds.VP())
    with pytest.raises(sds.UsageError, match=message):
        sds.encode(model, x, **words)


def test_data_in_other_units():
    """Whole numbers, bytes and pixels from 0 to 255 say how they become data; noise and overshoot are data."""
    model = sds.FunctionModel(lambda x, t: x, sds.VP(), "epsilon", (1, 4, 4), data_range=(-1.0, 1.0))
    pixels = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4) * 17
    for call in (sds.encode, sds.log_likelihood):
        for x in (pixels, torch.from_numpy(pixels).int()):
            with pytest.raises(sds.UsageError, match=r"int.* by x \* 2 / 255 - 1, or pass PIL images"):
                call(model, x, "heun", steps=2)
        for x, least in ((pixels.astype(np.float32), "0"), (pixels - 128.0, "-128")):
            with pytest.raises(sds.UsageError, match=rf"lie between {least} and .* x \* 2 / 255 - 1"):
                call(model, x, "heun", steps=2)
        with pytest.raises(sds.UsageError, match=r"x\[None\]"):
            call(model, torch.zeros(1, 4, 4), "heun", steps=2)
        with pytest.raises(sds.UsageError, match="data must be floating-point numbers"):
            call(model, "pictures", "heun", steps=2)
    noise = 2 * torch.randn(200, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert sds.encode(model, noise, "heun", steps=2).samples.shape == noise.shape
    assert sds.decode(model, 100 * noise, "heun", steps=2).samples.shape == noise.shape  # latents have no range
    unit = sds.FunctionModel(lambda x, t: x, sds.VP(), "epsilon", (1, 4, 4), data_range=(0.0, 1.0))
    with pytest.raises(sds.UsageError, match=r"\[0, 1\]; scale pixels .* x \* 1 / 255$"):
        sds.encode(unit, pixels.astype(np.float64), "heun", steps=2)


def test_pictures_are_data():
    model = sds.FunctionModel(lambda x, t: 0.1 * x, sds.VP(), "epsilon", (1, 4, 6), data_range=(-1.0, 1.0))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 6), dtype=np.uint8)
    pictures = [Image.fromarray(each) for each in pixels]
    x = torch.from_numpy(pixels[:, None].astype(np.float32)) * (2 / 255) - 1
    assert torch.equal(sds.encode(model, pictures, "heun", steps=2).samples, sds.encode(model, x, steps=2).samples)
    one = sds.encode(model, pictures[1].convert("RGB"), "heun", steps=2).samples
    torch.testing.assert_close(one, sds.encode(model, x[1:], steps=2).samples)
    words = {"sampler": "heun", "steps": 2}
    found, expected = (sds.log_likelihood(model, data, **words) for data in (pictures, x))
    np.testing.assert_array_equal(found.nats, expected.nats)
    with pytest.raises(sds.UsageError, match="picture 1 is 4x6 pixels; this model requires 6x4"):
        sds.encode(model, [pictures[0], pictures[1].transpose(Image.Transpose.ROTATE_90)], steps=2)
    with pytest.raises(sds.UsageError, match="not pictures; pass floating-point numbers"):
        sds.encode(gaussian(2, sds.VP())[0], pictures, steps=2)
    with pytest.raises(sds.UsageError, match="latents must be floating-point numbers"):
        sds.decode(model, pictures, steps=2)


# --- interpolation ----------------------------------------------------------------------------------------------------


def test_interpolation_keeps_to_the_sphere():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 3, 8, 8, generator=generator)
    b = b * a.norm() / b.norm()
    shares = torch.linspace(0, 1, 7)
    way = sds.interpolate(a, b, shares)
    assert way.shape == (7, 3, 8, 8)
    assert way.dtype == torch.float32
    torch.testing.assert_close(way[0], a)
    torch.testing.assert_close(way[-1], b)
    torch.testing.assert_close(way.flatten(1).norm(dim=1), a.norm().expand(7))
    angles = torch.acos(torch.nn.functional.cosine_similarity(way[:-1].flatten(1), way[1:].flatten(1)).double())
    torch.testing.assert_close(angles, angles.mean().expand(6), rtol=1e-3, atol=0)


def test_lengths_are_interpolated():
    way = sds.interpolate(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0]), [0.5])
    torch.testing.assert_close(way, torch.tensor([[math.sqrt(2.0), math.sqrt(2.0)]]))


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-7, 1e-3])
def test_latents_that_are_nearly_parallel(gap):
    a, b = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([1.0, gap], dtype=torch.float64)
    way = sds.interpolate(a, b, [0.0, 0.25, 1.0])
    exact = torch.tensor([[1.0, 0.0], [1.0, 0.25 * gap], [1.0, gap]], dtype=torch.float64)
    torch.testing.assert_close(way, exact, rtol=1e-6, atol=1e-3 * gap)


def test_opposite_latents_and_zeros_are_refused():
    a = torch.tensor([1.0, 2.0])
    with pytest.raises(sds.UsageError, match="opposite"):
        sds.interpolate(a, -2 * a, [0.5])
    with pytest.raises(sds.UsageError, match="zero"):
        sds.interpolate(a, torch.zeros(2), [0.5])
    with pytest.raises(sds.UsageError, match="the same shape"):
        sds.interpolate(a, torch.zeros(3), [0.5])
    with pytest.raises(sds.UsageError, match="shares"):
        sds.interpolate(a, 2 * a, 0.5)
