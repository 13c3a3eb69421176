"""Conversions between prediction types, against x0 and eps that were drawn first."""

import math

import numpy as np
import pytest
import torch
from process_cases import PROCESSES

import sdesamplers as sds
from sdesamplers.path.path import Path

KINDS = ("epsilon", "sample", "v", "score", "flow")
FRACTIONS = (0.05, 0.3, 0.62, 0.9)


def truth(process, t, seed=0, count=6):
    """x0, eps, the state and every prediction, from their definitions."""
    g = torch.Generator().manual_seed(seed)
    x0, eps = (torch.randn(count, 3, dtype=torch.float64, generator=g) for _ in range(2))
    alpha, sigma, d_alpha, d_sigma = (
        float(f(t)) for f in (process.alpha, process.sigma, process.d_alpha, process.d_sigma)
    )
    predictions = {
        "epsilon": eps,
        "sample": x0,
        "v": alpha * eps - sigma * x0,
        "score": -eps / sigma if sigma else None,
        "flow": d_alpha * x0 + d_sigma * eps,
    }
    return x0, eps, alpha * x0 + sigma * eps, predictions


def close(actual, expected):
    """Ten digits, relative to the tensor's size."""
    scale = max(1.0, float(expected.abs().max()))
    assert float((actual - expected).abs().max()) <= 1e-10 * scale


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("source", KINDS)
def test_every_type_converts_to_every_other(name, source, target):
    process = PROCESSES[name]
    for fraction in FRACTIONS:
        t = process.t_min + fraction * (process.t_max - process.t_min)
        _, _, x, predictions = truth(process, t)
        close(sds.convert(predictions[source], source, target, x, process, t), predictions[target])


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("source", KINDS)
def test_per_sample_times_agree_with_single_times(name, source):
    process = PROCESSES[name]
    times = process.t_min + np.array(FRACTIONS) * (process.t_max - process.t_min)
    rows = [truth(process, float(t), seed=k, count=1) for k, t in enumerate(times)]
    x = torch.cat([r[2] for r in rows])
    value = torch.cat([r[3][source] for r in rows])
    for target in KINDS:
        expected = torch.cat([r[3][target] for r in rows])
        close(sds.convert(value, source, target, x, process, times), expected)
        close(sds.convert(value, source, target, x, process, torch.from_numpy(times)), expected)


@pytest.mark.parametrize("coordinates", ["native", "ve", "flow", "angle"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve", "edm", "table"])
def test_a_prediction_answers_in_the_coordinates_of_its_path(name, kind, coordinates):
    process = PROCESSES[name]
    view = sds.view(process, coordinates)
    for fraction in FRACTIONS:
        t = process.t_min + fraction * (process.t_max - process.t_min)
        x0, eps, x, predictions = truth(process, t)
        ratio = float(process.sigma(t) / process.alpha(t))
        alpha, sigma, d_alpha, d_sigma = {
            "native": tuple(float(f(t)) for f in (process.alpha, process.sigma, process.d_alpha, process.d_sigma)),
            "ve": (1.0, ratio, 0.0, 1.0),
            "flow": (1 / (1 + ratio), ratio / (1 + ratio), -1.0, 1.0),
            "angle": (
                math.cos(math.atan(ratio)),
                math.sin(math.atan(ratio)),
                -math.sin(math.atan(ratio)),
                math.cos(math.atan(ratio)),
            ),
        }[coordinates]
        point = Path(view, []).at(float(view.clock(t, ratio)))
        assert float(point.t) == pytest.approx(t, abs=1e-9 * process.t_max)
        scale = alpha / float(process.alpha(t))
        assert float(point.scale) == pytest.approx(scale, rel=1e-10)
        out = sds.Prediction(x * scale, point, predictions[kind], kind)
        size = max(1.0, ratio)
        for actual, expected in (
            (out.x0 / size, x0 / size),
            (out.eps, eps),
            (out.score * sigma, -eps),
            (out.velocity / size, (d_alpha * x0 + d_sigma * eps) / size),
        ):
            torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


def test_v_of_the_angle_view_is_its_velocity():
    process = sds.VP()
    _, _, x, predictions = truth(process, 0.4)
    view = sds.view(process, "angle")
    point = Path(view, []).at(math.atan(float(process.ratio(0.4))))
    torch.testing.assert_close(sds.Prediction(x, point, predictions["epsilon"], "epsilon").velocity, predictions["v"])


NO_SIGNAL = {"flow": 1.0, "cosine": 1.0, "zero-SNR table": 999.0}
NO_NOISE = {"flow": 0.0, "edm": 0.0, "vp": 0.0, "sub-vp": 0.0}


@pytest.mark.parametrize("source", ["epsilon", "score"])
@pytest.mark.parametrize("target", ["sample", "v"])
@pytest.mark.parametrize("name", NO_SIGNAL)
def test_noise_alone_says_nothing_of_the_data_where_alpha_is_zero(name, source, target):
    process, t = PROCESSES[name], NO_SIGNAL[name]
    x = torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(sds.ConversionError, match="alpha = 0"):
        sds.convert(x, source, target, x, process, t)
    with pytest.raises(sds.ConversionError):
        sds.convert(x, source, target, x, process, np.array([t, 0.5 * process.t_max]))


@pytest.mark.parametrize("target", ["epsilon", "v"])
@pytest.mark.parametrize("name", NO_NOISE)
def test_the_data_alone_say_nothing_of_the_noise_where_sigma_is_zero(name, target):
    x = torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(sds.ConversionError, match="sigma = 0"):
        sds.convert(x, "sample", target, x, PROCESSES[name], NO_NOISE[name])


@pytest.mark.parametrize("source", ["epsilon", "sample", "v"])
@pytest.mark.parametrize("name", NO_NOISE)
def test_there_is_no_score_where_sigma_is_zero(name, source):
    x = torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(sds.ConversionError):
        sds.convert(x, source, "score", x, PROCESSES[name], NO_NOISE[name])


@pytest.mark.parametrize("source", ["sample", "v", "flow"])
@pytest.mark.parametrize("name", NO_SIGNAL)
def test_x0_v_and_flow_determine_everything_where_alpha_is_zero(name, source):
    process, t = PROCESSES[name], NO_SIGNAL[name]
    _, _, x, predictions = truth(process, t)
    for target in ("epsilon", "v", "score", "flow", "sample"):
        close(sds.convert(predictions[source], source, target, x, process, t), predictions[target])


@pytest.mark.parametrize(
    ("alias", "name"),
    [("eps", "epsilon"), ("x0", "sample"), ("x_start", "sample"), ("v_prediction", "v"), ("flow_prediction", "flow")],
)
def test_the_names_of_papers_and_diffusers_mean_the_same(alias, name):
    process = sds.VP()
    _, _, x, predictions = truth(process, 0.3)
    close(sds.convert(predictions[name], alias, "sample", x, process, 0.3), predictions["sample"])


def test_an_unknown_prediction_type_names_the_known_ones():
    x = torch.ones(1, 1)
    with pytest.raises(sds.UnknownNameError, match="did you mean 'epsilon'"):
        sds.convert(x, "epsilom", "sample", x, sds.VP(), 0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PROCESSES)
def test_the_mixture_predicts_the_gradient_of_its_log_density_in_every_type(name, kind):
    """Tweedie: x0 = (x + sigma^2 s) / alpha and eps = -sigma s, with s by automatic differentiation of log p_t."""
    process = PROCESSES[name]
    model = sds.grid_mixture(process, prediction=kind)
    t = process.t_min + 0.55 * (process.t_max - process.t_min)
    alpha, sigma, d_alpha, d_sigma = (
        float(f(t)) for f in (process.alpha, process.sigma, process.d_alpha, process.d_sigma)
    )
    x = (sigma + 1) * torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x.requires_grad_(True)
    components = torch.distributions.MultivariateNormal(
        alpha * model.means, alpha**2 * model.covariances + sigma**2 * torch.eye(2, dtype=torch.float64)
    )
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(model.weights), components)
    log_prob = mixture.log_prob(x)
    (score,) = torch.autograd.grad(log_prob.sum(), x)
    torch.testing.assert_close(model.log_prob(x, t), log_prob, rtol=1e-10, atol=1e-10)
    x0, eps = (x + sigma**2 * score) / alpha, -sigma * score
    expected = {
        "epsilon": eps,
        "sample": x0,
        "v": alpha * eps - sigma * x0,
        "score": score,
        "flow": d_alpha * x0 + d_sigma * eps,
    }[kind]
    torch.testing.assert_close(model.predict(x.detach(), t), expected.detach(), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", ["epsilon", "v", "sample"])
def test_a_velocity_that_is_infinite_is_refused(kind):
    """VP reaches sigma = 0 like sqrt(t), so sigma' and the velocity are infinite at t = 0."""
    x = torch.ones(1, 2, dtype=torch.float64)
    with pytest.raises(sds.ConversionError, match="infinite slope"):
        sds.convert(x, kind, "flow", x, sds.VP(), 0.0)
