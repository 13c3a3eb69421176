"""The shared algebra against adaptive quadrature (scipy) and polynomials differentiated by hand."""

import math

import numpy as np
import pytest
from scipy.integrate import quad

from sdesamplers import VP, RectifiedFlow, view
from sdesamplers.coefficients import (
    constant_integral,
    derivative_weights,
    lagrange,
    lagrange_integrals,
    midpoint_integrals,
    octave_parts,
    phi,
    quadrature,
    semilinear,
    semilinear_sde,
)
from sdesamplers.path.points import added_noise_fraction, make_points


def integral(function, start, end):
    return quad(function, start, end, epsabs=0, epsrel=1e-13, limit=200)[0]


@pytest.mark.parametrize("k", range(1, 6))
@pytest.mark.parametrize("z", [-60, -8.01, -7.99, -1, -1e-3, -1e-9, 0, 1e-9, 1e-3, 0.5, 3, 7.99, 8.01, 60])
def test_phi_is_its_integral_to_rounding(k, z):
    exact = integral(lambda u: math.exp((1 - u) * z) * u ** (k - 1) / math.factorial(k - 1), 0, 1)
    assert phi(k, z) == pytest.approx(exact, rel=1e-13)


def test_phi_0_and_phi_1_are_elementary():
    assert phi(0, 1.5) == math.exp(1.5)
    assert phi(1, -1e-12) == pytest.approx(math.expm1(-1e-12) / -1e-12, rel=1e-14)


def cubic(u):
    return 1 + u - 2 * u**2 + 0.3 * u**3


NODES = [0.3, 0.05, -0.4, -1.1]


@pytest.mark.parametrize(("start", "end"), [(0.3, 0.8), (0.3, 25.0), (0.8, 0.3)])
@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0, 2.5])
def test_integrals_of_a_cubic_through_four_uneven_nodes_are_exact(start, end, rate):
    weights = lagrange_integrals(NODES, start, end, rate=rate)
    exact = integral(lambda u: math.exp(rate * (u - end)) * cubic(u), start, end)
    assert sum(w * cubic(n) for w, n in zip(weights, NODES, strict=True)) == pytest.approx(exact, rel=1e-11)


def test_quadrature_is_exact_for_smooth_functions():
    at, weights = quadrature(0.8, 0.3)
    exact = integral(lambda u: math.cos(u) / (1 + u) * cubic(u), 0.8, 0.3)
    assert np.sum(weights * np.cos(at) / (1 + at) * cubic(at)) == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0, 2.0])
@pytest.mark.parametrize("r", [0.3, 1.0, -0.7])
def test_the_midpoint_rule_takes_the_line_at_half_the_step(r, rate):
    h = np.array([0.2, 1.5])
    exact = [integral(lambda u, end=end: math.exp(rate * (u - end)), 0, end) for end in h]
    assert constant_integral(h, rate) == pytest.approx(exact, rel=1e-12)
    first, second = 1.3, -0.4  # values at 0 and r h
    middle = first + (second - first) * 0.5 / r
    found = np.dot([first, second], midpoint_integrals(h, rate, r))
    assert found == pytest.approx(np.multiply(exact, middle), rel=1e-12)


def test_octave_parts_round_towards_zero_and_stay():
    h = np.array([1.0, -1.7, 1.001 * 2.0**-0.25, 0.999 * 2.0**-0.25, -300.0])
    assert octave_parts(h) == pytest.approx([1, -(2**0.75), 2**-0.25, 2**-0.5, -(2**8.0)], rel=1e-14)
    assert octave_parts(h, 1) == pytest.approx([1, -1, 0.5, 0.5, -256], rel=1e-14)


@pytest.mark.parametrize("process", [VP(), RectifiedFlow()])
def test_the_fresh_share_of_noise_is_the_forward_transitions(process):
    """sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2, over sigma_t^2; all of it out of alpha = 0 and into sigma = 0."""
    now, then = make_points(view(process, "native"), np.array([0.8, 0.3]))
    forward = now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2
    assert added_noise_fraction(now, then) == pytest.approx(forward / now.sigma**2, rel=1e-12)
    ends = make_points(view(RectifiedFlow(), "native"), np.array([1.0, 0.4, 0.0]))
    assert (
        added_noise_fraction(ends[0], ends[1])
        == added_noise_fraction(ends[1], ends[2])
        == added_noise_fraction(ends[0], ends[2])
        == 1.0
    )


def test_even_nodes_give_the_adams_bashforth_weights():
    found = lagrange_integrals([0.0, -1.0, -2.0, -3.0], 0.0, 1.0)
    assert found == pytest.approx([55 / 24, -59 / 24, 37 / 24, -9 / 24], rel=1e-13)


def test_interpolation_and_derivatives_of_a_cubic():
    values = [cubic(n) for n in NODES]
    assert np.dot(lagrange(NODES, 0.8), values) == pytest.approx(cubic(0.8), rel=1e-13)
    exact = [cubic(0.8), 1 - 4 * 0.8 + 0.9 * 0.8**2, -4 + 1.8 * 0.8, 1.8]
    assert derivative_weights(NODES, 0.8) @ values == pytest.approx(exact, rel=1e-11)


@pytest.mark.parametrize("tau", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("process", [VP(), RectifiedFlow()])
def test_the_sdes_linear_part_and_noise_are_the_integrals_of_its_rates(process, tau):
    """y = x/alpha has dy = (1 + tau^2) (x0 - y) dlambda + tau sqrt(2) e^-lambda dW, and y - x0 = e^-lambda eps."""
    t, s = process.time_at_log_snr(2 * np.array([-0.3, 0.9]))
    now, then = make_points(view(process, "native"), np.array([t, s]))
    rate = 1 + tau**2
    data, noise = (semilinear_sde(now, then, kind, tau) for kind in ("data", "noise"))
    spread = integral(lambda u: 2 * tau**2 * math.exp(-2 * u - 2 * rate * (0.9 - u)), -0.3, 0.9)
    expected = (math.exp(-rate * 1.2) * then.alpha / now.alpha, rate * then.alpha, rate, then.alpha * math.sqrt(spread))
    assert data == pytest.approx(expected, rel=1e-11)
    spread = integral(lambda u: 2 * tau**2 * math.exp(-2 * u), -0.3, 0.9)
    expected = (then.alpha / now.alpha, -rate * then.sigma, -1.0, then.alpha * math.sqrt(spread))
    assert noise == pytest.approx(expected, rel=1e-11)
    if tau == 0:
        for kind, found in (("data", data), ("noise", noise)):
            assert found[:3] == pytest.approx(semilinear(now, then, kind), rel=1e-14)


@pytest.mark.parametrize("prediction", ["data", "noise"])
@pytest.mark.parametrize("coordinates", ["native", "flow", "angle"])
@pytest.mark.parametrize("t", [1.0, 0.7])
def test_the_odes_exact_solution_of_a_constant_prediction_is_ddim(t, coordinates, prediction):
    """alpha_s x0 + sigma_s eps, from alpha = 0 too, where the clock is alpha/sigma and the prediction x0."""
    now, then = make_points(view(RectifiedFlow(), coordinates), np.array([t, 0.3]))
    carry, gain, rate = semilinear(now, then, prediction)
    x0, eps = 0.7, -1.3
    x, value = now.alpha * x0 + now.sigma * eps, x0 if prediction == "data" or t == 1.0 else eps
    start, end = (0.0, 0.7 / 0.3) if t == 1.0 else (math.log(0.3 / 0.7), math.log(0.7 / 0.3))
    weight = integral(lambda u: math.exp(rate * (u - end)), start, end)
    assert carry * x + gain * weight * value == pytest.approx(then.alpha * x0 + then.sigma * eps, rel=1e-12)


def test_the_former_name_of_the_added_noise_fraction_warns():
    import sdesamplers.coefficients as coefficients

    with pytest.warns(DeprecationWarning, match="added_noise_fraction"):
        assert coefficients.fresh_share is added_noise_fraction
