"""Views: the same sigma/alpha in other coordinates, their closed forms, derivatives and clean ends."""

import math

import numpy as np
import pytest
import torch
from process_cases import PROCESSES

import sdesamplers as sds
from sdesamplers.path.path import Path
from sdesamplers.path.points import clean_point, make_points

REACH_ALPHA_ZERO = ("cosine", "flow", "zero-SNR table")
STOP_ABOVE_ZERO_SIGMA = ("vp", "constant vp", "cosine", "ve", "table", "zero-SNR table")
CLOSED_FORMS = {
    "ve": lambda r: (1.0, r, 0.0, 1.0),
    "flow": lambda r: (1 / (1 + r), r / (1 + r), -1.0, 1.0),
    "angle": lambda r: (
        1 / math.sqrt(1 + r * r),
        r / math.sqrt(1 + r * r),
        -r / math.sqrt(1 + r * r),
        1 / math.sqrt(1 + r * r),
    ),
}
PAIRS = [
    (name, coordinates)
    for name in PROCESSES
    for coordinates in ("native", "ve", "flow", "angle")
    if not (coordinates == "ve" and name in REACH_ALPHA_ZERO)
]


def native_times(process, count=11):
    return process.t_min + (process.t_max - process.t_min) * (np.arange(count) + 0.3717) / count


@pytest.mark.parametrize(("name", "coordinates"), PAIRS)
def test_a_view_keeps_sigma_over_alpha_and_the_models_own_time(name, coordinates):
    process = PROCESSES[name]
    view = sds.view(process, coordinates)
    times = native_times(process)
    expected = process.sigma(times) / process.alpha(times)
    for point, t, ratio in zip(make_points(view, times), times, expected, strict=True):
        assert point.sigma / point.alpha == pytest.approx(ratio, rel=1e-9)
        assert point.t == t
        assert point.native[:2] == pytest.approx((float(process.alpha(t)), float(process.sigma(t))), rel=1e-9)
        # path state = scale * model state, for signal and noise alike
        assert point.alpha == pytest.approx(point.scale * float(process.alpha(t)), rel=1e-9)
        assert point.sigma == pytest.approx(point.scale * float(process.sigma(t)), rel=1e-9)
        assert point.lam == pytest.approx(-math.log(ratio), abs=1e-9)
        again = Path(view, []).at(point.time)
        assert float(again.t) == pytest.approx(t, abs=1e-9 * process.t_max)
        assert float(again.ratio) == pytest.approx(ratio, rel=1e-9)
    path_times = np.array([p.time for p in make_points(view, times)])
    assert np.all(np.diff(path_times) > 0)
    np.testing.assert_allclose(view.time_at_ratio(expected), path_times, rtol=1e-9)


@pytest.mark.parametrize(("name", "coordinates"), [pair for pair in PAIRS if pair[1] != "native"])
def test_a_view_has_the_closed_form_of_its_name(name, coordinates):
    process = PROCESSES[name]
    times = native_times(process)
    for point in make_points(sds.view(process, coordinates), times):
        expected = CLOSED_FORMS[coordinates](float(process.sigma(point.t) / process.alpha(point.t)))
        assert (point.alpha, point.sigma, point.d_alpha, point.d_sigma) == pytest.approx(expected, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_native_view_is_the_process_itself_above_t_min(name):
    process = PROCESSES[name]
    view = sds.view(process)
    for point in make_points(view, native_times(process)):
        assert point.time == point.t
        assert point.scale == pytest.approx(1.0, rel=1e-12)
        own = [float(f(point.t)) for f in (process.alpha, process.sigma, process.d_alpha, process.d_sigma)]
        assert [point.alpha, point.sigma, point.d_alpha, point.d_sigma] == pytest.approx(own, rel=1e-12)


@pytest.mark.parametrize(("name", "coordinates"), PAIRS)
def test_a_views_derivatives_agree_with_central_differences(name, coordinates):
    view = sds.view(PROCESSES[name], coordinates)
    low, high = view.t_min, view.t_max
    for t in low + (high - low) * np.linspace(0.013, 0.983, 7):
        h = 1e-6 * t
        for value, slope in ((view.alpha, view.d_alpha), (view.sigma, view.d_sigma)):
            numeric = (float(value(t + h)) - float(value(t - h))) / (2 * h)
            assert float(slope(t)) == pytest.approx(numeric, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize(("name", "coordinates"), PAIRS)
def test_diffusion_in_a_view_is_that_of_its_own_alpha_and_sigma(name, coordinates):
    """g^2 dtime = scale^2 times the native g^2 dt: rescaling and re-timing an SDE (Karras et al. 2022, appendix B)."""
    process = PROCESSES[name]
    view = sds.view(process, coordinates)
    for t, point in zip(native_times(process), make_points(view, native_times(process)), strict=True):
        h = 1e-6 * t
        later, earlier = make_points(view, np.array([t + h, t - h]))
        rate = (later.time - earlier.time) / (2 * h)
        expected = point.scale**2 * float(process.diffusion(t)) ** 2 / rate
        assert point.diffusion_squared == pytest.approx(expected, rel=1e-5)
        assert point.diffusion**2 == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", STOP_ABOVE_ZERO_SIGMA)
def test_the_native_tail_is_continuous_and_once_differentiable_at_t_min(name):
    process = PROCESSES[name]
    view = sds.view(process)
    join, width = process.t_min, process.t_min - view.clean_time
    h = 1e-5 * width
    for f in (view.alpha, view.sigma, view.ratio):
        at, below, below2 = (float(f(join - k * h)) for k in range(3))
        above, above2 = float(f(join + h)), float(f(join + 2 * h))
        left, right = (3 * at - 4 * below + below2) / (2 * h), (-3 * at + 4 * above - above2) / (2 * h)
        assert below == pytest.approx(at, rel=1e-4)
        assert left == pytest.approx(right, rel=2e-3, abs=1e-7 / width)
    for f in (view.d_alpha, view.d_sigma):
        below, above = float(f(join * (1 - 1e-12) - 1e-14)), float(f(join))
        assert below == pytest.approx(above, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", STOP_ABOVE_ZERO_SIGMA)
def test_the_native_tail_falls_linearly_to_a_regular_clean_end(name):
    process = PROCESSES[name]
    view = sds.view(process)
    join, clean = process.t_min, view.clean_time
    first = float(process.sigma(join) / process.alpha(join))
    for fraction in (0.0, 0.25, 0.5, 0.9):
        t = clean + fraction * (join - clean)
        assert float(view.ratio(t)) == pytest.approx(fraction * first, rel=1e-8, abs=1e-12)
        assert math.isfinite(float(view.d_sigma(t)))
        h = 1e-4 * (join - clean)
        if 0 < fraction < 0.9:
            for value, slope in ((view.alpha, view.d_alpha), (view.sigma, view.d_sigma)):
                numeric = (float(value(t + h)) - float(value(t - h))) / (2 * h)
                assert float(slope(t)) == pytest.approx(numeric, rel=1e-4, abs=1e-9)
    assert float(view.sigma(clean)) == 0.0
    if name not in ("table", "zero-SNR table"):
        assert float(view.alpha(clean)) == pytest.approx(1.0, rel=1e-14)
    point = clean_point(view)
    assert point.is_clean
    assert (point.alpha, point.sigma, point.scale) == (1.0, 0.0, 1.0)
    assert point.time == clean < join


@pytest.mark.parametrize("name", ["sub-vp", "edm", "flow"])
def test_processes_that_reach_the_data_regularly_keep_their_own_clock(name):
    view = sds.view(PROCESSES[name])
    assert view.clean_time == 0.0
    t = np.linspace(1e-6, PROCESSES[name].t_min, 5)
    np.testing.assert_array_equal(view.sigma(t), PROCESSES[name].sigma(t))


@pytest.mark.parametrize("name", ["cosine", "flow"])
def test_ve_is_refused_where_alpha_is_zero(name):
    with pytest.raises(sds.UsageError, match="alpha = 0; use 'flow', 'angle' or 'native'"):
        sds.view(PROCESSES[name], "ve")


def test_ve_of_a_table_that_ends_in_noise_begins_at_a_finite_sigma():
    point = make_points(sds.view(PROCESSES["zero-SNR table"], "ve"), np.array([PROCESSES["zero-SNR table"].t_max]))[0]
    assert point.alpha == 1.0
    assert 1e3 < point.sigma < math.inf


@pytest.mark.parametrize("name", REACH_ALPHA_ZERO)
@pytest.mark.parametrize("coordinates", ["native", "flow", "angle"])
def test_pure_noise_is_a_regular_point_of_the_other_views(name, coordinates):
    process = PROCESSES[name]
    (point,) = make_points(sds.view(process, coordinates), np.array([process.t_max]))
    assert point.is_pure_noise
    assert point.alpha == 0.0
    assert point.sigma == pytest.approx(1.0, abs=1e-14)
    assert point.scale == pytest.approx(1.0, abs=1e-14)
    assert point.ratio == math.inf
    assert point.lam == -math.inf
    assert all(map(math.isfinite, (point.time, point.d_alpha, point.d_sigma)))
    with pytest.raises(sds.UsageError, match="diffusion of the reverse SDE is infinite"):
        _ = point.diffusion


def test_unknown_coordinates_name_the_known_ones():
    with pytest.raises(sds.UnknownNameError, match=r"did you mean 'angle'.*native, ve, flow, angle"):
        sds.view(sds.VP(), "angel")


@pytest.mark.parametrize("coordinates", ["native", "ve", "flow", "angle"])
def test_points_for_an_array_of_times_agree_with_single_ones(coordinates):
    view = sds.view(sds.VP(), coordinates)
    path = Path(view, [])
    times = view.t_min + (view.t_max - view.t_min) * np.array([0.05, 0.4, 0.8])
    rows = np.array([4, 1, 2])
    together = path.at(times, rows)
    assert together.rows is rows
    for k, t in enumerate(times):
        alone = path.at(float(t))
        for field in ("time", "t", "alpha", "sigma", "d_alpha", "d_sigma", "scale", "lam", "ratio", "diffusion"):
            one = np.broadcast_to(getattr(together, field), (3,))[k]
            assert one == pytest.approx(float(getattr(alone, field)), rel=1e-12)
    widened = path.expand(times, torch.zeros(3, 2, 2, dtype=torch.float64))
    assert widened.shape == (3, 1, 1)
    assert widened.flatten().tolist() == times.tolist()
